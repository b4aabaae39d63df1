"""With what probability so many cores are ready at a moment: boots, failures, stock-outs, lost zones, taken spot.

The model, all of it closed formulas (no simulation, no randomness):

- A machine is up by `t` after its order with the probability `(1 - f) · Φ(ln(t / m) / s)`: a lognormal boot time with
  median `m` and 99th percentile `q`, `s = ln(q / m) / 2.3263`; `f` never come up at all. Boot times of virtual machines
  are skewed to the right with long tails (Mao and Humphrey, "A performance study on the VM startup time in the cloud",
  IEEE CLOUD 2012), for which the lognormal is the usual two-parameter form; `m` and `q` are measured for each offer.
- Of `n` such machines, the number that is late is binomial. An offer is out of stock with probability `r`; then all its
  machines are ordered elsewhere later and boot anew: the number is a mixture of two binomials. `r` by the stock level
  that the cloud states is an assumption to be replaced by one's own fills; Alibaba Cloud publishes no quantity.
- A zone is lost, as a whole, with probability `z` (0.00025: Alibaba Cloud's SLA for a single ECS instance is 99.975%).
- A spot machine survives `h` hours beyond the protected first one (RunInstances: `SpotDuration`, 1 by default) with the
  probability `exp(-λ h)`.
- What is late adds up over offers, which are independent but for their zone. The distribution of the sum is the
  convolution, computed up to what is spare: the result is exact for the model, to the rounding of `GRID_MAX`.
"""

import math
from collections.abc import Sequence
from itertools import groupby, zip_longest
from operator import mul
from statistics import NormalDist

import msgspec

from springtide.model import Odds

GRID_MAX = 1_000
"""Spare units are counted in at most so many steps. Steps are rounded so that the probability is never overstated."""

NEGLIGIBLE = 1e-11
"""Terms below this are left out, which understates a probability by less than their number times this."""

CERTAINLY_NOT = 1e-15
"""A probability below this is 0."""

_Z99 = NormalDist().inv_cdf(0.99)
_MS_PER_H = 3_600_000


class Batch(msgspec.Struct, frozen=True):
    """Machines of one offer, ordered together: one of them counts for `units` (cores, or replicas: whole numbers).

    The last of them is ordered at `ordered_ms`. A machine serves `after_ms` after it is up, and not before
    `not_before_ms`. `stock_out` is the probability that none can be had; what is to come in their place is ordered
    `spill_ms` later, or, where that is None, nowhere. `spot` machines may be taken away again.
    """

    zone: str
    machines: int
    units: int
    boot_ms: tuple[int, int]
    ordered_ms: int
    after_ms: int = 0
    not_before_ms: int = 0
    stock_out: float = 0.0
    spill_ms: int | None = 0
    spot: bool = False


def boot_share(boot_ms: tuple[int, int], within_ms: float) -> float:
    """The share of machines that boot within so long; `boot_ms` is the median and the 99th percentile."""
    return 1.0 - _late(boot_ms, within_ms)


def boot_quantile_ms(boot_ms: tuple[int, int], late: float) -> float:
    """How long all but the share `late` (above 0, below 1) take to boot."""
    median, p99 = boot_ms
    return median * math.exp(-NormalDist().inv_cdf(late) * _sigma(median, p99)) if median else 0.0


def late_share(batch: Batch, at_ms: float, odds: Odds, delay_ms: float = 0.0) -> float:
    """The probability that one machine does not serve at `at_ms`, its order being `delay_ms` late."""
    if at_ms < batch.not_before_ms:
        return 1.0
    up = boot_share(batch.boot_ms, at_ms - batch.ordered_ms - delay_ms - batch.after_ms) * (1 - odds.boot_failed)
    if batch.spot:
        exposed_ms = max(0.0, at_ms - batch.ordered_ms - delay_ms - odds.spot_safe_ms)
        up *= math.exp(-odds.spot_per_h * exposed_ms / _MS_PER_H)
    return 1.0 - up


def probability(batches: Sequence[Batch], wanted: int, at_ms: float, odds: Odds) -> float:
    """The probability that at least `wanted` of the machines' units serve at `at_ms`."""
    return _probability(batches, wanted, at_ms, odds, CERTAINLY_NOT)


def is_sure(batches: Sequence[Batch], wanted: int, at_ms: float, odds: Odds, asked: float) -> bool:
    """Whether that probability is as high as is asked for: the same, and quicker where it is far from it."""
    return _probability(batches, wanted, at_ms, odds, asked) >= asked


def _probability(batches: Sequence[Batch], wanted: int, at_ms: float, odds: Odds, asked: float) -> float:
    """The probability, or 0 where it is proven to be below what is asked for."""
    spare = sum(batch.machines * batch.units for batch in batches) - wanted
    if wanted <= 0 or spare < 0:
        return 1.0 if wanted <= 0 else 0.0
    counted = sorted((batch for batch in batches if batch.machines and batch.units), key=lambda batch: batch.zone)
    shares = [(late_share(batch, at_ms, odds), _spilled_share(batch, at_ms, odds)) for batch in counted]
    if _is_below(asked, counted, shares, spare):
        return 0.0
    unit = _unit(counted, spare)
    steps = spare // unit
    late = _Late(0, [1.0])
    for _, group in groupby(zip(counted, shares, strict=True), key=lambda one: one[0].zone):
        before, lost = late, 0
        for batch, share in group:
            size = math.ceil(batch.units / unit)
            lost += batch.machines * size
            late = _added(late, _late_machines(batch, share, steps // size), size, steps)
        late = _or_lost(late, before, lost, steps, odds.zone_lost)
    return min(1.0, math.fsum(late.shares))


def _unit(batches: Sequence[Batch], spare: int) -> int:
    """How much one step is: what all sizes are multiples of, or, beyond `GRID_MAX` steps, what fits them best."""
    common, least = math.gcd(*(batch.units for batch in batches)), math.ceil(spare / GRID_MAX)
    if common >= least:
        return common
    sizes = {batch.units for batch in batches}
    return min(
        range(least, 2 * least + 1), key=lambda unit: max(math.ceil(size / unit) * unit / size for size in sizes)
    )


class _Late(msgspec.Struct, frozen=True):
    """The probabilities that `first`, `first + 1`, … steps are late; of all others, none."""

    first: int
    shares: list[float]


def _spilled_share(batch: Batch, at_ms: float, odds: Odds) -> float:
    """The probability that what replaces one machine, its offer being out of stock, does not serve at `at_ms`."""
    return 1.0 if batch.spill_ms is None else late_share(batch, at_ms, odds, batch.spill_ms)


def _is_below(asked: float, batches: Sequence[Batch], shares: Sequence[tuple[float, float]], spare: int) -> bool:
    """Whether the probability is below `asked`, by Chernoff's bound for the lower tail of a sum that is not negative.

    `P(X <= E[X] - t) <= exp(-t² / 2 Σ E[Xi²])`; that offers are out of stock and zones lost only makes it less.
    """
    mean = square = 0.0
    for batch, (known, spilled) in zip(batches, shares, strict=True):
        expected = batch.machines * batch.units * min(known, spilled)
        mean += expected
        square += expected * batch.units
    return mean > spare and (mean - spare) ** 2 > -2.0 * math.log(asked) * square


def _late_machines(batch: Batch, share: tuple[float, float], most: int) -> list[float]:
    """The probabilities that none, one, two, … and `most` of the batch are late."""
    known, spilled = (_binomial(batch.machines, one, min(most, batch.machines)) for one in share)
    if not batch.stock_out:
        return known
    return [
        (1 - batch.stock_out) * one + batch.stock_out * other
        for one, other in zip_longest(known, spilled, fillvalue=0.0)
    ]


def _binomial(count: int, share: float, most: int) -> list[float]:
    """The probabilities of 0 to `most` of `count`, each with this share; negligible ones at the end are left out."""
    if share <= 0.0:
        return [1.0]
    if share >= 1.0:
        return [0.0] * most + [float(most == count)]
    whole, log, other = math.lgamma(count + 1), math.log(share), math.log1p(-share)
    found = []
    for at in range(most + 1):
        chance = math.exp(whole - math.lgamma(at + 1) - math.lgamma(count - at + 1) + at * log + (count - at) * other)
        if chance < NEGLIGIBLE and at > count * share:
            break
        found.append(chance)
    return found


def _added(late: _Late, machines: Sequence[float], size: int, steps: int) -> _Late:
    """With so many late machines more, each of `size` steps, up to `steps` in all: a convolution."""
    counts = [count for count, share in enumerate(machines) if share > NEGLIGIBLE]
    if not counts or not late.shares:
        return _Late(0, [])
    least, most = counts[0], counts[-1]
    weights = machines[most : least - 1 if least else None : -1]
    span = (most - least) * size
    first = late.first + least * size
    length = min(steps - first + 1, len(late.shares) + span)
    padded = [0.0] * span + late.shares + [0.0] * span
    return _Late(first, [sum(map(mul, padded[at : at + span + 1 : size], weights)) for at in range(length)])


def _or_lost(late: _Late, before: _Late, lost: int, steps: int, chance: float) -> _Late:
    """As it is, or, with this chance, with the whole zone late."""
    shares = [(1 - chance) * share for share in late.shares]
    if not chance or before.first + lost > steps:
        return _Late(late.first, shares)
    first = min(late.first, before.first + lost) if shares else before.first + lost
    total = [0.0] * (steps - first + 1)
    for at, share in enumerate(shares, start=late.first - first):
        total[at] += share
    for at, share in enumerate(before.shares, start=before.first + lost - first):
        if at < len(total):
            total[at] += chance * share
    return _Late(first, total)


def _late(boot_ms: tuple[int, int], within_ms: float) -> float:
    """The share of machines that take longer, exact where it is small."""
    median, p99 = boot_ms
    if within_ms <= 0:
        return 1.0 if median else 0.0
    if not median:
        return 0.0
    sigma = _sigma(median, p99)
    if not sigma:
        return float(within_ms < median)
    return 0.5 * math.erfc(math.log(within_ms / median) / sigma / math.sqrt(2))


def _sigma(median: int, p99: int) -> float:
    return math.log(p99 / median) / _Z99 if p99 > median else 0.0
