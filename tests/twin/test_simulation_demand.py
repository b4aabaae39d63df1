"""Who comes to a simulated sale."""

import math
import random

import pytest

from springtide.twin.simulation.demand import Demand, first_rise_s, largest_wave, wave_per_s
from springtide.twin.simulation.faults import Fault, FaultKind
from springtide.twin.simulation.scenario import DemandSettings, Wave

WAVE = Wave("sale", opens_s=100, peak_per_s=1_000, rise_s=10, holds_s=50, fades_s=20)


@pytest.mark.parametrize(
    ("at_s", "people"),
    [
        (99.9, 0.0),
        (100, 0.0),
        (105, 500.0),
        (110, 1_000.0),
        (160, 1_000.0),
        (180, 1_000 / math.e),
        (200, 1_000 / math.e**2),
    ],
    ids=["before", "opening", "half up", "peak", "last of the peak", "faded once", "faded twice"],
)
def test_a_wave_rises_holds_and_fades(at_s: float, people: float) -> None:
    assert wave_per_s(WAVE, at_s) == pytest.approx(people)


def test_a_wave_without_fading_ends_at_once() -> None:
    assert wave_per_s(Wave("w", 0, 5, rise_s=0, holds_s=10, fades_s=0), 10.1) == 0


def test_larger_sales_and_rushes_come_while_they_last() -> None:
    faults = [
        Fault(FaultKind.LARGER_SALE, at_s=120, lasts_s=20, target="sale", amount=10),
        Fault(FaultKind.LARGER_SALE, at_s=0, lasts_s=500, target="another", amount=99),
        Fault(FaultKind.RUSH, at_s=130, lasts_s=30, amount=77),
    ]
    demand = Demand(DemandSettings(base_per_s=10, waves=(WAVE,)), faults)
    assert [demand.expected(at_s) for at_s in (119, 120, 135, 140, 159, 160)] == pytest.approx(
        [1_010, 10_010, 10_087, 1_087, 1_087, 1_010]
    )


def test_counts_are_drawn_as_lines_between_the_middles_of_bins() -> None:
    demand = Demand(DemandSettings(file="x.csv", bin_s=60, scale=2), counts=[60, 120, 30])
    assert [demand.expected(at_s) for at_s in (0, 30, 60, 90, 120, 150, 999)] == pytest.approx([2, 2, 3, 4, 2.5, 1, 1])


def test_the_noise_is_that_of_counts_and_never_negative() -> None:
    demand, chance = Demand(DemandSettings(base_per_s=400)), random.Random(1)
    seconds = [demand.per_s(second, 1.0, chance) for second in range(4_000)]
    mean = sum(seconds) / len(seconds)
    deviation = math.sqrt(sum((each - mean) ** 2 for each in seconds) / len(seconds))
    assert mean == pytest.approx(400, rel=0.01)
    assert deviation == pytest.approx(20, rel=0.05)
    few = Demand(DemandSettings(base_per_s=0.2))
    assert min(few.per_s(second, 1.0, chance) for second in range(1_000)) == 0


def test_without_noise_a_step_has_the_demand_of_its_middle() -> None:
    demand = Demand(DemandSettings(base_per_s=0, waves=(WAVE,), noise=False))
    assert demand.per_s(100, 10, random.Random(1)) == pytest.approx(500)


def test_the_largest_wave_and_the_first_rise_are_what_readiness_is_about() -> None:
    small = Wave("small", opens_s=10, peak_per_s=10)
    assert largest_wave((small, WAVE)) is WAVE
    assert largest_wave(()) is None
    counts = Demand(DemandSettings(file="x.csv", bin_s=60), counts=[60, 60, 60, 6_000, 60])
    assert 148 <= first_rise_s(counts, 300) <= 160
