"""Joins of one loop tick go to the store as one call for each sale, as purchases do."""

import asyncio
from collections.abc import Callable

import structlog

from springtide.errors import InventoryUnavailable
from springtide.model import JOINS_MAX, RoomJoin
from springtide.ports import Clock, Ids, WaitingRoom
from springtide.sale.problems import OUTCOME_UNKNOWN, OVERLOADED, UNAVAILABLE, Problem

CALLS_IN_FLIGHT_MAX = 2
"""Calls of one sale under way; while there are so many, the next one grows."""

WAITING_MAX = 8 * JOINS_MAX
"""Joins of one sale that may wait; beyond, they are refused as overloaded."""

ANSWER_S_MAX = 2.0

Told = Callable[[str, int, Problem | None], None]
"""Told the room and the place, -1 when it is full; or the problem."""

_log = structlog.get_logger(__name__)


class _Lane:
    __slots__ = ("in_flight", "joins", "opens_ms", "scheduled", "told")

    def __init__(self) -> None:
        self.joins: list[RoomJoin] = []
        self.told: list[Told] = []
        self.opens_ms = 0
        self.in_flight = 0
        self.scheduled = False


class Joins:
    """Sends them. Call it with the event loop running."""

    def __init__(self, store: WaitingRoom, clock: Clock, ids: Ids) -> None:
        """`ids` draws the seeds by which a line may be shuffled at its opening."""
        self._store = store
        self._clock = clock
        self._ids = ids
        self._lanes: dict[str, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Joins that have not been sent."""
        return sum(len(lane.joins) for lane in self._lanes.values())

    @property
    def in_flight(self) -> int:
        """Calls that have been sent and not been answered."""
        return len(self._tasks)

    def add(self, sale: str, join: RoomJoin, opens_ms: int, told: Told) -> None:
        """Take a join; `told` is called once, at once when too many wait."""
        lane = self._lanes.get(sale)
        if lane is None:
            lane = self._lanes[sale] = _Lane()
        if len(lane.joins) >= WAITING_MAX:
            told("", -1, OVERLOADED)
            return
        lane.joins.append(join)
        lane.told.append(told)
        lane.opens_ms = opens_ms
        if not lane.scheduled and lane.in_flight < CALLS_IN_FLIGHT_MAX:
            lane.scheduled = True
            asyncio.get_running_loop().call_soon(self._tick_ended, sale, lane)

    async def close(self) -> None:
        """Wait for what is under way; each call ends in time."""
        while self._tasks or self._lanes:
            if self._tasks:
                await asyncio.wait(self._tasks)
            else:
                await self._clock.sleep(0)

    def _tick_ended(self, sale: str, lane: _Lane) -> None:
        lane.scheduled = False
        self._send(sale, lane)

    def _send(self, sale: str, lane: _Lane) -> None:
        while lane.joins and lane.in_flight < CALLS_IN_FLIGHT_MAX:
            joins, told = lane.joins[:JOINS_MAX], lane.told[:JOINS_MAX]
            del lane.joins[:JOINS_MAX], lane.told[:JOINS_MAX]
            lane.in_flight += 1
            task = asyncio.get_running_loop().create_task(self._join(sale, lane, joins, told))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if not (lane.joins or lane.in_flight or lane.scheduled):
            self._lanes.pop(sale, None)

    async def _join(self, sale: str, lane: _Lane, joins: list[RoomJoin], told: list[Told]) -> None:
        room_id, places, problem = "", (-1,) * len(joins), None
        try:
            async with self._clock.timeout(ANSWER_S_MAX):
                found = await self._store.join(sale, joins, lane.opens_ms, self._ids.new(""))
            room_id, places = found.room_id, found.places
        except InventoryUnavailable:
            problem = UNAVAILABLE
        except Exception as error:  # noqa: BLE001 - whatever went wrong, each gets an answer and the lane goes on
            _log.warning("joins_outcome_unknown", sale=sale, error=repr(error))
            problem = OUTCOME_UNKNOWN
        finally:
            lane.in_flight -= 1
            self._send(sale, lane)
        for one, place in zip(told, places, strict=True):
            try:
                one(room_id, place, problem)
            except Exception:  # noqa: BLE001 - one connection must not keep the others from their answers
                _log.exception("answer_failed", sale=sale)
