"""Requests dropped while replicas come and go under load, behind HAProxy and behind Envoy.

Four replicas serve all the time. Twenty are added one by one, then each is replaced by a new one, as a rolling update
does it (the new one serves, the old one is drained, leaves the list, and is ended), then all twenty leave. A request is
dropped when its answer is not 200 or its connection breaks; nothing is tried again. The service is not idempotent, so
the balancers repeat nothing that reached a replica.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

import msgspec

from bench import processes
from bench.rows import Row, Skipped
from springtide.drivers.balanced_service import BalancedService
from springtide.drivers.balancers import start_balancer
from springtide.drivers.system import SystemClock
from springtide.model import Endpoint
from springtide.ports import Balancer
from tests.integration.http_load import Load

CHANGED = 20
SERVICE = BalancedService("shop", slow_start_ms=0)
CONNECTIONS = 16
STEP_REQUESTS = 40
DRAIN_S = 0.1
ECHO = Path(__file__).parents[1] / "tests" / "integration" / "echo_replica.py"


class Measured(msgspec.Struct, frozen=True):
    """Of one run."""

    sent: int
    dropped: int
    replicas: int


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    """The rows of this bench."""
    rows: list[Row] = []
    skipped: list[Skipped] = []
    kinds: tuple[Literal["haproxy", "envoy"], ...] = ("haproxy", "envoy")
    for kind in kinds:
        if kind == "haproxy" and not processes.has_haproxy():
            skipped.append(Skipped("HAProxy", "it is not installed: apt-get install haproxy"))
            continue
        measured = [asyncio.run(_one_run(kind)) for _ in range(runs)]
        dropped = tuple(float(run.dropped) for run in measured)
        what = f"{kind}: dropped while {CHANGED} replicas are added, replaced and removed"
        rows += [
            Row(what, max(dropped), "requests", ceiling=0.0, runs=dropped),
            Row(f"{kind}: sent in that time", min(run.sent for run in measured), "requests"),
        ]
    return rows, skipped


class _Fleet:
    def __init__(self, balancer: Balancer, load: Load, folder: Path) -> None:
        self.balancer = balancer
        self.load = load
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.serving: dict[str, Endpoint] = {}

    async def add(self, name: str) -> None:
        await self.start(name)
        await self.route()

    async def start(self, name: str) -> None:
        announce = self.folder / name
        command = [sys.executable, str(ECHO), str(announce), "delay_s=0.002"]
        environment = {**os.environ, "SPRINGTIDE_REPLICA_ID": name}
        self.running[name] = subprocess.Popen(  # noqa: ASYNC220 - a fork takes a millisecond
            command,
            env=environment,
            stderr=subprocess.DEVNULL,  # where asyncio complains of connections that were open at its end
        )
        while not announce.exists():  # noqa: ASYNC110 - a process writes it, which sets no event of ours
            await asyncio.sleep(0.01)
        port = json.loads(announce.read_text())["port"]
        self.serving[name] = Endpoint(name, f"zone-{len(self.running) % 3}", "127.0.0.1", port, 10)

    async def route(self) -> None:
        await self.balancer.set_endpoints(list(self.serving.values()))
        await self.load.answered(STEP_REQUESTS)

    async def remove(self, name: str) -> None:
        """As the fleet does it: traffic off, drained, out of the list, ended."""
        self.serving[name] = msgspec.structs.replace(self.serving[name], weight=0)
        await self.route()
        await asyncio.sleep(DRAIN_S)
        del self.serving[name]
        await self.route()
        self.running[name].terminate()

    def end(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()


async def _one_run(kind: Literal["haproxy", "envoy"]) -> Measured:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        engine = await start_balancer(kind, Path(folder), SystemClock(), [SERVICE])
        load = Load(engine.port("shop"), CONNECTIONS)
        fleet = _Fleet(engine.balancer("shop"), load, Path(folder))
        try:
            for number in range(4):
                await fleet.start(f"base{number}")
            await fleet.balancer.set_endpoints(list(fleet.serving.values()))
            async with load:
                await _changes(fleet)
        finally:
            await engine.stop()
            fleet.end()
        return Measured(load.answers.total(), sum(load.failed.values()), len(fleet.running))


async def _changes(fleet: _Fleet) -> None:
    for number in range(CHANGED):
        await fleet.add(f"old{number}")
    for number in range(CHANGED):
        await fleet.add(f"new{number}")
        await fleet.remove(f"old{number}")
    for number in range(CHANGED):
        await fleet.remove(f"new{number}")
