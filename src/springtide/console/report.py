"""The report of a run: report.json, and report.html, one page that needs nothing else."""

import json
from pathlib import Path

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from springtide.console.charts import charts
from springtide.console.figures import (
    STATUS_HOLDS,
    STATUS_TOO_SLOW,
    VERDICTS,
    Check,
    FleetSecond,
    Mark,
    RunFigures,
    exit_status,
    percent,
    report_document,
    verdict,
)
from springtide.errors import UserError

__all__ = ["Check", "FleetSecond", "Mark", "RunFigures", "exit_status", "verdict", "write_report"]

REPORT_HTML = "report.html"
REPORT_JSON = "report.json"


def write_report(folder: Path, figures: RunFigures) -> None:
    """Write both files into `folder`. Raises UserError when it cannot be written to."""
    document = msgspec.json.format(msgspec.json.encode(report_document(figures)), indent=2)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT_JSON).write_bytes(document + b"\n")
        (folder / REPORT_HTML).write_text(render(figures), encoding="utf-8")
    except OSError as error:
        msg = f"{folder}: the report cannot be written: {error}; choose another folder with --out"
        raise UserError(msg) from error


def render(figures: RunFigures) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("springtide.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    status = exit_status(figures)
    drawn = charts(figures)
    return environment.get_template("report.html").render(
        figures=figures,
        crowd=figures.crowd,
        checks=verdict(figures),
        headline=VERDICTS[status],
        tone={STATUS_HOLDS: "good", STATUS_TOO_SLOW: "slow"}.get(status, "bad"),
        summary=_summary(figures, status),
        tiles=_tiles(figures),
        percent=percent,
        charts=drawn,
        chart_data=_script_json([{"data": chart["data"], "layout": chart["layout"]} for chart in drawn]),
        plotly=Markup(get_plotlyjs()),  # noqa: S704 - the library's own text, made to be put into a page
    )


def _script_json(value: object) -> Markup:
    """JSON that cannot end the script element it stands in."""
    return Markup(json.dumps(value).replace("<", "\\u003c"))  # noqa: S704 - no '<' is left in it


def _summary(figures: RunFigures, status: int) -> str:
    if status == STATUS_HOLDS:
        return "Each acknowledged order is in the ledger once, nothing was oversold, no rented node is left."
    if status == STATUS_TOO_SLOW:
        return "The load generator fell behind its own schedule, so this run says nothing about the product."
    if not figures.scaled:
        shed = percent(figures.crowd.shed_share_at_peak)
        return f"Without scaling, {shed} of the first attempts at the peak were asked to come back later."
    failed = [check.name for check in verdict(figures) if check.judged and not check.ok]
    return "Not as it has to be: " + "; ".join(failed) + "."


def _tiles(figures: RunFigures) -> list[tuple[str, str, str]]:
    """Name, figure, explanation."""
    crowd = figures.crowd
    ready = "–" if figures.ready_before_open_s is None else f"{figures.ready_before_open_s:.1f} s"
    return [
        (
            "Peak",
            f"{crowd.peak_rps:,.0f}/s",
            f"{figures.peak_over_base:,.0f} × the normal {crowd.base_rps:,.0f}/s",
        ),
        ("Requests", f"{crowd.requests:,}", f"{percent(crowd.availability)} answered truthfully and in time"),
        ("Orders", f"{crowd.acknowledged:,}", f"acknowledged; {figures.recorded:,} in the ledger"),
        (
            "Latency",
            f"{crowd.p99_ms:,.1f} ms",
            f"p99; p50 {crowd.p50_ms:,.1f} ms, p99.9 {crowd.p999_ms:,.1f} ms",
        ),
        (
            "Later",
            percent(crowd.shed_share),
            f"of first attempts; {percent(crowd.shed_share_at_peak)} at the peak",
        ),
        ("Replicas", f"{sum(figures.replicas_peak.values())}", _by_zone(figures.replicas_peak) + " at most"),
        ("Cloud share", percent(round(figures.cloud_share_at_peak, 3)), "of the peak's traffic"),
        ("Nodes rented", f"{figures.nodes_rented}", f"{figures.nodes_left} left at the end"),
        ("Ready", ready, "before the opening"),
        (
            "Cost",
            f"{figures.cost_cny:,.2f} CNY",
            f"against {figures.cost_static_peak_cny:,.2f} for the peak all day",
        ),
    ]


def _by_zone(counts: dict[str, int]) -> str:
    return ", ".join(f"{zone} {count}" for zone, count in counts.items())
