"""The loss of a zone under load: how long until its traffic has moved, and what still fails after a retry.

Three zones with two replicas each, as processes, kept by the control loop behind HAProxy or Envoy; the service is
idempotent. All replicas of one zone are killed (SIGKILL) or frozen (SIGSTOP) at one moment. Traffic has moved when the
balancer sends that zone nothing: its replicas are ejected, or their weight is 0. Packets that vanish look to a balancer
as a frozen replica does; `tests/contract/test_balancer_black_hole.py` lets them vanish.
"""

import asyncio
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from bench import processes
from bench.rows import Row, Skipped, median_row
from springtide.drivers.balanced_service import BalancedService
from springtide.drivers.balancers import start_balancer
from springtide.drivers.memory.fleet import MemoryCloud
from springtide.drivers.process import ProcessRuntime
from springtide.drivers.system import SystemClock
from springtide.fleet.journal import Journal
from springtide.fleet.loop import ControlLoop, LoopSettings
from springtide.fleet.ports import one_service
from springtide.model import COUNTER, FleetPolicy, ServiceSpec, Zone, ZoneKind
from springtide.ports import Balancer
from tests.integration.http_load import Load

ECHO = Path(__file__).parents[1] / "tests" / "integration" / "echo_replica.py"
CLOCK = SystemClock()
CONNECTIONS = 16
SETTLED_S = 30.0
BEFORE = 400
AFTER_S = 4.0
POLL_S = 0.02
MOVED_S_MAX = 15.0
CEILING_S = {"killed": 1.0, "frozen": 3.0}
ZONES = tuple(Zone(f"room-{name}", ZoneKind.IDC, nodes_max=1, cores_per_node=4) for name in "abc")
SERVICE = BalancedService(COUNTER, idempotent=True, slow_start_ms=0)
POLICY = FleetPolicy(
    replica_requests_per_s=10_000,
    replica_cores=1,
    headroom=0.3,
    base_replicas=2,
    patience_ms=8_000,
    drain_ms=500,
    start_ms=3_000,
    actions_max=8,
    starting_max=4,
    stale_ms=1_500,
    failure_budget=1,
)

Kind = Literal["haproxy", "envoy"]


class Lost(msgspec.Struct, frozen=True):
    """Of one run: seconds until the traffic had moved, answers, and those that failed."""

    moved_s: float
    answered: int
    failed: int


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    """The rows of this bench."""
    rows: list[Row] = []
    skipped: list[Skipped] = []
    kinds: tuple[Kind, ...] = ("haproxy", "envoy")
    for kind in kinds:
        if kind == "haproxy" and not processes.has_haproxy():
            skipped.append(Skipped("HAProxy", "it is not installed: apt-get install haproxy"))
            continue
        for how, number in (("killed", signal.SIGKILL), ("frozen", signal.SIGSTOP)):
            found = [asyncio.run(_one_run(kind, number)) for _ in range(runs)]
            what = f"{kind}: a zone is {how}"
            failed = tuple(float(run.failed) for run in found)
            rows += [
                median_row(f"{what}: traffic has moved", "s", [run.moved_s for run in found], CEILING_S[how]),
                Row(f"{what}: failed", max(failed), "requests", ceiling=0.0, runs=failed),
                Row(f"{what}: answered", min(run.answered for run in found), "requests"),
            ]
    return rows, skipped


async def _one_run(kind: Kind, number: signal.Signals) -> Lost:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        engine = await start_balancer(kind, folder, CLOCK, [SERVICE])
        stack.push_async_callback(engine.stop)
        runtime = ProcessRuntime(folder / "replicas", CLOCK)
        stack.push_async_callback(runtime.close)
        command = (sys.executable, str(ECHO), "{announce}", "delay_s=0.002")
        await runtime.define(ServiceSpec(COUNTER, "", command, drain_signal="SIGUSR1"))
        balancer = engine.balancer(COUNTER)
        ports = one_service(balancer, runtime, MemoryCloud(CLOCK, ZONES), ZONES)
        settings = LoopSettings(run_id="bench", zones=ZONES, policy=POLICY, calendar=(), tick_ms=500)
        loop = ControlLoop(CLOCK, ports, settings, Journal(folder / "journal.jsonl"))
        ticking = asyncio.create_task(loop.run())
        stack.callback(ticking.cancel)
        if not await loop.settle(SETTLED_S):
            raise RuntimeError(f"the fleet was not ready within {SETTLED_S:g} s")
        async with Load(engine.port(COUNTER), CONNECTIONS) as load:
            await load.answered(BEFORE)
            lost_s = CLOCK.monotonic_s()
            for process in _replicas_of(ZONES[0].name):
                process.send_signal(number)
            moved_s = await _moved(loop, balancer) - lost_s
            await CLOCK.sleep(AFTER_S)
        await loop.shutdown(5.0)
        for process in _replicas_of(ZONES[0].name):
            process.send_signal(signal.SIGCONT)
        return Lost(moved_s, load.answers.total(), sum(load.failed.values()))


def _replicas_of(zone: str) -> Iterator[psutil.Process]:
    """Our own children that are replicas of the zone: their ids begin with its name."""
    for process in psutil.Process().children():
        if process.environ().get("SPRINGTIDE_REPLICA_ID", "").startswith(zone):
            yield process


async def _moved(loop: ControlLoop, balancer: Balancer) -> float:
    """When the balancer sends the zone nothing any more, by the monotonic clock."""
    until_s = CLOCK.monotonic_s() + MOVED_S_MAX
    while CLOCK.monotonic_s() < until_s:
        asked_s = CLOCK.monotonic_s()
        healthy = await balancer.healthy()
        weighted = {one.replica_id for one in loop.latest[0].endpoints if one.weight} if loop.latest else set()
        if not any(name.startswith(ZONES[0].name) for name in healthy & weighted):
            return asked_s
        await CLOCK.sleep(POLL_S)
    raise RuntimeError(f"the zone still had traffic after {MOVED_S_MAX:g} s")
