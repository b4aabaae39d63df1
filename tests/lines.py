"""A zone behind a line of limited bandwidth: a network namespace with a registry and engines in it, the origin outside.

Everything runs in one thread, which moves into the network: what it binds and reaches is out of the machine's sight.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import aiodocker

from springtide.drivers import embedded_registry, netns
from springtide.drivers.child import Child, spawn
from springtide.drivers.embedded_registry import EmbeddedRegistry, RegistrySettings, start_registry
from springtide.drivers.netns import Namespace, PrivateNetwork
from springtide.drivers.system import SystemClock

T = TypeVar("T")

PORT = 5000
ENGINE_S_MAX = 30.0
CLOCK = SystemClock()


class Line:
    """The zone's namespace, and what has crossed the line to it and from it."""

    host = PrivateNetwork.host

    def __init__(self, zone: Namespace, device: str) -> None:
        self.zone = zone
        self._device = device

    def crossed(self) -> tuple[int, int]:
        """Bytes into the zone and out of it, by the interface's counters."""
        for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
            name, _, figures = line.partition(":")
            if name.strip() == self._device:
                fields = figures.split()
                return int(fields[8]), int(fields[0])
        raise RuntimeError(f"there is no interface {self._device}")


def missing() -> str:
    """Why there can be no line with an engine behind it here; empty when there can."""
    reason = netns.missing() or embedded_registry.missing()
    absent = [program for program in ("tc", "dockerd", "nsenter") if shutil.which(program) is None]
    return reason or (f"a line with an engine behind it needs {', '.join(absent)}" if absent else "")


def behind_a_line(mbit: float, body: Callable[[Line], Awaitable[T]]) -> T:
    """Run `body` in a thread of its own, with a zone behind a line of `mbit` Mbit/s each way."""

    def run() -> T:
        network = PrivateNetwork()
        try:
            zone = network.add()
            device = "port2"
            _shape(device, mbit)
            with zone.entered():
                _shape("eth0", mbit)
            return asyncio.run(_awaited(body(Line(zone, device))))
        finally:
            network.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


async def _awaited(call: Awaitable[T]) -> T:
    return await call


def _shape(device: str, mbit: float) -> None:
    # The burst is what the kernel needs at this rate (tc-tbf(8)); 50 ms of packets wait, as in a router.
    words = ["tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", f"{mbit}mbit", "burst", "64kb"]
    subprocess.run([*words, "latency", "50ms"], check=True)


@contextlib.asynccontextmanager
async def registry(folder: Path, settings: RegistrySettings) -> AsyncIterator[EmbeddedRegistry]:
    running = await start_registry(folder, CLOCK, settings)
    try:
        yield running
    finally:
        await running.stop()


def zone_registry(
    folder: Path, line: Line, upstream: str = ""
) -> contextlib.AbstractAsyncContextManager[EmbeddedRegistry]:
    """A registry inside the zone, reached at its address from both sides."""
    enter = ("nsenter", f"--net=/proc/{os.getpid()}/fd/{line.zone._descriptor}")
    return registry(folder, RegistrySettings(line.zone.host, PORT, upstream, enter))


@contextlib.asynccontextmanager
async def engine(folder: Path, line: Line) -> AsyncIterator[aiodocker.Docker]:
    """A Docker Engine inside the zone, without networks for its containers."""
    folder.mkdir(parents=True)
    # A socket's path may have 107 characters (unix(7)), and the engine makes some deep below.
    short = Path(tempfile.mkdtemp(prefix="line-"))
    socket = short / "docker.sock"
    command = ["dockerd", "--data-root", folder / "data", "--exec-root", short / "exec", "--pidfile", short / "pid"]
    # It is alone in its namespace, so that it may go without a bridge.
    command += ["-H", f"unix://{socket}", "--bridge=none", "--iptables=false", "--ip-forward=false"]
    command += ["--insecure-registry", f"{line.zone.host}:{PORT}", "--insecure-registry", f"{line.host}:{PORT}"]
    with line.zone.entered():
        child = spawn("dockerd", [str(word) for word in command], folder / "dockerd.log")
    docker = aiodocker.Docker(url=f"unix://{socket}")
    try:
        await _answers(docker, child)
        yield docker
    finally:
        await docker.close()
        await child.stop(CLOCK, 20.0)
        if (folder / "data").is_mount():  # an engine that did not come up leaves it
            subprocess.run(["umount", folder / "data"], check=False)
        shutil.rmtree(short, ignore_errors=True)


async def _answers(docker: aiodocker.Docker, child: Child) -> None:
    until = CLOCK.monotonic_s() + ENGINE_S_MAX
    while child.returncode is None and CLOCK.monotonic_s() < until:
        with contextlib.suppress(aiodocker.DockerError):
            await docker.version()
            return
        await asyncio.sleep(0.1)
    raise child.failure("did not answer")


async def emptied(docker: aiodocker.Docker) -> None:
    """Remove every container and image of an engine."""
    for container in await docker.containers.list(all="true"):
        await container.delete(force=True)
    for image in await docker.images.list():
        await docker.images.delete(image["Id"], force=True)


async def said(docker: aiodocker.Docker, image: str) -> str:
    """Run a container of an image to its end; what it printed."""
    container = await docker.containers.create({"Image": image, "HostConfig": {"NetworkMode": "none"}})
    try:
        await container.start()
        await container.wait()
        return "".join(await container.log(stdout=True)).strip()
    finally:
        await container.delete(force=True)
