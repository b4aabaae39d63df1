"""A demand file: requests per second, second by second."""

import csv
import math
import statistics
from pathlib import Path

import msgspec

from springtide.errors import ConfigError

HEADER = ("second", "requests_per_second")
SECONDS_MAX = 86_400
"""A day: the longest demand one file may hold."""
RATE_MAX = 1_000_000.0
"""Requests per second beyond which a value is taken for a slip of the pen."""
PEAK_SHARE = 0.8
"""A second belongs to the peak when its rate is at least this share of the highest."""


class Demand(msgspec.Struct, frozen=True):
    """First attempts per second; `rates[s]` holds from second s to s + 1 of the run."""

    rates: tuple[float, ...]

    @property
    def base(self) -> float:
        """The normal rate: the median of the first third of the seconds (at least one)."""
        return statistics.median(self.rates[: self.base_seconds])

    @property
    def base_seconds(self) -> int:
        """How many seconds from the start on the normal rate is taken from."""
        return max(1, len(self.rates) // 3)

    @property
    def peak(self) -> float:
        """The highest rate of any second."""
        return max(self.rates)

    def peak_seconds(self) -> frozenset[int]:
        """The seconds whose rate is at least 80% of the peak."""
        bound = PEAK_SHARE * self.peak
        return frozenset(second for second, rate in enumerate(self.rates) if rate >= bound)


def load_demand(path: Path) -> Demand:
    """Read a header, `second,requests_per_second`, and then one line for each second from 0 on.

    Raises ConfigError that names the file, the line and the remedy for each mistake, ten at most.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except FileNotFoundError:
        msg = f"{path}: there is no such file; `demand` in [crowd] names it relative to the TOML file"
        raise ConfigError(msg) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"{path}: cannot be read as CSV in UTF-8: {error}"
        raise ConfigError(msg) from error
    mistakes, rates = _rates(rows)
    if mistakes:
        raise ConfigError("\n".join(f"{path}: {mistake}" for mistake in mistakes[:10]))
    return Demand(tuple(rates))


def _rates(rows: list[list[str]]) -> tuple[list[str], list[float]]:
    if not rows or tuple(cell.strip() for cell in rows[0]) != HEADER:
        return [f"line 1: the first line must be `{','.join(HEADER)}`"], []
    while len(rows) > 1 and not rows[-1]:
        rows.pop()
    if len(rows) == 1:
        return ["line 2: no seconds; give one line for each, from 0 on"], []
    if len(rows) - 1 > SECONDS_MAX:
        return [f"line {SECONDS_MAX + 2}: more than {SECONDS_MAX} seconds; shorten the file"], []
    mistakes: list[str] = []
    rates: list[float] = []
    for second, row in enumerate(rows[1:]):
        mistake, rate = _rate(row, second)
        rates.append(rate)
        if mistake:
            mistakes.append(f"line {second + 2}: {mistake}")
    if not mistakes and max(rates) == 0:
        mistakes.append("line 2: every rate is 0; a demand needs at least one request")
    return mistakes, rates


def _rate(row: list[str], second: int) -> tuple[str, float]:
    """What is wrong with a line (empty: nothing), and its rate."""
    if len(row) != len(HEADER):
        return f"{len(row)} values; write two, `{','.join(HEADER)}`", 0.0
    if row[0].strip() != str(second):
        return f"second {row[0].strip()!r} where {second} was due; seconds go 0, 1, 2, … without a gap", 0.0
    try:
        rate = float(row[1])
    except ValueError:
        return f"requests_per_second {row[1].strip()!r} is not a number; write one such as 40 or 40.5", 0.0
    if not math.isfinite(rate) or not 0 <= rate <= RATE_MAX:
        return f"requests_per_second {row[1].strip()} must lie between 0 and {RATE_MAX:.0f}", 0.0
    return "", rate
