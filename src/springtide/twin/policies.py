"""The autoscalers that Springtide is compared with, from their documentation: HPA v2, and KEDA with cron windows.

Sources, by rule: Kubernetes documentation v1.33, "Horizontal Pod Autoscaling" (algorithm details, stabilization window,
scaling policies, default behavior) and API reference autoscaling/v2 (HPAScalingRules); KEDA documentation 2.17,
"Scaling Deployments, StatefulSets & Custom Resources", ScaledObject specification, and its "Cron" and "Prometheus"
scalers.

What is left out, in their favour: nodes are ordered the moment that a pod has no place and given back the moment they
are empty (the cluster autoscaler looks every 10 s, and waits 10 min before it gives back), new pods serve the moment
they are ready, and pods are packed on as few nodes as they need. Both scale by requests/s, an External metric with an
AverageValue target, for which pods that are not ready play no part: the documentation's rules for missing and not-ready
pods are about Resource and Pods metrics.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Protocol

import msgspec

from springtide.model import CalendarEvent

TOLERANCE = 0.1
"""`--horizontal-pod-autoscaler-tolerance`: a ratio within a tenth of 1 changes nothing."""

SYNC_MS = 15_000
"""`--horizontal-pod-autoscaler-sync-period`."""

STABILIZATION_MS = 300_000
"""`scaleDown.stabilizationWindowSeconds`; `scaleUp` has none."""

_MINUTE_MS = 60_000


class Seen(msgspec.Struct, frozen=True):
    """What a policy can know: the replicas it asked for last, and the mean requests/s between two moments in ms."""

    now_ms: int
    replicas: int
    mean_per_s: Callable[[int, int], float]


class Counting(Protocol):
    """A policy that says how many replicas there should be, every `sync_ms`."""

    sync_ms: int

    def decide(self, seen: Seen) -> int:
        """How many replicas there should be now."""


class Unit(StrEnum):
    """What the value of a scaling policy counts."""

    PODS = "Pods"
    PERCENT = "Percent"


class Rate(msgspec.Struct, frozen=True):
    """One scaling policy: at most so much change within `period_ms`. Of several, the one that allows most counts."""

    unit: Unit
    value: int
    period_ms: int = 15_000


DEFAULT_UP = (Rate(Unit.PERCENT, 100), Rate(Unit.PODS, 4))
DEFAULT_DOWN = (Rate(Unit.PERCENT, 100),)
FAST_UP = (Rate(Unit.PERCENT, 900),)
"""Ten times as many at each sync: 900 percent is the example for "scale up as fast as possible" in KEP-853."""


class HpaSettings(msgspec.Struct, frozen=True):
    """One HorizontalPodAutoscaler.

    `target` is the AverageValue in requests/s. The metric is the mean rate over `window_ms` as of the last scrape,
    which is `scrape_age_ms` old when it is used: half of the 15 s between scrapes. The documentation of the Prometheus
    scaler has a window of 2 minutes.
    """

    target: float
    replicas_min: int = 1
    replicas_max: int = 10_000
    window_ms: int = 120_000
    scrape_age_ms: int = 7_500
    up: tuple[Rate, ...] = DEFAULT_UP
    down: tuple[Rate, ...] = DEFAULT_DOWN
    up_stabilization_ms: int = 0
    down_stabilization_ms: int = STABILIZATION_MS


class CronWindow(msgspec.Struct, frozen=True):
    """A cron trigger's window: `replicas` from `start_ms` to `end_ms`, both whole minutes."""

    start_ms: int
    end_ms: int
    replicas: int


def desired_replicas(current: int, value: float, target: float, tolerance: float = TOLERANCE) -> int:
    """`ceil(current x value / target)`, where value and target are per replica; `current` within the tolerance."""
    ratio = value / target
    return current if abs(ratio - 1.0) <= tolerance else math.ceil(current * ratio - 1e-9)


class Hpa:
    """HPA v2 on requests/s, with the behavior rules: stabilization first, then the rates, then the bounds."""

    sync_ms = SYNC_MS

    def __init__(self, settings: HpaSettings) -> None:
        """Begin without a past."""
        self.settings = settings
        self._recommended: deque[tuple[int, int]] = deque()
        self._changes: deque[tuple[int, int]] = deque()

    def decide(self, seen: Seen) -> int:
        """The number of replicas after this sync."""
        return self.settle(seen, self.recommend(seen))

    def recommend(self, seen: Seen) -> int:
        """What the metric alone asks for."""
        until_ms = seen.now_ms - self.settings.scrape_age_ms
        rate = seen.mean_per_s(until_ms - self.settings.window_ms, until_ms)
        return desired_replicas(seen.replicas, rate / seen.replicas, self.settings.target)

    def settle(self, seen: Seen, recommended: int) -> int:
        """A recommendation after stabilization, rates and bounds."""
        wanted = self._bounded(self._rated(seen, self._stabilized(seen, recommended)))
        if wanted != seen.replicas:
            self._changes.append((seen.now_ms, wanted - seen.replicas))
        return wanted

    def _bounded(self, count: int) -> int:
        return min(max(count, self.settings.replicas_min), self.settings.replicas_max)

    def _stabilized(self, seen: Seen, recommended: int) -> int:
        """No more than the least of the window for going up, no less than the most of the one for going down."""
        up_ms, down_ms = self.settings.up_stabilization_ms, self.settings.down_stabilization_ms
        while self._recommended and self._recommended[0][0] <= seen.now_ms - max(up_ms, down_ms):
            self._recommended.popleft()
        self._recommended.append((seen.now_ms, recommended))
        ups = [count for at, count in self._recommended if at > seen.now_ms - up_ms]
        downs = [count for at, count in self._recommended if at > seen.now_ms - down_ms]
        least = min(ups, default=recommended)
        most = max(downs, default=recommended)
        return min(max(seen.replicas, least), most)

    def _rated(self, seen: Seen, wanted: int) -> int:
        longest = max(rate.period_ms for rate in (*self.settings.up, *self.settings.down))
        while self._changes and self._changes[0][0] <= seen.now_ms - longest:
            self._changes.popleft()
        if wanted > seen.replicas:
            limit = max(self._limit(seen, rate, 1) for rate in self.settings.up)
            return min(wanted, max(limit, seen.replicas))
        limit = min(self._limit(seen, rate, -1) for rate in self.settings.down)
        return max(wanted, min(limit, seen.replicas))

    def _limit(self, seen: Seen, rate: Rate, sign: int) -> int:
        """How far one scaling policy lets the number go, from what it was when the policy's period began."""
        since = seen.now_ms - rate.period_ms
        changed = sum(change for at, change in self._changes if at > since and change * sign > 0)
        began = seen.replicas - changed
        if rate.unit is Unit.PODS:
            return began + sign * rate.value
        grown = began * (1 + sign * rate.value / 100)
        return math.ceil(grown - 1e-9) if sign > 0 else int(grown)


class Keda:
    """KEDA: an HPA whose triggers are requests/s and cron windows; the one that asks for most counts.

    The cron scaler reports `desiredReplicas` within its window and 1 outside, as an External metric with a target of 1:
    the rise at the start of a window is subject to the same scale-up rates.
    """

    sync_ms = SYNC_MS

    def __init__(self, settings: HpaSettings, windows: Sequence[CronWindow]) -> None:
        """Begin without a past."""
        self._hpa = Hpa(settings)
        self._windows = tuple(windows)

    def decide(self, seen: Seen) -> int:
        """The number of replicas after this sync."""
        open_now = (w.replicas for w in self._windows if w.start_ms <= seen.now_ms < w.end_ms)
        cron = desired_replicas(seen.replicas, max(open_now, default=1) / seen.replicas, 1.0)
        return self._hpa.settle(seen, max(self._hpa.recommend(seen), cron))


def cron_windows(calendar: Sequence[CalendarEvent], target: float, ahead_ms: int) -> list[CronWindow]:
    """A window for each event: its peak at `target` requests/s a replica, from `ahead_ms` before its opening.

    Windows begin and end at whole minutes, as cron has them.
    """
    return [
        CronWindow(
            start_ms=(event.opens_ms - ahead_ms) // _MINUTE_MS * _MINUTE_MS,
            end_ms=-(-(event.opens_ms + event.lasts_ms) // _MINUTE_MS) * _MINUTE_MS,
            replicas=math.ceil(event.peak_requests_per_s / target),
        )
        for event in calendar
    ]
