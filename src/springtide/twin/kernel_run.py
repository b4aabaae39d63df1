"""Runs of the twin: one demand, one world, and either the production decisions or a policy that counts replicas."""

from collections import deque

import msgspec

from springtide.decide import autoscale
from springtide.decide.forecast import history_ms, is_announced
from springtide.decide.plan import plan as decide
from springtide.decide.seasons import SeasonBook
from springtide.model import FleetPolicy, Plan, ReplicaState, Snapshot, TrafficSample
from springtide.twin.kernel import Kernel
from springtide.twin.kernel_crew import Crew
from springtide.twin.kernel_world import World, WorldError, WorldSettings
from springtide.twin.policies import Counting, Seen
from springtide.twin.series import Series

CHECK_EVERY = 1_000
"""Every so many ticks the world is recounted."""

WARM_UP_MS = 600_000
"""Before the series begins, its first second's demand holds for so long: every policy begins with a fitting fleet."""


def run_plan(
    series: Series, settings: WorldSettings, policy: FleetPolicy, tick_ms: int, *, every_tick: bool = False
) -> World:
    """Let the production decisions follow a demand; the world afterwards.

    `every_tick` takes no short cut, see `PlanLoop`. Raises WorldError for a defect.
    """
    kernel = Kernel(series.start_ms - WARM_UP_MS)
    world = World(kernel, settings)
    kernel.every(tick_ms, PlanLoop(world, series, policy, tick_ms, every_tick=every_tick).tick)
    kernel.run(series.start_ms + series.seconds * 1000)
    world.check()
    return world


def run_counting(series: Series, settings: WorldSettings, policy: Counting, drain_ms: int) -> World:
    """Let a policy that counts replicas follow a demand; the world afterwards. Raises WorldError for a defect."""
    kernel = Kernel(series.start_ms - WARM_UP_MS)
    world = World(kernel, msgspec.structs.replace(settings, lists_ready=True))
    crew = Crew(world, drain_ms)
    ticks = 0

    def sync() -> None:
        nonlocal ticks
        ticks += 1
        crew.scale(policy.decide(Seen(kernel.now_ms, max(1, crew.wanted), series.mean)))
        if ticks % CHECK_EVERY == 0:
            world.check()

    kernel.every(policy.sync_ms, sync)
    kernel.run(series.start_ms + series.seconds * 1000)
    world.check()
    return world


class PlanLoop:
    """What `fleet.loop.ControlLoop` does at a tick, without waiting: observe the world, decide, act.

    The count of replicas is decided at every tick. The rest of the plan is left out where it cannot have an action:
    when the plan before had none, since then neither the fleet nor the count has changed, nothing drains, and there are
    not more replicas than wanted, so that only an event of the world can bring something to do. Every CHECK_EVERY ticks
    that is tried by deciding all of it.
    """

    def __init__(
        self, world: World, series: Series, policy: FleetPolicy, tick_ms: int, *, every_tick: bool = False
    ) -> None:
        """Begin without a past."""
        self._world = world
        self._series = series
        self._policy = policy
        self._tick_ms = tick_ms
        self._every_tick = every_tick
        self._tick = 0
        self._traffic: deque[TrafficSample] = deque()
        self._wanted: deque[tuple[int, int]] = deque()
        self._plan: Plan | None = None
        self._settled: tuple[int, int] | None = None
        self._counted = -1, 0
        self._book = SeasonBook(autoscale.horizon_ms(world.settings.zones, policy, ()))

    def tick(self) -> None:
        """Observe, decide, act once."""
        self._tick += 1
        self._observe()
        snapshot = self._snapshot()
        demand = autoscale.demand_ahead(snapshot, self._policy)
        if self._counted[0] != self._world.version:
            present = sum(replica.state is not ReplicaState.DRAINING for replica in snapshot.replicas)
            self._counted = self._world.version, present
        present = self._counted[1]
        wanted = autoscale.autoscale(demand, snapshot, self._policy, present)
        self._remember(snapshot.now_ms, wanted.asked)
        settled = self._settled == (self._world.version, wanted.replicas) and not wanted.hold
        if settled and not self._every_tick and self._tick % CHECK_EVERY:
            return
        plan = decide(snapshot, self._policy)
        if plan.replicas_wanted != wanted.replicas or (settled and plan.actions):
            raise WorldError(f"the short cut decided otherwise than the plan of tick {self._tick}: {wanted}, {plan}")
        self._plan = plan
        for action in plan.actions:
            self._world.apply(action)
        self._settled = self._rests(plan)
        if self._tick % CHECK_EVERY == 0:
            self._world.check()

    def _rests(self, plan: Plan) -> tuple[int, int] | None:
        """What would have to change before the next plan can have an action; None when time alone will do."""
        drains = any(replica.state is ReplicaState.DRAINING for replica in self._world.replicas)
        rests = not plan.actions and not drains and len(self._world.replicas) <= plan.replicas_wanted
        return (self._world.version, plan.replicas_wanted) if rests else None

    def _observe(self) -> None:
        now_ms = self._world.kernel.now_ms
        rate = self._series.mean(now_ms - self._tick_ms, now_ms)
        self._traffic.append(TrafficSample(now_ms, rate))
        while self._traffic[0].at_ms <= now_ms - history_ms(self._policy):
            self._traffic.popleft()
        self._book.add(now_ms, rate, announced=is_announced(self._series.calendar, now_ms))

    def _snapshot(self) -> Snapshot:
        world, before = self._world, self._plan
        return Snapshot(
            run="twin",
            tick=self._tick,
            now_ms=world.kernel.now_ms,
            zones=world.settings.zones,
            nodes=world.nodes,
            replicas=world.replicas,
            endpoints=world.endpoints,
            traffic=tuple(self._traffic),
            calendar=self._series.calendar,
            wanted_before=tuple(self._wanted),
            zone_health=before.zone_health if before else {},
            capacity=before.capacity if before else None,
            rollout=before.rollout if before else None,
            seasons=self._book.near(world.kernel.now_ms, self._policy.season_ms),
            usual=self._book.usual,
            scaled_in_ms=before.scaled_in_ms if before else 0,
        )

    def _remember(self, now_ms: int, asked: int) -> None:
        """As the control loop does: keep what was asked for, without what a later and larger figure covers."""
        while self._wanted and self._wanted[-1][1] <= asked:
            self._wanted.pop()
        self._wanted.append((now_ms, asked))
        while self._wanted[0][0] < now_ms - self._policy.patience_ms:
            self._wanted.popleft()
