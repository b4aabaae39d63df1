"""`ports.Inventory` in memory, with Valkey's semantics: for the twin and for tests."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from springtide.drivers.inventory_limits import (
    CLAIM_IDLE_MS,
    JOURNAL_LAG_MAX,
    ORDERS_REMEMBERED_MAX,
    bucket_share,
    check_batch,
    check_entries,
)
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


@dataclass(slots=True)
class _Held:
    """An order in its buyer's entry."""

    reservation: Reservation
    live: bool = True


@dataclass(slots=True)
class _Delivered:
    """A journal entry that a consumer has read and not acknowledged."""

    entry: JournalEntry
    consumer: str
    at_ms: int


@dataclass(slots=True)
class _Journal:
    """A stream with one consumer group. `delivered` counts entries ever given out, `dropped` those trimmed.

    `pending` is in the order of the entries: a dict keeps an entry's place when it is delivered again.
    """

    entries: deque[JournalEntry] = field(default_factory=deque)
    pending: dict[str, _Delivered] = field(default_factory=dict)
    last_entry: tuple[int, int] = (0, 0)
    delivered: int = 0
    dropped: int = 0

    def append(self, now_ms: int, reservations: Sequence[Reservation]) -> None:
        last_ms, sequence = self.last_entry
        self.last_entry = (now_ms, 0) if now_ms > last_ms else (last_ms, sequence + 1)
        self.entries.append(JournalEntry(self.last_entry_id, tuple(reservations)))

    @property
    def last_entry_id(self) -> str:
        return "{}-{}".format(*self.last_entry)

    @property
    def undelivered(self) -> int:
        return self.dropped + len(self.entries) - self.delivered

    def read(self, consumer: str, count: int, now_ms: int, idle_ms: int) -> list[JournalEntry]:
        given = self.pending.values()
        own = [one.entry for one in given if one.consumer == consumer]
        idle = [one.entry for one in given if one.consumer != consumer and now_ms - one.at_ms >= idle_ms]
        found = (own + idle)[:count]
        start = self.delivered - self.dropped
        new = list(islice(self.entries, start, start + count - len(found)))
        self.delivered += len(new)
        for entry in found + new:
            self.pending[entry.entry_id] = _Delivered(entry, consumer, now_ms)
        return found + new

    def acknowledge(self, entry_ids: Sequence[str]) -> None:
        for entry_id in entry_ids:
            self.pending.pop(entry_id, None)
        while self.delivered > self.dropped and self.entries[0].entry_id not in self.pending:
            self.entries.popleft()
            self.dropped += 1


@dataclass(slots=True)
class _Bucket:
    """One bucket of a sale."""

    stock: dict[str, int]
    version: int = 0
    holders: dict[str, list[_Held]] = field(default_factory=dict)
    journal: _Journal = field(default_factory=_Journal)


@dataclass(slots=True)
class _Sale:
    """A published sale."""

    definition: Sale
    buckets: list[_Bucket]
    paused: bool = False

    def refusal(self, now_ms: int) -> ReserveStatus | None:
        """Why the sale sells nothing now."""
        if now_ms < self.definition.opens_ms:
            return ReserveStatus.NOT_OPEN
        if now_ms >= self.definition.closes_ms:
            return ReserveStatus.CLOSED
        return ReserveStatus.PAUSED if self.paused else None


class MemoryInventory:
    """The port's semantics on dictionaries; each method is one step of the event loop, hence atomic."""

    def __init__(
        self, clock: Clock, journal_lag_max: int = JOURNAL_LAG_MAX, claim_idle_ms: int = CLAIM_IDLE_MS
    ) -> None:
        """`journal_lag_max` is in entries; one idle for `claim_idle_ms` may be read by another consumer."""
        self._clock = clock
        self._journal_lag_max = journal_lag_max
        self._claim_idle_ms = claim_idle_ms
        self._sales: dict[str, _Sale] = {}

    async def publish(self, sale: Sale) -> bool:
        """See the port."""
        if sale.sale in self._sales:
            return False
        buckets = [
            _Bucket({sku.sku: bucket_share(sku.stock, bucket, sale.buckets) for sku in sale.skus})
            for bucket in range(sale.buckets)
        ]
        self._sales[sale.sale] = _Sale(sale, buckets)
        return True

    async def pause(self, sale: str, paused: bool) -> None:  # noqa: FBT001 - the port's signature
        """See the port."""
        self._published(sale).paused = paused

    async def reserve(self, sale: str, bucket: int, batch: Sequence[ReserveRequest]) -> list[ReserveResult]:
        """See the port."""
        check_batch(batch)
        published = self._sales.get(sale)
        if published is None:
            return [ReserveResult(ReserveStatus.UNKNOWN_SKU) for _ in batch]
        step = _Step(published, bucket, self._clock.now_ms(), self._journal_lag_max)
        results = [step.decide(request) for request in batch]
        step.commit()
        return results

    async def find(self, sale: str, bucket: int, buyer: str, order_id: str) -> Reservation | None:
        """See the port."""
        held = self._held(sale, bucket, buyer, order_id)
        return held.reservation if held else None

    async def give_back(self, returned: StockReturn) -> bool:
        """See the port."""
        held = self._held(returned.sale, returned.bucket, returned.buyer, returned.order_id)
        if held is None or not held.live:
            return False
        held.live = False
        place = self._sales[returned.sale].buckets[returned.bucket]
        place.stock[held.reservation.sku] += held.reservation.quantity
        place.version += 1
        return True

    async def view(self, sale: str) -> SaleView | None:
        """See the port."""
        published = self._sales.get(sale)
        if published is None:
            return None
        buckets = published.buckets
        stock = {sku: sum(place.stock[sku] for place in buckets) for sku in buckets[0].stock}
        version = sum(place.version for place in buckets)
        return SaleView(published.definition, stock, published.paused, version, self._clock.now_ms())

    async def sales(self) -> list[str]:
        """See the port."""
        return sorted(self._sales)

    async def cut(self, sale: str, bucket: int) -> BucketCut:
        """See the port."""
        place = self._published(sale).buckets[bucket]
        return BucketCut(sale, bucket, dict(place.stock), place.journal.last_entry_id, self._clock.now_ms())

    async def read_journal(self, sale: str, bucket: int, consumer: str, count: int) -> list[JournalEntry]:
        """See the port."""
        check_entries(count)
        journal = self._journal(sale, bucket)
        return journal.read(consumer, count, self._clock.now_ms(), self._claim_idle_ms) if journal else []

    async def acknowledge(self, sale: str, bucket: int, entry_ids: Sequence[str]) -> None:
        """See the port."""
        journal = self._journal(sale, bucket)
        if entry_ids and journal:
            check_entries(len(entry_ids))
            journal.acknowledge(entry_ids)

    async def journal_depth(self, sale: str, bucket: int) -> int:
        """See the port."""
        journal = self._journal(sale, bucket)
        return journal.undelivered + len(journal.pending) if journal else 0

    async def close(self) -> None:
        """See the port: there is nothing to let go of."""

    def _published(self, sale: str) -> _Sale:
        if sale not in self._sales:
            raise InventoryError(f"sale {sale} is not published here: publish it first, or check its name")
        return self._sales[sale]

    def _journal(self, sale: str, bucket: int) -> _Journal | None:
        return self._sales[sale].buckets[bucket].journal if sale in self._sales else None

    def _held(self, sale: str, bucket: int, buyer: str, order_id: str) -> _Held | None:
        orders = self._sales[sale].buckets[bucket].holders.get(buyer, []) if sale in self._sales else []
        return next((held for held in orders if held.reservation.order_id == order_id), None)


class _Step:
    """One batch against one bucket, at one moment."""

    def __init__(self, sale: _Sale, bucket: int, now_ms: int, journal_lag_max: int) -> None:
        self._definition = sale.definition
        self._index = bucket
        self._place = sale.buckets[bucket]
        self._now_ms = now_ms
        self._pay_by_ms = now_ms + sale.definition.hold_ms
        self._refusal = sale.refusal(now_ms)
        self._room = len(self._place.journal.entries) < journal_lag_max
        self._per_buyer_max = {sku.sku: sku.per_buyer_max for sku in sale.definition.skus}
        self._sold: list[Reservation] = []

    def decide(self, request: ReserveRequest) -> ReserveResult:
        orders = self._place.holders.get(request.buyer, [])
        for held in orders:
            if held.reservation.key == request.key:
                return _repeated(held, request)
        refused = self._refused(request) or self._above_limit(request, orders) or self._out(request)
        return refused or self._sell(request)

    def commit(self) -> None:
        """Journal what the batch sold, in one entry."""
        if self._sold:
            self._place.journal.append(self._now_ms, self._sold)

    def _refused(self, request: ReserveRequest) -> ReserveResult | None:
        if self._now_ms > request.deadline_ms:
            return ReserveResult(ReserveStatus.LATE)
        if request.epoch != self._definition.epoch:
            return ReserveResult(ReserveStatus.STALE_EPOCH)
        if self._refusal:
            return ReserveResult(self._refusal)
        return None if request.sku in self._place.stock else ReserveResult(ReserveStatus.UNKNOWN_SKU)

    def _above_limit(self, request: ReserveRequest, orders: list[_Held]) -> ReserveResult | None:
        live = [held.reservation for held in orders if held.live and held.reservation.sku == request.sku]
        wanted = sum(order.quantity for order in live) + request.quantity
        if wanted <= self._per_buyer_max[request.sku] and len(orders) < ORDERS_REMEMBERED_MAX:
            return None
        if not live:
            return ReserveResult(ReserveStatus.LIMIT_REACHED)
        return ReserveResult(ReserveStatus.LIMIT_REACHED, live[-1].order_id, live[-1].pay_by_ms)

    def _out(self, request: ReserveRequest) -> ReserveResult | None:
        if request.quantity > self._place.stock[request.sku]:
            return ReserveResult(ReserveStatus.SOLD_OUT)
        return None if self._room else ReserveResult(ReserveStatus.JOURNAL_FULL)

    def _sell(self, request: ReserveRequest) -> ReserveResult:
        self._place.stock[request.sku] -= request.quantity
        sold = Reservation(
            order_id=request.order_id,
            sale=self._definition.sale,
            bucket=self._index,
            buyer=request.buyer,
            key=request.key,
            sku=request.sku,
            quantity=request.quantity,
            reserved_ms=self._now_ms,
            pay_by_ms=self._pay_by_ms,
        )
        self._place.holders.setdefault(request.buyer, []).append(_Held(sold))
        self._sold.append(sold)
        return ReserveResult(ReserveStatus.RESERVED, sold.order_id, sold.pay_by_ms)


def _repeated(held: _Held, request: ReserveRequest) -> ReserveResult:
    order = held.reservation
    if (order.sku, order.quantity) != (request.sku, request.quantity):
        return ReserveResult(ReserveStatus.KEY_REUSED)
    return ReserveResult(ReserveStatus.REPEATED, order.order_id, order.pay_by_ms, held.live)
