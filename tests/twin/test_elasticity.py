"""The series and the elasticity metrics, computed by hand."""

import math
import random
from array import array
from pathlib import Path

import pytest

from springtide.errors import ConfigError
from springtide.twin.elasticity import Need, by_second, measure_steps
from springtide.twin.kernel_world import Step
from springtide.twin.series import BIN_S, Sale, Series, flash_sales, from_bins, generated, load_bins, normal_noise

START = 1_700_000_000_000
CALM = array("d", [0.0] * 7)


def series(*rates: float) -> Series:
    return Series("s", START, array("d", rates), tuned_s=len(rates))


def step(second: float, serving: int, paid: int = 0) -> Step:
    return Step(START + round(second * 1000), serving, paid)


def test_a_second_has_the_least_that_it_had_at_any_time() -> None:
    steps = [step(-5, 2), step(2.5, 4), step(4.5, 1), step(7, 3)]
    assert list(by_second(steps, START, 0, 9)) == [(0, 3, 2), (3, 4, 4), (4, 7, 1), (7, 9, 3)]
    assert list(by_second(steps, START, 5, 8)) == [(5, 7, 1), (7, 8, 3)]


def test_the_metrics_by_hand() -> None:
    demand = series(100, 100, 200, 400, 400, 100, 100, 100)
    steps = [step(0, 2, 2), step(6, 1, 4)]
    found = measure_steps(Need.of(demand, 100), steps, 0, 8)
    # Needed 1 1 2 4 4 1 1 1; there are 2 2 2 2 2 2 1 1.
    assert found.under_accuracy == pytest.approx(100 / 8 * (2 / 4 + 2 / 4))
    assert found.over_accuracy == pytest.approx(100 / 8 * 3)
    assert (found.under_share, found.over_share) == (100 * 2 / 8, 100 * 3 / 8)
    assert found.cost == pytest.approx((6 * 2 + 2 * 4) / 3600)


def test_a_queue_makes_the_overload_last_until_it_is_worked_off() -> None:
    """Two seconds of 200/s too much; 400 may wait for 200/s. At 100/s it goes by 100 a second."""
    demand = series(200, 400, 400, 100, 100, 100, 100, 100)
    found = measure_steps(Need.of(demand, 100), [step(0, 2)], 0, 8)
    # Waiting after each second: 0 200 400 300 200 100 0 0; more than a second's work is a violation.
    assert found.violation_s == 3
    assert found.refused == 0


def test_what_the_queue_cannot_hold_is_refused() -> None:
    demand = series(1_000, 1_000, 100, 100, 100)
    found = measure_steps(Need.of(demand, 100), [step(0, 2)], 0, 5)
    assert found.refused == pytest.approx((1_600 - 400) / 2_300)


def test_without_replicas_every_second_with_demand_is_a_violation() -> None:
    found = measure_steps(Need.of(series(50, 50, 0, 50), 100), [step(0, 0)], 0, 4)
    assert found.violation_s == 3
    assert found.under_share == 100


def test_instability_counts_the_minutes_in_which_supply_and_demand_part() -> None:
    demand = series(*[100.0] * 60, *[300.0] * 60, *[300.0] * 60, *[100.0] * 60)
    together = [step(0, 1), step(60, 3), step(180, 1)]
    assert measure_steps(Need.of(demand, 100), together, 0, 240).instability == 0
    late = [step(0, 1), step(120, 3)]
    assert measure_steps(Need.of(demand, 100), late, 0, 240).instability == 100


def test_no_part_of_a_series_cannot_be_measured() -> None:
    need = Need.of(series(1, 1), 100)
    for first, last in ((1, 1), (0, 3)):
        with pytest.raises(ValueError, match="no part"):
            measure_steps(need, [step(0, 1)], first, last)


def test_bins_become_lines_between_their_middles() -> None:
    found = from_bins("b", [30.0, 90.0, 30.0], 10.0, CALM, START)
    assert found.seconds == 3 * BIN_S
    assert found.tuned_s == 2 * BIN_S
    assert found.rates[0] == found.rates[100] == pytest.approx(5.0)
    assert found.rates[450] == pytest.approx(15.0)
    assert found.rates[300] == pytest.approx(10.0)
    assert found.mean(START, START + 1_000) == pytest.approx(5.0)
    assert found.mean(START - 60_000, START - 30_000) == pytest.approx(5.0), "before it begins, as it begins"


def test_noise_is_that_of_counts_and_the_seeds() -> None:
    noise = normal_noise(random.Random(3))
    assert noise == normal_noise(random.Random(3))
    assert noise != normal_noise(random.Random(4))
    mean = math.fsum(noise) / len(noise)
    assert abs(mean) < 0.02
    assert math.fsum(x * x for x in noise) / len(noise) == pytest.approx(1.0, abs=0.03)
    rates = from_bins("b", [100.0] * 30, 400.0, noise, START).rates
    assert math.fsum((rate - 400) ** 2 for rate in rates) / len(rates) == pytest.approx(400, rel=0.1)


def test_a_sale_rises_holds_and_fades() -> None:
    sale = Sale(1_000, rise_s=10, peak=500, holds_s=60, fades_s=30)
    found = flash_sales("f", 0.0, [sale], CALM, START)
    assert found.rates[999] == 0
    assert found.rates[1_004] == 250
    assert found.rates[1_009] == found.rates[1_069] == 500
    assert found.rates[1_100] == pytest.approx(500 / math.e)


def test_generated_sales_are_the_seeds_and_the_held_out_ones_have_their_own() -> None:
    first = generated(random.Random(1), random.Random(2), 100.0, START)
    other = generated(random.Random(1), random.Random(3), 100.0, START)
    assert [each.name for each in first][:2] == ["flash announced", "flash unannounced"]
    announced, unannounced = first[0], first[1]
    assert len(announced.calendar) == 9
    assert unannounced.calendar == ()
    assert announced.rates[: announced.tuned_s] == other[0].rates[: announced.tuned_s]
    assert announced.rates != other[0].rates
    assert max(announced.rates) > 20 * 100


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("timestamp,value\na,1\nb,x\n", "line 3"),
        ("timestamp,value\na,1\nb,-1\n", "line 3"),
        ("time,count\na,1\n", "line 2"),
        ("timestamp,value\na,1\n", "1 bins"),
    ],
    ids=["text", "negative", "header", "short"],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "bins.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        load_bins(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.csv"):
        load_bins(tmp_path / "none.csv")
