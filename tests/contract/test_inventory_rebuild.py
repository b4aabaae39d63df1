"""What every inventory promises of a rebuild: fence, restore, and what comes late."""

import msgspec
import pytest

from springtide.drivers.inventory_limits import ORDERS_REMEMBERED_MAX
from springtide.drivers.memory.inventory import MemoryInventory
from springtide.drivers.valkey import ValkeyInventory
from springtide.errors import InventoryError, InventoryUnavailable, OutcomeUnknown
from springtide.model import (
    HeldOrder,
    HeldState,
    Reservation,
    ReserveStatus,
    Restock,
    Sale,
    Transfer,
)
from springtide.ports import Inventory
from tests.contract.inventories import (
    LIMIT,
    REPEATED,
    RESERVED,
    a_sale,
    buy,
    journal,
    lose,
    published,
    returned,
    statuses,
    stock,
    want,
)


def rebuilt(sale: Sale, epoch: int = 4) -> Sale:
    return msgspec.structs.replace(sale, epoch=epoch)


def an_order(sale: Sale, buyer: str, name: str = "k1", bucket: int = 0) -> Reservation:
    return Reservation(f"o-{buyer}-{name}", sale.sale, bucket, buyer, name, "tea", 1, 5, 6)


async def test_a_fenced_bucket_refuses_what_is_of_an_earlier_epoch(inventory: Inventory) -> None:
    sale = a_sale(per_buyer_max=5)
    await published(inventory, sale)
    held = await buy(inventory, sale.sale, want("ann"))
    cut = await inventory.fence(sale.sale, 0, 4)
    assert cut is not None
    assert (cut.epoch, cut.stock["tea"]) == (4, 9)
    assert cut.last_entry_id == (await journal(inventory, sale.sale))[-1].entry_id
    batch = [want("ann"), want("bob"), want("bob", epoch=4)]
    expected = [REPEATED, ReserveStatus.STALE_EPOCH, ReserveStatus.PAUSED]
    assert await statuses(inventory, sale.sale, *batch) == expected
    assert await inventory.orders_of(sale.sale, 0, "ann") == [HeldOrder(held, HeldState.LIVE)]
    view = await inventory.view(sale.sale)
    assert view is not None
    assert (view.sale, view.paused) == (rebuilt(sale), True)


async def test_no_units_come_or_go_while_a_bucket_is_fenced(inventory: Inventory) -> None:
    sale = a_sale(buckets=2)
    await published(inventory, sale)
    held = await buy(inventory, sale.sale, want("ann"))
    await inventory.fence(sale.sale, 0, 4)
    for call in (
        lambda: inventory.give_back(returned(held)),
        lambda: inventory.restock(0, Restock("r1", sale.sale, "tea", 1)),
        lambda: inventory.move_stock(Transfer("t1", sale.sale, 0, 1, "tea", 1)),
        lambda: inventory.pause(sale.sale, paused=False),
    ):
        with pytest.raises(InventoryUnavailable, match="is being rebuilt"):
            await call()
    with pytest.raises(InventoryError):
        await inventory.redefine(rebuilt(sale))
    with pytest.raises(OutcomeUnknown, match="is being rebuilt"):
        await inventory.move_stock(Transfer("t2", sale.sale, 1, 0, "tea", 1))
    assert (await inventory.cut(sale.sale, 0)).stock["tea"] == 4


async def test_an_epoch_never_goes_back(inventory: Inventory) -> None:
    sale = a_sale()
    await published(inventory, sale)
    for epoch in (2, 3):
        with pytest.raises(InventoryError, match="take a later one"):
            await inventory.fence(sale.sale, 0, epoch)
    assert await statuses(inventory, sale.sale, want("ann")) == [RESERVED]
    for _ in range(2):
        cut = await inventory.fence(sale.sale, 0, 5)
        assert cut is not None
        assert (cut.epoch, cut.stock["tea"]) == (5, 9)
    with pytest.raises(InventoryError, match="take a later one"):
        await inventory.fence(sale.sale, 0, 4)
    assert (await inventory.cut(sale.sale, 0)).epoch == 5


@pytest.mark.parametrize("lost", [False, True], ids=["fenced", "lost"])
async def test_a_bucket_is_restored_as_given(inventory: Inventory, *, lost: bool) -> None:
    sale = a_sale(per_buyer_max=2)
    await published(inventory, sale)
    await buy(inventory, sale.sale, want("zoe"))
    await inventory.restock(0, Restock("r1", sale.sale, "tea", 5))
    if lost:
        await lose(inventory, sale.sale, 0)
    cut = await inventory.fence(sale.sale, 0, 4)
    assert (cut is None) is lost
    live, ended, paid = (an_order(sale, "ann", name) for name in ("k1", "k2", "k3"))
    bobs = an_order(sale, "bob")
    orders = [
        HeldOrder(live, HeldState.LIVE),
        HeldOrder(bobs, HeldState.ENDED),
        HeldOrder(ended, HeldState.ENDED),
        HeldOrder(paid, HeldState.PAID),
    ]
    again = rebuilt(sale)
    await inventory.restore(again, 0, {"tea": 6}, orders)
    view = await inventory.view(sale.sale)
    assert view is not None
    assert (view.sale, view.stock, view.paused) == (again, {"tea": 6, "cup": 0}, True)
    assert await inventory.orders_of(sale.sale, 0, "ann") == [orders[0], orders[2], orders[3]]
    assert await inventory.orders_of(sale.sale, 0, "bob") == [orders[1]]
    assert await inventory.orders_of(sale.sale, 0, "zoe") == []
    assert set((await inventory.holders(sale.sale, 0, "")).buyers) == {"ann", "bob"}
    assert await statuses(inventory, sale.sale, want("cid", epoch=4)) == [ReserveStatus.PAUSED]
    await inventory.pause(sale.sale, paused=False)
    batch = [want("ann"), want("ann", "k9", epoch=4), want("cid", epoch=3), want("cid", epoch=4)]
    expected = [REPEATED, LIMIT, ReserveStatus.STALE_EPOCH, RESERVED]
    assert await statuses(inventory, sale.sale, *batch) == expected
    assert await inventory.give_back(returned(live))
    assert not await inventory.give_back(returned(paid))
    assert await inventory.restock(0, Restock("r1", sale.sale, "tea", 5))
    assert await stock(inventory, sale.sale) == 6 - 1 + 1 + 5
    later = await inventory.view(sale.sale)
    assert later is not None
    assert later.stock_version == view.stock_version + 2
    assert view.stock_version > 1


async def test_an_unread_journal_outlives_a_restoration(inventory: Inventory) -> None:
    sale = a_sale()
    await published(inventory, sale)
    for buyer in ("ann", "bob", "cid"):
        await buy(inventory, sale.sale, want(buyer))
    first, *_ = await journal(inventory, sale.sale, "r1", 2)
    await inventory.acknowledge(sale.sale, 0, [first.entry_id])
    await inventory.fence(sale.sale, 0, 4)
    await inventory.restore(rebuilt(sale), 0, {"tea": 7}, [])
    assert await inventory.journal_depth(sale.sale, 0) == 2
    rest = await journal(inventory, sale.sale, "r1")
    assert [order.buyer for entry in rest for order in entry.reservations] == ["bob", "cid"]
    await inventory.pause(sale.sale, paused=False)
    await inventory.reserve(sale.sale, 0, [want("dan", epoch=4)])
    (entry,) = (await journal(inventory, sale.sale, "r1"))[2:]
    assert [order.buyer for order in entry.reservations] == ["dan"]


async def test_a_lost_journal_is_there_again(inventory: Inventory) -> None:
    sale = a_sale()
    await published(inventory, sale)
    await buy(inventory, sale.sale, want("ann"))
    await lose(inventory, sale.sale, 0)
    await inventory.restore(rebuilt(sale), 0, {"tea": 9}, [])
    assert await journal(inventory, sale.sale) == []
    await inventory.pause(sale.sale, paused=False)
    await inventory.reserve(sale.sale, 0, [want("dan", epoch=4)])
    assert len(await journal(inventory, sale.sale)) == 1


async def test_restoring_again_has_no_effect_while_paused_and_is_refused_while_selling(inventory: Inventory) -> None:
    sale = a_sale()
    await published(inventory, sale)
    await inventory.fence(sale.sale, 0, 4)
    again = rebuilt(sale)
    await inventory.restore(again, 0, {"tea": 3}, [])
    await inventory.restock(0, Restock("r1", sale.sale, "tea", 1))
    await inventory.restore(again, 0, {"tea": 3}, [])
    assert await stock(inventory, sale.sale) == 4
    await inventory.pause(sale.sale, paused=False)
    with pytest.raises(InventoryError, match="would undo what it has sold"):
        await inventory.restore(again, 0, {"tea": 3}, [])
    assert await stock(inventory, sale.sale) == 4
    # A rebuild that woke up late can neither stop the sale nor undo it.
    with pytest.raises(InventoryError, match="take a later one"):
        await inventory.fence(sale.sale, 0, 4)
    with pytest.raises(InventoryError, match="another epoch"):
        await inventory.restore(rebuilt(sale, 9), 0, {"tea": 3}, [])
    assert await statuses(inventory, sale.sale, want("ann", epoch=4)) == [RESERVED]


async def test_a_late_credit_of_an_earlier_epoch_does_not_count(inventory: Inventory) -> None:
    assert isinstance(inventory, MemoryInventory | ValkeyInventory)
    sale = a_sale(stock=10, buckets=2)
    await published(inventory, sale)
    transfer = Transfer("t1", sale.sale, 0, 1, "tea", 2)
    debit = await inventory.debit(transfer)
    await inventory.fence(sale.sale, 1, 4)
    with pytest.raises(InventoryError):
        await inventory.credit(transfer, debit)
    await inventory.fence(sale.sale, 0, 4)
    again = rebuilt(sale)
    await inventory.restore(again, 1, {"tea": 0}, [])
    await inventory.restore(again, 0, {"tea": 10}, [])
    with pytest.raises(InventoryError, match="another epoch"):
        await inventory.credit(transfer, debit)
    await inventory.pause(sale.sale, paused=False)
    assert await inventory.move_stock(transfer) == 2
    assert await inventory.move_stock(msgspec.structs.replace(transfer, transfer_id="t2")) == 2
    assert [(await inventory.cut(sale.sale, bucket)).stock["tea"] for bucket in (0, 1)] == [6, 4]


@pytest.mark.parametrize("lost", [0, 1], ids=["source", "target"])
async def test_stock_moves_after_a_rebuild_whichever_side_was_lost(inventory: Inventory, lost: int) -> None:
    sale = a_sale(stock=100, buckets=2)
    await published(inventory, sale)
    moves = [Transfer(f"t{n}", sale.sale, 0, 1, "tea", 2) for n in range(5)]
    for transfer in moves:
        await inventory.move_stock(transfer)
    await lose(inventory, sale.sale, lost)
    for bucket in (0, 1):
        await inventory.fence(sale.sale, bucket, 4)
    for bucket in (0, 1):
        await inventory.restore(rebuilt(sale), bucket, {"tea": 50}, [])
    for transfer in moves:
        assert await inventory.move_stock(transfer) == 2
    assert [(await inventory.cut(sale.sale, bucket)).stock["tea"] for bucket in (0, 1)] == [40, 60]


async def test_positions_among_holders_do_not_outlive_a_rebuild(inventory: Inventory) -> None:
    sale = a_sale()
    await published(inventory, sale)
    await buy(inventory, sale.sale, want("ann"))
    position = (await inventory.holders(sale.sale, 0, "")).position
    await inventory.fence(sale.sale, 0, 4)
    await inventory.restore(rebuilt(sale), 0, {"tea": 9}, [HeldOrder(an_order(sale, "bob"), HeldState.LIVE)])
    found = await inventory.holders(sale.sale, 0, position)
    assert (found.buyers, found.complete) == (("bob",), True)


async def test_of_too_many_orders_of_a_buyer_ended_ones_are_dropped(inventory: Inventory) -> None:
    sale = a_sale()
    await published(inventory, sale)
    await inventory.fence(sale.sale, 0, 4)
    states = [HeldState.LIVE, *[HeldState.ENDED] * 40, *[HeldState.PAID] * 29]
    orders = [HeldOrder(an_order(sale, "ann", f"k{n}"), state) for n, state in enumerate(states)]
    await inventory.restore(rebuilt(sale), 0, {}, orders)
    kept = await inventory.orders_of(sale.sale, 0, "ann")
    assert len(kept) == ORDERS_REMEMBERED_MAX
    assert kept == [orders[0], *orders[7:]]


async def test_many_orders_are_restored(inventory: Inventory) -> None:
    sale = a_sale()
    await published(inventory, sale)
    await inventory.fence(sale.sale, 0, 4)
    orders = [HeldOrder(an_order(sale, f"b{n}", f"k{m}"), HeldState.LIVE) for n in range(1201) for m in range(2)]
    await inventory.restore(rebuilt(sale), 0, {"tea": 1}, orders)
    assert len((await inventory.holders(sale.sale, 0, "")).buyers) == 1201
    assert await inventory.orders_of(sale.sale, 0, "b1200") == orders[-2:]


@pytest.mark.parametrize("wrong", ["stock", "sku", "bucket", "sale"])
async def test_what_is_not_of_the_bucket_cannot_be_restored(inventory: Inventory, wrong: str) -> None:
    sale = a_sale()
    await published(inventory, sale)
    await inventory.fence(sale.sale, 0, 4)
    stock = {"tea": -1} if wrong == "stock" else {"mug": 1} if wrong == "sku" else {"tea": 1}
    order = an_order(sale, "ann", bucket=int(wrong == "bucket"))
    if wrong == "sale":
        order = msgspec.structs.replace(order, sale="other")
    with pytest.raises(ValueError, match="cannot be restored"):
        await inventory.restore(rebuilt(sale), 0, stock, [HeldOrder(order, HeldState.LIVE)])
    assert await stock_of(inventory, sale) == 10


async def stock_of(inventory: Inventory, sale: Sale) -> int:
    return (await inventory.cut(sale.sale, 0)).stock["tea"]
