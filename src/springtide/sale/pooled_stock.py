"""Makes "sold out" true for a whole sale: a bucket that has run dry fetches units of others before it refuses anybody.

A bucket's own SOLD_OUT is about that bucket. It becomes an answer only when all buckets together hold too little and
nothing is between two of them.
"""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from springtide.errors import InventoryError, OutcomeUnknown
from springtide.model import (
    BucketCut,
    ReserveRequest,
    ReserveResult,
    ReserveStatus,
    SaleView,
    Transfer,
)
from springtide.ports import Ids
from springtide.sale.bucket_cuts import cut_all

ROUNDS_MAX = 6
"""Fetches for one batch. Others may take what was fetched; after so many times the buyer is asked to come again."""

FETCHES_MAX = 1024
"""Fetches under way in one process, over all sales; purchases beyond are asked to come again."""

SALES_MAX = 4096
"""Sales whose number of buckets is remembered: it never changes."""

_LATE = ReserveResult(ReserveStatus.LATE)
_UNKNOWN = ReserveResult(ReserveStatus.UNKNOWN)
_SOLD_OUT: Final = ReserveStatus.SOLD_OUT  # looked up once: an enum does that in Python


_Want = tuple[str, int, str, int]
"""Sale, bucket, SKU, and the least quantity that would help."""


class Stock(Protocol):
    """What is needed of the inventory."""

    async def reserve(self, sale: str, bucket: int, batch: Sequence[ReserveRequest]) -> list[ReserveResult]:
        """See `ports.Inventory`."""

    async def view(self, sale: str) -> SaleView | None:
        """See `ports.Inventory`."""

    async def cut(self, sale: str, bucket: int) -> BucketCut:
        """See `ports.Inventory`."""

    async def move_stock(self, transfer: Transfer) -> int:
        """See `ports.Inventory`."""


class Reserver(Protocol):
    """What decides a batch of purchases of one bucket."""

    async def reserve(self, sale: str, bucket: int, batch: Sequence[ReserveRequest]) -> list[ReserveResult]:
        """See `ports.Inventory`."""


class PooledFigures(msgspec.Struct):
    """Counts since the start."""

    fetches: int = 0
    units: int = 0
    in_flight: int = 0
    given_up: int = 0


class PooledStock:
    """`Reserver` over all buckets of a sale. A sale with one bucket costs it nothing."""

    def __init__(self, inventory: Stock, ids: Ids) -> None:
        """Transfer ids come from `ids`."""
        self._inventory = inventory
        self._ids = ids
        self._buckets: dict[str, int] = {}
        self._fetching: dict[_Want, asyncio.Task[bool]] = {}
        self.figures = PooledFigures()

    async def reserve(self, sale: str, bucket: int, batch: Sequence[ReserveRequest]) -> list[ReserveResult]:
        """Decide a batch. SOLD_OUT is final; LATE where it could not be settled in ROUNDS_MAX fetches."""
        results = await self._inventory.reserve(sale, bucket, batch)
        dry = [at for at, result in enumerate(results) if result.status is _SOLD_OUT]
        # From here on some of the batch may be sold: a failure is about those that are still undecided, not about them.
        rounds = 0
        while dry:
            try:
                hopeful = await self._fetched(sale, bucket, [batch[at] for at in dry])
            except InventoryError:
                hopeful = None
            if hopeful is None or rounds == ROUNDS_MAX:
                self.figures.given_up += len(dry)
                return _with(results, dry, _LATE)
            rounds += 1
            dry = [at for at in dry if batch[at].sku in hopeful]
            if dry:
                dry = await self._again(sale, bucket, batch, (results, dry))
        return results

    async def _again(
        self, sale: str, bucket: int, batch: Sequence[ReserveRequest], open_: tuple[list[ReserveResult], list[int]]
    ) -> list[int]:
        """Ask again for the places that are open; those that are dry again."""
        results, places = open_
        try:
            again = await self._inventory.reserve(sale, bucket, [batch[at] for at in places])
        except OutcomeUnknown:
            again = [_UNKNOWN] * len(places)
        except InventoryError:
            again = [_LATE] * len(places)
        for at, result in zip(places, again, strict=True):
            results[at] = result
        return [at for at in places if results[at].status is _SOLD_OUT]

    async def _buckets_of(self, sale: str) -> int:
        buckets = self._buckets.get(sale)
        if buckets is None:
            view = await self._inventory.view(sale)
            if view is None:
                return 1
            if len(self._buckets) >= SALES_MAX:
                self._buckets.clear()
            buckets = self._buckets[sale] = view.sale.buckets
        return buckets

    async def _fetched(self, sale: str, bucket: int, wanting: Sequence[ReserveRequest]) -> set[str]:
        """Fetch what these purchases want; the SKUs of which there may be enough now, so that asking again makes sense.

        A SKU is given up when there is not even enough for the smallest of them. A sale with one bucket has nothing to
        fetch.
        """
        if await self._buckets_of(sale) == 1:
            return set()
        least: dict[str, int] = {}
        whole: dict[str, int] = {}
        for request in wanting:
            least[request.sku] = min(request.quantity, least.get(request.sku, request.quantity))
            whole[request.sku] = whole.get(request.sku, 0) + request.quantity
        answers = await asyncio.gather(
            *(self._fetch_once((sale, bucket, sku, least[sku]), whole[sku]) for sku in least)
        )
        return {sku for sku, found in zip(least, answers, strict=True) if found}

    async def _fetch_once(self, key: _Want, whole: int) -> bool:
        """One fetch at a time for each bucket, SKU and least quantity: those who want the same wait for the same."""
        task = self._fetching.get(key)
        if task is None:
            if len(self._fetching) >= FETCHES_MAX:
                return True
            task = self._fetching[key] = asyncio.get_running_loop().create_task(self._fetch(*key, whole))
            task.add_done_callback(lambda done: self._fetched_once(key, done))
            self.figures.in_flight = len(self._fetching)
        return await asyncio.shield(task)

    def _fetched_once(self, key: _Want, done: asyncio.Task[bool]) -> None:
        self._fetching.pop(key, None)
        self.figures.in_flight = len(self._fetching)
        if not done.cancelled():
            done.exception()  # whoever waited has it; nobody may be waiting any more

    async def _fetch(self, sale: str, bucket: int, sku: str, least: int, whole: int) -> bool:
        """Bring up to `whole` units here; False only when the sale has fewer than `least` and none are on their way."""
        if await self._exhausted(sale, sku, least):
            return False
        buckets = await self._buckets_of(sale)
        cuts = await cut_all(self._inventory, sale, buckets)
        missing = whole - cuts[bucket].stock.get(sku, 0)
        donors = sorted((cut for cut in cuts if cut.bucket != bucket), key=lambda cut: -cut.stock.get(sku, 0))
        for donor in donors:
            here = donor.stock.get(sku, 0)
            if missing <= 0 or here == 0:
                break
            # More than is needed at once, so that the next buyers find some: but never so much that two beggars
            # would rob each other.
            share = min(here, max(missing, here // (2 * buckets)))
            transfer = Transfer(self._ids.new("t"), sale, donor.bucket, bucket, sku, share)
            moved = await self._inventory.move_stock(transfer)
            self.figures.fetches += 1
            self.figures.units += moved
            missing -= moved
        return True

    async def _exhausted(self, sale: str, sku: str, units: int) -> bool:
        """Whether the sale held fewer than `units` at one moment, with nothing between two buckets.

        Buckets are read one after the other, so a unit could slip past a single reading. Two readings with the same
        stock version settle it: between them no bucket gained anything, so at any moment between them each held at most
        what the first reading saw, and what the second finds not to be under way was not available then either.
        """
        first = await self._inventory.view(sale)
        if first is None or first.moving or first.stock.get(sku, 0) >= units:
            return first is None
        second = await self._inventory.view(sale)
        if second is None:
            return True
        return second.stock_version == first.stock_version and not second.moving


def _with(results: list[ReserveResult], places: Sequence[int], result: ReserveResult) -> list[ReserveResult]:
    for at in places:
        results[at] = result
    return results
