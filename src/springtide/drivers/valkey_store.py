"""Where the inventory's keys live: one Valkey server, or a cluster of them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from springtide.drivers.valkey_wire import Connection, Wire


class Store(Protocol):
    """Sends commands to the server that has the slot of a hash tag: what stands between the braces of their keys.

    Raises InventoryUnavailable when nothing was written, and OutcomeUnknown when that cannot be known.
    """

    @property
    def replicated(self) -> bool:
        """Whether `write` waits for replicas: then an answer about what others wrote has to make a write of its own."""

    @property
    def calls_in_flight(self) -> int:
        """Calls sent and not answered."""

    def read(self, tag: str, data: bytes) -> Awaitable[Any]:
        """Send one encoded command that writes nothing; its reply."""

    def write(self, tag: str, data: bytes) -> Awaitable[Any]:
        """Send one encoded command; its reply, once what it wrote is as durable as this store promises."""

    async def primaries(self) -> Sequence[Wire]:
        """A wire to each server that has slots, for what has no key."""

    async def close(self) -> None:
        """Let go of all connections."""


class SingleStore:
    """One server. What it has answered is in its append-only file."""

    replicated = False

    def __init__(self, wire: Wire) -> None:
        """`wire` is open."""
        self._wire = wire
        self.read: Callable[[str, bytes], Awaitable[Any]] = lambda _, data: wire.send(data)
        self.write = self.read

    @property
    def calls_in_flight(self) -> int:
        """See Store."""
        return self._wire.calls_in_flight

    async def primaries(self) -> Sequence[Wire]:
        """See Store."""
        return (self._wire,)

    async def close(self) -> None:
        """See Store."""
        await self._wire.close()


Prepare = Callable[[Connection], Awaitable[None]]
"""What is done on each new connection to a server that takes writes, before any call."""
