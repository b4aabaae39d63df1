"""Stock in several buckets sells as one, on a real Valkey."""

import asyncio
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from springtide.drivers.embedded_valkey import start_valkey
from springtide.drivers.system import SystemClock, SystemIds
from springtide.drivers.valkey import ValkeyInventory
from springtide.model import ReserveRequest, ReserveStatus, Sale, Sku, StockReturn, Transfer
from springtide.sale.orders import bucket_of, home_of
from springtide.sale.pooled_stock import PooledStock
from springtide.sale.stock_keeper import StockKeeper

BUCKETS = 8
CLOCK = SystemClock()
IDS = SystemIds()


@pytest.fixture
async def inventory(tmp_path: Path) -> AsyncIterator[ValkeyInventory]:
    engine = await start_valkey(tmp_path, CLOCK)
    inventory = await ValkeyInventory.connect("127.0.0.1", engine.port, CLOCK)
    yield inventory
    await inventory.close()
    await engine.stop()


async def publish(inventory: ValkeyInventory, stock: int, *, spread: bool = False) -> Sale:
    now_ms = CLOCK.now_ms()
    sku = Sku("tea", "Tea", 100, stock, per_buyer_max=100, spread=spread)
    sale = Sale("live", "Live", (sku,), now_ms - 1000, now_ms + 600_000, 60_000, buckets=BUCKETS)
    await inventory.publish(sale)
    return sale


def purchase(buyer: str, quantity: int = 1) -> ReserveRequest:
    return ReserveRequest(buyer, f"k-{buyer}", "tea", quantity, f"o-{buyer}", 1, CLOCK.now_ms() + 5000)


async def buy(pooled: PooledStock, buyer: str, quantity: int = 1) -> ReserveStatus:
    """As a client does: who is told to come again comes again, with the same key."""
    bucket = bucket_of(buyer, BUCKETS)
    for _ in range(50):
        (result,) = await pooled.reserve("live", bucket, [purchase(buyer, quantity)])
        if result.status is not ReserveStatus.LATE:
            return result.status
    return ReserveStatus.LATE


async def stock_by_bucket(inventory: ValkeyInventory) -> list[int]:
    return [(await inventory.cut("live", bucket)).stock["tea"] for bucket in range(BUCKETS)]


async def test_every_unit_is_sold_before_anybody_hears_sold_out(inventory: ValkeyInventory) -> None:
    await publish(inventory, 60)
    replicas = [PooledStock(inventory, IDS) for _ in range(3)]
    results = await asyncio.gather(*(buy(replicas[n % 3], f"b{n}") for n in range(100)))
    assert Counter(results) == {ReserveStatus.RESERVED: 60, ReserveStatus.SOLD_OUT: 40}
    assert sum(await stock_by_bucket(inventory)) == 0


async def test_a_large_order_is_served_from_several_buckets(inventory: ValkeyInventory) -> None:
    await publish(inventory, BUCKETS * 3, spread=True)
    assert await buy(PooledStock(inventory, IDS), "big", BUCKETS * 3) is ReserveStatus.RESERVED
    assert sum(await stock_by_bucket(inventory)) == 0


async def test_more_than_the_sale_holds_is_refused_and_the_rest_still_sells(inventory: ValkeyInventory) -> None:
    await publish(inventory, 5)
    pooled = PooledStock(inventory, IDS)
    assert await buy(pooled, "greedy", 6) is ReserveStatus.SOLD_OUT
    assert await buy(pooled, "modest", 5) is ReserveStatus.RESERVED


async def test_a_unit_that_came_back_is_sold_to_a_buyer_of_another_bucket(inventory: ValkeyInventory) -> None:
    await publish(inventory, 1)
    pooled = PooledStock(inventory, IDS)
    home = home_of("tea", BUCKETS)
    first = next(f"b{n}" for n in range(100) if bucket_of(f"b{n}", BUCKETS) == home)
    other = next(f"b{n}" for n in range(100) if bucket_of(f"b{n}", BUCKETS) != home)
    assert await buy(pooled, first) is ReserveStatus.RESERVED
    assert await buy(pooled, other) is ReserveStatus.SOLD_OUT
    await inventory.give_back(StockReturn(f"o-{first}", "live", home, first, "tea", 1))
    assert await buy(pooled, other) is ReserveStatus.RESERVED


async def test_a_hot_sku_is_spread_and_gathered_at_the_end(inventory: ValkeyInventory) -> None:
    await publish(inventory, 2000)
    home = home_of("tea", BUCKETS)
    assert (await stock_by_bucket(inventory))[home] == 2000
    pooled, keeper = PooledStock(inventory, IDS), StockKeeper(inventory, CLOCK, IDS)
    await keeper.look()
    for first in range(0, 200, 50):  # each may take several calls, of which only so many may be under way
        await asyncio.gather(*(buy(pooled, f"b{n}") for n in range(first, first + 50)))
    assert await keeper.look() > 0
    spread = await stock_by_bucket(inventory)
    assert sum(spread) == 1800
    assert min(spread) > 0
    await asyncio.sleep(0.05)
    await keeper.look()  # nothing was sold since: it has cooled
    gathered = await stock_by_bucket(inventory)
    assert gathered[home] == sum(gathered) == 1800


async def test_a_transfer_that_was_cut_off_is_ended(inventory: ValkeyInventory) -> None:
    sale = await publish(inventory, 10)
    home = home_of("tea", BUCKETS)
    target = (home + 1) % BUCKETS
    transfer = Transfer("t-cut-off", sale.sale, home, target, "tea", 4)
    assert (await inventory.debit(transfer)).units == 4  # whoever began it dies here
    assert (await inventory.cut("live", home)).transfers == (transfer,)
    keeper = StockKeeper(inventory, CLOCK, IDS)
    await keeper.look()
    await keeper.look()
    view = await inventory.view("live")
    assert view is not None
    assert (view.stock["tea"], view.moving) == (10, 0)


def test_buyers_keep_their_bucket() -> None:
    assert bucket_of("ada", 8) == zlib.crc32(b"ada") % 8
