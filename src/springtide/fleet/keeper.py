"""The leader's memory in the fleet's state: what each service was concluded to be, and the status for people."""

from collections.abc import Iterable

import msgspec

from springtide.decide.seasons import from_bytes, to_bytes
from springtide.errors import FleetStateError
from springtide.fleet.desk import Desk, DeskMemory, decode_memory
from springtide.fleet.status import STATUS, FleetStatus, encode_status
from springtide.model import SeasonPoint
from springtide.ports import Clock, FleetState

INDEX = "services"
"""The name under which the names of all services with a memory are kept."""

QUIET_MS = 1_000
"""At most this often is written what may be lost: the rest of a memory is written in the tick that changed it."""

_NAMES = msgspec.json.Decoder(list[str])


class Keeper:
    """Writes what has changed, and no more."""

    def __init__(self, clock: Clock, state: FleetState) -> None:
        """Nothing is known to be written."""
        self._clock = clock
        self._state = state
        self._index: list[str] = []
        self._urgent: dict[str, object] = {}
        self._written: dict[str, bytes] = {}
        self._written_ms: dict[str, int] = {}
        self._bins: dict[str, int] = {}

    async def recall(self) -> list[tuple[DeskMemory, tuple[SeasonPoint, ...]]]:
        """What the leader before remembered of each service, and its seasons. Raises FleetStateError."""
        value = await self._state.recall(INDEX)
        self._index = _NAMES.decode(value) if value else []
        self._written.clear()
        self._urgent.clear()
        self._bins.clear()
        found = []
        for service in self._index:
            memory = await self._state.recall(_name(service))
            if memory:
                found.append((decode_memory(service, memory), await self._seasons(service)))
        return found

    async def _seasons(self, service: str) -> tuple[SeasonPoint, ...]:
        kept = await self._state.recall(_seasons_name(service))
        try:
            return from_bytes(kept)
        except ValueError as error:
            raise FleetStateError(
                f"the seasons of {service} cannot be read ({error}); let the version that wrote them lead"
            ) from error

    async def remember(self, term: int, desks: Iterable[Desk]) -> None:
        """Write what has changed of these, which are all there are. Raises FleetStateError, Deposed."""
        desks = list(desks)
        index = sorted(desk.service for desk in desks)
        if index != self._index:
            await self._state.remember(term, INDEX, msgspec.json.encode(index))
            for gone in set(self._index) - set(index):
                await self._state.remember(term, _name(gone), b"")
                for known in (self._written, self._urgent, self._bins):
                    known.pop(gone, None)
            self._index = index
        for desk in desks:
            await self._remember(term, desk)
            await self._remember_seasons(term, desk)

    async def tell(self, term: int, status: FleetStatus) -> None:
        """Write the status. Raises FleetStateError, Deposed."""
        await self._state.remember(term, STATUS, encode_status(status))

    async def _remember(self, term: int, desk: Desk) -> None:
        memory, service, now_ms = desk.memory(), desk.service, self._clock.now_ms()
        urgent = (
            memory.revision,
            memory.rollout,
            memory.wish,
            memory.endpoints,
            {zone: health.state for zone, health in memory.zone_health.items()},
        )
        if urgent == self._urgent.get(service) and now_ms - self._written_ms[service] < QUIET_MS:
            return
        value = msgspec.json.encode(memory)
        if value != self._written.get(service):
            await self._state.remember(term, _name(service), value)
            self._written[service] = value
        self._urgent[service], self._written_ms[service] = urgent, now_ms


    async def _remember_seasons(self, term: int, desk: Desk) -> None:
        """When a bin is complete; after a recall once more, with what was merged."""
        newest = _newest_ms(desk)
        if newest and newest != self._bins.get(desk.service):
            await self._state.remember(term, _seasons_name(desk.service), to_bytes(desk.seasons))
            self._bins[desk.service] = newest


def _newest_ms(desk: Desk) -> int:
    points = desk.seasons.points
    return points[-1].at_ms if points else 0


def _name(service: str) -> str:
    return f"service/{service}"


def _seasons_name(service: str) -> str:
    return f"seasons/{service}"
