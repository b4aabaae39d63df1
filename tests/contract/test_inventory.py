"""What every inventory promises: Valkey's and the one in memory pass the same suite."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from springtide.drivers.embedded_valkey import EmbeddedValkey, start_valkey
from springtide.drivers.inventory_limits import BATCH_MAX, ORDERS_REMEMBERED_MAX
from springtide.drivers.memory.inventory import MemoryInventory
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey import ValkeyInventory
from springtide.errors import InventoryError
from springtide.model import (
    STOCK_MAX,
    JournalEntry,
    Reservation,
    ReserveRequest,
    ReserveResult,
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    folder: Path = tmp_path_factory.mktemp("valkey")
    server = asyncio.run(start_valkey(folder, SystemClock()))
    yield server
    asyncio.run(server.stop())


@pytest.fixture(params=["valkey", "memory"])
async def make(request: pytest.FixtureRequest, server: EmbeddedValkey) -> AsyncIterator[Make]:
    """Makes inventories; they keep their sales apart by name, as one server would."""
    made: list[Inventory] = []

    async def build(**limits: int) -> Inventory:
        inventory: Inventory
        if request.param == "valkey":
            inventory = await ValkeyInventory.connect(server.host, server.port, SystemClock(), **limits)
        else:
            inventory = MemoryInventory(SystemClock(), **limits)
        made.append(inventory)
        return inventory

    yield build
    for inventory in made:
        await inventory.close()


@pytest.fixture
async def inventory(make: Make) -> Inventory:
    return await make()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def a_sale(
    stock: int = 10,
    per_buyer_max: int = 1,
    opens_in_ms: int = -HOUR_MS,
    closes_in_ms: int = HOUR_MS,
    buckets: int = 1,
) -> Sale:
    return Sale(
        sale=f"sale-{next(_numbers)}",
        title="Spring tea, 春茶",
        skus=(Sku("tea", "Tea", 500, stock, per_buyer_max), Sku("cup", "Cup", 900, 5, 5)),
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


# --- publish, view, pause ---------------------------------------------------------------------------------


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
    assert not await inventory.give_back(StockReturn("o-1", "nosuch", 0, "ann", "tea", 1))
    assert await journal(inventory, "nosuch") == []
    await inventory.acknowledge("nosuch", 0, ["1-1"])
    assert await inventory.journal_depth("nosuch", 0) == 0
    assert "nosuch" not in await inventory.sales()
    with pytest.raises(InventoryError, match="publish it first"):
        await inventory.cut("nosuch", 0)
    with pytest.raises(InventoryError, match="publish it first"):
        await inventory.pause("nosuch", paused=True)


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


# --- reserve: one batch, in order -------------------------------------------------------------------------


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


# --- reserve: what refuses a purchase, and in which order -------------------------------------------------


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


# --- find and give back -----------------------------------------------------------------------------------


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


# --- journal and cut --------------------------------------------------------------------------------------


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
    assert cuts[-1].last_entry_id == entries[-1].entry_id


def position(entry_id: str) -> tuple[int, int]:
    ms, sequence = entry_id.split("-")
    return int(ms), int(sequence)


async def test_the_cut_keeps_its_place_when_the_journal_is_empty_again(inventory: Inventory) -> None:
    sale = await published(inventory, a_sale())
    await buy(inventory, sale, want("ann"))
    (entry,) = await journal(inventory, sale)
    await inventory.acknowledge(sale, 0, [entry.entry_id])
    assert (await inventory.cut(sale, 0)).last_entry_id == entry.entry_id


async def entries_of(inventory: Inventory, count: int) -> str:
    """A sale with this many journal entries."""
    sale = await published(inventory, a_sale(stock=count))
    for n in range(count):
        await buy(inventory, sale, want(f"b{n}"))
    return sale


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
