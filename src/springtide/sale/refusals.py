"""Refuses a crowd that cannot be served, from memory, and never hides an order: sold out, closed, not open, no pass.

What memory says of a sale makes a purchase doubtful, no more: units may have come back since, and the buyer may have
bought one of them a moment ago at another replica and lost the answer. So all who are in doubt wait together for one
look at the sale that begins after they came, and for the buyers who got an order until then (`HolderSets`). Who wants
what was gone at that moment, and held nothing at a moment that is not earlier, is told so: a true answer at a moment
within his request. The others go on to the inventory. A look takes the inventory one call for each bucket, however many
wait for it, and looks are ROUND_S apart at least; so returned units sell again in that time, and nobody is told from
memory what has not been confirmed. When what is known is older than FLAG_S, or the holders are not known yet, nobody is
in doubt.
"""

import asyncio
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


class Refusals:
    """One replica's purchases in doubt, sale by sale."""

    def __init__(self, pages: HotCache, holders: HolderSets, clock: Clock, releases_min: int) -> None:
        """At least `releases_min` go on after a look that found units, or as many as there were units."""
        self._pages = pages
        self._holders = holders
        self._clock = clock
        self._releases_min = releases_min
        self._waiting: dict[str, list[_Waiting]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.waiting = 0
        """Purchases in doubt."""
        self.looks = 0
        """Looks at a sale since the start."""

    def doubt(self, page: Page, order: ReserveRequest, waiter: Doubtful, now_s: float, *, admitted: bool) -> bool:
        """Let a purchase wait for a look; False when it is to be decided otherwise."""
        if now_s - page.asked_s > FLAG_S or self.waiting >= WAITING_MAX or not self._holders.known(page, now_s):
            return False
        self.waiting += 1
        waiting = self._waiting.get(page.sale)
        if waiting is None:
            self._waiting[page.sale] = [(waiter, order, admitted)]
            self._tasks[page.sale] = asyncio.get_running_loop().create_task(self._keep_looking(page.sale))
        else:
            waiting.append((waiter, order, admitted))
        return True

    async def close(self) -> None:
        """End all looks; who waits is told that the sale cannot be reached."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_looking(self, sale: str) -> None:
        group: list[_Waiting] = []
        try:
            while self._waiting[sale]:
                group, self._waiting[sale] = self._waiting[sale], []
                begun_s = self._clock.monotonic_s()
                await self._look(sale, group)
                group = []
                took_s = self._clock.monotonic_s() - begun_s
                await self._clock.sleep(min(FLAG_S, max(ROUND_S, REST_SHARE * took_s)))
        finally:
            self._refuse(group + self._waiting.pop(sale), UNAVAILABLE)
            del self._tasks[sale]

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
        for one in group:
            waiter, order, admitted = one
            try:
                if self._told(page, known, one):
                    continue
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
        self._waiting[page.sale][:0] = staying

    def _told(self, page: Page, known: HolderSet | None, one: _Waiting) -> bool:
        """Refuse it if that is certain."""
        waiter, order, admitted = one
        if known is None or order.buyer in known:
            return False
        status = page.refusal(order)
        if status is not None:
            waiter.refused_surely(status, page)
        elif not admitted:
            waiter.refused_without_pass()
        else:
            return False
        self.waiting -= 1
        return True

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
