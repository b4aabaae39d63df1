"""What every inventory promises of orders that are there: find, settle, give back, holders."""

import asyncio

import pytest

from springtide.drivers import valkey
from springtide.drivers.inventory_limits import BATCH_MAX
from springtide.drivers.memory import inventory_bucket
from springtide.model import (
    HeldOrder,
    HeldState,
    ReserveResult,
    StockReturn,
)
from springtide.ports import Inventory
from tests.contract.inventories import (
    LIMIT,
    REPEATED,
    RESERVED,
    a_sale,
    buy,
    journal,
    published,
    returned,
    statuses,
    stock,
    want,
)


async def test_an_order_is_found_as_it_was_journalled(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(per_buyer_max=5))
    await inventory.reserve(sale, 0, [want("ann", "k.1:a", 2), want("ann", "k_2", 1, "cup"), want("bob")])
    (entry,) = await journal(inventory, sale)
    for order in entry.reservations:
        assert await inventory.find(sale, 0, order.buyer, order.order_id) == order
    ann = entry.reservations[0]
    assert await inventory.find(sale, 0, "bob", ann.order_id) is None
    assert await inventory.find(sale, 0, "ann", ann.order_id[:-1]) is None
    assert await inventory.find(sale, 0, "nobody", ann.order_id) is None


async def test_stock_goes_back_once_and_sells_again(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=2, per_buyer_max=2))
    held = await buy(inventory, sale, want("ann", quantity=2))
    before = await inventory.view(sale)
    assert await inventory.give_back(returned(held))
    assert not await inventory.give_back(returned(held))
    after = await inventory.view(sale)
    assert before is not None
    assert after is not None
    assert after.stock["tea"] == 2
    assert after.stock_version > before.stock_version
    assert await statuses(inventory, sale, want("bob", quantity=2)) == [RESERVED]


async def test_the_key_of_an_ended_order_stays_known(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale())
    held = await buy(inventory, sale, want("ann"))
    await inventory.give_back(returned(held))
    (result,) = await inventory.reserve(sale, 0, [want("ann")])
    assert result == ReserveResult(REPEATED, held.order_id, held.pay_by_ms, live=False)
    assert await inventory.find(sale, 0, "ann", held.order_id) == held


async def test_only_the_order_named_goes_back(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(per_buyer_max=9))
    batch = [want("ann", f"k{n}", n + 1) for n in range(3)]
    await inventory.reserve(sale, 0, batch)
    (entry,) = await journal(inventory, sale)
    first, second, third = entry.reservations
    assert await inventory.give_back(returned(second))
    assert await stock(inventory, sale) == 6
    results = await inventory.reserve(sale, 0, [want("ann", f"k{n}", n + 1) for n in range(3)])
    assert [result.live for result in results] == [True, False, True]
    assert [result.order_id for result in results] == [first.order_id, second.order_id, third.order_id]


@pytest.mark.parametrize("change", [{"order_id": "o-none"}, {"order_id": "o-"}, {"buyer": "bob"}])
async def test_what_was_not_sold_cannot_come_back(inventory: Inventory, change: dict[str, str]) -> None:
    sale = await published(inventory, a_sale())
    held = await buy(inventory, sale, want("ann"))
    fields = {"order_id": held.order_id, "buyer": held.buyer} | change
    assert not await inventory.give_back(StockReturn(sale=sale, bucket=0, sku="tea", quantity=1, **fields))
    assert await stock(inventory, sale) == 9


async def test_many_at_once_give_an_order_back_once(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale())
    held = await buy(inventory, sale, want("ann"))
    assert sum(await asyncio.gather(*(inventory.give_back(returned(held)) for _ in range(20)))) == 1
    assert await stock(inventory, sale) == 10


# --- all orders of a buyer, and paid ones -----------------------------------------------------------------


async def test_a_buyers_orders_are_told_in_order_with_their_states(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(per_buyer_max=9))
    await inventory.reserve(sale, 0, [want("ann", f"k{n}", n + 1) for n in range(3)] + [want("bob")])
    (entry,) = await journal(inventory, sale)
    first, second, third, bobs = entry.reservations
    assert await inventory.give_back(returned(first))
    assert await inventory.settle(sale, 0, "ann", second.order_id)
    assert await inventory.orders_of(sale, 0, "ann") == [
        HeldOrder(first, HeldState.ENDED),
        HeldOrder(second, HeldState.PAID),
        HeldOrder(third, HeldState.LIVE),
    ]
    assert await inventory.orders_of(sale, 0, "bob") == [HeldOrder(bobs, HeldState.LIVE)]
    assert await inventory.orders_of(sale, 0, "cid") == []


async def test_a_paid_order_stays_paid_and_counts_as_held(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(per_buyer_max=1))
    held = await buy(inventory, sale, want("ann"))
    assert await inventory.settle(sale, 0, "ann", held.order_id)
    assert await inventory.settle(sale, 0, "ann", held.order_id)
    assert not await inventory.give_back(returned(held))
    assert await stock(inventory, sale) == 9
    results = await inventory.reserve(sale, 0, [want("ann"), want("ann", "k2")])
    assert results == [
        ReserveResult(REPEATED, held.order_id, held.pay_by_ms, live=True),
        ReserveResult(LIMIT, held.order_id, held.pay_by_ms),
    ]
    assert await inventory.find(sale, 0, "ann", held.order_id) == held


async def test_what_has_ended_or_is_not_there_is_not_paid(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale())
    held = await buy(inventory, sale, want("ann"))
    await inventory.give_back(returned(held))
    assert not await inventory.settle(sale, 0, "ann", held.order_id)
    assert not await inventory.settle(sale, 0, "ann", "o-none")
    assert not await inventory.settle(sale, 0, "nobody", held.order_id)
    assert [one.state for one in await inventory.orders_of(sale, 0, "ann")] == [HeldState.ENDED]


# --- holders ----------------------------------------------------------------------------------------------


async def test_all_holders_are_told_and_then_the_new_ones(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=1000, per_buyer_max=2, buckets=2))
    await inventory.reserve(sale, 1, [want("other")])
    empty = await inventory.holders(sale, 0, "")
    assert (empty.buyers, empty.complete) == ((), True)
    await inventory.reserve(sale, 0, [want("ann"), want("bob"), want("cid", quantity=9)])
    await inventory.reserve(sale, 0, [want("ann", "k2"), want("dan")])
    new = await inventory.holders(sale, 0, empty.position)
    assert (sorted(new.buyers), new.complete) == (["ann", "bob", "dan"], False)
    whole = await inventory.holders(sale, 0, "")
    assert (sorted(whole.buyers), whole.complete) == (["ann", "bob", "dan"], True)
    assert whole.position == new.position
    none = await inventory.holders(sale, 0, new.position)
    assert (none.buyers, none.position, none.complete) == ((), new.position, False)


async def test_who_gave_an_order_back_is_still_told(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale())
    held = await buy(inventory, sale, want("ann"))
    await inventory.give_back(returned(held))
    assert (await inventory.holders(sale, 0, "")).buyers == ("ann",)


async def test_new_holders_are_told_after_their_entries_are_acknowledged(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=500))
    position = (await inventory.holders(sale, 0, "")).position
    seen: set[str] = set()
    for n in range(40):
        await inventory.reserve(sale, 0, [want(f"b{n}-{one}") for one in range(3)])
        await inventory.acknowledge(sale, 0, [entry.entry_id for entry in await journal(inventory, sale)])
        if n % 20 == 19:
            new = await inventory.holders(sale, 0, position)
            assert not new.complete
            assert not seen & set(new.buyers)
            seen.update(new.buyers)
            position = new.position
    assert len(seen) == 120


async def test_many_holders_are_told_while_more_come(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=10_000))
    for part in range(3):
        await inventory.reserve(sale, 0, [want(f"b{part}-{n}") for n in range(BATCH_MAX)])
    before = {f"b{part}-{n}" for part in range(3) for n in range(BATCH_MAX)}

    async def more() -> None:
        for part in range(20):
            await inventory.reserve(sale, 0, [want(f"x{part}-{n}") for n in range(50)])

    found, _ = await asyncio.gather(inventory.holders(sale, 0, ""), more())
    assert found.complete
    assert len(set(found.buyers)) == len(found.buyers)
    assert before <= set(found.buyers)
    later = await inventory.holders(sale, 0, found.position)
    whole = await inventory.holders(sale, 0, "")
    assert set(found.buyers) | set(later.buyers) == set(whole.buyers)
    assert len(whole.buyers) == len(before) + 1000


async def test_too_many_new_entries_are_told_as_a_whole(inventory: Inventory, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (valkey, inventory_bucket):
        monkeypatch.setattr(module, "HOLDERS_ENTRIES_MAX", 2)
    sale = await published(inventory, a_sale())
    start = (await inventory.holders(sale, 0, "")).position
    for n, complete in enumerate((False, False, True)):
        await buy(inventory, sale, want(f"b{n}"))
        found = await inventory.holders(sale, 0, start)
        assert (len(found.buyers), found.complete) == (n + 1, complete)


@pytest.mark.parametrize("position", ["1", "a:b:c", "1-1", "::"])
async def test_a_position_that_is_none_is_refused(inventory: Inventory, position: str) -> None:
    sale = await published(inventory, a_sale())
    with pytest.raises(ValueError, match="use one that was given"):
        await inventory.holders(sale, 0, position)
