"""What a forecast says, case by case."""

import random

import pytest

from springtide.decide.forecast import GROWTH_MAX, announced_peak, forecast, growth_per_s
from springtide.model import CalendarEvent, TrafficSample

NOW = 1_000_000
EVENT = CalendarEvent("live", opens_ms=NOW + 60_000, lasts_ms=10_000, peak_requests_per_s=5000, ready_ms=5_000)


def history(*rates: float, step_ms: int = 500) -> list[TrafficSample]:
    """Samples of these rates, the last one now."""
    return [
        TrafficSample(NOW - step_ms * back, rate)
        for back, rate in zip(range(len(rates) - 1, -1, -1), rates, strict=True)
    ]


def test_steady_traffic_is_expected_to_go_on() -> None:
    demand = forecast(history(*[100.0] * 20), (), NOW, 10_000)
    assert (demand.low, demand.likely, demand.high) == (100, 100, 100)
    assert demand.reason == "seen: 100/s"


def test_nothing_seen_and_nothing_announced_is_no_demand() -> None:
    demand = forecast((), (), NOW, 10_000)
    assert (demand.low, demand.likely, demand.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("horizon_ms", "seen"), [(54_999, False), (55_000, True), (70_000, True)], ids=["before", "at", "after"]
)
def test_an_event_comes_in_sight_when_its_capacity_must_stand_within_the_horizon(
    horizon_ms: int,
    seen: bool,  # noqa: FBT001 - pytest passes parameters by name
) -> None:
    demand = forecast(history(*[30.0] * 20), (EVENT,), NOW, horizon_ms)
    assert demand.high == (5000 if seen else 30)
    assert ("live" in demand.reason) is seen


def test_an_event_stays_until_its_end() -> None:
    ends_ms = EVENT.opens_ms + EVENT.lasts_ms
    assert announced_peak((EVENT,), ends_ms - 1, ends_ms + 10_000) == (5000, "live")
    assert announced_peak((EVENT,), ends_ms, ends_ms + 10_000) == (0, "")


def test_events_at_the_same_moment_add_up_and_others_do_not() -> None:
    overlapping = CalendarEvent("second", EVENT.opens_ms + 5_000, 60_000, 1000, 0)
    later = CalendarEvent("third", EVENT.opens_ms + 40_000, 1_000, 5500, 0)
    peak, names = announced_peak((EVENT, overlapping, later), NOW, NOW + 200_000)
    assert (peak, names) == (6500, "second, third")
    assert announced_peak((EVENT, overlapping), NOW, NOW + 200_000) == (6000, "live, second")


def test_a_rise_counts_at_once() -> None:
    demand = forecast(history(*[30.0] * 19, 2000.0), (), NOW, 10_000)
    assert demand.likely == 2000
    assert demand.high >= 2000


def test_steady_growth_is_drawn_on_to_the_horizon() -> None:
    demand = forecast(history(*[100.0 + 10 * n for n in range(20)]), (), NOW, 5_000)
    assert demand.likely == pytest.approx(290)
    assert demand.high == pytest.approx(290 + 20 * 5, rel=0.01)
    assert demand.reason.startswith("growing")


def test_growth_is_believed_up_to_a_multiple_of_what_was_seen() -> None:
    demand = forecast(history(*[100.0 * n for n in range(20)]), (), NOW, 600_000)
    assert demand.high == GROWTH_MAX * 1900


def test_the_announced_peak_bounds_the_growth_but_not_what_is_seen() -> None:
    opening = history(*[30.0] * 10, *[30.0 + 200 * n for n in range(10)])
    now_open = CalendarEvent("live", NOW - 5_000, 10_000, 2500, 5_000)
    assert forecast(opening, (now_open,), NOW, 60_000).high == 2500
    too_low = CalendarEvent("live", NOW - 5_000, 10_000, 1000, 5_000)
    demand = forecast(opening, (too_low,), NOW, 60_000)
    assert demand.high > 1830
    assert "more than live announced" in demand.reason


@pytest.mark.parametrize(("newest", "grows"), [(5_400.0, False), (6_000.0, True)], ids=["noise", "larger"])
def test_a_little_more_than_announced_is_what_was_announced(
    newest: float,
    grows: bool,  # noqa: FBT001 - pytest passes parameters by name
) -> None:
    rates = [newest * (0.5 + back / 40) for back in range(1, 21)]
    running = CalendarEvent("live", opens_ms=NOW - 8_000, lasts_ms=60_000, peak_requests_per_s=5000, ready_ms=5_000)
    demand = forecast(history(*rates), (running,), NOW, 30_000)
    assert (demand.high > newest) is grows


def test_falling_traffic_is_not_drawn_on() -> None:
    demand = forecast(history(*[2000.0 - 100 * n for n in range(20)]), (), NOW, 60_000)
    assert demand.low == 100
    assert demand.high == pytest.approx((100 + 200 + 300 + 400) / 4)


def test_a_step_of_a_while_ago_is_not_growth() -> None:
    demand = forecast(history(*[30.0] * 7, *[2800.0] * 9), (), NOW, 10_000)
    assert demand.high == 2800


def test_a_crowd_that_leaves_is_not_growth() -> None:
    demand = forecast(history(*[30.0] * 9, *[2800.0] * 6, 30.0), (), NOW, 10_000)
    assert demand.high == pytest.approx((3 * 2800 + 30) / 4)


def test_noise_is_not_growth() -> None:
    chance = random.Random(1)
    noise = (history(*[chance.gauss(1000, 50) for _ in range(16)]) for _ in range(200))
    assert sum(growth_per_s(samples) > 0 for samples in noise) < 20


@pytest.mark.parametrize("count", [0, 1, 2, 3], ids=str)
def test_a_few_samples_are_no_trend(count: int) -> None:
    rates = [100.0 * n for n in range(1, count + 2)]
    assert growth_per_s(history(*rates)) == 0 or count == 3


def test_samples_of_one_moment_are_no_trend() -> None:
    assert growth_per_s([TrafficSample(NOW, rate) for rate in (1.0, 2.0, 3.0, 4.0)]) == 0
