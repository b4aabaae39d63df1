"""From the journal to the ledger, in batches, at the pace the ledger can take: here the peak is shaved.

Nothing is acknowledged to the journal before the ledger has it, and recording twice changes nothing. So a
recorder may be killed anywhere: what it had read is read again. A recorder keeps its consumer name over
restarts and is alone in using it: then a bucket is recorded in its journal's order, which is what the
ledger's positions promise.
"""

from collections.abc import Iterator, Sequence

import msgspec

from springtide.errors import InventoryError, LedgerError, SpringtideError
from springtide.model import JournalEntry, Sale
from springtide.ports import Clock, Inventory, Ledger
from springtide.sale.backoff import Backoff

ENTRIES_MAX = 1024
"""Journal entries in one read."""

ROWS_WANTED = 2000
"""Orders in one write; more make it hardly cheaper. An entry is never split: it has up to 1,024."""


class RecorderPace(msgspec.Struct, frozen=True):
    """In seconds: the wait when the journals are empty, and the first and longest wait after a failure."""

    idle_s: float = 0.02
    retry_first_s: float = 0.05
    retry_max_s: float = 2.0


class RecorderFigures(msgspec.Struct, frozen=True):
    """`lag_entries` is the journals' depth when it was last looked at; the others count since the start."""

    lag_entries: int
    recorded: int
    entries: int
    failures: int
    last_error: str


class Recorder:
    """Moves the journals of all published sales into the ledger."""

    def __init__(
        self,
        inventory: Inventory,
        ledger: Ledger,
        clock: Clock,
        consumer: str,
        pace: RecorderPace | None = None,
    ) -> None:
        """`consumer` names this recorder in the journals: kept over restarts, and nobody else's."""
        self._inventory = inventory
        self._ledger = ledger
        self._clock = clock
        self._consumer = consumer
        self._pace = pace or RecorderPace()
        self._sales: dict[str, Sale] = {}
        self._counts: dict[tuple[str, int], int] = {}
        self._figures = RecorderFigures(0, 0, 0, 0, "")
        self._stopping = False

    @property
    def figures(self) -> RecorderFigures:
        """What it did so far."""
        return self._figures

    def stop(self) -> None:
        """Let `run` return after the round it is in."""
        self._stopping = True

    async def run(self) -> None:
        """Record until `stop` or cancellation. Failures of either side are waited out, longer each time."""
        backoff = Backoff(self._pace.retry_first_s, self._pace.retry_max_s)
        while not self._stopping:
            try:
                entries = await self.drain_once()
                if not entries:
                    await self.measure_lag()
                    await self._clock.sleep(self._pace.idle_s)
                backoff.reset()
            except SpringtideError as error:
                self._count(failures=1, error=str(error))
                await self._clock.sleep(backoff.next_s())

    async def drain_once(self) -> int:
        """One batch from each bucket of each sale; the number of journal entries that were recorded.

        A bucket that fails does not hold up the others; its error is raised at the end.
        """
        entries, failed = 0, None
        for sale in await self._published():
            for bucket in range(sale.buckets):
                try:
                    entries += await self._drain(sale.sale, bucket)
                except (InventoryError, LedgerError) as error:
                    failed = error
        if failed is not None:
            raise failed
        return entries

    async def measure_lag(self) -> int:
        """The depth of all journals, in entries."""
        lag = 0
        for sale in await self._published():
            for bucket in range(sale.buckets):
                lag += await self._inventory.journal_depth(sale.sale, bucket)
        self._figures = msgspec.structs.replace(self._figures, lag_entries=lag)
        return lag

    async def _published(self) -> list[Sale]:
        """The sales; each is put into the ledger before its first order is."""
        for name in await self._inventory.sales():
            if name not in self._sales and (view := await self._inventory.view(name)) is not None:
                await self._ledger.publish(view.sale)
                self._sales[name] = view.sale
        return list(self._sales.values())

    async def _drain(self, sale: str, bucket: int) -> int:
        count = self._counts.get((sale, bucket), ENTRIES_MAX)
        entries = await self._inventory.read_journal(sale, bucket, self._consumer, count)
        for batch in _batches(entries):
            new = await self._ledger.record_entries(sale, bucket, batch)
            await self._inventory.acknowledge(sale, bucket, [entry.entry_id for entry in batch])
            self._count(recorded=new, entries=len(batch))
        if entries:
            self._counts[sale, bucket] = _entries_wanted(entries)
        return len(entries)

    def _count(self, recorded: int = 0, entries: int = 0, failures: int = 0, error: str = "") -> None:
        before = self._figures
        self._figures = RecorderFigures(
            lag_entries=max(0, before.lag_entries - entries),
            recorded=before.recorded + recorded,
            entries=before.entries + entries,
            failures=before.failures + failures,
            last_error=error or before.last_error,
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
