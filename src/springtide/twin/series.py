"""Demand over simulated time, second by second: from a file of bins, and generated flash sales.

A bin says how much came within it. Between the middles of two bins the demand is drawn as a straight line, and each
second differs from the line as the count of independent arrivals would: normally, with a variance of the mean (the
normal limit of Poisson's distribution). The seed decides every figure.
"""

import csv
import math
from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from springtide.errors import ConfigError
from springtide.model import CalendarEvent
from springtide.ports import Chance

BIN_S = 300
"""The length of a bin in the files, seconds."""

BINS_MAX = 200_000
"""Nearly two years of bins."""

_NOISE = 65_521  # a prime: the noise does not repeat in step with bins or days


class Series(msgspec.Struct, frozen=True):
    """`rates[s]` is the demand, requests/s, in second s after `start_ms`; `calendar` is what was announced of it.

    From second `tuned_s` on nothing was used for tuning.
    """

    name: str
    start_ms: int
    rates: Sequence[float]
    tuned_s: int
    calendar: tuple[CalendarEvent, ...] = ()

    @property
    def seconds(self) -> int:
        """How long it lasts."""
        return len(self.rates)

    def mean(self, from_ms: int, until_ms: int) -> float:
        """The mean demand between two moments, by whole seconds, at least the one that ends at `until_ms`."""
        last = min(max(1, (until_ms - self.start_ms) // 1000), self.seconds)
        first = min(max(0, (from_ms - self.start_ms) // 1000), last - 1)
        return math.fsum(self.rates[first:last]) / (last - first)


def normal_noise(chance: Chance) -> "array[float]":
    """Standard normal figures, by Box and Muller's transform."""
    figures = array("d")
    for _ in range(_NOISE):
        radius = math.sqrt(-2.0 * math.log(1.0 - chance.random()))
        figures.append(radius * math.cos(2.0 * math.pi * chance.random()))
    return figures


def load_bins(path: Path) -> list[float]:
    """The values of a `timestamp,value` file, one bin a line. Raises ConfigError with the line and the remedy."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; give a CSV file of timestamp,value") from error
    values: list[float] = []
    for number, line in enumerate(lines, 2):
        try:
            value = float(line["value"])
        except (KeyError, TypeError, ValueError):
            raise ConfigError(f"{path}: line {number}: no `value`; each line is timestamp,value") from None
        if not math.isfinite(value) or value < 0:
            raise ConfigError(f"{path}: line {number}: value {value} must be a number of requests, 0 or more")
        values.append(value)
    if not 2 <= len(values) <= BINS_MAX:  # noqa: PLR2004 - a line needs two points
        raise ConfigError(f"{path}: {len(values)} bins; give 2 to {BINS_MAX}")
    return values


def from_bins(name: str, values: Sequence[float], mean_per_s: float, noise: Sequence[float], start_ms: int) -> Series:
    """A series of these bins, scaled so that its mean over the part for tuning is `mean_per_s`."""
    tuned = len(values) * 2 // 3
    scale = mean_per_s * tuned / sum(values[:tuned])
    half = BIN_S // 2
    points = [values[0], *values, values[-1]]
    rates = array("d")
    for before, after in pairwise(points):
        step = (after - before) / BIN_S
        rates.extend([scale * (before + step * second) for second in range(BIN_S)])
    line = rates[BIN_S - half : len(rates) - half]
    return Series(name, start_ms, _with_noise(line, noise), tuned * BIN_S)


def _with_noise(line: Sequence[float], noise: Sequence[float]) -> "array[float]":
    count = len(noise)
    return array("d", [max(0.0, rate + math.sqrt(rate) * noise[n % count]) for n, rate in enumerate(line)])


class Sale(msgspec.Struct, frozen=True):
    """One flash sale: from `opens_s` the demand rises within `rise_s` to `peak` and holds for `holds_s`, then fades.

    `fades_s` is the time in which the rest falls to 1/e. What the calendar says is `announced`: (opening in s, length
    in s, requests/s), or None.
    """

    opens_s: int
    rise_s: int
    peak: float
    holds_s: int
    fades_s: int
    announced: tuple[int, int, float] | None = None

    def demand(self, second: int) -> float:
        """Requests/s on top of the normal ones."""
        since = second - self.opens_s
        if since < 0:
            return 0.0
        if since < self.rise_s:
            return self.peak * (since + 1) / self.rise_s
        over = since - self.rise_s - self.holds_s
        return self.peak if over <= 0 else self.peak * math.exp(-over / self.fades_s)


def flash_sales(name: str, normal: float, sales: Sequence[Sale], noise: Sequence[float], start_ms: int) -> Series:
    """A day part with a normal demand that sways by a fifth, and sales on it; two hours after the last one it ends.

    The last third of the sales is held out from tuning, from a quarter of an hour before the first of them.
    """
    seconds = max(sale.opens_s + sale.rise_s + sale.holds_s for sale in sales) + 7_200
    sways = [normal * (1.0 + 0.2 * math.sin(2 * math.pi * second / 14_400)) for second in range(seconds)]
    for sale in sales:
        for second in range(sale.opens_s, seconds):
            sways[second] += sale.demand(second)
    calendar = tuple(
        CalendarEvent(f"sale-{number}", start_ms + 1000 * told[0], 1000 * told[1], told[2], ready_ms=15_000)
        for number, sale in enumerate(sales, 1)
        if (told := sale.announced) is not None
    )
    tuned_s = max(0, sales[len(sales) * 2 // 3].opens_s - 900)
    return Series(name, start_ms, _with_noise(sways, noise), tuned_s, calendar)


_GAP_S = 5_400


def generated(tuning: Chance, held_out: Chance, normal: float, start_ms: int) -> list[Series]:
    """The flash sales of the bench: nine of one kind in each series; the last three, held out, are by other chance.

    announced: as it was said. unannounced: nothing was said. wrong_size: half or one and a half of what came was
    said. late: it opens up to five minutes after it was said. double_peak: a second wave that nobody announced.
    """
    noise = normal_noise(tuning)
    kinds: dict[str, Callable[[Chance, int], list[Sale]]] = {
        "announced": lambda chance, at: [_sale(chance, normal, at)],
        "unannounced": lambda chance, at: [msgspec.structs.replace(_sale(chance, normal, at), announced=None)],
        "wrong_size": lambda chance, at: [_sale(chance, normal, at, size=0.5 if at // _GAP_S % 2 else 1.5)],
        "late": lambda chance, at: [_sale(chance, normal, at, late_s=60 + round(240 * chance.random()))],
        "double_peak": lambda chance, at: _twice(_sale(chance, normal, at)),
    }
    series = []
    for name, make in kinds.items():
        chances = [tuning] * 6 + [held_out] * 3
        sales = [sale for number, chance in enumerate(chances) for sale in make(chance, 3_600 + number * _GAP_S)]
        series.append(flash_sales(f"flash {name}", normal, sales, noise, start_ms))
    return series


def _sale(chance: Chance, normal: float, at: int, size: float = 1.0, late_s: int = 0) -> Sale:
    """20 to 90 times the normal demand within 2 to 120 s."""
    opens_s = at + 60 * round(10 * chance.random())
    peak = normal * (20 + 70 * chance.random())
    rise_s = round(2 * 60 ** chance.random())
    holds_s = round(120 + 480 * chance.random())
    said = (opens_s - late_s, rise_s + holds_s + 60, (peak + normal) * size)
    return Sale(opens_s, rise_s, peak, holds_s, fades_s=round(30 + 90 * chance.random()), announced=said)


def _twice(sale: Sale) -> list[Sale]:
    again = sale.opens_s + sale.rise_s + sale.holds_s + 420
    return [sale, msgspec.structs.replace(sale, opens_s=again, peak=0.8 * sale.peak, announced=None)]
