"""What every inventory promises of a purchase: Valkey's and the one in memory pass the same suite."""

import asyncio

import pytest

from springtide.drivers.inventory_limits import BATCH_MAX, ORDERS_REMEMBERED_MAX
from springtide.model import (
    STOCK_MAX,
    ReserveRequest,
    ReserveResult,
    ReserveStatus,
)
from springtide.ports import Inventory
from tests.contract.inventories import (
    HOLD_MS,
    HOUR_MS,
    LIMIT,
    REPEATED,
    RESERVED,
    SOLD_OUT,
    Make,
    a_sale,
    buy,
    journal,
    now_ms,
    published,
    returned,
    statuses,
    stock,
    want,
)


async def test_a_purchase_takes_stock_and_is_held_until_it_is_paid(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale())
    request = want("ann")
    (result,) = await inventory.reserve(sale, 0, [request])
    assert result.status is RESERVED
    assert result.order_id == request.order_id
    assert result.live
    assert abs(result.pay_by_ms - now_ms() - HOLD_MS) < 10_000
    assert await stock(inventory, sale) == 9


async def test_an_empty_batch_has_no_answers(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale())
    assert await inventory.reserve(sale, 0, []) == []


async def test_the_same_key_again_is_the_same_order(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale())
    (first,) = await inventory.reserve(sale, 0, [want("ann")])
    (second,) = await inventory.reserve(sale, 0, [want("ann")])
    assert second == ReserveResult(REPEATED, first.order_id, first.pay_by_ms)
    assert await stock(inventory, sale) == 9


async def test_the_same_key_twice_in_a_batch_is_one_order(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(per_buyer_max=5))
    first, second = await inventory.reserve(sale, 0, [want("ann"), want("ann")])
    assert first.status is RESERVED
    assert second == ReserveResult(REPEATED, first.order_id, first.pay_by_ms)
    assert await stock(inventory, sale) == 9


async def test_keys_belong_to_their_buyer(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale())
    assert await statuses(inventory, sale, want("ann", "same"), want("bob", "same")) == [RESERVED, RESERVED]


@pytest.mark.parametrize("other", [want("ann", quantity=2), want("ann", sku="cup")], ids=["quantity", "sku"])
async def test_a_key_with_another_body_is_refused(inventory: Inventory, other: ReserveRequest) -> None:
    sale = await published(inventory, a_sale(per_buyer_max=5))
    expected = [RESERVED, ReserveStatus.KEY_REUSED]
    assert await statuses(inventory, sale, want("ann"), other) == expected
    assert await statuses(inventory, sale, other) == expected[1:]
    assert await stock(inventory, sale) == 9


async def test_a_refused_key_may_try_again(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=1))
    held = await buy(inventory, sale, want("ann"))
    assert await statuses(inventory, sale, want("bob")) == [SOLD_OUT]
    assert await inventory.give_back(returned(held))
    assert await statuses(inventory, sale, want("bob")) == [RESERVED]


async def test_a_buyer_gets_no_more_than_the_limit_with_new_keys(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(per_buyer_max=3))
    batch = [want("ann", "k1", 2), want("ann", "k2", 2), want("ann", "k3", 1), want("ann", "k4", 1)]
    results = await inventory.reserve(sale, 0, batch)
    assert [result.status for result in results] == [RESERVED, LIMIT, RESERVED, LIMIT]
    assert results[1] == ReserveResult(LIMIT, batch[0].order_id, results[0].pay_by_ms)
    assert results[3] == ReserveResult(LIMIT, batch[2].order_id, results[2].pay_by_ms)
    assert await statuses(inventory, sale, want("ann", "k5")) == [LIMIT]
    assert await stock(inventory, sale) == 7


async def test_limits_are_by_sku(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(per_buyer_max=1))
    batch = [
        want("ann", "k1"),
        want("ann", "k2", 4, "cup"),
        want("ann", "k3", 1, "cup"),
        want("ann", "k4", 1, "cup"),
    ]
    assert await statuses(inventory, sale, *batch) == [RESERVED, RESERVED, RESERVED, LIMIT]


async def test_a_first_order_above_the_limit_names_no_order(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(per_buyer_max=2))
    assert await inventory.reserve(sale, 0, [want("ann", quantity=3)]) == [ReserveResult(LIMIT)]


async def test_limits_count_live_orders_only(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(per_buyer_max=1))
    held = await buy(inventory, sale, want("ann", "k1"))
    assert await statuses(inventory, sale, want("ann", "k2")) == [LIMIT]
    await inventory.give_back(returned(held))
    assert await statuses(inventory, sale, want("ann", "k2"), want("ann", "k3")) == [RESERVED, LIMIT]


async def test_a_buyer_has_a_bounded_number_of_orders(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=1000, per_buyer_max=1000))
    batch = [want("ann", f"k{n}") for n in range(ORDERS_REMEMBERED_MAX + 1)]
    results = await inventory.reserve(sale, 0, batch)
    assert [result.status for result in results] == [RESERVED] * ORDERS_REMEMBERED_MAX + [LIMIT]
    assert results[-1].order_id == batch[-2].order_id
    assert await statuses(inventory, sale, want("ann", "k0"), want("ann", "k63")) == [REPEATED, REPEATED]


async def test_a_quantity_above_the_remainder_is_refused_and_a_smaller_one_still_fits(
    inventory: Inventory,
) -> None:
    sale = await published(inventory, a_sale(stock=5, per_buyer_max=5))
    batch = [want("ann", quantity=3), want("bob", quantity=3), want("cid", quantity=2), want("dan")]
    assert await statuses(inventory, sale, *batch) == [RESERVED, SOLD_OUT, RESERVED, SOLD_OUT]
    assert await stock(inventory, sale) == 0


async def test_an_unknown_sku_is_named_as_such(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale())
    assert await statuses(inventory, sale, want("ann", sku="mug")) == [ReserveStatus.UNKNOWN_SKU]


async def test_a_full_batch_is_sold_in_one_entry(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=BATCH_MAX - 1))
    batch = [want(f"buyer-{n}") for n in range(BATCH_MAX)]
    assert await statuses(inventory, sale, *batch) == [RESERVED] * (BATCH_MAX - 1) + [SOLD_OUT]
    (entry,) = await journal(inventory, sale)
    assert [order.order_id for order in entry.reservations] == [request.order_id for request in batch[:-1]]


@pytest.mark.parametrize(
    "batch",
    [[want(f"b-{n}") for n in range(BATCH_MAX + 1)], [want("ann", quantity=0)]],
    ids=["too many", "no unit"],
)
async def test_a_batch_that_is_no_batch_is_refused(inventory: Inventory, batch: list[ReserveRequest]) -> None:
    sale = await published(inventory, a_sale())
    with pytest.raises(ValueError, match=r"send it in parts|less than one unit"):
        await inventory.reserve(sale, 0, batch)
    assert await stock(inventory, sale) == 10


async def test_big_quantities_and_stocks_are_exact(make: Make) -> None:
    inventory = await make()
    sale = await published(inventory, a_sale(stock=STOCK_MAX, per_buyer_max=1_000_000))
    held = await buy(inventory, sale, want("ann", quantity=1_000_000))
    assert held.quantity == 1_000_000
    assert await stock(inventory, sale) == STOCK_MAX - 1_000_000
    await inventory.give_back(returned(held))
    assert await stock(inventory, sale) == STOCK_MAX


# --- what refuses a purchase, and in which order ------------------------------


async def test_nothing_is_sold_before_the_opening_or_after_the_closing(inventory: Inventory) -> None:
    early = await published(inventory, a_sale(opens_in_ms=HOUR_MS // 2))
    over = await published(inventory, a_sale(closes_in_ms=-1))
    assert await statuses(inventory, early, want("ann")) == [ReserveStatus.NOT_OPEN]
    assert await statuses(inventory, over, want("ann")) == [ReserveStatus.CLOSED]


async def test_a_purchase_past_its_deadline_is_late(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale())
    batch = [want("ann", deadline_in_ms=-1), want("bob")]
    assert await statuses(inventory, sale, *batch) == [ReserveStatus.LATE, RESERVED]


@pytest.mark.parametrize("epoch", [2, 4])
async def test_a_purchase_of_another_epoch_is_stale(inventory: Inventory, epoch: int) -> None:
    sale = await published(inventory, a_sale())
    assert await statuses(inventory, sale, want("ann", epoch=epoch)) == [ReserveStatus.STALE_EPOCH]


async def test_of_several_reasons_the_first_one_is_told(make: Make) -> None:
    inventory = await make(journal_lag_max=1)
    sale = await published(inventory, a_sale(stock=2, per_buyer_max=2, closes_in_ms=HOUR_MS))
    early = await published(inventory, a_sale(opens_in_ms=HOUR_MS // 2))
    over = await published(inventory, a_sale(closes_in_ms=-1))
    for name in (sale, early, over):
        await inventory.pause(name, paused=True)
    stale = want("ann", epoch=9, sku="mug")
    late = want("ann", epoch=9, sku="mug", deadline_in_ms=-1)
    unknown = want("dan", sku="mug", quantity=99)
    assert await statuses(inventory, early, late, stale, unknown) == [
        ReserveStatus.LATE,
        ReserveStatus.STALE_EPOCH,
        ReserveStatus.NOT_OPEN,
    ]
    assert await statuses(inventory, over, unknown) == [ReserveStatus.CLOSED]
    assert await statuses(inventory, sale, unknown) == [ReserveStatus.PAUSED]
    await inventory.pause(sale, paused=False)
    assert await statuses(inventory, sale, want("ann")) == [RESERVED]
    batch = [unknown, want("bob", quantity=3), want("bob", quantity=2), want("bob")]
    assert await statuses(inventory, sale, *batch) == [
        ReserveStatus.UNKNOWN_SKU,
        LIMIT,
        SOLD_OUT,
        ReserveStatus.JOURNAL_FULL,
    ]


async def test_a_known_key_is_answered_whatever_the_state_of_the_sale(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=1, closes_in_ms=400))
    (first,) = await inventory.reserve(sale, 0, [want("ann")])
    again = want("ann", epoch=9, deadline_in_ms=-HOUR_MS)
    expected = [ReserveResult(REPEATED, first.order_id, first.pay_by_ms)]
    assert await inventory.reserve(sale, 0, [again]) == expected
    await inventory.pause(sale, paused=True)
    assert await inventory.reserve(sale, 0, [again]) == expected
    await inventory.pause(sale, paused=False)
    await asyncio.sleep(0.45)
    assert await statuses(inventory, sale, want("bob")) == [ReserveStatus.CLOSED]
    assert await inventory.reserve(sale, 0, [again]) == expected


async def test_with_a_full_journal_nothing_is_sold_until_it_is_read(make: Make) -> None:
    inventory = await make(journal_lag_max=2)
    sale = await published(inventory, a_sale())
    for buyer in ("ann", "bob"):
        await buy(inventory, sale, want(buyer))
    assert await statuses(inventory, sale, want("cid"), want("ann")) == [ReserveStatus.JOURNAL_FULL, REPEATED]
    assert await stock(inventory, sale) == 8
    entries = await journal(inventory, sale)
    assert await statuses(inventory, sale, want("cid")) == [ReserveStatus.JOURNAL_FULL]
    await inventory.acknowledge(sale, 0, [entries[0].entry_id])
    assert await statuses(inventory, sale, want("cid")) == [RESERVED]


async def test_an_acknowledged_journal_is_empty_to_the_last_entry(make: Make) -> None:
    inventory = await make(journal_lag_max=1)
    sale = await published(inventory, a_sale())
    for buyer in ("ann", "bob", "cid"):
        assert await statuses(inventory, sale, want(buyer)) == [RESERVED]
        (entry,) = await journal(inventory, sale)
        await inventory.acknowledge(sale, 0, [entry.entry_id])


async def test_what_is_only_kept_for_holders_does_not_fill_the_journal(make: Make) -> None:
    inventory = await make(journal_lag_max=3)
    sale = await published(inventory, a_sale(stock=20))
    for n in range(8):
        await buy(inventory, sale, want(f"b{n}"))
        read = await journal(inventory, sale)
        if n != 5:
            await inventory.acknowledge(sale, 0, [read[-1].entry_id])
    assert await inventory.journal_depth(sale, 0) == 1
    await buy(inventory, sale, want("x"))
    await buy(inventory, sale, want("y"))
    assert await inventory.journal_depth(sale, 0) == 3
    assert await statuses(inventory, sale, want("z")) == [ReserveStatus.JOURNAL_FULL]
    # What is acknowledged behind an open entry makes room as well.
    unread = await journal(inventory, sale)
    await inventory.acknowledge(sale, 0, [unread[-1].entry_id])
    assert await statuses(inventory, sale, want("z")) == [RESERVED]
