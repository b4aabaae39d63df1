"""A torture's verdict for people."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from springtide.twin.torture.report import TortureReport

LINES_MAX = 20


def show(report: TortureReport, out: Path, console: Console) -> None:
    """Faults by kind and target, the answers, and what is wrong."""
    table = Table("fault", "target", "counted", "not counted")
    for kind, targets in report.faults.items():
        for target, tally in sorted(targets.items()):
            table.add_row(kind, target, str(tally.counted), str(tally.not_counted or ""))
    console.print(table)
    for kind, reason in report.impossible.items():
        console.print(f"[yellow]no {kind}[/]: {reason}")
    answers = ", ".join(f"{count:,} {name}" for name, count in report.answers.items())
    console.print(f"{report.attempts:,} attempts: {answers}")
    console.print("after it: " + ", ".join(f"{count:,} {name}" for name, count in report.actions.items()))
    console.print("restocks: " + ", ".join(f"{count} answered {status}" for status, count in report.restocks.items()))
    for line in problems(report)[:LINES_MAX]:
        console.print(f"[red]✗[/] {line}", highlight=False)
    verdict = "[green]nothing is wrong[/]" if report.holds else f"[red]it does not hold[/]; the history is in {out}"
    console.print(
        f"{report.faults_counted} of {report.faults_wanted} faults, {report.acknowledged:,} orders acknowledged, "
        f"{report.orders:,} in the ledger, {report.duration_s:.0f} s, seed {report.seed}: {verdict}"
    )


def problems(report: TortureReport) -> list[str]:
    """What is wrong, a line each."""
    found = report.findings
    lines = [f"{report.faults_counted} faults counted"] if report.faults_counted < report.faults_wanted else []
    if found.oversold:
        lines.append(f"oversold: {found.oversold} units")
    lines += [f"stock equation of {sku}: {units:+} units" for sku, units in found.differences.items() if units]
    for name in ("lost", "duplicates", "limits", "unasked", "untruthful", "payments", "restocks", "left_behind"):
        lines += [f"{name.replace('_', ' ')}: {line}" for line in getattr(found, name)]
    return lines
