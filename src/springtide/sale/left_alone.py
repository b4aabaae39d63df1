"""Buckets that failed: each is left alone for a while, so that a dead shard keeps nobody waiting."""

import msgspec

from springtide.ports import Clock
from springtide.sale.backoff import Backoff

PLACES_MAX = 10_000
"""Failing buckets that are remembered; beyond, all are tried again."""

Place = tuple[str, int]
"""A sale and one of its buckets."""


class _Failing(msgspec.Struct):
    backoff: Backoff
    until_s: float = 0.0


class LeftAlone:
    """The failing buckets of one kind of work."""

    def __init__(self, clock: Clock, first_s: float, max_s: float) -> None:
        """One that fails is left alone for `first_s`, then for twice as long, up to `max_s`."""
        self._clock = clock
        self._first_s = first_s
        self._max_s = max_s
        self._failing: dict[Place, _Failing] = {}

    def __len__(self) -> int:
        """How many failed when they were last tried."""
        return len(self._failing)

    def __contains__(self, place: Place) -> bool:
        """Whether this one failed when it was last tried; its time may have come again."""
        return place in self._failing

    def now(self) -> set[Place]:
        """Those that should not be tried yet."""
        now_s = self._clock.monotonic_s()
        return {place for place, failing in self._failing.items() if failing.until_s > now_s}

    def failed(self, place: Place) -> bool:
        """Leave it alone; whether it had worked until now."""
        is_new = place not in self._failing
        if is_new and len(self._failing) >= PLACES_MAX:
            self._failing.clear()
        failing = self._failing.setdefault(place, _Failing(Backoff(self._first_s, self._max_s)))
        failing.until_s = self._clock.monotonic_s() + failing.backoff.next_s()
        return is_new

    def worked(self, place: Place) -> None:
        """It is well."""
        self._failing.pop(place, None)
