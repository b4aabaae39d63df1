"""Refuses a crowd that cannot be served, from memory, and never hides an order: sold out, closed, not open, no pass.

What memory says of a sale makes a purchase doubtful, no more: units may have come back since, and the buyer may have
bought one of them a moment ago at another replica and lost the answer. So all who are in doubt wait together for one
look at the sale that begins after they came, and for the buyers who got an order until then (`HolderSets`). Who wants
what was gone at that moment, and held nothing at a moment that is not earlier, is told so: a true answer at a moment
within his request. The others go on to the inventory. A look takes the inventory one call for each bucket, however many
wait for it, and looks are ROUND_S apart at least, or CROWD_ROUND_S when a crowd waits; so returned units sell again in
that time, and nobody is told from memory what has not been confirmed. When what is known is older than FLAG_S, or the
holders are not known yet, nobody is in doubt.
"""

import asyncio
import contextlib
from typing import Protocol

import structlog

from springtide.errors import InventoryError
from springtide.model import ReserveRequest, ReserveStatus
from springtide.ports import Clock
from springtide.sale.holderset import HolderSet, HolderSets
from springtide.sale.hotcache import HotCache
from springtide.sale.page import Page
from springtide.sale.problems import OVERLOADED, UNAVAILABLE, UNKNOWN_SALE, Problem

FLAG_S = 0.2
"""How long after its question an answer may still make a purchase doubtful."""

ROUND_S = 0.02
"""From the end of one look at a sale to the next: far below FLAG_S, and with 100 replicas 5,000 looks a second."""

REST_SHARE = 4.0
"""Rests are at least so many times as long as the look before, up to FLAG_S: a slow inventory is looked at less."""

CROWD = 128
"""When so many have come, the next look need not wait for that: it costs the inventory far less than their batch would,
and a counter that is kept busy was measured to answer each of them for a tenth less CPU."""

CROWD_ROUND_S = 0.002
"""As ROUND_S, for a crowd; and the rest is as long as the look before at least."""

WAITING_MAX = 20_000
"""Purchases in doubt at the same time, over all sales."""

_log = structlog.get_logger(__name__)


class Doubtful(Protocol):
    """Whoever waits for the end of the doubt; told exactly once, by one of the five (`go_on` may decline)."""

    def refused_surely(self, status: ReserveStatus, page: Page) -> None:
        """The inventory would have refused it at the page's moment, and the buyer holds no order."""

    def refused_without_pass(self) -> None:
        """The buyer holds no order and has no pass of the waiting room."""

    def go_on(self, order: ReserveRequest, page: Page) -> bool:
        """Ask the inventory; False when it cannot take it now."""

    def find_made(self, order: ReserveRequest, page: Page) -> None:
        """Without a pass, and perhaps a holder: whether this key has made an order is to be looked up."""

    def refused(self, problem: Problem) -> None:
        """There is no decision."""


_Waiting = tuple[Doubtful, ReserveRequest, bool]
"""Who, what, and whether with a pass."""


class _Doubt:
    """Those who wait for a look at one sale. `came`: how many since the last one; CROWD of them set `crowd`."""

    __slots__ = ("came", "crowd", "task", "waiting")

    def __init__(self) -> None:
        self.waiting: list[_Waiting] = []
        self.came = 0
        self.crowd = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def take(self) -> list[_Waiting]:
        """All who wait, for a look that begins now."""
        group, self.waiting = self.waiting, []
        self.came = 0
        self.crowd.clear()
        return group


class Refusals:
    """One replica's purchases in doubt, sale by sale."""

    def __init__(self, pages: HotCache, holders: HolderSets, clock: Clock, releases_min: int) -> None:
        """At least `releases_min` go on after a look that found units, or as many as there were units."""
        self._pages = pages
        self._holders = holders
        self._clock = clock
        self._releases_min = releases_min
        self._doubts: dict[str, _Doubt] = {}
        self.waiting = 0
        """Purchases in doubt."""
        self.looks = 0
        """Looks at a sale since the start."""

    def doubt(self, page: Page, order: ReserveRequest, waiter: Doubtful, now_s: float, *, admitted: bool) -> bool:
        """Let a purchase wait for a look; False when it is to be decided otherwise."""
        if now_s - page.asked_s > FLAG_S or self.waiting >= WAITING_MAX or not self._holders.known(page, now_s):
            return False
        self.waiting += 1
        doubt = self._doubts.get(page.sale)
        if doubt is None:
            doubt = self._doubts[page.sale] = _Doubt()
            doubt.task = asyncio.get_running_loop().create_task(self._keep_looking(page.sale, doubt))
        doubt.waiting.append((waiter, order, admitted))
        doubt.came += 1
        if doubt.came == CROWD:
            doubt.crowd.set()
        return True

    async def close(self) -> None:
        """End all looks; who waits is told that the sale cannot be reached."""
        tasks = [doubt.task for doubt in self._doubts.values() if doubt.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_looking(self, sale: str, doubt: _Doubt) -> None:
        group: list[_Waiting] = []
        try:
            while doubt.waiting:
                group = doubt.take()
                begun_s = self._clock.monotonic_s()
                await self._look(sale, group)
                group = []
                await self._rest(doubt, self._clock.monotonic_s() - begun_s)
        finally:
            self._refuse(group + doubt.waiting, UNAVAILABLE)
            del self._doubts[sale]

    async def _rest(self, doubt: _Doubt, took_s: float) -> None:
        """Until the next look is due, sooner when a crowd waits for it."""
        crowd_s = min(FLAG_S, max(CROWD_ROUND_S, took_s))
        more_s = min(FLAG_S, max(ROUND_S, REST_SHARE * took_s)) - crowd_s
        await self._clock.sleep(crowd_s)
        if more_s > 0 and not doubt.crowd.is_set():
            with contextlib.suppress(TimeoutError):
                async with self._clock.timeout(more_s):
                    await doubt.crowd.wait()

    async def _look(self, sale: str, group: list[_Waiting]) -> None:
        self.looks += 1
        try:
            page = await self._pages.renew(sale.encode())
            known = await self._holders.caught_up(page) if page is not None else None
        except (InventoryError, TimeoutError):
            self._refuse(group, UNAVAILABLE)
            return
        except Exception:  # noqa: BLE001 - whatever went wrong, those who wait are told
            _log.exception("look_failed", sale=sale)
            self._refuse(group, UNAVAILABLE)
            return
        if page is None:
            self._refuse(group, UNKNOWN_SALE)
        else:
            self._settle(page, known, group)

    def _settle(self, page: Page, known: HolderSet | None, group: list[_Waiting]) -> None:
        """Tell each of the group, or have it wait for the next look."""
        now_ms = self._clock.now_ms() + page.skew_ms
        room = max(self._releases_min, sum(page.stock.values()))
        staying: list[_Waiting] = []
        for one in group if known is None else self._refuse_surely(page, known, group):
            waiter, order, admitted = one
            try:
                if order.deadline_ms <= now_ms:
                    waiter.refused(OVERLOADED)
                elif not admitted:
                    waiter.find_made(order, page)
                elif self._unproved(page, order) or not room or not waiter.go_on(order, page):
                    staying.append(one)
                    continue
                else:
                    room -= 1
            except Exception:  # noqa: BLE001 - one buyer's connection must not keep the others from their answers
                _log.exception("answer_failed", order_id=order.order_id)
            self.waiting -= 1
        self._doubts[page.sale].waiting[:0] = staying

    def _refuse_surely(self, page: Page, known: HolderSet, group: list[_Waiting]) -> list[_Waiting]:
        """Refuse those for whom that is certain; the others. Most of a crowd end here."""
        undecided: list[_Waiting] = []
        refusal = page.refusal
        for one in group:
            waiter, order, admitted = one
            try:
                if order.buyer in known:
                    undecided.append(one)
                elif (status := refusal(order)) is not None:
                    waiter.refused_surely(status, page)
                elif admitted:
                    undecided.append(one)
                else:
                    waiter.refused_without_pass()
            except Exception:  # noqa: BLE001 - one buyer's connection must not keep the others from their answers
                _log.exception("answer_failed", order_id=order.order_id)
        self.waiting -= len(group) - len(undecided)
        return undecided

    def _unproved(self, page: Page, order: ReserveRequest) -> bool:
        """Whether nothing was seen, but only another look can make it certain."""
        return order.sku in page.dry and order.sku not in page.sold_out and order.epoch == page.epoch

    def _refuse(self, group: list[_Waiting], problem: Problem) -> None:
        self.waiting -= len(group)
        for waiter, order, _ in group:
            try:
                waiter.refused(problem)
            except Exception:  # noqa: BLE001 - as above
                _log.exception("answer_failed", order_id=order.order_id)
