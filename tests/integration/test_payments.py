"""Payments, expiry and stock returns on the real engines."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
from structlog.testing import capture_logs

from springtide.errors import InventoryUnavailable, LedgerUnavailable
from springtide.model import (
    HeldState,
    OrderState,
    Payment,
    PaymentOutcome,
    ReserveStatus,
    Restock,
    StockReturn,
)
from springtide.sale.orders import bucket_of, home_of
from springtide.sale.payments import PaymentLimits, Payments
from springtide.sale.recorder import Recorder
from tests.integration.order_path import (
    CLOCK,
    PRICE_FEN,
    Engines,
    World,
    empty_world,
    small_sale,
    started_engines,
)

AT_ONCE = PaymentLimits(grace_ms=0, expire_every_s=0.02, return_every_s=0.02, retry_first_s=0.01)


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    with started_engines() as engines:
        yield engines


@pytest.fixture
async def world(engines: Engines) -> AsyncIterator[World]:
    async with empty_world(engines) as world:
        yield world


def payments(world: World, limits: PaymentLimits = AT_ONCE) -> Payments:
    return Payments(world.inventory, world.ledger, CLOCK, limits)


def payment(buyer: str, payment_id: str = "", units: int = 1) -> Payment:
    return Payment(payment_id or f"p-{buyer}", f"o-{buyer}-tea", "live", buyer, PRICE_FEN * units)


async def record(world: World) -> None:
    recorder = Recorder(world.inventory, world.ledger, CLOCK, "r1")
    while await recorder.drain_once():
        pass


async def state(world: World, buyer: str) -> OrderState | None:
    order = await world.ledger.order(f"o-{buyer}-tea")
    return order.state if order else None


async def test_recorded_order_is_paid_once(world: World) -> None:
    sale = small_sale()
    await world.inventory.publish(sale)
    await world.buy(sale, ["b1"], quantity=2)
    await record(world)
    mine = payments(world)
    assert await mine.pay(payment("b1", units=2)) is PaymentOutcome.ACCEPTED
    assert await mine.pay(payment("b1", units=2)) is PaymentOutcome.ACCEPTED
    assert await mine.pay(payment("b1", "another", units=2)) is PaymentOutcome.REFUND_DUE
    assert await mine.pay(payment("b1", "less")) is PaymentOutcome.AMOUNT_DIFFERS
    assert mine.figures.outcomes == {"accepted": 2, "refund_due": 1, "amount_differs": 1}


async def test_order_that_is_only_journalled_is_recorded_and_paid(world: World) -> None:
    sale = small_sale()
    await world.inventory.publish(sale)
    await world.buy(sale, ["b1", "b2"])
    mine = payments(world)
    assert await mine.pay(payment("b1")) is PaymentOutcome.ACCEPTED
    assert await mine.cancel("o-b2-tea", "live", "b2") is OrderState.CANCELLED
    await record(world)
    assert await state(world, "b1") is OrderState.PAID
    assert await state(world, "b2") is OrderState.CANCELLED
    assert len(await world.ledger.orders("live")) == 2


async def test_nobodys_order_is_unknown(world: World) -> None:
    sale = small_sale()
    await world.inventory.publish(sale)
    await world.buy(sale, ["b1"])
    mine = payments(world)
    assert await mine.pay(Payment("p", "o-b1-tea", "live", "b2", PRICE_FEN)) is PaymentOutcome.UNKNOWN_ORDER
    assert await mine.pay(Payment("p", "o-b1-tea", "no-sale", "b1", 1)) is PaymentOutcome.UNKNOWN_ORDER
    assert await mine.cancel("o-b9-tea", "live", "b9") is None
    assert await mine.cancel("o-b9-tea") is None
    assert await mine.pay(payment("b1", "p")) is PaymentOutcome.ACCEPTED


async def test_expired_stock_is_sold_again_and_a_late_payment_is_to_be_refunded(world: World) -> None:
    sale = small_sale(hold_ms=1000, buckets=1)
    await world.inventory.publish(sale)
    buyers = [f"b{number}" for number in range(20)]
    await world.buy(sale, buyers, quantity=5)
    assert (await world.buy(sale, ["late"]))[0].status is ReserveStatus.SOLD_OUT
    await record(world)
    mine = payments(world)
    assert await mine.expire_once() == 0
    await mine.pay(payment("b0", units=5))
    await asyncio.sleep(1.1)
    assert await mine.expire_once() == 19
    assert await mine.return_once() == 19
    assert await mine.return_once() == 0
    assert (await world.stock(sale))["tea"] == 95
    assert await mine.pay(payment("b1", units=5)) is PaymentOutcome.REFUND_DUE
    assert (await world.buy(sale, ["late"]))[0].status is ReserveStatus.RESERVED
    assert (mine.figures.expired, mine.figures.returned) == (19, 19)


async def test_stock_returns_once_when_the_outbox_was_not_closed(world: World) -> None:
    sale = small_sale()
    await world.inventory.publish(sale)
    await world.buy(sale, ["b1", "b2", "b3"], quantity=3)
    await record(world)
    mine = payments(world)
    for buyer in ("b1", "b2"):
        await mine.cancel(f"o-{buyer}-tea")
    # A crash between the inventory's answer and the closing of the row: the row is still open afterwards.
    open_rows = await world.ledger.returns(10)
    assert await world.inventory.give_back(open_rows[0]) is True
    assert (await world.stock(sale))["tea"] == 94
    await asyncio.gather(*[payments(world).return_once() for _ in range(5)])
    assert (await world.stock(sale))["tea"] == 97
    assert await world.ledger.returns(10) == []
    assert await mine.cancel("o-b1-tea") is OrderState.CANCELLED
    assert await mine.return_once() == 0


async def test_returns_that_fail_stay_open_and_the_others_close(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sale = small_sale()
    await world.inventory.publish(sale)
    buyers = [f"b{number}" for number in range(6)]
    await world.buy(sale, buyers)
    await record(world)
    mine = payments(world, PaymentLimits(in_flight_max=2))
    for buyer in buyers:
        await mine.cancel(f"o-{buyer}-tea")
    give_back = world.inventory.give_back

    async def fail_for_one(row: StockReturn) -> bool:
        if row.buyer == "b2":
            raise InventoryUnavailable("the shard is away")
        return await give_back(row)

    monkeypatch.setattr(world.inventory, "give_back", fail_for_one)
    assert await mine.return_once() == 5
    assert (mine.figures.failures, mine.figures.held_up, mine.figures.last_error) == (1, 1, "the shard is away")
    assert [row.buyer for row in await world.ledger.returns(10)] == ["b2"]
    assert (await world.stock(sale))["tea"] == 99
    monkeypatch.undo()
    await asyncio.sleep(0.15)
    assert await mine.return_once() == 1
    assert mine.figures.held_up == 0
    assert (await world.stock(sale))["tea"] == 100


async def test_inventory_is_told_of_a_payment_and_by_the_next_one_when_it_could_not_be(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sale = small_sale()
    await world.inventory.publish(sale)
    await world.buy(sale, ["b1", "b2"])
    await record(world)
    mine = payments(world, PaymentLimits(settle_s=0.05))

    async def held(buyer: str) -> HeldState:
        (order,) = await world.inventory.orders_of("live", bucket_of(buyer, 2), buyer)
        return order.state

    await mine.pay(payment("b1"))
    assert (await held("b1"), await held("b2")) == (HeldState.PAID, HeldState.LIVE)

    async def away(*_: object) -> bool:
        raise InventoryUnavailable("the shard is away")

    async def frozen(*_: object) -> bool:
        await asyncio.sleep(10)
        return True

    for failure in (away, frozen):
        monkeypatch.setattr(world.inventory, "settle", failure)
        assert await mine.pay(payment("b2")) is PaymentOutcome.ACCEPTED
    assert (mine.figures.unsettled, await held("b2")) == (2, HeldState.LIVE)
    monkeypatch.undo()
    assert await mine.pay(payment("b2")) is PaymentOutcome.ACCEPTED
    assert (mine.figures.unsettled, await held("b2")) == (2, HeldState.PAID)


async def test_merchant_is_told_of_money_that_he_has_to_give_back(world: World) -> None:
    sale = small_sale()
    await world.inventory.publish(sale)
    await world.buy(sale, ["b1"])
    await record(world)
    mine = payments(world)
    await mine.cancel("o-b1-tea")
    with capture_logs() as logs:
        assert await mine.pay(payment("b1")) is PaymentOutcome.REFUND_DUE
        assert await mine.pay(Payment("p9", "o-b9-tea", "live", "b9", 1)) is PaymentOutcome.UNKNOWN_ORDER
    (told,) = logs
    assert (told["event"], told["log_level"], told["payment"], told["order"]) == (
        "refund_due",
        "warning",
        "p-b1",
        "o-b1-tea",
    )
    assert mine.figures.refunds == 1
    (due,) = await world.ledger.refunds("live", "", 10)
    assert (due.payment_id, due.buyer, due.amount_fen) == ("p-b1", "b1", PRICE_FEN)


async def test_returns_of_a_dead_shard_do_not_hold_up_those_of_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sale = small_sale()
    await world.inventory.publish(sale)
    buyers = [f"b{number}" for number in range(40)]
    await world.buy(sale, buyers)
    await record(world)
    mine = payments(world, PaymentLimits(batch_max=5))
    dead = [buyer for buyer in buyers if bucket_of(buyer, 2) == 0]
    alive = [buyer for buyer in buyers if bucket_of(buyer, 2) == 1]
    for buyer in dead + alive:
        await mine.cancel(f"o-{buyer}-tea")
    give_back = world.inventory.give_back

    async def fail_for_one_shard(row: StockReturn) -> bool:
        if row.bucket == 0:
            raise InventoryUnavailable("the shard is away")
        return await give_back(row)

    monkeypatch.setattr(world.inventory, "give_back", fail_for_one_shard)
    rounds = 0
    while mine.figures.returned < len(alive):
        await mine.return_once()
        rounds += 1
    # All of the dead shard's rows are older; each round has room for five.
    assert len(dead) > 5
    assert rounds <= 2 + len(alive) // 5 + mine.figures.failures
    assert {row.buyer for row in await world.ledger.returns(100)} == set(dead)
    monkeypatch.undo()
    async with asyncio.timeout(10):
        while mine.figures.returned < len(buyers):
            await mine.return_once()
            await asyncio.sleep(0.02)
    assert (await world.stock(sale))["tea"] == 100


async def test_restock_is_put_into_stock_once_and_a_shard_that_is_away_gets_it_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sale = small_sale()
    await world.inventory.publish(sale)
    await world.ledger.publish(sale)
    for number in range(3):
        await world.ledger.add_restock(Restock(f"r{number}", "live", "tea", 10))
    await world.ledger.add_restock(Restock("r9", "live", "cup", 7))
    # A crash between the inventory's answer and the closing of the row.
    assert await world.inventory.restock(home_of("tea", 2), Restock("r0", "live", "tea", 10))
    restock = world.inventory.restock

    async def fail_for_cups(bucket: int, given: Restock) -> bool:
        if given.sku == "cup":
            raise InventoryUnavailable("the shard is away")
        return await restock(bucket, given)

    monkeypatch.setattr(world.inventory, "restock", fail_for_cups)
    await asyncio.gather(*[payments(world).restock_once() for _ in range(3)])
    assert await world.stock(sale) == {"tea": 130, "cup": 50}
    assert [one.restock_id for one in await world.ledger.open_restocks(10)] == ["r9"]
    monkeypatch.undo()
    mine = payments(world)
    assert await mine.restock_once() == 1
    assert (mine.figures.restocked, await mine.restock_once()) == (1, 0)
    assert await world.stock(sale) == {"tea": 130, "cup": 57}
    assert [one.returning for one in await world.ledger.totals("live")] == [0, 0]


async def test_expiry_waits_while_the_recorder_is_behind(world: World) -> None:
    sale = small_sale(hold_ms=1000, buckets=1)
    await world.inventory.publish(sale)
    await world.buy(sale, ["b1"])
    await record(world)
    await asyncio.sleep(1.1)
    for number in range(3):
        await world.buy(sale, [f"c{number}"])
    mine = payments(world, PaymentLimits(grace_ms=0, lag_max=2))
    assert await mine.expire_once() == 0
    assert "recorder" in mine.figures.holding
    await record(world)
    assert await mine.expire_once() == 1
    assert mine.figures.holding == ""


async def test_expiry_waits_a_grace_after_a_start(world: World) -> None:
    sale = small_sale(hold_ms=1000)
    await world.inventory.publish(sale)
    await world.buy(sale, ["b1"])
    await record(world)
    await asyncio.sleep(1.4)
    mine = payments(world, PaymentLimits(grace_ms=300))
    assert await mine.expire_once() == 0
    assert "awaited" in mine.figures.holding
    await asyncio.sleep(0.35)
    assert await mine.expire_once() == 1


async def test_run_outlives_an_outage_and_expiry_waits_for_the_payments_that_were_missed(
    world: World,
) -> None:
    sale = small_sale(hold_ms=1000, buckets=1)
    await world.inventory.publish(sale)
    await world.buy(sale, ["b1", "b2"])
    await record(world)
    limits = PaymentLimits(grace_ms=700, expire_every_s=0.02, return_every_s=0.02, retry_max_s=0.1)
    mine = payments(world, limits)
    running = asyncio.create_task(mine.run())
    try:
        await world.engines.postgres.child.stop(CLOCK, 0.0, signal.SIGKILL)
        with pytest.raises(LedgerUnavailable):
            await mine.pay(payment("b1"))
        await asyncio.sleep(1.0)
        await world.engines.postgres.restart()
        # Due for long, but the provider is still repeating the payment that found nobody.
        assert await mine.pay(payment("b1")) is PaymentOutcome.ACCEPTED
        async with asyncio.timeout(10):
            while mine.figures.returned < 1:
                await asyncio.sleep(0.02)
        assert await state(world, "b1") is OrderState.PAID
        assert await state(world, "b2") is OrderState.EXPIRED
        assert (await world.stock(sale))["tea"] == 99
        assert mine.figures.failures > 0
        assert not running.done()
    finally:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_payment_is_tried_again_while_the_ledger_restarts(world: World) -> None:
    sale = small_sale()
    await world.inventory.publish(sale)
    await world.buy(sale, ["b1"])
    await record(world)
    mine = payments(world, PaymentLimits(attempts_max=50, retry_first_s=0.05, retry_max_s=0.1))
    os.kill(world.engines.postgres.child.pid, signal.SIGKILL)
    paying = asyncio.create_task(mine.pay(payment("b1")))
    await world.engines.postgres.restart()
    assert await paying is PaymentOutcome.ACCEPTED


def outcomes_of(found: Sequence[PaymentOutcome]) -> tuple[int, int]:
    return found.count(PaymentOutcome.ACCEPTED), found.count(PaymentOutcome.REFUND_DUE)


async def test_payments_and_expiry_at_once_neither_oversell_nor_lose(world: World) -> None:
    sale = small_sale(hold_ms=1000)
    await world.inventory.publish(sale)
    buyers = [f"b{number}" for number in range(80)]
    await world.buy(sale, buyers)
    await record(world)
    await asyncio.sleep(1.05)
    mine, other = payments(world), payments(world)
    found, *_ = await asyncio.gather(
        asyncio.gather(*[mine.pay(payment(buyer)) for buyer in buyers]),
        mine.expire_once(),
        other.expire_once(),
        other.return_once(),
    )
    while await other.return_once():
        pass
    accepted, refunds = outcomes_of(found)
    assert accepted + refunds == 80
    (tea, _) = await world.ledger.totals("live")
    assert (tea.paid, tea.reserved, tea.returning) == (accepted, 0, 0)
    assert (await world.stock(sale))["tea"] == 100 - accepted
