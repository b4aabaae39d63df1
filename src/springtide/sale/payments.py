"""What happens to an order after it was reserved: paid, cancelled or expired, and its stock given back."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import structlog

from springtide.errors import InventoryError, LedgerUnavailable, SpringtideError
from springtide.model import OrderState, Payment, PaymentOutcome, Sale
from springtide.ports import Clock, Inventory, Ledger
from springtide.sale.backoff import Backoff
from springtide.sale.orders import bucket_of
from springtide.sale.returns import PumpLimits, StockPump

_T = TypeVar("_T")

_log = structlog.get_logger(__name__)


class PaymentLimits(msgspec.Struct, frozen=True):
    """The pace and the bounds of payments.

    `grace_ms` is the time beyond `pay_by` in which a payment that is under way may still arrive. Expiry also
    waits that long after a start and after an outage, in which payments could not be received; and it waits
    while the journals hold more than `lag_max` entries. `batch_max` bounds each call of expiry and return,
    `in_flight_max` the returns on their way to the inventory at once, `attempts_max` the tries of one payment
    when the ledger is away. The inventory has `settle_s` to take note of a payment.
    """

    grace_ms: int = 2000
    lag_max: int = 2000
    batch_max: int = 500
    in_flight_max: int = 64
    attempts_max: int = 3
    settle_s: float = 1.0
    expire_every_s: float = 0.5
    return_every_s: float = 0.2
    retry_first_s: float = 0.05
    retry_max_s: float = 2.0


class PaymentFigures(msgspec.Struct, frozen=True):
    """Counts since the start; `holding` says why expiry waits, and is empty while it works.

    `refunds` are payments that a merchant has to give back, repeats included. `unsettled` are paid orders of which the
    inventory could not be told. `held_up` is how many buckets take no stock back at present.
    """

    outcomes: dict[str, int]
    cancelled: int
    expired: int
    returned: int
    failures: int
    last_error: str
    holding: str
    restocked: int = 0
    refunds: int = 0
    unsettled: int = 0
    held_up: int = 0


class Payments:
    """The transitions of orders, over the ports. Any number may run at once: each transition happens once."""

    def __init__(self, inventory: Inventory, ledger: Ledger, clock: Clock, limits: PaymentLimits | None = None) -> None:
        """Ready to pay and cancel; expiry and returns need `run`."""
        self._inventory = inventory
        self._ledger = ledger
        self._clock = clock
        self._limits = limits or PaymentLimits()
        self._pump = StockPump(
            inventory,
            ledger,
            clock,
            PumpLimits(batch_max=self._limits.batch_max, in_flight_max=self._limits.in_flight_max),
        )
        self._sales: dict[str, Sale] = {}
        self._outcomes: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._last_error = ""
        self._holding = ""
        self._deaf_at_s = clock.monotonic_s()

    @property
    def figures(self) -> PaymentFigures:
        """What it did so far."""
        return PaymentFigures(
            outcomes=dict(self._outcomes),
            cancelled=self._counts["cancelled"],
            expired=self._counts["expired"],
            returned=self._pump.returned,
            failures=self._counts["failures"] + self._pump.failures,
            last_error=self._last_error or self._pump.last_error,
            holding=self._holding,
            restocked=self._pump.restocked,
            refunds=self._counts["refunds"],
            unsettled=self._counts["unsettled"],
            held_up=self._pump.held_up,
        )

    async def pay(self, payment: Payment) -> PaymentOutcome:
        """Apply a payment; an order that is journalled but not recorded yet is recorded first.

        The inventory is told of a payment that was accepted, so that the buyer sees it; when it cannot be, the same
        payment said again tells it. Raises LedgerUnavailable or InventoryError when the outcome cannot be known: the
        provider says it again.
        """
        outcome = await self._patiently(lambda: self._pay(payment))
        self._outcomes[outcome.value] += 1
        if outcome is PaymentOutcome.ACCEPTED:
            await self._settle(payment)
        elif outcome is not PaymentOutcome.UNKNOWN_ORDER:
            self._counts["refunds"] += 1
            _log.warning(
                "refund_due",
                payment=payment.payment_id,
                order=payment.order_id,
                sale=payment.sale,
                amount_fen=payment.amount_fen,
                why=outcome.value,
            )
        return outcome

    async def cancel(self, order_id: str, sale: str = "", buyer: str = "") -> OrderState | None:
        """Cancel a reserved order; the state it has now, None when there is no such order.

        With `sale` and `buyer` an order is found even when it is journalled but not recorded yet. Raises as
        `pay`.
        """
        state = await self._patiently(lambda: self._cancel(order_id, sale, buyer))
        self._counts["cancelled"] += state is OrderState.CANCELLED
        return state

    async def expire_once(self) -> int:
        """Expire one batch of unpaid orders; how many. None of them while payments may be missing."""
        self._holding = await self._reason_to_hold()
        if self._holding:
            return 0
        expired = await self._heard(self._ledger.expire_due(self._limits.grace_ms, self._limits.batch_max))
        self._counts["expired"] += expired
        return expired

    async def return_once(self) -> int:
        """Give one batch of stock back to the inventory, as `StockPump` does; how many orders' it was."""
        return await self._heard(self._pump.return_once())

    async def restock_once(self) -> int:
        """Put one batch of restocks into stock, as `StockPump` does; how many."""
        return await self._heard(self._pump.restock_once())

    async def run(self) -> None:
        """Expire, return and restock until cancelled. Failures of either side are waited out, longer each time."""
        self._deaf_at_s = self._clock.monotonic_s()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(self.expire_once, self._limits.expire_every_s))
            tasks.create_task(self._repeat(self.return_once, self._limits.return_every_s))
            tasks.create_task(self._repeat(self.restock_once, self._limits.return_every_s))

    async def _repeat(self, step: Callable[[], Awaitable[int]], every_s: float) -> None:
        backoff = Backoff(self._limits.retry_first_s, self._limits.retry_max_s)
        while True:
            try:
                done = await step()
                backoff.reset()
                wait_s = 0.0 if done >= self._limits.batch_max else every_s
            except SpringtideError as error:
                self._failed(error)
                wait_s = backoff.next_s()
            await self._clock.sleep(wait_s)

    async def _reason_to_hold(self) -> str:
        quiet_s = self._clock.monotonic_s() - self._deaf_at_s
        if quiet_s * 1000 < self._limits.grace_ms:
            return "payments could not be received a moment ago: those that were missed are awaited"
        lag = 0
        for name in await self._inventory.sales():
            sale = await self._sale(name)
            for bucket in range(sale.buckets if sale else 0):
                lag += await self._inventory.journal_depth(name, bucket)
        if lag > self._limits.lag_max:
            return f"the recorder is {lag} journal entries behind, more than {self._limits.lag_max}"
        return ""

    async def _pay(self, payment: Payment) -> PaymentOutcome:
        outcome = await self._ledger.pay(payment)
        if outcome is PaymentOutcome.UNKNOWN_ORDER and await self._record(
            payment.order_id, payment.sale, payment.buyer
        ):
            outcome = await self._ledger.pay(payment)
        return outcome

    async def _settle(self, payment: Payment) -> None:
        """Best effort: the ledger is what counts, and an order that is unknown here needs no note."""
        try:
            async with self._clock.timeout(self._limits.settle_s):
                sale = await self._sale(payment.sale)
                if sale is not None:
                    bucket = bucket_of(payment.buyer, sale.buckets)
                    await self._inventory.settle(payment.sale, bucket, payment.buyer, payment.order_id)
        except (InventoryError, TimeoutError) as error:
            self._counts["unsettled"] += 1
            self._last_error = str(error) or "the inventory took no note of a payment in time"

    async def _cancel(self, order_id: str, sale: str, buyer: str) -> OrderState | None:
        state = await self._ledger.cancel(order_id)
        if state is None and sale and buyer and await self._record(order_id, sale, buyer):
            state = await self._ledger.cancel(order_id)
        return state

    async def _record(self, order_id: str, sale: str, buyer: str) -> bool:
        """Record an order that the recorder has not reached yet; False when the inventory has none."""
        published = await self._sale(sale)
        if published is None:
            return False
        found = await self._inventory.find(sale, bucket_of(buyer, published.buckets), buyer, order_id)
        if found is None:
            return False
        await self._ledger.publish(published)
        await self._ledger.record([found])
        return True

    async def _sale(self, name: str) -> Sale | None:
        if name not in self._sales and (view := await self._inventory.view(name)) is not None:
            self._sales[name] = view.sale
        return self._sales.get(name)

    async def _patiently(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Try again a few times: all calls of both ports may be repeated."""
        backoff = Backoff(self._limits.retry_first_s, self._limits.retry_max_s)
        for _ in range(self._limits.attempts_max - 1):
            try:
                return await self._heard(call())
            except (LedgerUnavailable, InventoryError) as error:
                self._failed(error)
                await self._clock.sleep(backoff.next_s())
        return await self._heard(call())

    async def _heard(self, call: Awaitable[_T]) -> _T:
        """Await a call; when the ledger is away, payments are being missed, which expiry has to know."""
        try:
            return await call
        except LedgerUnavailable:
            self._deaf_at_s = self._clock.monotonic_s()
            raise

    def _failed(self, error: SpringtideError) -> None:
        self._counts["failures"] += 1
        self._last_error = str(error)
