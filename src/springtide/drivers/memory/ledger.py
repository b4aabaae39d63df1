"""The ledger in memory, for the twin: it passes the same contract suite as PostgreSQL's."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from springtide.drivers.memory.ledger_merchant import MerchantMemory, PaymentRow
from springtide.errors import LedgerError
from springtide.model import (
    JournalEntry,
    Order,
    OrderState,
    Payment,
    PaymentOutcome,
    Reservation,
    Restock,
    SkuTotals,
    StockReturn,
)
from springtide.ports import Clock


class MemoryLedger(MerchantMemory):
    """`ports.Ledger`. Nothing awaits inside a method, so each is one atomic step of the event loop."""

    def __init__(self, clock: Clock) -> None:
        """An empty ledger; `clock` is the one that orders expire by."""
        super().__init__(clock)
        self._keys: set[tuple[str, str, str]] = set()
        self._conflicts: dict[str, Reservation] = {}
        self._outbox: dict[str, StockReturn] = {}
        self._positions: dict[tuple[str, int], str] = {}

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

    async def conflicts(self, sale: str, count: int) -> list[Reservation]:
        return [one for one in reversed(self._conflicts.values()) if one.sale == sale][:count]

    async def pay(self, payment: Payment) -> PaymentOutcome:
        if payment.payment_id in self._payments:
            return self._payments[payment.payment_id].outcome
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
        self._payments[payment.payment_id] = PaymentRow(payment, outcome, self._clock.now_ms())
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

    async def returns(self, count: int, skip: Sequence[tuple[str, int]] = ()) -> list[StockReturn]:
        return [row for row in self._outbox.values() if (row.sale, row.bucket) not in skip][:count]

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
        units: Counter[tuple[str, OrderState]] = Counter()
        for order in await self.orders(sale):
            units[order.reservation.sku, order.state] += order.reservation.quantity
        restocked = Counter[str]()
        for restock in self._restocks.values():
            restocked[restock.sku] += restock.quantity if restock.sale == sale else 0
        returning = Counter[str]()
        under_way: list[StockReturn | Restock] = [*self._outbox.values(), *self._open_restocks.values()]
        for row in under_way:
            returning[row.sku] += row.quantity if row.sale == sale else 0
        return [
            SkuTotals(
                sku=sku.sku,
                initial=sku.stock,
                restocked=restocked[sku.sku],
                reserved=units[sku.sku, OrderState.RESERVED],
                paid=units[sku.sku, OrderState.PAID],
                returning=returning[sku.sku],
            )
            for sku in self._sales[sale].sale.skus
        ]

    async def positions(self, sale: str) -> dict[int, str]:
        return {bucket: entry_id for (name, bucket), entry_id in self._positions.items() if name == sale}

    async def close(self) -> None:
        """Nothing is held."""

    def _price_fen(self, reservation: Reservation) -> int:
        record = self._sales.get(reservation.sale)
        for sku in record.sale.skus if record else ():
            if sku.sku == reservation.sku:
                return sku.price_fen
        raise LedgerError("an order names a sale or SKU that the ledger does not have; publish it first")

    def _add(self, reservation: Reservation, price_fen: int) -> bool:
        key = (reservation.sale, reservation.buyer, reservation.key)
        if reservation.order_id in self._orders:
            return False
        if key in self._keys:
            self._conflicts.setdefault(reservation.order_id, reservation)
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
