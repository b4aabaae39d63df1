"""Counts per time step from any CSV file: which column is the time, which the count, and how long a step is.

A line is a step. The delimiter is a comma, a semicolon, a tab or a bar; a header is optional, and so is the time.
Times are seconds, Unix milliseconds, or dates as ISO 8601 has them; the step is what most lines are apart. Where lines
are missing, counts are drawn in a straight line over up to GAP_MAX steps. Lines that are empty or begin with # count
for nothing.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median

import msgspec

from springtide.errors import ConfigError
from springtide.twin.series import BINS_MAX

BYTES_MAX = 64 * 1024 * 1024
"""The largest file that is read."""

GAP_MAX = 12
"""So many steps may be missing in a row."""

JITTER = 0.1
"""A line may be this share of a step early or late."""

FRACTION = 0.02
"""A step may differ from whole seconds by this share of it."""

STEP_MAX_S = 86_400

TIMES = frozenset({"timestamp", "time", "datetime", "date", "second", "seconds", "sec", "s", "t", "ts", "at", "at_s"})
COUNTS = ("value", "count", "counts", "requests", "hits", "total", "n", "people", "visits", "orders")
_DELIMITERS = ",;\t|"
_MILLISECONDS_FROM = 1e11  # as seconds that is the year 5138
_FORMS = "timestamp,value or second,count"


class Trace(msgspec.Struct, frozen=True):
    """`values[n]` came within step n; `step_s` is how long each is, None where the file has no times."""

    values: list[float]
    step_s: int | None


class _Columns(msgspec.Struct, frozen=True):
    time: int | None
    count: int


class _Line(msgspec.Struct, frozen=True):
    number: int
    at_s: float
    value: float


def read_trace(path: Path) -> Trace:
    """The counts of a file. Raises ConfigError with the line and the remedy."""
    rows = _rows(path)
    number, first = next(rows, (0, []))
    if not first:
        raise ConfigError(f"{path}: is empty; give lines of {_FORMS}")
    columns, is_header = _columns(path, number, first)
    lines: list[_Line] = [] if is_header else [_line(path, number, first, columns)]
    for number, row in rows:
        if len(lines) >= BINS_MAX:
            raise ConfigError(f"{path}: line {number}: more than {BINS_MAX:,} counts; give fewer, or longer steps")
        lines.append(_line(path, number, row, columns))
    if len(lines) < 2:  # noqa: PLR2004 - a step is the time between two lines
        raise ConfigError(f"{path}: {len(lines)} counts; give at least 2 lines of {_FORMS}")
    if columns.time is None:
        return Trace([line.value for line in lines], None)
    step_s = _step_s(path, lines)
    return Trace(list(_evenly(path, lines, step_s)), step_s)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines that say something, each with its number and its cells."""
    try:
        if path.stat().st_size > BYTES_MAX:
            raise ConfigError(f"{path}: is larger than {BYTES_MAX // 1024**2} MB; give a file with longer steps")
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = ""
            for number, text in enumerate(file, 1):
                if not text.strip() or text.startswith("#"):
                    continue
                delimiter = delimiter or max(_DELIMITERS, key=text.count)
                cells = next(csv.reader([text], delimiter=delimiter))
                yield number, [cell.strip() for cell in cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; give a CSV file of {_FORMS}") from error


def _columns(path: Path, number: int, first: Sequence[str]) -> tuple[_Columns, bool]:
    """Which columns to read, and whether the first line is a header."""
    if _number(first[-1]) is not None:
        if len(first) == 1:
            return _Columns(None, 0), False
        if _moment(first[0]) is not None:
            return _Columns(0, 1), False
    names = [name.lower() for name in first]
    times = [at for at, name in enumerate(names) if name in TIMES]
    counts = [names.index(name) for name in COUNTS if name in names]
    if not counts:
        counts = [at for at, name in enumerate(names) if at not in times and _number(name) is None]
        if len(counts) != 1:
            said = ", ".join(first)
            msg = f"{path}: line {number}: none of the columns {said} is named {', '.join(COUNTS[:4])}"
            raise ConfigError(f"{msg}; name the one that has the counts, and the one of times `timestamp` or `second`")
    return _Columns(times[0] if times else None, counts[0]), True


def _line(path: Path, number: int, row: Sequence[str], columns: _Columns) -> _Line:
    where = f"{path}: line {number}"
    if columns.count >= len(row):
        raise ConfigError(f"{where}: has {len(row)} columns, the count is column {columns.count + 1}; correct the line")
    value = _number(row[columns.count])
    if value is None or value < 0:
        raise ConfigError(f"{where}: {row[columns.count]!r} is no count; give a number, 0 or more")
    if columns.time is None:
        return _Line(number, 0.0, value)
    text = row[columns.time] if columns.time < len(row) else ""
    at_s = _moment(text)
    if at_s is None:
        raise ConfigError(f"{where}: {text!r} is no time; give seconds, or a date such as 2026-01-31 20:00:00")
    return _Line(number, at_s, value)


def _step_s(path: Path, lines: Sequence[_Line]) -> int:
    """What most lines are apart, whole seconds: the mean of all that are near the median or a multiple of it."""
    for before, line in pairwise(lines):
        if line.at_s <= before.at_s:
            raise ConfigError(f"{path}: line {line.number}: is not later than the line before; sort the file by time")
    apart = [line.at_s - before.at_s for before, line in pairwise(lines)]
    usual = median(apart)
    steps = [
        (each, count) for each in apart if abs(each - (count := max(1, round(each / usual))) * usual) <= JITTER * usual
    ]
    step = math.fsum(each for each, _ in steps) / sum(count for _, count in steps) if steps else usual
    if not 1 <= step <= STEP_MAX_S or abs(step - round(step)) > FRACTION * step:
        msg = f"{path}: lines are {step:g} s apart; add them up to steps of whole seconds"
        raise ConfigError(f"{msg}, 1 to {STEP_MAX_S:,}")
    return round(step)


def _evenly(path: Path, lines: Sequence[_Line], step_s: int) -> Iterator[float]:
    """One value for each step, also where lines are missing."""
    yield lines[0].value
    total = 1
    for before, line in pairwise(lines):
        apart = line.at_s - before.at_s
        steps = round(apart / step_s)
        if steps < 1 or abs(apart - steps * step_s) > JITTER * step_s:
            msg = f"{path}: line {line.number}: is {apart:g} s after the line before, where most are {step_s} s apart"
            raise ConfigError(f"{msg}; give a count for each step of equal length")
        if steps > GAP_MAX + 1:
            msg = f"{path}: line {line.number}: {steps - 1:,} steps are missing before it"
            raise ConfigError(f"{msg}; at most {GAP_MAX} may be: give the rest, or the part before or after alone")
        total += steps
        if total > BINS_MAX:
            raise ConfigError(f"{path}: line {line.number}: more than {BINS_MAX:,} steps; give longer ones")
        for step in range(1, steps + 1):
            yield before.value + (line.value - before.value) * step / steps


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _moment(text: str) -> float | None:
    """Seconds: as written, of Unix milliseconds, or of a date; None for anything else."""
    value = _number(text)
    if value is not None:
        return value / 1000 if abs(value) >= _MILLISECONDS_FROM else value
    try:
        moment = datetime.fromisoformat(text.replace("/", "-"))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
