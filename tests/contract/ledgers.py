"""What the contract suites of the ledger share: both ledgers, a small sale, its orders and payments."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg

from springtide.drivers.embedded_postgres import EmbeddedPostgres, start_postgres
from springtide.drivers.memory.ledger import MemoryLedger
from springtide.drivers.postgres import PostgresLedger, migrate
from springtide.drivers.system import SystemClock
from springtide.model import Payment, Reservation, Sale, Sku
from springtide.ports import Ledger

PRICE_FEN = 500
TABLES = (
    "sales, skus, orders, payments, stock_returns, journal_positions, restocks, api_keys, token_ring, order_conflicts"
)
SALE = Sale(
    sale="live",
    title="Live",
    skus=(Sku("tea", "Tea", PRICE_FEN, 100, per_buyer_max=9), Sku("cup", "Cup", 900, 50)),
    opens_ms=0,
    closes_ms=2_000_000_000_000,
    hold_ms=60_000,
    buckets=2,
)


@contextmanager
def started_server() -> Iterator[EmbeddedPostgres]:
    """For a fixture of a module."""
    server = asyncio.run(start_postgres(SystemClock()))
    try:
        asyncio.run(migrate(server.dsn))
        yield server
    finally:
        asyncio.run(server.stop())


@asynccontextmanager
async def empty_ledger(kind: str, server: EmbeddedPostgres) -> AsyncIterator[Ledger]:
    """`memory` or `postgres`, with nothing in it."""
    made: Ledger
    if kind == "memory":
        made = MemoryLedger(SystemClock())
    else:
        connection = await asyncpg.connect(server.dsn)
        await connection.execute(f"TRUNCATE {TABLES}")
        await connection.close()
        made = await PostgresLedger.connect(server.dsn, SystemClock())
    yield made
    await made.close()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def order(number: int, *, sku: str = "tea", quantity: int = 1, pay_by_ms: int | None = None) -> Reservation:
    reserved_ms = 1_700_000_000_000 + number
    return Reservation(
        order_id=f"o{number}",
        sale="live",
        bucket=number % 2,
        buyer=f"b{number}",
        key=f"k{number}",
        sku=sku,
        quantity=quantity,
        reserved_ms=reserved_ms,
        pay_by_ms=now_ms() + 60_000 if pay_by_ms is None else pay_by_ms,
    )


def payment(one: Reservation, payment_id: str = "p1", amount_fen: int | None = None) -> Payment:
    due = PRICE_FEN * one.quantity
    amount = due if amount_fen is None else amount_fen
    return Payment(payment_id, one.order_id, one.sale, one.buyer, amount)
