"""What is noted while a simulation runs: totals, bins of time, and when the wanted cores served."""

import re
from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

from springtide.model import Market as Channel
from springtide.model import NodeState, Plan
from springtide.twin.simulation.flow import Flow
from springtide.twin.simulation.outcome import Alert, Breach, Sample
from springtide.twin.simulation.scenario import Scenario
from springtide.twin.simulation.world import World

_FIGURES = re.compile(r"\d[\d.,]*")

BINS_MAX = 720
"""Bins of one simulation; in two hours they are ten seconds long."""

ALERTS_MAX = 100
"""Different alerts that are kept; later ones are only counted."""

BREACHES_MAX = 100
"""Breaches of invariants that are kept."""


class Totals(msgspec.Struct):
    """Counts of all steps until now."""

    requests: float = 0.0
    retries: float = 0.0
    acknowledged: float = 0.0
    sold_out: float = 0.0
    shed: float = 0.0
    bots_refused: float = 0.0
    failed: float = 0.0
    pages: float = 0.0
    gave_up: float = 0.0
    paid: float = 0.0
    violation_s: float = 0.0
    p99_worst_ms: float = 0.0
    line_share_max: float = 0.0
    cores_peak: int = 0
    replicas_peak: int = 0


class Goal(msgspec.Struct, frozen=True):
    """So many cores should serve at the opening: rented ones, or all where the scenario does not say how many."""

    cores: int
    opens_s: float


class Recorder:
    """Notes every step. `ready_s` is since when the wanted cores served at the opening, or first after it."""

    def __init__(self, scenario: Scenario, world: World, goal: Goal, on_sample: Callable[[Sample], None]) -> None:
        """Nothing has been seen yet."""
        self._scenario = scenario
        self._world = world
        self._on_sample = on_sample
        self._wanted = goal.cores
        self._opens_s = goal.opens_s
        self._stands_since_s: float | None = None
        self._bin_s = max(scenario.step_s, scenario.duration_s / BINS_MAX)
        self._bin = Totals()
        self._bin_began_s = 0.0
        self._alerts: dict[str, Alert] = {}
        self.totals = Totals()
        self.ready_s: float | None = None
        self.samples: list[Sample] = []
        self.breaches: list[Breach] = []

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """What was said to a person, each once, in order."""
        return tuple(self._alerts.values())

    def step(self, at_s: float, dt_s: float, flow: Flow, plan: Plan | None) -> None:
        """Note a step that has ended `at_s`; `flow` has the requests that failed for the world's faults among its own.

        Whether it is ready is seen here as well.
        """
        totals = self.totals
        for into in (totals, self._bin):
            into.requests += flow.requests
            into.retries += flow.retries
            into.acknowledged += flow.acknowledged
            into.sold_out += flow.sold_out
            into.shed += flow.shed
            into.bots_refused += flow.bots_refused
            into.failed += flow.failed
            into.pages += flow.pages
            into.gave_up += flow.gave_up
            into.p99_worst_ms = max(into.p99_worst_ms, flow.p99_ms)
        totals.paid = flow.paid
        bad = (flow.shed - flow.bots_refused + flow.failed) / flow.requests if flow.requests else 0.0
        slo = self._scenario.slo
        totals.violation_s += dt_s * (bad > slo.bad_share or flow.p99_ms > slo.p99_ms)
        serving = self._world.replicas.serving
        rented = sum(cores for market, cores in serving.cores.items() if market is not Channel.IDC)
        totals.cores_peak = max(totals.cores_peak, rented)
        totals.replicas_peak = max(totals.replicas_peak, serving.replicas)
        totals.line_share_max = max(totals.line_share_max, *self._world.lines.load.values(), 0.0)
        served = rented if self._scenario.cores_wanted else sum(serving.cores.values())
        self._see_ready(at_s, stands=bool(self._wanted) and served >= self._wanted)
        if at_s >= self._bin_began_s + self._bin_s - 1e-9:
            self._sample(at_s, flow, plan)

    def _see_ready(self, at_s: float, *, stands: bool) -> None:
        """It is ready since the cores stand at the opening, or once they do after it."""
        if self.ready_s is not None:
            return
        self._stands_since_s = (at_s if self._stands_since_s is None else self._stands_since_s) if stands else None
        if at_s >= self._opens_s:
            self.ready_s = self._stands_since_s

    def breach(self, found: Iterable[Breach]) -> None:
        """Note what is not as it has to be, up to BREACHES_MAX."""
        for breach in found:
            if len(self.breaches) < BREACHES_MAX:
                self.breaches.append(breach)

    def alert(self, at_s: float, plan: Plan) -> None:
        """Note what a plan has to say to a person; what differs by its figures alone is one alert, as it was first."""
        for text in plan.alerts:
            kind = _FIGURES.sub("#", text)
            known = self._alerts.get(kind)
            if known is not None:
                self._alerts[kind] = msgspec.structs.replace(known, times=known.times + 1)
            elif len(self._alerts) < ALERTS_MAX:
                self._alerts[kind] = Alert(at_s, text)

    def _sample(self, at_s: float, flow: Flow, plan: Plan | None) -> None:
        seconds = at_s - self._bin_began_s
        counts, world = self._bin, self._world
        cores = world.replicas.serving.cores
        rented = world.market.nodes()
        states = Counter(node.state for node in rented)
        sample = Sample(
            at_s=at_s,
            demand_per_s=counts.requests / seconds,
            served_per_s=(counts.acknowledged + counts.sold_out + counts.pages) / seconds,
            acknowledged_per_s=counts.acknowledged / seconds,
            shed_per_s=counts.shed / seconds,
            failed_per_s=counts.failed / seconds,
            waiting=flow.waiting,
            p99_ms=counts.p99_worst_ms,
            capacity_per_s=world.capacity().requests_per_s,
            serving_idc=cores.get(Channel.IDC, 0),
            serving_ecs=cores.get(Channel.ON_DEMAND, 0),
            serving_spot=cores.get(Channel.SPOT, 0),
            serving_eci=cores.get(Channel.ECI, 0),
            replicas_wanted=plan.replicas_wanted if plan else 0,
            replicas_starting=world.replicas.starting,
            nodes=len(rented),
            nodes_booting=states[NodeState.BOOTING],
            cores_paid=sum(node.cores for node in rented),
            line_share=max(world.lines.load.values(), default=0.0),
            cost_cny_per_h=world.market.bill.fen_per_h() / 100,
            journal=flow.journal,
            stock=flow.stock,
        )
        self.samples.append(sample)
        self._bin, self._bin_began_s = Totals(), at_s
        self._on_sample(sample)
