"""The twin's clock: what was put down for a moment happens then, in order, and no time passes in between.

It is for worlds that are advanced by plain calls, days in seconds; `drivers/memory/clock.py` is for code that waits.
"""

import heapq
from collections.abc import Callable

EVENTS_MAX = 1_000_000
"""What may be put down at once."""


class Kernel:
    """Simulated time, Unix ms. Events of one moment happen in the order in which they were put down."""

    def __init__(self, start_ms: int) -> None:
        """Begin at this moment."""
        self.now_ms = start_ms
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, ms: int, happen: Callable[[], None]) -> None:
        """Let something happen then; what lies in the past happens next. Raises OverflowError beyond EVENTS_MAX."""
        if len(self._events) >= EVENTS_MAX:
            raise OverflowError(f"{EVENTS_MAX} events are put down; make the world smaller")
        self._count += 1
        heapq.heappush(self._events, (max(ms, self.now_ms), self._count, happen))

    def every(self, period_ms: int, happen: Callable[[], None]) -> None:
        """Let something happen now and then again and again. Raises ValueError for a period below 1 ms."""
        if period_ms < 1:
            raise ValueError(f"a period of {period_ms} ms never ends; give at least 1")

        def repeat() -> None:
            self.at(self.now_ms + period_ms, repeat)
            happen()

        self.at(self.now_ms, repeat)

    def run(self, until_ms: int) -> None:
        """Let everything happen that is due before `until_ms`, which is then the moment."""
        while self._events and self._events[0][0] < until_ms:
            self.now_ms, _, happen = heapq.heappop(self._events)
            happen()
        self.now_ms = max(self.now_ms, until_ms)
