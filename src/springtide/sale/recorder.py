"""From the journal to the ledger, in batches, at the pace the ledger can take: here the peak is shaved.

Nothing is acknowledged to the journal before the ledger has it, and recording twice changes nothing. So a
recorder may be killed anywhere: what it had read is read again. A recorder keeps its consumer name over
restarts and is alone in using it: then a bucket is recorded in its journal's order, which is what the
ledger's positions promise. Several recorders share the buckets out among them, each with its own share.
"""

import asyncio
import zlib
from collections.abc import Iterator, Sequence
from typing import Self

import msgspec
import structlog

from springtide.errors import InventoryError, LedgerError, SpringtideError, UserError
from springtide.model import JournalEntry, Sale, SaleStage
from springtide.ports import Clock, Inventory, Ledger
from springtide.sale.backoff import Backoff
from springtide.sale.left_alone import LeftAlone, Place

_log = structlog.get_logger(__name__)

ENTRIES_MAX = 1024
"""Journal entries in one read."""

ROWS_WANTED = 4000
"""Orders in one write; more make it hardly cheaper. An entry is never split: it has up to 1,024."""

SALES_PAGE = 100
"""Sales in one question to the ledger, which is asked for them while the inventory cannot be."""


class RecorderPace(msgspec.Struct, frozen=True):
    """In seconds, but for `workers`, the buckets that are recorded at once.

    An empty journal is read again after `idle_s`, later after up to `idle_max_s`. A bucket that fails is left alone
    for `retry_first_s`, later for up to `retry_max_s`; such buckets have at most half of the workers. `look_s` lies
    between two looks at which sales there are and how deep their journals.
    """

    workers: int = 4
    idle_s: float = 0.02
    idle_max_s: float = 0.2
    look_s: float = 0.25
    retry_first_s: float = 0.05
    retry_max_s: float = 2.0


class Share(msgspec.Struct, frozen=True):
    """The buckets of one recorder of several: number `index` of `count`, from 1."""

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        """Check that there is such a share."""
        if not 1 <= self.index <= self.count:
            msg = f"share {self.index}/{self.count}: write I/N with 1 <= I <= N, for example 1/3"
            raise ValueError(msg)

    @classmethod
    def of(cls, text: str) -> Self:
        """`I/N`. Raises UserError."""
        index, _, count = text.partition("/")
        try:
            return cls(int(index), int(count))
        except ValueError as error:
            raise UserError(f"--share {text}: write I/N with 1 <= I <= N, for example 1/3") from error

    def has(self, place: Place) -> bool:
        """Whether this recorder has the bucket; of several sales each recorder has about as many."""
        sale, bucket = place
        return (zlib.crc32(sale.encode()) + bucket) % self.count == self.index - 1


class RecorderFigures(msgspec.Struct, frozen=True):
    """`lag_entries` is the journals' depth when it was last looked at; `failing` are buckets that failed lately.

    The others count since the start. `conflicts` are acknowledged orders whose buyer and key had another one.
    """

    lag_entries: int
    recorded: int
    entries: int
    failures: int
    last_error: str
    conflicts: int = 0
    failing: int = 0


class Recorder:
    """Moves the journals of all published sales, or a share of their buckets, into the ledger."""

    def __init__(
        self,
        inventory: Inventory,
        ledger: Ledger,
        clock: Clock,
        consumer: str,
        pace: RecorderPace | None = None,
        share: Share | None = None,
    ) -> None:
        """`consumer` names this recorder in the journals: kept over restarts, and nobody else's."""
        self._inventory = inventory
        self._ledger = ledger
        self._clock = clock
        self._consumer = consumer
        self._pace = pace or RecorderPace()
        self._share = share or Share()
        self._left_alone = LeftAlone(clock, self._pace.retry_first_s, self._pace.retry_max_s)
        self._sales: dict[str, Sale] = {}
        self._counts: dict[Place, int] = {}
        self._depths: dict[Place, int] = {}
        self._due_s: dict[Place, float] = {}
        self._idle: dict[Place, Backoff] = {}
        self._busy: set[Place] = set()
        self._figures = RecorderFigures(0, 0, 0, 0, "")
        self._stopping = False

    @property
    def figures(self) -> RecorderFigures:
        """What it did so far."""
        return msgspec.structs.replace(self._figures, failing=len(self._left_alone))

    def stop(self) -> None:
        """Let `run` return after the batches it is in."""
        self._stopping = True

    async def run(self) -> None:
        """Record until `stop` or cancellation. Failures are waited out, longer each time, bucket by bucket."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look())
            for _ in range(self._pace.workers):
                tasks.create_task(self._work())

    async def drain_once(self) -> int:
        """One batch from each bucket of each sale; the number of journal entries that were recorded.

        A bucket that fails does not hold up the others; its error is raised at the end.
        """
        room = asyncio.Semaphore(self._pace.workers)

        async def drain(place: Place) -> int:
            async with room:
                return await self.drain(*place)

        entries, failed = 0, None
        for answer in await asyncio.gather(*map(drain, await self._places()), return_exceptions=True):
            if isinstance(answer, int):
                entries += answer
            elif isinstance(answer, InventoryError | LedgerError):
                failed = answer
            else:
                raise answer
        if failed is not None:
            raise failed
        return entries

    async def drain(self, sale: str, bucket: int) -> int:
        """One batch from one bucket; the number of journal entries that were recorded."""
        count = self._counts.get((sale, bucket), ENTRIES_MAX)
        entries = await self._inventory.read_journal(sale, bucket, self._consumer, count)
        for batch in _batches(entries):
            new = await self._ledger.record_entries(sale, bucket, batch)
            if new < sum(len(entry.reservations) for entry in batch):
                await self._look_for_conflicts(sale, batch)
            await self._inventory.acknowledge(sale, bucket, [entry.entry_id for entry in batch])
            self._count(recorded=new, entries=len(batch))
        if entries:
            self._counts[sale, bucket] = _entries_wanted(entries)
        return len(entries)

    async def measure_lag(self) -> int:
        """The depth of all journals, in entries; a bucket that does not answer counts as it last did."""
        failed = None
        for place in await self._places():
            try:
                self._depths[place] = await self._inventory.journal_depth(*place)
            except InventoryError as error:
                failed = error
        lag = sum(self._depths.values())
        self._figures = msgspec.structs.replace(self._figures, lag_entries=lag)
        if failed is not None:
            raise failed
        return lag

    async def _look(self) -> None:
        while not self._stopping:
            try:
                for place in await self._places():
                    self._due_s.setdefault(place, 0.0)
                await self.measure_lag()
            except SpringtideError as error:
                self._count(failures=1, error=str(error))
            await self._clock.sleep(self._pace.look_s)

    async def _work(self) -> None:
        while not self._stopping:
            place = self._next()
            if place is None:
                await self._clock.sleep(self._pace.idle_s)
                continue
            self._busy.add(place)
            try:
                await self._step(place)
            finally:
                self._busy.discard(place)

    def _next(self) -> Place | None:
        """The bucket that has waited longest, of those that are due."""
        now_s, resting = self._clock.monotonic_s(), self._left_alone.now()
        if sum(place in self._left_alone for place in self._busy) >= max(1, self._pace.workers // 2):
            resting |= {place for place in self._due_s if place in self._left_alone}
        due = [
            (due_s, place)
            for place, due_s in self._due_s.items()
            if due_s <= now_s and place not in self._busy and place not in resting
        ]
        return min(due)[1] if due else None

    async def _step(self, place: Place) -> None:
        wait_s = 0.0
        try:
            entries = await self.drain(*place)
        except (InventoryError, LedgerError) as error:
            self._count(failures=1, error=str(error))
            if self._left_alone.failed(place):
                _log.warning("bucket_not_recorded", sale=place[0], bucket=place[1], error=str(error))
        else:
            self._left_alone.worked(place)
            idle = self._idle.setdefault(place, Backoff(self._pace.idle_s, self._pace.idle_max_s))
            if entries:
                idle.reset()
            else:
                wait_s = idle.next_s()
        self._due_s[place] = self._clock.monotonic_s() + wait_s

    async def _places(self) -> list[Place]:
        """The buckets that this recorder has."""
        sales = await self._published()
        return [
            (sale.sale, bucket)
            for sale in sales
            for bucket in range(sale.buckets)
            if self._share.has((sale.sale, bucket))
        ]

    async def _published(self) -> list[Sale]:
        """The sales; each is put into the ledger before its first order is.

        The ledger is asked first: a view of a sale needs all its shards, and the journals of those that live must be
        recorded while one is away.
        """
        for name in await self._names():
            if name in self._sales:
                continue
            record = await self._ledger.sale_record(name)
            if record is not None and record.stage is not SaleStage.DRAFT:
                self._sales[name] = record.sale
            elif (view := await self._inventory.view(name)) is not None:
                await self._ledger.publish(view.sale)
                self._sales[name] = view.sale
        return list(self._sales.values())

    async def _names(self) -> list[str]:
        try:
            return await self._inventory.sales()
        except InventoryError as error:
            self._count(failures=1, error=str(error))
        names: list[str] = []
        while page := await self._ledger.sale_records(names[-1] if names else "", SALES_PAGE):
            names += [record.sale.sale for record in page]
        return names

    async def _look_for_conflicts(self, sale: str, batch: Sequence[JournalEntry]) -> None:
        """Tell the orders that are in conflict from those that are only there already."""
        given = {one.order_id for entry in batch for one in entry.reservations}
        for one in await self._ledger.conflicts(sale, len(given)):
            if one.order_id in given:
                self._count(conflicts=1)
                _log.error("order_in_conflict", sale=sale, order=one.order_id, buyer=one.buyer, key=one.key)

    def _count(
        self, recorded: int = 0, entries: int = 0, failures: int = 0, error: str = "", conflicts: int = 0
    ) -> None:
        before = self._figures
        self._figures = RecorderFigures(
            lag_entries=max(0, before.lag_entries - entries),
            recorded=before.recorded + recorded,
            entries=before.entries + entries,
            failures=before.failures + failures,
            last_error=error or before.last_error,
            conflicts=before.conflicts + conflicts,
        )


def _batches(entries: Sequence[JournalEntry]) -> Iterator[list[JournalEntry]]:
    """The entries in order, cut where a batch has the rows that one write wants."""
    batch: list[JournalEntry] = []
    rows = 0
    for entry in entries:
        if batch and rows + len(entry.reservations) > ROWS_WANTED:
            yield batch
            batch, rows = [], 0
        batch.append(entry)
        rows += len(entry.reservations)
    if batch:
        yield batch


def _entries_wanted(entries: Sequence[JournalEntry]) -> int:
    """How many entries to read next, so that they fill one write when they are as large as these."""
    rows = sum(len(entry.reservations) for entry in entries)
    return max(1, min(ENTRIES_MAX, ROWS_WANTED * len(entries) // max(1, rows)))
