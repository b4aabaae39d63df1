"""The charts of a report, as plotly figures in plain JSON; the page sets the colours of text and grid."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from springtide.console.figures import FleetSecond, RunFigures
from springtide.model import Zone, ZoneKind
from springtide.twin.crowd.spec import CrowdSecond

Chart = dict[str, Any]

IDC_COLOURS = ("#2f6f9f", "#5b9bc8", "#8fbfe0", "#1d4e70")
CLOUD_COLOURS = ("#e08a3c", "#f0b274", "#b96a22", "#f6cfa6")
SERIES_COLOURS = ("#2f6f9f", "#e08a3c", "#3f9c78", "#a0629b", "#b0a13a", "#7a7f87")
STATE_COLOURS = {"paid": "#3f9c78", "reserved": "#5b9bc8", "expired": "#9aa0a6", "cancelled": "#c7a24a"}
GOOD, PLAIN, EARLY, BAD, WARN = "#3f9c78", "#9aa0a6", "#c7a24a", "#c8453b", "#e08a3c"
NEAR_S = 15
"""Moments that are this close to one another have their names on either side."""

MARK_COLOUR = "#8a8f98"
LATENCY_TICKS_MS = [round(step * 10.0**power, 1) for power in range(-1, 5) for step in (1, 2, 5)]


def charts(figures: RunFigures) -> list[Chart]:
    """All charts, in the order of the page. Those without a series are left out."""
    made = [
        _demand_and_capacity(figures),
        _latency(figures),
        _answers(figures),
        _stock(figures),
        _orders(figures),
        _by_zone(figures, "Replicas by zone", "replicas", "replicas_by_zone"),
        _by_zone(figures, "Nodes by zone", "nodes", "nodes_by_zone"),
        _cost(figures),
    ]
    return [chart for chart in made if chart["data"]]


def zone_colours(zones: Sequence[Zone]) -> dict[str, str]:
    """Blue tones for the data centre, orange for the cloud."""
    colours: dict[str, str] = {}
    for kind, palette in ((ZoneKind.IDC, IDC_COLOURS), (ZoneKind.CLOUD, CLOUD_COLOURS)):
        names = [zone.name for zone in zones if zone.kind is kind]
        colours |= {name: palette[at % len(palette)] for at, name in enumerate(names)}
    return colours


def _demand_and_capacity(figures: RunFigures) -> Chart:
    colours = zone_colours(figures.zones)
    traces = [
        _area(zone, figures.fleet, [row.capacity_by_zone.get(zone, 0.0) for row in figures.fleet], colours[zone])
        for zone in colours
        if figures.fleet
    ]
    if figures.seconds:
        planned = [row.planned for row in figures.seconds]
        traces += [
            _line("requests sent", figures.seconds, [row.sent for row in figures.seconds], "#c8453b", width=2.5),
            _line("demand planned", figures.seconds, planned, MARK_COLOUR, dash="dot"),
        ]
    return _chart("Demand against capacity", "requests/s", traces, figures, wide=True)


def _latency(figures: RunFigures) -> Chart:
    rows = [row for row in figures.seconds if row.answers]
    traces = [
        _line("p50", rows, [row.p50_ms for row in rows], "#2f6f9f"),
        _line("p99", rows, [row.p99_ms for row in rows], "#e08a3c"),
    ]
    chart = _chart("Latency, from the scheduled send time", "ms", traces if rows else [], figures)
    chart["layout"]["yaxis"] |= {"type": "log", "rangemode": "normal", "tickvals": LATENCY_TICKS_MS}
    return chart


def _answers(figures: RunFigures) -> Chart:
    labels = sorted({label for row in figures.seconds for label in row.answers}, key=_answer_order)
    traces = [
        {
            "type": "bar",
            "name": answer_name(label),
            "x": [row.second for row in figures.seconds],
            "y": [row.answers.get(label, 0) for row in figures.seconds],
            "marker": {"color": answer_colour(label), "line": {"width": 0}},
        }
        for label in labels
    ]
    chart = _chart("Answers by code", "answers/s", traces, figures)
    chart["layout"] |= {"barmode": "stack", "bargap": 0}
    return chart


def answer_name(label: str) -> str:
    """`409 sold_out` → `409 sold out`; `0 timeout` → `no answer: timeout`."""
    status, _, code = label.partition(" ")
    words = code.replace("_", " ")
    return f"no answer: {words}" if status == "0" else f"{status} {words}".rstrip()


_ANSWER_COLOURS = {
    "200 page": "#8fbfe0",
    "200 reserved": "#1f6b50",
    "201 reserved": GOOD,
    "409 sold_out": PLAIN,
    "409 limit_reached": "#6d737b",
    "410 closed": "#4e535a",
    "425 not_open": EARLY,
    "429 rate_limited": WARN,
    "429 not_admitted": "#b96a22",
}


def answer_colour(label: str) -> str:
    """Green sells, grey refuses truthfully, yellow is too early, orange is "later", red is a failure."""
    if label in _ANSWER_COLOURS:
        return _ANSWER_COLOURS[label]
    return BAD if label[0] in "05" else "#a0629b"


def _answer_order(label: str) -> tuple[bool, str]:
    return label.startswith("0"), label


def _stock(figures: RunFigures) -> Chart:
    names = list(figures.fleet[0].stock) if figures.fleet else []
    traces = [
        _line(
            sku,
            figures.fleet,
            [row.stock.get(sku, 0) for row in figures.fleet],
            SERIES_COLOURS[at % len(SERIES_COLOURS)],
        )
        for at, sku in enumerate(names)
    ]
    return _chart("Stock by SKU", "units", traces, figures)


def _orders(figures: RunFigures) -> Chart:
    found = {state for row in figures.fleet for state in row.orders}
    states = [*[state for state in STATE_COLOURS if state in found], *sorted(found - set(STATE_COLOURS))]
    traces = [
        _area(
            state,
            figures.fleet,
            [row.orders.get(state, 0) for row in figures.fleet],
            STATE_COLOURS.get(state, "#a0629b"),
        )
        for state in states
    ]
    return _chart("Orders by state", "orders", traces, figures)


def _by_zone(figures: RunFigures, title: str, unit: str, field: str) -> Chart:
    colours = zone_colours(figures.zones)
    traces = [
        _area(zone, figures.fleet, [getattr(row, field).get(zone, 0) for row in figures.fleet], colours[zone])
        for zone in colours
        if any(getattr(row, field).get(zone) for row in figures.fleet)
    ]
    return _chart(title, unit, traces, figures)


def _cost(figures: RunFigures) -> Chart:
    if not figures.fleet:
        return _chart("", "", [], figures)
    first = figures.fleet[0].second
    per_second = figures.cost_static_peak_cny / 86_400
    static = [round((row.second - first) * per_second, 6) for row in figures.fleet]
    traces = [
        _line("nodes as rented", figures.fleet, [row.cost_cny for row in figures.fleet], "#e08a3c", width=2.5),
        _line("the peak's nodes rented all the time", figures.fleet, static, MARK_COLOUR, dash="dot"),
    ]
    return _chart("Cost of rented nodes, accumulated", "CNY", traces, figures)


def _line(
    name: str,
    rows: Sequence[CrowdSecond] | Sequence[FleetSecond],
    values: Sequence[float],
    colour: str,
    **style: object,
) -> Chart:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [row.second for row in rows],
        "y": list(values),
        "line": {"color": colour, "width": 2, **style},
    }


def _area(name: str, rows: Sequence[FleetSecond], values: Sequence[float], colour: str) -> Chart:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [row.second for row in rows],
        "y": list(values),
        "stackgroup": "all",
        "line": {"color": colour, "width": 0.5, "shape": "hv"},
        "fillcolor": colour + "b8",
    }


def _chart(title: str, unit: str, traces: list[Chart], figures: RunFigures, *, wide: bool = False) -> Chart:
    shapes, annotations = _marks(figures, wide=wide)
    seconds = [*(row.second for row in figures.seconds), *(row.second for row in figures.fleet)]
    axis = {"zeroline": False, "automargin": True, "fixedrange": True}
    return {
        "title": title,
        "unit": unit,
        "wide": wide,
        "data": traces,
        "layout": {
            "xaxis": {
                **axis,
                "range": [min(seconds, default=0), max(seconds, default=1)],
                "ticksuffix": " s",
                "nticks": 9,
            },
            "yaxis": {**axis, "rangemode": "tozero", "nticks": 6, "tickformat": "~g" if unit != "ms" else ""},
            "shapes": shapes,
            "annotations": annotations,
        },
    }


def _marks(figures: RunFigures, *, wide: bool) -> tuple[list[Chart], list[Chart]]:
    """Vertical lines, with their names on the wide chart; faults are numbered, and listed beneath it."""
    moments = [
        (figures.first_node_rented_s, "first node rented"),
        (figures.opens_s, "opening"),
        (figures.last_node_released_s, "nodes back"),
    ]
    known = sorted((second, name) for second, name in moments if second is not None)
    near = {later for (before, _), (later, _) in pairwise(known) if later - before < NEAR_S}
    named = [(second, name, "left" if second in near else "right", MARK_COLOUR) for second, name in known]
    faults = [(fault.second, f"<b>{at}</b>", "center", BAD) for at, fault in enumerate(figures.faults, 1)]
    shapes = [vertical(second, colour) for second, _, _, colour in (*named, *faults)]
    annotations = list(labels([*named, *faults] if wide else faults))
    return shapes, annotations


def vertical(second: float, colour: str) -> Chart:
    """A dashed line at a moment, as a plotly shape."""
    return {
        "type": "line",
        "x0": second,
        "x1": second,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": {"color": colour, "width": 1, "dash": "dash"},
    }


def labels(marks: Iterable[tuple[float, str, str, str]]) -> Iterable[Chart]:
    """Words above moments, as plotly annotations; each mark is a moment, its name, its anchor and its colour."""
    for second, name, anchor, colour in marks:
        yield {
            "x": second,
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "xanchor": anchor,
            "text": name,
            "showarrow": False,
            "font": {"size": 11, "color": colour},
        }
