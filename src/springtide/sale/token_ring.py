"""Keeps a counter's token keys those of the generations in use, so that keys change without a restart."""

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from springtide.errors import InventoryError
from springtide.model import TokenRing
from springtide.ports import Clock
from springtide.sale.tokens import TokenKeys, keys_of

ASK_EVERY_S = 1.0
"""How late a change of the ring may be noticed, besides the time of one question."""

ASK_TIMEOUT_S = 1.0

_log = structlog.get_logger(__name__)


class RingSource(Protocol):
    """What is needed of the inventory."""

    async def token_ring(self) -> TokenRing:
        """See `ports.Inventory`."""


class RingKeeper:
    """Asks for the ring once a second; while there is no answer, the keys stay as they are."""

    def __init__(self, inventory: RingSource, clock: Clock, master: bytes, use: Callable[[TokenKeys], None]) -> None:
        """`use` is called with the new keys whenever the ring has changed. Raises ValueError for a short master key."""
        self._inventory = inventory
        self._clock = clock
        self._master = master
        self._use = use
        self.ring = TokenRing(1, 1)
        use(keys_of(master, self.ring))
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to ask. Needs the loop running."""
        self._task = asyncio.get_running_loop().create_task(self._keep_asking())

    async def close(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def ask(self) -> None:
        """Ask once. Raises InventoryError or TimeoutError."""
        async with self._clock.timeout(ASK_TIMEOUT_S):
            ring = await self._inventory.token_ring()
        if ring != self.ring:
            self._use(keys_of(self._master, ring))
            self.ring = ring

    async def _keep_asking(self) -> None:
        while True:
            try:
                await self.ask()
            except (InventoryError, TimeoutError):
                pass
            except Exception:  # noqa: BLE001 - a ring that cannot be used must not end the asking
                _log.exception("token_ring_failed")
            await self._clock.sleep(ASK_EVERY_S)
