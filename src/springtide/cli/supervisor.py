"""Keeps the processes of a run alive, engines and workers: one that dies is started again, with backoff and a limit."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from springtide.drivers.child import Child
from springtide.errors import EngineError
from springtide.ports import Clock
from springtide.sale.backoff import Backoff

POLL_S = 0.05
BACKOFF_S = 0.1
BACKOFF_MAX_S = 5.0
HEALTHY_S = 2.0
"""A process that ran for this long has started well: the next wait is the first one again."""

RESTARTS_MAX = 20
WINDOW_S = 60.0
"""One that has to be started more than RESTARTS_MAX times in this time is given up: it would only burn the machine."""

_log = structlog.get_logger()

Start = Callable[[], Awaitable[Child]]
"""Starts the process, again or for the first time; the one that died before is gone. Raises EngineError."""


class Supervisor:
    """One supervised process. What it serves, and on which address, is its starter's affair."""

    def __init__(self, name: str, start: Start, clock: Clock, child: Child | None = None) -> None:
        """`child` is the process when it runs already; without one, `start` starts it."""
        self.name = name
        self.restarts = 0
        self.given_up = False
        self._start = start
        self._clock = clock
        self._child = child
        self._watching: asyncio.Task[None] | None = None

    @property
    def child(self) -> Child:
        """The process that runs now, or the one that died last. Raises EngineError before `start`."""
        if self._child is None:
            msg = f"{self.name} has not been started"
            raise EngineError(msg)
        return self._child

    @property
    def running(self) -> bool:
        """Whether there is a live process. One that is stopped (SIGSTOP) lives."""
        return self._child is not None and self._child.returncode is None

    async def start(self) -> None:
        """Start the process, unless it runs already, and watch it. Raises EngineError."""
        if self._child is None:
            self._child = await self._start()
        self._watching = asyncio.create_task(self._watch(), name=f"supervise {self.name}")

    async def stop(self, grace_s: float) -> None:
        """End the process and do not start it again."""
        await self.release()
        if self._child is not None:
            await self._child.stop(self._clock, grace_s)

    async def release(self) -> None:
        """Watch no more; the process stays as it is, for its owner to end."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching

    async def _watch(self) -> None:
        backoff = Backoff(BACKOFF_S, BACKOFF_MAX_S)
        restarts: deque[float] = deque(maxlen=RESTARTS_MAX)
        while True:
            began_s = self._clock.monotonic_s()
            while self.child.returncode is None:
                await self._clock.sleep(POLL_S)
            now_s = self._clock.monotonic_s()
            if len(restarts) == RESTARTS_MAX and now_s - restarts[0] < WINDOW_S:
                break
            restarts.append(now_s)
            if now_s - began_s > HEALTHY_S:
                backoff.reset()
            _log.warning("process died, starting it again", name=self.name, returncode=self.child.returncode)
            await self._clock.sleep(backoff.next_s())
            await self._again()
        self.given_up = True
        _log.error("process died too often, giving it up", name=self.name, log=str(self.child.log))

    async def _again(self) -> None:
        self.restarts += 1
        # Also when we are stopped meanwhile: a process that is half started is started whole, so that it is ended.
        starting = asyncio.ensure_future(self._start())
        try:
            self._child = await asyncio.shield(starting)
        except EngineError as error:
            _log.warning("process did not start", name=self.name, error=str(error))
        except asyncio.CancelledError:
            with contextlib.suppress(EngineError):
                self._child = await starting
            raise


def starts(spawn: Callable[[], Child]) -> Start:
    """The starter of a process that needs no waiting for."""

    async def start() -> Child:
        return spawn()

    return start
