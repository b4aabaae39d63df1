"""Keeps a process's mirrors of waiting rooms true, and tells the store who was seen and who has bought."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from itertools import islice

import structlog

from springtide.errors import InventoryError
from springtide.model import REPORT_MAX, CounterLoad, RoomReport
from springtide.ports import Clock, WaitingRoom
from springtide.sale.room_mirror import RoomMirror

REFRESH_S = 0.1
"""How long after a call of the line everybody here learns of it, besides the time of one question."""

REPORT_EVERY_S = 1.0
SEEN_AGAIN_S = 10.0
"""Within this time, somebody who was seen is not reported again."""

SEEN_MAX = 500_000
"""People remembered as seen of one room; beyond, they are forgotten and reported again."""

ROOMS_MAX = 256
WAITERS_MAX = 10_000
"""Requests that wait for the first view of one room."""

IDLE_S = 300.0
"""A room nobody asked for during this time is no longer watched."""

TIMEOUT_S = 1.0

_log = structlog.get_logger(__name__)


class WatchedRoom:
    """The mirror of one room, and what has been noticed since the last report."""

    __slots__ = ("bought", "mirror", "noticed", "reported", "reported_s", "sale", "waiters")

    def __init__(self, sale: str, pass_ms: int) -> None:
        """Nothing is known: `mirror.room_id` is empty until the first view has come."""
        self.sale = sale
        self.mirror = RoomMirror(pass_ms)
        self.waiters: list[Callable[[], None]] = []
        self.noticed: set[int] = set()
        self.reported: set[int] = set()
        self.reported_s = 0.0
        self.bought: dict[int, int] = {}

    def seen(self, place: int) -> None:
        """Somebody with this place has asked."""
        if place not in self.reported and len(self.noticed) < REPORT_MAX:
            self.noticed.add(place)


class RoomWatch:
    """All rooms that this process is asked for. The store is the caller's to close."""

    def __init__(self, store: WaitingRoom, clock: Clock, pass_ms: int, load: Callable[[], CounterLoad] | None) -> None:
        """`load` is asked once a second what this counter can take and how pressed it is; None for a mere observer."""
        self._store = store
        self._clock = clock
        self._pass_ms = pass_ms
        self._load = load
        self._tasks: list[asyncio.Task[None]] = []
        self.rooms: dict[str, WatchedRoom] = {}
        self.pressed = False
        self.failures = 0

    def start(self) -> None:
        """Begin to refresh and to report. Needs the loop running."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._keep(self._refresh_all, REFRESH_S))]
        self._tasks.append(loop.create_task(self._keep(self._report_all, REPORT_EVERY_S)))

    async def close(self) -> None:
        """Stop, and report what is left."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._report_all()

    def watch(self, sale: str) -> WatchedRoom | None:
        """The room, watched from now on; None when too many are."""
        room = self.rooms.get(sale)
        if room is None and len(self.rooms) < ROOMS_MAX:
            room = self.rooms[sale] = WatchedRoom(sale, self._pass_ms)
            room.mirror.asked_s = self._clock.monotonic_s()
        return room

    def when_known(self, room: WatchedRoom, ready: Callable[[], None]) -> bool:
        """Call `ready` once the room has been asked for, however that ended. False: too many wait."""
        if len(room.waiters) >= WAITERS_MAX:
            return False
        room.waiters.append(ready)
        return True

    async def refresh(self, room: WatchedRoom) -> None:
        """Ask once. A failure leaves the mirror as it is."""
        try:
            async with self._clock.timeout(TIMEOUT_S):
                while await self._read(room):
                    pass
        except (InventoryError, TimeoutError):
            self.failures += 1
        finally:
            waiters, room.waiters = room.waiters, []
            for ready in waiters:
                ready()

    async def _read(self, room: WatchedRoom) -> bool:
        """Apply one view; whether there is more to read at once."""
        view = await self._store.view(room.sale, room.mirror.position)
        if view is None:
            self._forget(room)
            return False
        now_ms = self._clock.now_ms()
        if room.mirror.apply(view, self._clock.monotonic_s(), view.at_ms - now_ms):
            return view.more
        self._forget(room)
        return True

    def _forget(self, room: WatchedRoom) -> None:
        """The store has another room by this name, or none: what was known is worth nothing."""
        asked_s = room.mirror.asked_s
        room.mirror = RoomMirror(self._pass_ms)
        room.mirror.asked_s = asked_s
        room.mirror.read_s = self._clock.monotonic_s()
        room.noticed.clear()
        room.reported.clear()
        room.bought.clear()

    async def _refresh_all(self) -> None:
        idle_before_s = self._clock.monotonic_s() - IDLE_S
        for sale in [sale for sale, room in self.rooms.items() if room.mirror.asked_s < idle_before_s]:
            if not self.rooms[sale].waiters:
                del self.rooms[sale]
        await asyncio.gather(*(self._refresh_and_tell(room) for room in list(self.rooms.values())))

    async def _refresh_and_tell(self, room: WatchedRoom) -> None:
        await self.refresh(room)
        if room.bought:
            await self._report(room, RoomReport(room.mirror.room_id.decode(), (), *self._taken(room)))

    async def _report_all(self) -> None:
        if self._load is not None:
            load = self._load()
            self.pressed = load.queue_share > 0.5 or load.refused_share > 0  # noqa: PLR2004 - half full is pressed
            with contextlib.suppress(InventoryError, TimeoutError):
                async with self._clock.timeout(TIMEOUT_S):
                    await self._store.declare(load)
        for room in list(self.rooms.values()):
            if room.noticed or room.bought:
                await self._report_seen(room)

    async def _report_seen(self, room: WatchedRoom) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - room.reported_s >= SEEN_AGAIN_S or len(room.reported) >= SEEN_MAX:
            room.reported.clear()
            room.reported_s = now_s
        noticed, room.noticed = room.noticed, set()
        report = RoomReport(room.mirror.room_id.decode(), tuple(noticed), *self._taken(room))
        if await self._report(room, report):
            room.reported |= noticed

    def _taken(self, room: WatchedRoom) -> tuple[tuple[int, ...], int]:
        """Numbers of those who bought, and their units, taken out to be reported."""
        numbers = tuple(islice(room.bought, REPORT_MAX))
        return numbers, sum(room.bought.pop(number) for number in numbers)

    async def _report(self, room: WatchedRoom, report: RoomReport) -> bool:
        """Whether it is known to have arrived. What is lost does no harm: a pass ends by time, and people ask again."""
        try:
            async with self._clock.timeout(TIMEOUT_S):
                return await self._store.report(room.sale, report)
        except (InventoryError, TimeoutError):
            self.failures += 1
            return False

    async def _keep(self, work: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            try:
                await work()
            except Exception:  # noqa: BLE001 - a fault in one round must not end the watching
                _log.exception("room_watch_failed")
            await self._clock.sleep(every_s)
