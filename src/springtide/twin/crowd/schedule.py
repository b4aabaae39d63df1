"""Demand → send times: a Poisson process whose rate changes at each full second."""

import math
from collections.abc import Iterator

from springtide.ports import Chance
from springtide.twin.crowd.demand import Demand


def arrivals_in_second(rate: float, second: int, chance: Chance) -> list[float]:
    """Sorted send times, in seconds after the start, of one second with `rate` expected arrivals.

    The gaps are exponential and start anew at the full second, which leaves the process unchanged: it has
    no memory.
    """
    times: list[float] = []
    last = math.nextafter(second + 1, 0)
    if rate <= 0:
        return times
    at = chance.expovariate(rate)
    while at < 1:
        times.append(min(second + at, last))
        at += chance.expovariate(rate)
    return times


def arrivals(demand: Demand, chance: Chance) -> Iterator[tuple[int, list[float]]]:
    """Each second of the demand with its send times, made when asked for: one second in memory at a time."""
    for second, rate in enumerate(demand.rates):
        yield second, arrivals_in_second(rate, second, chance)
