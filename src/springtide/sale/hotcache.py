"""Sale pages in process memory, encoded once for all who ask, and never served older than stated."""

import asyncio
import contextlib
from collections.abc import Callable

import msgspec
import structlog

from springtide.errors import InventoryError
from springtide.model import IDENTIFIER, SaleView
from springtide.ports import Clock, Inventory

SALES_MAX = 256
"""Sales kept true at the same time; beyond, the one asked for least recently is forgotten."""

UNKNOWN_MAX = 1024
UNKNOWN_S = 1.0
"""How long, and for how many names at most, "there is no such sale" is remembered."""

LOOKUPS_MAX = 64
"""Look-ups of sales under way at once."""

WAITERS_MAX = 10_000
"""Requests that wait for one look-up."""

VIEW_TIMEOUT_S = 1.0
IDLE_S = 300.0
"""A sale nobody asked for during this time is no longer refreshed."""

_REFRESH_SHARE = 0.4
_RETRY_S = 0.05

_log = structlog.get_logger(__name__)


class Page:
    """A sale as it was at one moment. `asked_s` is before the question, so no age is understated."""

    __slots__ = ("asked_s", "body", "buckets", "epoch", "opens_ms", "sale", "skew_ms", "skus", "used_s")

    def __init__(self, view: SaleView, asked_s: float, skew_ms: int) -> None:
        """`skew_ms` is how far the engine's clock is ahead of ours."""
        sale = view.sale
        self.sale = sale.sale
        self.skus = frozenset(sku.sku for sku in sale.skus)
        self.buckets = sale.buckets
        self.epoch = sale.epoch
        self.opens_ms = sale.opens_ms
        self.skew_ms = skew_ms
        self.asked_s = asked_s
        self.used_s = asked_s
        self.body = page_body(view)


def page_state(view: SaleView) -> str:
    """`upcoming`, `open`, `closed` or `paused` (only while it would be open), by the engine's clock."""
    if view.at_ms < view.sale.opens_ms:
        return "upcoming"
    if view.at_ms >= view.sale.closes_ms:
        return "closed"
    return "paused" if view.paused else "open"


def page_body(view: SaleView) -> bytes:
    """The page as JSON."""
    sale = view.sale
    return msgspec.json.encode(
        {
            "sale": sale.sale,
            "title": sale.title,
            "state": page_state(view),
            "opens_ms": sale.opens_ms,
            "closes_ms": sale.closes_ms,
            "now_ms": view.at_ms,
            "hold_ms": sale.hold_ms,
            "skus": [
                {
                    "sku": sku.sku,
                    "title": sku.title,
                    "price_fen": sku.price_fen,
                    "per_buyer_max": sku.per_buyer_max,
                    "stock": view.stock.get(sku.sku, 0),
                }
                for sku in sale.skus
            ],
        }
    )


class HotCache:
    """One page and one refreshing task for each known sale."""

    def __init__(self, inventory: Inventory, clock: Clock, age_s_max: float) -> None:
        """Pages older than `age_s_max` are not served. Call it with the event loop running."""
        self._inventory = inventory
        self._clock = clock
        self._every_s = age_s_max * _REFRESH_SHARE
        self._pages: dict[bytes, Page] = {}
        self._refreshers: dict[bytes, asyncio.Task[None]] = {}
        self._lookups: dict[bytes, asyncio.Task[None]] = {}
        self._waiters: dict[bytes, list[Callable[[], None]]] = {}
        self._unknown: dict[bytes, float] = {}
        self._probe: asyncio.Task[None] | None = None
        self.age_s_max = age_s_max
        self.answered_s = float("-inf")
        """When the inventory last answered (monotonic seconds)."""

    def start(self) -> None:
        """Learn which sales there are, and keep asking, so that it is known whether the inventory answers."""
        self._probe = asyncio.get_running_loop().create_task(self._keep_probing())

    def __len__(self) -> int:
        """How many sales are kept true."""
        return len(self._pages)

    def get(self, sale: bytes) -> Page | None:
        """The page of a known sale, however old: what of it never changes can be relied upon."""
        return self._pages.get(sale)

    def known_unknown(self, sale: bytes, now_s: float) -> bool:
        """Whether the inventory said within `UNKNOWN_S` that there is no such sale."""
        until_s = self._unknown.get(sale)
        return until_s is not None and now_s < until_s

    def look_up(self, sale: bytes, ready: Callable[[], None]) -> bool:
        """Ask the inventory anew; call `ready` when that has ended, well or not. False: too many already."""
        waiters = self._waiters.get(sale)
        if waiters is None:
            if len(self._lookups) >= LOOKUPS_MAX:
                return False
            waiters = self._waiters[sale] = []
            self._lookups[sale] = asyncio.get_running_loop().create_task(self._look_up(sale))
        if len(waiters) >= WAITERS_MAX:
            return False
        waiters.append(ready)
        return True

    async def close(self) -> None:
        """End all tasks; who waits for a look-up is called."""
        tasks = [*self._refreshers.values(), *self._lookups.values()]
        if self._probe is not None:
            tasks.append(self._probe)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_up(self, sale: bytes) -> None:
        try:
            with contextlib.suppress(InventoryError, TimeoutError):
                await self._refresh(sale)
        except Exception:  # noqa: BLE001 - those who wait are told whatever happened
            _log.exception("sale_look_up_failed", sale=sale.decode("latin-1"))
        finally:
            del self._lookups[sale]
            for ready in self._waiters.pop(sale):
                ready()

    async def _refresh(self, sale: bytes) -> bool:
        """Ask once. False when there is no such sale."""
        name = sale.decode("latin-1")
        asked_ms = self._clock.now_ms()
        asked_s = self._clock.monotonic_s()
        view = None
        if IDENTIFIER.fullmatch(name):
            async with self._clock.timeout(VIEW_TIMEOUT_S):
                view = await self._inventory.view(name)
            self.answered_s = self._clock.monotonic_s()
        if view is None:
            self._pages.pop(sale, None)
            self._note_unknown(sale)
            return False
        # The engine read its clock between our two readings: half the way is the best guess at its moment.
        skew_ms = view.at_ms - (asked_ms + self._clock.now_ms()) // 2
        page = Page(view, asked_s, skew_ms)
        before = self._pages.get(sale)
        if before is not None:
            if before.asked_s > asked_s:
                return True
            page.used_s = before.used_s
        self._pages[sale] = page
        self._unknown.pop(sale, None)
        self._keep_true(sale)
        return True

    def _note_unknown(self, sale: bytes) -> None:
        self._unknown.pop(sale, None)
        if len(self._unknown) >= UNKNOWN_MAX:
            del self._unknown[next(iter(self._unknown))]
        self._unknown[sale] = self._clock.monotonic_s() + UNKNOWN_S

    def _keep_true(self, sale: bytes) -> None:
        if sale in self._refreshers:
            return
        if len(self._refreshers) >= SALES_MAX:
            oldest = min(self._refreshers, key=self._used_s)
            self._pages.pop(oldest, None)
            self._refreshers.pop(oldest).cancel()
        self._refreshers[sale] = asyncio.get_running_loop().create_task(self._keep_refreshing(sale))

    def _used_s(self, sale: bytes) -> float:
        page = self._pages.get(sale)
        return page.used_s if page is not None else float("-inf")

    async def _keep_refreshing(self, sale: bytes) -> None:
        try:
            while self._clock.monotonic_s() - self._used_s(sale) < IDLE_S:
                await self._clock.sleep(self._every_s)
                if not await self._refreshed(sale):
                    break
        finally:
            if self._refreshers.get(sale) is asyncio.current_task():
                del self._refreshers[sale]
                self._pages.pop(sale, None)

    async def _refreshed(self, sale: bytes) -> bool:
        """Refresh; after a failure the page stays, and grows old, until the inventory answers again."""
        try:
            return await self._refresh(sale)
        except (InventoryError, TimeoutError):
            await self._clock.sleep(_RETRY_S)
        except Exception:  # noqa: BLE001 - a fault in one answer must not end the refreshing
            _log.exception("page_refresh_failed", sale=sale.decode("latin-1"))
            await self._clock.sleep(_RETRY_S)
        return True

    async def _keep_probing(self) -> None:
        every_s = min(self._every_s, VIEW_TIMEOUT_S / 4)
        while True:
            if not self._pages or self._clock.monotonic_s() - self.answered_s > every_s:
                await self._ask_for_sales()
            await self._clock.sleep(every_s)

    async def _ask_for_sales(self) -> None:
        try:
            async with self._clock.timeout(VIEW_TIMEOUT_S):
                names = await self._inventory.sales()
            self.answered_s = self._clock.monotonic_s()
        except (InventoryError, TimeoutError):
            return
        except Exception:  # noqa: BLE001 - as above
            _log.exception("inventory_probe_failed")
            return
        for name in names[:SALES_MAX]:
            if name.encode() not in self._pages:
                self.look_up(name.encode(), _nobody)


def _nobody() -> None:
    """Nobody waits."""
