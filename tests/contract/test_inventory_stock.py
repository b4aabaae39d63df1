"""What every inventory promises of stock that moves between buckets, whoever is cut off or late on the way."""

import asyncio

import msgspec
import pytest

from springtide.drivers import valkey
from springtide.drivers.memory import inventory as memory
from springtide.drivers.memory.inventory import MemoryInventory
from springtide.drivers.valkey import ValkeyInventory
from springtide.errors import InventoryError, InventoryUnavailable
from springtide.model import (
    STOCK_MAX,
    Restock,
    Transfer,
)
from springtide.ports import Inventory
from tests.contract.inventories import (
    RESERVED,
    a_sale,
    lose,
    published,
    want,
)

Moving = MemoryInventory | ValkeyInventory


@pytest.fixture
async def moving(inventory: Inventory) -> Moving:
    """The inventory with its three steps of a transfer."""
    assert isinstance(inventory, MemoryInventory | ValkeyInventory)
    return inventory


def move(sale: str, name: str = "t1", quantity: int = 3, source: int = 0, target: int = 1) -> Transfer:
    return Transfer(name, sale, source, target, "tea", quantity)


async def units(inventory: Inventory, sale: str) -> tuple[list[int], int]:
    """The stock of each bucket, and what is between them."""
    view = await inventory.view(sale)
    assert view is not None
    cuts = [await inventory.cut(sale, bucket) for bucket in range(view.sale.buckets)]
    assert view.moving == sum(transfer.quantity for cut in cuts for transfer in cut.transfers)
    return [cut.stock["tea"] for cut in cuts], view.moving


async def test_stock_moves_to_where_it_is_asked_for(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=10, per_buyer_max=9, buckets=2))
    before = await inventory.view(sale)
    assert await inventory.move_stock(move(sale)) == 3
    after = await inventory.view(sale)
    assert before is not None
    assert after is not None
    assert after.stock_version > before.stock_version
    assert await units(inventory, sale) == ([2, 8], 0)
    assert (await inventory.reserve(sale, 1, [want("ann", quantity=8)]))[0].status is RESERVED


async def test_no_more_moves_than_there_is(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=10, buckets=2))
    assert await inventory.move_stock(move(sale, "t1", 99)) == 5
    assert await inventory.move_stock(move(sale, "t2", 99)) == 0
    assert await units(inventory, sale) == ([0, 10], 0)
    assert await inventory.move_stock(move(sale, "t3", STOCK_MAX, source=1, target=0)) == 10


async def test_a_transfer_moves_once_however_often_it_is_said(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=20, buckets=2))
    transfer = move(sale)
    assert await asyncio.gather(*(inventory.move_stock(transfer) for _ in range(8))) == [3] * 8
    assert await inventory.move_stock(transfer) == 3
    assert await units(inventory, sale) == ([7, 13], 0)


async def test_many_transfers_at_once_lose_and_make_nothing(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=90, buckets=3))
    ways = [(0, 1), (1, 2), (2, 0), (1, 0), (0, 2), (2, 1)]
    transfers = [Transfer(f"t{n}", sale, *ways[n % 6], sku="tea", quantity=1 + n % 7) for n in range(60)]
    await asyncio.gather(*(inventory.move_stock(transfer) for transfer in transfers * 2))
    stock, between = await units(inventory, sale)
    assert (sum(stock), between) == (90, 0)


async def test_a_transfer_that_was_cut_off_is_found_and_ended(moving: Moving) -> None:
    sale = await published(moving, a_sale(stock=10, buckets=2))
    assert (await moving.debit(move(sale, quantity=99))).units == 5
    assert await units(moving, sale) == ([0, 5], 5)
    (found,) = (await moving.cut(sale, 0)).transfers
    assert found == move(sale, quantity=5)
    assert await moving.move_stock(found) == 5
    assert await units(moving, sale) == ([0, 10], 0)
    assert await moving.move_stock(found) == 5
    assert await units(moving, sale) == ([0, 10], 0)


async def test_what_a_source_gets_meanwhile_does_not_grow_an_open_transfer(moving: Moving) -> None:
    sale = await published(moving, a_sale(stock=10, buckets=2))
    await moving.debit(move(sale, quantity=99))
    await moving.restock(0, Restock("r1", sale, "tea", 50))
    assert await moving.move_stock(move(sale, quantity=99)) == 5
    assert await units(moving, sale) == ([50, 10], 0)


async def test_a_credit_counts_once_however_late_it_comes_again(moving: Moving) -> None:
    sale = await published(moving, a_sale(stock=100, buckets=2))
    late = [(move(sale, f"t{n}"), await moving.debit(move(sale, f"t{n}"))) for n in range(4)]
    for transfer, debit in (late[2], late[0], late[2]):
        await moving.credit(transfer, debit)
    for transfer, _ in late:
        assert await moving.move_stock(transfer) == 3
    for n in range(20):
        await moving.move_stock(move(sale, f"later{n}", 1))
        assert [await moving.credit(transfer, debit) for transfer, debit in late] == [False] * 4
        await moving.end_transfer(late[n % 4][0])
    assert await units(moving, sale) == ([50 - 12 - 20, 50 + 12 + 20], 0)


async def test_credits_out_of_order_all_count(moving: Moving) -> None:
    sale = await published(moving, a_sale(stock=100, buckets=2))
    late = [(move(sale, f"t{n}", n + 1), await moving.debit(move(sale, f"t{n}", n + 1))) for n in range(5)]
    for place in (4, 1, 3):
        assert await moving.credit(*late[place])
        await moving.end_transfer(late[place][0])
    assert await moving.move_stock(move(sale, "new", 1)) == 1
    assert await moving.credit(*late[0])
    assert await units(moving, sale) == ([34, 63], 4)
    for transfer in (await moving.cut(sale, 0)).transfers:
        await moving.move_stock(transfer)
    assert await units(moving, sale) == ([34, 66], 0)


async def test_open_transfers_have_a_limit(moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (valkey, memory):
        monkeypatch.setattr(module, "TRANSFERS_OPEN_MAX", 2)
    sale = await published(moving, a_sale(stock=100, buckets=3))
    await moving.debit(move(sale, "t1"))
    await moving.debit(move(sale, "t2", target=2))
    with pytest.raises(InventoryUnavailable, match="end those that its cut names"):
        await moving.move_stock(move(sale, "t3"))
    assert await moving.move_stock(move(sale, "t2", target=2)) == 3
    assert await moving.move_stock(move(sale, "t3")) == 3


async def test_a_transfer_left_open_stops_others_of_its_way_in_time(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (valkey, memory):
        monkeypatch.setattr(module, "TRANSFERS_WINDOW", 4)
    sale = await published(moving, a_sale(stock=200, buckets=3))
    await moving.debit(move(sale, "old"))
    for n in range(3):
        await moving.move_stock(move(sale, f"t{n}", 1))
    with pytest.raises(InventoryUnavailable, match="end those that its cut names"):
        await moving.move_stock(move(sale, "t3", 1))
    assert await moving.move_stock(move(sale, "elsewhere", 1, target=2)) == 1
    assert await moving.move_stock(move(sale, "old")) == 3
    assert await moving.move_stock(move(sale, "t3", 1)) == 1


async def test_a_bounded_number_of_ended_transfers_is_remembered(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (valkey, memory):
        monkeypatch.setattr(module, "TRANSFERS_REMEMBERED", 3)
    sale = await published(moving, a_sale(stock=100, buckets=2))
    for n in range(5):
        assert await moving.move_stock(move(sale, f"t{n}", n + 1)) == n + 1
    assert await moving.move_stock(move(sale, "t2", 99)) == 3
    assert await moving.move_stock(move(sale, "t1", 10)) == 10
    stock, between = await units(moving, sale)
    assert (sum(stock), between) == (100, 0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sku": "mug"}, "add it to the sale first"),
        ({"target": 2}, "does not have this bucket"),
        ({"transfer_id": "t1", "sku": "cup"}, "its own id"),
        ({"transfer_id": "t1", "target": 5}, "its own id"),
    ],
    ids=["sku", "bucket", "other sku", "other target"],
)
async def test_a_transfer_that_cannot_be_is_refused(moving: Moving, change: dict[str, str], match: str) -> None:
    sale = await published(moving, a_sale(stock=10, buckets=2))
    await moving.debit(move(sale))
    with pytest.raises(InventoryError, match=match):
        await moving.move_stock(msgspec.structs.replace(move(sale, "t2"), **change))
    assert await units(moving, sale) == ([2, 5], 3)


@pytest.mark.parametrize("change", [{"target": 0}, {"quantity": 0}], ids=["nowhere", "nothing"])
async def test_a_transfer_of_nothing_is_refused(inventory: Inventory, change: dict[str, int]) -> None:
    sale = await published(inventory, a_sale(stock=10, buckets=2))
    with pytest.raises(ValueError, match="needs two buckets and 1 to"):
        await inventory.move_stock(msgspec.structs.replace(move(sale), **change))


async def test_units_on_their_way_to_a_lost_bucket_are_not_lost(moving: Moving) -> None:
    sale = await published(moving, a_sale(stock=10, buckets=2))
    await lose(moving, sale, 1)
    with pytest.raises(InventoryError, match="publish it first"):
        await moving.move_stock(move(sale))
    cut = await moving.cut(sale, 0)
    assert (cut.stock["tea"], cut.transfers) == (2, (move(sale),))
