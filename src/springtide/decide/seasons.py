"""Demand of earlier seasons: collected in bins, bounded, and the few bins of it that a decision needs.

A season is what demand repeats after, a day by default. The loop adds every traffic sample, and puts `near` into the
snapshot: the bins around the same time of earlier seasons, and the last hour. What is kept fits into one remembered
value of the fleet's state.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

import msgspec

from springtide.model import SeasonPoint

BIN_MS = 300_000
"""The length of a bin."""

SEASONS = 7
"""How many earlier seasons a decision looks at: with days, the same time on each day of a week."""

RECENT_MS = 3_600_000
"""How much of the present season a decision sees in bins."""

BINS_MAX = 2_400
"""A little more than eight days of bins; some 100 kB as JSON."""


class SeasonBook:
    """Collects samples into bins. `points` are the bins that are complete, oldest first."""

    def __init__(self, points: Sequence[SeasonPoint] = (), bin_ms: int = BIN_MS) -> None:
        """Go on from what was kept, in any order. Raises ValueError for a bin below 1 ms."""
        if bin_ms < 1:
            raise ValueError(f"a bin of {bin_ms} ms holds nothing; give at least 1")
        self._bin_ms = bin_ms
        self._points: list[SeasonPoint] = []
        self._starts: list[int] = []
        self._at_ms = 0
        self._sum = 0.0
        self._peak = 0.0
        self._count = 0
        self.merge(points)

    @property
    def points(self) -> tuple[SeasonPoint, ...]:
        """The complete bins."""
        return tuple(self._points)

    def add(self, at_ms: int, requests_per_s: float) -> None:
        """Count a sample, not older than the one before; an older one is left out."""
        begins = at_ms - at_ms % self._bin_ms
        if begins < self._at_ms:
            return
        if begins > self._at_ms:
            self._close()
            self._at_ms = begins
        self._sum += requests_per_s
        self._peak = max(self._peak, requests_per_s)
        self._count += 1

    def merge(self, points: Iterable[SeasonPoint]) -> None:
        """Add bins from elsewhere, a leader before this one or an import; what is here already counts."""
        known = {point.at_ms: point for point in points} | {point.at_ms: point for point in self._points}
        self._points = [known[at_ms] for at_ms in sorted(known)][-BINS_MAX:]
        self._starts = [point.at_ms for point in self._points]

    def near(self, now_ms: int, season_ms: int, ahead_ms: int) -> tuple[SeasonPoint, ...]:
        """The last hour's bins, and of each earlier season those from now until `ahead_ms` later, and one around.

        Oldest first. A `season_ms` of 0 means that nothing repeats: the last hour alone.
        """
        found: list[SeasonPoint] = []
        spans = [(now_ms - RECENT_MS, now_ms)]
        if season_ms > RECENT_MS:
            earlier = (now_ms - number * season_ms for number in range(SEASONS, 0, -1))
            spans[:0] = [(then - self._bin_ms, then + ahead_ms + self._bin_ms) for then in earlier]
        for begins, ends in spans:
            first = bisect_left(self._starts, begins - begins % self._bin_ms)
            found += self._points[first : bisect_left(self._starts, ends)]
        return tuple(found)

    def _close(self) -> None:
        if self._count:
            self._points.append(SeasonPoint(self._at_ms, self._sum / self._count, self._peak))
            self._starts.append(self._at_ms)
            if len(self._points) > BINS_MAX:
                del self._points[0], self._starts[0]
        self._sum, self._peak, self._count = 0.0, 0.0, 0


def to_bytes(book: SeasonBook) -> bytes:
    """What `FleetState.remember` keeps."""
    return msgspec.json.encode([(p.at_ms, round(p.mean_per_s, 3), round(p.peak_per_s, 3)) for p in book.points])


def from_bytes(kept: bytes | None) -> tuple[SeasonPoint, ...]:
    """The bins of `to_bytes`; none when nothing was kept. Raises ValueError for anything else."""
    if not kept:
        return ()
    return tuple(SeasonPoint(*point) for point in msgspec.json.decode(kept, type=list[tuple[int, float, float]]))
