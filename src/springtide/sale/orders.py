"""The life of an order as a table, and where a buyer's orders are kept. Pure: values in, values out."""

from collections.abc import Mapping
from types import MappingProxyType

from springtide.decide.buckets import bucket_of, home_of
from springtide.model import OrderState, PaymentOutcome

__all__ = ["MAY_FOLLOW", "after_payment", "bucket_of", "entry_place", "frees_stock", "home_of", "may"]

MAY_FOLLOW: Mapping[OrderState, frozenset[OrderState]] = MappingProxyType(
    {
        OrderState.RESERVED: frozenset(
            {
                OrderState.PAID,  # the provider reported the whole amount, however late, before it expired
                OrderState.CANCELLED,  # the buyer or the seller gave it up; its stock goes back
                OrderState.EXPIRED,  # `pay_by` and a grace went by unpaid; its stock goes back
            }
        ),
        OrderState.PAID: frozenset(),  # a sale is final here; refunds are the provider's business
        OrderState.CANCELLED: frozenset(),  # its stock may be sold again: a late payment is to be refunded
        OrderState.EXPIRED: frozenset(),  # the same
    }
)
"""Status → the statuses that may follow. The ledger's schema enforces the same table."""


def may(now: OrderState, then: OrderState) -> bool:
    """Whether an order in the state `now` may become `then`."""
    return then in MAY_FOLLOW[now]


def after_payment(state: OrderState) -> tuple[OrderState, PaymentOutcome]:
    """The state after one more payment of the right amount, and what comes of that payment."""
    if may(state, OrderState.PAID):
        return OrderState.PAID, PaymentOutcome.ACCEPTED
    return state, PaymentOutcome.REFUND_DUE


def frees_stock(state: OrderState) -> bool:
    """Whether an order that came to this state no longer holds its units."""
    return state in {OrderState.CANCELLED, OrderState.EXPIRED}


def entry_place(entry_id: str) -> tuple[int, ...]:
    """Where an entry stands in its journal: ids are milliseconds and a sequence number, joined by '-'."""
    return tuple(int(part) for part in entry_id.split("-"))
