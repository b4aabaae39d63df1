"""The waiting room of a sale: places in the line, whose turn it is, and what is reported to it.

A place is the order in which somebody joined, from 0. His number is where he stands in the line: for those who joined
before the opening it is drawn by lot at the opening, and for all others it equals the place.
"""

from enum import StrEnum

import msgspec

PLACES_MAX = 2_000_000
"""The most people of one room: a place takes some 100 bytes of the store, and 4 of whoever keeps the line moving."""

PASSES_MAX = 500_000
"""The most passes of one room that may be outstanding; each takes some 100 bytes of the store."""

JOINS_MAX = 512
"""Joins in one call."""

CALLED_MAX = 8192
"""Numbers that one call of the next ones may move the line by."""

REPORT_MAX = 65_536
"""People seen, and people served, in one report."""


class LineState(StrEnum):
    """Whether the line moves.

    HELD: nothing is left, but units that are reserved and not paid for may come back. The two last are the reasons for
    which a line has ended.
    """

    OPEN = "open"
    HELD = "held"
    PAUSED = "paused"
    SOLD_OUT = "sold_out"
    CLOSED = "closed"


ENDED = frozenset({LineState.SOLD_OUT, LineState.CLOSED})


class RoomJoin(msgspec.Struct, frozen=True, gc=False):
    """A buyer who wants a place. `lost` is the place he had whose turn has passed, -1 for none: he gets a new one."""

    buyer: str
    lost: int = -1


class RoomPlaces(msgspec.Struct, frozen=True):
    """The places of those who joined, in their order; -1 for whom there was no room."""

    room_id: str
    places: tuple[int, ...]


class RoomCall(msgspec.Struct, frozen=True, gc=False):
    """One move of the line: the numbers from `start` up to `stop` were called at `at_ms`, but for those `skipped`."""

    start: int
    stop: int
    at_ms: int
    skipped: tuple[int, ...] = ()


class RoomView(msgspec.Struct, frozen=True):
    """A room at one moment, by the engine's clock.

    `joined` counts places. `drawn` is how many of them the lot was drawn for, by `seed`; -1 before the opening. All
    numbers below `serving` have been called. `outstanding` counts passes that were neither used nor have expired.
    `credit` (people), `pace` (numbers a second), `step` and `stepped_ms` are the keeper's. `calls` are those after a
    position given before, of the time in which passes live; `position` is where to go on from, and `more` says to do
    so at once.
    """

    room_id: str
    at_ms: int
    joined: int
    drawn: int = -1
    seed: str = ""
    serving: int = 0
    state: LineState = LineState.OPEN
    outstanding: int = 0
    served: int = 0
    served_units: int = 0
    credit: float = 0.0
    pace: float = 0.0
    step: int = 0
    stepped_ms: int = 0
    calls: tuple[RoomCall, ...] = ()
    position: str = "-"
    more: bool = False


class RoomStep(msgspec.Struct, frozen=True):
    """What a keeper decided from the view whose `step` this names; void when another was first.

    The numbers from the view's `serving` up to `stop` are called, but for those `skipped`; each of the others has a
    pass that counts as outstanding for `pass_ms`.
    """

    room_id: str
    step: int
    stop: int
    skipped: tuple[int, ...]
    state: LineState
    credit: float
    pace: float
    pass_ms: int


class RoomReport(msgspec.Struct, frozen=True):
    """What a counter noticed: the places of people who asked, and the numbers of those who bought, with their units."""

    room_id: str
    seen: tuple[int, ...] = ()
    served: tuple[int, ...] = ()
    served_units: int = 0


class RoomBeats(msgspec.Struct, frozen=True):
    """Places seen after a position given before, by the moment at which that was reported; `more`: go on at once."""

    seen: tuple[tuple[int, tuple[int, ...]], ...]
    position: str
    more: bool = False


class CounterLoad(msgspec.Struct, frozen=True, gc=False):
    """What one counter can take and how hard pressed it is.

    `rate_max` is in requests a second, 0 when it has no limit. `queue_share` is how full its queue is, and
    `refused_share` which part of the purchases of the last second it had to refuse for want of capacity; both 0 to 1.
    """

    replica_id: str
    rate_max: float
    queue_share: float = 0.0
    refused_share: float = 0.0
