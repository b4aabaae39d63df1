"""Client-side limits on calls to a cloud's API: a token bucket for each API, and a closed door after a throttle error.

A cloud counts calls per account, region and API. A caller that waits for its turn here is not throttled there; and an
API that the cloud has throttled is left alone until it may be called again, while its neighbours go on.
"""

from collections.abc import Mapping

import msgspec

from springtide.errors import CloudThrottled
from springtide.ports import Clock

WINDOW_MS = 60_000
"""ECS counts by the calendar minute: what is throttled in minute T may be called again in T+1.

https://help.aliyun.com/zh/ecs/developer-reference/api-throttling
"""

WAIT_S_MAX = 45.0
"""Who would have to wait for longer is told so instead, with the time to wait."""


class Rate(msgspec.Struct, frozen=True):
    """At most `burst` units at once, and `per_s` a second after that: in any minute, `burst + 60 * per_s` of them."""

    burst: float
    per_s: float


class _Bucket:
    """`left` may be below zero: units that were promised to callers who still wait."""

    def __init__(self, rate: Rate, now_s: float) -> None:
        self.rate = rate
        self.left = rate.burst
        self.seen_s = now_s
        self.closed_until_ms = 0

    def refill(self, now_s: float) -> None:
        self.left = min(self.rate.burst, self.left + (now_s - self.seen_s) * self.rate.per_s)
        self.seen_s = now_s


class ApiRates:
    """A bucket for each API of one account in one region. An API without a rate of its own has `usual`."""

    def __init__(self, clock: Clock, rates: Mapping[str, Rate], usual: Rate, wait_s_max: float = WAIT_S_MAX) -> None:
        """All buckets are full at first; there is one for each API that is ever asked for."""
        self._clock = clock
        self._rates = dict(rates)
        self._usual = usual
        self._wait_s_max = wait_s_max
        self._buckets: dict[str, _Bucket] = {}

    async def take(self, api: str, units: int = 1) -> None:
        """Wait for the turn of one call, which counts for so many units.

        Raises CloudThrottled, without having taken anything, when the turn is further away than the limit, or the API
        is closed.
        """
        bucket = self._bucket(api)
        closed_s = self.closed_s(api)
        if closed_s > 0:
            raise CloudThrottled(f"{api} was throttled: it may be called again in {closed_s:.1f} s", closed_s)
        bucket.refill(self._clock.monotonic_s())
        wait_s = max(0.0, units - bucket.left) / bucket.rate.per_s
        if wait_s > self._wait_s_max:
            raise CloudThrottled(f"{api} is called as often as it may: repeat in {wait_s:.1f} s", wait_s)
        bucket.left -= units
        if wait_s > 0:
            await self._clock.sleep(wait_s)
            closed_s = self.closed_s(api)
            if closed_s > 0:
                raise CloudThrottled(f"{api} was throttled meanwhile: repeat in {closed_s:.1f} s", closed_s)

    def close(self, api: str, retry_after_s: float = 0.0, window_ms: int = WINDOW_MS) -> float:
        """The cloud has throttled this API: leave it alone; for so many seconds.

        That is until the next window of the clock begins, or for as long as the cloud said if that is longer.
        """
        bucket = self._bucket(api)
        now_ms = self._clock.now_ms()
        until_ms = max((now_ms // window_ms + 1) * window_ms, now_ms + round(retry_after_s * 1000))
        bucket.closed_until_ms = max(bucket.closed_until_ms, until_ms)
        return self.closed_s(api)

    def closed_s(self, api: str) -> float:
        """For how long an API stays closed; 0: it is open."""
        bucket = self._buckets.get(api)
        return max(0.0, (bucket.closed_until_ms - self._clock.now_ms()) / 1000) if bucket else 0.0

    def _bucket(self, api: str) -> _Bucket:
        if api not in self._buckets:
            self._buckets[api] = _Bucket(self._rates.get(api, self._usual), self._clock.monotonic_s())
        return self._buckets[api]
