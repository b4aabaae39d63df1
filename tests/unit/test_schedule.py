"""Send times: a Poisson process, one second at a time."""

import random
import statistics

from springtide.twin.crowd.demand import Demand
from springtide.twin.crowd.schedule import arrivals, arrivals_in_second


def test_counts_have_the_mean_and_the_variance_of_a_poisson_process() -> None:
    chance = random.Random(1)
    counts = [len(arrivals_in_second(50.0, second, chance)) for second in range(4000)]
    assert abs(statistics.mean(counts) - 50) < 0.6
    assert abs(statistics.variance(counts) - 50) < 5


def test_arrivals_are_spread_evenly_over_the_second() -> None:
    chance = random.Random(2)
    times = [time - 7 for _ in range(400) for time in arrivals_in_second(100.0, 7, chance)]
    assert abs(statistics.mean(times) - 0.5) < 0.01
    assert abs(sum(time < 0.1 for time in times) / len(times) - 0.1) < 0.01


def test_a_quiet_second_has_no_arrivals() -> None:
    assert arrivals_in_second(0.0, 3, random.Random(1)) == []


def test_seconds_are_made_only_when_asked_for() -> None:
    asked = 0

    class Counting(random.Random):
        def expovariate(self, lambd: float = 1.0) -> float:
            nonlocal asked
            asked += 1
            return super().expovariate(lambd)

    seconds = arrivals(Demand((10.0, 10_000.0)), Counting(1))
    assert next(seconds)[0] == 0
    assert asked < 100
