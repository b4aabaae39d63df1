"""Who may come in, and when: the replica's own capacity and the rate of each caller, O(1) for a request."""

import math
from collections import OrderedDict
from typing import Protocol

from springtide.ports import Clock, Timer

BURST_S = 0.02
"""How much of an idle moment may be caught up at once, in seconds of the rate: below what a buyer can notice.
"""

CALLERS_MAX = 50_000
"""Callers remembered in each of two generations; a forgotten one has a full allowance again."""

_GOLDEN = 0.6180339887498949
_EPSILON = 1e-9


class Waiter(Protocol):
    """Somebody who waits for a turn."""

    def admitted(self) -> None:
        """The turn has come."""


class CapacityQueue:
    """At most `rate_max` requests a second, in the order of arrival; nobody waits longer than `wait_s_max`.

    A token bucket that holds `BURST_S` of the rate (at least 1). Who would wait longer is refused at once, so
    at most `depth_max` wait. With tokens there, nothing is queued and no timer is set.
    """

    __slots__ = ("_burst", "_clock", "_filled_s", "_rate", "_timer", "_tokens", "_waiting", "depth_max")

    def __init__(self, clock: Clock, rate_max: float, wait_s_max: float) -> None:
        """`rate_max` is in requests a second."""
        self._clock = clock
        self._rate = rate_max
        self._burst = max(1.0, rate_max * BURST_S)
        self._tokens = self._burst
        self._filled_s = clock.monotonic_s()
        self._waiting: OrderedDict[Waiter, None] = OrderedDict()
        self._timer: Timer | None = None
        self.depth_max = math.floor(rate_max * wait_s_max)

    @property
    def depth(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def enter(self, waiter: Waiter, now_s: float) -> bool | None:
        """True: come in. None: `waiter.admitted` is called when its turn comes. False: come back later."""
        if not self._waiting:
            self._fill(now_s)
            if self._tokens >= 1.0 - _EPSILON:
                self._tokens -= 1.0
                return True
        if len(self._waiting) >= self.depth_max:
            return False
        self._waiting[waiter] = None
        if self._timer is None:
            self._wait()
        return None

    def leave(self, waiter: Waiter) -> bool:
        """Give up a place in the queue, at once for those behind it. False when the waiter had none."""
        return self._waiting.pop(waiter, self) is None

    def _fill(self, now_s: float) -> None:
        passed_s = now_s - self._filled_s
        if passed_s > 0:
            self._filled_s = now_s
            self._tokens = min(self._burst, self._tokens + passed_s * self._rate)

    def _wait(self) -> None:
        missing = max(0.0, 1.0 - self._tokens)
        self._timer = self._clock.call_later(missing / self._rate, self._serve)

    def _serve(self) -> None:
        self._timer = None
        self._fill(self._clock.monotonic_s())
        while self._waiting and self._tokens >= 1.0 - _EPSILON:
            self._tokens -= 1.0
            waiter, _ = self._waiting.popitem(last=False)
            waiter.admitted()
        # A waiter that comes back at once may have queued again, and set the timer, while it was served.
        if self._waiting and self._timer is None:
            self._wait()


class Rates:
    """A rate and a burst for each caller (a buyer, or an address), by the generic cell rate algorithm (ITU-T I.371).

    It takes one number for each: the moment at which the caller's allowance is full again. The oldest
    generation of callers is forgotten as a whole.
    """

    __slots__ = ("_full_at", "_full_at_before", "_step_s", "_tolerance_s", "_until_s", "callers_max")

    def __init__(self, rate_max: float, burst_max: int, callers_max: int = CALLERS_MAX) -> None:
        """`rate_max` requests a second for ever, and up to `burst_max` at once after a pause."""
        self._step_s = 1.0 / rate_max
        self._tolerance_s = (burst_max - 1) * self._step_s
        self.callers_max = callers_max
        self._full_at: dict[str, float] = {}
        self._full_at_before: dict[str, float] = {}
        self._until_s = float("-inf")

    def __len__(self) -> int:
        """How many callers are remembered; one in both generations counts twice."""
        return len(self._full_at) + len(self._full_at_before)

    def wait_s(self, caller: str, now_s: float) -> float:
        """0 and one request is taken from the caller's allowance; or the seconds until one is there again."""
        if now_s >= self._until_s:
            self._age(now_s)
        full_at = self._full_at.get(caller)
        if full_at is None:
            full_at = self._full_at_before.get(caller, now_s)
            if len(self._full_at) >= self.callers_max:
                self._age(now_s)
        if full_at <= now_s:
            self._full_at[caller] = now_s + self._step_s
            return 0.0
        over_s = full_at - now_s - self._tolerance_s
        if over_s > _EPSILON:
            self._full_at[caller] = full_at
            return over_s
        self._full_at[caller] = full_at + self._step_s
        return 0.0

    def _age(self, now_s: float) -> None:
        """Begin a new generation. It need not last longer than the longest time in which an allowance is full again."""
        self._full_at_before = self._full_at
        self._full_at = {}
        self._until_s = now_s + self._tolerance_s + self._step_s


class RetrySpread:
    """Moments to come back, spread evenly, so that those refused together do not return together.

    Multiples of the golden ratio modulo 1: any run of them is spread evenly, which random numbers are only on
    average.
    """

    __slots__ = ("_at",)

    def __init__(self, start: float) -> None:
        """`start`, in [0, 1), differs between replicas."""
        self._at = start

    def retry_after_s(self, at_least_s: float, span_s: float) -> int:
        """Whole seconds for a `Retry-After` header: at least 1, and the wait plus up to `span_s` more."""
        self._at = (self._at + _GOLDEN) % 1.0
        return max(1, math.ceil(at_least_s + self._at * span_s))
