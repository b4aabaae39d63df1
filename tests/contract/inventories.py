"""What the contract suites of the inventory share: both inventories, a small sale, purchases from it."""

import asyncio
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from springtide.drivers.embedded_valkey import EmbeddedValkey, start_valkey
from springtide.drivers.inventory_limits import CLAIM_IDLE_MS, JOURNAL_LAG_MAX
from springtide.drivers.memory.inventory import MemoryInventory
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey import ValkeyInventory
from springtide.drivers.valkey_wire import command
from springtide.model import (
    JournalEntry,
    Reservation,
    ReserveRequest,
    ReserveStatus,
    Sale,
    Sku,
    StockReturn,
)
from springtide.ports import Inventory

Make = Callable[..., Awaitable[Inventory]]

HOUR_MS = 3_600_000
HOLD_MS = 60_000
RESERVED = ReserveStatus.RESERVED
REPEATED = ReserveStatus.REPEATED
SOLD_OUT = ReserveStatus.SOLD_OUT
LIMIT = ReserveStatus.LIMIT_REACHED
_numbers = itertools.count()


@contextmanager
def started_server() -> Iterator[EmbeddedValkey]:
    """For a fixture of a module."""
    with tempfile.TemporaryDirectory() as folder:
        server = asyncio.run(start_valkey(Path(folder), SystemClock()))
        try:
            yield server
        finally:
            asyncio.run(server.stop())


@asynccontextmanager
async def inventories(kind: str, server: EmbeddedValkey) -> AsyncIterator[Make]:
    """Makes inventories, `memory` or `valkey`; they keep their sales apart by name, as one server would."""
    made: list[Inventory] = []

    async def build(**limits: int) -> Inventory:
        inventory: Inventory
        if kind == "valkey":
            inventory = await connected(server, **limits)
        else:
            inventory = MemoryInventory(SystemClock(), **limits)
        made.append(inventory)
        return inventory

    try:
        yield build
    finally:
        for inventory in made:
            await inventory.close()


async def connected(
    server: EmbeddedValkey, journal_lag_max: int = JOURNAL_LAG_MAX, claim_idle_ms: int = CLAIM_IDLE_MS
) -> ValkeyInventory:
    return await ValkeyInventory.connect(
        server.host, server.port, SystemClock(), journal_lag_max=journal_lag_max, claim_idle_ms=claim_idle_ms
    )


async def lose(inventory: Inventory, sale: str, *buckets: int) -> None:
    """Let buckets be gone, as after the loss of a server."""
    for bucket in buckets:
        if isinstance(inventory, MemoryInventory):
            inventory._buckets.pop((sale, bucket), None)
            continue
        assert isinstance(inventory, ValkeyInventory)
        for wire in await inventory._store.primaries():
            for key in await wire.call("KEYS", f"{{{sale}:{bucket}}}:*"):
                await inventory._store.write(f"{sale}:{bucket}", command("DEL", key))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def a_sale(
    stock: int = 10,
    per_buyer_max: int = 1,
    opens_in_ms: int = -HOUR_MS,
    closes_in_ms: int = HOUR_MS,
    buckets: int = 1,
    *,
    spread: bool = True,
) -> Sale:
    return Sale(
        sale=f"sale-{next(_numbers)}",
        title="Spring tea, 春茶",
        skus=(Sku("tea", "Tea", 500, stock, per_buyer_max, spread), Sku("cup", "Cup", 900, 5, 5)),
        opens_ms=now_ms() + opens_in_ms,
        closes_ms=now_ms() + closes_in_ms,
        hold_ms=HOLD_MS,
        epoch=3,
        buckets=buckets,
    )


def want(
    buyer: str,
    key: str = "k1",
    quantity: int = 1,
    sku: str = "tea",
    epoch: int = 3,
    deadline_in_ms: int = HOUR_MS,
) -> ReserveRequest:
    return ReserveRequest(
        buyer=buyer,
        key=key,
        sku=sku,
        quantity=quantity,
        order_id=f"o-{next(_numbers)}",
        epoch=epoch,
        deadline_ms=now_ms() + deadline_in_ms,
    )


def returned(reservation: Reservation) -> StockReturn:
    return StockReturn(
        order_id=reservation.order_id,
        sale=reservation.sale,
        bucket=reservation.bucket,
        buyer=reservation.buyer,
        sku=reservation.sku,
        quantity=reservation.quantity,
    )


async def published(inventory: Inventory, sale: Sale) -> str:
    assert await inventory.publish(sale)
    return sale.sale


async def statuses(inventory: Inventory, sale: str, *batch: ReserveRequest) -> list[ReserveStatus]:
    return [result.status for result in await inventory.reserve(sale, 0, batch)]


async def stock(inventory: Inventory, sale: str, sku: str = "tea") -> int:
    view = await inventory.view(sale)
    assert view is not None
    return view.stock[sku]


async def buy(inventory: Inventory, sale: str, request: ReserveRequest) -> Reservation:
    (result,) = await inventory.reserve(sale, 0, [request])
    assert result.status is RESERVED
    found = await inventory.find(sale, 0, request.buyer, result.order_id)
    assert found is not None
    return found


async def journal(inventory: Inventory, sale: str, consumer: str = "reader", count: int = 100) -> list[JournalEntry]:
    return await inventory.read_journal(sale, 0, consumer, count)


async def entries_of(inventory: Inventory, count: int) -> str:
    """A sale with this many journal entries."""
    sale = await published(inventory, a_sale(stock=count))
    for n in range(count):
        await buy(inventory, sale, want(f"b{n}"))
    return sale


def position(entry_id: str) -> tuple[int, int]:
    ms, sequence = entry_id.split("-")
    return int(ms), int(sequence)
