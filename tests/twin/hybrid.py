"""A sale on rented machines under seeded faults: the real control loop over the twin's cloud, on a virtual clock."""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.fleet import MemoryBalancer, MemoryRuntime
from springtide.drivers.memory.fleet_state import MemoryFleetState
from springtide.fleet.journal import Journal
from springtide.fleet.loop import ControlLoop, LoopSettings
from springtide.fleet.ports import FleetPorts
from springtide.model import (
    CalendarEvent,
    FleetPolicy,
    Market,
    Offer,
    Purchase,
    Quota,
    ReplicaState,
    ServiceSpec,
    ServiceWish,
    Zone,
    ZoneKind,
)
from springtide.twin import market as twin
from springtide.twin.kernel import Kernel
from springtide.twin.market_cloud import MarketCloud
from tests.twin.platform import Life, Mortal

CLOUDS = ("cloud-h", "cloud-j", "cloud-k")
ZONES = (
    Zone("idc-a", ZoneKind.IDC, nodes_max=1, cores_per_node=4),
    Zone("idc-b", ZoneKind.IDC, nodes_max=1, cores_per_node=4),
    *(Zone(name, ZoneKind.CLOUD, nodes_max=100, cores_per_node=4, price_fen_per_node_h=80) for name in CLOUDS),
)
POLICY = FleetPolicy(
    replica_requests_per_s=100,
    replica_cores=1,
    headroom=0.25,
    base_replicas=1,
    patience_ms=5_000,
    drain_ms=2_000,
    start_ms=2_000,
    actions_max=64,
    starting_max=32,
    stale_ms=3_000,
    release_after_ms=3_600_000,
    spot_share_max=0.5,
)
TICK_MS = 1_000
LEASE_MS = 4_000
SERVICE = "web"
OPENS_S, LASTS_S, READY_S, PEAK = 80.0, 20.0, 5.0, 3_000.0
CALM = 100.0
EARLY_S, KNOWN_S = 10.0, 10.0
END_S = 175.0
TYPES = {"c.small": (2, 40.0), "c.medium": (4, 78.0), "c.large": (8, 150.0)}
LARGEST = 8


def offers(chance: random.Random, stock: tuple[int, int]) -> tuple[Offer, ...]:
    """On demand and as spot, with a stock that nobody is told."""
    return tuple(
        Offer(
            zone=zone,
            instance_type=name,
            market=market,
            cores=cores,
            memory_mb=cores * 2_048,
            price_fen_per_h=round(price * (0.3 if market is Market.SPOT else 1.0) * chance.uniform(0.9, 1.1), 2),
            stock=chance.randint(*stock),
            boot_ms=(12_000, 25_000),
        )
        for zone in CLOUDS
        for name, (cores, price) in TYPES.items()
        for market in (Market.ON_DEMAND, Market.SPOT)
    )


class Hybrid:
    """One seeded run. `wrong` is what must not have happened."""

    def __init__(self, folder: Path, seed: int, stock: tuple[int, int] = (0, 6)) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.planned_cores = 0
        self.folder = folder
        self.clock = VirtualClock()
        self.start_ms = self.clock.now_ms()
        settings = twin.MarketSettings(
            offers=offers(self.chance, stock),
            quotas=(Quota(Market.ON_DEMAND, 200), Quota(Market.SPOT, 200)),
            refill_every_ms=20_000,
            notice_ms=40_000,
        )
        self.market = twin.Market(Kernel(self.start_ms), random.Random(seed + 1), settings)
        self.cloud = MarketCloud(self.market, self.clock, latency_s=0.3)
        self.state = MemoryFleetState(self.clock)
        self.runtimes = {
            zone.name: MemoryRuntime(self.clock, start_s=1.5, host=f"127.0.0.{number}")
            for number, zone in enumerate(ZONES, 1)
        }
        self.balancer = MemoryBalancer(self.demand, self.is_up)
        self.loops: list[tuple[ControlLoop, Life, Journal, asyncio.Task[None]]] = []
        self.said: list[tuple[float, str]] = []
        self.wanted_most = 0
        self.wrong: list[str] = []
        self.ready_at_opening = 0
        self.crashes = 0
        self.faults: Counter[str] = Counter()
        self.restart_s: float | None = None
        self.struck_s = 0.0
        self.events = sorted(self._faults(), key=lambda one: one[0])

    @property
    def second(self) -> float:
        return self.clock.monotonic_s()

    @property
    def needed(self) -> int:
        return round(PEAK * (1 + POLICY.headroom) / POLICY.replica_requests_per_s)

    def demand(self, now_ms: int) -> float:
        second = (now_ms - self.start_ms) / 1000
        return PEAK if OPENS_S <= second < OPENS_S + LASTS_S else CALM

    def is_up(self, name: str) -> bool:
        ups = {ReplicaState.READY, ReplicaState.DRAINING}
        return any(r.replica_id == name and r.state in ups for one in self.runtimes.values() for r in one.replicas())

    def serving(self) -> int:
        up = {
            r.replica_id
            for one in self.runtimes.values()
            for r in one.replicas()
            if r.state in {ReplicaState.READY, ReplicaState.DRAINING}
        }
        return sum(one.weight > 0 and one.replica_id in up for one in self.balancer.endpoints)

    def _faults(self) -> list[tuple[float, str]]:
        kinds = ("stockout", "throttle", "crash", "crash", "reclaim", "slow", "lost answer", "silence")
        faults = [(self.chance.uniform(10, 110), self.chance.choice(kinds)) for _ in range(self.chance.randint(1, 6))]
        # Most of it happens while machines are bought, and some of it to each run.
        return [*faults, (self.chance.uniform(38, 72), self.chance.choice(kinds))]

    async def run(self) -> None:
        """The whole story."""
        await self.prepare(Life(), self._plan() if self.seed % 3 == 0 else ())
        await self.until(END_S)
        await self._check_end()

    def _plan(self) -> list[Purchase]:
        """What an event's plan may have scheduled: all that is needed, from offers that may lack it, bit by bit."""
        chosen = self.chance.sample(list(self.market.offers()), 3)
        purchases = []
        for number, offer in enumerate(chosen):
            at_ms = self.start_ms + (8 + 7 * number) * 1000
            count = math.ceil((self.needed - 2) / 3 / offer.cores)
            market, cores = offer.market, count * offer.cores
            purchase = Purchase(offer.zone, offer.instance_type, market, count, cores, offer.price_fen_per_h, at_ms)
            purchases.append(msgspec.structs.replace(purchase, ready_ms=at_ms + offer.boot_ms[1]))
        return purchases

    async def prepare(self, life: Life, purchases: Sequence[Purchase] = ()) -> None:
        """Wish the service, and its event's purchases; start the first loop."""
        spec = ServiceSpec(SERVICE, "v1", ("serve",), cores=POLICY.replica_cores)
        await self.state.wish_service(SERVICE, ServiceWish(spec, requests_per_s=100.0, replicas_min=2, drain_ms=2_000))
        if purchases:
            self.planned_cores = sum(purchase.cores for purchase in purchases)
            await self.state.wish_purchases("live", purchases)
        self.begin(life)

    async def until(self, second: float) -> None:
        """Go on, step by step."""
        while self.second < second:
            await self.clock.advance(0.5)
            self.cloud.catch_up()
            await self._strike()
            self._lose_replicas()
            self._look()

    def begin(self, life: Life) -> None:
        """Start a loop; what a loop defined is gone with its process."""
        for runtime in self.runtimes.values():
            runtime.defined.clear()
        run_id = f"r{len(self.loops)}"
        opens_ms = self.start_ms + round(OPENS_S * 1000)
        event = CalendarEvent("live", opens_ms, round(LASTS_S * 1000), PEAK, round(READY_S * 1000))
        settings = LoopSettings(run_id, ZONES, POLICY, (), TICK_MS, calendars={SERVICE: (event,)}, lease_ms=LEASE_MS)
        ports = FleetPorts(
            runtimes={zone: Mortal(runtime, life) for zone, runtime in self.runtimes.items()},
            balancers={SERVICE: Mortal(self.balancer, life)},
            cloud=Mortal(self.cloud, life),
            state=Mortal(self.state, life),
        )
        journal = Journal(self.folder / f"{run_id}.jsonl")
        loop = ControlLoop(self.clock, ports, settings, journal)
        self.loops.append((loop, life, journal, asyncio.create_task(loop.run())))

    async def _strike(self) -> None:
        _, life, _, task = self.loops[-1]
        if life.over and self.restart_s is None:
            self.restart_s = self.second + self.chance.uniform(0.5, 6.0)
            task.cancel()
        if self.restart_s is not None and self.second >= self.restart_s:
            self.restart_s = None
            self.struck_s = self.second
            self.begin(Life())
        while self.events and self.events[0][0] <= self.second:
            _, kind = self.events.pop(0)
            self.faults[kind] += 1
            self.struck_s = self.second if self.second < OPENS_S else self.struck_s
            self._begin_fault(kind)

    def _begin_fault(self, kind: str) -> None:
        chance, now_ms = self.chance, self.clock.now_ms()
        match kind:
            case "stockout":
                prefix = chance.choice([*CLOUDS, *(offer.key for offer in self.market.offers())])
                self.market.set_stock(prefix, 0)
                self.clock.call_later(chance.uniform(5, 60), lambda: self.market.set_stock(prefix, None))
            case "throttle":
                api = chance.choice(["RunInstances", "DeleteInstances", ""])
                self.market.throttle(api, now_ms + round(chance.uniform(2, 20) * 1000))
            case "crash":
                self._crash()
            case "reclaim":
                self.market.reclaim(chance.uniform(0.2, 1.0))
            case "slow":
                self.market.slow_boots(chance.uniform(1.5, 4.0), now_ms + 20_000)
            case "lost answer":
                self.cloud.lost_answers = chance.randint(1, 3)
            case "silence":
                self.cloud.failing = True
                self.clock.call_later(chance.uniform(1, 10), lambda: setattr(self.cloud, "failing", False))

    def _crash(self) -> None:
        """At one of the next calls of a port, before or after its effect."""
        _, life, _, _ = self.loops[-1]
        if not life.over:
            self.crashes += 1
            end = len(life.calls) + self.chance.randint(0, 30)
            when = self.chance.choice(["before", "after"])
            life._ends_at = lambda number, _, moment: number >= end and moment == when

    def _lose_replicas(self) -> None:
        """What ran on a machine that is gone is gone."""
        for zone in CLOUDS:
            runtime = self.runtimes[zone]
            gone = [r.replica_id for r in runtime.replicas() if r.node_id not in self.market.live]
            runtime.fail(gone, "its machine is gone")

    def _look(self) -> None:
        loop, life, _, _ = self.loops[-1]
        decided = loop.decided.get(SERVICE)
        if decided and not life.over:
            plan = decided[1]
            self.wanted_most = max(self.wanted_most, plan.replicas_wanted)
            self.said += [(self.second, alert) for alert in plan.alerts]
        staying = [node for node in self.market.live.values() if not node.reclaim_ms]
        rented = sum(node.cores for node in staying)
        most = max(0, self.wanted_most - 2, self.planned_cores) + LARGEST - 1
        if rented > most:
            self.wrong.append(f"{rented} cores are rented at {self.second}, at most {most} were ever wanted")
        if self.ready_at_opening == 0 and self.second >= OPENS_S:
            self.ready_at_opening = self.serving()

    @property
    def warned(self) -> list[tuple[float, str]]:
        """What was said before the opening of its not being met."""
        words = ("will not be met", "capacity short")
        return [(at, text) for at, text in self.said if at < OPENS_S and any(word in text for word in words)]

    async def _check_end(self) -> None:
        if self.ready_at_opening < self.needed:
            warned_s = min((at for at, _ in self.warned), default=END_S)
            # As soon as it can be known: well before, or within a lease and a few ticks of what caused it.
            if warned_s > max(OPENS_S - EARLY_S, min(self.struck_s, OPENS_S) + KNOWN_S):
                stood = f"{self.ready_at_opening} of {self.needed} stood at the opening"
                self.wrong.append(
                    f"{stood}, and nobody was told before {warned_s}; the last fault was at {self.struck_s}"
                )
        if self.market.nodes():
            self.wrong.append(f"{len(self.market.nodes())} nodes are left")
        if await self.state.open_intents():
            self.wrong.append("intents are open")
        if self.serving() != 2:
            self.wrong.append(f"{self.serving()} replicas serve at the end")

    async def close(self) -> None:
        """End all loops without another word to anybody."""
        for loop, life, _, _ in self.loops:
            life.over = True
            loop.stop()
        # A call that is broken off may wait for a loop's end once more: that is broken off as well.
        while rest := [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]:
            for task in rest:
                task.cancel()
            await asyncio.sleep(0)
        for _, _, journal, _ in self.loops:
            journal.close()


async def told(folder: Path, seed: int, **settings: Any) -> Hybrid:
    """One run, from its beginning to its end."""
    hybrid = Hybrid(folder, seed, **settings)
    try:
        await hybrid.run()
    finally:
        await hybrid.close()
    return hybrid
