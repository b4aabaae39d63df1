"""Stock on its way into the inventory: of orders that ended unpaid (the outbox), and of restocks.

A row closes after the inventory's durable answer, and the inventory takes an order or a restock back once: a crash
between the two repeats the call without effect. A bucket that fails is left alone for a while, longer each time, and
its rows are not even read then: those of a dead shard keep nobody waiting.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
import structlog

from springtide.errors import InventoryError
from springtide.model import Restock, StockReturn
from springtide.ports import Clock, Inventory, Ledger
from springtide.sale.left_alone import LeftAlone, Place
from springtide.sale.orders import home_of

_log = structlog.get_logger(__name__)

_AT_ONCE = 16
"""Calls to one bucket at once: a bucket that is dead must not take all of `in_flight_max`."""

_Row = TypeVar("_Row", StockReturn, Restock)


class PumpLimits(msgspec.Struct, frozen=True):
    """`batch_max` bounds the rows of one round, `in_flight_max` the calls of the inventory at once.

    A bucket has `bucket_s` in a round. One that fails is left alone for `retry_first_s`, then for twice as long, up to
    `retry_max_s`.
    """

    batch_max: int = 500
    in_flight_max: int = 64
    bucket_s: float = 1.0
    retry_first_s: float = 0.1
    retry_max_s: float = 10.0


class StockPump:
    """Any number may run at once: each order and each restock takes effect once."""

    def __init__(self, inventory: Inventory, ledger: Ledger, clock: Clock, limits: PumpLimits | None = None) -> None:
        """Each call of `return_once` and `restock_once` is one round."""
        self._inventory = inventory
        self._ledger = ledger
        self._clock = clock
        self._limits = limits or PumpLimits()
        self._left_alone = LeftAlone(clock, self._limits.retry_first_s, self._limits.retry_max_s)
        self._room = asyncio.Semaphore(self._limits.in_flight_max)
        self._counts: Counter[str] = Counter()
        self.last_error = ""

    @property
    def returned(self) -> int:
        """Orders whose stock went back, since the start."""
        return self._counts["returned"]

    @property
    def restocked(self) -> int:
        """Restocks that were put into stock, since the start."""
        return self._counts["restocked"]

    @property
    def failures(self) -> int:
        """Buckets that failed a round, since the start."""
        return self._counts["failures"]

    @property
    def held_up(self) -> int:
        """Buckets that failed when they were last tried."""
        return len(self._left_alone)

    async def return_once(self) -> int:
        """Give one batch of stock back; how many orders' it was. Raises LedgerUnavailable."""
        rows = await self._ledger.returns(self._limits.batch_max, sorted(self._left_alone.now()))
        by_place: defaultdict[Place, list[StockReturn]] = defaultdict(list)
        for row in rows:
            by_place[row.sale, row.bucket].append(row)
        back = await self._each_bucket(by_place, self._inventory.give_back)
        if back:
            await self._ledger.close_returns([row.order_id for row in back])
        self._counts["returned"] += len(back)
        return len(back)

    async def restock_once(self) -> int:
        """Put one batch of restocks into stock; how many. Raises LedgerUnavailable.

        A restock goes to its SKU's home bucket, whoever brings it there: it is that bucket which knows that it has it.
        """
        buckets: dict[str, int] = {}
        by_place: defaultdict[Place, list[Restock]] = defaultdict(list)
        left_alone = self._left_alone.now()
        for restock in await self._ledger.open_restocks(self._limits.batch_max):
            if restock.sale not in buckets and (record := await self._ledger.sale_record(restock.sale)) is not None:
                buckets[restock.sale] = record.sale.buckets
            place = (restock.sale, home_of(restock.sku, buckets[restock.sale]))
            if place not in left_alone:
                by_place[place].append(restock)

        async def put(restock: Restock) -> bool:
            return await self._inventory.restock(home_of(restock.sku, buckets[restock.sale]), restock)

        done = await self._each_bucket(by_place, put)
        if done:
            await self._ledger.close_restocks([restock.restock_id for restock in done])
        self._counts["restocked"] += len(done)
        return len(done)

    async def _each_bucket(
        self, by_place: Mapping[Place, Sequence[_Row]], call: Callable[[_Row], Awaitable[bool]]
    ) -> list[_Row]:
        """Call for the rows of all buckets at once, and for those of one bucket until one of them fails."""
        done = await asyncio.gather(*[self._one_bucket(place, rows, call) for place, rows in by_place.items()])
        return [row for rows in done for row in rows]

    async def _one_bucket(
        self, place: Place, rows: Sequence[_Row], call: Callable[[_Row], Awaitable[bool]]
    ) -> list[_Row]:
        done: list[_Row] = []

        async def one(row: _Row) -> None:
            async with self._room:
                await call(row)
            done.append(row)

        try:
            async with self._clock.timeout(self._limits.bucket_s):
                for first in range(0, len(rows), _AT_ONCE):
                    answers = [one(row) for row in rows[first : first + _AT_ONCE]]
                    failed = [error for error in await asyncio.gather(*answers, return_exceptions=True) if error]
                    if failed:
                        raise failed[0]
        except (InventoryError, TimeoutError) as error:
            self._failed(place, error)
        else:
            self._left_alone.worked(place)
        return done

    def _failed(self, place: Place, error: Exception) -> None:
        sale, bucket = place
        self.last_error = str(error) or f"bucket {bucket} of {sale} gave no answer in time"
        self._counts["failures"] += 1
        if self._left_alone.failed(place):
            _log.warning("stock_held_up", sale=sale, bucket=bucket, error=self.last_error)
