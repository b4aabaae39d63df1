"""Demand files: what is read, and what each mistake is told."""

from pathlib import Path

import pytest

from springtide.errors import ConfigError
from springtide.twin.crowd.demand import Demand, load_demand

EXAMPLE = Path(__file__).parents[2] / "examples" / "live-room-demand.csv"


def write(folder: Path, text: str) -> Path:
    path = folder / "demand.csv"
    path.write_text(text)
    return path


def test_seconds_and_rates_are_read(tmp_path: Path) -> None:
    demand = load_demand(write(tmp_path, "second,requests_per_second\n0,40\n1, 40.5\n2,0\n\n"))
    assert demand.rates == (40.0, 40.5, 0.0)


def test_the_base_is_the_median_of_the_first_third_and_the_peak_the_highest() -> None:
    demand = Demand((10.0, 90.0, 11.0, 500.0, 400.0, 399.0, 5.0, 5.0, 5.0))
    assert (demand.base, demand.peak, demand.base_seconds) == (11.0, 500.0, 3)
    assert demand.peak_seconds() == {3, 4}
    assert Demand((7.0,)).base == 7.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"line 1: the first line must be `second,requests_per_second`"),
        ("0,40\n1,40\n", r"line 1: the first line must be"),
        ("second,requests_per_second\n", r"line 2: no seconds"),
        ("second,requests_per_second\n0,40\n2,40\n", r"line 3: second '2' where 1 was due"),
        ("second,requests_per_second\n0,many\n", r"line 2: requests_per_second 'many' is not a number"),
        (
            "second,requests_per_second\n0,-1\n",
            r"line 2: requests_per_second -1 must lie between 0 and 1000000",
        ),
        ("second,requests_per_second\n0,inf\n", r"line 2: requests_per_second inf must lie"),
        ("second,requests_per_second\n0,nan\n", r"line 2: requests_per_second nan must lie"),
        ("second,requests_per_second\n0,4,4\n", r"line 2: 3 values; write two"),
        ("second,requests_per_second\n0,4\n\n2,4\n", r"line 3: 0 values; write two"),
        ("second,requests_per_second\n0,0\n1,0\n", r"line 2: every rate is 0"),
    ],
)
def test_each_mistake_names_file_line_and_remedy(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_demand(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_several_mistakes_are_told_at_once_and_ten_are_enough(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_demand(write(tmp_path, "second,requests_per_second\n" + "x,y\n" * 40))
    assert len(str(caught.value).splitlines()) == 10


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_demand(tmp_path / "none.csv")
    (tmp_path / "demand.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_demand(tmp_path / "demand.csv")


def test_the_example_rises_to_over_ninety_times_its_base() -> None:
    demand = load_demand(EXAMPLE)
    assert demand.peak >= 90 * demand.base
    assert demand.rates[44] < demand.peak / 4
    assert demand.rates[45] > demand.peak * 0.9
    assert demand.rates[-1] < 2 * demand.base
    assert 7 <= len(demand.peak_seconds()) <= 10
