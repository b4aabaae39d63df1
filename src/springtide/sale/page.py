"""A sale as it was at one moment: what its page says, and what may be refused by it."""

from typing import Final

import msgspec

from springtide.model import ReserveRequest, ReserveStatus, SaleView

NEAR_MS = 50
"""This near to its opening or its end a sale may be open already, or still: so well do we know the engine's clock."""

_ORDER_ID: Final = "{order_id}"


class Page:
    """A sale as it was at one moment. `asked_s` is before the question, so no age is understated.

    `number` counts the questions of one cache: a page with a higher one was asked for later. `limits` is units a buyer
    may hold, by SKU. `dry` are the SKUs of which no unit was seen, `sold_out` those of which it is certain that there
    was none; `hinted` may be added to, and says only what is worth a question. `marks` tells, bucket by bucket, how far
    the orders had come. `opened_ms` to `ends_ms`, by our clock, is when the sale may be selling.
    """

    __slots__ = (
        "asked_s",
        "body",
        "buckets",
        "dry",
        "ends_ms",
        "epoch",
        "hinted",
        "limits",
        "marks",
        "number",
        "opened_ms",
        "opens_ms",
        "pay_json",
        "sale",
        "skew_ms",
        "sold_out",
        "state",
        "stock",
        "used_s",
        "version",
        "waiting_room",
    )

    def __init__(self, view: SaleView, asked_s: float, skew_ms: int, number: int = 0) -> None:
        """`skew_ms` is how far the engine's clock is ahead of ours."""
        sale = view.sale
        self.sale = sale.sale
        self.limits = {sku.sku: sku.per_buyer_max for sku in sale.skus}
        self.buckets = sale.buckets
        self.epoch = sale.epoch
        self.opens_ms = sale.opens_ms
        self.waiting_room = sale.waiting_room
        self.pay_json = _pay_json(sale.pay_url, sale.sale)
        self.state = page_state(view)
        self.stock = view.stock
        self.version = view.stock_version
        self.marks = view.marks
        self.skew_ms = skew_ms
        self.number = number
        self.asked_s = asked_s
        self.used_s = asked_s
        self.body = page_body(view)
        self.opened_ms = float("inf") if self.state == "paused" else sale.opens_ms - skew_ms - NEAR_MS
        self.ends_ms = sale.closes_ms - skew_ms + NEAR_MS
        dry = () if view.moving else (sku for sku, units in view.stock.items() if units <= 0)
        self.dry = frozenset(dry)
        self.sold_out = self.dry if sale.buckets == 1 else frozenset[str]()
        self.hinted = set(self.dry)

    def follow(self, before: "Page") -> None:
        """Take over what the page before tells about this one; it was read completely before this one was asked for.

        Buckets are read one after the other, so a unit that moves could slip past one reading. Two readings with the
        same stock version settle it: no bucket gained anything between them, so what was dry in both was so all the
        time. A version that went back comes from a store that has forgotten something, and proves nothing.
        """
        self.used_s = before.used_s
        if before.epoch != self.epoch:
            return
        if self.version < before.version:
            self.sold_out = frozenset()
        elif self.buckets > 1 and self.version == before.version:
            self.sold_out = self.dry & before.dry

    def refusal(self, order: ReserveRequest) -> ReserveStatus | None:
        """Why the inventory would have refused a purchase at this page's moment, from a buyer without any order.

        None when it might have been sold, or when only the inventory can tell. The order of the answers is that of
        `Inventory.reserve`.
        """
        limit = self.limits.get(order.sku)
        if order.epoch != self.epoch:
            return None
        if self.state != "open":
            return _CLOSED_STATES[self.state]
        if limit is None:
            return None
        if order.quantity > limit:
            return _LIMIT_REACHED
        return _SOLD_OUT if order.sku in self.sold_out else None

    def pay_member(self, order_id: str) -> str:
        """`,"pay_url":"…"` for an order's JSON; empty when the shop tells the buyer otherwise."""
        return self.pay_json.replace(_ORDER_ID, order_id)


# Looked up once: an enum does that in Python.
_SOLD_OUT: Final = ReserveStatus.SOLD_OUT
_LIMIT_REACHED: Final = ReserveStatus.LIMIT_REACHED
_CLOSED_STATES: Final = {
    "upcoming": ReserveStatus.NOT_OPEN,
    "closed": ReserveStatus.CLOSED,
    "paused": ReserveStatus.PAUSED,
}


def page_state(view: SaleView) -> str:
    """`upcoming`, `open`, `closed` or `paused` (only while it would be open), by the engine's clock."""
    if view.at_ms < view.sale.opens_ms:
        return "upcoming"
    if view.at_ms >= view.sale.closes_ms:
        return "closed"
    return "paused" if view.paused else "open"


def page_body(view: SaleView) -> bytes:
    """The page as JSON."""
    sale = view.sale
    return msgspec.json.encode(
        {
            "sale": sale.sale,
            "title": sale.title,
            "state": page_state(view),
            "opens_ms": sale.opens_ms,
            "closes_ms": sale.closes_ms,
            "now_ms": view.at_ms,
            "hold_ms": sale.hold_ms,
            "waiting_room": sale.waiting_room,
            "skus": [
                {
                    "sku": sku.sku,
                    "title": sku.title,
                    "price_fen": sku.price_fen,
                    "per_buyer_max": sku.per_buyer_max,
                    "stock": view.stock.get(sku.sku, 0),
                }
                for sku in sale.skus
            ],
        }
    )


def _pay_json(pay_url: str, sale: str) -> str:
    if not pay_url:
        return ""
    return ',"pay_url":' + msgspec.json.encode(pay_url.replace("{sale}", sale)).decode()
