"""`springtide simulate SCENARIO --compare` and `--report FILE`: the same sale under other policies, and the pages.

Exit status of a comparison: 0 done, 1 our decisions broke an invariant, 2 bad input, 130 Ctrl-C (what is finished is
told, and written).
"""

import math
import sys
from contextlib import nullcontext
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from springtide.cli.running import EXIT_INTERRUPTED
from springtide.cli.simulate_show import Progress
from springtide.drivers.system import SystemClock
from springtide.errors import UserError
from springtide.twin.simulation.approaches import COMPARED
from springtide.twin.simulation.compare import Compared, Comparison, compare
from springtide.twin.simulation.outcome import Outcome
from springtide.twin.simulation.scenario import Scenario

COMPARISON_HTML = "comparison.html"
COMPARISON_JSON = "comparison.json"


class CompareOptions(msgspec.Struct, frozen=True):
    """`out` is the folder of page and JSON."""

    seed: int | None
    out: Path
    as_json: bool = False


def run_compare(scenario: Scenario, counts: list[float] | None, options: CompareOptions) -> int:
    """Run every policy, tell, and write. Raises UserError when the folder cannot be written to."""
    clock = SystemClock()
    began_s = clock.monotonic_s()
    with CompareProgress(scenario, len(COMPARED)) if sys.stderr.isatty() else nullcontext() as bar:
        comparison = compare(
            scenario,
            options.seed,
            counts=counts,
            on_begin=None if bar is None else bar.begin,
            on_sample=None if bar is None else bar.sample,
        )
    comparison = msgspec.structs.replace(comparison, wall_s=round(clock.monotonic_s() - began_s, 3))
    _write(options.out, scenario, comparison, counts)
    if options.as_json:
        sys.stdout.write(msgspec.json.encode(comparison).decode() + "\n")
    else:
        show_comparison(comparison, Console())
    if comparison.interrupted:
        sys.stderr.write(f"springtide: stopped; left out: {', '.join(comparison.left_out)}\n")
        return EXIT_INTERRUPTED
    return int(any(row.outcome.breaches for row in comparison.rows))


def write_report(file: Path, scenario: Scenario, outcome: Outcome, counts: list[float] | None) -> None:
    """Write the page of one run. Raises UserError when it cannot be written."""
    from springtide.console.simulation_report import write_single  # noqa: PLC0415 - plotly is loaded for a page only

    write_single(file, scenario, outcome, counts)
    sys.stderr.write(f"springtide: the report is in {file}\n")


def _write(folder: Path, scenario: Scenario, comparison: Comparison, counts: list[float] | None) -> None:
    from springtide.console.simulation_report import write_comparison  # noqa: PLC0415 - plotly is loaded for a page only

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / COMPARISON_JSON).write_bytes(msgspec.json.encode(comparison) + b"\n")
    except OSError as error:
        msg = f"{folder}: the comparison cannot be written: {error.strerror}; choose another folder with --out"
        raise UserError(msg) from error
    if not comparison.rows:
        return
    write_comparison(folder / COMPARISON_HTML, scenario, comparison, counts)
    sys.stderr.write(f"springtide: the report is in {folder / COMPARISON_HTML}\n")


class CompareProgress(Progress):
    """A bar on standard error over all policies, with what stands in the one under way."""

    def __init__(self, scenario: Scenario, policies: int) -> None:
        """Nothing is simulated yet."""
        super().__init__(scenario, policies)
        self._each_s = scenario.duration_s
        self._begun = False

    def begin(self, policy: str) -> None:
        """The next policy."""
        if self._begun:
            self._done_s += self._each_s
        self._begun = True
        self._bar.update(self._task, completed=self._done_s, description=policy)


def show_comparison(comparison: Comparison, console: Console) -> None:
    """A line for each policy, then what our decisions broke."""
    calendar = "" if comparison.calendar else ", without the calendar"
    console.print(f"{comparison.scenario}, seed {comparison.seed}{calendar}", highlight=False)
    if not comparison.rows:
        console.print("nothing was run to the end", highlight=False)
        return
    console.print(_service(comparison.rows))
    console.print()
    console.print(_elasticity(comparison.rows))
    console.print(LEGEND, style="dim", highlight=False)
    for row in comparison.rows:
        for breach in row.outcome.breaches[:10]:
            console.print(f"[red]✗[/] {breach.at_s:,.0f} s: {breach.invariant}: {breach.detail}", highlight=False)


LEGEND = (
    "ready s: until the wanted cores served, from the opening. SLO s: seconds that violate it. rented: cores at most. "
    "left: nodes at the end.\nbound: cost against the clairvoyant's. under, over: by how much too few or too many "
    "replicas served; time: for how much of it."
)


def _table(title: str, names: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _service(rows: tuple[Compared, ...]) -> Table:
    table = _table("service and cost", ("ready s", "served", "SLO s", "p99 ms", "rented", "left", "CNY", "bound"))
    for row in rows:
        each = row.outcome
        table.add_row(
            each.policy,
            "never" if each.ready_s is None else f"{each.ready_s:+,.0f}",
            f"{math.floor(each.availability * 1e5) / 1e3:.3f}%",  # never rounded up to all
            f"{each.violation_s:,.0f}",
            f"{each.p99_worst_ms:,.0f}",
            f"{each.cores_peak:,}",
            f"{each.nodes_left:,}",
            f"{each.cost_cny:,.0f}",
            "" if each.cost_ratio is None else f"{each.cost_ratio:.3f}",
        )
    return table


def _elasticity(rows: tuple[Compared, ...]) -> Table:
    table = _table(
        "elasticity (SPEC RG), and the fullest line, %",
        ("under", "under time", "over", "over time", "instability", "line"),
    )
    for row in rows:
        found = row.elastic
        figures = (
            found.under_accuracy,
            found.under_share,
            found.over_accuracy,
            found.over_share,
            found.instability,
        )
        line = f"{100 * row.outcome.line_share_max:,.0f}"
        table.add_row(row.outcome.policy, *(f"{figure:,.1f}" for figure in figures), line)
    return table
