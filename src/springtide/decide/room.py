"""The waiting room's decisions: who stands where in the line, how fast it may move, and who is called next."""

import math
from collections.abc import Sequence

import msgspec

from springtide.config import RoomSettings
from springtide.model import CALLED_MAX, PASSES_MAX, CounterLoad, LineState, RoomView

TABLE_MAX = 4096
"""Up to this many places the order is drawn as a table: a Feistel network over a small set is not even."""

ROUNDS = 8
"""With rounds of true random functions, 7 are proven to be hard to tell from a random order (Patarin, 2004)."""

_WORD_BYTES = 8
_QUEUE_WEIGHT = 0.8

CREDIT_S = 1.0
"""How much of the rate may be caught up after a moment in which nobody was called, in seconds."""

PACE_MIN = 0.01
"""Numbers a second below which no wait is estimated."""

PACE_S = 10.0
"""The time over which the line's pace is averaged."""


class Shuffle:
    """A random order of the places 0 to n - 1: place ↔ number, each in O(1), from random bytes given in.

    Small lines get a Fisher-Yates table, large ones a Feistel network over ⌈√n⌉ × ⌈n/⌈√n⌉⌉ whose round functions are
    tables of random words; numbers outside the line are walked past (cycle-walking; Black and Rogaway, 2002).
    """

    __slots__ = ("_columns", "_n", "_places", "_rounds", "_rows", "_table")

    def __init__(self, n: int, randomness: bytes) -> None:
        """`randomness` has `shuffle_bytes(n)` bytes; the same bytes give the same order. Raises ValueError."""
        if len(randomness) != shuffle_bytes(n):
            raise ValueError(f"an order of {n} places is drawn from {shuffle_bytes(n)} bytes, not {len(randomness)}")
        words = memoryview(randomness).cast("Q")
        self._n = n
        self._table: list[int] = []
        self._places: list[int] = []
        self._rows, self._columns = _grid(n)
        self._rounds: list[tuple[list[int], list[int]]] = []
        if n <= TABLE_MAX:
            self._table = _drawn(words)
            self._places = sorted(range(n), key=self._table.__getitem__)
            return
        at = 0
        for _ in range(ROUNDS // 2):
            rows = [word % self._rows for word in words[at : at + self._columns]]
            at += self._columns
            columns = [word % self._columns for word in words[at : at + self._rows]]
            at += self._rows
            self._rounds.append((rows, columns))

    def number(self, place: int) -> int:
        """Where in the line the place stands; a place behind those that were drawn is its own number."""
        if place >= self._n:
            return place
        if self._table:
            return self._table[place]
        while True:
            place = self._forth(place)
            if place < self._n:
                return place

    def place(self, number: int) -> int:
        """The place that stands there."""
        if number >= self._n:
            return number
        if self._table:
            return self._places[number]
        while True:
            number = self._back(number)
            if number < self._n:
                return number

    def _forth(self, cell: int) -> int:
        rows_n, columns_n = self._rows, self._columns
        row, column = divmod(cell, columns_n)
        for rows, columns in self._rounds:
            row = (row + rows[column]) % rows_n
            column = (column + columns[row]) % columns_n
        return row * columns_n + column

    def _back(self, cell: int) -> int:
        row, column = divmod(cell, self._columns)
        for rows, columns in reversed(self._rounds):
            column = (column - columns[row]) % self._columns
            row = (row - rows[column]) % self._rows
        return row * self._columns + column


def shuffle_bytes(n: int) -> int:
    """How many random bytes `Shuffle` takes for this many places. Raises ValueError for a negative number."""
    if n < 0:
        raise ValueError(f"{n} places cannot be shuffled")
    words = n if n <= TABLE_MAX else ROUNDS // 2 * sum(_grid(n))
    return words * _WORD_BYTES


def _grid(n: int) -> tuple[int, int]:
    rows = math.isqrt(max(n - 1, 0)) + 1
    return rows, -(-n // rows)


def _drawn(words: Sequence[int]) -> list[int]:
    """Fisher and Yates' shuffle; of 64-bit words, a remainder is even to 1 in 2^50."""
    order = list(range(len(words)))
    for last in range(len(words) - 1, 0, -1):
        other = words[last] % (last + 1)
        order[last], order[other] = order[other], order[last]
    return order


class RoomPolicy(msgspec.Struct, frozen=True):
    """How a room is kept.

    A pass is good for `pass_ms`; it counts for `grace_ms` longer, in which a purchase may still be under way. A buyer
    who is let in makes some `requests_per_buyer` requests. With no counter that states a limit, `rate_default` people
    a second are let in, over all rooms; and never more than `rate_max`.
    """

    pass_ms: int = 120_000
    grace_ms: int = 5_000
    requests_per_buyer: float = 5.0
    rate_default: float = 200.0
    rate_max: float = 100_000.0


def policy_of(settings: RoomSettings) -> RoomPolicy:
    """The policy that the `[room]` table asks for."""
    return RoomPolicy(
        pass_ms=round(settings.pass_s * 1000),
        requests_per_buyer=settings.requests_per_buyer,
        rate_default=settings.rate_default,
        rate_max=settings.rate_max,
    )


class Supply(msgspec.Struct, frozen=True):
    """What a sale can still serve.

    `units`: in stock, or on their way from bucket to bucket. `unpaid`: units that may come back, None while that is not
    known. `selling` is false while it is paused.
    """

    units: int
    unpaid: int | None
    selling: bool
    closes_ms: int


class Move(msgspec.Struct, frozen=True):
    """Call the numbers up to `stop` but for those `skipped`."""

    stop: int
    skipped: tuple[int, ...]


def admission_rate(loads: Sequence[CounterLoad], policy: RoomPolicy) -> float:
    """People a second that the order path can take, over all rooms.

    What each counter can take, less as its queue fills or it refuses purchases; at half of them refused, nobody is let
    in because of it.
    """
    if not loads:
        return 0.0
    limited = [load for load in loads if load.rate_max > 0]
    people = sum(load.rate_max * _ease(load) for load in limited) / policy.requests_per_buyer
    if len(limited) < len(loads):
        eases = [_ease(load) for load in loads if load.rate_max <= 0]
        people += policy.rate_default * sum(eases) / len(eases)
    return min(people, policy.rate_max)


def _ease(load: CounterLoad) -> float:
    """The share of its rate that a counter may be given.

    A full queue alone does not stop the line: it may be those in the line, asking, who fill it.
    """
    return max(0.0, 1.0 - 2.0 * load.refused_share) * (1.0 - _QUEUE_WEIGHT * load.queue_share)


def line_state(supply: Supply, now_ms: int) -> LineState:
    """Whether the line moves, waits or has ended. It has ended only when nothing can come back any more."""
    if now_ms >= supply.closes_ms:
        return LineState.CLOSED
    if supply.units <= 0:
        return LineState.SOLD_OUT if supply.unpaid is not None and supply.unpaid <= 0 else LineState.HELD
    return LineState.OPEN if supply.selling else LineState.PAUSED


def servable(units: int, served: int, served_units: int) -> int:
    """How many people the stock can serve at the units that one has taken on average, at least one unit each."""
    if units <= 0:
        return 0
    each = max(1.0, served_units / served) if served else 1.0
    return max(1, math.floor(units / each))


def credit_now(view: RoomView, rate: float) -> float:
    """How many people may be called by now; what is not used is kept for CREDIT_S, or for one person."""
    passed_s = max(0, view.at_ms - view.stepped_ms) / 1000 if view.stepped_ms else 0.0
    return min(view.credit + rate * passed_s, max(1.0, rate * CREDIT_S))


def allowance(view: RoomView, supply: Supply, rate: float) -> int:
    """How many people may be let in now: what the rate allows, and never more than the stock can serve.

    Those whose pass is outstanding are served first.
    """
    if line_state(supply, view.at_ms) is not LineState.OPEN:
        return 0
    room = min(servable(supply.units, view.served, view.served_units), PASSES_MAX) - view.outstanding
    return max(0, min(math.floor(credit_now(view, rate)), room))


def next_move(serving: int, allowed: int, present: Sequence[bool]) -> Move:
    """Whom to call. `present` tells of the numbers from `serving` on, at most CALLED_MAX, whether they are there.

    An absent one is passed over only for somebody present behind him, or for a whole look of absent ones.
    """
    called, skipped, stop = 0, list[int](), serving
    for number, there in enumerate(present[:CALLED_MAX], serving):
        if called >= allowed:
            break
        if there:
            called += 1
            stop = number + 1
        else:
            skipped.append(number)
    if len(skipped) == CALLED_MAX:
        stop = serving + CALLED_MAX
    return Move(stop, tuple(number for number in skipped if number < stop))


def pace_now(view: RoomView, stop: int) -> float:
    """The line's pace in numbers a second once it has moved up to `stop`: an average over some PACE_S."""
    passed_s = (view.at_ms - view.stepped_ms) / 1000 if view.stepped_ms else 0.0
    if passed_s <= 0:
        return view.pace
    weight = 1.0 - math.exp(-passed_s / PACE_S)
    return view.pace + weight * ((stop - view.serving) / passed_s - view.pace)
