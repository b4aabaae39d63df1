"""What every inventory promises of sales: publish, redefine, pause, restock, token keys."""

import asyncio

import msgspec
import pytest

from springtide.decide.buckets import home_of
from springtide.drivers import valkey
from springtide.drivers.memory import inventory as memory
from springtide.errors import InventoryError
from springtide.model import (
    STOCK_MAX,
    ReserveStatus,
    Restock,
    Sku,
    StockReturn,
    TokenRing,
    Transfer,
)
from springtide.ports import Inventory
from tests.contract.inventories import (
    HOUR_MS,
    LIMIT,
    REPEATED,
    RESERVED,
    SOLD_OUT,
    Make,
    a_sale,
    buy,
    journal,
    lose,
    now_ms,
    published,
    returned,
    statuses,
    stock,
    want,
)


async def test_a_published_sale_is_seen_as_it_was_given(inventory: Inventory) -> None:
    sale = a_sale(stock=STOCK_MAX)
    await published(inventory, sale)
    view = await inventory.view(sale.sale)
    assert view is not None
    assert view.sale == sale
    assert view.stock == {"tea": STOCK_MAX, "cup": 5}
    assert not view.paused
    assert abs(view.at_ms - now_ms()) < 10_000


async def test_publishing_twice_changes_nothing(inventory: Inventory) -> None:
    sale = a_sale(stock=10)
    await published(inventory, sale)
    await buy(inventory, sale.sale, want("ann"))
    assert not await inventory.publish(sale)
    assert await stock(inventory, sale.sale) == 9
    assert await statuses(inventory, sale.sale, want("ann")) == [REPEATED]


async def test_all_published_sales_are_listed(inventory: Inventory) -> None:
    names = {await published(inventory, a_sale(buckets=buckets)) for buckets in (1, 1, 3)}
    listed = await inventory.sales()
    assert names <= set(listed)
    assert len(listed) == len(set(listed))


async def test_buckets_share_the_stock_and_the_first_ones_take_the_remainder(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=11, buckets=3))
    cuts = [await inventory.cut(sale, bucket) for bucket in range(3)]
    assert [cut.stock["tea"] for cut in cuts] == [4, 4, 3]
    assert await stock(inventory, sale) == 11


async def test_buckets_sell_and_journal_apart_and_the_view_adds_them_up(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=4, per_buyer_max=9, buckets=2))
    results = await inventory.reserve(sale, 1, [want("ann", quantity=2), want("bob")])
    assert [result.status for result in results] == [RESERVED, SOLD_OUT]
    assert await stock(inventory, sale) == 2
    assert await journal(inventory, sale) == []
    (entry,) = await inventory.read_journal(sale, 1, "reader", 10)
    assert [order.bucket for order in entry.reservations] == [1]
    assert await inventory.give_back(returned(entry.reservations[0]))
    assert (await inventory.cut(sale, 1)).stock["tea"] == 2


async def test_a_sale_that_is_not_published_has_nothing(inventory: Inventory) -> None:
    assert await inventory.view("nosuch") is None
    assert await statuses(inventory, "nosuch", want("ann"), want("bob")) == [ReserveStatus.UNKNOWN_SKU] * 2
    assert await inventory.find("nosuch", 0, "ann", "o-1") is None
    assert not await inventory.settle("nosuch", 0, "ann", "o-1")
    assert await journal(inventory, "nosuch") == []
    await inventory.acknowledge("nosuch", 0, ["1-1"])
    assert await inventory.journal_depth("nosuch", 0) == 0
    assert "nosuch" not in await inventory.sales()
    assert await inventory.fence("nosuch", 0, 5) is None
    none = "nosuch"
    for call in (
        lambda: inventory.cut(none, 0),
        lambda: inventory.pause(none, paused=True),
        lambda: inventory.redefine(msgspec.structs.replace(a_sale(), sale=none)),
        lambda: inventory.restock(0, Restock("r1", none, "tea", 1)),
        lambda: inventory.move_stock(Transfer("t1", none, 0, 1, "tea", 1)),
        lambda: inventory.orders_of(none, 0, "ann"),
        lambda: inventory.holders(none, 0, ""),
        lambda: inventory.give_back(StockReturn("o-1", none, 0, "ann", "tea", 1)),
    ):
        with pytest.raises(InventoryError, match="publish it first"):
            await call()


async def test_a_paused_sale_sells_nothing_until_it_goes_on(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(buckets=2))
    await inventory.pause(sale, paused=True)
    view = await inventory.view(sale)
    assert view is not None
    assert view.paused
    assert await statuses(inventory, sale, want("ann")) == [ReserveStatus.PAUSED]
    assert (await inventory.reserve(sale, 1, [want("ann")]))[0].status is ReserveStatus.PAUSED
    await inventory.pause(sale, paused=False)
    assert await statuses(inventory, sale, want("ann")) == [RESERVED]


async def test_units_lie_at_home_unless_they_are_spread(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=11, buckets=3, spread=False))
    cuts = [await inventory.cut(sale, bucket) for bucket in range(3)]
    homes = {sku: [cut.stock[sku] for cut in cuts] for sku in ("tea", "cup")}
    assert {sku: units.index(max(units)) for sku, units in homes.items()} == {
        "tea": home_of("tea", 3),
        "cup": home_of("cup", 3),
    }
    assert sorted(homes["tea"]) == [0, 0, 11]
    assert await stock(inventory, sale) == 11


async def test_what_is_left_of_a_sale_is_not_published_over(inventory: Inventory) -> None:
    sale = a_sale(stock=11, buckets=3)
    await published(inventory, sale)
    await inventory.reserve(sale.sale, 1, [want("ann")])
    await lose(inventory, sale.sale, 0)
    assert await inventory.view(sale.sale) is None
    assert sale.sale not in await inventory.sales()
    with pytest.raises(InventoryError, match="as it was begun, or under another id"):
        await inventory.publish(msgspec.structs.replace(sale, epoch=4))
    assert await inventory.view(sale.sale) is None
    assert (await inventory.cut(sale.sale, 1)).stock["tea"] == 3


async def test_a_sale_of_many_skus_is_published_and_read_whole(inventory: Inventory) -> None:
    skus = tuple(Sku(f"sku-{n}", "", 1, n, 3) for n in range(3000))
    sale = msgspec.structs.replace(a_sale(buckets=2), skus=skus)
    await published(inventory, sale)
    await inventory.redefine(msgspec.structs.replace(sale, skus=(*skus, Sku("last", "", 1, 7))))
    view = await inventory.view(sale.sale)
    assert view is not None
    assert view.stock == {f"sku-{n}": n for n in range(3000)} | {"last": 0}


# --- redefine ---------------------------------------------------------------------------------------------


async def test_a_sale_gets_another_definition_and_keeps_stock_and_orders(inventory: Inventory) -> None:
    sale = a_sale(stock=10, per_buyer_max=1, buckets=2)
    await published(inventory, sale)
    await inventory.reserve(sale.sale, 1, [want("ann")])
    skus = (Sku("tea", "Better tea", 700, 99, 3), Sku("cup", "Cup", 900, 5, 5), Sku("mug", "Mug", 100, 50, 2))
    changed = msgspec.structs.replace(sale, title="Later", skus=skus, hold_ms=5000, closes_ms=sale.closes_ms + 1)
    await inventory.redefine(changed)
    view = await inventory.view(sale.sale)
    assert view is not None
    assert view.sale == changed
    assert view.stock == {"tea": 9, "cup": 5, "mug": 0}
    batch = [want("ann"), want("ann", "k2", 2), want("ann", "k3"), want("ann", "k4", sku="mug")]
    results = await inventory.reserve(sale.sale, 1, batch)
    assert [result.status for result in results] == [REPEATED, RESERVED, LIMIT, SOLD_OUT]
    assert results[1].pay_by_ms - results[0].pay_by_ms < 0
    assert await inventory.restock(1, Restock("r1", sale.sale, "mug", 5))
    assert (await inventory.reserve(sale.sale, 1, [want("bob", sku="mug")]))[0].status is RESERVED


async def test_a_new_window_holds_in_all_buckets(inventory: Inventory) -> None:
    sale = a_sale(buckets=3)
    await published(inventory, sale)
    await inventory.redefine(msgspec.structs.replace(sale, opens_ms=now_ms() + HOUR_MS // 2))
    for bucket in range(3):
        assert (await inventory.reserve(sale.sale, bucket, [want("ann")]))[0].status is ReserveStatus.NOT_OPEN


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"epoch": 2}, "another epoch"),
        ({"buckets": 3}, "number of buckets"),
        ({"skus": (Sku("tea", "Tea", 1, 1),)}, "has to stay"),
    ],
    ids=["epoch", "buckets", "skus"],
)
async def test_what_cannot_change_is_refused(inventory: Inventory, change: dict[str, object], match: str) -> None:
    sale = a_sale(buckets=2)
    await published(inventory, sale)
    with pytest.raises(InventoryError, match=match):
        await inventory.redefine(msgspec.structs.replace(sale, title="Other", **change))
    view = await inventory.view(sale.sale)
    assert view is not None
    assert view.sale == sale


# --- restock ----------------------------------------------------------------------------------------------


async def test_a_restock_adds_its_units_once(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=1, per_buyer_max=9, buckets=2))
    before = await inventory.view(sale)
    restock = Restock("r1", sale, "tea", 4)
    assert sum(await asyncio.gather(*(inventory.restock(1, restock) for _ in range(8)))) == 1
    after = await inventory.view(sale)
    assert before is not None
    assert after is not None
    assert after.stock["tea"] == 5
    assert after.stock_version > before.stock_version
    assert (await inventory.reserve(sale, 1, [want("ann", quantity=4)]))[0].status is RESERVED
    assert not await inventory.restock(1, restock)
    assert await inventory.restock(1, Restock("r2", sale, "tea", 4))
    assert await stock(inventory, sale) == 5


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sku": "mug"}, "add it to the sale first"),
        ({"restock_id": "r1"}, "its own id"),
        ({"quantity": STOCK_MAX}, "restock fewer"),
    ],
    ids=["sku", "id", "quantity"],
)
async def test_a_restock_that_cannot_be_is_refused(inventory: Inventory, change: dict[str, str], match: str) -> None:
    sale = await published(inventory, a_sale(stock=1))
    await inventory.restock(0, Restock("r1", sale, "tea", 4))
    with pytest.raises(InventoryError, match=match):
        await inventory.restock(0, msgspec.structs.replace(Restock("r2", sale, "tea", 5), **change))
    assert await stock(inventory, sale) == 5


async def test_a_restock_of_nothing_is_refused(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=1))
    with pytest.raises(ValueError, match="needs 1 to"):
        await inventory.restock(0, Restock("r1", sale, "tea", 0))


async def test_a_bucket_has_a_bounded_number_of_restocks(inventory: Inventory, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (valkey, memory):
        monkeypatch.setattr(module, "RESTOCKS_MAX", 3)
    sale = await published(inventory, a_sale(stock=1))
    for n in range(3):
        assert await inventory.restock(0, Restock(f"r{n}", sale, "tea", 1))
    with pytest.raises(InventoryError, match="its last restock"):
        await inventory.restock(0, Restock("r3", sale, "tea", 1))
    assert not await inventory.restock(0, Restock("r2", sale, "tea", 1))
    assert await stock(inventory, sale) == 4


# --- token keys -------------------------------------------------------------------------------------------


async def test_the_generations_of_token_keys_are_kept(make: Make) -> None:
    inventory = await make()
    assert await inventory.token_ring() == TokenRing(1, 1)
    try:
        await inventory.set_token_ring(TokenRing(2, 5))
        assert await inventory.token_ring() == TokenRing(2, 5)
        with pytest.raises(ValueError, match="the newest not older"):
            await inventory.set_token_ring(TokenRing(3, 2))
        assert await inventory.token_ring() == TokenRing(2, 5)
    finally:
        await inventory.set_token_ring(TokenRing(1, 1))
