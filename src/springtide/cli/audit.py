"""`springtide audit`: the proof, for a sale on engines that are running."""

from contextlib import AsyncExitStack

from rich.console import Console
from rich.table import Table

from springtide.drivers.postgres import PostgresLedger
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey import ValkeyInventory
from springtide.errors import UserError
from springtide.sale.audit import AuditReport, audit

PORT_MAX = 65_535


async def run_audit(sale: str, inventory: str, ledger: str, wait_s: float) -> int:
    """0 when everything is proved, 1 when it is not. Raises UserError for an address that is none."""
    host, port = parse_address(inventory)
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        valkey = await ValkeyInventory.connect(host, port, clock)
        stack.push_async_callback(valkey.close)
        postgres = await PostgresLedger.connect(ledger, clock)
        stack.push_async_callback(postgres.close)
        report = await audit(valkey, postgres, sale, clock, wait_s)
    show(report, Console())
    return 0 if report.holds else 1


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`. Raises UserError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) <= PORT_MAX:
        msg = f"--inventory {text}: not an address; write HOST:PORT, for example 127.0.0.1:6379"
        raise UserError(msg)
    return host, int(port)


def show(report: AuditReport, console: Console) -> None:
    """Print the equation of each SKU, and what does not hold."""
    table = Table("SKU", "stock", "reserved", "paid", "returning", "initial", "restocked", "difference")
    for row in report.skus:
        totals = row.totals
        units = (row.stock, totals.reserved, totals.paid, totals.returning, totals.initial, totals.restocked)
        table.add_row(totals.sku, *(f"{one:,}" for one in units), f"{row.difference:+,}" if row.difference else "0")
    console.print(table)
    if not report.settled:
        console.print("[red]The ledger had not reached the end of the journal[/]; run the recorder, or raise --wait-s.")
    for text in (*report.duplicates, *report.limit_violations, *report.explanations):
        console.print(f"[red]✗[/] {text}")
    verdict = "[green]proved[/]" if report.holds else "[red]not proved[/]"
    console.print(f"{report.sale}: {report.orders:,} orders, oversold {report.oversold}: {verdict}")
