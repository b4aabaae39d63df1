"""A clock that moves only when told to: hours of a fleet pass in a second, always in the same order."""

import asyncio
import heapq
import types
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from springtide.ports import Timer

ROUNDS = 64
"""Turns of the event loop after each timer: the steps in a row that a task may take at one moment."""


class _Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class VirtualClock:
    """`ports.Clock` without time: `advance` fires what is due, in order.

    Whatever runs on it must wait for nothing but this clock and other tasks, and take at most ROUNDS steps
    between two timers.
    """

    def __init__(self, start_ms: int = 1_700_000_000_000) -> None:
        """Begin at this moment."""
        self._start_ms = start_ms
        self._elapsed_s = 0.0
        self._timers: list[tuple[float, int, _Timer]] = []
        self._count = 0

    def now_ms(self) -> int:
        """The moment, Unix milliseconds UTC."""
        return self._start_ms + round(self._elapsed_s * 1000)

    def monotonic_s(self) -> float:
        """Seconds since the beginning."""
        return self._elapsed_s

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has been advanced so far."""
        woken = asyncio.get_running_loop().create_future()
        timer = self.call_later(seconds, lambda: None if woken.done() else woken.set_result(None))
        try:
            await woken
        finally:
            timer.cancel()

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """Raise TimeoutError inside the block when the clock passes this many seconds before it ends."""
        return self._timeout(seconds)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call back once the clock has been advanced so far."""
        timer = _Timer(callback)
        self._count += 1
        heapq.heappush(self._timers, (self._elapsed_s + max(0.0, seconds), self._count, timer))
        return timer

    async def advance(self, seconds: float) -> None:
        """Let this much time pass; returns when all that was due has run."""
        until = self._elapsed_s + seconds
        await _let_run()
        while self._timers and self._timers[0][0] <= until:
            due_s, _, timer = heapq.heappop(self._timers)
            if timer.callback is None:
                continue
            self._elapsed_s = max(self._elapsed_s, due_s)
            timer.callback()
            await _let_run()
        self._elapsed_s = until

    @asynccontextmanager
    async def _timeout(self, seconds: float) -> AsyncGenerator[None, None]:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine always runs in a task
        before = task.cancelling()
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            task.cancel()

        timer = self.call_later(seconds, expire)
        try:
            yield
        except asyncio.CancelledError as error:
            # The same test as asyncio's own timeout: was it only us who cancelled?
            if expired and task.uncancel() <= before:
                raise TimeoutError from error
            raise
        finally:
            timer.cancel()


async def _let_run() -> None:
    for _ in range(ROUNDS):
        await _turn()


@types.coroutine
def _turn() -> Generator[None, None, None]:
    """One turn of the event loop for everybody else."""
    yield
