"""Tells a buyer what has become of purchases: by order, by `Idempotency-Key`, or all of them.

A purchase that was sent at t with `Purchase-Sent-Ms: t` is refused by the inventory after t + purchase_timeout_ms. So
ANSWER_GRACE_MS later, which is for the difference of clocks and the way, it is decided for ever: an order, or none. One
that was sent without the header has its deadline from its arrival; what is asked about it first is taken for a moment
after that arrival. Who sends the same key again begins anew.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from springtide.config import CounterSettings
from springtide.errors import InventoryError
from springtide.model import HeldOrder, HeldState
from springtide.ports import Clock
from springtide.sale.batcher import ANSWER_GRACE_MS
from springtide.sale.page import Page

LOOKUPS_MAX = 256
"""Questions to the inventory about a buyer's orders under way at once."""

ASKED_MAX = 20_000
"""Purchases of which it is remembered when they were first asked about, in each of two generations; one that is
forgotten is undecided for a while longer."""

Told = Callable[[list[HeldOrder] | None], None]
"""Takes a buyer's orders, oldest first; None when the inventory does not answer."""

STATUS = {HeldState.LIVE: "reserved", HeldState.PAID: "paid", HeldState.ENDED: "ended"}
_MOMENT_DIGITS_MAX = 15

_log = structlog.get_logger(__name__)


class OrdersSource(Protocol):
    """What is needed of the inventory."""

    async def orders_of(self, sale: str, bucket: int, buyer: str) -> list[HeldOrder]:
        """See `ports.Inventory`."""


class OrderStatus:
    """Asks for orders; bounded, each question within `purchase_timeout_ms`."""

    def __init__(self, inventory: OrdersSource, clock: Clock, settings: CounterSettings) -> None:
        """Nothing is under way."""
        self._inventory = inventory
        self._clock = clock
        self._timeout_s = settings.purchase_timeout_ms / 1000
        self._decided_after_ms = settings.purchase_timeout_ms + ANSWER_GRACE_MS
        self._queued_ms = settings.queue_wait_ms_max
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked: dict[tuple[str, str, str], int] = {}
        self._asked_before: dict[tuple[str, str, str], int] = {}

    @property
    def in_flight(self) -> int:
        """Questions under way."""
        return len(self._tasks)

    @property
    def remembered(self) -> int:
        """Purchases that were asked about."""
        return len(self._asked) + len(self._asked_before)

    def ask(self, sale: str, bucket: int, buyer: str, tell: Told) -> bool:
        """Have `tell` called with the orders, later; False when too many ask already."""
        if len(self._tasks) >= LOOKUPS_MAX:
            return False
        task = asyncio.get_running_loop().create_task(self._ask(sale, bucket, buyer, tell))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def decided_ms(self, who: tuple[str, str, str], sent_ms: int | None, now_ms: int) -> int:
        """When it is decided for ever what became of a purchase: `who` is sale, buyer and key; all by our clock."""
        first_ms = self._asked.get(who)
        if first_ms is None:
            first_ms = self._asked_before.get(who, now_ms)
            if len(self._asked) >= ASKED_MAX:
                self._asked_before, self._asked = self._asked, {}
            self._asked[who] = first_ms
        if sent_ms is not None and sent_ms < first_ms:
            return sent_ms + self._decided_after_ms
        return first_ms + self._queued_ms + self._decided_after_ms

    async def close(self) -> None:
        """Wait for what is under way; each question ends by its deadline."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _ask(self, sale: str, bucket: int, buyer: str, tell: Told) -> None:
        orders = None
        try:
            async with self._clock.timeout(self._timeout_s):
                orders = await self._inventory.orders_of(sale, bucket, buyer)
        except (InventoryError, TimeoutError):
            pass
        except Exception:  # noqa: BLE001 - whatever went wrong, who asked is told
            _log.exception("orders_not_read", sale=sale)
        try:
            tell(orders)
        except Exception:  # noqa: BLE001 - one connection's fault must not look like the inventory's
            _log.exception("answer_failed", sale=sale)


def moment(text: bytes) -> int | None:
    """Unix milliseconds as a header gives them; None when it is no such number."""
    return int(text) if text.isdigit() and len(text) <= _MOMENT_DIGITS_MAX else None


def order_json(page: Page, held: HeldOrder) -> str:
    """One order as the API shows it."""
    order = held.reservation
    status = STATUS[held.state]
    pay = page.pay_member(order.order_id) if held.state is HeldState.LIVE else ""
    # Every text in it is an identifier, so nothing needs escaping.
    return (
        f'{{"order_id":"{order.order_id}","sale":"{page.sale}","sku":"{order.sku}",'
        f'"quantity":{order.quantity},"status":"{status}","pay_by_ms":{order.pay_by_ms}{pay}}}'
    )
