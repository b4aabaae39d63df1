"""Demand history and sale calendar → the demand within the horizon.

The calendar is believed as announced. The trend is what the balancer saw, drawn on to the horizon; it is all
there is when nothing was announced. A reserve holds what demand has usually risen by, of late, in the time that
capacity takes to come: it is ready when a rise begins. Earlier seasons add what nearly all of them had next.
"""

import math
from collections.abc import Sequence

import msgspec

from springtide.decide.seasons import BIN_MS, SEASONS
from springtide.decide.surge import surge_per_s
from springtide.model import CalendarEvent, DemandRange, FleetPolicy, SeasonPoint, Snapshot, TrafficSample, UsualDemand

TREND_MS = 8_000
"""How far back a trend looks: long enough to tell growth from noise, short enough to follow a crowd."""

TREND_TICKS = 16
"""With slow ticks a trend looks back for so many of them instead."""

LEVEL_MS = 2_000
"""The window of the recent level, or two ticks. A sale doubles in seconds, so a longer mean would lag behind it."""

GROWTH_MAX = 3.0
"""A line drawn through a step has no end: it is believed up to this multiple of what was seen."""

BEYOND = 1.1
"""Demand up to this multiple of what was announced is what was announced: it varies. Above, it is something larger."""

SEASONS_MIN = 5
"""So many earlier seasons must be known before they count."""

_SAMPLES_MIN = 4  # a slope needs three points, its error one more
_DOUBT = 2.0  # growth counts when it exceeds this many standard errors: about 97.5% sure


class Past(msgspec.Struct, frozen=True):
    """What else is known of demand: what it usually does, and earlier seasons, `season_ms` apart (0: none).

    `tick_ms` is the time between two samples; `doubt` and `doubt_ms` are `FleetPolicy.event_doubt`.
    """

    tick_ms: int = 0
    usual: UsualDemand | None = None
    seasons: tuple[SeasonPoint, ...] = ()
    season_ms: int = 0
    doubt: float = 0.0
    doubt_ms: int = 0


def expect(snapshot: Snapshot, policy: FleetPolicy, horizon_ms: int) -> DemandRange:
    """The demand from now until `horizon_ms` later, by all that a snapshot knows."""
    past = Past(
        tick_ms=policy.stale_ms // 3,
        usual=snapshot.usual,
        seasons=snapshot.seasons,
        season_ms=policy.season_ms,
        doubt=policy.event_doubt,
        doubt_ms=policy.event_doubt_ms,
    )
    return forecast(snapshot.traffic, snapshot.calendar, snapshot.now_ms, horizon_ms, past)


def forecast(
    traffic: Sequence[TrafficSample],
    calendar: Sequence[CalendarEvent],
    now_ms: int,
    horizon_ms: int,
    past: Past | None = None,
) -> DemandRange:
    """Requests per second to expect from now until `horizon_ms` later.

    `traffic` is oldest first. The high end is never below the newest sample: a rise counts at once.
    """
    past = past or Past()
    doubted = [_doubted(event, past, now_ms) for event in calendar] if past.doubt else calendar
    announced, names = announced_peak(doubted, now_ms, now_ms + horizon_ms)
    if not traffic:
        reason = f"announced: {names}" if names else "nothing seen yet and nothing announced"
        return DemandRange(low=0.0, likely=announced, high=announced, reason=reason)
    newest = traffic[-1]
    level_ms = max(LEVEL_MS, 2 * past.tick_ms)
    recent = [sample.requests_per_s for sample in traffic if sample.at_ms > newest.at_ms - level_ms]
    mean = sum(recent) / len(recent)
    level = max(mean, newest.requests_per_s)
    trend, surging = level, False
    if newest.requests_per_s >= mean:
        growth, surge = growth_per_s(traffic, _trend_ms(past.tick_ms)), surge_per_s(traffic)
        surging = surge > growth
        # What the merchant announced bounds the line, never what was seen.
        bound = max(announced, level) if level <= announced * BEYOND else level * GROWTH_MAX
        trend = max(level, min(level + max(growth, surge) * horizon_ms / 1000, bound))
    seasonal = level * seasonal_growth(past, now_ms, horizon_ms)
    reserve = min(level + past.usual.rise_per_s, past.usual.peak_per_s) if past.usual else 0.0
    high = max(trend, announced, seasonal, reserve)
    reasons = {
        announced: f"announced: {names} at {announced:.0f}/s",
        reserve: f"seen: {level:.0f}/s; it usually rises to {reserve:.0f}/s or less before capacity would come",
        seasonal: f"seen: {level:.0f}/s; at this time of earlier seasons it rose, to {seasonal:.0f}/s now",
        trend: _seen(level, trend, surging=surging),
    }
    if announced and announced == high:
        reasons[high] = f"announced: {names} at {announced:.0f}/s"
    beyond = f", more than {names} announced ({announced:.0f}/s)" if names and announced < high else ""
    return DemandRange(low=min(recent), likely=max(level, announced), high=high, reason=reasons[high] + beyond)


def _seen(level: float, trend: float, *, surging: bool) -> str:
    if trend <= level:
        return f"seen: {level:.0f}/s"
    if surging:
        return f"surging from {level:.0f}/s, for which {trend:.0f}/s are provided"
    return f"growing from {level:.0f}/s"


def _trend_ms(tick_ms: int) -> int:
    return max(TREND_MS, TREND_TICKS * tick_ms)


def seasonal_growth(past: Past, now_ms: int, horizon_ms: int) -> float:
    """How many times the present level earlier seasons had within the horizon: what all but one of them had.

    Between 1 and GROWTH_MAX; 1 when fewer than SEASONS_MIN are known.
    """
    if not past.season_ms or not past.seasons:
        return 1.0
    ratios = []
    for number in range(1, SEASONS + 1):
        then = now_ms - number * past.season_ms
        ahead = [p for p in past.seasons if then - BIN_MS < p.at_ms <= then + horizon_ms]
        if ahead and ahead[0].at_ms <= then and ahead[0].mean_per_s > 0:
            ratios.append(max(point.mean_per_s for point in ahead) / ahead[0].mean_per_s)
    if len(ratios) < SEASONS_MIN:
        return 1.0
    return min(max(1.0, sorted(ratios)[1]), GROWTH_MAX)


def history_ms(policy: FleetPolicy) -> int:
    """How much history of traffic a snapshot should have."""
    return _trend_ms(policy.stale_ms // 3)


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


def _doubted(event: CalendarEvent, past: Past, now_ms: int) -> CalendarEvent:
    """The event with as much more as may come, while its size has not been seen."""
    if now_ms >= event.opens_ms + past.doubt_ms:
        return event
    return msgspec.structs.replace(event, peak_requests_per_s=event.peak_requests_per_s * (1 + past.doubt))


def is_announced(calendar: Sequence[CalendarEvent], now_ms: int) -> bool:
    """Whether demand of this moment was announced: from `ready_ms` before an opening until the end."""
    return any(event.opens_ms - event.ready_ms <= now_ms < event.opens_ms + event.lasts_ms for event in calendar)


def growth_per_s(traffic: Sequence[TrafficSample], trend_ms: int = TREND_MS) -> float:
    """The growth that goes on now and is beyond doubt, in requests/s per second; else 0.

    It must show over all of `trend_ms` and over its newer half alone: a step of a while ago is no growth. The
    figure is the smaller least-squares slope, less two of its standard errors (Draper and Smith, Applied
    Regression Analysis, 1.4).
    """
    return min(_slope_per_s(traffic, trend_ms), _slope_per_s(traffic, trend_ms // 2))


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
