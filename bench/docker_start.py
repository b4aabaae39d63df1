"""From the decision to a replica that serves, its image present, against a bare `docker run` of the same image."""

import asyncio
import os
import tempfile
import time
from pathlib import Path

import pytest

from bench.rows import Row, Skipped, compared, median_row
from springtide.drivers.docker import DockerRuntime, DockerSettings
from springtide.drivers.http_get import http_get
from springtide.drivers.system import SystemClock
from springtide.model import ReplicaSpec, ReplicaState, ServiceSpec
from tests.dockers import Engine, an_engine

CLOCK = SystemClock()
STARTS = 5
"""Starts of each kind in one run, taken in turns."""

START_S_MAX = 1.5
RATIO_MAX = 3.0
PORT = 8080
_COMMAND = ("python3", "/app/echo_replica.py")
_POLL_S = 0.01


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    """The rows of this bench."""
    try:
        with an_engine() as engine, tempfile.TemporaryDirectory(prefix="bench-docker-") as cache:
            ours, bare = asyncio.run(_starts(engine, Path(cache), runs * STARTS))
    except pytest.skip.Exception as error:
        return [], [Skipped("start of a container", str(error))]
    replica = median_row("decision to a replica that serves", "s", ours, ceiling=START_S_MAX)
    run = median_row("docker run to its first answer", "s", bare)
    ratio = median_row("the one over the other", "×", [a / b for a, b in zip(ours, bare, strict=True)], RATIO_MAX)
    return [compared(replica, run, None), run, ratio], []


async def _starts(engine: Engine, cache: Path, count: int) -> tuple[list[float], list[float]]:
    image = await engine.echo_image(cache)
    settings = DockerSettings(f"bench-{os.getpid()}", engine.url, ("idc-a",), engine.address)
    runtime = DockerRuntime(settings, CLOCK)
    await runtime.define(ServiceSpec("echo", "1", command=(*_COMMAND, "{port}"), image=image))
    await runtime.list()
    ours, bare = [], []
    try:
        for number in range(count):
            ours.append(await _replica(runtime, f"r{number}"))
            bare.append(await _bare(engine, image))
    finally:
        await runtime.close()
    return ours, bare


async def _replica(runtime: DockerRuntime, name: str) -> float:
    begun = time.perf_counter()
    await runtime.start(ReplicaSpec(name, "idc-a", "idc-a-1", "echo", "1"))
    while True:
        (replica,) = await runtime.list()
        if replica.state is ReplicaState.READY:
            break
        if replica.failure:
            raise RuntimeError(replica.failure)
        await asyncio.sleep(_POLL_S)
    lasted = time.perf_counter() - begun
    await runtime.stop(name)
    return lasted


async def _bare(engine: Engine, image: str) -> float:
    publish = ("--publish", f"{engine.address}::{PORT}") if engine.address else ()
    begun = time.perf_counter()
    words = ("run", "--detach", *publish, image, *_COMMAND, str(PORT))
    container = (await asyncio.to_thread(engine.docker, *words)).strip()
    try:
        host, port = await asyncio.to_thread(_address, engine, container)
        while not await _answers(host, port):  # noqa: ASYNC110 - a program tells nobody when it listens
            await asyncio.sleep(_POLL_S)
        return time.perf_counter() - begun
    finally:
        await asyncio.to_thread(engine.docker, "rm", "--force", container)


def _address(engine: Engine, container: str) -> tuple[str, int]:
    if engine.address:
        host, _, port = engine.docker("port", container, str(PORT)).split()[0].rpartition(":")
        return host, int(port)
    return engine.docker("inspect", "--format", "{{.NetworkSettings.IPAddress}}", container).strip(), PORT


async def _answers(host: str, port: int) -> bool:
    try:
        return (await http_get(CLOCK, host, port, "/", 1.0))[0] == 200
    except OSError:
        return False
