"""The charts of a simulation and of a comparison, as plotly figures in plain JSON."""

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import msgspec

from springtide.console.charts import (
    BAD,
    GOOD,
    LATENCY_TICKS_MS,
    MARK_COLOUR,
    WARN,
    Chart,
    labels,
    vertical,
)
from springtide.twin.simulation.approaches import OURS
from springtide.twin.simulation.demand import Demand, largest_wave
from springtide.twin.simulation.outcome import Outcome, Sample
from springtide.twin.simulation.scenario import Scenario

OURS_COLOUR = "#3b86c4"
COLOURS = {
    "springtide": OURS_COLOUR,
    "static-peak": "#868c95",
    "hpa": "#c8453b",
    "keda": "#e08a3c",
    "idc-only": "#a0629b",
    "idc-first": "#3f9c78",
    "cloud-first": "#b0a13a",
    "hpa-default": "#e59a94",
    "keda-default": "#f0b274",
}
"""By policy."""

KINDS = (
    ("data centre", "serving_idc", "#5b9bc8"),
    ("ECS on demand", "serving_ecs", "#e08a3c"),
    ("ECS spot", "serving_spot", "#c7a24a"),
    ("ECI", "serving_eci", "#a0629b"),
)

CLOSE = 0.02
"""Moments that are nearer to each other than this share of the whole have one mark."""

_MINUTE, _HOUR, _DAY = 60.0, 3_600.0, 86_400.0


class Axis(msgspec.Struct, frozen=True):
    """Time as the charts show it: `per` seconds are one `unit`. `faults` are moments, each with its numbers."""

    per: float
    unit: str
    until: float
    opens: float | None
    faults: tuple[tuple[float, str], ...]

    @classmethod
    def of(cls, scenario: Scenario) -> "Axis":
        """Minutes for hours, hours for days, days for weeks."""
        until_s = float(scenario.duration_s)
        per, unit = next(
            (pair for pair in ((1.0, " s"), (_MINUTE, " min"), (_HOUR, " h")) if until_s <= 400 * pair[0]),
            (_DAY, " d"),
        )
        wave = largest_wave(scenario.demand.waves)
        faults = tuple((at_s / per, name) for at_s, name in _numbered(scenario))
        return cls(per, unit, until_s / per, wave.opens_s / per if wave else None, faults)

    def x(self, samples: Sequence[Sample]) -> list[float]:
        """Where each bin ends."""
        return [round(sample.at_s / self.per, 4) for sample in samples]


def _numbered(scenario: Scenario) -> list[tuple[float, str]]:
    """The moments of faults with their numbers by time; those that would be drawn over each other are one."""
    groups: list[tuple[float, int, int]] = []
    for number, at_s in enumerate(sorted(fault.at_s for fault in scenario.faults), 1):
        if groups and at_s - groups[-1][0] < CLOSE * scenario.duration_s:
            groups[-1] = groups[-1][0], groups[-1][1], number
        else:
            groups.append((at_s, number, number))
    return [(at_s, f"{first}" if first == last else f"{first}–{last}") for at_s, first, last in groups]


def expected(scenario: Scenario, samples: Sequence[Sample], counts: Sequence[float] | None) -> list[float]:
    """People a second, without retries and noise, in the middle of each bin."""
    demand = Demand(scenario.demand, scenario.faults, counts)
    ends = [0.0, *(sample.at_s for sample in samples)]
    return [round(demand.expected((begin + end) / 2), 1) for begin, end in pairwise(ends)]


def cost_so_far(samples: Sequence[Sample]) -> list[float]:
    """CNY until the end of each bin: what is rented at its end, for its length."""
    ends = [0.0, *(sample.at_s for sample in samples)]
    spent = (
        sample.cost_cny_per_h * (end - begin) / _HOUR
        for sample, (begin, end) in zip(samples, pairwise(ends), strict=True)
    )
    return [round(total, 2) for total in accumulate(spent)]


def single_charts(scenario: Scenario, outcome: Outcome, counts: Sequence[float] | None = None) -> list[Chart]:
    """Of one run, in the order of the page."""
    samples, axis = outcome.samples, Axis.of(scenario)
    x = axis.x(samples)
    people = expected(scenario, samples, counts)
    answers = [
        ("answered", "served_per_s", GOOD),
        ("shed politely", "shed_per_s", WARN),
        ("failed", "failed_per_s", BAD),
    ]
    demand = [
        *(_area(name, x, [getattr(s, field) for s in samples], colour) for name, field, colour in answers),
        _line("people who come", x, people, MARK_COLOUR, dash="dot"),
        _line("capacity", x, [s.capacity_per_s for s in samples], OURS_COLOUR, width=1.5),
    ]
    nodes = [
        _line("rented", x, [s.nodes for s in samples], OURS_COLOUR),
        _line("of them booting", x, [s.nodes_booting for s in samples], WARN),
        _line("replicas starting", x, [s.replicas_starting for s in samples], GOOD),
    ]
    made = [
        _chart("Demand against what is served", "requests/s", demand, axis, wide=True),
        cores_chart("Cores that serve, by kind", scenario, samples, people, axis),
        _latency({outcome.policy: outcome}, scenario, axis),
        _chart("Nodes and replicas on their way", "", nodes, axis),
        _lines({outcome.policy: outcome}, scenario, axis),
        _cost({outcome.policy: outcome}, outcome.clairvoyant_cost_cny, axis),
    ]
    return [chart for chart in made if chart["data"]]


def comparison_charts(
    scenario: Scenario, outcomes: Sequence[Outcome], counts: Sequence[float] | None = None
) -> tuple[list[Chart], list[Chart]]:
    """Of several policies: all in one, then the cores of each by kind, on one scale."""
    axis, by_name = Axis.of(scenario), {outcome.policy: outcome for outcome in outcomes}
    if not outcomes:
        return [], []
    samples = outcomes[0].samples
    people = expected(scenario, samples, counts)
    served = [_of(outcome, "served_per_s", axis) for outcome in _ours_last(outcomes)]
    served.append(_line("people who come", axis.x(samples), people, MARK_COLOUR, dash="dot"))
    refused = [
        _of_values(outcome, [s.shed_per_s + s.failed_per_s for s in outcome.samples], axis)
        for outcome in _ours_last(outcomes)
    ]
    cores = [_of_values(o, [s.serving_cores for s in o.samples], axis) for o in _ours_last(outcomes)]
    cores.append(_needed(scenario, samples, people, axis))
    whole = [
        _chart("Demand against what is served", "requests/s", served, axis, wide=True),
        _chart("Shed and failed", "requests/s", refused, axis),
        _latency(by_name, scenario, axis),
        _chart("Cores that serve", "", cores, axis),
        _cost(by_name, outcomes[0].clairvoyant_cost_cny, axis),
        _lines(by_name, scenario, axis),
    ]
    for chart in whole:
        chart["layout"]["meta"] = {"keyed": True}
    each = [cores_chart(outcome.policy, scenario, outcome.samples, people, axis) for outcome in outcomes]
    most = max((sample.serving_cores for outcome in outcomes for sample in outcome.samples), default=0)
    for chart in each:
        chart["layout"]["yaxis"] |= {"range": [0, 1.05 * most or 1.0]}
    return [chart for chart in whole if chart["data"]], each


def cores_chart(
    title: str, scenario: Scenario, samples: Sequence[Sample], people: Sequence[float], axis: Axis
) -> Chart:
    """Cores that take traffic, by whose they are, and those that the people need."""
    traces = [
        _area(name, axis.x(samples), [getattr(sample, field) for sample in samples], colour)
        for name, field, colour in KINDS
        if any(getattr(sample, field) for sample in samples)
    ]
    return _chart(title, "cores", [*traces, _needed(scenario, samples, people, axis)], axis)


def _needed(scenario: Scenario, samples: Sequence[Sample], people: Sequence[float], axis: Axis) -> Chart:
    per_core = scenario.service.replica_per_s / scenario.service.replica_cores
    needed = [round(rate / per_core) for rate in people]
    return _line("needed", axis.x(samples), needed, MARK_COLOUR, dash="dot")


def _latency(outcomes: dict[str, Outcome], scenario: Scenario, axis: Axis) -> Chart:
    traces = [
        _of_values(outcome, [sample.p99_ms or None for sample in outcome.samples], axis)
        for outcome in _ours_last(outcomes.values())
    ]
    limit = scenario.slo.p99_ms
    traces.append(_line("the SLO", [0.0, axis.until], [limit, limit], MARK_COLOUR, dash="dot"))
    chart = _chart("Latency, p99", "ms", traces, axis)
    chart["layout"]["yaxis"] |= {"type": "log", "rangemode": "normal", "tickvals": LATENCY_TICKS_MS}
    return chart


def _lines(outcomes: dict[str, Outcome], scenario: Scenario, axis: Axis) -> Chart:
    if not scenario.lines:
        return _chart("", "", [], axis)
    traces = [
        _of_values(outcome, [round(100 * s.line_share, 2) for s in outcome.samples], axis)
        for outcome in _ours_last(outcomes.values())
    ]
    share = 100 * scenario.policy.line_share_max
    traces.append(_line("the fleet's share", [0.0, axis.until], [share, share], MARK_COLOUR, dash="dot"))
    return _chart("Load of the fullest line", "%", traces, axis)


def _cost(outcomes: dict[str, Outcome], bound: float | None, axis: Axis) -> Chart:
    traces = [_of_values(outcome, cost_so_far(outcome.samples), axis) for outcome in _ours_last(outcomes.values())]
    if bound is not None:
        name = "clairvoyant, in all"
        traces.append(_line(name, [0.0, axis.until], [bound, bound], MARK_COLOUR, dash="dot"))
    return _chart("Cost of rented nodes, accumulated", "CNY", traces, axis)


def _ours_last(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """What is drawn last lies on top."""
    return sorted(outcomes, key=lambda outcome: outcome.policy == OURS)


def _of(outcome: Outcome, field: str, axis: Axis) -> Chart:
    return _of_values(outcome, [getattr(sample, field) for sample in outcome.samples], axis)


def _of_values(outcome: Outcome, values: Sequence[float | None], axis: Axis) -> Chart:
    name = outcome.policy
    width = 3 if name == OURS else 1.8
    dash = "dash" if name == "idc-first" else "solid"  # it often lies on ours
    drawn = _line(name, axis.x(outcome.samples), values, COLOURS.get(name, MARK_COLOUR), width=width, dash=dash)
    return drawn | ({"legendrank": 1} if name == OURS else {})


def _line(name: str, x: Sequence[float], y: Sequence[float | None], colour: str, **style: object) -> Chart:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": list(x),
        "y": [None if value is None else round(value, 3) for value in y],
        "line": {"color": colour, "width": 2, **style},
    }


def _area(name: str, x: Sequence[float], y: Sequence[float], colour: str) -> Chart:
    return _line(name, x, y, colour, width=0.5) | {"stackgroup": "all", "fillcolor": colour + "b8"}


def _chart(title: str, unit: str, traces: list[Chart], axis: Axis, *, wide: bool = False) -> Chart:
    opening = [] if axis.opens is None else [(axis.opens, "opening", "right", MARK_COLOUR)]
    faults = [(at, f"<b>{name}</b>", "center", BAD) for at, name in axis.faults]
    plain = {"zeroline": False, "automargin": True, "fixedrange": True}
    return {
        "title": title,
        "unit": unit,
        "wide": wide,
        "data": traces,
        "layout": {
            "xaxis": {**plain, "range": [0, axis.until], "ticksuffix": axis.unit, "nticks": 9},
            "yaxis": {**plain, "rangemode": "tozero", "nticks": 6, "tickformat": "~s" if unit != "ms" else ""},
            "shapes": [vertical(at, colour) for at, _, _, colour in (*opening, *faults)],
            "annotations": list(labels([*opening, *faults] if wide else faults)),
        },
    }
