"""`ports.WaitingRoom` in memory, with Valkey's semantics: for the twin and for tests."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

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

BEATS_KEPT_MS = 120_000
LOAD_LIVES_MS = 5_000


@dataclass(slots=True)
class _Room:
    room_id: str
    drawn: int = -1
    seed: str = ""
    serving: int = 0
    state: LineState = LineState.OPEN
    step: int = 0
    stepped_ms: int = 0
    credit: float = 0.0
    pace: float = 0.0
    served: int = 0
    served_units: int = 0
    joined: int = 0
    entries: int = 0
    places: dict[str, int] = field(default_factory=dict)
    passes: dict[int, int] = field(default_factory=dict)
    calls: list[tuple[int, RoomCall]] = field(default_factory=list)
    beats: list[tuple[int, int, tuple[int, ...]]] = field(default_factory=list)

    def next_entry(self) -> int:
        self.entries += 1
        return self.entries

    def note_seen(self, seen: tuple[int, ...], now_ms: int) -> None:
        self.beats = [beat for beat in self.beats if beat[1] >= now_ms - BEATS_KEPT_MS]
        self.beats.append((self.next_entry(), now_ms, seen))

    def give(self, join: RoomJoin) -> int:
        place = self.places.get(join.buyer)
        if place is not None and place != join.lost:
            return place
        if self.joined >= PLACES_MAX:
            return -1
        self.places[join.buyer] = self.joined
        self.joined += 1
        return self.joined - 1


class MemoryRoom:
    """All rooms of one process."""

    def __init__(self, clock: Clock) -> None:
        """Empty."""
        self._clock = clock
        self._rooms: dict[str, _Room] = {}
        self._loads: dict[str, tuple[int, CounterLoad]] = {}

    async def join(self, sale: str, joins: Sequence[RoomJoin], opens_ms: int, seed: str) -> RoomPlaces:
        """See the port. Raises ValueError for more joins than the limit."""
        if not 1 <= len(joins) <= JOINS_MAX:
            raise ValueError(f"{len(joins)} joins in one call: give 1 to {JOINS_MAX}")
        now_ms = self._clock.now_ms()
        room = self._ensure(sale, opens_ms, now_ms, seed)
        first = room.joined
        places = tuple(room.give(join) for join in joins)
        if room.joined > first:
            room.note_seen(tuple(range(first, room.joined)), now_ms)
        return RoomPlaces(room.room_id, places)

    async def draw(self, sale: str, opens_ms: int, seed: str) -> bool:
        """See the port."""
        now_ms = self._clock.now_ms()
        if now_ms < opens_ms:
            return False
        self._ensure(sale, opens_ms, now_ms, seed)
        return True

    async def view(self, sale: str, after: str) -> RoomView | None:
        """See the port."""
        room = self._rooms.get(sale)
        if room is None:
            return None
        now_ms = self._clock.now_ms()
        calls = [one for one in room.calls if one[0] > _position(after)]
        return RoomView(
            room_id=room.room_id,
            at_ms=now_ms,
            joined=room.joined,
            drawn=room.drawn,
            seed=room.seed,
            serving=room.serving,
            state=room.state,
            outstanding=sum(until_ms > now_ms for until_ms in room.passes.values()),
            served=room.served,
            served_units=room.served_units,
            credit=room.credit,
            pace=room.pace,
            step=room.step,
            stepped_ms=room.stepped_ms,
            calls=tuple(call for _, call in calls),
            position=str(calls[-1][0]) if calls else after,
        )

    async def step(self, sale: str, step: RoomStep) -> bool:
        """See the port."""
        room = self._rooms.get(sale)
        if room is None or room.room_id != step.room_id or room.step != step.step:
            return False
        if not room.serving <= step.stop <= min(room.joined, room.serving + CALLED_MAX):
            return False
        now_ms = self._clock.now_ms()
        room.passes = {number: until_ms for number, until_ms in room.passes.items() if until_ms > now_ms}
        if step.stop > room.serving:
            absent = frozenset(step.skipped)
            called = (number for number in range(room.serving, step.stop) if number not in absent)
            room.passes.update(dict.fromkeys(called, now_ms + step.pass_ms))
            call = RoomCall(room.serving, step.stop, now_ms, step.skipped)
            room.calls = [one for one in room.calls if one[1].at_ms >= now_ms - step.pass_ms]
            room.calls.append((room.next_entry(), call))
        room.serving, room.state, room.credit, room.pace = step.stop, step.state, step.credit, step.pace
        room.step += 1
        room.stepped_ms = now_ms
        return True

    async def report(self, sale: str, report: RoomReport) -> bool:
        """See the port. Raises ValueError for more than the limit."""
        if len(report.seen) > REPORT_MAX or len(report.served) > REPORT_MAX:
            raise ValueError(f"a report names more than {REPORT_MAX} people: send it in parts")
        room = self._rooms.get(sale)
        if room is None or room.room_id != report.room_id:
            return False
        if report.seen:
            room.note_seen(report.seen, self._clock.now_ms())
        used = sum(room.passes.pop(number, None) is not None for number in report.served)
        if used:
            room.served += used
            room.served_units += report.served_units
        return True

    async def beats(self, sale: str, after: str) -> RoomBeats:
        """See the port."""
        room = self._rooms.get(sale)
        new = [beat for beat in room.beats if beat[0] > _position(after)] if room is not None else []
        return RoomBeats(tuple((at_ms, seen) for _, at_ms, seen in new), str(new[-1][0]) if new else after)

    async def declare(self, load: CounterLoad) -> None:
        """See the port."""
        self._loads[load.replica_id] = (self._clock.now_ms(), load)

    async def loads(self) -> list[CounterLoad]:
        """See the port."""
        oldest_ms = self._clock.now_ms() - LOAD_LIVES_MS
        self._loads = {name: said for name, said in self._loads.items() if said[0] > oldest_ms}
        return [self._loads[name][1] for name in sorted(self._loads)]

    async def close(self) -> None:
        """See the port."""

    def _ensure(self, sale: str, opens_ms: int, now_ms: int, seed: str) -> _Room:
        room = self._rooms.get(sale)
        if room is None:
            room = self._rooms[sale] = _Room(hashlib.sha256(seed.encode()).hexdigest()[:16])
        if room.drawn < 0 and now_ms >= opens_ms:
            room.drawn, room.seed = room.joined, seed
        return room


def _position(after: str) -> int:
    return 0 if after == "-" else int(after)
