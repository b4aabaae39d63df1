"""What can be rented and within which limits, asked of the cloud in the background: no tick waits for it but the first.

A cloud takes its time to list its offers, and they change slowly. The last answer counts until the next one.
"""

import asyncio
from collections.abc import Callable

from springtide.errors import SpringtideError
from springtide.model import Offer, Quota
from springtide.ports import Clock, Cloud

ASK_S = 10.0
"""The time between two questions, from the answer of the one to the asking of the other."""

AGAIN_S_MAX = 120.0
"""Without an answer the time between two questions doubles, up to this."""

ANSWER_S = 30.0
"""How long an answer may take."""

OFFERS_MAX = 20_000
"""What is kept of a cloud's offers; what comes after is not looked at."""


class MarketWatch:
    """The last word of a cloud on its offers and quotas. `heard` is False until there has been one."""

    def __init__(self, clock: Clock, cloud: Cloud, report: Callable[[str, str], None]) -> None:
        """`report` is told the source and the error of each failure."""
        self._clock = clock
        self._cloud = cloud
        self._report = report
        self._task: asyncio.Task[None] | None = None
        self._due_s = 0.0
        self._pause_s = ASK_S
        self.offers: tuple[Offer, ...] = ()
        self.quotas: tuple[Quota, ...] = ()
        self.heard = False

    async def look(self, timeout_s: float) -> None:
        """Ask when that is due, and do not wait for the answer, but for the first one, and at most so long."""
        if self._task is None and self._clock.monotonic_s() >= self._due_s:
            self._task = asyncio.create_task(self._ask())
        if self.heard or self._task is None:
            return
        try:
            async with self._clock.timeout(timeout_s):
                await asyncio.shield(self._task)
        except TimeoutError:
            return

    async def close(self) -> None:
        """Break off a question."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _ask(self) -> None:
        error = await self._answer()
        if error:
            self._report("offers", error)
            self._pause_s = min(2 * self._pause_s, AGAIN_S_MAX)
        else:
            self._pause_s = ASK_S
        # Before the first word nothing can be rented, so it is asked for at every tick.
        self._due_s = self._clock.monotonic_s() + (self._pause_s if self.heard else 0.0)
        self._task = None

    async def _answer(self) -> str:
        try:
            async with self._clock.timeout(ANSWER_S):
                offers, quotas = await asyncio.gather(self._cloud.offers(), self._cloud.quotas())
        except TimeoutError:
            return f"no answer within {ANSWER_S:g} s"
        except (SpringtideError, OSError) as error:
            return str(error) or type(error).__name__
        except Exception as error:  # noqa: BLE001 - a fault in a driver must not end the loop that replaces capacity
            return f"{type(error).__name__}: {error}"
        # What has not changed stays the same object: comparing it costs nothing then.
        listed, limits = tuple(offers[:OFFERS_MAX]), tuple(quotas)
        # A cloud that had offers and lists none has them still: without any, a zone's one machine would be ordered.
        self.offers = self.offers if listed == self.offers or not listed else listed
        self.quotas = self.quotas if limits == self.quotas else limits
        self.heard = True
        return ""
