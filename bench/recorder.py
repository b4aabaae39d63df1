"""Orders a second from the journal into the ledger, beside a plain COPY of the same rows.

The journal is filled first, as counters fill it: batches of 64 purchases, one entry each. The recorder then reads,
records (idempotent, `synchronous_commit=on`) and acknowledges all of it. COPY puts the same rows into a table with the
same columns and indexes, in pieces of the recorder's size, each durable; and into one without indexes, all at once.
"""

import asyncio
import time
from collections.abc import Sequence

import asyncpg
import msgspec

from bench import engines
from bench.engines import CLOCK, HOUR_MS, SALE, SKU
from bench.rows import Row, Skipped, compared, median_row
from springtide.drivers.system import SystemIds
from springtide.model import ReserveRequest
from springtide.sale.recorder import ROWS_WANTED, Recorder

FLOOR_COPY = 0.5
ORDERS = 100_000
BATCH = 64

Records = Sequence[tuple[object, ...]]


class Measured(msgspec.Struct, frozen=True):
    """Orders a second."""

    recorder: float
    copy_indexed: float
    copy_once: float


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    """The rows of this bench."""
    measured = [asyncio.run(_one_run()) for _ in range(runs)]
    recorder = median_row("recorder, journal to ledger", "orders/s", [run.recorder for run in measured])
    indexed = median_row("COPY, same indexes", "orders/s", [run.copy_indexed for run in measured])
    once = median_row("COPY, no indexes, at once", "orders/s", [run.copy_once for run in measured])
    return [compared(recorder, indexed, FLOOR_COPY), compared(recorder, once, None), indexed, once], []


async def _one_run() -> Measured:
    async with engines.store(None) as store, engines.database() as database:
        await _sell(store)
        recorder = Recorder(store.inventory, database.ledger, CLOCK, "bench")
        began_s = time.perf_counter()
        while await recorder.drain_once():
            pass
        recorded = ORDERS / (time.perf_counter() - began_s)
        if recorder.figures.recorded != ORDERS:
            raise RuntimeError(f"{ORDERS} orders were sold, but {recorder.figures.recorded} recorded")
        connection = await asyncpg.connect(database.dsn)
        try:
            return Measured(recorded, *await _copied(connection))
        finally:
            await connection.close()


async def _sell(store: engines.Store) -> None:
    deadline_ms = CLOCK.now_ms() + HOUR_MS
    # Ids as the counter's: a random prefix for a replica, then a count.
    prefix = SystemIds().new("")
    requests = [
        ReserveRequest(f"b{n:08d}", f"k{n:015d}", SKU, 1, f"{prefix}-{n:06x}", 1, deadline_ms) for n in range(ORDERS)
    ]
    for at in range(0, ORDERS, BATCH):
        await store.inventory.reserve(SALE, 0, requests[at : at + BATCH])


async def _copied(connection: asyncpg.Connection) -> tuple[float, float]:
    """Orders a second of both kinds of COPY, of the rows that the recorder has just written."""
    rows: Records = [tuple(row) for row in await connection.fetch("SELECT * FROM orders")]
    await connection.execute("CREATE TABLE copied (LIKE orders INCLUDING ALL)")
    await connection.execute("CREATE TABLE copied_plain (LIKE orders)")
    indexed = await _copy(connection, "copied", [rows[at : at + ROWS_WANTED] for at in range(0, ORDERS, ROWS_WANTED)])
    return indexed, await _copy(connection, "copied_plain", [rows])


async def _copy(connection: asyncpg.Connection, table: str, pieces: Sequence[Records]) -> float:
    began_s = time.perf_counter()
    for piece in pieces:
        await connection.copy_records_to_table(table, records=piece)
    return ORDERS / (time.perf_counter() - began_s)
