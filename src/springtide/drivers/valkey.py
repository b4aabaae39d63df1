"""The inventory on Valkey: `sale.lua` holds its steps, this module speaks to it."""

from collections.abc import Sequence
from importlib import resources
from typing import Any, Self

import msgspec

from springtide.drivers.inventory_limits import (
    CLAIM_IDLE_MS,
    JOURNAL_LAG_MAX,
    ORDERS_REMEMBERED_MAX,
    bucket_share,
    check_batch,
    check_entries,
)
from springtide.drivers.valkey_wire import Connection, Wire, command
from springtide.errors import InventoryError
from springtide.model import (
    BucketCut,
    JournalEntry,
    Reservation,
    ReserveRequest,
    ReserveResult,
    ReserveStatus,
    Sale,
    SaleView,
    StockReturn,
)
from springtide.ports import Clock

TIMEOUT_S = 2.0

_HEADS_MAX = 4096
_SCAN_COUNT = 1000
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


class ValkeyInventory:
    """`ports.Inventory` on one Valkey server, over one pipelined connection that restores itself.

    Limits: CALLS_IN_FLIGHT_MAX unanswered calls (then InventoryUnavailable), and those of `inventory_limits`.
    """

    def __init__(self, wire: Wire, journal_lag_max: int, claim_idle_ms: int) -> None:
        """Use `connect`."""
        self._wire = wire
        self._journal_lag_max = journal_lag_max
        self._claim_idle_ms = claim_idle_ms
        self._heads: dict[tuple[str, int], bytes] = {}

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        clock: Clock,
        *,
        journal_lag_max: int = JOURNAL_LAG_MAX,
        claim_idle_ms: int = CLAIM_IDLE_MS,
        timeout_s: float = TIMEOUT_S,
    ) -> Self:
        """Connect, and give the server this version's functions. Raises InventoryUnavailable.

        `journal_lag_max` is in journal entries, one for each batch that sold something; a call unanswered
        after `timeout_s` is OutcomeUnknown; an entry idle for `claim_idle_ms` may be read by another.
        """
        wire = Wire((host, port), clock, timeout_s, _load_functions)
        await wire.open()
        return cls(wire, journal_lag_max, claim_idle_ms)

    @property
    def calls_in_flight(self) -> int:
        """Calls sent and not answered."""
        return self._wire.calls_in_flight

    async def publish(self, sale: Sale) -> bool:
        """See the port. The stock is split over the buckets, the remainder to the first ones."""
        keys = [
            key for bucket in range(sale.buckets) for key in (_meta(sale.sale, bucket), _journal(sale.sale, bucket))
        ]
        figures: list[str | bytes | int] = [
            msgspec.json.encode(sale),
            sale.epoch,
            sale.opens_ms,
            sale.closes_ms,
        ]
        figures += [sale.hold_ms, len(sale.skus)]
        for sku in sale.skus:
            figures += [sku.sku, sku.per_buyer_max]
        for bucket in range(sale.buckets):
            figures += [bucket_share(sku.stock, bucket, sale.buckets) for sku in sale.skus]
        return bool(await self._function("publish", keys, *figures))

    async def pause(self, sale: str, paused: bool) -> None:  # noqa: FBT001 - the port's signature
        """See the port."""
        found = await self.view(sale)
        if found is None:
            raise _unpublished(sale)
        await self._function("pause", [_meta(sale, bucket) for bucket in range(found.sale.buckets)], int(paused))

    async def reserve(self, sale: str, bucket: int, batch: Sequence[ReserveRequest]) -> list[ReserveResult]:
        """See the port. Raises ValueError for a batch above the limit or a field with a separator in it."""
        if not batch:
            return []
        packed = _pack(batch)
        head = self._heads.get((sale, bucket)) or self._head(sale, bucket)
        reply = await self._wire.send(b"%b$%d\r\n%b\r\n" % (head, len(packed), packed))
        return _results(batch, reply)

    async def find(self, sale: str, bucket: int, buyer: str, order_id: str) -> Reservation | None:
        """See the port."""
        entry = await self._wire.call("HGET", _holders(sale, bucket), buyer)
        for record in entry.decode().split(";") if entry else ():
            order, *rest = record.split(",")
            if order == order_id:
                return _reservation(sale, bucket, buyer, order, *rest)
        return None

    async def give_back(self, returned: StockReturn) -> bool:
        """See the port. What goes back is what the order took, by the buyer's entry."""
        sale, bucket = returned.sale, returned.bucket
        keys = [_meta(sale, bucket), _holders(sale, bucket)]
        return bool(await self._function("give_back", keys, returned.buyer, returned.order_id))

    async def view(self, sale: str) -> SaleView | None:
        """See the port. With several buckets their figures are read one after the other."""
        first = await self._cut(sale, 0)
        if first is None:
            return None
        now_ms, _, fields = first
        definition = msgspec.json.decode(fields[b"definition"], type=Sale)
        stock = _stock(definition, fields)
        version = int(fields[b"version"])
        for bucket in range(1, definition.buckets):
            other = await self._cut(sale, bucket)
            if other is None:
                raise _unpublished(sale)
            version += int(other[2][b"version"])
            more = _stock(definition, other[2])
            stock = {sku: units + more[sku] for sku, units in stock.items()}
        return SaleView(definition, stock, fields[b"paused"] == b"1", version, now_ms)

    async def sales(self) -> list[str]:
        """See the port. The keyspace has three keys for each bucket, so walking it is cheap."""
        found: set[str] = set()
        cursor = b"0"
        while True:
            cursor, keys = await self._wire.call("SCAN", cursor, "MATCH", _meta("*", 0), "COUNT", _SCAN_COUNT)
            found.update(key.decode()[1:].split(":", 1)[0] for key in keys)
            if cursor == b"0":
                return sorted(found)

    async def cut(self, sale: str, bucket: int) -> BucketCut:
        """See the port."""
        found = await self._cut(sale, bucket)
        if found is None:
            raise _unpublished(sale)
        now_ms, last_entry_id, fields = found
        definition = msgspec.json.decode(fields[b"definition"], type=Sale)
        return BucketCut(sale, bucket, _stock(definition, fields), last_entry_id, now_ms)

    async def read_journal(self, sale: str, bucket: int, consumer: str, count: int) -> list[JournalEntry]:
        """See the port. Raises ValueError for a count outside the limit."""
        check_entries(count)
        entries = await self._function("read", [_journal(sale, bucket)], consumer, count, self._claim_idle_ms)
        return [_entry(sale, bucket, entry_id, fields) for entry_id, fields in entries]

    async def acknowledge(self, sale: str, bucket: int, entry_ids: Sequence[str]) -> None:
        """See the port. Raises ValueError for more ids than the limit."""
        if entry_ids:
            check_entries(len(entry_ids))
            await self._function("acknowledge", [_journal(sale, bucket)], *entry_ids)

    async def journal_depth(self, sale: str, bucket: int) -> int:
        """See the port."""
        return int(await self._function("depth", [_journal(sale, bucket)]))

    async def close(self) -> None:
        """See the port."""
        await self._wire.close()

    async def _function(self, name: str, keys: Sequence[str], *args: str | bytes | int) -> Any:  # noqa: ANN401 - its own shape
        return await self._wire.call("FCALL", f"springtide_{name}", len(keys), *keys, *args)

    async def _cut(self, sale: str, bucket: int) -> tuple[int, str, dict[bytes, bytes]] | None:
        reply = await self._function("cut", [_meta(sale, bucket), _journal(sale, bucket)])
        if not reply:
            return None
        now_ms, last_entry_id, *flat = reply
        return now_ms, last_entry_id.decode(), dict(zip(flat[::2], flat[1::2], strict=True))

    def _head(self, sale: str, bucket: int) -> bytes:
        """All of a reserve command but its batch, which comes last."""
        if len(self._heads) >= _HEADS_MAX:
            self._heads.clear()
        keys = (_meta(sale, bucket), _holders(sale, bucket), _journal(sale, bucket))
        whole = command(
            "FCALL", "springtide_reserve", len(keys), *keys, self._journal_lag_max, ORDERS_REMEMBERED_MAX, ""
        )
        head = whole.removesuffix(b"$0\r\n\r\n")
        self._heads[sale, bucket] = head
        return head


async def _load_functions(connection: Connection) -> None:
    """Give the server this version of the library, unless it has exactly that."""
    library = resources.files("springtide.drivers").joinpath("sale.lua").read_bytes()
    found = await connection.send(command("FUNCTION", "LIST", "LIBRARYNAME", "springtide", "WITHCODE"))
    if not found or library not in found[0]:
        await connection.send(command("FUNCTION", "LOAD", "REPLACE", library))


def _meta(sale: str, bucket: int) -> str:
    return f"{{{sale}:{bucket}}}:meta"


def _holders(sale: str, bucket: int) -> str:
    return f"{{{sale}:{bucket}}}:holders"


def _journal(sale: str, bucket: int) -> str:
    return f"{{{sale}:{bucket}}}:journal"


def _pack(batch: Sequence[ReserveRequest]) -> bytes:
    """The batch as one argument, column by column: the server reads that far faster than seven for each."""
    check_batch(batch)
    orders = [request.order_id for request in batch]
    buyers = [request.buyer for request in batch]
    keys = [request.key for request in batch]
    skus = [request.sku for request in batch]
    text = "".join(orders + buyers + keys + skus)
    if "," in text or ";" in text:
        raise ValueError("an id or key of a purchase has ',' or ';' in it: check them before they are sent")
    quantities = [request.quantity for request in batch]
    epochs = [request.epoch for request in batch]
    return _encode((orders, buyers, keys, skus, quantities, epochs, [request.deadline_ms for request in batch]))


def _results(batch: Sequence[ReserveRequest], reply: list[Any]) -> list[ReserveResult]:
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


def _stock(definition: Sale, fields: dict[bytes, bytes]) -> dict[str, int]:
    return {sku.sku: int(fields[b"stock:" + sku.sku.encode()]) for sku in definition.skus}


def _entry(sale: str, bucket: int, entry_id: bytes, fields: list[bytes] | None) -> JournalEntry:
    if fields is None:
        raise InventoryError(
            f"journal entry {entry_id.decode()} of {sale} was deleted unread: restore it from a backup"
        )
    words = fields[1].decode().split(",")
    columns = [words[at::_JOURNAL_FIELDS] for at in range(_JOURNAL_FIELDS)]
    return JournalEntry(
        entry_id.decode(), tuple(_reservation(sale, bucket, *row) for row in zip(*columns, strict=True))
    )


def _reservation(sale: str, bucket: int, buyer: str, order_id: str, *record: str) -> Reservation:
    """An order as `sale.lua` writes it: key, SKU, quantity, reserved_ms, pay_by_ms, and whether it lives."""
    key, sku, quantity, reserved_ms, pay_by_ms, _ = record
    return Reservation(order_id, sale, bucket, buyer, key, sku, int(quantity), int(reserved_ms), int(pay_by_ms))


def _unpublished(sale: str) -> InventoryError:
    return InventoryError(f"sale {sale} is not published here: publish it first, or check its name")
