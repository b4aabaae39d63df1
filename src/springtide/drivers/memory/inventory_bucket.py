"""What a bucket of the inventory in memory is made of."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from springtide.drivers.inventory_limits import HOLDERS_ENTRIES_MAX, RETAIN_MS, RETAINED_MAX
from springtide.model import (
    BucketCut,
    HeldState,
    JournalEntry,
    Reservation,
    ReserveStatus,
    Restock,
    Sale,
    Transfer,
)


@dataclass(slots=True)
class Held:
    """An order in its buyer's entry."""

    reservation: Reservation
    state: HeldState = HeldState.LIVE


@dataclass(slots=True)
class Delivered:
    """A journal entry that a consumer has read and not acknowledged."""

    entry: JournalEntry
    consumer: str
    at_ms: int


@dataclass(slots=True)
class Journal:
    """A stream with one consumer group. `delivered` counts entries ever given out, `dropped` those trimmed.

    `pending` is in the order of the entries: a dict keeps an entry's place when it is delivered again.
    """

    entries: deque[JournalEntry] = field(default_factory=deque)
    pending: dict[str, Delivered] = field(default_factory=dict)
    last_entry: tuple[int, int] = (0, 0)
    delivered: int = 0
    dropped: int = 0

    def append(self, now_ms: int, reservations: Sequence[Reservation]) -> None:
        """Add an entry."""
        last_ms, sequence = self.last_entry
        self.last_entry = (now_ms, 0) if now_ms > last_ms else (last_ms, sequence + 1)
        self.entries.append(JournalEntry(self.last_entry_id, tuple(reservations)))

    @property
    def last_entry_id(self) -> str:
        """As the stream has it, also when that entry is gone."""
        return "{}-{}".format(*self.last_entry)

    @property
    def added(self) -> int:
        """Entries ever added."""
        return self.dropped + len(self.entries)

    @property
    def unrecorded(self) -> int:
        """Entries that the ledger does not have."""
        return self.added - self.delivered + len(self.pending)

    def read(self, consumer: str, count: int, now_ms: int, idle_ms: int) -> list[JournalEntry]:
        """Open entries of this consumer, those idle elsewhere, then new ones."""
        given = self.pending.values()
        own = [one.entry for one in given if one.consumer == consumer]
        idle = [one.entry for one in given if one.consumer != consumer and now_ms - one.at_ms >= idle_ms]
        found = (own + idle)[:count]
        start = self.delivered - self.dropped
        new = list(islice(self.entries, start, start + count - len(found)))
        self.delivered += len(new)
        for entry in found + new:
            self.pending[entry.entry_id] = Delivered(entry, consumer, now_ms)
        return found + new

    def acknowledge(self, entry_ids: Sequence[str], now_ms: int) -> None:
        """Drop what is acknowledged with everything before it, and old, or more than may stay for its age alone."""
        for entry_id in entry_ids:
            self.pending.pop(entry_id, None)
        crowded = len(self.entries) - self.unrecorded > RETAINED_MAX
        while self.delivered > self.dropped and self.entries[0].entry_id not in self.pending:
            if not crowded and int(self.entries[0].entry_id.partition("-")[0]) >= now_ms - RETAIN_MS:
                return
            self.entries.popleft()
            self.dropped += 1

    def buyers_since(self, added: int) -> tuple[str, ...] | None:
        """The buyers of the entries after the first `added`; None unless all of these are still there."""
        if not self.dropped <= added <= self.added or self.added - added > HOLDERS_ENTRIES_MAX:
            return None
        new = islice(self.entries, added - self.dropped, None)
        return tuple(dict.fromkeys(order.buyer for entry in new for order in entry.reservations))


@dataclass(slots=True)
class Moved:
    """What a bucket knows of transfers: those that left it and are open, and those that came."""

    open: dict[str, tuple[Transfer, int]] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)
    lowest: dict[int, int] = field(default_factory=dict)
    credited: dict[int, set[int]] = field(default_factory=dict)

    def lowest_open(self, target: int, number: int) -> int:
        """The lowest number of the open transfers to a target; `number` when none is lower."""
        return min([other for transfer, other in self.open.values() if transfer.target == target], default=number)

    def note_credit(self, source: int, number: int, lowest: int) -> bool:
        """Remember a credit; False when it was made before."""
        credited = self.credited.setdefault(source, set())
        floor = self.lowest.get(source, 1)
        if number < floor or number in credited:
            return False
        floor = self.lowest[source] = max(floor, lowest)
        self.credited[source] = {one for one in credited if one >= floor} | {number}
        return True


@dataclass(slots=True)
class Bucket:
    """One bucket of a sale."""

    definition: Sale
    stock: dict[str, int]
    epoch: int
    paused: bool = False
    fenced: bool = False
    version: int = 0
    sold: dict[str, int] = field(default_factory=dict)
    holders: dict[str, list[Held]] = field(default_factory=dict)
    journal: Journal = field(default_factory=Journal)
    restocks: dict[str, Restock] = field(default_factory=dict)
    moved: Moved = field(default_factory=Moved)

    @property
    def mark(self) -> str:
        """See `SaleView`."""
        return f"{self.epoch}:{self.journal.last_entry_id}"

    def refusal(self, now_ms: int) -> ReserveStatus | None:
        """Why it sells nothing now."""
        if now_ms < self.definition.opens_ms:
            return ReserveStatus.NOT_OPEN
        if now_ms >= self.definition.closes_ms:
            return ReserveStatus.CLOSED
        return ReserveStatus.PAUSED if self.paused else None

    def held(self, buyer: str, order_id: str) -> Held | None:
        """One order of a buyer."""
        orders = self.holders.get(buyer, [])
        return next((held for held in orders if held.reservation.order_id == order_id), None)

    def cut(self, sale: str, bucket: int, now_ms: int) -> BucketCut:
        """All of its figures."""
        return BucketCut(
            sale=sale,
            bucket=bucket,
            stock=dict(self.stock),
            last_entry_id=self.journal.last_entry_id,
            at_ms=now_ms,
            epoch=self.epoch,
            sold=dict(self.sold),
            transfers=tuple(transfer for transfer, _ in self.moved.open.values()),
        )
