"""A loop, its ports in memory and their clock, for tests of whole sales."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.fleet import MemoryBalancer, MemoryCloud, MemoryRuntime
from springtide.fleet.journal import Entry, Journal, read_journal
from springtide.fleet.loop import ControlLoop, LoopSettings
from springtide.fleet.ports import one_service
from springtide.model import CalendarEvent, FleetPolicy, ReplicaState, Zone, ZoneKind

ZONES = (
    Zone("idc-a", ZoneKind.IDC, nodes_max=1, cores_per_node=3),
    Zone("idc-b", ZoneKind.IDC, nodes_max=1, cores_per_node=3),
    Zone("cloud-h", ZoneKind.CLOUD, nodes_max=6, cores_per_node=4, lead_ms=5000, price_fen_per_node_h=82),
)
POLICY = FleetPolicy(
    replica_requests_per_s=250,
    replica_cores=1,
    headroom=0.3,
    base_replicas=1,
    patience_ms=6000,
    drain_ms=2000,
    start_ms=3000,
    actions_max=8,
    starting_max=4,
    stale_ms=1500,
)
OPENS_S = 45.0
EVENT_S = 12.0
READY_S = 5.0
PEAK = 2800.0


def sale_demand(second: float) -> float:
    """A normal evening, the countdown, the opening, the tail."""
    if second < 35:
        return 30.0
    if second < OPENS_S:
        return 30.0 + 8 * (second - 35)
    if second < OPENS_S + EVENT_S:
        return PEAK
    return max(30.0, PEAK * math.exp(-0.5 * (second - OPENS_S - EVENT_S)))


class World:
    """A loop, its ports and their clock."""

    def __init__(
        self,
        folder: Path,
        demand: Callable[[float], float],
        zones: tuple[Zone, ...] = ZONES,
        policy: FleetPolicy = POLICY,
        *,
        announced: tuple[float, float, float] | None = (OPENS_S, EVENT_S, PEAK),
    ) -> None:
        self.clock = VirtualClock()
        self.start_ms = self.clock.now_ms()
        self.demand = demand
        self.cut_off: set[str] = set()
        self.runtime = MemoryRuntime(self.clock, start_s=3.0)
        self.cloud = MemoryCloud(self.clock, zones)
        self.balancer = MemoryBalancer(
            lambda now_ms: demand((now_ms - self.start_ms) / 1000),
            lambda name: name not in self.cut_off and self.is_up(name),
        )
        calendar = (self.event(*announced),) if announced else ()
        self.settings = LoopSettings("r1", zones, policy, calendar, tick_ms=500)
        self.journal = Journal(folder / "fleet.jsonl")
        ports = one_service(self.balancer, self.runtime, self.cloud, zones)
        self.loop = ControlLoop(self.clock, ports, self.settings, self.journal)
        self.task = asyncio.create_task(self.loop.run())

    def event(self, opens_s: float, lasts_s: float, peak: float) -> CalendarEvent:
        opens_ms = self.start_ms + round(opens_s * 1000)
        return CalendarEvent("live-room", opens_ms, round(lasts_s * 1000), peak, round(READY_S * 1000))

    def is_up(self, name: str) -> bool:
        ups = {ReplicaState.READY, ReplicaState.DRAINING}
        return any(r.replica_id == name and r.state in ups for r in self.runtime.replicas())

    @property
    def second(self) -> float:
        return self.clock.monotonic_s()

    async def until(self, second: float) -> None:
        await self.clock.advance(second - self.second)

    async def seconds_until(self, second: float) -> AsyncIterator[float]:
        """Every half second until then, a moment after the tick."""
        while self.second < second:
            await self.clock.advance(0.5)
            yield self.second

    def serving(self, zone: str = "") -> int:
        """Replicas with weight that answer."""
        return sum(
            e.weight > 0 and self.is_up(e.replica_id) and e.zone.startswith(zone) for e in self.balancer.endpoints
        )

    @property
    def capacity(self) -> float:
        return self.serving() * POLICY.replica_requests_per_s

    def ids(self, zone: str) -> list[str]:
        return [r.replica_id for r in self.runtime.replicas() if r.zone == zone]

    def entries(self) -> list[Entry]:
        return list(read_journal(self.journal.path))

    async def close(self) -> None:
        self.loop.stop()
        await self.clock.advance(1.0)
        await asyncio.wait_for(self.task, 5)
        self.journal.close()
