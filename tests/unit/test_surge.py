"""When a rise is one, and when it is noise."""

import random

import pytest

from springtide.decide.forecast import GROWTH_MAX, Past, forecast
from springtide.decide.surge import STEEP, surge_per_s
from springtide.model import TrafficSample

NOW = 1_000_000


def history(*rates: float, step_ms: int = 5_000) -> list[TrafficSample]:
    first = NOW - step_ms * (len(rates) - 1)
    return [TrafficSample(first + step_ms * number, rate) for number, rate in enumerate(rates)]


def noisy(chance: random.Random, *rates: float) -> list[float]:
    """Counts over five seconds."""
    return [chance.gauss(rate, (rate / 5) ** 0.5) for rate in rates]


def test_a_steady_rise_is_found_with_its_slope() -> None:
    assert surge_per_s(history(100, 150, 200, 250, 300)) == pytest.approx(10)


def test_a_rise_is_found_at_its_third_sample() -> None:
    calm = noisy(random.Random(2), *[1_000.0] * 12)
    assert surge_per_s(history(*calm)) == 0
    assert surge_per_s(history(*calm, 1_300, 1_600)) == pytest.approx((1_600 - calm[-1]) / 10)


@pytest.mark.parametrize("rate", [20.0, 1_000.0, 50_000.0], ids=str)
def test_noise_is_no_surge(rate: float) -> None:
    chance = random.Random(1)
    found = sum(surge_per_s(history(*noisy(chance, *[rate] * 16))) > 0 for _ in range(500))
    assert found < 25, "the slope's test is wrong in one of forty cases"


@pytest.mark.parametrize(
    "rates",
    [
        [30.0] * 12 + [900.0] * STEEP,
        [3_000.0 - 200 * n for n in range(12)],
        [100.0] * 3,
        [],
    ],
    ids=["a step of a while ago", "falling", "too few", "none"],
)
def test_what_does_not_rise_now_is_no_surge(rates: list[float]) -> None:
    assert surge_per_s(history(*rates)) == 0


def test_samples_of_one_moment_are_no_surge() -> None:
    assert surge_per_s([TrafficSample(NOW, 100.0 * n) for n in range(12)]) == 0


def test_a_surge_raises_the_high_end_at_once_within_its_bound_and_is_named() -> None:
    rates = [*noisy(random.Random(2), *[300.0] * 12), 600.0, 1_200.0]
    demand = forecast(history(*rates), (), NOW, 105_000)
    assert demand.likely == 1_200
    assert demand.high == GROWTH_MAX * 1_200
    assert demand.reason.startswith("surging from 1200/s")


def test_a_surge_ends_with_its_rise() -> None:
    rates = [*noisy(random.Random(2), *[300.0] * 12), 600.0, 1_200.0, *[1_200.0] * STEEP]
    assert forecast(history(*rates), (), NOW, 105_000).high == 1_200
    falling = forecast(history(*rates[:14], 1_100.0), (), NOW, 105_000, Past(tick_ms=5_000))
    assert falling.high == (1_200 + 1_100) / 2
