"""Keeps the helper processes of a run alive: one that dies is started again, with a limit."""

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from springtide.drivers.child import Child
from springtide.errors import EngineError
from springtide.ports import Clock

POLL_S = 0.1
BACKOFF_S = 0.2
BACKOFF_MAX_S = 5.0
RESTARTS_MAX = 20

_log = structlog.get_logger()


class Supervisor:
    """One supervised process. `spawn` starts it; it is restarted at most RESTARTS_MAX times in a run."""

    def __init__(self, name: str, spawn: Callable[[], Child], clock: Clock) -> None:
        """`start` begins."""
        self.name = name
        self.restarts = 0
        self._spawn = spawn
        self._clock = clock
        self._child: Child | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def child(self) -> Child:
        """The process that runs now. Raises EngineError before `start`."""
        if self._child is None:
            msg = f"{self.name} has not been started"
            raise EngineError(msg)
        return self._child

    def start(self) -> None:
        """Start the process and watch it."""
        self._child = self._spawn()
        self._watching = asyncio.create_task(self._watch())

    async def stop(self, grace_s: float) -> None:
        """End the process and do not start it again."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        if self._child is not None:
            await self._child.stop(self._clock, grace_s)

    async def _watch(self) -> None:
        backoff_s = BACKOFF_S
        while self.restarts < RESTARTS_MAX:
            while self.child.returncode is None:
                await self._clock.sleep(POLL_S)
            _log.warning("process died, starting it again", name=self.name, returncode=self.child.returncode)
            await self._clock.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
            self.restarts += 1
            self._child = self._spawn()
        _log.error("process died too often, giving it up", name=self.name, log=str(self.child.log))
