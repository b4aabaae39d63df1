"""How well a supply of replicas followed its demand: the elasticity metrics of the SPEC Research Group, and the SLO.

The metrics are those of Herbst, Kounev and Reussner ("Elasticity in Cloud Computing", ICAC 2013), in the form relative
to the demand of Bauer et al. ("Chameleon: A Hybrid, Proactive Auto-Scaling Mechanism on a Level-Playing Field", IEEE
TPDS 2019). With the demand d and the supply s in replicas, both at least 1, over T seconds:

- under-provisioning accuracy: 100 / T x sum of max(d - s, 0) / d; over-provisioning accuracy: of max(s - d, 0) / d;
- under- and over-provisioning timeshare: the percentage of seconds in which s is below, or above, d;
- instability: the percentage of minutes in which supply and demand did not move in the same direction.
"""

import math
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import msgspec

from springtide.twin.kernel_world import Step
from springtide.twin.series import Series

QUEUE_S = 2.0
"""So many seconds' work of the present replicas may wait; what comes on top is refused."""

WAIT_S = 1.0
"""A second in which a request would wait for longer breaks the SLO."""

MINUTE_S = 60


class Elasticity(msgspec.Struct, frozen=True):
    """One policy on one series.

    `violation_s` are seconds in which the demand exceeded what the ready replicas take, or requests waited for longer
    than WAIT_S. `cost` is what was paid, in replica-hours. The rest is as the module says, in percent; `refused` is the
    share of all requests that found the queue full.
    """

    seconds: int
    violation_s: int
    cost: float
    under_accuracy: float
    over_accuracy: float
    under_share: float
    over_share: float
    instability: float
    refused: float


class Need(msgspec.Struct, frozen=True):
    """A series in replicas: what each second needs (at least 1), and running sums of need and of 1 / need."""

    series: Series
    capacity: float
    units: Sequence[int]
    inverse: Sequence[float]

    @classmethod
    def of(cls, series: Series, capacity: float) -> "Need":
        """`capacity` is what a replica takes, requests/s."""
        units = array("i", [max(1, math.ceil(rate / capacity)) for rate in series.rates])
        inverse = array("d", accumulate((1.0 / need for need in units), initial=0.0))
        return cls(series, capacity, units, inverse)


def by_second(steps: Sequence[Step], start_ms: int, first_s: int, last_s: int) -> Iterator[tuple[int, int, int]]:
    """(from second, until second, replicas that serve) within the range; a second has the least it had at any time."""
    at, serving = first_s, 0
    for step in steps:
        since = (step.at_ms - start_ms) / 1000
        begins = math.floor(since) if step.serving < serving else math.ceil(since)
        begins = min(max(begins, at), last_s)
        if begins > at:
            yield at, begins, serving
        at, serving = begins, step.serving
    if at < last_s:
        yield at, last_s, serving


def measure_steps(need: Need, steps: Sequence[Step], first_s: int, last_s: int) -> Elasticity:
    """How the steps of a world followed the seconds from `first_s` to before `last_s`. Raises ValueError for none."""
    seconds = last_s - first_s
    if seconds < 1 or last_s > need.series.seconds:
        raise ValueError(f"{first_s} to {last_s} is no part of a series of {need.series.seconds} s")
    under = over = 0.0
    under_s = over_s = 0
    overload = _Overload(need)
    for begins, ends, serving in by_second(steps, need.series.start_ms, first_s, last_s):
        units = need.units[begins:ends]
        if max(units) < serving:
            over += serving * (need.inverse[ends] - need.inverse[begins]) - (ends - begins)
            over_s += ends - begins
            overload.rest(begins, ends, serving)
            continue
        short = [unit for unit in units if unit > serving]
        spare = [unit for unit in units if unit < serving]
        under += sum(1 - serving / unit for unit in short)
        over += sum(serving / unit - 1 for unit in spare)
        under_s += len(short)
        over_s += len(spare)
        overload.follow(begins, ends, serving)
    return Elasticity(
        seconds=seconds,
        violation_s=overload.violation_s,
        cost=_paid_h(steps, need.series.start_ms + first_s * 1000, need.series.start_ms + last_s * 1000),
        under_accuracy=100 * under / seconds,
        over_accuracy=100 * over / seconds,
        under_share=100 * under_s / seconds,
        over_share=100 * over_s / seconds,
        instability=_instability(need, steps, first_s, last_s),
        refused=overload.refused / max(1.0, math.fsum(need.series.rates[first_s:last_s])),
    )


class _Overload:
    """The queue in front of the replicas, followed second by second while it is not empty."""

    def __init__(self, need: Need) -> None:
        self._need = need
        self._waiting = 0.0
        self.violation_s = 0
        self.refused = 0.0

    def rest(self, begins: int, ends: int, serving: int) -> None:
        """Seconds in which the demand is below what is there: only what waits is worked off."""
        if self._waiting:
            self.follow(begins, ends, serving, until_empty=True)

    def follow(self, begins: int, ends: int, serving: int, *, until_empty: bool = False) -> None:
        """Seconds in which it may be above."""
        takes = serving * self._need.capacity
        for rate in self._need.series.rates[begins:ends]:
            # What is refused is measured against the queue that the present replicas allow.
            left = self._waiting + rate - takes
            self._waiting = min(max(0.0, left), QUEUE_S * takes)
            self.refused += max(0.0, left - self._waiting)
            self.violation_s += rate > takes or self._waiting > WAIT_S * takes
            if until_empty and not self._waiting:
                return


def _paid_h(steps: Sequence[Step], from_ms: int, until_ms: int) -> float:
    """Replica-hours paid for between two moments."""
    paid = 0
    ends = [*(step.at_ms for step in steps[1:]), until_ms]
    for step, end_ms in zip(steps, ends, strict=True):
        paid += step.paid * max(0, min(end_ms, until_ms) - max(step.at_ms, from_ms))
    return paid / 3_600_000


def _instability(need: Need, steps: Sequence[Step], first_s: int, last_s: int) -> float:
    minutes = range(first_s, last_s - MINUTE_S + 1, MINUTE_S)
    if len(minutes) < 2:  # noqa: PLR2004 - a move has a before and an after
        return 0.0
    moments = [step.at_ms for step in steps]
    supply, demand = [], []
    for second in minutes:
        at = bisect_right(moments, need.series.start_ms + second * 1000) - 1
        supply.append(steps[max(0, at)].serving)
        rates = need.series.rates[second : second + MINUTE_S]
        demand.append(max(1, math.ceil(math.fsum(rates) / MINUTE_S / need.capacity)))
    moves = zip(pairwise(supply), pairwise(demand), strict=True)
    against = sum(_sign(after - before) != _sign(then - now) for (before, after), (now, then) in moves)
    return 100 * against / (len(minutes) - 1)


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
