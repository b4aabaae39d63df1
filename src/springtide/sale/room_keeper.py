"""Moves the lines of all waiting rooms. It may run in many processes: of two steps from one state only one counts."""

import asyncio
import contextlib
from array import array
from collections.abc import Sequence

import structlog

from springtide.decide.room import (
    RoomPolicy,
    Shuffle,
    Supply,
    admission_rate,
    allowance,
    credit_now,
    line_state,
    next_move,
    pace_now,
)
from springtide.errors import InventoryError, LedgerError
from springtide.model import CALLED_MAX, ENDED, RoomBeats, RoomStep, RoomView, SaleView, SkuTotals
from springtide.ports import Clock, Ids, Inventory, Ledger, WaitingRoom
from springtide.sale.metrics import Gauges
from springtide.sale.room_mirror import shuffle_of

TICK_S = 0.2
SALES_EVERY_S = 1.0
"""How late a new sale, and the load of the counters, may be noticed."""

UNPAID_EVERY_S = 1.0
"""How often the ledger is asked whether units may come back, while there are none."""

ABSENT_MS = 100_000
"""Who has not asked for so long has left. Browsers let a page that is not looked at ask only once a minute."""

IDLE_STEP_MS = 1000
"""A step that calls nobody is made this often, for the line's pace."""

LINES_MAX = 256
TIMEOUT_S = 2.0

_log = structlog.get_logger(__name__)


class RoomKeeper:
    """Draws the order at the opening, calls the next ones, lets the line wait and ends it."""

    def __init__(
        self,
        inventory: Inventory,
        store: WaitingRoom,
        ledger: Ledger | None,
        clock: Clock,
        ids: Ids,
        policy: RoomPolicy,
    ) -> None:
        """Without a ledger it is never known that nothing can come back, and a line ends only with its sale.

        All are the caller's to close.
        """
        self._inventory = inventory
        self._store = store
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._policy = policy
        self._lines: dict[str, _Line] = {}
        self._looked_s = float("-inf")
        self.rate = 0.0
        self.steps = 0
        self.failures = 0

    async def run(self) -> None:
        """Keep the lines moving until cancelled."""
        while True:
            await self.tick()
            await self._clock.sleep(TICK_S)

    async def tick(self) -> None:
        """Move each line once. What fails is tried again with the next tick."""
        with contextlib.suppress(InventoryError, TimeoutError):
            await self._look_around()
        await asyncio.gather(*(self._move(line) for line in list(self._lines.values())))

    def gauges(self) -> Gauges:
        """For `/metrics`."""
        return {
            "room_lines": ("Waiting rooms that are kept", lambda: len(self._lines)),
            "room_lines_max": ("Limit of them", lambda: LINES_MAX),
            "room_rate": ("People a second that the counters can take, over all rooms", lambda: self.rate),
            "room_steps": ("Steps of lines that counted", lambda: self.steps),
            "room_step_failures": ("Steps that failed and were tried again", lambda: self.failures),
        }

    async def _look_around(self) -> None:
        """Which sales have a room, and what the order path can take."""
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_s < SALES_EVERY_S:
            return
        async with self._clock.timeout(TIMEOUT_S):
            self.rate = admission_rate(await self._store.loads(), self._policy)
            sales = await self._inventory.sales()
            for sale in sales:
                if sale not in self._lines and len(self._lines) < LINES_MAX:
                    self._lines[sale] = _Line(sale)
        for sale in self._lines.keys() - set(sales):
            del self._lines[sale]
        for line in self._lines.values():
            line.roomless = False
        self._looked_s = now_s

    async def _move(self, line: "_Line") -> None:
        try:
            async with self._clock.timeout(TIMEOUT_S):
                await self._move_in_time(line)
        except (InventoryError, TimeoutError):
            self.failures += 1
        except Exception:  # noqa: BLE001 - one room's fault must not keep the others from moving
            self.failures += 1
            _log.exception("room_step_failed", sale=line.sale)

    async def _move_in_time(self, line: "_Line") -> None:
        if line.roomless:
            return
        # The room is read before the stock: whoever buys in between is counted twice for a moment, never not at all.
        view = await self._store.view(line.sale, line.position)
        sold = await self._inventory.view(line.sale)
        if sold is None or not sold.sale.waiting_room:
            line.roomless = sold is not None
            return
        if view is None or view.drawn < 0:
            if sold.at_ms >= sold.sale.opens_ms:
                await self._store.draw(line.sale, sold.sale.opens_ms, self._ids.new(""))
            return
        line.follow(view)
        await self._read_beats(line)
        supply = await self._supply(line, sold)
        await self._step(line, view, supply)

    async def _step(self, line: "_Line", view: RoomView, supply: Supply) -> None:
        state = line_state(supply, view.at_ms)
        idle = view.at_ms - view.stepped_ms < IDLE_STEP_MS
        if state is view.state and idle and (state in ENDED or view.serving >= view.joined):
            return
        rate = self.rate / max(1, sum(other.waiting for other in self._lines.values()))
        allowed = allowance(view, supply, rate)
        move = next_move(view.serving, allowed, line.present(view, allowed))
        if move.stop == view.serving and state is view.state and idle:
            return
        called = move.stop - view.serving - len(move.skipped)
        pass_ms = self._policy.pass_ms + self._policy.grace_ms
        credit, pace = credit_now(view, rate) - called, pace_now(view, move.stop)
        step = RoomStep(view.room_id, view.step, move.stop, move.skipped, state, credit, pace, pass_ms)
        if await self._store.step(line.sale, step):
            self.steps += 1
            if state is not view.state:
                _log.info("room_line", sale=line.sale, state=state.value, serving=move.stop, joined=view.joined)

    async def _read_beats(self, line: "_Line") -> None:
        while True:
            beats = await self._store.beats(line.sale, line.beats)
            line.saw(beats)
            if not beats.more:
                return

    async def _supply(self, line: "_Line", sold: SaleView) -> Supply:
        units = sum(sold.stock.values()) + sold.moving
        unpaid = None
        if units <= 0 and self._ledger is not None and sold.at_ms < sold.sale.closes_ms:
            unpaid = await self._unpaid(line, self._ledger)
        return Supply(units, unpaid, not sold.paused and sold.at_ms >= sold.sale.opens_ms, sold.sale.closes_ms)

    async def _unpaid(self, line: "_Line", ledger: Ledger) -> int | None:
        now_s = self._clock.monotonic_s()
        if now_s - line.unpaid_s >= UNPAID_EVERY_S:
            line.unpaid_s = now_s
            try:
                line.unpaid = units_unpaid(await ledger.totals(line.sale))
            except LedgerError:
                line.unpaid = None
        return line.unpaid


def units_unpaid(totals: Sequence[SkuTotals]) -> int | None:
    """Units that are not paid for, whatever has become of them; None when the ledger does not know the sale.

    It does not matter how far behind the ledger is: an order that it does not have yet is not paid in it either.
    """
    if not totals:
        return None
    return sum(sku.initial + sku.restocked - sku.paid for sku in totals)


class _Line:
    """What a keeper knows of one room: the order of the places, and when each was seen last."""

    def __init__(self, sale: str) -> None:
        self.sale = sale
        self.roomless = False
        self.waiting = False
        self.position = "-"
        self.beats = "-"
        self.unpaid: int | None = None
        self.unpaid_s = float("-inf")
        self._room_id = ""
        self._shuffle: Shuffle | None = None
        self._seen = array("Q")

    def follow(self, view: RoomView) -> None:
        """Take note of the room as it is, which may be another one by now."""
        if view.room_id != self._room_id:
            self._room_id = view.room_id
            self._shuffle = shuffle_of(view.seed, view.drawn)
            self._seen = array("Q")
            self.beats = "-"
        self.position = view.position
        self.waiting = view.serving < view.joined and view.state not in ENDED

    def saw(self, beats: RoomBeats) -> None:
        """Take note of who was seen."""
        for at_ms, places in beats.seen:
            if not places:
                continue
            missing = max(places) + 1 - len(self._seen)
            if missing > 0:
                self._seen.frombytes(bytes(missing * self._seen.itemsize))
            for place in places:
                self._seen[place] = at_ms
        self.beats = beats.position

    def present(self, view: RoomView, wanted: int) -> list[bool]:
        """For the next numbers of the line whether they are there; no more than it takes to find so many present."""
        found: list[bool] = []
        if self._shuffle is None or wanted <= 0:
            return found
        since_ms = view.at_ms - ABSENT_MS
        seen = self._seen
        for number in range(view.serving, min(view.joined, view.serving + CALLED_MAX)):
            place = self._shuffle.place(number)
            there = place < len(seen) and seen[place] >= since_ms
            found.append(there)
            wanted -= there
            if not wanted:
                break
        return found
