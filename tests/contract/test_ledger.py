"""What every ledger promises: PostgreSQL's and the one in memory pass the same suite."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from springtide.drivers.embedded_postgres import EmbeddedPostgres
from springtide.errors import LedgerError, LedgerUnavailable
from springtide.model import JournalEntry, OrderState, Payment, PaymentOutcome, Reservation, Sale, Sku, StockReturn
from springtide.ports import Ledger
from springtide.sale.orders import after_payment, may
from tests.contract.ledgers import PRICE_FEN, SALE, empty_ledger, now_ms, order, payment, started_server


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with started_server() as server:
        yield server


@pytest.fixture(params=["postgres", "memory"])
async def ledger(request: pytest.FixtureRequest, server: EmbeddedPostgres) -> AsyncIterator[Ledger]:
    async with empty_ledger(request.param, server) as made:
        await made.publish(SALE)
        yield made


def back(one: Reservation) -> StockReturn:
    return StockReturn(one.order_id, one.sale, one.bucket, one.buyer, one.sku, one.quantity)


async def state(ledger: Ledger, one: Reservation) -> OrderState | None:
    found = await ledger.order(one.order_id)
    return found.state if found else None


async def bring(ledger: Ledger, one: Reservation, target: OrderState) -> None:
    """Record an order and take it to a state."""
    await ledger.record([one])
    if target is OrderState.PAID:
        await ledger.pay(payment(one, f"first-{one.order_id}"))
    elif target is OrderState.CANCELLED:
        await ledger.cancel(one.order_id)
    elif target is OrderState.EXPIRED:
        await ledger.expire_due(0, 10)
    assert await state(ledger, one) is target


async def test_recorded_order_is_found_as_it_was(ledger: Ledger) -> None:
    one = order(1, quantity=3)
    assert await ledger.record([one]) == 1
    found = await ledger.order("o1")
    assert found is not None
    assert (found.reservation, found.state, found.price_fen) == (one, OrderState.RESERVED, PRICE_FEN)
    assert await ledger.order("o2") is None


async def test_recording_again_changes_nothing(ledger: Ledger) -> None:
    one, two = order(1), order(2)
    await ledger.record([one])
    await ledger.cancel("o1")
    assert await ledger.record([one, two, two]) == 1
    assert await state(ledger, one) is OrderState.CANCELLED
    assert [found.reservation.order_id for found in await ledger.orders("live")] == ["o1", "o2"]


async def test_one_key_of_a_buyer_is_one_order(ledger: Ledger) -> None:
    one = order(1)
    same_key = Reservation("other", "live", 1, one.buyer, one.key, "tea", 1, 1, 1)
    assert await ledger.record([one]) == 1
    assert await ledger.record([same_key]) == 0
    assert len(await ledger.orders("live")) == 1
    assert await ledger.conflicts("live", 10) == [same_key]


async def test_orders_whose_key_has_another_order_are_kept_as_conflicts_once(ledger: Ledger) -> None:
    taken = [msgspec.structs.replace(order(number), order_id=f"other{number}") for number in (1, 2)]
    await ledger.record([order(1), order(3)])
    entries = [JournalEntry("5-0", (order(2), taken[0], order(3))), JournalEntry("5-1", (taken[1],))]
    for new in (1, 0):
        assert await ledger.record_entries("live", 0, entries) == new
    assert await ledger.conflicts("live", 10) == taken[::-1]
    assert await ledger.conflicts("live", 1) == taken[1:]
    assert await ledger.conflicts("other", 10) == []
    assert [one.reservation.order_id for one in await ledger.orders("live")] == ["o1", "o2", "o3"]
    assert await ledger.positions("live") == {0: "5-1"}


async def test_recording_nothing_is_allowed(ledger: Ledger) -> None:
    assert await ledger.record([]) == 0
    assert await ledger.record_entries("live", 0, []) == 0
    assert await ledger.positions("live") == {}


async def test_order_of_an_unpublished_sale_or_sku_is_refused_whole(ledger: Ledger) -> None:
    stray = Reservation("o9", "unknown", 0, "b", "k", "tea", 1, 1, 1)
    for wrong in (stray, order(9, sku="nothing")):
        with pytest.raises(LedgerError, match="publish it first") as caught:
            await ledger.record([order(1), wrong])
        assert not isinstance(caught.value, LedgerUnavailable)
    assert await ledger.orders("live") == []


async def test_publishing_again_changes_nothing(ledger: Ledger) -> None:
    await ledger.publish(Sale("live", "Other", (Sku("tea", "Tea", 1, 1),), 0, 1, 1000))
    assert [(one.sku, one.initial) for one in await ledger.totals("live")] == [("tea", 100), ("cup", 50)]


async def test_entries_and_position_are_recorded_together(ledger: Ledger) -> None:
    entries = [JournalEntry("5-0", (order(2), order(4))), JournalEntry("5-1", (order(6),))]
    assert await ledger.record_entries("live", 0, entries) == 3
    assert await ledger.positions("live") == {0: "5-1"}
    assert await ledger.record_entries("live", 0, entries) == 0
    with pytest.raises(LedgerError):
        await ledger.record_entries("live", 0, [JournalEntry("6-0", (order(8), order(10, sku="nothing")))])
    assert await ledger.positions("live") == {0: "5-1"}
    assert len(await ledger.orders("live")) == 3


async def test_entries_that_are_partly_there_add_the_rest(ledger: Ledger) -> None:
    await ledger.record([order(4)])
    await ledger.cancel("o4")
    entries = [JournalEntry("5-0", (order(2), order(4), order(2))), JournalEntry("5-1", (order(6),))]
    assert await ledger.record_entries("live", 0, entries) == 2
    assert await ledger.positions("live") == {0: "5-1"}
    assert await state(ledger, order(4)) is OrderState.CANCELLED
    assert len(await ledger.orders("live")) == 3


async def test_position_never_goes_back_and_compares_numbers(ledger: Ledger) -> None:
    for entry_id in ("9-0", "10-0", "9-5", "10-9", "10-10", "2-99"):
        await ledger.record_entries("live", 1, [JournalEntry(entry_id, ())])
    assert await ledger.positions("live") == {1: "10-10"}


async def test_payment_of_a_reserved_order_is_accepted_once(ledger: Ledger) -> None:
    one = order(1, quantity=2)
    await ledger.record([one])
    assert await ledger.pay(payment(one)) is PaymentOutcome.ACCEPTED
    assert await ledger.pay(payment(one)) is PaymentOutcome.ACCEPTED
    assert await ledger.pay(payment(one, "p2")) is PaymentOutcome.REFUND_DUE
    assert await ledger.pay(payment(one, "p2")) is PaymentOutcome.REFUND_DUE
    assert await state(ledger, one) is OrderState.PAID


async def test_the_same_payment_at_once_has_one_outcome(ledger: Ledger) -> None:
    one = order(1)
    await ledger.record([one])
    outcomes = await asyncio.gather(*[ledger.pay(payment(one)) for _ in range(20)])
    assert set(outcomes) == {PaymentOutcome.ACCEPTED}
    different = await asyncio.gather(*[ledger.pay(payment(one, f"q{number}")) for number in range(20)])
    assert set(different) == {PaymentOutcome.REFUND_DUE}


async def test_different_payments_at_once_pay_once(ledger: Ledger) -> None:
    one = order(1)
    await ledger.record([one])
    outcomes = await asyncio.gather(*[ledger.pay(payment(one, f"p{number}")) for number in range(20)])
    assert outcomes.count(PaymentOutcome.ACCEPTED) == 1
    assert outcomes.count(PaymentOutcome.REFUND_DUE) == 19


async def test_payment_of_another_amount_is_not_applied(ledger: Ledger) -> None:
    one = order(1, quantity=2)
    await ledger.record([one])
    for number, amount in enumerate((0, PRICE_FEN, 2 * PRICE_FEN + 1)):
        assert await ledger.pay(payment(one, f"w{number}", amount)) is PaymentOutcome.AMOUNT_DIFFERS
    assert await state(ledger, one) is OrderState.RESERVED
    assert await ledger.pay(payment(one)) is PaymentOutcome.ACCEPTED


async def test_payment_of_nobodys_order_can_be_repeated_later(ledger: Ledger) -> None:
    one = order(1)
    assert await ledger.pay(payment(one)) is PaymentOutcome.UNKNOWN_ORDER
    await ledger.record([one])
    stranger = Payment("p2", one.order_id, one.sale, "stranger", PRICE_FEN)
    assert await ledger.pay(stranger) is PaymentOutcome.UNKNOWN_ORDER
    assert await ledger.pay(payment(one)) is PaymentOutcome.ACCEPTED


@pytest.mark.parametrize("start", list(OrderState))
async def test_every_call_keeps_to_the_state_table(ledger: Ledger, start: OrderState) -> None:
    cancelled, paid, expired = (order(number, pay_by_ms=1) for number in (1, 2, 3))
    for one in (cancelled, paid, expired):
        if start is OrderState.EXPIRED:
            await bring(ledger, one, start)
    for one in (cancelled, paid, expired):
        if start is not OrderState.EXPIRED:
            await bring(ledger, one, start)

    after = OrderState.CANCELLED if may(start, OrderState.CANCELLED) else start
    assert await ledger.cancel(cancelled.order_id) is after
    assert await state(ledger, cancelled) is after

    wanted, outcome = after_payment(start)
    assert await ledger.pay(payment(paid, "late")) is outcome
    assert await state(ledger, paid) is wanted

    await ledger.expire_due(0, 10)
    assert await state(ledger, expired) is (OrderState.EXPIRED if may(start, OrderState.EXPIRED) else start)


async def test_cancelling_an_unknown_order_says_so(ledger: Ledger) -> None:
    assert await ledger.cancel("o1") is None


async def test_cancelled_stock_is_in_the_outbox_once(ledger: Ledger) -> None:
    one = order(1, quantity=4)
    await ledger.record([one])
    await asyncio.gather(*[ledger.cancel("o1") for _ in range(10)])
    assert await ledger.returns(10) == [back(one)]
    await ledger.close_returns(["o1"])
    assert await ledger.returns(10) == []
    assert await ledger.cancel("o1") is OrderState.CANCELLED
    assert await ledger.returns(10) == []


async def test_returns_of_some_buckets_can_be_left_out(ledger: Ledger) -> None:
    await ledger.record([order(number) for number in range(4)])
    for number in range(4):
        await ledger.cancel(f"o{number}")
    assert [row.order_id for row in await ledger.returns(10, [("live", 0)])] == ["o1", "o3"]
    assert [row.order_id for row in await ledger.returns(1, [("live", 1), ("other", 0)])] == ["o0"]
    assert await ledger.returns(10, [("live", 0), ("live", 1)]) == []


async def test_payment_and_cancellation_at_once_end_in_one_state(ledger: Ledger) -> None:
    orders = [order(number) for number in range(20)]
    await ledger.record(orders)
    paid = asyncio.gather(*[ledger.pay(payment(one, f"p-{one.order_id}")) for one in orders])
    cancelled = asyncio.gather(*[ledger.cancel(one.order_id) for one in orders])
    outcomes, _ = await asyncio.gather(paid, cancelled)
    returned = {row.order_id for row in await ledger.returns(100)}
    for one, outcome in zip(orders, outcomes, strict=True):
        accepted = outcome is PaymentOutcome.ACCEPTED
        assert await state(ledger, one) is (OrderState.PAID if accepted else OrderState.CANCELLED)
        assert (one.order_id in returned) is not accepted


async def test_orders_expire_after_their_grace_oldest_first(ledger: Ledger) -> None:
    now = now_ms()
    await ledger.record([order(1, pay_by_ms=now - 5000), order(2, pay_by_ms=now - 9000), order(3)])
    assert await ledger.expire_due(20_000, 10) == 0
    assert await ledger.expire_due(7000, 10) == 1
    assert [row.order_id for row in await ledger.returns(10)] == ["o2"]
    assert await ledger.expire_due(0, 10) == 1
    assert await ledger.expire_due(0, 10) == 0
    assert [row.order_id for row in await ledger.returns(10)] == ["o2", "o1"]
    assert await state(ledger, order(3)) is OrderState.RESERVED


async def test_expiry_is_bounded_and_no_order_expires_twice(ledger: Ledger) -> None:
    await ledger.record([order(number, pay_by_ms=1) for number in range(50)])
    assert await ledger.expire_due(0, 20) == 20
    counts = await asyncio.gather(*[ledger.expire_due(0, 20) for _ in range(8)])
    assert sum(counts) + await ledger.expire_due(0, 50) == 30
    assert len({row.order_id for row in await ledger.returns(100)}) == 50
    assert len(await ledger.returns(7)) == 7


async def test_totals_add_up_in_the_order_of_the_sale(ledger: Ledger) -> None:
    orders = [order(number, quantity=number) for number in (1, 2, 3, 4)]
    await ledger.record([*orders, order(9, sku="cup", quantity=7)])
    await ledger.pay(payment(orders[1]))
    await ledger.cancel("o3")
    await ledger.cancel("o4")
    await ledger.close_returns(["o4", "unknown"])
    tea, cup = await ledger.totals("live")
    assert (tea.sku, tea.initial, tea.restocked) == ("tea", 100, 0)
    assert (tea.reserved, tea.paid, tea.returning) == (1, 2, 3)
    assert (cup.sku, cup.initial, cup.reserved, cup.paid, cup.returning) == ("cup", 50, 7, 0, 0)
    assert await ledger.totals("unknown") == []
