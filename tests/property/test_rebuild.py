"""Whatever cuts a rebuild off, wherever: run again, it ends the same, and the audit proves it."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from springtide.drivers.memory.inventory import MemoryInventory
from springtide.drivers.memory.ledger import MemoryLedger
from springtide.drivers.system import SystemClock
from springtide.errors import InventoryUnavailable, LedgerUnavailable, OutcomeUnknown
from springtide.model import (
    HeldState,
    OrderState,
    Payment,
    ReserveRequest,
    ReserveResult,
    ReserveStatus,
    Restock,
    Sale,
    Sku,
    TokenRing,
    Transfer,
)
from springtide.ports import Inventory, Ledger
from springtide.sale.audit import audit
from springtide.sale.orders import bucket_of
from springtide.sale.rebuild import RebuildOptions, Rebuilt, rebuild
from springtide.sale.recorder import Recorder
from springtide.sale.returns import StockPump

CLOCK = SystemClock()
PRICE_FEN = 500
BUYERS = [f"b{number}" for number in range(24)]
OPTIONS = RebuildOptions(drain_s=5.0)


class Failing:
    """A port whose call number `fail_at` fails: before it was done, or after."""

    def __init__(self, port: object, counter: list[int], fail_at: int, *, after: bool) -> None:
        self._port = port
        self._counter = counter
        self._fail_at = fail_at
        self._after = after

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        call = getattr(self._port, name)

        async def counted(*arguments: object, **named: object) -> object:
            self._counter[0] += 1
            here = self._counter[0] == self._fail_at
            away = LedgerUnavailable if isinstance(self._port, MemoryLedger) else InventoryUnavailable
            if here and not self._after:
                raise away("cut off")
            answer = await call(*arguments, **named)
            if here:
                raise (OutcomeUnknown if away is InventoryUnavailable else away)("cut off")
            return answer

        return counted


def sale() -> Sale:
    skus = (Sku("tea", "Tea", PRICE_FEN, 90, per_buyer_max=5, spread=True), Sku("cup", "Cup", 900, 50))
    now_ms = CLOCK.now_ms()
    return Sale("live", "Live", skus, now_ms - 1000, now_ms + 3_600_000, 60_000, buckets=3)


async def buy(inventory: Inventory, sold: Sale, buyer: str, key: str = "k", quantity: int = 2) -> ReserveResult:
    deadline_ms = CLOCK.now_ms() + 10_000
    request = ReserveRequest(buyer, key, "tea", quantity, f"o-{buyer}-{key}", sold.epoch, deadline_ms)
    return (await inventory.reserve(sold.sale, bucket_of(buyer, sold.buckets), [request]))[0]


async def record(inventory: Inventory, ledger: Ledger) -> None:
    recorder = Recorder(inventory, ledger, CLOCK, "recorder")
    while await recorder.drain_once():
        pass


async def world(*, recorded: bool = True) -> tuple[MemoryInventory, MemoryLedger, Sale]:
    """Orders in every state; b1 back in stock, b2 on the way; one restock done and one under way; another ring."""
    inventory, ledger, sold = MemoryInventory(CLOCK), MemoryLedger(CLOCK), sale()
    await inventory.publish(sold)
    for buyer in BUYERS[:-2]:
        assert (await buy(inventory, sold, buyer)).status is ReserveStatus.RESERVED
    await record(inventory, ledger)
    pump = StockPump(inventory, ledger, CLOCK)
    await ledger.pay(Payment("p", "o-b0-k", "live", "b0", 2 * PRICE_FEN))
    await ledger.cancel("o-b1-k")
    await ledger.add_restock(Restock("r1", "live", "cup", 7))
    await pump.return_once()
    await pump.restock_once()
    await ledger.cancel("o-b2-k")
    await ledger.add_restock(Restock("r2", "live", "tea", 4))
    await ledger.set_token_ring(TokenRing(1, 2))
    if not recorded:
        for buyer in BUYERS[-2:]:
            await buy(inventory, sold, buyer)
    return inventory, ledger, sold


async def check(inventory: Inventory, ledger: Ledger, done: Rebuilt, bought: int) -> None:
    """The proof, and that buyers and stock are as they were."""
    pump = StockPump(inventory, ledger, CLOCK)
    await pump.return_once()
    await pump.restock_once()
    report = await audit(inventory, ledger, "live", CLOCK, 2.0)
    assert report.holds, report
    tea, cup = report.skus
    assert (tea.totals.initial, tea.totals.restocked, tea.totals.returning) == (90, 4, 0)
    assert (tea.stock, cup.stock) == (94 - 2 * (bought - 2), 57)
    assert report.epochs == (done.epoch,)
    assert await inventory.token_ring() == TokenRing(1, 2)
    view = await inventory.view("live")
    assert view is not None
    assert (view.paused, view.sale.epoch, view.moving) == (False, done.epoch, 0)
    states = {OrderState.RESERVED: HeldState.LIVE, OrderState.PAID: HeldState.PAID}
    for order in await ledger.orders("live"):
        one = order.reservation
        (held,) = await inventory.orders_of("live", one.bucket, one.buyer)
        assert (held.reservation, held.state) == (one, states.get(order.state, HeldState.ENDED))
    again = await buy(inventory, view.sale, "b5")
    assert (again.status, again.order_id) == (ReserveStatus.REPEATED, "o-b5-k")
    old = msgspec.structs.replace(view.sale, epoch=done.epoch - 1)
    assert (await buy(inventory, old, "late", "new")).status is ReserveStatus.STALE_EPOCH
    assert (await buy(inventory, view.sale, "late", "new")).status is ReserveStatus.RESERVED


async def test_after_total_loss_everything_recorded_is_back() -> None:
    _, ledger, sold = await world()
    noticed_ms = max(order.reservation.reserved_ms for order in await ledger.orders("live")) + 1500
    inventory = MemoryInventory(CLOCK)
    options = msgspec.structs.replace(OPTIONS, noticed_ms=noticed_ms)
    done = await rebuild(inventory, ledger, "live", CLOCK, options)
    assert (done.epoch, done.opened, done.survived, done.recorded, done.orders) == (2, True, (), 0, 22)
    assert (done.restocks, done.oversold, done.conflicts) == (1, 0, 0)
    assert done.stock == {"tea": 90 - 2 * 20, "cup": 57}
    assert done.at_risk_from_ms is not None
    assert 1.5 <= done.at_risk_s < 60
    assert done.at_risk_from_ms >= sold.opens_ms
    await check(inventory, ledger, done, len(BUYERS) - 2)


async def test_surviving_journals_lose_nothing_even_what_was_not_recorded() -> None:
    inventory, ledger, _ = await world(recorded=False)
    done = await rebuild(inventory, ledger, "live", CLOCK, OPTIONS)
    assert (done.survived, done.at_risk_s, done.at_risk_from_ms) == ((0, 1, 2), 0.0, None)
    assert (done.recorded, done.orders) == (2, 24)
    await check(inventory, ledger, done, len(BUYERS))


async def test_a_second_rebuild_ends_like_the_first() -> None:
    inventory, ledger, _ = await world(recorded=False)
    first = await rebuild(inventory, ledger, "live", CLOCK, OPTIONS)
    second = await rebuild(inventory, ledger, "live", CLOCK, OPTIONS)
    assert (second.epoch, second.orders) == (3, first.orders)
    await check(inventory, ledger, second, len(BUYERS))


@pytest.mark.parametrize("after", [False, True], ids=["before-the-call", "after-the-call"])
@pytest.mark.parametrize("lost", [False, True], ids=["survived", "lost"])
async def test_cut_off_at_any_call_and_run_again_it_ends_the_same(*, lost: bool, after: bool) -> None:
    fail_at = 0
    while True:
        fail_at += 1
        inventory, ledger, _ = await world(recorded=lost)
        if lost:
            inventory = MemoryInventory(CLOCK)
        counter = [0]
        failing: Any = Failing(inventory, counter, fail_at, after=after)
        failing_ledger: Any = Failing(ledger, counter, fail_at, after=after)
        try:
            done = await rebuild(failing, failing_ledger, "live", CLOCK, OPTIONS)
        except (InventoryUnavailable, OutcomeUnknown, LedgerUnavailable):
            # What runs beside it goes on meanwhile, before and after the rebuild is run again.
            await StockPump(inventory, ledger, CLOCK).restock_once()
            await StockPump(inventory, ledger, CLOCK).return_once()
            done = await rebuild(inventory, ledger, "live", CLOCK, OPTIONS)
        else:
            if counter[0] < fail_at:
                break
        await check(inventory, ledger, done, len(BUYERS) - (2 if lost else 0))
    assert fail_at > 20


@pytest.mark.parametrize("moment", ["give_back", "restock"])
async def test_stock_that_was_put_back_and_not_yet_closed_is_there_once(moment: str) -> None:
    """A pump had the inventory's answer, and closes its row only while the sale is rebuilt."""
    inventory, ledger, _ = await world()
    (row,), (restock,) = await ledger.returns(10), await ledger.open_restocks(10)
    if moment == "give_back":
        assert await inventory.give_back(row)
    else:
        assert await inventory.restock(bucket_of("tea", 3), restock)
    read = ledger.orders

    async def close_behind(name: str) -> Any:
        found = await read(name)
        await (ledger.close_returns([row.order_id]) if moment == "give_back" else ledger.close_restocks(["r2"]))
        return found

    watched: Any = Failing(ledger, [0], 0, after=False)
    watched.orders = close_behind
    done = await rebuild(inventory, watched, "live", CLOCK, OPTIONS)
    await check(inventory, ledger, done, len(BUYERS) - 2)


async def test_units_between_two_buckets_are_stock_again() -> None:
    inventory, ledger, _ = await world()
    await inventory.debit(Transfer("t1", "live", 0, 1, "tea", 3))
    credited = Transfer("t2", "live", 1, 2, "tea", 3)
    await inventory.credit(credited, await inventory.debit(credited))
    assert len((await inventory.cut("live", 1)).transfers) == 1
    done = await rebuild(inventory, ledger, "live", CLOCK, OPTIONS)
    await check(inventory, ledger, done, len(BUYERS) - 2)
