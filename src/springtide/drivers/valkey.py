"""The inventory on Valkey: the files of `lua` hold its steps, this module speaks to them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self, TypeVar

from springtide.drivers import valkey_codec as codec
from springtide.drivers.inventory_limits import (
    CLAIM_IDLE_MS,
    HOLDERS_ENTRIES_MAX,
    JOURNAL_LAG_MAX,
    ORDERS_REMEMBERED_MAX,
    RESTOCKS_MAX,
    RETAIN_MS,
    RETAINED_MAX,
    check_entries,
    check_restock,
    check_ring,
    restored_orders,
)
from springtide.drivers.inventory_refusals import refusal
from springtide.drivers.stock_transfer import (
    TRANSFERS_OPEN_MAX,
    TRANSFERS_REMEMBERED,
    TRANSFERS_WINDOW,
    Debit,
    carry,
)
from springtide.drivers.valkey_library import prepare
from springtide.drivers.valkey_store import SingleStore, Store
from springtide.drivers.valkey_wire import Wire, command
from springtide.errors import InventoryUnavailable
from springtide.model import (
    STOCK_MAX,
    BucketCut,
    HeldOrder,
    Holders,
    JournalEntry,
    Reservation,
    ReserveRequest,
    ReserveResult,
    Restock,
    Sale,
    SaleView,
    StockReturn,
    TokenRing,
    Transfer,
)
from springtide.ports import Clock

TIMEOUT_S = 2.0

_HEADS_MAX = 4096
_SCAN_COUNT = 1000
_BUCKETS_AT_ONCE = 16
_ENTRIES_AT_ONCE = 16
_BUYERS_AT_ONCE = 500

_T = TypeVar("_T")


class ValkeyInventory:
    """`ports.Inventory` on a store of Valkey servers.

    Limits: those of the store (then InventoryUnavailable), of `inventory_limits` and of `stock_transfer`; a call that
    goes to all buckets of a sale goes to 16 at once, so that purchases find room on the same connection.
    """

    def __init__(self, store: Store, journal_lag_max: int, claim_idle_ms: int) -> None:
        """Use `connect` or `on`."""
        self._store = store
        self._journal_lag_max = journal_lag_max
        self._claim_idle_ms = claim_idle_ms
        self._heads: dict[tuple[str, int], tuple[str, bytes]] = {}

    @classmethod
    async def connect(  # noqa: PLR0913 - each has a default, and the callers' settings have all of them
        cls,
        host: str,
        port: int,
        clock: Clock,
        *,
        journal_lag_max: int = JOURNAL_LAG_MAX,
        claim_idle_ms: int = CLAIM_IDLE_MS,
        timeout_s: float = TIMEOUT_S,
        library: bytes | None = None,
    ) -> Self:
        """Connect to one server, and give it this version's functions, or `library`. Raises InventoryUnavailable.

        `journal_lag_max` is in unrecorded journal entries, one for each batch that sold something; a call unanswered
        after `timeout_s` is OutcomeUnknown; an entry idle for `claim_idle_ms` may be read by another.
        """
        wire = Wire((host, port), clock, timeout_s, partial(prepare, library=library))
        await wire.open()
        return cls.on(SingleStore(wire), journal_lag_max=journal_lag_max, claim_idle_ms=claim_idle_ms)

    @classmethod
    def on(cls, store: Store, *, journal_lag_max: int = JOURNAL_LAG_MAX, claim_idle_ms: int = CLAIM_IDLE_MS) -> Self:
        """An inventory on servers that `prepare` was run on; closing it closes the store. Limits as in `connect`."""
        return cls(store, journal_lag_max, claim_idle_ms)

    @property
    def calls_in_flight(self) -> int:
        """Calls sent and not answered."""
        return self._store.calls_in_flight

    async def publish(self, sale: Sale) -> bool:
        """See the port. Raises InventoryError when it was begun with other stock.

        Bucket 0 is what makes the sale seen, so it comes last.
        """
        if await self._store.read(codec.tag(sale.sale, 0), command("EXISTS", codec.key(sale.sale, 0, "meta"))):
            return False
        words = codec.definition(sale)

        async def create(bucket: int) -> int:
            own = codec.opening(sale, bucket)
            created = await self._write("publish", sale.sale, bucket, ("meta", "holders", "journal"), *words, *own)
            if created == 2 and bucket:  # noqa: PLR2004 - the library's answer: it was begun with another title or window
                await self._write("redefine", sale.sale, bucket, ("meta",), *words)
            return int(created)

        # One bucket shows whether this can go on at all: two publishers that disagree then meet at the same one.
        if sale.buckets > 1:
            await create(sale.buckets - 1)
        await _of_each(create, range(1, sale.buckets - 1))
        return await create(0) == 1

    async def redefine(self, sale: Sale) -> None:
        """See the port. Bucket 0 comes last: what the sale's view names is in all buckets."""
        published = await self._definition(sale.sale)
        if published.buckets != sale.buckets:
            raise refusal("OTHER_BUCKETS", sale.sale)
        words = codec.definition(sale)

        async def change(bucket: int) -> None:
            await self._write("redefine", sale.sale, bucket, ("meta",), *words)

        if sale.buckets > 1:
            await change(sale.buckets - 1)
        await _of_each(change, range(1, sale.buckets - 1))
        await change(0)

    async def pause(self, sale: str, paused: bool) -> None:  # noqa: FBT001 - the port's signature
        """See the port. The view goes by bucket 0: it is paused last and goes on first."""
        published = await self._definition(sale)

        async def set_paused(bucket: int) -> None:
            await self._write("pause", sale, bucket, ("meta",), int(paused))

        if not paused:
            await set_paused(0)
        await _of_each(set_paused, range(1, published.buckets))
        if paused:
            await set_paused(0)

    async def restock(self, bucket: int, restock: Restock) -> bool:
        """See the port. Raises ValueError for a quantity that is none."""
        check_restock(restock)
        words = (restock.restock_id, restock.sku, restock.quantity, RESTOCKS_MAX, STOCK_MAX)
        return bool(await self._write("restock", restock.sale, bucket, ("meta", "restocks"), *words))

    async def move_stock(self, transfer: Transfer) -> int:
        """See the port and `stock_transfer`."""
        return await carry(self, transfer)

    async def debit(self, transfer: Transfer) -> Debit:
        """See `stock_transfer`."""
        words = (transfer.transfer_id, transfer.target, transfer.sku, transfer.quantity)
        reply = await self._write(
            "debit",
            transfer.sale,
            transfer.source,
            ("meta", "transfers", "moved"),
            *words,
            TRANSFERS_OPEN_MAX,
            TRANSFERS_WINDOW,
        )
        return Debit(*reply)

    async def credit(self, transfer: Transfer, debit: Debit) -> bool:
        """See `stock_transfer`."""
        words = (transfer.source, debit.epoch, debit.number, debit.lowest, transfer.sku, debit.units)
        return bool(await self._write("credit", transfer.sale, transfer.target, ("meta", "moved"), *words))

    async def end_transfer(self, transfer: Transfer) -> None:
        """See `stock_transfer`."""
        names = ("meta", "transfers", "moved")
        await self._write("close", transfer.sale, transfer.source, names, transfer.transfer_id, TRANSFERS_REMEMBERED)

    async def reserve(self, sale: str, bucket: int, batch: Sequence[ReserveRequest]) -> list[ReserveResult]:
        """See the port. Raises ValueError for a batch above the limit or a field with a separator in it."""
        if not batch:
            return []
        packed = codec.pack(batch)
        tag, head = self._heads.get((sale, bucket)) or self._head(sale, bucket)
        reply = await self._store.write(tag, b"%b$%d\r\n%b\r\n" % (head, len(packed), packed))
        return codec.results(batch, reply)

    async def find(self, sale: str, bucket: int, buyer: str, order_id: str) -> Reservation | None:
        """See the port."""
        whole = await self._store.read(
            codec.tag(sale, bucket), command("HGET", codec.key(sale, bucket, "holders"), buyer)
        )
        for held in codec.held_orders(sale, bucket, buyer, whole):
            if held.reservation.order_id == order_id:
                return held.reservation
        return None

    async def orders_of(self, sale: str, bucket: int, buyer: str) -> list[HeldOrder]:
        """See the port."""
        replicated = self._store.replicated
        call = self._write if replicated else self._read
        (whole,) = await call("orders", sale, bucket, ("meta", "holders"), buyer, int(replicated))
        return codec.held_orders(sale, bucket, buyer, whole)

    async def settle(self, sale: str, bucket: int, buyer: str, order_id: str) -> bool:
        """See the port."""
        return bool(await self._write("settle", sale, bucket, ("holders",), buyer, order_id))

    async def holders(self, sale: str, bucket: int, after: str) -> Holders:
        """See the port. Raises ValueError for a position that is none."""
        place = await self._place(sale, bucket)
        new = await self._buyers_since(sale, bucket, after, place) if after else None
        if new is not None:
            return Holders(new, place.position, complete=False, mark=place.mark)
        everybody = await self._all_buyers(sale, bucket, place.epoch)
        return Holders(everybody, place.position, complete=True, mark=place.mark)

    async def give_back(self, returned: StockReturn) -> bool:
        """See the port. What goes back is what the order took, by the buyer's entry."""
        words = (returned.buyer, returned.order_id)
        return bool(await self._write("give_back", returned.sale, returned.bucket, ("meta", "holders"), *words))

    async def view(self, sale: str) -> SaleView | None:
        """See the port. The figures of several buckets are read one after the other."""
        first = await self._cut(sale, 0)
        if first is None:
            return None
        cut, fields = first
        definition = codec.published(fields)

        async def there(bucket: int) -> tuple[BucketCut, dict[bytes, bytes]]:
            found = await self._cut(sale, bucket)
            if found is None:
                raise refusal("UNPUBLISHED", sale)
            return found

        whole = [first, *await _of_each(there, range(1, definition.buckets))]
        return SaleView(
            sale=definition,
            stock={sku.sku: sum(one.stock.get(sku.sku, 0) for one, _ in whole) for sku in definition.skus},
            paused=fields[b"paused"] == b"1",
            stock_version=sum(int(each[b"version"]) for _, each in whole),
            at_ms=cut.at_ms,
            moving=sum(transfer.quantity for one, _ in whole for transfer in one.transfers),
            marks=tuple(codec.mark(one.epoch, one.last_entry_id) for one, _ in whole),
        )

    async def sales(self) -> list[str]:
        """See the port. The keyspace has a few keys for each bucket, so walking it is cheap."""
        found: set[str] = set()
        for wire in await self._store.primaries():
            async for names in _scanned(wire.call, ("SCAN",), "MATCH", codec.key("*", 0, "meta")):
                found.update(name.decode()[1:].split(":", 1)[0] for name in names)
        return sorted(found)

    async def cut(self, sale: str, bucket: int) -> BucketCut:
        """See the port."""
        found = await self._cut(sale, bucket)
        if found is None:
            raise refusal("UNPUBLISHED", sale)
        return found[0]

    async def fence(self, sale: str, bucket: int, epoch: int) -> BucketCut | None:
        """See the port. Raises InventoryError for an epoch that the bucket has sold in, or an earlier one."""
        if not await self._write("fence", sale, bucket, ("meta",), epoch):
            return None
        found = await self._cut(sale, bucket)
        return found[0] if found else None

    async def restore(self, sale: Sale, bucket: int, stock: Mapping[str, int], orders: Sequence[HeldOrder]) -> None:
        """See the port. Orders are written in portions; before the last of them nothing is sold or told."""
        holders = {
            buyer: codec.holder_entry(mine) for buyer, mine in restored_orders(sale, bucket, stock, orders).items()
        }
        figures = [stock.get(sku.sku, 0) for sku in sale.skus]
        names = ("meta", "holders", "journal", "restocks", "transfers", "moved")
        begun = await self._write("restore_begin", sale.sale, bucket, names, *codec.definition(sale), *figures)
        if not begun:
            return
        (token,) = begun
        for words in _portions(holders):
            await self._write("restore_part", sale.sale, bucket, ("meta", "holders"), token, *words)
        await self._write("restore_end", sale.sale, bucket, ("meta",), token)

    async def token_ring(self) -> TokenRing:
        """See the port."""
        found = await self._store.read(codec.RING_TAG, command("HMGET", codec.RING, "oldest", "newest"))
        return TokenRing(*(int(generation or 1) for generation in found))

    async def set_token_ring(self, ring: TokenRing) -> None:
        """See the port. Raises ValueError for generations that are none."""
        check_ring(ring)
        words = ("oldest", ring.oldest, "newest", ring.newest)
        await self._store.write(codec.RING_TAG, command("HSET", codec.RING, *words))

    async def read_journal(self, sale: str, bucket: int, consumer: str, count: int) -> list[JournalEntry]:
        """See the port. Raises ValueError for a count outside the limit."""
        check_entries(count)
        entries = await self._write("read", sale, bucket, ("journal",), consumer, count, self._claim_idle_ms)
        return [codec.entry(sale, bucket, entry_id, fields) for entry_id, fields in entries]

    async def acknowledge(self, sale: str, bucket: int, entry_ids: Sequence[str]) -> None:
        """See the port. Raises ValueError for more ids than the limit."""
        if entry_ids:
            check_entries(len(entry_ids))
            await self._write("acknowledge", sale, bucket, ("journal",), RETAIN_MS, RETAINED_MAX, *entry_ids)

    async def journal_depth(self, sale: str, bucket: int) -> int:
        """See the port."""
        return int(await self._read("depth", sale, bucket, ("journal",)))

    async def close(self) -> None:
        """See the port."""
        await self._store.close()

    async def _write(self, name: str, sale: str, bucket: int, keys: Sequence[str], *words: str | bytes | int) -> Any:  # noqa: ANN401 - its own shape
        return _accepted(sale, await self._store.write(codec.tag(sale, bucket), _call(name, sale, bucket, keys, words)))

    async def _read(self, name: str, sale: str, bucket: int, keys: Sequence[str], *words: str | bytes | int) -> Any:  # noqa: ANN401 - its own shape
        return _accepted(sale, await self._store.read(codec.tag(sale, bucket), _call(name, sale, bucket, keys, words)))

    async def _cut(self, sale: str, bucket: int) -> tuple[BucketCut, dict[bytes, bytes]] | None:
        reply = await self._read("cut", sale, bucket, ("meta", "journal", "transfers"))
        return codec.cut(sale, bucket, reply) if reply else None

    async def _definition(self, sale: str) -> Sale:
        found = await self._cut(sale, 0)
        if found is None:
            raise refusal("UNPUBLISHED", sale)
        return codec.published(found[1])

    async def _place(self, sale: str, bucket: int) -> codec.Place:
        epoch, added, last_entry_id, kept = await self._read("place", sale, bucket, ("meta", "journal"))
        return codec.Place(epoch, added, last_entry_id.decode(), kept)

    async def _buyers_since(self, sale: str, bucket: int, after: str, place: codec.Place) -> tuple[str, ...] | None:
        """The buyers of the entries from a position up to a place; None unless all of these entries are still there."""
        since = codec.position(after)
        wanted = place.added - since.added
        gone = place.added - place.kept
        if since.epoch != place.epoch or not gone <= since.added <= place.added or wanted > HOLDERS_ENTRIES_MAX:
            return None
        tag, journal = codec.tag(sale, bucket), codec.key(sale, bucket, "journal")
        buyers: dict[str, None] = {}
        last, count = since.last_entry_id, 0
        while count < wanted:
            words = (f"({last}", place.last_entry_id, "COUNT", _ENTRIES_AT_ONCE)
            entries = await self._store.read(tag, command("XRANGE", journal, *words))
            if not entries:
                return None
            count += len(entries)
            last = entries[-1][0].decode()
            buyers.update((buyer, None) for _, fields in entries for buyer in codec.entry_buyers(fields))
        return tuple(buyers)

    async def _all_buyers(self, sale: str, bucket: int, epoch: int) -> tuple[str, ...]:
        """Every buyer who was there before this began. A cursor is good on one server only, and in one epoch."""
        tag, holders = codec.tag(sale, bucket), codec.key(sale, bucket, "holders")
        buyers: set[bytes] = set()

        async def call(*words: str | bytes | int) -> Any:  # noqa: ANN401 - a reply has the shape of its command
            return await self._store.read(tag, command(*words))

        server = await self._server(tag)
        async for names in _scanned(call, ("HSCAN", holders), "NOVALUES"):
            buyers.update(names)
        place = await self._place(sale, bucket)
        if server != await self._server(tag) or place.epoch != epoch:
            raise InventoryUnavailable(f"the holders of sale {sale} moved while they were read; repeat the call")
        return tuple(buyer.decode() for buyer in buyers)

    async def _server(self, tag: str) -> bytes:
        """Which run of which server has a tag now."""
        info: bytes = await self._store.read(tag, command("INFO", "server"))
        return next(line for line in info.splitlines() if line.startswith(b"run_id:"))

    def _head(self, sale: str, bucket: int) -> tuple[str, bytes]:
        """The tag, and all of a reserve command but its batch, which comes last."""
        if len(self._heads) >= _HEADS_MAX:
            self._heads.clear()
        words = (self._journal_lag_max, ORDERS_REMEMBERED_MAX, int(self._store.replicated), "")
        whole = _call("reserve", sale, bucket, ("meta", "holders", "journal"), words)
        found = codec.tag(sale, bucket), whole.removesuffix(b"$0\r\n\r\n")
        self._heads[sale, bucket] = found
        return found


def _call(name: str, sale: str, bucket: int, keys: Sequence[str], words: Sequence[str | bytes | int]) -> bytes:
    return command("FCALL", f"springtide_{name}", len(keys), *codec.keys(sale, bucket, *keys), *words)


def _accepted(sale: str, reply: Any) -> Any:  # noqa: ANN401 - its own shape
    """The reply, unless it is a refusal: those are text, and nothing else is."""
    if isinstance(reply, bytes):
        raise refusal(reply.decode(), sale)
    return reply


async def _of_each(call: Callable[[int], Awaitable[_T]], buckets: range) -> list[_T]:
    """Call for each bucket, a bounded number at once; the answers in order. Of several failures the first is raised."""
    found: list[_T] = []
    for first in range(0, len(buckets), _BUCKETS_AT_ONCE):
        some = buckets[first : first + _BUCKETS_AT_ONCE]
        answers = await asyncio.gather(*(call(bucket) for bucket in some), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            found.append(answer)
    return found


async def _scanned(
    call: Callable[..., Awaitable[Any]], head: Sequence[str], *options: str
) -> AsyncIterator[list[bytes]]:
    """What a scanning command gives, portion by portion; its cursor stands between `head` and `options`."""
    cursor = b"0"
    while True:
        cursor, names = await call(*head, cursor, *options, "COUNT", _SCAN_COUNT)
        yield names
        if cursor == b"0":
            return


def _portions(holders: Mapping[str, str]) -> Iterator[list[str]]:
    """Buyers and their entries, in portions that a Lua call can take."""
    flat = [word for pair in holders.items() for word in pair]
    for first in range(0, len(flat), 2 * _BUYERS_AT_ONCE):
        yield flat[first : first + 2 * _BUYERS_AT_ONCE]
