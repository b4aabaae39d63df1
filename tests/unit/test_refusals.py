"""Refusing from memory: cheap, true, and over as soon as it is not true any more."""

import zlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from springtide.drivers.memory.clock import VirtualClock
from springtide.errors import InventoryUnavailable
from springtide.model import ReserveStatus, Restock, Sale, Sku, StockReturn, Transfer
from springtide.sale import problems, refusals
from tests.unit.replica import Counted, Purchase, Replica


def make_sale(clock: VirtualClock, stock: int = 1, buckets: int = 1) -> Sale:
    now_ms = clock.now_ms()
    skus = (Sku("tea", "Tea", 1, stock, per_buyer_max=2), Sku("cup", "Cup", 1, 50))
    return Sale("evening", "An evening", skus, now_ms - 1000, now_ms + 600_000, 60_000, buckets=buckets)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def inventory(clock: VirtualClock) -> Counted:
    return Counted(clock)


@pytest.fixture
async def replica(inventory: Counted, clock: VirtualClock) -> AsyncIterator[Replica]:
    """One whose only tea is sold to anna, with key k1."""
    await inventory.publish(make_sale(clock))
    replica = Replica(inventory, clock)
    await replica.start()
    sold = replica.buy("anna", "k1")
    await clock.advance(0.1)
    assert sold.status is ReserveStatus.RESERVED
    yield replica
    await replica.close()


async def give_back(inventory: Counted, order_id: str, buyer: str = "anna") -> None:
    bucket = 0
    assert await inventory.give_back(StockReturn(order_id, "evening", bucket, buyer, "tea", 1))


def order_of(purchase: Purchase) -> str:
    assert purchase.status in {ReserveStatus.RESERVED, ReserveStatus.REPEATED}
    return purchase.answer.order_id  # type: ignore[union-attr]  # the status tells that it is a result


@pytest.mark.parametrize(("at_once", "rounds_s"), [(5, refusals.ROUND_S), (50, refusals.CROWD / 50 * 0.005)])
async def test_sold_out_is_answered_without_a_call_of_its_own(
    replica: Replica, inventory: Counted, clock: VirtualClock, at_once: int, rounds_s: float
) -> None:
    reserves, views, looks = inventory.reserves, inventory.views, replica.refusals.looks
    crowd = []
    for round_ in range(100):
        crowd += [replica.buy(f"b{round_}-{number}", "k") for number in range(at_once)]
        await clock.advance(0.005)
    await clock.advance(0.05)
    assert {one.status for one in crowd} == {ReserveStatus.SOLD_OUT}
    assert all(one.from_memory and one.told == 1 for one in crowd)
    assert inventory.reserves == reserves
    assert inventory.views - views <= 0.55 / rounds_s + 0.55 / 0.08 + 2
    assert 20 <= replica.refusals.looks - looks <= 0.55 / rounds_s + 2
    assert replica.refusals.waiting == 0


async def test_a_crowd_is_looked_for_sooner_but_not_at_once(
    replica: Replica, inventory: Counted, clock: VirtualClock
) -> None:
    replica.buy("bert", "k")
    await clock.advance(0.0)
    looks = replica.refusals.looks
    crowd = [replica.buy(f"b{number}", "k") for number in range(refusals.CROWD)]
    await clock.advance(refusals.CROWD_ROUND_S / 2)
    assert replica.refusals.looks == looks
    await clock.advance(refusals.CROWD_ROUND_S)
    assert {one.status for one in crowd} == {ReserveStatus.SOLD_OUT}
    assert replica.refusals.looks == looks + 1


async def test_holders_are_read_again_only_when_there_has_been_an_order(
    replica: Replica, inventory: Counted, clock: VirtualClock
) -> None:
    for number in range(3):
        replica.buy(f"b{number}", "k")
        await clock.advance(0.05)
    calls = inventory.holder_calls
    for number in range(3):
        assert replica.buy(f"c{number}", "k").status is None
        await clock.advance(0.05)
    assert inventory.holder_calls == calls
    elsewhere = Replica(inventory, clock)
    await elsewhere.start()
    elsewhere.buy("dora", "k", "cup")
    await clock.advance(0.0)
    calls = inventory.holder_calls
    replica.buy("emil", "k")
    await clock.advance(0.05)
    assert inventory.holder_calls == calls + 1
    await elsewhere.close()


async def test_who_holds_an_order_is_always_asked_about(
    replica: Replica, inventory: Counted, clock: VirtualClock
) -> None:
    again, other_body, more, too_many = (
        replica.buy("anna", "k1"),
        replica.buy("anna", "k1", quantity=2),
        replica.buy("anna", "k2"),
        replica.buy("anna", "k3", quantity=2),
    )
    await clock.advance(0.05)
    assert [one.status for one in (again, other_body, more, too_many)] == [
        ReserveStatus.REPEATED,
        ReserveStatus.KEY_REUSED,
        ReserveStatus.SOLD_OUT,
        ReserveStatus.LIMIT_REACHED,
    ]
    assert not any(one.from_memory for one in (again, other_body, more, too_many))


async def test_a_limit_is_told_before_sold_out_from_memory_too(replica: Replica, clock: VirtualClock) -> None:
    greedy = replica.buy("bert", "k", quantity=3)
    await clock.advance(0.05)
    assert (greedy.status, greedy.from_memory) == (ReserveStatus.LIMIT_REACHED, True)


async def test_returned_stock_sells_again_within_the_age_of_a_flag(
    replica: Replica, inventory: Counted, clock: VirtualClock
) -> None:
    first = replica.buy("anna", "k1")
    await clock.advance(0.05)
    await give_back(inventory, order_of(first))
    returned_s = clock.monotonic_s()
    while True:
        number = round(clock.monotonic_s() * 1000)
        purchase = replica.buy(f"b{number}", "k")
        await clock.advance(0.004)
        if purchase.status is ReserveStatus.RESERVED:
            break
        assert clock.monotonic_s() - returned_s < refusals.FLAG_S


async def test_a_retry_at_another_replica_is_never_told_sold_out(
    replica: Replica, inventory: Counted, clock: VirtualClock
) -> None:
    """Bought elsewhere a moment ago, with a unit that came back after our last look, and the answer was lost."""
    first = replica.buy("anna", "k1")
    await clock.advance(0.05)
    assert "tea" in replica.page().hinted
    elsewhere = Replica(inventory, clock)
    await give_back(inventory, order_of(first))
    await elsewhere.start()
    bought = elsewhere.buy("bert", "k9")
    await clock.advance(0.0)
    assert bought.status is ReserveStatus.RESERVED
    assert "tea" in replica.page().hinted, "this replica has not noticed"
    retry = replica.buy("bert", "k9")
    await clock.advance(0.05)
    assert (retry.status, order_of(retry)) == (ReserveStatus.REPEATED, order_of(bought))
    await elsewhere.close()


async def test_an_old_flag_is_not_used(replica: Replica, inventory: Counted, clock: VirtualClock) -> None:
    inventory.failure = InventoryUnavailable("away")
    await clock.advance(refusals.FLAG_S + 0.05)
    late = replica.buy("bert", "k")
    await clock.advance(0.0)
    assert (late.status, late.from_memory) == (ReserveStatus.SOLD_OUT, False)


async def test_a_look_that_fails_is_not_taken_for_an_answer(
    replica: Replica, inventory: Counted, clock: VirtualClock
) -> None:
    for failure in (InventoryUnavailable("away"), RuntimeError("a fault")):
        inventory.failure = failure
        purchase = replica.buy("bert", "k")
        await clock.advance(0.06)
        assert purchase.answer is problems.UNAVAILABLE
        inventory.failure = None
        await clock.advance(0.3)


async def test_a_hint_alone_is_no_answer(replica: Replica, inventory: Counted, clock: VirtualClock) -> None:
    replica.page().hinted.add("cup")
    purchase = replica.buy("bert", "k", "cup")
    await clock.advance(0.05)
    assert purchase.status is ReserveStatus.RESERVED
    assert inventory.holder_calls > 0


async def test_those_who_cannot_all_be_sent_wait_in_their_order(
    replica: Replica, inventory: Counted, clock: VirtualClock
) -> None:
    await inventory.restock(0, Restock("r1", "evening", "tea", 100))
    crowd = [replica.buy(f"b{number}", "k") for number in range(400)]
    replica.accepting = False
    await clock.advance(0.1)
    assert replica.refusals.waiting == 400
    replica.accepting = True
    await clock.advance(0.1)
    assert [one.status for one in crowd[:100]] == [ReserveStatus.RESERVED] * 100
    assert {one.status for one in crowd[100:]} == {ReserveStatus.SOLD_OUT}
    assert all(one.told == 1 for one in crowd)


async def test_who_waits_too_long_is_overload(replica: Replica, inventory: Counted, clock: VirtualClock) -> None:
    await inventory.restock(0, Restock("r1", "evening", "tea", 100))
    replica.accepting = False
    purchase = replica.buy("bert", "k")
    await clock.advance(2.1)
    assert purchase.answer is problems.OVERLOADED


async def test_waiting_is_bounded(replica: Replica, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "WAITING_MAX", 10)
    crowd = [replica.buy(f"b{number}", "k") for number in range(20)]
    assert replica.refusals.waiting == 10
    await clock.advance(0.05)
    assert {one.status for one in crowd} == {ReserveStatus.SOLD_OUT}
    assert sum(one.from_memory for one in crowd) == 10


async def test_before_the_opening_and_after_the_end_nobody_troubles_the_inventory(
    inventory: Counted, clock: VirtualClock
) -> None:
    sale = make_sale(clock, stock=5)
    sale = msgspec.structs.replace(sale, opens_ms=clock.now_ms() + 1000, closes_ms=clock.now_ms() + 2000)
    await inventory.publish(sale)
    replica = Replica(inventory, clock)
    await replica.start()
    early = [replica.buy(f"b{number}", "k") for number in range(100)]
    await clock.advance(0.96)
    assert {(one.status, one.from_memory) for one in early} == {(ReserveStatus.NOT_OPEN, True)}
    near = replica.buy("near", "k")
    await clock.advance(0.0)
    assert (near.status, near.from_memory) == (ReserveStatus.NOT_OPEN, False)
    await clock.advance(0.04)
    made = replica.buy("anna", "k1")
    await clock.advance(1.2)
    assert made.status is ReserveStatus.RESERVED
    reserves = inventory.reserves
    late, again = replica.buy("bert", "k"), replica.buy("anna", "k1")
    await clock.advance(0.1)
    assert (late.status, late.from_memory) == (ReserveStatus.CLOSED, True)
    assert (again.status, order_of(again)) == (ReserveStatus.REPEATED, order_of(made))
    assert inventory.reserves == reserves + 1
    await replica.close()


async def test_a_sale_that_is_opened_early_or_closed_or_paused_is_noticed_within_the_age_of_its_page(
    inventory: Counted, clock: VirtualClock
) -> None:
    sale = msgspec.structs.replace(make_sale(clock, stock=5), opens_ms=clock.now_ms() + 100_000)
    await inventory.publish(sale)
    replica = Replica(inventory, clock)
    await replica.start()

    async def told(buyer: str) -> ReserveStatus | None:
        await clock.advance(0.2)
        purchase = replica.buy(buyer, "k")
        await clock.advance(0.05)
        return purchase.status

    assert await told("a") is ReserveStatus.NOT_OPEN
    await inventory.redefine(msgspec.structs.replace(sale, opens_ms=clock.now_ms()))
    assert await told("b") is ReserveStatus.RESERVED
    await inventory.pause("evening", paused=True)
    assert await told("c") is ReserveStatus.PAUSED
    await inventory.pause("evening", paused=False)
    assert await told("d") is ReserveStatus.RESERVED
    await inventory.redefine(msgspec.structs.replace(sale, opens_ms=sale.opens_ms - 200_000, closes_ms=clock.now_ms()))
    assert await told("e") is ReserveStatus.CLOSED
    await replica.close()


async def test_a_unit_that_moves_between_buckets_is_not_overlooked(inventory: Counted, clock: VirtualClock) -> None:
    """Over several buckets one reading proves nothing; two with the same version do."""
    sale = make_sale(clock, stock=1, buckets=2)
    await inventory.publish(sale)
    replica = Replica(inventory, clock)
    await replica.start()
    page = replica.page()
    home = zlib.crc32(b"tea") % 2
    assert not page.sold_out
    buyer = next(name for name in map(str, range(99)) if zlib.crc32(name.encode()) % 2 == home)
    sold = replica.buy(buyer, "k")
    await clock.advance(0.2)
    assert sold.status is ReserveStatus.RESERVED
    assert replica.page().sold_out == {"tea"}
    reserves = inventory.reserves
    refused = replica.buy("bert", "k")
    await clock.advance(0.05)
    assert (refused.status, refused.from_memory) == (ReserveStatus.SOLD_OUT, True)
    assert inventory.reserves == reserves
    await give_back_from(inventory, home, order_of(sold), buyer)
    assert await inventory.move_stock(Transfer("t1", "evening", home, 1 - home, "tea", 1)) == 1
    await clock.advance(0.1)
    assert not replica.page().sold_out
    assert not replica.page().dry
    await replica.close()


async def give_back_from(inventory: Counted, bucket: int, order_id: str, buyer: str) -> None:
    assert await inventory.give_back(StockReturn(order_id, "evening", bucket, buyer, "tea", 1))


async def test_without_a_pass_only_those_who_may_hold_an_order_are_looked_up(
    replica: Replica, inventory: Counted, clock: VirtualClock
) -> None:
    await inventory.restock(0, Restock("r1", "evening", "tea", 100))
    await clock.advance(0.1)
    crowd = [replica.buy(f"b{number}", "k", admitted=False) for number in range(100)]
    anna = replica.buy("anna", "k1", admitted=False)
    await clock.advance(0.05)
    assert {(one.status, one.from_memory) for one in crowd} == {(ReserveStatus.UNKNOWN, True)}
    assert replica.found == ["anna"]
    assert anna.told == 1


async def test_closing_tells_who_waits(replica: Replica, inventory: Counted, clock: VirtualClock) -> None:
    inventory.lasts_s = 0.5
    purchase = replica.buy("bert", "k")
    await clock.advance(0.01)
    second = replica.buy("cora", "k")
    await replica.refusals.close()
    assert purchase.answer is second.answer is problems.UNAVAILABLE
    assert replica.refusals.waiting == 0
