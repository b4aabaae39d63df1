"""A simulation from its beginning to its outcome: steps of the order path, ticks of the decisions, and faults."""

import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import msgspec

from springtide.config.fields import to_ms
from springtide.drivers.system import chance as chance_of
from springtide.model import Plan, TrafficSample, ZoneTraffic
from springtide.ports import Chance
from springtide.twin.kernel import Kernel
from springtide.twin.simulation.clairvoyant import clairvoyant_cost_cny
from springtide.twin.simulation.decisions import Approach, Deciding, Decisions, OwnDecisions, Springtide
from springtide.twin.simulation.demand import Demand, first_rise_s, largest_wave
from springtide.twin.simulation.flow import Flow, OrderPath
from springtide.twin.simulation.hands import Hands
from springtide.twin.simulation.outcome import Breach, Outcome, Sample
from springtide.twin.simulation.path_fluid import FluidPath
from springtide.twin.simulation.recording import Goal, Recorder
from springtide.twin.simulation.scenario import Scenario
from springtide.twin.simulation.world import World

WARM_UP_MS = 900_000
"""Before the beginning its first second's demand holds for so long: a simulation begins with a fleet that fits."""

Watch = Callable[["Simulation", Flow], Iterable[Breach]]
"""Looks at a simulation after every step, and says what is not as it has to be."""


def simulate(
    scenario: Scenario,
    seed: int | None = None,
    *,
    policy: Approach | None = None,
    on_sample: Callable[[Sample], None] | None = None,
    counts: Sequence[float] | None = None,
    watches: Sequence[Watch] = (),
) -> Outcome:
    """Let the production decisions live through a scenario; the same seed gives the same outcome, to the byte.

    `counts` are the values of the demand's file; `on_sample` is told of each bin of time. A KeyboardInterrupt ends it
    early, and the outcome says so. Raises SimulationError for a defect.
    """
    simulation = Simulation(scenario, scenario.seed if seed is None else seed, policy or Springtide(), counts=counts)
    simulation.watches = tuple(watches)
    if on_sample is not None:
        simulation.on_sample = on_sample
    interrupted = False
    try:
        simulation.run()
    except KeyboardInterrupt:
        interrupted = True
    return simulation.outcome(interrupted=interrupted)


class Simulation:
    """One run. Everything of it may be looked at while it goes on; `world.strike` lets a fault happen."""

    def __init__(
        self, scenario: Scenario, seed: int, approach: Approach, *, counts: Sequence[float] | None = None
    ) -> None:
        """Nothing has happened yet; the faults of the scenario are put down."""
        self.scenario = scenario
        self.seed = seed
        self.approach = approach
        self.kernel = Kernel(scenario.start_ms - WARM_UP_MS)
        self.world = World(self.kernel, scenario, _stream(seed, "cloud"))
        self.hands = Hands(self.kernel, self.world)
        self.decisions = _decisions(self.world, self.hands, approach)
        self.path: OrderPath = FluidPath(scenario.path)
        self.demand = Demand(scenario.demand, scenario.faults, counts)
        self.watches: tuple[Watch, ...] = ()
        self.on_sample: Callable[[Sample], None] = _nothing
        self.plan: Plan | None = None
        self.goal = Goal(scenario.cores_wanted or self._cores_of_peak(), self._opens_s())
        self.recorder = Recorder(scenario, self.world, self.goal, self._sampled)
        self._noise = _stream(seed, "demand")
        self._since_tick = Flow()
        self._seen_s = 0.0
        self._paid_before_fen = 0.0

    @property
    def at_s(self) -> float:
        """Seconds since the beginning; negative while it warms up."""
        return (self.kernel.now_ms - self.scenario.start_ms) / 1000

    def run(self) -> None:
        """All of it."""
        start_ms, step_ms = self.scenario.start_ms, to_ms(self.scenario.step_s)
        self.kernel.at(start_ms, self._begin)
        self.kernel.every(self.scenario.fleet.tick_ms, self._tick)
        for fault in self.scenario.faults:
            self.kernel.at(start_ms + to_ms(fault.at_s), partial(self.world.strike, fault))
        self.kernel.run(start_ms)
        now_ms, end_ms = start_ms, start_ms + to_ms(self.scenario.duration_s)
        while now_ms < end_ms:
            dt_ms = min(step_ms, end_ms - now_ms)
            self._step(dt_ms / 1000)
            now_ms += dt_ms
        self.world.replicas.check()

    def outcome(self, *, interrupted: bool = False) -> Outcome:
        """The figures until now."""
        totals, scenario, recorder = self.recorder.totals, self.scenario, self.recorder
        ready_s = None if recorder.ready_s is None else recorder.ready_s - self.goal.opens_s
        refused = totals.shed + totals.failed - totals.bots_refused
        return Outcome(
            scenario=scenario.name,
            policy=self.approach.name,
            seed=self.seed,
            until_s=max(0.0, self.at_s),
            ready_s=ready_s,
            availability=1.0 - refused / totals.requests if totals.requests else 1.0,
            requests=totals.requests,
            acknowledged=totals.acknowledged,
            cores_peak=totals.cores_peak,
            nodes_left=len(self.world.market.nodes()),
            violation_s=totals.violation_s,
            cost_cny=(self.world.market.cost_fen() - self._paid_before_fen) / 100,
            clairvoyant_cost_cny=None if interrupted else clairvoyant_cost_cny(scenario, self.demand),
            calendar=scenario.calendar,
            interrupted=interrupted,
            cores_wanted=self.goal.cores,
            shed=totals.shed,
            failed=totals.failed,
            sold_out=totals.sold_out,
            retries=totals.retries,
            gave_up=totals.gave_up,
            paid=totals.paid,
            nodes_rented=self.hands.rented,
            orders_refused=self.hands.refused,
            replicas_peak=totals.replicas_peak,
            ticks=self.decisions.ticks,
            p99_worst_ms=totals.p99_worst_ms,
            line_share_max=totals.line_share_max,
            breaches=tuple(recorder.breaches),
            alerts=recorder.alerts,
            samples=tuple(recorder.samples),
        )

    def _begin(self) -> None:
        self._paid_before_fen = self.world.market.cost_fen()

    def _step(self, dt_s: float) -> None:
        """Let a step pass: what stands at its beginning answers what comes in it."""
        world = self.world
        people = self.demand.per_s(self.at_s, dt_s, self._noise)
        lost = people * world.failing_share()
        flow = self.path.step(self.kernel.now_ms, dt_s, people - lost, world.capacity())
        if lost:
            flow = msgspec.structs.replace(flow, requests=flow.requests + lost * dt_s, failed=flow.failed + lost * dt_s)
        answered = max(0.0, flow.requests - flow.shed - flow.failed) / dt_s
        images_mb_per_s = world.delivery.advance(dt_s)
        world.lines.carry({zone: answered * share for zone, share in world.shares().items()}, images_mb_per_s)
        self.kernel.run(self.kernel.now_ms + round(dt_s * 1000))
        self._since_tick = _added(self._since_tick, flow)
        self._seen_s += dt_s
        self.recorder.step(self.at_s, dt_s, flow, self.plan)
        for watch in self.watches:
            self.recorder.breach(watch(self, flow))

    def _sampled(self, sample: Sample) -> None:
        self.on_sample(sample)

    def _tick(self) -> None:
        self.world.delivery.decide()
        if self.kernel.now_ms < self.scenario.start_ms:
            self.world.delivery.advance(self.scenario.fleet.tick_ms / 1000)
        self.plan = self.decisions.tick(self._sample())
        self.recorder.alert(self.at_s, self.plan)

    def _sample(self) -> TrafficSample:
        """What the balancer has counted since the last tick; while it warms up, the first second's demand."""
        now_ms, flow, seconds = self.kernel.now_ms, self._since_tick, self._seen_s
        self._since_tick, self._seen_s = Flow(), 0.0
        if not seconds:
            return TrafficSample(now_ms, self.demand.expected(0.0))
        per_s = flow.requests / seconds
        failed = flow.failed / seconds
        sent = max(0.0, flow.requests - flow.shed) / seconds
        silent = {zone for zone in self.world.zones if not self.world.is_reached(zone)}
        zones = tuple(
            ZoneTraffic(zone, sent * share, failed if zone in silent else 0.0, 0, 0)
            for zone, share in self.world.shares().items()
        )
        return TrafficSample(now_ms, per_s, zones, failed, round(flow.waiting), 0, flow.p99_ms or None)

    def _cores_of_peak(self) -> int:
        """What the largest expected demand takes, in whole replicas."""
        scenario = self.scenario
        peak = max(self.demand.steps(scenario.duration_s, scenario.step_s), default=0.0)
        return -(-int(peak) // max(1, int(scenario.service.replica_per_s))) * scenario.service.replica_cores

    def _opens_s(self) -> float:
        wave = largest_wave(self.scenario.demand.waves)
        return wave.opens_s if wave else first_rise_s(self.demand, self.scenario.duration_s)


def _decisions(world: World, hands: Hands, approach: Approach) -> Deciding:
    """Ours, or what the approach has in their place."""
    return approach.decisions(world, hands) if isinstance(approach, OwnDecisions) else Decisions(world, hands, approach)


def _added(before: Flow, flow: Flow) -> Flow:
    """The requests of both, and what is of the end of the second."""
    return msgspec.structs.replace(
        flow,
        requests=before.requests + flow.requests,
        shed=before.shed + flow.shed,
        failed=before.failed + flow.failed,
        p99_ms=max(before.p99_ms, flow.p99_ms),
    )


def _stream(seed: int, name: str) -> Chance:
    """The chance of one part of the world: what another part draws does not change it."""
    return chance_of(zlib.crc32(f"{seed}/{name}".encode()))


def _nothing(_: Sample) -> None:
    pass
