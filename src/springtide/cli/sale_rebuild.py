"""`springtide sale rebuild`: a sale whose inventory was lost, put back from the ledger."""

import asyncio
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import structlog
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from springtide.cli.inventories import open_inventory
from springtide.drivers.postgres import PostgresLedger
from springtide.drivers.system import SystemClock
from springtide.sale.rebuild import RebuildOptions, Rebuilt, rebuild


def rebuild_sale(
    sale: Annotated[str, Parameter(help="The sale's id.")],
    /,
    *,
    inventory: Annotated[str, Parameter(help="HOST:PORT of Valkey, empty or with what survived.")],
    ledger: Annotated[str, Parameter(help="PostgreSQL's URL.")],
    drain_s: Annotated[float, Parameter(help="How long the recording of surviving journals may take.")] = 60.0,
    stay_paused: Annotated[bool, Parameter(help="Do not open the sale again.")] = False,
    json: Annotated[bool, Parameter(help="The result as JSON on standard output.")] = False,
) -> int:
    """Put a sale back whose inventory was lost: from the ledger, and from what journals survived.

    It says for how many seconds acknowledged purchases could be missing. Run it again when it was cut off.
    """
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(sys.stderr))  # standard output is the result's
    options = RebuildOptions(drain_s=drain_s, stay_paused=stay_paused)
    return asyncio.run(run_rebuild(sale, inventory, ledger, options, as_json=json))


async def run_rebuild(sale: str, inventory: str, ledger: str, options: RebuildOptions, *, as_json: bool = False) -> int:
    """0 when the sale is back. Raises UserError for an address that is none and a sale that cannot be rebuilt."""
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        valkey = await open_inventory(inventory, clock, replicas_acked=0)
        stack.push_async_callback(valkey.close)
        postgres = await PostgresLedger.connect(ledger, clock)
        stack.push_async_callback(postgres.close)
        done = await rebuild(valkey, postgres, sale, clock, options)
    if as_json:
        print(msgspec.json.encode(done).decode())  # noqa: T201 - the command's output
    else:
        show(done, Console())
    return 0


def show(done: Rebuilt, console: Console) -> None:
    """Print what was done, what may be missing, and what to do next."""
    table = Table("SKU", "stock now")
    for sku, units in done.stock.items():
        table.add_row(sku, f"{units:,}")
    console.print(table)
    console.print(
        f"{done.sale} is back under epoch {done.epoch}: {done.orders:,} orders in {done.buckets} buckets, "
        f"{done.recorded:,} of them from surviving journals; {done.restocks} open restocks are in stock."
    )
    console.print(missing(done))
    if done.oversold:
        console.print(f"[red]{done.oversold:,} units are promised beyond what there was[/]: the audit names the SKUs.")
    if done.conflicts:
        console.print(f"[red]{done.conflicts:,} acknowledged orders are in conflict[/]: the audit names them.")
    if not done.opened:
        console.print(f"It is paused: `springtide sale resume {done.sale}` lets it sell.")
    console.print(f"Prove it: springtide audit {done.sale} --inventory HOST:PORT --ledger URL")


def missing(done: Rebuilt) -> str:
    """For how long acknowledged purchases could be missing, in words."""
    if done.at_risk_from_ms is None:
        return "No acknowledged purchase is missing: all buckets had their journals."
    since = datetime.fromtimestamp(done.at_risk_from_ms / 1000, UTC).isoformat(timespec="milliseconds")
    lost = done.buckets - len(done.survived)
    return (
        f"[yellow]{lost} of {done.buckets} buckets were lost.[/] Purchases that were acknowledged there in the last "
        f"{done.at_risk_s:,.3f} s before the loss was noticed, since {since}, could be missing; none before that is."
    )
