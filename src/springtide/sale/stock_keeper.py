"""Lays the stock of hot SKUs out over the buckets while they sell, gathers it again, and ends transfers cut off."""

import asyncio
from collections.abc import Sequence

import msgspec
import structlog

from springtide.decide.spread import BucketDemand, Move, SpreadPolicy, is_hot, moves
from springtide.errors import InventoryError
from springtide.model import BucketCut, Sku, Transfer
from springtide.ports import Clock, Ids, Inventory
from springtide.sale.bucket_cuts import cut_all
from springtide.sale.orders import home_of

EVERY_S = 0.25
"""Between two looks: a SKU that gets hot is spread within about twice this time."""

MOVES_MAX = 64
"""Moves that one look makes for one SKU at most; the next look goes on."""

TRACKED_MAX = 10_000
"""SKUs whose pace is remembered."""

_log = structlog.get_logger(__name__)


class KeeperFigures(msgspec.Struct):
    """Counts since the start; `hot` is how many SKUs are hot now."""

    moved_units: int = 0
    moves: int = 0
    resumed: int = 0
    failures: int = 0
    hot: int = 0


class _Seen(msgspec.Struct):
    """One SKU at the last look."""

    at_ms: int
    sold: tuple[int, ...]
    hot: bool = False


class StockKeeper:
    """Any number may run at once: a unit that two of them want to move is moved by one."""

    def __init__(self, inventory: Inventory, clock: Clock, ids: Ids, policy: SpreadPolicy | None = None) -> None:
        """`run` begins."""
        self._inventory = inventory
        self._clock = clock
        self._ids = ids
        self._policy = policy or SpreadPolicy()
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._open: set[str] = set()
        self.figures = KeeperFigures()

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            try:
                await self.look()
            except InventoryError as error:
                self.figures.failures += 1
                _log.warning("stock_keeper_failed", error=str(error))
            await self._clock.sleep(EVERY_S)

    async def look(self) -> int:
        """One look at all sales with several buckets; the units that were moved."""
        moved = 0
        still_open: set[str] = set()
        for name in await self._inventory.sales():
            view = await self._inventory.view(name)
            if view is None or view.sale.buckets == 1:
                continue
            cuts = await cut_all(self._inventory, name, view.sale.buckets)
            still_open |= await self._resume(cuts)
            for sku in view.sale.skus:
                moved += await self._lay_out(name, sku, cuts)
        self._open = still_open
        self.figures.hot = sum(seen.hot for seen in self._seen.values())
        return moved

    async def _resume(self, cuts: Sequence[BucketCut]) -> set[str]:
        """End transfers that were open at the last look already: whoever began them is gone."""
        found = [transfer for cut in cuts for transfer in cut.transfers]
        for transfer in found:
            if transfer.transfer_id in self._open:
                await self._inventory.move_stock(transfer)
                self.figures.resumed += 1
        return {transfer.transfer_id for transfer in found}

    async def _lay_out(self, sale: str, article: Sku, cuts: Sequence[BucketCut]) -> int:
        sku = article.sku
        demand, hot = self._demand(sale, sku, cuts)
        if demand is None:
            return 0
        wanted = moves(demand, home_of(sku, len(cuts)), self._policy, hot=hot or article.spread)
        units = await asyncio.gather(*(self._move(sale, sku, move) for move in wanted[:MOVES_MAX]))
        self.figures.moves += len(units)
        self.figures.moved_units += sum(units)
        return sum(units)

    async def _move(self, sale: str, sku: str, move: Move) -> int:
        transfer = Transfer(self._ids.new("k"), sale, move.source, move.target, sku, move.quantity)
        return await self._inventory.move_stock(transfer)

    def _demand(self, sale: str, sku: str, cuts: Sequence[BucketCut]) -> tuple[list[BucketDemand] | None, bool]:
        """The pace of each bucket since the last look; None at the first."""
        sold = tuple(cut.sold.get(sku, 0) for cut in cuts)
        at_ms = cuts[0].at_ms
        before = self._seen.get((sale, sku))
        if before is None and len(self._seen) >= TRACKED_MAX:
            self._seen.clear()
        if before is None or len(before.sold) != len(sold):
            self._seen[sale, sku] = _Seen(at_ms, sold)
            return None, False
        passed_s = max(at_ms - before.at_ms, 1) / 1000
        rates = [max(0, now - then) / passed_s for now, then in zip(sold, before.sold, strict=True)]
        hot = is_hot(sum(rates), self._policy, was_hot=before.hot)
        self._seen[sale, sku] = _Seen(at_ms, sold, hot)
        stock = [cut.stock.get(sku, 0) for cut in cuts]
        return [BucketDemand(units, rate) for units, rate in zip(stock, rates, strict=True)], hot
