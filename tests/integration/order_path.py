"""What the tests of the order path share: both engines, a small sale, and buyers."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import valkey

from springtide.drivers.embedded_postgres import EmbeddedPostgres, start_postgres
from springtide.drivers.embedded_valkey import EmbeddedValkey, start_valkey
from springtide.drivers.postgres import PostgresLedger, migrate
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey import ValkeyInventory
from springtide.model import ReserveRequest, ReserveResult, Sale, Sku
from springtide.sale.orders import bucket_of

PRICE_FEN = 500
CLOCK = SystemClock()
TABLES = (
    "sales, skus, orders, payments, stock_returns, journal_positions, restocks, api_keys, token_ring, order_conflicts"
)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def small_sale(name: str = "live", *, hold_ms: int = 60_000, buckets: int = 2) -> Sale:
    """Its stock lies in equal shares in all buckets."""
    opens_ms = now_ms() - 1000
    skus = (Sku("tea", "Tea", PRICE_FEN, 100, per_buyer_max=5, spread=True), Sku("cup", "Cup", 900, 50, spread=True))
    return Sale(name, name.title(), skus, opens_ms, opens_ms + 3_600_000, hold_ms, buckets=buckets)


@dataclass(frozen=True)
class Engines:
    valkey: EmbeddedValkey
    postgres: EmbeddedPostgres


@contextmanager
def started_engines() -> Iterator[Engines]:
    """For a fixture of a module: each start takes a second or two."""
    folder = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
    store = asyncio.run(start_valkey(folder, CLOCK))
    database = asyncio.run(start_postgres(CLOCK))
    asyncio.run(migrate(database.dsn))
    try:
        yield Engines(store, database)
    finally:
        asyncio.run(database.stop())
        asyncio.run(store.stop())
        shutil.rmtree(folder)


@dataclass(frozen=True)
class World:
    """Both ports on engines that held nothing when the test began."""

    engines: Engines
    inventory: ValkeyInventory
    ledger: PostgresLedger

    async def buy(self, sale: Sale, buyers: Sequence[str], sku: str = "tea", quantity: int = 1) -> list[ReserveResult]:
        """One purchase of each buyer, its order id `o-BUYER-SKU`, one batch for each bucket."""
        results: dict[str, ReserveResult] = {}
        for bucket in range(sale.buckets):
            mine = [buyer for buyer in buyers if bucket_of(buyer, sale.buckets) == bucket]
            batch = [
                ReserveRequest(buyer, f"k-{sku}", sku, quantity, f"o-{buyer}-{sku}", sale.epoch, now_ms() + 10_000)
                for buyer in mine
            ]
            if batch:
                answers = await self.inventory.reserve(sale.sale, bucket, batch)
                results.update(zip(mine, answers, strict=True))
        return [results[buyer] for buyer in buyers]

    async def stock(self, sale: Sale) -> dict[str, int]:
        view = await self.inventory.view(sale.sale)
        assert view is not None
        return view.stock


@asynccontextmanager
async def empty_world(engines: Engines) -> AsyncIterator[World]:
    with valkey.Valkey(port=engines.valkey.port) as client:
        client.flushall()
    connection = await asyncpg.connect(engines.postgres.dsn)
    await connection.execute(f"TRUNCATE {TABLES}")
    await connection.close()
    inventory = await ValkeyInventory.connect("127.0.0.1", engines.valkey.port, CLOCK, claim_idle_ms=300)
    ledger = await PostgresLedger.connect(engines.postgres.dsn, CLOCK, answer_s=5.0)
    try:
        yield World(engines, inventory, ledger)
    finally:
        await inventory.close()
        await ledger.close()
