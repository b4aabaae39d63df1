"""The control loop: observe, decide, act, once a tick."""

import asyncio
import contextlib
from collections import deque

import msgspec
import structlog

from springtide.decide import autoscale
from springtide.decide.plan import plan as decide
from springtide.errors import SpringtideError
from springtide.fleet.act import Actor
from springtide.fleet.journal import Decision, Entry, Fault, Journal, Outcome
from springtide.fleet.observe import FleetPorts, Observation, Observer
from springtide.model import (
    Action,
    CalendarEvent,
    DrainReplica,
    Endpoint,
    FleetPolicy,
    Plan,
    ReplicaState,
    SetEndpoints,
    Snapshot,
    Zone,
)
from springtide.ports import Clock

log = structlog.get_logger(__name__)


class LoopSettings(msgspec.Struct, frozen=True):
    """What one run is about. `run_id` (letters and digits) marks its purchases and replicas as its own."""

    run_id: str
    zones: tuple[Zone, ...]
    policy: FleetPolicy
    calendar: tuple[CalendarEvent, ...]
    tick_ms: int


class ControlLoop:
    """Keeps the fleet at what the demand needs. A port that fails is journalled and logged, no more."""

    def __init__(self, clock: Clock, ports: FleetPorts, settings: LoopSettings, journal: Journal) -> None:
        """Nothing is looked at before `run` or `tick`."""
        self._clock = clock
        self._ports = ports
        self._settings = settings
        self._journal = journal
        self._observer = Observer(clock, ports, settings.zones, settings.policy, self._report)
        self._actor = Actor(clock, ports, settings.zones, self._record)
        self._tick = 0
        self._endpoints: tuple[Endpoint, ...] = ()
        self._endpoints_unsure = False
        self._wanted: deque[tuple[int, int]] = deque()
        self._errors: dict[str, str] = {}
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.latest: tuple[Snapshot, Plan] | None = None

    @property
    def in_flight(self) -> tuple[Action, ...]:
        """Actions that were begun and have not ended."""
        return self._actor.in_flight

    async def run(self) -> None:
        """Tick until `stop`. A tick that takes too long makes the next one late; none is made up for."""
        self._idle.clear()
        tick_s = self._settings.tick_ms / 1000
        try:
            while not self._stopping:
                due_s = self._clock.monotonic_s() + tick_s
                await self.tick()
                await self._clock.sleep(max(0.0, due_s - self._clock.monotonic_s()))
        finally:
            self._idle.set()

    def stop(self) -> None:
        """Begin no other tick. What is under way goes on; `shutdown` waits for it."""
        self._stopping = True

    async def tick(self) -> None:
        """Observe, decide, act once."""
        self._tick += 1
        # Taken before the observation: what ends while we look is then seen twice rather than not at all.
        in_flight = self._actor.in_flight
        seen = await self._observer.observe(self._settings.tick_ms / 1000)
        snapshot = self._snapshot(seen, in_flight)
        plan = decide(snapshot, self._settings.policy)
        self._remember(snapshot.now_ms, plan)
        self.latest = snapshot, plan
        self._record(Decision(self._settings.policy, snapshot, plan))
        await self._act(plan)

    async def settle(self, timeout_s: float) -> bool:
        """Wait, while it runs, until the fleet is as planned and at rest; False when time is up."""
        until = self._clock.monotonic_s() + timeout_s
        while not self._is_settled():
            if self._clock.monotonic_s() >= until:
                return False
            await self._clock.sleep(self._settings.tick_ms / 1000)
        return True

    async def shutdown(self, timeout_s: float) -> bool:
        """Stop, and wait for the tick and all actions under way; True when none had to be broken off.

        Rented nodes stay rented, so that a restarted loop takes them over; `give_back` ends that.
        """
        self.stop()
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(timeout_s):
                await self._idle.wait()
        return await self._actor.wait(timeout_s)

    async def give_back(self, timeout_s: float) -> int:
        """After `shutdown`: stop what runs on rented nodes and release them all. The number that is left."""
        until = self._clock.monotonic_s() + timeout_s
        left = 1
        while left:
            left = await self._give_back_once()
            if self._clock.monotonic_s() >= until:
                break
            if left:
                await self._clock.sleep(self._settings.tick_ms / 1000)
        return left

    async def _give_back_once(self) -> int:
        """One round; the number of nodes that are left. A failure leaves the rest to the next round."""
        left = 1
        try:
            nodes = {node.node_id for node in await self._ports.cloud.nodes()}
            left = len(nodes)
            for replica in await self._ports.runtime.list():
                if replica.node_id in nodes:
                    await self._ports.runtime.stop(replica.replica_id)
            for node_id in sorted(nodes):
                await self._ports.cloud.release(node_id)
            left = len(await self._ports.cloud.nodes())
        except (SpringtideError, OSError) as error:
            self._report("give back", str(error))
        return left

    def _snapshot(self, seen: Observation, in_flight: tuple[Action, ...]) -> Snapshot:
        nodes = self._actor.with_adopted(seen.nodes)
        return Snapshot(
            run=self._settings.run_id,
            tick=self._tick,
            now_ms=seen.now_ms,
            zones=self._actor.within_stock(nodes),
            nodes=nodes,
            replicas=seen.replicas,
            endpoints=self._endpoints,
            traffic=seen.traffic,
            calendar=self._settings.calendar,
            wanted_before=tuple(self._wanted),
            healthy=seen.healthy,
            ages_ms=seen.ages_ms,
            in_flight=in_flight,
        )

    def _remember(self, now_ms: int, plan: Plan) -> None:
        """Keep what the demand alone asked for, as far as a later decision can need it.

        Only the maximum over the last `patience_ms` is ever asked, so what a later and larger figure covers
        goes at once: the history is as long as there are different figures.
        """
        policy = self._settings.policy
        asked = autoscale.replicas_needed(plan.demand.high, policy, self._settings.zones)
        while self._wanted and self._wanted[-1][1] <= asked:
            self._wanted.pop()
        self._wanted.append((now_ms, asked))
        while self._wanted[0][0] < now_ms - policy.patience_ms:
            self._wanted.popleft()

    async def _act(self, plan: Plan) -> None:
        written = await self._write_endpoints(plan)
        for action in plan.actions:
            if isinstance(action, SetEndpoints):
                continue
            # A replica that the balancer may still send to must not begin to refuse.
            if written or not isinstance(action, DrainReplica):
                self._actor.begin(action, plan.tick)

    async def _write_endpoints(self, plan: Plan) -> bool:
        """Give the balancer the plan's list, if there is one; False when it may not have it."""
        action = next((action for action in plan.actions if isinstance(action, SetEndpoints)), None)
        if action is None and self._endpoints_unsure:
            action = SetEndpoints(self._endpoints, "the last write failed: it may have had an effect")
        if action is None:
            return True
        written = await self._actor.set_endpoints(action, plan.tick)
        self._endpoints = action.endpoints if written else self._endpoints
        self._endpoints_unsure = not written
        return written

    def _is_settled(self) -> bool:
        if self.latest is None or self._actor.in_flight:
            return False
        snapshot, plan = self.latest
        ready = [r.zone for r in snapshot.replicas if r.state is ReplicaState.READY]
        as_planned = all(ready.count(zone) == count for zone, count in plan.placement.items())
        return as_planned and len(ready) == len(snapshot.replicas) and not plan.actions

    def _report(self, source: str, error: str) -> None:
        self._record(Fault(self._clock.now_ms(), self._tick, source, error))

    def _record(self, entry: Entry) -> None:
        self._log(entry)
        try:
            self._journal.write(entry)
        except (OSError, ValueError) as error:
            self._say("journal", f"cannot be written: {error}")

    def _log(self, entry: Entry) -> None:
        match entry:
            case Fault(source=source, error=error):
                self._say(source, error)
            case Outcome(action=action, error=error) if error:
                log.warning("action failed", action=type(action).__name__, error=error, tick=entry.tick)
            case _:
                pass

    def _say(self, source: str, error: str) -> None:
        """Log a fault when it is news: an engine that is down for an hour is one line, not thousands."""
        if self._errors.get(source) != error:
            self._errors[source] = error
            log.warning("fault", source=source, error=error, tick=self._tick)
