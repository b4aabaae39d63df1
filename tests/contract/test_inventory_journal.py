"""What every inventory promises of its journal and cuts."""

import asyncio

import pytest

from springtide.drivers import valkey
from springtide.drivers.memory import inventory_bucket
from springtide.model import (
    JournalEntry,
)
from springtide.ports import Inventory
from tests.contract.inventories import (
    HOLD_MS,
    RESERVED,
    Make,
    a_sale,
    buy,
    entries_of,
    journal,
    position,
    published,
    returned,
    stock,
    want,
)


async def test_the_journal_has_what_was_acknowledged_and_nothing_else(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=7, per_buyer_max=3))
    sold: dict[str, tuple[str, str, int, int]] = {}
    for round_number in range(4):
        batch = [want(f"b{n}", f"r{round_number}", n + 1) for n in range(4)]
        for request, result in zip(batch, await inventory.reserve(sale, 0, batch), strict=True):
            if result.status is RESERVED:
                sold[request.order_id] = (request.buyer, request.key, request.quantity, result.pay_by_ms)
    orders = [order for entry in await journal(inventory, sale) for order in entry.reservations]
    assert {o.order_id: (o.buyer, o.key, o.quantity, o.pay_by_ms) for o in orders} == sold
    assert len(orders) == len(sold)
    assert {(o.sale, o.bucket, o.sku, o.pay_by_ms - o.reserved_ms) for o in orders} == {(sale, 0, "tea", HOLD_MS)}
    assert await stock(inventory, sale) == 7 - sum(order.quantity for order in orders)


async def test_a_batch_that_sold_nothing_leaves_no_entry(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=0))
    await inventory.reserve(sale, 0, [want("ann"), want("bob", deadline_in_ms=-1)])
    assert await journal(inventory, sale) == []
    assert await inventory.journal_depth(sale, 0) == 0


async def test_concurrent_batches_never_sell_more_than_there_is(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=50))
    batches = [[want(f"b{batch}-{n}") for n in range(8)] for batch in range(20)]
    answers = await asyncio.gather(*(inventory.reserve(sale, 0, batch) for batch in batches))
    assert sum(result.status is RESERVED for results in answers for result in results) == 50
    assert await stock(inventory, sale) == 0
    assert sum(len(entry.reservations) for entry in await journal(inventory, sale)) == 50


async def test_a_cut_is_consistent_with_the_journal_up_to_it(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(stock=1000))
    cuts = [await inventory.cut(sale, 0)]
    entries: list[JournalEntry] = []
    for step in range(5):
        batch = [want(f"b{step}-{n}") for n in range(step + 1)]
        _, cut = await asyncio.gather(inventory.reserve(sale, 0, batch), inventory.cut(sale, 0))
        cuts.append(cut)
    cuts.append(await inventory.cut(sale, 0))
    entries = await journal(inventory, sale)
    for cut in cuts:
        sold = sum(
            len(entry.reservations) for entry in entries if position(entry.entry_id) <= position(cut.last_entry_id)
        )
        assert cut.stock == {"tea": 1000 - sold, "cup": 5}
        assert cut.sold.get("tea", 0) == sold
    assert cuts[-1].last_entry_id == entries[-1].entry_id


async def test_the_cut_keeps_its_place_when_the_journal_is_empty_again(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale())
    await buy(inventory, sale, want("ann"))
    (entry,) = await journal(inventory, sale)
    await inventory.acknowledge(sale, 0, [entry.entry_id])
    assert (await inventory.cut(sale, 0)).last_entry_id == entry.entry_id


async def test_entries_come_in_order_in_parts_and_once(inventory: Inventory) -> None:
    sale = await entries_of(inventory, 5)
    first = await journal(inventory, sale, "r1", 2)
    second = await journal(inventory, sale, "r2", 10)
    assert [len(first), len(second)] == [2, 3]
    positions = [position(entry.entry_id) for entry in first + second]
    assert positions == sorted(set(positions))
    assert await journal(inventory, sale, "r3", 10) == []


async def test_what_a_reader_did_not_acknowledge_it_reads_again_before_new_entries(
    inventory: Inventory,
) -> None:
    sale = await entries_of(inventory, 3)
    first = await journal(inventory, sale, "r1", 2)
    assert await journal(inventory, sale, "r1", 1) == first[:1]
    again = await journal(inventory, sale, "r1", 3)
    assert again[:2] == first
    assert len(again) == 3
    await inventory.acknowledge(sale, 0, [first[0].entry_id])
    assert await journal(inventory, sale, "r1", 3) == again[1:]


async def test_an_entry_comes_once_in_a_reading_however_short_the_idle_time(make: Make) -> None:
    inventory = await make(claim_idle_ms=0)
    sale = await entries_of(inventory, 3)
    first = await journal(inventory, sale, "r1", 2)
    again = await journal(inventory, sale, "r1", 10)
    assert again[:2] == first
    assert len(again) == 3


async def test_what_another_reader_left_idle_is_read_before_new_entries(make: Make) -> None:
    inventory = await make(claim_idle_ms=50)
    sale = await entries_of(inventory, 4)
    left = await journal(inventory, sale, "dead", 2)
    await asyncio.sleep(0.1)
    assert await journal(inventory, sale, "alive", 2) == left
    new = await journal(inventory, sale, "dead", 4)
    assert len(new) == 2
    assert new[0] not in left


async def test_what_another_reader_is_busy_with_is_left_to_it(inventory: Inventory) -> None:
    sale = await entries_of(inventory, 2)
    await journal(inventory, sale, "busy", 2)
    assert await journal(inventory, sale, "idle", 2) == []


async def test_the_depth_counts_what_is_not_acknowledged(inventory: Inventory) -> None:
    sale = await entries_of(inventory, 4)
    depths = [await inventory.journal_depth(sale, 0)]
    entries = await journal(inventory, sale, count=3)
    depths.append(await inventory.journal_depth(sale, 0))
    # Out of order, twice, and one that never was: only what is new counts.
    for ids in ([entries[2].entry_id], [entries[2].entry_id, "1-1"], [entry.entry_id for entry in entries]):
        await inventory.acknowledge(sale, 0, ids)
        depths.append(await inventory.journal_depth(sale, 0))
    assert depths == [4, 4, 3, 3, 1]
    await inventory.acknowledge(sale, 0, [entry.entry_id for entry in await journal(inventory, sale)])
    assert await inventory.journal_depth(sale, 0) == 0


async def test_acknowledging_drops_nothing_that_is_still_open(make: Make) -> None:
    inventory = await make(claim_idle_ms=0)
    sale = await entries_of(inventory, 4)
    entries = await journal(inventory, sale, "r1", 3)
    await inventory.acknowledge(sale, 0, [entries[0].entry_id, entries[2].entry_id])
    rest = await journal(inventory, sale, "r2", 10)
    assert rest[0] == entries[1]
    assert len(rest) == 2
    assert await inventory.journal_depth(sale, 0) == 2


async def test_an_entry_that_nobody_has_read_is_not_dropped(inventory: Inventory) -> None:
    sale = await entries_of(inventory, 3)
    (first,) = await journal(inventory, sale, count=1)
    await inventory.acknowledge(sale, 0, [first.entry_id])
    assert len(await journal(inventory, sale)) == 2


@pytest.mark.parametrize("count", [0, 1025])
async def test_a_reader_may_not_ask_for_any_number_of_entries(inventory: Inventory, count: int) -> None:
    sale = await entries_of(inventory, 1)
    with pytest.raises(ValueError, match="ask for 1 to 1024"):
        await journal(inventory, sale, count=count)


async def test_a_cut_counts_what_was_sold_whatever_came_back(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale(per_buyer_max=9))
    batch = [want("ann", "k1", 2), want("bob", "k1", 3), want("bob", "k2", 1, "cup"), want("bob", "k3", 99)]
    await inventory.reserve(sale, 0, batch)
    (entry,) = await journal(inventory, sale)
    await inventory.give_back(returned(entry.reservations[0]))
    await inventory.reserve(sale, 0, [want("cid")])
    cut = await inventory.cut(sale, 0)
    assert cut.sold == {"tea": 6, "cup": 1}
    assert (cut.epoch, cut.transfers) == (3, ())


async def test_acknowledged_entries_are_dropped_in_the_end(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey, "RETAIN_MS", 400)
    monkeypatch.setattr(inventory_bucket, "RETAIN_MS", 400)
    sale = await published(inventory, a_sale())
    start = (await inventory.holders(sale, 0, "")).position
    await buy(inventory, sale, want("ann"))
    await buy(inventory, sale, want("bob"))
    first, second = await journal(inventory, sale)
    await inventory.acknowledge(sale, 0, [first.entry_id])
    assert not (await inventory.holders(sale, 0, start)).complete
    await asyncio.sleep(0.45)
    await inventory.acknowledge(sale, 0, [first.entry_id])
    assert (await inventory.holders(sale, 0, start)).complete
    # What is open stays, however old it is.
    assert await journal(inventory, sale) == [second]
    await inventory.acknowledge(sale, 0, [second.entry_id])
    assert await inventory.journal_depth(sale, 0) == 0
    assert (await inventory.cut(sale, 0)).last_entry_id == second.entry_id


async def test_entries_are_not_kept_for_holders_without_bound(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey, "RETAINED_MAX", 3)
    monkeypatch.setattr(inventory_bucket, "RETAINED_MAX", 3)
    sale = await published(inventory, a_sale(stock=50))
    start = (await inventory.holders(sale, 0, "")).position
    for n in range(5):
        await buy(inventory, sale, want(f"b{n}"))
    entries = await journal(inventory, sale)
    await inventory.acknowledge(sale, 0, [entry.entry_id for entry in entries[:3]])
    assert not (await inventory.holders(sale, 0, start)).complete
    await inventory.acknowledge(sale, 0, [entries[3].entry_id])
    assert (await inventory.holders(sale, 0, start)).complete
    assert await journal(inventory, sale) == entries[4:]
