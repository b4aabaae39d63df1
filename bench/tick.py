"""One tick of the control loop with 1,000 replicas in the memory drivers: observe, decide, act, journal."""

import asyncio
import tempfile
import time
from pathlib import Path

from bench.rows import Row, Skipped, median_row
from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.fleet import MemoryBalancer, MemoryCloud, MemoryRuntime
from springtide.fleet.journal import Journal
from springtide.fleet.loop import ControlLoop, LoopSettings
from springtide.fleet.ports import one_service
from springtide.model import FleetPolicy, ReplicaState, Zone, ZoneKind

REPLICAS = 1_000
TICK_MS_MAX = 100.0
TICKS = 40
WARM_UP_TICKS_MAX = 200
_TICK_MS = 500
_ZONES = (
    *(Zone(f"idc-{name}", ZoneKind.IDC, nodes_max=75, cores_per_node=4) for name in "ab"),
    *(Zone(f"cloud-{name}", ZoneKind.CLOUD, 75, 4, lead_ms=1_000, price_fen_per_node_h=100) for name in "hj"),
)
_POLICY = FleetPolicy(
    replica_requests_per_s=100,
    replica_cores=1,
    headroom=0.25,
    base_replicas=250,
    patience_ms=3_000,
    drain_ms=1_000,
    start_ms=1_000,
    actions_max=64,
    starting_max=64,
    stale_ms=1_500,
    failure_budget=1,
)
_STEADY = 74_900.0
"""Requests/s; with the headroom, and a zone that may be lost, they take all of the replicas."""


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    """The rows of this bench: the median tick of each run, at rest and while replicas come and go."""
    figures = [asyncio.run(_one_run()) for _ in range(runs)]
    rest, busy, worst = zip(*figures, strict=True)
    return [
        median_row(f"tick with {REPLICAS:,} replicas at rest", "ms", rest, ceiling=TICK_MS_MAX),
        median_row("tick while replicas come and go", "ms", busy, ceiling=TICK_MS_MAX),
        median_row("the longest of these", "ms", worst),
    ], []


async def _one_run() -> tuple[float, float, float]:
    rate = _STEADY
    clock = VirtualClock()
    runtime = MemoryRuntime(clock, start_s=1.0)
    cloud = MemoryCloud(clock, _ZONES)

    def answers(name: str) -> bool:
        return name in ready

    ready: set[str] = set()
    balancer = MemoryBalancer(lambda _: rate, answers)
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "fleet.jsonl") as journal:
        settings = LoopSettings("bench", _ZONES, _POLICY, (), tick_ms=_TICK_MS)
        loop = ControlLoop(clock, one_service(balancer, runtime, cloud, _ZONES), settings, journal)

        async def tick() -> float:
            ready.clear()
            ready.update(r.replica_id for r in runtime.replicas() if r.state is not ReplicaState.STARTING)
            begun = time.perf_counter()
            await loop.tick()
            spent_ms = (time.perf_counter() - begun) * 1000
            await clock.advance(_TICK_MS / 1000)
            return spent_ms

        for _ in range(WARM_UP_TICKS_MAX):
            await tick()
        if len(balancer.endpoints) != REPLICAS:
            raise RuntimeError(f"{REPLICAS} replicas should serve by now, not {len(balancer.endpoints)}")
        rest = sorted([await tick() for _ in range(TICKS)])
        busy = []
        for n in range(TICKS):
            rate = _STEADY if n < TICKS // 2 else _STEADY * 0.6
            if n % 4 == 0:
                runtime.fail([replica.replica_id for replica in runtime.replicas()[:8]])
            busy.append(await tick())
        busy.sort()
        loop.stop()
        await loop.shutdown(5.0)
    return rest[TICKS // 2], busy[TICKS // 2], max(rest[-1], busy[-1])
