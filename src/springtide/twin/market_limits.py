"""How often an account may call: counted by minutes of the clock, and by buckets for ECI; with what was throttled."""

import math
from collections import Counter

from springtide.twin.kernel import Kernel
from springtide.twin.market_errors import Throttled
from springtide.twin.market_settings import ApiLimits

MINUTE_MS = 60_000
CREATE_GROUP, DELETE_GROUP = "CreateContainerGroup", "DeleteContainerGroup"
ALL_APIS = ""


class ApiMeter:
    """Counts the calls of one account in one region. A throttled API never throttles another."""

    def __init__(self, kernel: Kernel, limits: ApiLimits) -> None:
        """Nothing has been called."""
        self._kernel = kernel
        self._limits = limits
        self._minutes: dict[str, tuple[int, int]] = {}
        self._buckets: dict[str, tuple[int, float]] = {}
        self._closed_until_ms: dict[str, int] = {}
        self.calls: Counter[str] = Counter()
        """Calls by action, the throttled ones included."""
        self.throttled: Counter[str] = Counter()
        """Calls that were throttled, by action."""

    def throttle(self, action: str, until_ms: int) -> None:
        """Throttle every call of an action (ALL_APIS: of any) until then."""
        self._closed_until_ms[action] = until_ms

    def admit(self, action: str, count: int = 1) -> None:
        """Count calls. Raises Throttled when there are too many.

        Source: "throttled in minute T, allowed again in T+1", per account, region and API (ECS, "API throttling").
        """
        if action in {CREATE_GROUP, DELETE_GROUP}:
            if self.draw(action, count, count) < count:
                raise AssertionError("a bucket gives all that was asked, or raises")
            return
        self._check_open(action, count)
        limit = self._limits.calls_per_min.get(action, self._limits.calls_per_min_else)
        if not self._fits(action, count, limit):
            raise self._refusal(action, count, self._next_minute_s(), "Throttling.User")
        self.calls[action] += count

    def create(self, action: str, count: int) -> None:
        """Count machines that an admitted call makes. Raises Throttled beyond the account's 5,000 a minute."""
        if not self._fits("creations", count, self._limits.creations_per_min):
            self.throttled[action] += 1
            raise Throttled(action, self._next_minute_s(), "Throttling")

    def draw(self, action: str, count_min: int, count: int) -> int:
        """As many calls as the action's bucket has, up to `count`. Raises Throttled for fewer than `count_min`.

        Source: ECI's create and delete each have a burst of 100 calls and 20 more a second.
        """
        self._check_open(action, count)
        level = self._level(action)
        granted = min(count, math.floor(level + 1e-9))
        if granted < min(count_min, count):
            missing = min(count_min, count, self._limits.eci_burst) - level
            raise self._refusal(action, count, max(missing, 1.0) / self._limits.eci_per_s, "Throttling.User")
        self._buckets[action] = self._kernel.now_ms, level - granted
        self.calls[action] += granted
        return granted

    def _level(self, action: str) -> float:
        at_ms, level = self._buckets.get(action, (self._kernel.now_ms, float(self._limits.eci_burst)))
        filled = level + (self._kernel.now_ms - at_ms) / 1000 * self._limits.eci_per_s
        return min(float(self._limits.eci_burst), filled)

    def _fits(self, name: str, count: int, limit: int) -> bool:
        minute = self._kernel.now_ms // MINUTE_MS
        of, used = self._minutes.get(name, (minute, 0))
        used = used if of == minute else 0
        if used + count > limit:
            return False
        self._minutes[name] = minute, used + count
        return True

    def _check_open(self, action: str, count: int) -> None:
        until_ms = max(self._closed_until_ms.get(action, 0), self._closed_until_ms.get(ALL_APIS, 0))
        if self._kernel.now_ms < until_ms:
            raise self._refusal(action, count, (until_ms - self._kernel.now_ms) / 1000, "Throttling")

    def _refusal(self, action: str, count: int, after_s: float, code: str) -> Throttled:
        self.calls[action] += count
        self.throttled[action] += count
        return Throttled(action, after_s, code)

    def _next_minute_s(self) -> float:
        return (MINUTE_MS - self._kernel.now_ms % MINUTE_MS) / 1000
