"""How a simulation looks in a terminal: how far it is, and what came of it."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from springtide.twin.simulation.outcome import Outcome, Sample
from springtide.twin.simulation.scenario import Scenario

LINES_MAX = 10
"""Alerts and breaches that are shown; all of them are in the JSON."""


class Progress:
    """A bar on standard error, with what stands at the moment that has been simulated."""

    def __init__(self, scenario: Scenario, runs: int = 1) -> None:
        """Nothing is simulated yet, of so many runs."""
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[now]}"))
        self._bar = Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(scenario.name, total=runs * scenario.duration_s, now="")
        self._done_s = 0

    def sample(self, sample: Sample) -> None:
        """So far."""
        now = f"{sample.demand_per_s:,.0f}/s on {sample.serving_cores:,} cores"
        self._bar.update(self._task, completed=self._done_s + sample.at_s, now=now)

    def __enter__(self) -> Self:
        """Show it."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take it away."""
        self._bar.stop()


def show(scenario: Scenario, outcome: Outcome, console: Console) -> None:
    """The figures as a table, then what went wrong and what the decisions had to say."""
    until = "" if not outcome.interrupted else f", the first {outcome.until_s:,.0f} s of {scenario.duration_s:,} s"
    calendar = "" if outcome.calendar else ", without the calendar"
    table = Table(
        title=f"{outcome.scenario}: {outcome.policy}, seed {outcome.seed}{calendar}{until}", show_header=False
    )
    table.add_column()
    table.add_column(justify="right")
    for name, value in figures(outcome):
        table.add_row(name, value)
    console.print(table)
    for breach in outcome.breaches[:LINES_MAX]:
        console.print(f"[red]✗[/] {breach.at_s:,.0f} s: {breach.invariant}: {breach.detail}", highlight=False)
    for alert in outcome.alerts[:LINES_MAX]:
        again = f" ({alert.times} times)" if alert.times > 1 else ""
        console.print(f"[yellow]![/] {alert.at_s:,.0f} s: {alert.text}{again}", highlight=False)


def figures(outcome: Outcome) -> list[tuple[str, str]]:
    """What is said of an outcome, each with its name."""
    ratio = outcome.cost_ratio
    bound = "" if outcome.clairvoyant_cost_cny is None else f"{outcome.clairvoyant_cost_cny:,.0f} CNY"
    return [
        (f"{outcome.cores_wanted:,} cores serve", _ready(outcome.ready_s)),
        ("availability", f"{outcome.availability:.4%}"),
        ("requests", f"{outcome.requests:,.0f}"),
        ("  of them retries", f"{outcome.retries:,.0f}"),
        ("  orders acknowledged", f"{outcome.acknowledged:,.0f}"),
        ("  sold out", f"{outcome.sold_out:,.0f}"),
        ("  shed politely", f"{outcome.shed:,.0f}"),
        ("  failed", f"{outcome.failed:,.0f}"),
        ("seconds that violate the SLO", f"{outcome.violation_s:,.0f}"),
        ("most rented cores serving", f"{outcome.cores_peak:,}"),
        ("nodes rented, and left at the end", f"{outcome.nodes_rented:,}, {outcome.nodes_left:,}"),
        ("largest share of a line", f"{outcome.line_share_max:.0%}"),
        ("cost", f"{outcome.cost_cny:,.0f} CNY"),
        ("the clairvoyant's", bound),
        ("cost against it", "" if ratio is None else f"{ratio:.3f}"),
        ("wall time", f"{outcome.wall_s:.1f} s"),
    ]


def _ready(ready_s: float | None) -> str:
    if ready_s is None:
        return "never"
    return f"{ready_s:,.0f} s after the rise began" if ready_s > 0 else f"{-ready_s:,.0f} s before the opening"
