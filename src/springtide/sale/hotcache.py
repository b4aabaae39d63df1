"""Sale pages in process memory, encoded once for all who ask, and never served older than stated."""

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from springtide.errors import InventoryError
from springtide.model import IDENTIFIER
from springtide.ports import Clock, Inventory
from springtide.sale.page import Page

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
        self._questions: dict[bytes, asyncio.Task[bool]] = {}
        self._number = 0
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

    async def renew(self, sale: bytes) -> Page | None:
        """The sale as it is after this call began; None when there is none. One question at a time for each sale.

        Raises InventoryError or TimeoutError.
        """
        asked_before = self._number
        while (under_way := self._questions.get(sale)) is not None:
            await asyncio.wait((under_way,))
            page = self._pages.get(sale)
            if page is not None and page.number > asked_before:
                return page
        question = asyncio.get_running_loop().create_task(self._refresh(sale))
        self._questions[sale] = question
        question.add_done_callback(lambda question: self._answered(sale, question))
        await asyncio.shield(question)
        return self._pages.get(sale)

    def _answered(self, sale: bytes, question: asyncio.Task[bool]) -> None:
        del self._questions[sale]
        if not question.cancelled():
            question.exception()  # taken here, because who asked may have been cancelled meanwhile

    @property
    def questions(self) -> int:
        """Questions to the inventory under way."""
        return len(self._questions)

    @property
    def lookups(self) -> int:
        """Look-ups under way for requests that wait."""
        return len(self._lookups)

    @property
    def sold_out_flags(self) -> int:
        """SKUs, over all sales, of which no unit was seen last."""
        return sum(len(page.dry) for page in self._pages.values())

    async def close(self) -> None:
        """End all tasks; who waits for a look-up is called."""
        tasks: list[asyncio.Task[None] | asyncio.Task[bool]] = [*self._refreshers.values(), *self._lookups.values()]
        tasks += self._questions.values()
        if self._probe is not None:
            tasks.append(self._probe)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_up(self, sale: bytes) -> None:
        try:
            with contextlib.suppress(InventoryError, TimeoutError):
                await self.renew(sale)
        except Exception:  # noqa: BLE001 - those who wait are told whatever happened
            _log.exception("sale_look_up_failed", sale=sale.decode("latin-1"))
        finally:
            del self._lookups[sale]
            for ready in self._waiters.pop(sale):
                ready()

    async def _refresh(self, sale: bytes) -> bool:
        """Ask once. False when there is no such sale."""
        name = sale.decode("latin-1")
        self._number += 1
        number = self._number
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
        page = Page(view, asked_s, skew_ms, number)
        before = self._pages.get(sale)
        if before is not None:
            page.follow(before)
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
            return await self.renew(sale) is not None
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
