"""Demand of earlier seasons: collected in bins, bounded, and the few bins of it that a decision needs.

A season is what demand repeats after, a day by default. The loop adds every traffic sample, and puts `near` (the bins
around the same time of earlier seasons) and `usual` (what demand of the last hours was like) into the snapshot. What is
kept fits into one remembered value of the fleet's state.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from springtide.model import SeasonPoint, UsualDemand

BIN_MS = 300_000
"""The length of a bin."""

SEASONS = 7
"""How many earlier seasons a decision looks at: with days, the same time on each day of a week."""

RECENT_BINS = 72
"""What is usual is taken from so many bins: six hours."""

RECENT_MIN = 6
"""Fewer bins tell nothing of what is usual."""

RISE_SHARE = 0.9
"""The usual rise is exceeded in a tenth of the bins."""

PEAK_SHARE = 0.95
"""The usual peak is exceeded in a twentieth of the bins."""

RISE_MAX = 3.0
"""A rise of more than so many times the median demand is no habit but an event: a reserve for it is never usual."""

BINS_MAX = 2_400
"""A little more than eight days of bins; some 100 kB as JSON."""


class SeasonBook:
    """Collects samples into bins. `points` are the bins that are complete, oldest first."""

    def __init__(self, ahead_ms: int, points: Sequence[SeasonPoint] = ()) -> None:
        """Go on from what was kept, in any order. `ahead_ms` is the time that new capacity takes."""
        self._ahead_ms = ahead_ms
        self._lows: deque[tuple[int, float]] = deque()
        self._rise = 0.0
        self._usual: UsualDemand | None = None
        self._points: list[SeasonPoint] = []
        self._starts: list[int] = []
        self._at_ms = 0
        self._sum = 0.0
        self._peak = 0.0
        self._count = 0
        self._announced = False
        self.merge(points)

    @property
    def points(self) -> tuple[SeasonPoint, ...]:
        """The complete bins."""
        return tuple(self._points)

    def add(self, at_ms: int, requests_per_s: float, *, announced: bool = False) -> None:
        """Count a sample, not older than the one before; an older one is left out.

        A bin in which an event was `announced` is left out as well: it is the calendar that knows when that repeats.
        """
        begins = at_ms - at_ms % BIN_MS
        if begins < self._at_ms:
            return
        if begins > self._at_ms:
            self._close()
            self._at_ms = begins
        if announced:
            self._lows.clear()
        else:
            self._rise = max(self._rise, self._risen(at_ms, requests_per_s))
        self._sum += requests_per_s
        self._peak = max(self._peak, requests_per_s)
        self._count += 1
        self._announced = self._announced or announced

    def merge(self, points: Iterable[SeasonPoint]) -> None:
        """Add bins from elsewhere, a leader before this one or an import; what is here already counts."""
        known = {point.at_ms: point for point in points} | {point.at_ms: point for point in self._points}
        self._points = [known[at_ms] for at_ms in sorted(known)][-BINS_MAX:]
        self._starts = [point.at_ms for point in self._points]
        self._usual = _usual(self._points)

    @property
    def usual(self) -> UsualDemand | None:
        """What the last RECENT_BINS were like; None when fewer than RECENT_MIN are known."""
        return self._usual

    def near(self, now_ms: int, season_ms: int) -> tuple[SeasonPoint, ...]:
        """Of each earlier season the bins from this moment until `ahead_ms` later, oldest first.

        At most SEASONS x (2 + `ahead_ms` / BIN_MS). Empty when seasons are not longer than two bins: nothing repeats.
        """
        if season_ms <= 2 * BIN_MS:
            return ()
        found: list[SeasonPoint] = []
        for number in range(SEASONS, 0, -1):
            then = now_ms - number * season_ms
            first = bisect_left(self._starts, then - then % BIN_MS)
            found += self._points[first : bisect_left(self._starts, then + self._ahead_ms)]
        return tuple(found)

    def _risen(self, at_ms: int, rate: float) -> float:
        """By how much demand lies above its least within the time that capacity takes."""
        while self._lows and self._lows[-1][1] >= rate:
            self._lows.pop()
        self._lows.append((at_ms, rate))
        while self._lows[0][0] < at_ms - self._ahead_ms:
            self._lows.popleft()
        return rate - self._lows[0][1]

    def _close(self) -> None:
        if self._count and not self._announced:
            self._points.append(SeasonPoint(self._at_ms, self._sum / self._count, self._peak, self._rise))
            self._starts.append(self._at_ms)
            if len(self._points) > BINS_MAX:
                del self._points[0], self._starts[0]
            self._usual = _usual(self._points)
        self._sum, self._peak, self._rise, self._count, self._announced = 0.0, 0.0, 0.0, 0, False


def to_bytes(book: SeasonBook) -> bytes:
    """What `FleetState.remember` keeps."""
    points = book.points
    rows = [(p.at_ms, round(p.mean_per_s, 3), round(p.peak_per_s, 3), round(p.rise_per_s, 3)) for p in points]
    return msgspec.json.encode(rows)


def from_bytes(kept: bytes | None) -> tuple[SeasonPoint, ...]:
    """The bins of `to_bytes`; none when nothing was kept. Raises ValueError for anything else."""
    if not kept:
        return ()
    return tuple(SeasonPoint(*point) for point in msgspec.json.decode(kept, type=list[tuple[int, float, float, float]]))


def _usual(points: Sequence[SeasonPoint]) -> UsualDemand | None:
    recent = points[-RECENT_BINS:]
    if len(recent) < RECENT_MIN:
        return None
    rises = sorted(point.rise_per_s for point in recent)
    peaks = sorted(point.peak_per_s for point in recent)
    last = len(recent) - 1
    median = sorted(point.mean_per_s for point in recent)[len(recent) // 2]
    rise = min(rises[min(last, int(RISE_SHARE * len(recent)))], RISE_MAX * median)
    return UsualDemand(rise, peaks[min(last, int(PEAK_SHARE * len(recent)))], len(recent))
