"""The waiting rooms on Valkey: `room.lua` holds their steps, this module speaks to it."""

from collections.abc import Sequence
from importlib import resources
from typing import Any, Self

import msgspec

from springtide.drivers.valkey_store import SingleStore, Store
from springtide.drivers.valkey_wire import Connection, Wire, command
from springtide.model import (
    CALLED_MAX,
    JOINS_MAX,
    PLACES_MAX,
    REPORT_MAX,
    CounterLoad,
    LineState,
    RoomBeats,
    RoomCall,
    RoomJoin,
    RoomPlaces,
    RoomReport,
    RoomStep,
    RoomView,
)
from springtide.ports import Clock

TIMEOUT_S = 2.0
CALLS_READ_MAX = 500
"""Moves of the line in one view."""

BEATS_READ_MAX = 200
"""Reports in one call of `beats`."""

_LIBRARY = "springtide_room"
_LOADS = "springtide:loads"
_encode = msgspec.msgpack.Encoder().encode
_numbers = msgspec.msgpack.Decoder(tuple[int, ...]).decode
_load = msgspec.msgpack.Decoder(CounterLoad).decode


class ValkeyRoom:
    """`ports.WaitingRoom` over a store whose connections have been given the functions by `load_room_functions`."""

    def __init__(self, store: Store) -> None:
        """The store is closed with it."""
        self._store = store

    @classmethod
    async def connect(cls, host: str, port: int, clock: Clock, *, timeout_s: float = TIMEOUT_S) -> Self:
        """Connect to one server, and give it this version's functions. Raises InventoryUnavailable."""
        wire = Wire((host, port), clock, timeout_s, load_room_functions)
        await wire.open()
        return cls(SingleStore(wire))

    async def join(self, sale: str, joins: Sequence[RoomJoin], opens_ms: int, seed: str) -> RoomPlaces:
        """See the port. Raises ValueError for more joins than the limit."""
        if not 1 <= len(joins) <= JOINS_MAX:
            raise ValueError(f"{len(joins)} joins in one call: give 1 to {JOINS_MAX}")
        packed = _encode(([join.buyer for join in joins], [join.lost for join in joins]))
        keys = _keys(sale, "room", "places", "beats")
        room_id, *places = await self._write(sale, "join", keys, opens_ms, seed, PLACES_MAX, packed)
        return RoomPlaces(room_id.decode(), tuple(places))

    async def draw(self, sale: str, opens_ms: int, seed: str) -> bool:
        """See the port."""
        return bool(await self._write(sale, "draw", _keys(sale, "room"), opens_ms, seed))

    async def view(self, sale: str, after: str) -> RoomView | None:
        """See the port."""
        keys = _keys(sale, "room", "calls", "passes")
        reply = await self._store.read(_tag(sale), _function("view", keys, after, CALLS_READ_MAX))
        return _view(reply, after) if reply else None

    async def step(self, sale: str, step: RoomStep) -> bool:
        """See the port."""
        keys = _keys(sale, "room", "places", "beats", "calls", "passes")
        figures = (step.room_id, step.step, step.stop, step.state, repr(step.credit), repr(step.pace), step.pass_ms)
        return bool(await self._write(sale, "step", keys, *figures, CALLED_MAX, _encode(step.skipped)))

    async def report(self, sale: str, report: RoomReport) -> bool:
        """See the port. Raises ValueError for more than the limit."""
        if len(report.seen) > REPORT_MAX or len(report.served) > REPORT_MAX:
            raise ValueError(f"a report names more than {REPORT_MAX} people: send it in parts")
        keys = _keys(sale, "room", "beats", "passes")
        packed = (_encode(report.seen), _encode(report.served))
        return bool(await self._write(sale, "report", keys, report.room_id, *packed, report.served_units))

    async def beats(self, sale: str, after: str) -> RoomBeats:
        """See the port."""
        start = after if after == "-" else f"({after}"
        (key,) = _keys(sale, "beats")
        entries = await self._store.read(_tag(sale), command("XRANGE", key, start, "+", "COUNT", BEATS_READ_MAX))
        seen = tuple((_moment_ms(entry_id), _numbers(fields[1])) for entry_id, fields in entries)
        return RoomBeats(seen, entries[-1][0].decode() if entries else after, len(entries) == BEATS_READ_MAX)

    async def declare(self, load: CounterLoad) -> None:
        """See the port."""
        await self._store.write(_LOADS, _function("declare", _LOAD_KEYS, load.replica_id, _encode(load)))

    async def loads(self) -> list[CounterLoad]:
        """See the port."""
        reply = await self._store.read(_LOADS, _function("loads", _LOAD_KEYS))
        return sorted((_load(one) for one in reply if one), key=lambda load: load.replica_id)

    async def close(self) -> None:
        """See the port."""
        await self._store.close()

    async def _write(self, sale: str, name: str, keys: Sequence[str], *args: str | bytes | int) -> Any:  # noqa: ANN401 - its own shape
        return await self._store.write(_tag(sale), _function(name, keys, *args))


async def load_room_functions(connection: Connection) -> None:
    """Give the server this version of the library, unless it has exactly that."""
    library = resources.files("springtide.drivers").joinpath("room.lua").read_bytes()
    found = await connection.send(command("FUNCTION", "LIST", "LIBRARYNAME", _LIBRARY, "WITHCODE"))
    if not found or library not in found[0]:
        await connection.send(command("FUNCTION", "LOAD", "REPLACE", library))


def _function(name: str, keys: Sequence[str], *args: str | bytes | int) -> bytes:
    return command("FCALL", f"{_LIBRARY}_{name}", len(keys), *keys, *args)


def _tag(sale: str) -> str:
    return f"{sale}:room"


def _keys(sale: str, *names: str) -> list[str]:
    return [f"{{{_tag(sale)}}}:{name}" for name in names]


_LOAD_KEYS = (f"{{{_LOADS}}}:live", f"{{{_LOADS}}}:loads")


def _view(reply: list[Any], after: str) -> RoomView:
    at_ms, outstanding, fields, entries = reply
    room_id, joined, drawn, seed, serving, state, served, served_units, credit, pace, step, stepped = fields
    return RoomView(
        room_id=room_id.decode(),
        at_ms=at_ms,
        joined=int(joined),
        drawn=-1 if drawn is None else int(drawn),
        seed=(seed or b"").decode(),
        serving=int(serving),
        state=LineState(state.decode()),
        outstanding=outstanding,
        served=int(served or 0),
        served_units=int(served_units or 0),
        credit=float(credit or 0),
        pace=float(pace or 0),
        step=int(step),
        stepped_ms=int(stepped or 0),
        calls=tuple(_call(entry_id, fields) for entry_id, fields in entries),
        position=entries[-1][0].decode() if entries else after,
        more=len(entries) == CALLS_READ_MAX,
    )


def _call(entry_id: bytes, fields: list[bytes]) -> RoomCall:
    return RoomCall(int(fields[1]), int(fields[3]), _moment_ms(entry_id), _numbers(fields[5]))


def _moment_ms(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])
