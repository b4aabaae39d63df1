"""Demand history and sale calendar → the demand within the horizon.

The calendar is believed as announced. The trend is what the balancer saw, drawn on to the horizon; it is all
there is when nothing was announced.
"""

import math
from collections.abc import Sequence

from springtide.model import CalendarEvent, DemandRange, FleetPolicy, TrafficSample

TREND_MS = 8_000
"""How far back a trend looks: long enough to tell growth from noise, short enough to follow a crowd."""

LEVEL_MS = 2_000
"""The window of the recent level. A sale doubles in seconds, so a longer mean would lag behind it."""

GROWTH_MAX = 2.0
"""A line drawn through a step has no end: it is believed up to this multiple of what was seen."""

_SAMPLES_MIN = 4  # a slope needs three points, its error one more
_DOUBT = 2.0  # growth counts when it exceeds this many standard errors: about 97.5% sure


def forecast(
    traffic: Sequence[TrafficSample], calendar: Sequence[CalendarEvent], now_ms: int, horizon_ms: int
) -> DemandRange:
    """Requests per second to expect from now until `horizon_ms` later.

    `traffic` is oldest first. The high end is never below the newest sample: a rise counts at once.
    """
    announced, names = announced_peak(calendar, now_ms, now_ms + horizon_ms)
    if not traffic:
        reason = f"announced: {names}" if names else "nothing seen yet and nothing announced"
        return DemandRange(low=0.0, likely=announced, high=announced, reason=reason)
    newest = traffic[-1]
    recent = [sample.requests_per_s for sample in traffic if sample.at_ms > newest.at_ms - LEVEL_MS]
    level = max(sum(recent) / len(recent), newest.requests_per_s)
    falling = newest.requests_per_s < sum(recent) / len(recent)
    drawn_on = level if falling else level + growth_per_s(traffic) * horizon_ms / 1000
    # What the merchant announced bounds the line, never what was seen.
    bound = announced if announced >= level else level * GROWTH_MAX
    trend = max(level, min(drawn_on, bound))
    return DemandRange(
        low=min(recent),
        likely=max(level, announced),
        high=max(trend, announced),
        reason=_reason(level, trend, announced, names),
    )


def history_ms(policy: FleetPolicy) -> int:
    """How much history of traffic a snapshot should have: TREND_MS, or sixteen ticks when those are longer."""
    return max(TREND_MS, 16 * (policy.stale_ms // 3))


def announced_peak(calendar: Sequence[CalendarEvent], from_ms: int, until_ms: int) -> tuple[float, str]:
    """The most announced for any one moment of the window, in requests/s, and the names of those events.

    An event demands its peak from `ready_ms` before its opening until it ends; events at the same moment add
    up.
    """
    spans = [(event.opens_ms - event.ready_ms, event.opens_ms + event.lasts_ms, event) for event in calendar]
    inside = [span for span in spans if span[0] <= until_ms and span[1] > from_ms]
    peak, names = 0.0, ""
    # The sum can only rise where an event begins, so those moments are all that need looking at.
    for moment in sorted({max(begins, from_ms) for begins, _, _ in inside}):
        open_then = [event for begins, ends, event in inside if begins <= moment < ends]
        total = sum(event.peak_requests_per_s for event in open_then)
        if total > peak:
            peak, names = total, ", ".join(event.name for event in open_then)
    return peak, names


def growth_per_s(traffic: Sequence[TrafficSample]) -> float:
    """The growth that goes on now and is beyond doubt, in requests/s per second; else 0.

    It must show over all of TREND_MS and over its newer half alone: a step of a while ago is no growth. The
    figure is the smaller least-squares slope, less two of its standard errors (Draper and Smith, Applied
    Regression Analysis, 1.4).
    """
    return min(_slope_per_s(traffic, TREND_MS), _slope_per_s(traffic, TREND_MS // 2))


def _slope_per_s(traffic: Sequence[TrafficSample], window_ms: int) -> float:
    since = traffic[-1].at_ms - window_ms
    points = [(sample.at_ms / 1000, sample.requests_per_s) for sample in traffic if sample.at_ms > since]
    count = len(points)
    if count < _SAMPLES_MIN:
        return 0.0
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if spread == 0:
        return 0.0
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    residual = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    error = math.sqrt(residual / (count - 2) / spread)
    return max(0.0, slope - _DOUBT * error)


def _reason(level: float, trend: float, announced: float, names: str) -> str:
    if names and announced >= trend:
        return f"announced: {names} at {announced:.0f}/s"
    beyond = f", more than {names} announced ({announced:.0f}/s)" if names else ""
    if trend > level:
        return f"growing from {level:.0f}/s{beyond}"
    return f"seen: {level:.0f}/s{beyond}"
