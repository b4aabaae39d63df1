"""Promises of the schedule, for any demand and seed."""

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from springtide.twin.crowd.demand import Demand
from springtide.twin.crowd.figures import Histogram
from springtide.twin.crowd.schedule import arrivals

rates = st.lists(st.floats(0, 300, allow_nan=False), min_size=1, max_size=12).filter(any)
seeds = st.integers(0, 2**32)


@given(rates, seeds)
def test_send_times_are_sorted_and_lie_in_their_second(values: list[float], seed: int) -> None:
    made = list(arrivals(Demand(tuple(values)), random.Random(seed)))
    assert [second for second, _ in made] == list(range(len(values)))
    for second, times in made:
        assert all(second <= time < second + 1 for time in times)
    together = list(itertools.chain.from_iterable(times for _, times in made))
    assert together == sorted(together)


@given(rates, seeds)
def test_a_seed_reproduces_every_send_time(values: list[float], seed: int) -> None:
    demand = Demand(tuple(values))
    assert list(arrivals(demand, random.Random(seed))) == list(arrivals(demand, random.Random(seed)))


@given(st.lists(st.floats(0, 100_000), min_size=1, max_size=200), st.floats(0.001, 1))
def test_a_quantile_is_at_most_three_percent_above_the_true_one(values: list[float], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    ranked = sorted(values)
    true_us = int(ranked[max(0, next(at for at in range(len(ranked)) if at + 1 >= share * len(ranked)))] * 1e6)
    found_us = histogram.quantile_ms(share) * 1000
    if true_us < 2**36:
        assert true_us <= found_us + 0.5
        assert found_us <= true_us * 1.032 + 1 or found_us <= true_us + 1
    assert histogram.quantile_ms(1.0) * 1000 <= histogram.max_us + 0.5
