"""What a merchant does with sales: drafted, published, edited, opened, paused, restocked and closed; and the repair.

Every change is written to the ledger first and then brought to the inventory. A crash between the two leaves the
ledger ahead; `reconcile` brings the inventory after it. Whoever changes a sale looks at the ledger once more when the
inventory is done, so that of two changes at once the inventory ends with the later one, whichever arrived last.
"""

from collections.abc import Callable
from enum import StrEnum

import msgspec
import structlog

from springtide.errors import InventoryError, LedgerError, LedgerUnavailable, SpringtideError
from springtide.model import Restock, Sale, SaleRecord, SaleStage, SaleView, Sku
from springtide.ports import Clock, Inventory, Ledger
from springtide.sale.backoff import Backoff
from springtide.sale.orders import home_of

_log = structlog.get_logger(__name__)


class Refusal(StrEnum):
    """Why a merchant's wish was refused."""

    BAD_SALE = "bad_sale"
    BUCKETS_ARE_FIXED = "buckets_are_fixed"
    CHANGED_MEANWHILE = "changed_meanwhile"
    KEY_REUSED = "key_reused"
    LAST_OWNER = "last_owner"
    PRICE_IS_FIXED = "price_is_fixed"
    REVISION_DIFFERS = "revision_differs"
    RING_IS_FULL = "ring_is_full"
    RING_IS_SINGLE = "ring_is_single"
    SALE_EXISTS = "sale_exists"
    SALE_IS_LOST = "sale_is_lost"
    SKU_IS_NEEDED = "sku_is_needed"
    SPREAD_IS_FIXED = "spread_is_fixed"
    STOCK_IS_FIXED = "stock_is_fixed"
    TOO_MANY_KEYS = "too_many_keys"
    UNKNOWN_KEY = "unknown_key"
    UNKNOWN_ORDER = "unknown_order"
    UNKNOWN_REFUND = "unknown_refund"
    UNKNOWN_SALE = "unknown_sale"
    UNKNOWN_SKU = "unknown_sku"
    WRONG_STAGE = "wrong_stage"


class MerchantError(SpringtideError):
    """A wish that the state of things does not allow; nothing was changed. `refusal` is for programs."""

    def __init__(self, refusal: Refusal, message: str) -> None:
        """The message says what to do instead."""
        super().__init__(message)
        self.refusal = refusal


class MerchantLimits(msgspec.Struct, frozen=True):
    """The bounds of a merchant's work.

    One pass of the repair looks at `pages_max` pages of `page` sales and at `restocks_max` restocks. `settle_max` is
    how often one call follows changes that others make at the same time.
    """

    page: int = 100
    pages_max: int = 100
    restocks_max: int = 200
    settle_max: int = 5
    every_s: float = 5.0
    retry_max_s: float = 20.0


class MerchantFigures(msgspec.Struct):
    """Counts since the start; `troubled` is how many sales the last pass could not bring to the inventory."""

    published: int = 0
    redefined: int = 0
    restocked_units: int = 0
    resumed_restocks: int = 0
    passes: int = 0
    failures: int = 0
    troubled: int = 0


class Restocked(msgspec.Struct, frozen=True):
    """What a restock came to; `repeated` when it had been asked for before."""

    restock: Restock
    repeated: bool


class Merchant:
    """The sales of a merchant, over the ports. Any number may run at once.

    Every method raises LedgerUnavailable or InventoryError when an engine is away: what was asked may then have been
    done in part, and asking again completes it.
    """

    def __init__(
        self, inventory: Inventory, ledger: Ledger, clock: Clock, limits: MerchantLimits | None = None
    ) -> None:
        """Ready; the repair needs `run`."""
        self._inventory = inventory
        self._ledger = ledger
        self._clock = clock
        self._limits = limits or MerchantLimits()
        self._settled: dict[str, tuple[int, SaleStage]] = {}
        self._troubles: dict[str, str] = {}
        self.figures = MerchantFigures()

    async def record(self, sale: str) -> SaleRecord:
        """One sale. Raises MerchantError when there is none."""
        record = await self._ledger.sale_record(sale)
        if record is None:
            raise MerchantError(Refusal.UNKNOWN_SALE, f"there is no sale {sale}; `list` shows those there are")
        return record

    async def view(self, sale: str) -> SaleView | None:
        """The sale as it sells now; None when the inventory does not have it."""
        return await self._inventory.view(sale)

    async def create(self, sale: Sale) -> tuple[SaleRecord, bool]:
        """Keep a draft; and whether it is new: the same draft again is what it was."""
        new = await self._ledger.create_sale(sale)
        record = await self.record(sale.sale)
        if not new and (record.stage is not SaleStage.DRAFT or record.sale != sale):
            raise MerchantError(
                Refusal.SALE_EXISTS, f"there is a sale {sale.sale} already; edit it, or choose another id"
            )
        return record, new

    async def edit(self, sale: Sale, revision: int | None) -> SaleRecord:
        """Replace the definition of a draft or a published sale, whose revision must be this one (None: whichever)."""
        record = await self.record(sale.sale)
        if revision is not None and record.revision != revision:
            raise _stale(record)
        sale = msgspec.structs.replace(sale, epoch=record.sale.epoch)
        check_edit(record, sale, self._clock.now_ms())
        if sale != record.sale and not await self._change(sale, record.revision):
            raise _stale(await self.record(sale.sale))
        return await self._settle(sale.sale)

    async def publish(self, name: str) -> SaleRecord:
        """Let a draft be sold from its opening on; again, it makes sure that the inventory has the sale."""
        record = await self.record(name)
        if record.stage is SaleStage.CLOSED:
            raise _wrong_stage(record, "publish")
        if record.stage is SaleStage.DRAFT:
            if record.sale.closes_ms <= self._clock.now_ms():
                raise MerchantError(Refusal.BAD_SALE, f"closes_ms of {name} is past; edit it to a later moment first")
            await self._ledger.publish(record.sale)
        return await self._settle(name)

    async def open_now(self, name: str) -> SaleRecord:
        """Move the opening of a published sale to now; one that is open stays as it is."""

        def opened(sale: Sale, now_ms: int) -> Sale:
            if sale.closes_ms <= now_ms:
                raise MerchantError(Refusal.WRONG_STAGE, f"{name} is over; edit closes_ms to sell on")
            return sale if sale.opens_ms <= now_ms else msgspec.structs.replace(sale, opens_ms=now_ms)

        return await self._alter(name, "open", opened)

    async def pause(self, name: str, *, paused: bool) -> SaleRecord:
        """Stop selling, or go on; the inventory alone knows of it."""
        record = await self.record(name)
        if record.stage is not SaleStage.PUBLISHED:
            raise _wrong_stage(record, "pause" if paused else "resume")
        record = await self._settle(name)
        await self._inventory.pause(name, paused)
        return record

    async def close(self, name: str) -> SaleRecord:
        """End a sale for good; buyers are answered 410 from now on, and orders that are open can still be paid."""

        def closed(sale: Sale, now_ms: int) -> Sale:
            if sale.closes_ms <= now_ms:
                return sale
            return msgspec.structs.replace(sale, opens_ms=min(sale.opens_ms, now_ms - 1), closes_ms=now_ms)

        record = await self.record(name)
        if record.stage is SaleStage.PUBLISHED:
            await self._alter(name, "close", closed)
        if record.stage is not SaleStage.CLOSED:
            await self._ledger.close_sale(name)
        return await self._settle(name)

    async def restock(self, restock: Restock) -> Restocked:
        """Add units to a published sale, once for each restock id."""
        record = await self.record(restock.sale)
        if restock.sku not in {sku.sku for sku in record.sale.skus}:
            raise MerchantError(
                Refusal.UNKNOWN_SKU, f"{restock.sale} has no SKU {restock.sku}; edit the sale to add it"
            )
        if record.stage is SaleStage.PUBLISHED:
            await self._settle(restock.sale)
        try:
            new = await self._ledger.add_restock(restock)
        except LedgerUnavailable:
            raise
        except LedgerError as error:
            if (now := await self.record(restock.sale)).stage is not SaleStage.PUBLISHED:
                raise _wrong_stage(now, "restock") from error
            raise MerchantError(Refusal.KEY_REUSED, f"this key has made another restock: {error}") from error
        # One that the ledger no longer calls open is in stock: after a rebuild the inventory would add it once more.
        if new or restock in await self._ledger.open_restocks(self._limits.restocks_max):
            await self._deliver(restock, record.sale.buckets)
        return Restocked(restock, repeated=not new)

    async def reconcile(self) -> int:
        """Bring what the ledger has to the inventory, where a crash came between; how many restocks that were.

        Trouble with one sale is counted and logged, and does not keep the others waiting.
        """
        self._troubles = {name: why for name, why in self._troubles.items() if name not in self._settled}
        after = ""
        for _ in range(self._limits.pages_max):
            page = await self._ledger.sale_records(after, self._limits.page)
            for record in page:
                await self._reconcile_sale(record)
            if len(page) < self._limits.page:
                break
            after = page[-1].sale.sale
        self.figures.troubled = len(self._troubles)
        resumed = await self._reconcile_restocks()
        self.figures.passes += 1
        return resumed

    async def run(self) -> None:
        """Repair now and then until cancelled."""
        backoff = Backoff(self._limits.every_s, self._limits.retry_max_s)
        while True:
            try:
                await self.reconcile()
                backoff.reset()
                wait_s = self._limits.every_s
            except SpringtideError as error:
                self.figures.failures += 1
                _log.warning("reconcile_failed", error=str(error))
                wait_s = backoff.next_s()
            await self._clock.sleep(wait_s)

    async def _reconcile_sale(self, record: SaleRecord) -> None:
        name = record.sale.sale
        if record.stage is SaleStage.DRAFT or self._settled.get(name) == (record.revision, record.stage):
            return
        try:
            await self._settle(name)
        except (MerchantError, InventoryError) as error:
            self.figures.failures += 1
            if self._troubles.get(name) != str(error):
                _log.warning("sale_not_in_inventory", sale=name, error=str(error))
            self._troubles[name] = str(error)
        else:
            self._troubles.pop(name, None)

    async def _reconcile_restocks(self) -> int:
        resumed = 0
        for restock in await self._ledger.open_restocks(self._limits.restocks_max):
            try:
                resumed += await self._resume(restock)
            except InventoryError as error:
                self.figures.failures += 1
                _log.warning("restock_failed", restock=restock.restock_id, sale=restock.sale, error=str(error))
        self.figures.resumed_restocks += resumed
        return resumed

    async def _resume(self, restock: Restock) -> bool:
        """Deliver a restock that is open, but not into a sale that is lost or being rebuilt: the rebuild brings it."""
        record = await self.record(restock.sale)
        view = await self._inventory.view(restock.sale)
        if view is None or view.sale.epoch != record.sale.epoch:
            return False
        await self._deliver(restock, record.sale.buckets)
        return True

    async def _deliver(self, restock: Restock, buckets: int) -> None:
        # Always the same bucket: it is the bucket that remembers which restocks it has.
        if await self._inventory.restock(home_of(restock.sku, buckets), restock):
            self.figures.restocked_units += restock.quantity
        await self._ledger.close_restocks([restock.restock_id])

    async def _alter(self, name: str, wish: str, change: Callable[[Sale, int], Sale]) -> SaleRecord:
        """Change a published sale, whatever others do to it meanwhile."""
        for _ in range(self._limits.settle_max):
            record = await self.record(name)
            if record.stage is not SaleStage.PUBLISHED:
                raise _wrong_stage(record, wish)
            sale = change(record.sale, self._clock.now_ms())
            if sale == record.sale or await self._change(sale, record.revision):
                return await self._settle(name)
        raise MerchantError(Refusal.CHANGED_MEANWHILE, f"{name} is being changed by others; try again")

    async def _change(self, sale: Sale, revision: int) -> bool:
        try:
            return await self._ledger.change_sale(sale, revision)
        except LedgerUnavailable:
            raise
        except LedgerError as error:
            raise MerchantError(Refusal.CHANGED_MEANWHILE, f"{sale.sale} has changed meanwhile: {error}") from error

    async def _settle(self, name: str) -> SaleRecord:
        """Bring the inventory to what the ledger has, until the ledger has not changed while that was done."""
        record = await self.record(name)
        for _ in range(self._limits.settle_max):
            if record.stage is SaleStage.DRAFT:
                return record
            await self._bring(record)
            before, record = record, await self.record(name)
            if (record.revision, record.stage) == (before.revision, before.stage):
                self._note_settled(record)
                return record
        raise MerchantError(Refusal.CHANGED_MEANWHILE, f"{name} is being changed by others; try again")

    def _note_settled(self, record: SaleRecord) -> None:
        if len(self._settled) >= self._limits.page * self._limits.pages_max:
            self._settled.clear()
        self._settled[record.sale.sale] = (record.revision, record.stage)

    async def _bring(self, record: SaleRecord) -> None:
        sale = record.sale
        view = await self._inventory.view(sale.sale)
        if view is None:
            if record.stage is SaleStage.PUBLISHED:
                await self._publish(sale)
        elif view.sale.epoch != sale.epoch:
            raise MerchantError(
                Refusal.SALE_IS_LOST, f"{sale.sale} is being rebuilt: end `springtide sale rebuild {sale.sale}` first"
            )
        elif view.sale != sale:
            await self._inventory.redefine(sale)
            self.figures.redefined += 1

    async def _publish(self, sale: Sale) -> None:
        """Publish into the inventory, unless it had the sale before: its whole stock would be there once more."""
        totals = await self._ledger.totals(sale.sale)
        sold = any(sku.reserved or sku.paid or sku.restocked != sku.returning for sku in totals)
        if sold or sale.epoch > 1 or await self._ledger.positions(sale.sale):
            raise MerchantError(
                Refusal.SALE_IS_LOST,
                f"{sale.sale} was sold and is not in the inventory any more: run `springtide sale rebuild {sale.sale}`",
            )
        self.figures.published += await self._inventory.publish(sale)


def check_edit(record: SaleRecord, sale: Sale, now_ms: int) -> None:
    """Raise MerchantError for what an edit may not change, naming the field."""
    before = record.sale
    if record.stage is SaleStage.CLOSED:
        raise _wrong_stage(record, "edit")
    if record.stage is SaleStage.DRAFT:
        return
    if sale.buckets != before.buckets:
        raise MerchantError(Refusal.BUCKETS_ARE_FIXED, f"buckets: stays at {before.buckets} once a sale is published")
    after = {sku.sku: sku for sku in sale.skus}
    for sku in before.skus:
        if sku.sku not in after:
            raise MerchantError(
                Refusal.SKU_IS_NEEDED, f"skus: {sku.sku} is published and stays; pause the sale to stop selling it"
            )
        _check_sku(sku, after.pop(sku.sku), is_open=before.opens_ms <= now_ms)
    for sku in after.values():
        if sku.stock:
            raise MerchantError(
                Refusal.STOCK_IS_FIXED, f"skus.{sku.sku}.stock: add the SKU with a stock of 0, then restock it"
            )


def _check_sku(before: Sku, after: Sku, *, is_open: bool) -> None:
    if after.spread != before.spread:
        raise MerchantError(
            Refusal.SPREAD_IS_FIXED, f"skus.{before.sku}.spread: stays once a sale is published; what is hot is spread"
        )
    if after.stock != before.stock:
        raise MerchantError(
            Refusal.STOCK_IS_FIXED,
            f"skus.{before.sku}.stock: stays at {before.stock} once a sale is published; restock it to add units",
        )
    # An order that is journalled gets its price when it is recorded: a change in between would change it for the buyer.
    if is_open and after.price_fen != before.price_fen:
        raise MerchantError(
            Refusal.PRICE_IS_FIXED,
            f"skus.{before.sku}.price_fen: stays at {before.price_fen} since it opened; add a SKU at the new price",
        )


def _stale(record: SaleRecord) -> MerchantError:
    return MerchantError(
        Refusal.REVISION_DIFFERS,
        f"{record.sale.sale} is at revision {record.revision} by now: read it again, and edit that",
    )


def _wrong_stage(record: SaleRecord, wish: str) -> MerchantError:
    remedy = {
        SaleStage.DRAFT: "publish it first",
        SaleStage.PUBLISHED: "it is published",
        SaleStage.CLOSED: "that is for good; create another sale",
    }[record.stage]
    return MerchantError(Refusal.WRONG_STAGE, f"cannot {wish} {record.sale.sale}: it is {record.stage.value}; {remedy}")
