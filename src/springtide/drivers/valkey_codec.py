"""How the inventory's values are written in Valkey: keys, arguments and replies, as the files of `lua` have them."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from springtide.decide.buckets import opening_stock
from springtide.drivers.inventory_limits import check_batch
from springtide.errors import InventoryError
from springtide.model import (
    BucketCut,
    HeldOrder,
    HeldState,
    JournalEntry,
    Reservation,
    ReserveRequest,
    ReserveResult,
    ReserveStatus,
    Sale,
    Transfer,
)

RING = "{springtide}:ring"
RING_TAG = "springtide"

Words = list[str | bytes | int]

_JOURNAL_FIELDS = 8
_encode = msgspec.msgpack.Encoder().encode
_RESERVED = ord("R")
_RESERVED_STATUS = ReserveStatus.RESERVED
_HELD = {ord("A"): ReserveStatus.REPEATED, ord("M"): ReserveStatus.LIMIT_REACHED}
# Refusals carry nothing of their own, so one frozen value serves them all.
_REFUSED = {
    ord(letter): ReserveResult(status)
    for letter, status in {
        "K": ReserveStatus.KEY_REUSED,
        "L": ReserveStatus.LATE,
        "E": ReserveStatus.STALE_EPOCH,
        "N": ReserveStatus.NOT_OPEN,
        "C": ReserveStatus.CLOSED,
        "P": ReserveStatus.PAUSED,
        "U": ReserveStatus.UNKNOWN_SKU,
        "S": ReserveStatus.SOLD_OUT,
        "J": ReserveStatus.JOURNAL_FULL,
    }.items()
}
_STATES = {"0": HeldState.ENDED, "1": HeldState.LIVE, "2": HeldState.PAID}
_DIGITS = {state: digit for digit, state in _STATES.items()}


class Place(msgspec.Struct, frozen=True):
    """A bucket's epoch, and how far its journal has come: entries ever added, the last one's id, those still there."""

    epoch: int
    added: int
    last_entry_id: str
    kept: int

    @property
    def position(self) -> str:
        """What to go on from here with."""
        return f"{self.epoch}:{self.added}:{self.last_entry_id}"

    @property
    def mark(self) -> str:
        """See `SaleView`."""
        return mark(self.epoch, self.last_entry_id)


def mark(epoch: int, last_entry_id: str) -> str:
    """What changes with every order: an order is in a journal entry, and no id comes twice in one epoch."""
    return f"{epoch}:{last_entry_id}"


def position(text: str) -> Place:
    """The place that a position was made of; nothing is known to be there still. Raises ValueError."""
    try:
        epoch, added, last_entry_id = text.split(":")
        return Place(int(epoch), int(added), last_entry_id, 0)
    except ValueError as error:
        raise ValueError(f"{text!r} is no position among holders: use one that was given, or ''") from error


def tag(sale: str, bucket: int) -> str:
    """What stands between the braces of all keys of a bucket."""
    return f"{sale}:{bucket}"


def key(sale: str, bucket: int, what: str) -> str:
    """One of a bucket's keys."""
    return f"{{{sale}:{bucket}}}:{what}"


def keys(sale: str, bucket: int, *whats: str) -> list[str]:
    """Some of a bucket's keys."""
    return [f"{{{sale}:{bucket}}}:{what}" for what in whats]


def definition(sale: Sale) -> Words:
    """A definition as all functions take it."""
    words: Words = [msgspec.json.encode(sale), sale.epoch, sale.opens_ms, sale.closes_ms, sale.hold_ms, sale.buckets]
    words.append(len(sale.skus))
    for sku in sale.skus:
        words += [sku.sku, sku.per_buyer_max]
    return words


def opening(sale: Sale, bucket: int) -> Words:
    """The stock of a bucket that is published, by SKU, and the plan that all buckets of a sale have to agree on."""
    stock = [opening_stock(sku, bucket, sale.buckets) for sku in sale.skus]
    plan = ",".join(f"{sku.sku}={sku.stock}{'*' if sku.spread else ''}" for sku in sale.skus)
    return [*stock, f"{sale.epoch}/{sale.buckets}/{plan}"]


def pack(batch: Sequence[ReserveRequest]) -> bytes:
    """The batch as one argument, column by column: the server reads that far faster than seven for each."""
    check_batch(batch)
    orders = [request.order_id for request in batch]
    buyers = [request.buyer for request in batch]
    names = [request.key for request in batch]
    skus = [request.sku for request in batch]
    check_separators("".join(orders + buyers + names + skus))
    quantities = [request.quantity for request in batch]
    epochs = [request.epoch for request in batch]
    return _encode((orders, buyers, names, skus, quantities, epochs, [request.deadline_ms for request in batch]))


def check_separators(text: str) -> None:
    """Raise ValueError for text that would be read as something else."""
    if "," in text or ";" in text:
        raise ValueError("an id or key of a purchase has ',' or ';' in it: check them before they are sent")


def results(batch: Sequence[ReserveRequest], reply: list[Any]) -> list[ReserveResult]:
    """What became of a batch."""
    pay_by_ms = reply[0]
    details = iter(reply[2:])
    return [
        ReserveResult(_RESERVED_STATUS, request.order_id, pay_by_ms)
        if letter == _RESERVED
        else _REFUSED.get(letter) or _held(letter, next(details))
        for letter, request in zip(reply[1], batch, strict=True)
    ]


def _held(letter: int, detail: bytes) -> ReserveResult:
    if not detail:
        return ReserveResult(_HELD[letter])
    order_id, pay_by_ms, live = detail.decode().split(",")
    return ReserveResult(_HELD[letter], order_id, int(pay_by_ms), live == "1")


def cut(sale: str, bucket: int, reply: list[Any]) -> tuple[BucketCut, dict[bytes, bytes]]:
    """A cut, and all fields of the bucket's state."""
    now_ms, last_entry_id, flat, open_transfers = reply
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    found = BucketCut(
        sale=sale,
        bucket=bucket,
        stock=_figures(fields, b"stock:"),
        last_entry_id=last_entry_id.decode(),
        at_ms=now_ms,
        epoch=int(fields[b"epoch"]),
        sold=_figures(fields, b"sold:"),
        transfers=tuple(
            _transfer(sale, bucket, name.decode(), record.decode())
            for name, record in zip(open_transfers[::2], open_transfers[1::2], strict=True)
        ),
    )
    return found, fields


def _figures(fields: dict[bytes, bytes], prefix: bytes) -> dict[str, int]:
    return {name.removeprefix(prefix).decode(): int(value) for name, value in fields.items() if name.startswith(prefix)}


def _transfer(sale: str, source: int, transfer_id: str, record: str) -> Transfer:
    target, _, _, units, sku = record.split(",", 4)
    return Transfer(transfer_id, sale, source, int(target), sku, int(units))


def published(fields: dict[bytes, bytes]) -> Sale:
    """The definition; a bucket that was fenced has a later epoch than it was given with."""
    sale = msgspec.json.decode(fields[b"definition"], type=Sale)
    epoch = int(fields[b"epoch"])
    return sale if sale.epoch == epoch else msgspec.structs.replace(sale, epoch=epoch)


def entry(sale: str, bucket: int, entry_id: bytes, fields: list[bytes] | None) -> JournalEntry:
    """A journal entry. Raises InventoryError for one that somebody deleted."""
    if fields is None:
        raise InventoryError(
            f"journal entry {entry_id.decode()} of {sale} was deleted unread: restore it from a backup"
        )
    words = fields[1].decode().split(",")
    columns = [words[at::_JOURNAL_FIELDS] for at in range(_JOURNAL_FIELDS)]
    return JournalEntry(
        entry_id.decode(), tuple(held(sale, bucket, *row).reservation for row in zip(*columns, strict=True))
    )


def entry_buyers(fields: list[bytes]) -> list[str]:
    """The buyers of a journal entry."""
    return fields[1].decode().split(",")[::_JOURNAL_FIELDS]


def held(sale: str, bucket: int, buyer: str, *record: str) -> HeldOrder:
    """An order as the library writes it: order id, key, SKU, quantity, reserved_ms, pay_by_ms, state."""
    order_id, name, sku, quantity, reserved_ms, pay_by_ms, state = record
    reservation = Reservation(order_id, sale, bucket, buyer, name, sku, int(quantity), int(reserved_ms), int(pay_by_ms))
    return HeldOrder(reservation, _STATES[state])


def held_orders(sale: str, bucket: int, buyer: str, whole: bytes | None) -> list[HeldOrder]:
    """A buyer's entry; None when he has none."""
    records = whole.decode().split(";") if whole else []
    return [held(sale, bucket, buyer, *record.split(",")) for record in records]


def holder_entry(orders: Iterable[HeldOrder]) -> str:
    """A buyer's entry of these orders. Raises ValueError for a separator inside a field."""
    records = []
    for order in orders:
        one = order.reservation
        check_separators(one.order_id + one.key + one.sku)
        words = (one.order_id, one.key, one.sku, one.quantity, one.reserved_ms, one.pay_by_ms, _DIGITS[order.state])
        records.append(",".join(str(word) for word in words))
    return ";".join(records)
