"""The leader's memory in the fleet's state: what each service was concluded to be, and the status for people."""

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from springtide.decide.seasons import from_bytes, to_bytes
from springtide.errors import FleetStateError
from springtide.fleet.desk import Desk, DeskMemory, ListMemory
from springtide.fleet.status import STATUS, FleetStatus, encode_status
from springtide.model import SeasonPoint
from springtide.ports import Clock, FleetState

INDEX = "services"
"""The name under which the names of all services with a memory are kept."""

QUIET_MS = 5_000
"""At most this often is written what may be lost; the rest is written in the tick that changed it."""

T = TypeVar("T")


class Recalled(msgspec.Struct, frozen=True):
    """What was remembered of one service."""

    memory: DeskMemory
    listed: ListMemory
    seasons: tuple[SeasonPoint, ...]


class _Written:
    """What of a service is in the store as it is here."""

    def __init__(self) -> None:
        self.urgent: object = None
        self.value = b""
        self.at_ms = 0
        self.endpoints: object = None
        self.newest_bin_ms = 0


class Keeper:
    """Writes what has changed, and no more: under `service/`, `endpoints/` and `seasons/` with the service's name."""

    def __init__(self, clock: Clock, state: FleetState) -> None:
        """Nothing is known to be written."""
        self._clock = clock
        self._state = state
        self._index: list[str] = []
        self._written: dict[str, _Written] = {}

    async def recall(self) -> list[Recalled]:
        """What the leader before remembered. Raises FleetStateError."""
        self._written.clear()
        self._index = await self._value(INDEX, list[str]) or []
        found = []
        for service in self._index:
            memory = await self._value(f"service/{service}", DeskMemory)
            if memory is not None:
                listed = await self._value(f"endpoints/{service}", ListMemory) or ListMemory()
                found.append(Recalled(memory, listed, await self._seasons(service)))
        return found

    async def remember(self, term: int, desks: Iterable[Desk]) -> None:
        """Write what has changed of these, which are all there are. Raises FleetStateError, Deposed."""
        desks = list(desks)
        index = sorted(desk.service for desk in desks)
        if index != self._index:
            await self._state.remember(term, INDEX, msgspec.json.encode(index))
            for gone in set(self._index) - set(index):
                for kind in ("service", "endpoints", "seasons"):
                    await self._state.remember(term, f"{kind}/{gone}", b"")
                self._written.pop(gone, None)
            self._index = index
        for desk in desks:
            await self._remember(term, desk, self._written.setdefault(desk.service, _Written()))

    async def tell(self, term: int, status: FleetStatus) -> None:
        """Write the status. Raises FleetStateError, Deposed."""
        await self._state.remember(term, STATUS, encode_status(status))

    async def _remember(self, term: int, desk: Desk, written: _Written) -> None:
        memory, now_ms = desk.memory(), self._clock.now_ms()
        states = {zone: health.state for zone, health in memory.zone_health.items()}
        urgent = memory.revision, memory.rollout, memory.wish, states, memory.ordered
        if urgent != written.urgent or now_ms - written.at_ms >= QUIET_MS:
            value = msgspec.json.encode(memory)
            if value != written.value:
                await self._state.remember(term, f"service/{desk.service}", value)
            written.urgent, written.value, written.at_ms = urgent, value, now_ms
        if desk.endpoints != written.endpoints:
            listed = ListMemory(desk.endpoints, desk.homes)
            await self._state.remember(term, f"endpoints/{desk.service}", msgspec.json.encode(listed))
            written.endpoints = desk.endpoints
        points = desk.seasons.points
        if points and points[-1].at_ms != written.newest_bin_ms:
            await self._state.remember(term, f"seasons/{desk.service}", to_bytes(desk.seasons))
            written.newest_bin_ms = points[-1].at_ms

    async def _value(self, name: str, kind: type[T]) -> T | None:
        value = await self._state.recall(name)
        try:
            return msgspec.json.decode(value, type=kind) if value else None
        except msgspec.DecodeError as error:
            raise _unreadable(name, error) from error

    async def _seasons(self, service: str) -> tuple[SeasonPoint, ...]:
        name = f"seasons/{service}"
        value = await self._state.recall(name)
        try:
            return from_bytes(value)
        except ValueError as error:
            raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> FleetStateError:
    return FleetStateError(f"what is remembered as {name} cannot be read ({error}); let the version that wrote it lead")
