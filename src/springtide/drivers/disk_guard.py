"""Stops selling before the disk is full: Valkey, told to sync each write, ends itself when its file cannot grow.

Below a reserve the server's memory limit is set to one byte. It then refuses every function that may need memory,
which purchases do, before it runs them: a counter answers 503 and nothing was written. Functions that give stock back,
read the journal or acknowledge are marked `allow-oom` and go on, as all reading does.

How often is often enough: a purchase is 300 bytes of append-only file, and one server sells at most 212,000 a second
with a sync of each write: 64 MB/s, 6.4 MB between two looks. What goes on afterwards is less, and ends with the stock
that is out. The default reserve of 256 MB is forty times that; add the size of the data where the file is rewritten
while selling, since a rewrite begins with a whole copy.
"""

import asyncio
import contextlib
import os
from pathlib import Path

import msgspec
import structlog

from springtide.drivers.valkey_wire import Connection, Wire, command
from springtide.errors import EngineError, InventoryError
from springtide.ports import Clock

LOOK_S = 0.1
"""Seconds between two looks at the disk."""

RESUME_SHARE = 1.25
"""Selling goes on when this many times the reserve is free, so that it does not flap."""

TIMEOUT_S = 1.0

_log = structlog.get_logger(__name__)


class DiskFigures(msgspec.Struct, frozen=True):
    """How near the limit is, in bytes, at the last look; `refusals` counts how often selling was stopped."""

    free_bytes: int
    reserve_bytes: int
    refusing: bool
    refusals: int


class DiskGuard:
    """Watches the disk of one server's data folder."""

    def __init__(
        self, folder: Path, reserve_bytes: int, address: tuple[str, int], clock: Clock, memory_bytes_max: int = 0
    ) -> None:
        """`memory_bytes_max` is the server's memory limit in normal times; 0 is none."""
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self._memory_bytes_max = memory_bytes_max
        self._clock = clock
        self._figures = DiskFigures(self._free(), reserve_bytes, refusing=False, refusals=0)
        # A server that was started again has forgotten the limit: each new connection sets it before anything else.
        self._wire = Wire(address, clock, TIMEOUT_S, self._tell)
        self._watching: asyncio.Task[None] | None = None

    @property
    def figures(self) -> DiskFigures:
        """What the last look found."""
        return self._figures

    async def start(self) -> None:
        """Look once, and keep looking. Raises EngineError for a folder that is not there, and InventoryError."""
        if not self._folder.is_dir():
            raise EngineError(f"{self._folder} is not a folder, so its disk cannot be watched; name the data folder")
        self._look()
        await self._wire.open()
        self._watching = asyncio.create_task(self._watch(), name="disk guard")

    async def close(self) -> None:
        """Look no more; the limit stays as it is."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await self._wire.close()

    async def _watch(self) -> None:
        told = self._figures.refusing
        while True:
            await self._clock.sleep(LOOK_S)
            self._look()
            if told != self._figures.refusing:
                with contextlib.suppress(InventoryError):
                    await self._wire.send(self._limit())
                    told = self._figures.refusing

    def _look(self) -> None:
        before, free = self._figures, self._free()
        wanted = self._reserve_bytes * (RESUME_SHARE if before.refusing else 1.0)
        refusing = free < wanted
        if refusing != before.refusing:
            _log.warning("disk guard", refusing=refusing, free_bytes=free, reserve_bytes=self._reserve_bytes)
        self._figures = DiskFigures(free, self._reserve_bytes, refusing, before.refusals + (refusing > before.refusing))

    def _free(self) -> int:
        try:
            disk = os.statvfs(self._folder)
        except OSError:  # a disk that cannot be looked at is no place to sell from
            return 0
        return disk.f_bavail * disk.f_frsize

    async def _tell(self, connection: Connection) -> None:
        await connection.send(self._limit())

    def _limit(self) -> bytes:
        return command("CONFIG", "SET", "maxmemory", 1 if self._figures.refusing else self._memory_bytes_max)
