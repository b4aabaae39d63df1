"""`springtide audit`: the proof, for a sale on engines that are running."""

from contextlib import AsyncExitStack

import msgspec
from rich.console import Console
from rich.table import Table

from springtide.cli.inventories import open_inventory
from springtide.drivers.postgres import PostgresLedger
from springtide.drivers.system import SystemClock
from springtide.sale.audit import AuditReport, audit

LINES_MAX = 20
"""Findings of one kind that are printed; `--json` has more."""


async def run_audit(sale: str, inventory: str, ledger: str, wait_s: float, *, as_json: bool = False) -> int:
    """0 when everything is proved, 1 when it is not. Raises UserError for an address that is none."""
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        valkey = await open_inventory(inventory, clock)
        stack.push_async_callback(valkey.close)
        postgres = await PostgresLedger.connect(ledger, clock)
        stack.push_async_callback(postgres.close)
        report = await audit(valkey, postgres, sale, clock, wait_s)
    if as_json:
        print(to_json(report))  # noqa: T201 - the command's output
    else:
        show(report, Console())
    return 0 if report.holds else 1


def to_json(report: AuditReport) -> str:
    """The report and its verdict, `holds`, as one JSON object."""
    return msgspec.json.encode(msgspec.to_builtins(report) | {"holds": report.holds}).decode()


def show(report: AuditReport, console: Console) -> None:
    """Print the equation of each SKU, and what does not hold."""
    table = Table("SKU", "stock", "reserved", "paid", "returning", "initial", "restocked", "difference")
    for row in report.skus:
        totals = row.totals
        units = (row.stock, totals.reserved, totals.paid, totals.returning, totals.initial, totals.restocked)
        table.add_row(totals.sku, *(f"{one:,}" for one in units), f"{row.difference:+,}" if row.difference else "0")
    console.print(table)
    for text in remarks(report):
        console.print(text)
    kinds = (report.duplicates, report.conflicts, report.limit_violations, report.explanations)
    for found in kinds:
        for text in found[:LINES_MAX]:
            console.print(f"[red]✗[/] {text}")
        if len(found) > LINES_MAX:
            console.print(f"  and {len(found) - LINES_MAX:,} more; --json names them")
    verdict = "[green]proved[/]" if report.holds else "[red]not proved[/]"
    console.print(f"{report.sale}: {report.orders:,} orders, oversold {report.oversold}: {verdict}")


def remarks(report: AuditReport) -> list[str]:
    """What limits the proof, in words."""
    found = []
    if not report.settled:
        found.append("[red]The ledger had not reached the end of the journal[/]; run the recorder, or raise --wait-s.")
    if report.method == "moving":
        found.append("The sale was moving: proved up to the cut, to the millisecond. Audit again when it rests.")
    if report.moving:
        units = ", ".join(f"{units:,} of {sku}" for sku, units in report.moving.items())
        found.append(f"In stock are {units} that were between two buckets.")
    if len(report.epochs) > 1:
        found.append(
            f"[red]Buckets and ledger have the epochs {', '.join(map(str, report.epochs))}[/]: a rebuild was cut off; "
            f"run `springtide sale rebuild {report.sale}` again."
        )
    return found
