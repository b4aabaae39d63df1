"""The page of a simulation, or of a comparison of policies: one HTML file that needs nothing else."""

import json
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from springtide.console.charts import Chart
from springtide.console.simulation_charts import COLOURS, comparison_charts, single_charts
from springtide.errors import UserError
from springtide.twin.simulation.approaches import ABOUT
from springtide.twin.simulation.compare import Compared, Comparison
from springtide.twin.simulation.outcome import Outcome
from springtide.twin.simulation.scenario import Scenario

ALERTS_SHOWN = 20
"""Alerts and breaches on the page; all of them are in the JSON."""

Tile = tuple[str, str, str]


def write_single(file: Path, scenario: Scenario, outcome: Outcome, counts: Sequence[float] | None = None) -> None:
    """Write the page of one run. Raises UserError when it cannot be written."""
    _write(file, render_single(scenario, outcome, counts))


def write_comparison(
    file: Path, scenario: Scenario, comparison: Comparison, counts: Sequence[float] | None = None
) -> None:
    """Write the page of a comparison. Raises UserError when it cannot be written."""
    _write(file, render_comparison(scenario, comparison, counts))


def _write(file: Path, page: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        msg = f"{file}: the report cannot be written: {error.strerror}; name another place"
        raise UserError(msg) from error


def render_single(scenario: Scenario, outcome: Outcome, counts: Sequence[float] | None = None) -> str:
    """The page of one run."""
    good = not outcome.breaches
    until = f"Stopped after {outcome.until_s:,.0f} of {scenario.duration_s:,} s. " if outcome.interrupted else ""
    headline = (
        f"{percent(outcome.availability)} of {outcome.requests:,.0f} requests were answered as they should be"
        if good
        else f"{len(outcome.breaches)} invariants were broken"
    )
    return _render(
        title=scenario.name,
        kicker=f"{outcome.policy}, seed {outcome.seed}" + ("" if outcome.calendar else ", without the calendar"),
        about=scenario.about,
        tone="good" if good and not outcome.violation_s else "slow" if good else "bad",
        headline=headline,
        summary=until + _violated(outcome.violation_s),
        tiles=single_tiles(outcome),
        tables=[],
        charts=single_charts(scenario, outcome, counts),
        each=[],
        faults=_faults(scenario),
        said=_said(outcome),
        notes=[CORES_NOTE, COST_NOTE],
    )


def render_comparison(scenario: Scenario, comparison: Comparison, counts: Sequence[float] | None = None) -> str:
    """The page of a comparison; also with no policy that was run to the end."""
    outcomes = [row.outcome for row in comparison.rows]
    charts, each = comparison_charts(scenario, outcomes, counts)
    headline, summary = verdict(comparison)
    return _render(
        title=f"{scenario.name}: {len(outcomes)} policies",
        kicker=f"comparison, seed {comparison.seed}" + ("" if comparison.calendar else ", without the calendar"),
        about=scenario.about,
        tone="slow" if comparison.interrupted or not outcomes else "good",
        headline=headline,
        summary=summary,
        tiles=[],
        tables=[service_table(comparison), elasticity_table(comparison)] if outcomes else [],
        charts=charts,
        each=each,
        faults=_faults(scenario),
        said=[],
        notes=[CORES_NOTE, COST_NOTE, POLICIES_NOTE, SPEC_NOTE],
    )


CORES_NOTE = (
    "Cores follow from the demand: a request takes a stated time of a core over its whole call tree, and replicas are "
    "run at up to a stated load. “People who come” are without those who come again after they were refused; what is "
    "served counts everybody."
)
COST_NOTE = (
    "Cost is the bill of rented machines alone: the data centre is paid for in any case. It is set against that of a "
    "clairvoyant, who knows demand and stock beforehand, has the same lead times, serves everybody and keeps no "
    "headroom; a policy that leaves people unserved can cost less than he does."
)
POLICIES_NOTE = (
    "Springtide keeps its base in the data centre, has the spike in the cloud, and uses spare room in the data centre "
    "last. Idc-first differs only where the base leaves room in the data centre, cloud-first has no base there, and "
    "idc-only rents nothing; all four are the same decisions under other settings. Static-peak, HPA and KEDA count "
    "replicas; machines for them are rented at once, the cheapest first, at the next offer where one is sold out, and "
    "given back when they are empty: better than a node autoscaler does it. They keep no room for the loss of a zone, "
    "and take all of a line, of which our decisions leave a share to others. HPA and KEDA have fast rates, a short "
    "window and our headroom; KEDA's cron window begins as far ahead of an event as our own horizon."
)
SPEC_NOTE = (
    "Elasticity as the SPEC Research Group defines it, relative to the demand: by how much too few, or too many, "
    "replicas served on average; the share of the time in which they were too few, or more than needed; and the share "
    "of minutes in which supply and demand did not move in the same direction. The data centre counts as supply."
)


def percent(share: float) -> str:
    """A share as people read it, never rounded up to all."""
    if share >= 1.0:
        return "100%"
    return f"{min(share, 0.99999):.3%}" if share > 0.99 else f"{share:.1%}"  # noqa: PLR2004 - near all, digits matter


def ready(ready_s: float | None) -> str:
    """When the wanted cores served."""
    if ready_s is None:
        return "never"
    return f"{ready_s:,.0f} s after" if ready_s > 0 else f"{-ready_s:,.0f} s before"


def ratio(outcome: Outcome) -> str:
    """The cost against the clairvoyant's."""
    return "–" if outcome.cost_ratio is None else f"{outcome.cost_ratio:.2f} ×"


def single_tiles(outcome: Outcome) -> list[Tile]:
    """Name, figure, explanation."""
    bound = outcome.clairvoyant_cost_cny
    against = "rented machines" if bound is None else f"{ratio(outcome)} the clairvoyant's {bound:,.0f}"
    return [
        ("Ready", ready(outcome.ready_s), f"the opening, {outcome.cores_wanted:,} cores"),
        ("Requests", _short(outcome.requests), f"{_short(outcome.retries)} of them came again"),
        ("Orders", _short(outcome.acknowledged), f"acknowledged; {_short(outcome.sold_out)} told “sold out”"),
        ("Refused", _short(outcome.shed), f"politely; {_short(outcome.failed)} failed"),
        ("SLO violated", f"{outcome.violation_s:,.0f} s", f"worst p99 {outcome.p99_worst_ms:,.0f} ms"),
        ("Rented cores", f"{outcome.cores_peak:,}", "at most, serving at once"),
        ("Nodes rented", f"{outcome.nodes_rented:,}", f"{outcome.nodes_left:,} left at the end"),
        ("Orders to the cloud", f"{outcome.orders_refused:,}", "brought nothing"),
        ("Fullest line", f"{outcome.line_share_max:.0%}", "at most"),
        ("Cost", f"{outcome.cost_cny:,.0f} CNY", against),
    ]


def verdict(comparison: Comparison) -> tuple[str, str]:
    """What the comparison says, whoever it is good for."""
    left_out = f"Stopped early; left out: {', '.join(comparison.left_out)}." if comparison.left_out else ""
    if not comparison.rows:
        return "Nothing was run to the end", left_out
    kept = sorted(
        (row.outcome for row in comparison.rows if not row.outcome.violation_s), key=lambda each: each.cost_cny
    )
    if not kept:
        least = min((row.outcome for row in comparison.rows), key=lambda each: each.violation_s)
        said = f"No policy kept the SLO all the time; {least.policy} violated it least, for {least.violation_s:,.0f} s"
        return said, left_out
    names = ", ".join(f"{each.policy} {each.cost_cny:,.0f} CNY" for each in kept)
    count = f"{len(kept)} of {len(comparison.rows)} policies kept the SLO all the time"
    first = " and ".join(each.policy for each in kept if each.cost_cny == kept[0].cost_cny)
    return f"{count}; at the least cost {first}", f"{names}. {left_out}".strip()


def service_table(comparison: Comparison) -> dict[str, object]:
    """What buyers had, and what it cost."""
    heads = [
        "",
        "Ready",
        "Availability",
        "SLO violated",
        "Worst p99",
        "Rented cores",
        "Nodes left",
        "Line",
        "Cost",
        "To bound",
    ]
    rows = []
    for row in comparison.rows:
        each = row.outcome
        cells = [
            ready(each.ready_s),
            percent(each.availability),
            f"{each.violation_s:,.0f} s",
            f"{each.p99_worst_ms:,.0f} ms",
            f"{each.cores_peak:,}",
            f"{each.nodes_left:,}",
            f"{each.line_share_max:.0%}",
            f"{each.cost_cny:,.0f} CNY",
            ratio(each),
        ]
        rows.append(_row(row, cells, _about(row, comparison)))
    return {"title": "Service and cost", "heads": heads, "rows": rows}


def elasticity_table(comparison: Comparison) -> dict[str, object]:
    """The SPEC RG metrics, all in percent."""
    heads = ["", "Too few, by", "Too few, of the time", "Too many, by", "Too many, of the time", "Instability"]
    rows = []
    for row in comparison.rows:
        found = row.elastic
        figures = (
            found.under_accuracy,
            found.under_share,
            found.over_accuracy,
            found.over_share,
            found.instability,
        )
        rows.append(_row(row, [f"{figure:,.1f}%" for figure in figures]))
    return {"title": "Elasticity", "heads": heads, "rows": rows}


def _row(row: Compared, cells: list[str], about: str = "") -> dict[str, object]:
    name = row.outcome.policy
    return {"name": name, "about": about, "colour": COLOURS.get(name, ""), "cells": cells}


def _about(row: Compared, comparison: Comparison) -> str:
    same = twin_of(row, comparison)
    about = ABOUT.get(row.outcome.policy, "")
    return f"{about}; here it does what {same} does" if same else about


def twin_of(row: Compared, comparison: Comparison) -> str:
    """The policy before it that did the very same; empty when there is none."""
    for other in comparison.rows:
        if other is row:
            return ""
        if other.outcome.samples == row.outcome.samples:
            return other.outcome.policy
    return ""


def _violated(seconds: float) -> str:
    return f"The SLO was violated for {seconds:,.0f} s." if seconds else "No second violated the SLO."


def _faults(scenario: Scenario) -> list[str]:
    return [
        f"{fault.at_s:,.0f} s: {fault.kind.value.replace('_', ' ')}"
        + (f" {fault.target}" if fault.target else "")
        + (f", {fault.amount:g}" if fault.amount else "")
        + f", for {fault.lasts_s:,.0f} s"
        for fault in sorted(scenario.faults, key=lambda fault: fault.at_s)
    ]


def _said(outcome: Outcome) -> list[tuple[str, str]]:
    found = [("bad", f"{each.at_s:,.0f} s: {each.invariant}: {each.detail}") for each in outcome.breaches]
    found += [
        ("slow", f"{each.at_s:,.0f} s: {each.text}" + (f" ({each.times:,} times)" if each.times > 1 else ""))
        for each in outcome.alerts
    ]
    return found[:ALERTS_SHOWN]


def _short(count: float) -> str:
    """1,234 or 3.01 billion."""
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:,.2f} {name}"
    return f"{count:,.0f}"


def _render(**values: object) -> str:
    environment = Environment(
        loader=PackageLoader("springtide.console"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    charts: list[Chart] = [*values["charts"], *values["each"]]  # type: ignore[misc] # lists of charts by their names
    data = json.dumps([{"data": chart["data"], "layout": chart["layout"]} for chart in charts])
    return environment.get_template("simulation.html").render(
        **values,
        chart_data=Markup(data.replace("<", "\\u003c")),  # noqa: S704 - no '<' is left in it
        plotly=Markup(get_plotlyjs()),  # noqa: S704 - the library's own text, made to be put into a page
    )
