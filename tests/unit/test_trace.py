"""Counts per time step from CSV files of any shape."""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from springtide.errors import ConfigError
from springtide.twin.series import BINS_MAX
from springtide.twin.simulation import trace
from springtide.twin.simulation.demand import Demand
from springtide.twin.simulation.reading import counts_of, with_demand
from springtide.twin.simulation.scenario import DURATION_MAX_S, DemandSettings, Scenario
from springtide.twin.simulation.trace import Trace, read_trace
from tests.twin.simulations import small

COUNTS = [94.0, 56.0, 187.0, 95.0, 51.0, 0.0, 12.5, 656.0]
BEGIN = datetime(2026, 3, 1, 23, 44, tzinfo=UTC)


def stamped(form: Callable[[datetime], str], step_s: int = 300, joined: str = ",") -> list[str]:
    return [f"{form(BEGIN + timedelta(seconds=n * step_s))}{joined}{count}" for n, count in enumerate(COUNTS)]


SHAPES: dict[str, tuple[list[str], int | None]] = {
    "timestamp,value": (["timestamp,value", *stamped(lambda at: f"{at:%Y-%m-%d %H:%M:%S}")], 300),
    "minutes without seconds": (["timestamp,value", *stamped(lambda at: f"{at:%Y-%m-%d %H:%M}", 60)], 60),
    "ISO with a zone": (["time;requests", *stamped(lambda at: at.isoformat(), 10, ";")], 10),
    "ISO with a Z": (["ts\tcount", *stamped(lambda at: f"{at:%Y-%m-%dT%H:%M:%SZ}", 5, "\t")], 5),
    "slashes and bars": (["Date|Hits", *stamped(lambda at: f"{at:%Y/%m/%d %H:%M:%S}", 3600, "|")], 3600),
    "days": (["date,visits", *stamped(lambda at: f"{at:%Y-%m-%d}", 86_400)], 86_400),
    "seconds": (["second,count", *(f"{n},{count}" for n, count in enumerate(COUNTS))], 1),
    "Unix seconds": (["t,n", *(f"{1_700_000_000 + 60 * n},{count}" for n, count in enumerate(COUNTS))], 60),
    "Unix milliseconds": (["t,n", *(f"{1_700_000_000_000 + 2000 * n},{count}" for n, count in enumerate(COUNTS))], 2),
    "no header": (stamped(lambda at: f"{at:%Y-%m-%d %H:%M:%S}"), 300),
    "no header, seconds": ([f"{15 * n},{count}" for n, count in enumerate(COUNTS)], 15),
    "counts alone": ([f"{count}" for count in COUNTS], None),
    "counts with a header": (["value", *(f"{count}" for count in COUNTS)], None),
    "any name beside a time": (["time,shoppers", *(f"{30 * n},{count}" for n, count in enumerate(COUNTS))], 30),
    "other columns": (["host,count,second,p99", *(f"a,{count},{20 * n},9" for n, count in enumerate(COUNTS))], 20),
    "quoted": (['"timestamp","value"', *(f'"{7 * n}","{count}"' for n, count in enumerate(COUNTS))], 7),
    "blank and commented lines": (
        ["# made by hand", "", "second,count", "#", "0,94.0", "", *(f"{n},{c}" for n, c in enumerate(COUNTS) if n)],
        1,
    ),
    "early and late": (["second,count", *(f"{100 * n + n % 3},{count}" for n, count in enumerate(COUNTS))], 100),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_every_shape_is_read(tmp_path: Path, shape: str, ending: str) -> None:
    lines, step_s = SHAPES[shape]
    file = tmp_path / "counts.csv"
    file.write_text(ending.join(lines) + ending, newline="")
    assert read_trace(file) == Trace(COUNTS, step_s)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    file = tmp_path / "counts.csv"
    file.write_text("﻿second,count\n0,1\n1,2\n", encoding="utf-8")
    assert read_trace(file).values == [1.0, 2.0]


def test_missing_lines_are_drawn_in_a_straight_line(tmp_path: Path) -> None:
    file = tmp_path / "counts.csv"
    file.write_text("second,count\n0,10\n60,10\n120,10\n300,40\n360,40\n420,40\n")
    assert read_trace(file) == Trace([10.0, 10.0, 10.0, 20.0, 30.0, 40.0, 40.0, 40.0], 60)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("second,count\n", "0 counts; give at least 2"),
        ("second,count\n0,1\n", "1 counts; give at least 2"),
        ("second,count\n0,1\n1,x\n2,3\n", "line 3: 'x' is no count"),
        ("second,count\n0,1\n1,-4\n", "line 3: '-4' is no count; give a number, 0 or more"),
        ("second,count\n0,1\n1,inf\n", "line 3: 'inf' is no count"),
        ("second,count\n0,1\n\n1,nan\n", "line 4: 'nan' is no count"),
        ("second,count\n0,1\n1\n", "line 3: has 1 columns, the count is column 2"),
        ("second,count\n0,1\nsoon,2\n", "line 3: 'soon' is no time; give seconds, or a date such as"),
        ("second,count\n0,1\n2,2\n1,3\n", "line 4: is not later than the line before; sort the file by time"),
        ("second,count\n0,1\n0,2\n", "line 3: is not later"),
        ("second,count\n0,1\n60,2\n120,3\n150,4\n210,5\n", "line 5: is 30 s after the line before, where most are 60"),
        ("second,count\n0,1\n60,2\n120,3\n6000,4\n", "line 5: 97 steps are missing before it; at most 12"),
        ("second,count\n0,1\n0.25,2\n0.5,3\n", "lines are 0.25 s apart; add them up to steps of whole seconds"),
        ("second,count\n0,1\n2.5,2\n5,3\n", "lines are 2.5 s apart"),
        ("a,b,c\n1,2,3\n", "line 1: none of the columns a, b, c is named value, count"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_the_remedy(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "counts.csv"
    file.write_text(text)
    with pytest.raises(ConfigError) as told:
        read_trace(file)
    assert str(told.value).startswith(str(file))
    assert words in str(told.value)


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"second,count\n0,\xff\xfe\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "binary.csv")


def test_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "counts.csv"
    file.write_text("count\n" + "1\n" * (BINS_MAX + 1))
    with pytest.raises(ConfigError, match=f"line {BINS_MAX + 2}: more than 200,000 counts"):
        read_trace(file)
    file.write_text("second,count\n" + "".join(f"{12 * n},1\n{12 * n + 1},1\n" for n in range(BINS_MAX // 10)))
    with pytest.raises(ConfigError, match="more than 200,000 steps"):
        read_trace(file)
    monkeypatch.setattr(trace, "BYTES_MAX", 10)
    with pytest.raises(ConfigError, match="larger than"):
        read_trace(file)


def driven(file: Path, scale: float = 1.0) -> tuple[Scenario, Demand]:
    scenario = with_demand(small(), file, scale)
    return scenario, Demand(scenario.demand, scenario.faults, counts_of(scenario))


def test_counts_become_people_a_second_times_the_scale(tmp_path: Path) -> None:
    file = tmp_path / "counts.csv"
    file.write_text("second,count\n0,600\n60,600\n120,1200\n180,1200\n")
    scenario, demand = driven(file, 2.0)
    assert (scenario.duration_s, scenario.demand.bin_s, scenario.demand.waves) == (240, 60, ())
    assert demand.expected(30) == pytest.approx(20)
    assert demand.expected(120) == pytest.approx(30)  # between the middles of two steps
    assert demand.expected(150) == pytest.approx(40)
    assert math.fsum(demand.steps(240, 1.0)) == pytest.approx(2 * 3_600, rel=0.01)


def test_a_file_without_times_has_the_scenario_s_steps(tmp_path: Path) -> None:
    file = tmp_path / "counts.csv"
    file.write_text("10\n20\n30\n")
    assert driven(file)[0].duration_s == 3 * small().demand.bin_s


def test_a_file_that_is_too_long_says_how_much_of_it_fits(tmp_path: Path) -> None:
    file = tmp_path / "counts.csv"
    days = DURATION_MAX_S // 86_400 + 1
    file.write_text("date,count\n" + "".join(f"{86_400 * day},5\n" for day in range(days)))
    with pytest.raises(ConfigError, match=f"give at most {days - 1}, the first {days - 1} steps"):
        driven(file)


def test_a_scenario_that_says_another_step_than_its_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "counts.csv"
    file.write_text("second,count\n0,600\n60,600\n")
    scenario = msgspec.structs.replace(small(), demand=DemandSettings(file=str(file), bin_s=300))
    with pytest.raises(ConfigError, match=r"60 s apart, and the scenario says 300 s; set `bin_s = 60`"):
        counts_of(scenario)
