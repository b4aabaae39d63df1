"""The control loop of a simulation: the world as the fleet observes it, the production plan, and its actions.

What `fleet.loop.ControlLoop` does at a tick, without waiting: `fleet.split` makes the snapshot, `decide.plan` decides,
`fleet.desk` keeps what the next decision needs.
"""

from collections import deque
from typing import Protocol, runtime_checkable

import msgspec

from springtide.decide import autoscale, line
from springtide.decide.forecast import history_ms
from springtide.decide.plan import plan as decide
from springtide.decide.release import event_end_ms
from springtide.fleet.desk import Desk
from springtide.fleet.observe import TRAFFIC_SAMPLES_MAX, Observation, ServiceSeen
from springtide.fleet.split import Fleet
from springtide.model import (
    COUNTER,
    FleetPolicy,
    Plan,
    ReplicaState,
    SetEndpoints,
    Snapshot,
    TrafficSample,
    ZoneState,
)
from springtide.twin.simulation.hands import Hands
from springtide.twin.simulation.replicas import SimulationError
from springtide.twin.simulation.world import World

CHECK_EVERY = 200
"""Every so many ticks in which nothing could be done, all of the plan is decided to see that it does nothing."""

RUN = "twin"

_NEVER_MS = 1 << 62


class Approach(Protocol):
    """Another way to run the fleet: the plan stays the production one, what it is told and what it sees changes."""

    name: str

    def policy(self, policy: FleetPolicy) -> FleetPolicy:
        """The limits and tastes that it decides by."""

    def see(self, snapshot: Snapshot) -> Snapshot:
        """What it knows; with a `scale` whose two bounds are equal, it has decided the number of replicas itself.

        It may be asked twice for one `tick`.
        """


class Deciding(Protocol):
    """What decides and acts at every tick of a simulation. `plan` and `snapshot` are of its last full decision.

    `plans` counts those; with `every_tick` each tick makes one.
    """

    policy: FleetPolicy
    every_tick: bool
    ticks: int
    plans: int
    plan: Plan | None
    snapshot: Snapshot | None

    def tick(self, sample: TrafficSample) -> Plan:
        """Observe, decide, act once."""


@runtime_checkable
class OwnDecisions(Protocol):
    """An approach that does not decide by our plan at all."""

    def decisions(self, world: World, hands: Hands) -> Deciding:
        """What takes the place of `Decisions`."""


class Springtide:
    """As it is."""

    name = "springtide"

    def policy(self, policy: FleetPolicy) -> FleetPolicy:
        """The scenario's."""
        return policy

    def see(self, snapshot: Snapshot) -> Snapshot:
        """All of it."""
        return snapshot


class Settled(msgspec.Struct, frozen=True):
    """A moment at which nothing is to be done: what would have to change before the next plan can have an action.

    `leaves_ms` is when the cloud takes the first node back by itself, `event_end_ms` the end of the events in sight.
    """

    version: int
    replicas: int
    snapshot: Snapshot
    plan: Plan
    present: int
    leaves_ms: int
    event_end_ms: int


class Decisions:
    """One service's control loop.

    The count of replicas is decided at every tick. The rest of the plan is left out where it cannot have an action: the
    plan before had none, since then neither the world, the count nor the lines' limit has changed, every replica that
    has a place serves and no other is there, all zones are well, and no node has to be kept for longer. Every
    CHECK_EVERY such ticks that is tried by deciding all of it.
    """

    def __init__(self, world: World, hands: Hands, approach: Approach) -> None:
        """Begin without a past."""
        scenario = world.scenario
        self._world = world
        self._hands = hands
        self._zones = zones = tuple(zone.model() for zone in scenario.zones)
        self._calendar = scenario.announced()
        self._approach = approach
        self.policy = approach.policy(scenario.fleet_policy())
        self._desk = Desk(COUNTER, RUN, self.policy, zones)
        self._traffic: deque[TrafficSample] = deque(maxlen=TRAFFIC_SAMPLES_MAX)
        self._settled: Settled | None = None
        self._skipped = 0
        self.every_tick = False
        """Take no short cut."""
        self.ticks = 0
        self.plans = 0
        """Ticks at which all of the plan was decided."""
        self.plan: Plan | None = None
        """The last plan that was decided in full."""
        self.snapshot: Snapshot | None = None
        """What it was decided by."""

    def tick(self, sample: TrafficSample) -> Plan:
        """Observe, decide, act once; the plan, or the one before where only the count had to be decided."""
        self.ticks += 1
        self._traffic.append(sample)
        while self._traffic[0].at_ms <= sample.at_ms - history_ms(self.policy):
            self._traffic.popleft()
        settled = None if self.every_tick else self._settled
        rests = None if settled is None or settled.version != self._version() else self._rests(settled)
        if rests is not None:
            self._skipped += 1
            if self._skipped % CHECK_EVERY:
                return rests
            plan = self._decide()
            if plan.actions:
                raise SimulationError(f"the short cut left out what tick {self.ticks} had to do: {plan.actions[:3]}")
            return plan
        return self._decide()

    def _version(self) -> int:
        return self._world.version + self._hands.version

    def _rests(self, settled: Settled) -> Plan | None:
        """Decide the count alone; the plan, but for its demand the one before, if the count is as it was."""
        desk = self._desk
        traffic = tuple(self._traffic)
        desk.count(traffic, self._calendar)
        now_ms = self._world.kernel.now_ms
        snapshot = msgspec.structs.replace(
            settled.snapshot,
            tick=self.ticks,
            now_ms=now_ms,
            traffic=traffic,
            wanted_before=tuple(desk.wanted),
            seasons=desk.seasons.near(now_ms, self.policy.season_ms),
            usual=desk.seasons.usual,
            line_load=self._world.line_load(),
        )
        snapshot = self._approach.see(snapshot)
        demand = autoscale.demand_ahead(snapshot, self.policy)
        wanted = autoscale.autoscale(demand, snapshot, self.policy, settled.present)
        if wanted.replicas != settled.replicas or wanted.hold or not self._waits(settled, snapshot):
            return None
        plan = msgspec.structs.replace(settled.plan, tick=self.ticks, demand=demand, asked=wanted.asked)
        desk.concluded(snapshot, plan)
        return plan

    def _waits(self, settled: Settled, snapshot: Snapshot) -> bool:
        """Whether neither a queue, the lines nor time ask for anything else than the count does."""
        if snapshot.traffic[-1].queued or line.limit(snapshot, self.policy) != settled.plan.line_limit:
            return False
        kept_ms = snapshot.now_ms + self.policy.release_after_ms // 2
        ahead_ms = autoscale.ahead_ms(snapshot, self.policy)
        return kept_ms < settled.leaves_ms and event_end_ms(snapshot, ahead_ms) == settled.event_end_ms

    def _decide(self) -> Plan:
        self.plans += 1
        world, desk = self._world, self._desk
        now_ms = world.kernel.now_ms
        nodes = world.nodes
        silent = {f"replicas/{zone}": ms for zone, ms in world.silent_ms().items()}
        seen = Observation(
            now_ms=now_ms,
            nodes=nodes,
            replicas=world.replicas.all,
            ages_ms=silent,
            services={COUNTER: ServiceSeen(healthy=world.healthy(), traffic=tuple(self._traffic))},
            unheard=frozenset(),
            wishes=None,
        )
        under_way = [(COUNTER, action) for action in self._hands.in_flight]
        fleet = Fleet(seen, nodes, self._zones, under_way, {COUNTER: desk}, alone=True)
        snapshot = fleet.snapshot(desk, self.ticks, self._calendar, {})
        snapshot = self._approach.see(
            msgspec.structs.replace(
                snapshot,
                offers=world.market.offers(),
                fills=self._hands.fills,
                quotas=world.market.quotas(),
                line_load=world.line_load(),
            )
        )
        version = self._version()
        plan = decide(snapshot, self.policy)
        desk.concluded(snapshot, plan)
        self.plan, self.snapshot = plan, snapshot
        self._hands.carry_out(plan.actions)
        for action in plan.actions:
            if isinstance(action, SetEndpoints):
                desk.listed(action.endpoints)
        self._settled = self._settle(version, snapshot, plan)
        return plan

    def _settle(self, version: int, snapshot: Snapshot, plan: Plan) -> Settled | None:
        ready = [replica for replica in snapshot.replicas if replica.state is ReplicaState.READY]
        placed = sum(plan.placement.values())
        well = all(health.state is ZoneState.UP and not health.bad_since_ms for health in plan.zone_health.values())
        rests = not plan.actions and not snapshot.in_flight and placed == len(ready) == len(snapshot.replicas)
        limited = plan.capacity is not None and plan.capacity.limit  # it is forgotten after a while
        if not rests or not well or limited or plan.replicas_wanted > placed or snapshot.ages_ms:
            return None
        leaves_ms = min((node.release_at_ms for node in snapshot.nodes if node.release_at_ms), default=_NEVER_MS)
        end_ms = event_end_ms(snapshot, autoscale.ahead_ms(snapshot, self.policy))
        return Settled(version, plan.replicas_wanted, snapshot, plan, len(ready), leaves_ms, end_ms)
