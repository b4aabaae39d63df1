"""Orders, payments, and the proof of a sale."""

from enum import StrEnum

import msgspec

from springtide.model.sale import Reservation


class OrderState(StrEnum):
    """The life of an order; the transitions are in `sale/orders.py`."""

    RESERVED = "reserved"
    PAID = "paid"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class PaymentOutcome(StrEnum):
    """What a payment came to. ACCEPTED is also the answer to the same payment said again."""

    ACCEPTED = "accepted"
    REFUND_DUE = "refund_due"
    UNKNOWN_ORDER = "unknown_order"
    AMOUNT_DIFFERS = "amount_differs"


class Payment(msgspec.Struct, frozen=True):
    """A payment as the provider reports it. `payment_id` is the provider's, unique, and makes it idempotent."""

    payment_id: str
    order_id: str
    sale: str
    buyer: str
    amount_fen: int


class Order(msgspec.Struct, frozen=True):
    """An order as the ledger knows it."""

    reservation: Reservation
    state: OrderState
    price_fen: int


class StockReturn(msgspec.Struct, frozen=True, gc=False):
    """Stock of an order that ended unpaid, on its way back to the bucket it came from (a row of the outbox)."""

    order_id: str
    sale: str
    bucket: int
    buyer: str
    sku: str
    quantity: int


class SkuTotals(msgspec.Struct, frozen=True):
    """What the ledger holds of one SKU, in units.

    `returning` is on its way into stock: it left an order, or was restocked, and has not been put there yet.
    """

    sku: str
    initial: int
    restocked: int
    reserved: int
    paid: int
    returning: int


class SkuAudit(msgspec.Struct, frozen=True):
    """The stock equation of one SKU, in units: stock + reserved + paid + returning = initial + restocked.

    `stock` includes what is between two buckets.
    """

    totals: SkuTotals
    stock: int

    @property
    def difference(self) -> int:
        """Units too many (positive: oversold or counted twice) or missing (negative: lost)."""
        totals = self.totals
        held = self.stock + totals.reserved + totals.paid + totals.returning
        return held - totals.initial - totals.restocked

    @property
    def oversold(self) -> int:
        """Units sold beyond what there was to sell."""
        totals = self.totals
        return max(0, totals.reserved + totals.paid - totals.initial - totals.restocked)
