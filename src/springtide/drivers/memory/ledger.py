"""The ledger in memory, for the twin: it passes the same contract suite as PostgreSQL's."""

from collections.abc import Sequence

import msgspec

from springtide.errors import LedgerError
from springtide.model import (
    JournalEntry,
    Order,
    OrderState,
    Payment,
    PaymentOutcome,
    Reservation,
    Sale,
    SkuTotals,
    StockReturn,
)
from springtide.ports import Clock


class MemoryLedger:
    """`ports.Ledger`. Nothing awaits inside a method, so each is one atomic step of the event loop."""

    def __init__(self, clock: Clock) -> None:
        """An empty ledger; `clock` is the one that orders expire by."""
        self._clock = clock
        self._sales: dict[str, Sale] = {}
        self._orders: dict[str, Order] = {}
        self._keys: set[tuple[str, str, str]] = set()
        self._payments: dict[str, PaymentOutcome] = {}
        self._outbox: dict[str, StockReturn] = {}
        self._positions: dict[tuple[str, int], str] = {}

    async def publish(self, sale: Sale) -> None:
        self._sales.setdefault(sale.sale, sale)

    async def record(self, reservations: Sequence[Reservation]) -> int:
        prices = [self._price_fen(one) for one in reservations]
        return sum(self._add(one, price) for one, price in zip(reservations, prices, strict=True))

    async def record_entries(self, sale: str, bucket: int, entries: Sequence[JournalEntry]) -> int:
        if not entries:
            return 0
        new = await self.record([one for entry in entries for one in entry.reservations])
        last = entries[-1].entry_id
        if _place(last) > _place(self._positions.get((sale, bucket), "0-0")):
            self._positions[sale, bucket] = last
        return new

    async def pay(self, payment: Payment) -> PaymentOutcome:
        if payment.payment_id in self._payments:
            return self._payments[payment.payment_id]
        order = self._orders.get(payment.order_id)
        if order is None or (order.reservation.sale, order.reservation.buyer) != (
            payment.sale,
            payment.buyer,
        ):
            return PaymentOutcome.UNKNOWN_ORDER
        if payment.amount_fen != order.price_fen * order.reservation.quantity:
            outcome = PaymentOutcome.AMOUNT_DIFFERS
        elif order.state is OrderState.RESERVED:
            outcome = PaymentOutcome.ACCEPTED
            self._move(order, OrderState.PAID)
        else:
            outcome = PaymentOutcome.REFUND_DUE
        self._payments[payment.payment_id] = outcome
        return outcome

    async def cancel(self, order_id: str) -> OrderState | None:
        order = self._orders.get(order_id)
        if order is None:
            return None
        if order.state is OrderState.RESERVED:
            self._end(order, OrderState.CANCELLED)
        return self._orders[order_id].state

    async def expire_due(self, grace_ms: int, count: int) -> int:
        until_ms = self._clock.now_ms() - grace_ms
        due = [
            order
            for order in self._orders.values()
            if order.state is OrderState.RESERVED and order.reservation.pay_by_ms <= until_ms
        ]
        due.sort(key=lambda order: order.reservation.pay_by_ms)
        for order in due[:count]:
            self._end(order, OrderState.EXPIRED)
        return len(due[:count])

    async def returns(self, count: int) -> list[StockReturn]:
        return list(self._outbox.values())[:count]

    async def close_returns(self, order_ids: Sequence[str]) -> None:
        for order_id in order_ids:
            self._outbox.pop(order_id, None)

    async def order(self, order_id: str) -> Order | None:
        return self._orders.get(order_id)

    async def orders(self, sale: str) -> list[Order]:
        found = [order for order in self._orders.values() if order.reservation.sale == sale]
        return sorted(found, key=lambda order: (order.reservation.reserved_ms, order.reservation.order_id))

    async def totals(self, sale: str) -> list[SkuTotals]:
        if sale not in self._sales:
            return []
        units: dict[tuple[str, OrderState], int] = {}
        for order in await self.orders(sale):
            place = (order.reservation.sku, order.state)
            units[place] = units.get(place, 0) + order.reservation.quantity
        returning: dict[str, int] = {}
        for row in self._outbox.values():
            if row.sale == sale:
                returning[row.sku] = returning.get(row.sku, 0) + row.quantity
        return [
            SkuTotals(
                sku=sku.sku,
                initial=sku.stock,
                restocked=0,
                reserved=units.get((sku.sku, OrderState.RESERVED), 0),
                paid=units.get((sku.sku, OrderState.PAID), 0),
                returning=returning.get(sku.sku, 0),
            )
            for sku in self._sales[sale].skus
        ]

    async def positions(self, sale: str) -> dict[int, str]:
        return {bucket: entry_id for (name, bucket), entry_id in self._positions.items() if name == sale}

    async def close(self) -> None:
        """Nothing is held."""

    def _price_fen(self, reservation: Reservation) -> int:
        sale = self._sales.get(reservation.sale)
        for sku in sale.skus if sale else ():
            if sku.sku == reservation.sku:
                return sku.price_fen
        raise LedgerError("an order names a sale or SKU that the ledger does not have; publish it first")

    def _add(self, reservation: Reservation, price_fen: int) -> bool:
        key = (reservation.sale, reservation.buyer, reservation.key)
        if reservation.order_id in self._orders or key in self._keys:
            return False
        self._orders[reservation.order_id] = Order(reservation, OrderState.RESERVED, price_fen)
        self._keys.add(key)
        return True

    def _move(self, order: Order, state: OrderState) -> None:
        self._orders[order.reservation.order_id] = msgspec.structs.replace(order, state=state)

    def _end(self, order: Order, state: OrderState) -> None:
        self._move(order, state)
        one = order.reservation
        self._outbox[one.order_id] = StockReturn(one.order_id, one.sale, one.bucket, one.buyer, one.sku, one.quantity)


def _place(entry_id: str) -> tuple[int, ...]:
    """Where an entry stands in its journal: its id is milliseconds and a sequence number, joined by '-'."""
    return tuple(int(part) for part in entry_id.split("-"))
