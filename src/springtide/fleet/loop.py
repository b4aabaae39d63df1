"""The control loop: observe, decide for each service, act, once a tick; while it leads.

Within a tick the balancers' lists come first, then one write of what is about to be begun, then the beginnings, then
what is to be remembered. A loop that is killed between any two of these is followed by one that goes on from there.
"""

import asyncio
import contextlib
from collections.abc import Mapping

import msgspec
import structlog

from springtide.decide.plan import plan as decide
from springtide.errors import SpringtideError
from springtide.fleet.act import Actor, together
from springtide.fleet.cloud_teller import CloudTeller
from springtide.fleet.definitions import DefinitionBook
from springtide.fleet.describe import fleet_status
from springtide.fleet.desk import Desk
from springtide.fleet.follow import Desks
from springtide.fleet.intents import Deed
from springtide.fleet.journal import Decision, Entry, Fault, Journal, Outcome
from springtide.fleet.lead import Lead
from springtide.fleet.news import News
from springtide.fleet.observe import Asked, Observation, Observer
from springtide.fleet.ports import BalancerBook, FleetPorts
from springtide.fleet.schedule import purchases_of
from springtide.fleet.split import Fleet
from springtide.fleet.status import FleetStatus
from springtide.model import (
    COUNTER,
    Action,
    CalendarEvent,
    DrainReplica,
    FleetPolicy,
    Plan,
    ReplicaState,
    SetEndpoints,
    Snapshot,
    StartReplica,
    Wishes,
    Zone,
)
from springtide.ports import Clock

log = structlog.get_logger(__name__)

FIRST_WORD_TICKS = 6
"""For so many ticks a loop without a memory waits for every zone's first word before it writes a balancer's list."""

STATUS_MS = 1_000
"""How often the status is told."""


class LoopSettings(msgspec.Struct, frozen=True):
    """What one run is about. `run_id` (letters and digits) marks its purchases and replicas as its own.

    With shared state it must be another for each process: it is also the name that the loop leads by. `calendar` is
    the counter's, `calendars` are those of other services. `lease_ms` is how long a lead that is not prolonged lasts.
    """

    run_id: str
    zones: tuple[Zone, ...]
    policy: FleetPolicy
    calendar: tuple[CalendarEvent, ...]
    tick_ms: int
    calendars: dict[str, tuple[CalendarEvent, ...]] = {}
    lease_ms: int = 5_000


class ControlLoop:
    """Keeps the fleet at what the demand needs. A port that fails is journalled and logged, no more."""

    def __init__(self, clock: Clock, ports: FleetPorts, settings: LoopSettings, journal: Journal) -> None:
        """Nothing is looked at before `run` or `tick`."""
        self._clock = clock
        self._ports = ports
        self._settings = settings
        self._journal = journal
        self._news = News()
        self._book = BalancerBook(ports.balancers, self._report)
        self._observer = Observer(clock, ports, settings.zones, settings.policy, self._report)
        self._actor = Actor(clock, ports, settings.zones, self._record, self._observer.runtime_of)
        self._definitions = DefinitionBook(clock, ports.distinct_runtimes(), self._report)
        self._tick = 0
        self._tick_s = settings.tick_ms / 1000
        self._all = Desks(settings.policy, settings.zones)
        self._desks = self._all.by_name
        self._lead: Lead | None = None
        self._teller: CloudTeller | None = None
        if ports.state is None:
            self._all.add(COUNTER, settings.run_id)
        else:
            self._lead = Lead(clock, ports.state, settings.run_id, settings.lease_ms, self._tick_s, self._report)
            self._actor.left_s = lambda: self._lead.left_s if self._lead else 0.0
            self._actor.ended = self._lead.intents.done
            calendars = {COUNTER: settings.calendar, **settings.calendars}
            self._teller = CloudTeller(clock, ports.state, settings.zones, calendars, self._report)
        self._status_ms = 0
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> tuple[Action, ...]:
        """Actions that were begun and have not ended."""
        return tuple(deed.action for deed in self._actor.in_flight)

    @property
    def latest(self) -> tuple[Snapshot, Plan] | None:
        """The last decision on the counter; None before the first one."""
        return self.decided.get(COUNTER)

    @property
    def decided(self) -> dict[str, tuple[Snapshot, Plan]]:
        """The last decision on each service."""
        return {name: desk.latest for name, desk in self._desks.items() if desk.latest is not None}

    @property
    def leads(self) -> bool:
        """Whether this loop acts now."""
        return self._lead is None or self._lead.acts

    async def run(self) -> None:
        """Tick until `stop`. A tick that takes too long makes the next one late; none is made up for."""
        self._idle.clear()
        keeping = asyncio.create_task(self._lead.keep()) if self._lead else None
        try:
            while not self._stopping:
                due_s = self._clock.monotonic_s() + self._tick_s
                await self.tick()
                await self._clock.sleep(max(0.0, due_s - self._clock.monotonic_s()))
        finally:
            if keeping is not None:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
            self._idle.set()

    def stop(self) -> None:
        """Begin no other tick. What is under way goes on; `shutdown` waits for it."""
        self._stopping = True

    async def tick(self) -> None:
        """Observe, and if this loop leads, decide and act, once."""
        self._tick += 1
        # Taken before the observation: what ends while we look is then seen twice rather than not at all.
        in_flight = self._actor.in_flight
        asked = {name: Asked(self._book.get(name), desk.policy.signals) for name, desk in self._desks.items()}
        seen, _ = await asyncio.gather(self._observer.observe(asked, self._tick_s), self._tend())
        if self._lead is not None:
            again = await self._take_over(self._lead, seen)
            in_flight = (*in_flight, *again)
            if seen.wishes is not None:
                self._all.follow(seen, seen.wishes, self._lead.run)
            if not self._lead.acts or seen.wishes is None:
                return
        for desk in self._desks.values():
            self._book.want(desk.service, desk.wish)
        fleet = self._fleet(seen, in_flight)
        plans = self._decide(fleet, seen)
        await self._act(plans, {zone.name for zone in self._settings.zones if f"replicas/{zone.name}" in seen.ages_ms})
        if self._lead is not None and seen.wishes is not None:
            await self._forget(fleet, seen)
            await self._remember(self._lead, seen.now_ms, seen.wishes)
            if self._teller is not None:
                nodes = self._actor.with_adopted(seen.nodes)
                await self._teller.tell(self._lead.term, seen, nodes, seen.wishes, self._tick_s)

    async def settle(self, timeout_s: float) -> bool:
        """Wait, while it runs, until the fleet is as planned and at rest; False when time is up."""
        until = self._clock.monotonic_s() + timeout_s
        while not self._is_settled():
            if self._clock.monotonic_s() >= until:
                return False
            await self._clock.sleep(self._tick_s)
        return True

    async def shutdown(self, timeout_s: float) -> bool:
        """Stop, and wait for the tick and all actions under way; True when none had to be broken off.

        Rented nodes stay rented, so that a restarted loop takes them over; `give_back` ends that. The lead is given
        up, so that another loop has it at once.
        """
        self.stop()
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(timeout_s):
                await self._idle.wait()
        whole = await self._actor.wait(timeout_s)
        await self._observer.close()
        await self._book.close()
        if self._lead is not None:
            await self._lead.resign(self._desks.values())
        return whole

    async def give_back(self, timeout_s: float) -> int:
        """After `shutdown`: stop what runs on rented nodes and release them all. The number that is left."""
        until = self._clock.monotonic_s() + timeout_s
        left = 1
        while left:
            left = await self._give_back_once()
            if self._clock.monotonic_s() >= until:
                break
            if left:
                await self._clock.sleep(self._tick_s)
        return left

    async def _give_back_once(self) -> int:
        """One round; the number of nodes that are left. A failure leaves the rest to the next round."""
        left = 1
        try:
            nodes = {node.node_id for node in await self._ports.cloud.nodes()}
            left = len(nodes)
            for runtime, _ in self._ports.distinct_runtimes():
                for replica in await runtime.list():
                    if replica.node_id in nodes:
                        await runtime.stop(replica.replica_id)
            for some in together(sorted(nodes)):
                await self._ports.cloud.release(some)
            left = len(await self._ports.cloud.nodes())
        except (SpringtideError, OSError) as error:
            self._report("give back", str(error))
        return left

    async def _tend(self) -> None:
        if self._lead is not None:
            await self._lead.tend()

    async def _take_over(self, lead: Lead, seen: Observation) -> list[Deed]:
        """In a new term: recall what was remembered, and send again what was begun. The deeds that are under way."""
        taken = await lead.take_over(self._actor.in_flight, self._actor.with_adopted(seen.nodes), self._tick)
        if taken is None:
            return []
        log.info("leads", term=lead.term, holder=lead.holder, open=len(taken.again))
        self._all.adopt(taken.memories, lead.run)
        self._definitions.forget()
        self._begin(taken.again)
        return taken.again

    def _fleet(self, seen: Observation, in_flight: tuple[Deed, ...]) -> Fleet:
        nodes = self._actor.with_adopted(seen.nodes)
        under_way = [(deed.service, deed.action) for deed in in_flight]
        zones = self._actor.within_stock(nodes)
        seen = msgspec.structs.replace(seen, fills=self._actor.fills)
        return Fleet(seen, nodes, zones, under_way, self._desks, alone=self._lead is None)

    def _decide(self, fleet: Fleet, seen: Observation) -> list[tuple[Desk, Plan]]:
        """One plan for each service, in the order of their names."""
        wishes = seen.wishes or Wishes()
        calendars = {COUNTER: self._settings.calendar, **self._settings.calendars}
        tokens = fleet.tokens() if wishes.purchases else set()
        plans = []
        for name, desk in sorted(self._desks.items()):
            desk.steer(fleet.replicas(name), seen.now_ms)
            ordered = tokens.union(desk.ordered) if wishes.purchases else tokens
            purchases = purchases_of(name, wishes.purchases, calendars, ordered, seen.now_ms)
            snapshot = fleet.snapshot(desk, self._tick, calendars.get(name, ()), wishes.modes, purchases)
            try:
                plan = decide(snapshot, desk.policy)
            except Exception as error:  # noqa: BLE001 - what breaks the decision on one service must not end the others
                self._report(f"decision on {name}", f"{type(error).__name__}: {error}; {name} stays as it is")
                continue
            desk.concluded(snapshot, plan)
            fleet.planned(name, plan.actions)
            self._record(Decision(desk.policy, snapshot, plan))
            self._news.alerts(name, plan.alerts, self._tick)
            if not seen.unheard or desk.restored or self._tick > FIRST_WORD_TICKS:
                plans.append((desk, plan))
        return plans

    async def _act(self, plans: list[tuple[Desk, Plan]], silent: set[str]) -> None:
        written = await asyncio.gather(*(self._write_endpoints(desk, plan) for desk, plan in plans))
        if self._lead is not None:
            await self._definitions.define([desk for desk, _ in plans], silent, self._tick_s)
        deeds = [
            Deed(desk.service, action, plan.tick)
            for (desk, plan), has_list in zip(plans, written, strict=True)
            for action in plan.actions
            # A replica that the balancer may still send to must not begin to refuse.
            if not isinstance(action, SetEndpoints) and (has_list or not isinstance(action, DrainReplica))
        ]
        fit, rest = self._actor.fitting(deeds)
        for deed in rest:
            self._actor.refuse(deed, "as many actions as may be are under way")
        deeds = [deed for deed in fit if self._is_startable(deed)]
        if self._lead is not None:
            deeds = await self._lead.write(deeds, self._actor.refuse)
        self._begin(deeds)

    def _begin(self, deeds: list[Deed]) -> None:
        for deed in deeds:
            if deed.service in self._desks:
                self._desks[deed.service].begun(deed.action)
        self._actor.begin(deeds)

    def _is_startable(self, deed: Deed) -> bool:
        """Whether a start's runtime knows the revision."""
        if self._lead is None or not isinstance(deed.action, StartReplica):
            return True
        spec = deed.action.spec
        if self._definitions.has(spec.zone, spec.service, spec.revision):
            return True
        self._actor.refuse(deed, f"revision {spec.revision!r} is not known in {spec.zone} yet")
        return False

    async def _write_endpoints(self, desk: Desk, plan: Plan) -> bool:
        """Give the balancer the plan's list, if there is one; False when it may not have it."""
        action = next((action for action in plan.actions if isinstance(action, SetEndpoints)), None)
        if action is None and desk.endpoints_unsure:
            action = SetEndpoints(desk.endpoints, "the balancer may have another list: it is written again")
        if action is None:
            return True
        balancer = self._book.get(desk.service)
        written = self._book.is_unrouted(desk.service)
        if balancer is not None:
            written = await self._actor.set_endpoints(desk.service, balancer, action, plan.tick)
        if written:
            desk.listed(action.endpoints)
        desk.endpoints_unsure = not written
        return written

    async def _forget(self, fleet: Fleet, seen: Observation) -> None:
        """Services that nobody wants and of which nothing is left."""
        if seen.ages_ms or seen.unheard:
            return
        for name, desk in list(self._desks.items()):
            if desk.retiring and not desk.endpoints and not desk.endpoints_unsure and not fleet.has_anything(name):
                if any(deed.service == name for deed in self._actor.in_flight):
                    continue
                del self._desks[name]
                await self._book.dismiss(name)

    async def _remember(self, lead: Lead, now_ms: int, wishes: Wishes) -> None:
        status = None
        if now_ms - self._status_ms >= STATUS_MS:
            self._status_ms = now_ms
            frame = FleetStatus(
                at_ms=now_ms,
                tick=self._tick,
                leader=lead.holder,
                term=lead.term,
                wishes=wishes.version,
                modes=wishes.modes,
                in_flight=len(self._actor.in_flight),
            )
            status = fleet_status(self._desks.values(), frame)
        await lead.remember(self._desks.values(), status, self._actor.in_flight)

    def _is_settled(self) -> bool:
        decided = self.decided
        if not decided or self._actor.in_flight:
            return False
        return all(_as_planned(snapshot, plan) for snapshot, plan in decided.values())

    def _report(self, source: str, error: str) -> None:
        self._record(Fault(self._clock.now_ms(), self._tick, source, error))

    def _record(self, entry: Entry) -> None:
        self._log(entry)
        try:
            self._journal.write(entry)
        except (OSError, ValueError) as error:
            self._news.fault("journal", f"cannot be written: {error}", self._tick)

    def _log(self, entry: Entry) -> None:
        match entry:
            case Fault(source=source, error=error):
                self._news.fault(source, error, self._tick)
            case Outcome(action=action, error=error) if error:
                log.warning("action failed", action=type(action).__name__, error=error, tick=entry.tick)
            case _:
                pass


def _as_planned(snapshot: Snapshot, plan: Plan) -> bool:
    ready = [r.zone for r in snapshot.replicas if r.state is ReplicaState.READY]
    placed: Mapping[str, int] = plan.placement
    as_placed = all(ready.count(zone) == count for zone, count in placed.items())
    return as_placed and len(ready) == len(snapshot.replicas) and not plan.actions
