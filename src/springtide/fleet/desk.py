"""What a control loop knows and keeps of one service: its wish, its policy, its release, and what plans concluded."""

from collections import Counter, deque
from collections.abc import Sequence

import msgspec

from springtide.decide import autoscale
from springtide.decide.forecast import is_announced
from springtide.decide.names import is_scheduled
from springtide.decide.seasons import SeasonBook
from springtide.model import (
    Action,
    CalendarEvent,
    CapacityEstimate,
    Endpoint,
    FleetPolicy,
    LineLimit,
    Plan,
    RentNodes,
    Replica,
    ReplicaState,
    Rollout,
    RolloutState,
    ScaleOverride,
    SeasonPoint,
    ServiceSpec,
    ServiceWish,
    Snapshot,
    TrafficSample,
    Zone,
    ZoneHealth,
    ZoneKind,
)

ORDERED_MAX = 4_000
"""Tokens of scheduled purchases that are remembered as ordered; the oldest go first."""

WANTED_MAX = 200
"""Figures of the past that are kept for patience; only ever larger and older ones are."""


class DeskMemory(msgspec.Struct, frozen=True):
    """What of a service outlives the loop, but for the list of its balancer and its seasons."""

    service: str
    revision: str = ""
    wish: ServiceWish | None = None
    specs: dict[str, ServiceSpec] = {}
    rollout: Rollout | None = None
    zone_health: dict[str, ZoneHealth] = {}
    capacity: CapacityEstimate | None = None
    scaled_in_ms: int = 0
    wanted: tuple[tuple[int, int], ...] = ()
    ordered: tuple[str, ...] = ()


class ListMemory(msgspec.Struct, frozen=True):
    """The list that the balancer was last given, and `homes`, the nodes of its replicas."""

    endpoints: tuple[Endpoint, ...] = ()
    homes: dict[str, str] = {}


class Desk:
    """One service. `wish` is None for the only service of a loop without shared state, and for one that retires."""

    def __init__(self, service: str, run: str, policy: FleetPolicy, zones: Sequence[Zone]) -> None:
        """`run` marks what is bought and started for this service; `policy` is the base of its own."""
        self.service = service
        self._base = policy
        self._zones = zones
        self.run = run
        self.policy = policy
        self.wish: ServiceWish | None = None
        self.retiring = False
        self.restored = False
        self.scale: ScaleOverride | None = None
        self.revision = ""
        self.specs: dict[str, ServiceSpec] = {}
        self.rollout: Rollout | None = None
        self.zone_health: dict[str, ZoneHealth] = {}
        self.capacity: CapacityEstimate | None = None
        self.scaled_in_ms = 0
        self.endpoints: tuple[Endpoint, ...] = ()
        self.endpoints_unsure = False
        self.homes: dict[str, str] = {}
        self.wanted: deque[tuple[int, int]] = deque(maxlen=WANTED_MAX)
        self.ordered: deque[str] = deque(maxlen=ORDERED_MAX)
        """The tokens of the scheduled purchases that were ordered."""
        self.line_limit = LineLimit()
        self.seasons = SeasonBook(autoscale.horizon_ms(zones, policy, ()))
        self._counted_ms = 0
        self.latest: tuple[Snapshot, Plan] | None = None
        self.failure = ""

    def follow(self, wish: ServiceWish, override: ScaleOverride | None, now_ms: int) -> None:
        """Take the wish as it is now."""
        self.wish, self.retiring = wish, False
        self.policy = service_policy(self._base, wish, self._zones)
        self.scale = service_scale(wish, override, now_ms)
        self.specs[wish.spec.revision] = wish.spec
        if wish.previous is not None:
            self.specs.setdefault(wish.previous.revision, wish.previous)

    def retire(self) -> None:
        """Nobody wants the service any more: all of it goes, at once and in order."""
        self.retiring = True
        self.rollout = None
        self.zone_health = {}
        self.scale = ScaleOverride(0, 0)
        self.wanted.clear()
        policy = service_policy(self._base, self.wish, self._zones) if self.wish else self._base
        self.policy = retiring_policy(policy)

    def count(self, traffic: Sequence[TrafficSample], calendar: Sequence[CalendarEvent]) -> None:
        """Add the newest sample to what is known of seasons, once."""
        if traffic and traffic[-1].at_ms > self._counted_ms:
            last = traffic[-1]
            self._counted_ms = last.at_ms
            self.seasons.add(last.at_ms, last.requests_per_s, announced=is_announced(calendar, last.at_ms))

    def steer(self, replicas: Sequence[Replica], now_ms: int) -> None:
        """Begin a rollout where the wished revision is another than the running one, or turn one that is under way."""
        if self.wish is None or self.retiring:
            return
        wished = self.wish.spec.revision
        if self.rollout is None:
            if not self.revision:
                self._find_revision(wished, replicas)
            if self.revision != wished:
                self.rollout = Rollout(wished, self.revision, RolloutState.ROLLING, now_ms)
        else:
            if self.rollout.state is RolloutState.DONE:
                self.revision = self.rollout.revision
            # One that was rolled back stays so until something else is wished.
            if self.rollout.revision != wished:
                self._turn(self.rollout, wished, now_ms)
        needed = {wished, self.revision} | ({self.rollout.previous, self.rollout.revision} if self.rollout else set())
        self.specs = {name: spec for name, spec in self.specs.items() if name in needed}

    def startable(self) -> list[ServiceSpec]:
        """The revisions that a plan may start replicas of."""
        return list(self.specs.values()) if not self.retiring else []

    def concluded(self, snapshot: Snapshot, plan: Plan) -> None:
        """Keep what the next decision needs."""
        self.latest = snapshot, plan
        failure = _failure(snapshot.replicas)
        self.failure = self.failure if failure is None else failure
        self.zone_health = plan.zone_health
        self.capacity = plan.capacity
        self.scaled_in_ms = plan.scaled_in_ms
        self.line_limit = plan.line_limit
        if self.wish is not None and not self.retiring:
            self.rollout = plan.rollout
        self._remember_wanted(snapshot.now_ms, plan.asked)

    def begun(self, action: Action) -> None:
        """An action of this service is under way: a scheduled purchase is ordered once."""
        token = action.client_token if isinstance(action, RentNodes) else ""
        if is_scheduled(token) and token not in self.ordered:
            self.ordered.append(token)

    def listed(self, endpoints: tuple[Endpoint, ...]) -> None:
        """The balancer has this list."""
        self.endpoints = endpoints
        homes = {one.replica_id: one.node_id for one in self.latest[0].replicas} if self.latest else {}
        self.homes = {one.replica_id: homes.get(one.replica_id, "") for one in endpoints}

    def memory(self) -> DeskMemory:
        """What is to outlive this loop."""
        return DeskMemory(
            service=self.service,
            revision=self.revision,
            wish=self.wish,
            specs=self.specs,
            rollout=self.rollout,
            zone_health=self.zone_health,
            capacity=self.capacity,
            scaled_in_ms=self.scaled_in_ms,
            wanted=tuple(self.wanted),
            ordered=tuple(self.ordered),
        )

    def restore(self, memory: DeskMemory, listed: ListMemory, seasons: Sequence[SeasonPoint]) -> None:
        """Go on where another loop was. The balancer may have another list than the last one: it is written again."""
        self.wish = memory.wish
        self.revision = memory.revision
        self.specs = dict(memory.specs)
        self.rollout = memory.rollout
        self.zone_health = memory.zone_health
        self.capacity = memory.capacity
        self.scaled_in_ms = memory.scaled_in_ms
        self.wanted = deque(memory.wanted, maxlen=WANTED_MAX)
        self.ordered = deque(memory.ordered, maxlen=ORDERED_MAX)
        self.endpoints, self.homes = listed.endpoints, listed.homes
        self.seasons.merge(seasons)
        self.endpoints_unsure = self.restored = True

    def _turn(self, rollout: Rollout, wished: str, now_ms: int) -> None:
        """Another change, perhaps before the last one was done: from what runs, or ran before, to what is wished."""
        resting = rollout.state in {RolloutState.DONE, RolloutState.ROLLED_BACK}
        self.revision = rollout.revision if rollout.state is RolloutState.DONE else rollout.previous
        at_rest = resting and self.revision == wished
        self.rollout = None if at_rest else Rollout(wished, self.revision, RolloutState.ROLLING, now_ms)

    def _find_revision(self, wished: str, replicas: Sequence[Replica]) -> None:
        """Nothing is remembered: what most of the ready replicas are is what runs."""
        ready = Counter(one.revision for one in replicas if one.state is ReplicaState.READY and one.revision)
        self.revision = max(sorted(ready), key=lambda name: ready[name]) if ready else wished

    def _remember_wanted(self, now_ms: int, asked: int) -> None:
        """Keep what the demand alone asked for, as far as a later decision can need it.

        Only the maximum over the last `patience_ms` is ever asked, so what a later and larger figure covers
        goes at once: the history is as long as there are different figures.
        """
        while self.wanted and self.wanted[-1][1] <= asked:
            self.wanted.pop()
        self.wanted.append((now_ms, asked))
        while self.wanted[0][0] < now_ms - self.policy.patience_ms:
            self.wanted.popleft()


def service_policy(base: FleetPolicy, wish: ServiceWish, zones: Sequence[Zone]) -> FleetPolicy:
    """The policy of one service. Its floor and ceiling are not here but in `service_scale`, which goes before them.

    `base_replicas` says where the floor is placed: in the IDC, as evenly as it goes.
    """
    idc = sum(zone.kind is ZoneKind.IDC for zone in zones)
    return msgspec.structs.replace(
        base,
        replica_requests_per_s=wish.requests_per_s,
        replica_cores=wish.spec.cores,
        replica_memory_mb=wish.spec.memory_mb,
        base_replicas=-(-wish.replicas_min // idc) if idc else 0,
        replicas_max=None,
        drain_ms=wish.drain_ms,
        signals=wish.signals,
    )


def service_scale(wish: ServiceWish, override: ScaleOverride | None, now_ms: int) -> ScaleOverride:
    """How many replicas there may be: the operator's bounds while they hold, or else the service's own."""
    if override is not None and (not override.until_ms or now_ms < override.until_ms):
        return override
    return ScaleOverride(wish.replicas_min, wish.replicas_max)


def retiring_policy(policy: FleetPolicy) -> FleetPolicy:
    """The same limits for what is taken away, without patience and without a floor."""
    return msgspec.structs.replace(
        policy,
        base_replicas=0,
        replicas_max=0,
        patience_ms=0,
        failure_budget=0,
        scale_in_share=1.0,
        scale_in_every_ms=0,
        signals=(),
        capacity_learnt=False,
    )


def cores_of(desk: Desk, revision: str) -> tuple[float, int]:
    """The cores and the MB of memory that a replica of this revision takes."""
    spec = desk.specs.get(revision)
    if spec is None:
        return desk.policy.replica_cores, desk.policy.replica_memory_mb
    return spec.cores, spec.memory_mb


def _failure(replicas: Sequence[Replica]) -> str | None:
    """Why the last one failed that did; empty when all are well, None when that is not known yet."""
    failed = [one for one in replicas if one.state is ReplicaState.FAILED and one.failure]
    if failed:
        return max(failed, key=lambda one: one.since_ms).failure
    well = bool(replicas) and all(one.state is ReplicaState.READY for one in replicas)
    return "" if well else None
