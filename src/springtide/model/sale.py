"""The sale: what is sold, when, and what the inventory says of a purchase."""

from enum import StrEnum

import msgspec

from springtide.model.identifiers import BUCKETS_MAX, QUANTITY_MAX, STOCK_MAX, require_identifier


class Sku(msgspec.Struct, frozen=True):
    """One article of a sale.

    `stock` is what it begins with. Its units lie in one bucket until it is found hot, and then in all of them; with
    `spread` they do from the start.
    """

    sku: str
    title: str
    price_fen: int
    stock: int
    per_buyer_max: int = 1
    spread: bool = False

    def __post_init__(self) -> None:
        """Check the figures."""
        require_identifier("sku", self.sku)
        if self.price_fen < 0:
            msg = f"the price of {self.sku} is negative"
            raise ValueError(msg)
        if not 0 <= self.stock <= STOCK_MAX:
            msg = f"the stock of {self.sku} must be between 0 and {STOCK_MAX}, not {self.stock}"
            raise ValueError(msg)
        if not 1 <= self.per_buyer_max <= QUANTITY_MAX:
            msg = f"per_buyer_max of {self.sku} must be between 1 and {QUANTITY_MAX}, not {self.per_buyer_max}"
            raise ValueError(msg)


class Sale(msgspec.Struct, frozen=True):
    """A sale as it is published: what is sold, when, and for how long a reservation is held.

    `epoch` grows with each rebuild. `buckets` never changes. With `waiting_room` a purchase needs a pass of the room.
    `pay_url` is where a buyer pays, with `{sale}` and `{order_id}` in it; empty when the shop tells him otherwise.
    """

    sale: str
    title: str
    skus: tuple[Sku, ...]
    opens_ms: int
    closes_ms: int
    hold_ms: int
    epoch: int = 1
    buckets: int = 1
    waiting_room: bool = False
    pay_url: str = ""

    def __post_init__(self) -> None:
        """Check that the sale can be held at all."""
        require_identifier("sale", self.sale)
        if not self.skus:
            msg = f"sale {self.sale} has no SKU"
            raise ValueError(msg)
        names = [sku.sku for sku in self.skus]
        if len(set(names)) != len(names):
            msg = f"sale {self.sale} names a SKU twice"
            raise ValueError(msg)
        if self.closes_ms <= self.opens_ms:
            msg = f"sale {self.sale} closes before it opens: its window is empty"
            raise ValueError(msg)
        if self.hold_ms < 1000:  # noqa: PLR2004 - one second, in the unit of the field
            msg = f"sale {self.sale} holds a reservation for {self.hold_ms} ms; a buyer needs at least 1000 ms to pay"
            raise ValueError(msg)
        if not 1 <= self.buckets <= BUCKETS_MAX:
            msg = f"sale {self.sale} needs 1 to {BUCKETS_MAX} buckets, not {self.buckets}"
            raise ValueError(msg)


class SaleView(msgspec.Struct, frozen=True):
    """What a sale looked like at one moment, by the engine's clock.

    `stock` is what is left of each SKU, summed over the buckets; `stock_version` grows whenever units come back or are
    added. `moving` counts units between two buckets: while there are any, no SKU is sold out for good. `marks` has for
    each bucket what changes with every order made in it, read in one step with its stock; empty when it is not known.
    """

    sale: Sale
    stock: dict[str, int]
    paused: bool
    stock_version: int
    at_ms: int
    moving: int = 0
    marks: tuple[str, ...] = ()


class ReserveRequest(msgspec.Struct, frozen=True, gc=False):
    """A purchase on its way to the inventory. `deadline_ms` is by the engine's clock; a later arrival is refused."""

    buyer: str
    key: str
    sku: str
    quantity: int
    order_id: str
    epoch: int
    deadline_ms: int


class ReserveStatus(StrEnum):
    """What became of a purchase. Only RESERVED took stock; UNKNOWN may have: the inventory itself never says it."""

    RESERVED = "reserved"
    REPEATED = "repeated"
    KEY_REUSED = "key_reused"
    SOLD_OUT = "sold_out"
    LIMIT_REACHED = "limit_reached"
    UNKNOWN_SKU = "unknown_sku"
    NOT_OPEN = "not_open"
    CLOSED = "closed"
    PAUSED = "paused"
    LATE = "late"
    STALE_EPOCH = "stale_epoch"
    JOURNAL_FULL = "journal_full"
    UNKNOWN = "unknown"


class ReserveResult(msgspec.Struct, frozen=True, gc=False):
    """The inventory's answer to one purchase.

    `order_id` and `pay_by_ms` are set for RESERVED, REPEATED and LIMIT_REACHED (the order already held);
    `live` is false when that order has been cancelled or has expired since.
    """

    status: ReserveStatus
    order_id: str = ""
    pay_by_ms: int = 0
    live: bool = True


class Reservation(msgspec.Struct, frozen=True, gc=False):
    """An acknowledged purchase, as the journal holds it and the ledger records it."""

    order_id: str
    sale: str
    bucket: int
    buyer: str
    key: str
    sku: str
    quantity: int
    reserved_ms: int
    pay_by_ms: int


class HeldState(StrEnum):
    """What the inventory knows of an order: its stock is held, or is back, or is paid for."""

    LIVE = "live"
    ENDED = "ended"
    PAID = "paid"


class HeldOrder(msgspec.Struct, frozen=True, gc=False):
    """An order as its buyer's entry in the inventory has it."""

    reservation: Reservation
    state: HeldState


class Holders(msgspec.Struct, frozen=True):
    """Buyers who got an order in a bucket after a position of its journal; `position` is where to go on from.

    `complete` says that these are all that the bucket has: the position asked for is too old, or was the beginning.
    `mark` is the bucket's at the position, as in `SaleView`; empty when it is not known.
    """

    buyers: tuple[str, ...]
    position: str
    complete: bool
    mark: str = ""


class Transfer(msgspec.Struct, frozen=True, gc=False):
    """Units of a SKU on their way from one bucket of a sale to another. The id makes it happen once."""

    transfer_id: str
    sale: str
    source: int
    target: int
    sku: str
    quantity: int


class Restock(msgspec.Struct, frozen=True):
    """Units that a merchant adds to a sale while it runs. The id makes it happen once."""

    restock_id: str
    sale: str
    sku: str
    quantity: int


class TokenRing(msgspec.Struct, frozen=True):
    """The generations of buyer-token keys in use: tokens are signed by `newest`, and taken from `oldest` on."""

    oldest: int
    newest: int


class JournalEntry(msgspec.Struct, frozen=True):
    """One entry of a bucket's journal: all purchases that one batch accepted. `entry_id` orders the entries."""

    entry_id: str
    reservations: tuple[Reservation, ...]


class BucketCut(msgspec.Struct, frozen=True):
    """One bucket at one moment, read in one atomic step: what it holds and how far its journal had come.

    `sold` is how many units purchases have taken from it so far, by SKU. `transfers` have left it and are not known to
    have arrived.
    """

    sale: str
    bucket: int
    stock: dict[str, int]
    last_entry_id: str
    at_ms: int
    epoch: int = 1
    sold: dict[str, int] = {}
    transfers: tuple[Transfer, ...] = ()
