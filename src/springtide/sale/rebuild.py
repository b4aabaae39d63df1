"""A sale whose inventory was lost, put back from the ledger and from what journals survived.

The ledger is given a new epoch first, so that a counter with the old one sells nothing any more. Then all that is
there is fenced, its journals are recorded, and each bucket is restored from the ledger: the orders, and as stock what
nobody holds, initial + restocked - reserved - paid. In it is the stock of all orders that ended, whether it had been
given back or not: those orders are restored as ended, so that it is not given back once more, and their open returns
are closed. Units of open restocks are not in it: they are added at the end, by their ids, as anybody may do.

Each run takes an epoch of its own and begins with what the ledger has then, so that one that was cut off anywhere
is repeated by running it again.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar, cast

import msgspec

from springtide.errors import InventoryError, InventoryUnavailable, LedgerUnavailable, OutcomeUnknown, UserError
from springtide.model import BucketCut, HeldOrder, HeldState, Order, OrderState, Restock, Sale, SaleStage
from springtide.ports import Clock, Inventory, Ledger
from springtide.sale.orders import bucket_of, entry_place, frees_stock, home_of
from springtide.sale.recorder import Recorder

_T = TypeVar("_T")
CONSUMER = "rebuild"
NOTHING = "0-0"
"""The position of a journal that never had an entry."""

BUCKETS_AT_ONCE = 16
"""Buckets that are worked on at the same time."""

ATTEMPTS_MAX = 5
"""How often a change of the ledger by somebody else in the middle of a step is followed."""

ROWS_MAX = 100_000
"""Open restocks, and conflicts, that are looked at; returns that are closed in one call."""

_LOOK_AGAIN_S = 0.1


class RebuildOptions(msgspec.Struct, frozen=True):
    """`noticed_ms` is when the loss was noticed (None: now).

    `drain_s` is how long the recording of surviving journals may take: entries that a recorder had read are taken
    over when they were idle for some seconds. With `stay_paused` somebody else opens the sale again.
    """

    noticed_ms: int | None = None
    drain_s: float = 60.0
    stay_paused: bool = False


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """What was done.

    `survived` are the buckets that held everything up to their last sale. Of the others, purchases may be missing that
    were acknowledged and that nobody recorded: those of the last `at_risk_s` seconds, since `at_risk_from_ms`, the
    moment of the last recorded purchase of such a bucket, until the loss was noticed or the sale closed. It is 0 when
    all survived. `recorded` orders came from surviving journals; `orders` were restored. `oversold` units are promised
    beyond what there was; `conflicts` are acknowledged orders whose buyer and key had another order.
    """

    sale: str
    epoch: int
    opened: bool
    buckets: int
    survived: tuple[int, ...]
    at_risk_s: float
    at_risk_from_ms: int | None
    recorded: int
    orders: int
    stock: dict[str, int]
    restocks: int
    oversold: int
    conflicts: int


class _Books(msgspec.Struct, frozen=True):
    """What the ledger has of the sale, in one consistent look."""

    orders: tuple[Order, ...]
    open_restocks: tuple[Restock, ...]
    stock: dict[str, int]


async def rebuild(
    inventory: Inventory, ledger: Ledger, sale: str, clock: Clock, options: RebuildOptions | None = None
) -> Rebuilt:
    """Rebuild a sale in the inventory; run it again when it was cut off.

    Raises UserError when there is no such sale to rebuild or a journal cannot be recorded, and the ports' errors: all
    shards must answer, those that lost their data with none.
    """
    wanted = options or RebuildOptions()
    noticed_ms = clock.now_ms() if wanted.noticed_ms is None else wanted.noticed_ms
    work = _Rebuild(inventory, ledger, clock)
    marked = await work.mark(sale)
    cuts = await work.fence(marked)
    recorded = await work.record_journals(marked, wanted.drain_s)
    survived, from_ms = await work.losses(marked, cuts)
    books = await work.read_books(marked)
    await work.restore(marked, books)
    restocks = await work.deliver(marked, books.open_restocks)
    await work.renew_tokens()
    if not wanted.stay_paused:
        await inventory.pause(sale, paused=False)
    until_ms = min(noticed_ms, marked.closes_ms)
    return Rebuilt(
        sale=sale,
        epoch=marked.epoch,
        opened=not wanted.stay_paused,
        buckets=marked.buckets,
        survived=survived,
        at_risk_s=0.0 if from_ms is None else max(0, until_ms - from_ms) / 1000,
        at_risk_from_ms=from_ms,
        recorded=recorded,
        orders=len(books.orders),
        stock={sku: max(0, units) for sku, units in books.stock.items()},
        restocks=restocks,
        oversold=sum(max(0, -units) for units in books.stock.values()),
        conflicts=len(await ledger.conflicts(sale, ROWS_MAX)),
    )


class _Rebuild:
    """The steps. Each may be repeated."""

    def __init__(self, inventory: Inventory, ledger: Ledger, clock: Clock) -> None:
        self._inventory = inventory
        self._ledger = ledger
        self._clock = clock

    async def mark(self, name: str) -> Sale:
        """Give the sale a later epoch than any bucket has, in the ledger; the sale with it."""
        for _ in range(ATTEMPTS_MAX):
            record = await self._ledger.sale_record(name)
            if record is None:
                known = ", ".join(one.sale.sale for one in await self._ledger.sale_records("", 100))
                raise UserError(f"the ledger has no sale {name!r}; it has: {known or 'none'}")
            if record.stage is SaleStage.DRAFT:
                raise UserError(f"{name} is a draft and was never sold: publish it, there is nothing to rebuild")
            sale = record.sale
            epochs = await self._each(sale, partial(self._epoch, sale))
            marked = msgspec.structs.replace(sale, epoch=max(sale.epoch, *epochs) + 1)
            if await self._ledger.change_sale(marked, record.revision):
                return marked
        raise LedgerUnavailable(f"{name} is being changed by others; rebuild it again")

    async def fence(self, sale: Sale) -> list[BucketCut | None]:
        """Refuse what has an earlier epoch, in every bucket that is there; what each held."""
        return await self._each(sale, lambda bucket: self._inventory.fence(sale.sale, bucket, sale.epoch))

    async def record_journals(self, sale: Sale, drain_s: float) -> int:
        """Record what surviving journals hold; the number of orders that the ledger did not have."""
        recorder = Recorder(self._inventory, self._ledger, self._clock, CONSUMER)
        until_s = self._clock.monotonic_s() + drain_s

        async def drain(bucket: int) -> None:
            while await recorder.drain(sale.sale, bucket) or (
                await self._inventory.journal_depth(sale.sale, bucket) and await self._may_wait(sale, bucket, until_s)
            ):
                pass

        await self._each(sale, drain)
        return recorder.figures.recorded

    async def _may_wait(self, sale: Sale, bucket: int, until_s: float) -> bool:
        """Wait a moment for entries that a recorder has read: it records them, or they are taken over when idle."""
        if self._clock.monotonic_s() >= until_s:
            raise UserError(
                f"bucket {bucket} of {sale.sale} has journal entries that a recorder has read and not recorded: "
                "let it record them, or rebuild again with more time"
            )
        await self._clock.sleep(_LOOK_AGAIN_S)
        return True

    async def losses(self, sale: Sale, cuts: Sequence[BucketCut | None]) -> tuple[tuple[int, ...], int | None]:
        """The buckets that lost nothing, and the moment since which the others may have lost purchases."""
        positions = await self._ledger.positions(sale.sale)
        survived: list[int] = []
        last_ms: list[int] = []
        for bucket, cut in enumerate(cuts):
            position = positions.get(bucket, NOTHING)
            if cut is not None and _is_whole(cut, position):
                survived.append(bucket)
            else:
                last_ms.append(entry_place(position)[0] or sale.opens_ms)
        return tuple(survived), min(last_ms, default=None)

    async def read_books(self, sale: Sale) -> _Books:
        """What the ledger has. No stock comes or goes meanwhile: all buckets are missing or fenced."""
        for _ in range(ATTEMPTS_MAX):
            before = await self._open_restocks(sale)
            totals = {one.sku: one for one in await self._ledger.totals(sale.sale)}
            orders = await self._ledger.orders(sale.sale)
            if await self._open_restocks(sale) != before:
                continue
            stock = Counter({sku.sku: totals[sku.sku].initial + totals[sku.sku].restocked for sku in sale.skus})
            for order in orders:
                stock[order.reservation.sku] -= 0 if frees_stock(order.state) else order.reservation.quantity
            for restock in before:
                stock[restock.sku] -= restock.quantity
            return _Books(tuple(orders), tuple(before), dict(stock))
        raise LedgerUnavailable(f"{sale.sale} is being restocked all the time; rebuild it again")

    async def restore(self, sale: Sale, books: _Books) -> None:
        """Put all buckets back, the first one last: with it the sale is seen again."""
        orders: defaultdict[int, list[HeldOrder]] = defaultdict(list)
        for order in books.orders:
            orders[bucket_of(order.reservation.buyer, sale.buckets)].append(_held(order, sale.buckets))
        shares = _shares(sale, books.stock)

        async def put(bucket: int) -> None:
            await self._inventory.restore(sale, bucket, shares[bucket], orders[bucket])

        await self._each(sale, put, first=1)
        await put(0)
        ended = [order.reservation.order_id for order in books.orders if frees_stock(order.state)]
        for first in range(0, len(ended), ROWS_MAX):
            await self._ledger.close_returns(ended[first : first + ROWS_MAX])

    async def deliver(self, sale: Sale, restocks: Sequence[Restock]) -> int:
        """Put into stock what was under way to it; how many restocks. Whoever brings them too brings them once."""
        for restock in restocks:
            await self._inventory.restock(home_of(restock.sku, sale.buckets), restock)
        if restocks:
            await self._ledger.close_restocks([restock.restock_id for restock in restocks])
        return len(restocks)

    async def renew_tokens(self) -> None:
        """Tell an inventory that lost them which generations of token keys are in use."""
        ring = await self._ledger.token_ring()
        if (await self._inventory.token_ring()).newest < ring.newest:
            await self._inventory.set_token_ring(ring)

    async def _open_restocks(self, sale: Sale) -> list[Restock]:
        skus = {sku.sku for sku in sale.skus}
        found = await self._ledger.open_restocks(ROWS_MAX)
        return [restock for restock in found if restock.sale == sale.sale and restock.sku in skus]

    async def _epoch(self, sale: Sale, bucket: int) -> int:
        """The epoch of a bucket, 0 when it is lost."""
        try:
            return (await self._inventory.cut(sale.sale, bucket)).epoch
        except (InventoryUnavailable, OutcomeUnknown):
            raise
        except InventoryError:
            return 0

    async def _each(self, sale: Sale, call: Callable[[int], Awaitable[_T]], first: int = 0) -> list[_T]:
        """Call for some buckets at once; what each answered."""
        room = asyncio.Semaphore(BUCKETS_AT_ONCE)

        async def one(bucket: int) -> _T:
            async with room:
                return await call(bucket)

        # All are awaited before one's error is raised: a step that goes on behind it would meet its own repetition.
        answers = await asyncio.gather(*map(one, range(first, sale.buckets)), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return cast("list[_T]", answers)


def _is_whole(cut: BucketCut, position: str) -> bool:
    """Whether a bucket has everything up to its last sale: it does not end before what the ledger has of it.

    One that was restored has nothing of what it may have lost before, until it sells again.
    """
    is_new = cut.last_entry_id == NOTHING and cut.epoch > 1
    return not is_new and entry_place(cut.last_entry_id) >= entry_place(position)


def _held(order: Order, buckets: int) -> HeldOrder:
    one = order.reservation
    if order.state is OrderState.PAID:
        state = HeldState.PAID
    else:
        state = HeldState.ENDED if frees_stock(order.state) else HeldState.LIVE
    return HeldOrder(msgspec.structs.replace(one, bucket=bucket_of(one.buyer, buckets)), state)


def _shares(sale: Sale, stock: Mapping[str, int]) -> list[dict[str, int]]:
    """By bucket, the stock of each SKU: even shares when it is spread, else all of it in its home bucket."""
    shares: list[dict[str, int]] = [{} for _ in range(sale.buckets)]
    for sku in sale.skus:
        units = max(0, stock[sku.sku])
        for bucket, share in enumerate(shares):
            if sku.spread:
                share[sku.sku] = units // sale.buckets + (bucket < units % sale.buckets)
            else:
                share[sku.sku] = units if bucket == home_of(sku.sku, sale.buckets) else 0
    return shares
