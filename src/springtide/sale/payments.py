"""What happens to an order after it was reserved: paid, cancelled or expired, and its stock given back."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from springtide.errors import InventoryError, LedgerUnavailable, SpringtideError
from springtide.model import OrderState, Payment, PaymentOutcome, Sale
from springtide.ports import Clock, Inventory, Ledger
from springtide.sale.backoff import Backoff
from springtide.sale.orders import bucket_of

_T = TypeVar("_T")


class PaymentLimits(msgspec.Struct, frozen=True):
    """The pace and the bounds of payments.

    `grace_ms` is the time beyond `pay_by` in which a payment that is under way may still arrive. Expiry also
    waits that long after a start and after an outage, in which payments could not be received; and it waits
    while the journals hold more than `lag_max` entries. `batch_max` bounds each call of expiry and return,
    `in_flight_max` the returns on their way to the inventory at once, `attempts_max` the tries of one payment
    when the ledger is away.
    """

    grace_ms: int = 2000
    lag_max: int = 2000
    batch_max: int = 500
    in_flight_max: int = 64
    attempts_max: int = 3
    expire_every_s: float = 0.5
    return_every_s: float = 0.2
    retry_first_s: float = 0.05
    retry_max_s: float = 2.0


class PaymentFigures(msgspec.Struct, frozen=True):
    """Counts since the start; `holding` says why expiry waits, and is empty while it works."""

    outcomes: dict[str, int]
    cancelled: int
    expired: int
    returned: int
    failures: int
    last_error: str
    holding: str


class Payments:
    """The transitions of orders, over the ports. Any number may run at once: each transition happens once."""

    def __init__(self, inventory: Inventory, ledger: Ledger, clock: Clock, limits: PaymentLimits | None = None) -> None:
        """Ready to pay and cancel; expiry and returns need `run`."""
        self._inventory = inventory
        self._ledger = ledger
        self._clock = clock
        self._limits = limits or PaymentLimits()
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
            returned=self._counts["returned"],
            failures=self._counts["failures"],
            last_error=self._last_error,
            holding=self._holding,
        )

    async def pay(self, payment: Payment) -> PaymentOutcome:
        """Apply a payment; an order that is journalled but not recorded yet is recorded first.

        Raises LedgerUnavailable or InventoryError when the outcome cannot be known: the provider says it
        again.
        """
        outcome = await self._patiently(lambda: self._pay(payment))
        self._outcomes[outcome.value] += 1
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
        """Give one batch of stock back to the inventory; how many orders' it was.

        A row of the outbox closes after the inventory's durable answer, and the inventory takes an order back
        once: a crash between the two repeats the call without effect.
        """
        rows = await self._heard(self._ledger.returns(self._limits.batch_max))
        back: list[str] = []
        failed: BaseException | None = None
        for first in range(0, len(rows), self._limits.in_flight_max):
            some = rows[first : first + self._limits.in_flight_max]
            calls = [self._inventory.give_back(row) for row in some]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            for row, answer in zip(some, answers, strict=True):
                if isinstance(answer, BaseException):
                    failed = answer
                else:
                    back.append(row.order_id)
        if back:
            await self._heard(self._ledger.close_returns(back))
            self._counts["returned"] += len(back)
        if failed is not None:
            raise failed
        return len(back)

    async def run(self) -> None:
        """Expire and return until cancelled. Failures of either side are waited out, longer each time."""
        self._deaf_at_s = self._clock.monotonic_s()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(self.expire_once, self._limits.expire_every_s))
            tasks.create_task(self._repeat(self.return_once, self._limits.return_every_s))

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
