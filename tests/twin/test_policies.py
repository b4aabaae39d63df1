"""HPA v2 and KEDA against the worked examples of their documentation."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from springtide.model import CalendarEvent
from springtide.twin.policies import (
    FAST_UP,
    CronWindow,
    Hpa,
    HpaSettings,
    Keda,
    Rate,
    Seen,
    Unit,
    cron_windows,
    desired_replicas,
)

START = 1_700_000_000_000 // 60_000 * 60_000
SYNC = 15_000


def steady(rate: float) -> Callable[[int, int], float]:
    return lambda _from, _until: rate


def follow(hpa: Hpa | Keda, replicas: int, rates: Sequence[float]) -> list[int]:
    """The number of replicas after each sync, with one rate for each."""
    counts = []
    for number, rate in enumerate(rates):
        replicas = hpa.decide(Seen(START + number * SYNC, replicas, steady(rate)))
        counts.append(replicas)
    return counts


@pytest.mark.parametrize(
    ("current", "value", "target", "desired"),
    [(1, 200, 100, 2), (4, 50, 100, 2), (50, 90, 75, 60), (10, 109, 100, 10), (10, 91, 100, 10), (10, 111, 100, 12)],
    ids=["200m at 100m doubles", "50m halves", "90% at 75%", "within a tenth", "within a tenth below", "beyond"],
)
def test_the_documented_formula(current: int, value: float, target: float, desired: int) -> None:
    assert desired_replicas(current, value, target) == desired


def test_by_default_the_number_at_most_doubles_or_grows_by_four() -> None:
    assert follow(Hpa(HpaSettings(target=100)), 1, [10_000] * 5) == [5, 10, 20, 40, 80]


def test_a_rise_as_fast_as_possible() -> None:
    assert follow(Hpa(HpaSettings(target=100, up=FAST_UP)), 2, [10_000] * 3) == [20, 100, 100]


def test_scaling_in_waits_for_the_stabilization_window_and_then_goes_at_once() -> None:
    counts = follow(Hpa(HpaSettings(target=100)), 20, [2_000] + [500] * 21)
    assert counts == [20] * 20 + [5, 5]


def test_stabilization_takes_the_highest_recommendation_of_the_window() -> None:
    counts = follow(Hpa(HpaSettings(target=100, down_stabilization_ms=60_000)), 20, [1_000, 1_400, 500, 500, 500, 500])
    assert counts == [10, 14, 14, 14, 14, 5]


def test_the_documented_example_of_percent_and_pods() -> None:
    """80 replicas, 10 percent or 4 pods a minute, whichever is more: 8, then 8 (7.2 rounded up), … then 4 at a time."""
    rates = (Rate(Unit.PERCENT, 10, 60_000), Rate(Unit.PODS, 4, 60_000))
    hpa = Hpa(HpaSettings(target=100, replicas_min=10, down=rates, down_stabilization_ms=0))
    counts = follow(hpa, 80, [1_000] * (4 * 12))
    by_minute = counts[::4]
    assert by_minute[:3] == [72, 64, 57]
    assert [a - b for a, b in pairwise(by_minute)][-3:] == [4, 4, 4]


def test_a_policys_period_counts_what_was_added_within_it() -> None:
    hpa = Hpa(HpaSettings(target=100, up=(Rate(Unit.PODS, 4, 60_000),)))
    assert follow(hpa, 10, [10_000] * 6) == [14, 14, 14, 14, 18, 18]


def test_the_bounds_hold_whatever_is_asked_for() -> None:
    hpa = Hpa(HpaSettings(target=100, replicas_min=3, replicas_max=8, down_stabilization_ms=0))
    assert follow(hpa, 5, [0, 0, 5_000, 5_000]) == [3, 3, 7, 8]


def test_the_metric_is_as_old_as_its_scrape() -> None:
    asked = []

    def mean(since: int, until: int) -> float:
        asked.append((START - since, START - until))
        return 100.0

    Hpa(HpaSettings(target=100, window_ms=30_000)).decide(Seen(START, 1, mean))
    assert asked == [(37_500, 7_500)]


def test_a_cron_window_is_a_floor_that_is_reached_at_the_rates() -> None:
    window = CronWindow(START + 2 * SYNC, START + 6 * SYNC, 30)
    keda = Keda(HpaSettings(target=100, down_stabilization_ms=0), [window])
    assert follow(keda, 2, [200] * 9) == [2, 2, 6, 12, 24, 30, 2, 2, 2]


def test_the_trigger_that_asks_for_most_counts() -> None:
    keda = Keda(HpaSettings(target=100, up=FAST_UP), [CronWindow(START, START + 10 * SYNC, 30)])
    assert follow(keda, 20, [200, 4_500]) == [30, 45]


def test_windows_begin_and_end_at_whole_minutes() -> None:
    event = CalendarEvent("sale", START + 600_500, 90_000, 9_050, ready_ms=15_000)
    assert cron_windows([event], 100, 150_000) == [CronWindow(START + 420_000, START + 720_000, 91)]
