"""The probability that cores are ready: against closed formulas, against counting, and against chance itself."""

import itertools
import math
import random

import pytest

from springtide.decide.readiness import Batch, boot_quantile_ms, boot_share, late_share, probability
from springtide.model import Odds

SURE = Odds(boot_failed=0.0, stock_out_plenty=0.0, stock_out_low=0.0, zone_lost=0.0, spot_per_h=0.0)
BOOT = (60_000, 180_000)


def batch(machines: int = 1, units: int = 1, **fields: object) -> Batch:
    return Batch("z-a", machines, units, BOOT, 0, **fields)  # type: ignore[arg-type] # passed on as they are


def test_half_boot_by_the_median_and_99_of_100_by_the_percentile() -> None:
    assert boot_share(BOOT, 60_000) == pytest.approx(0.5)
    assert boot_share(BOOT, 180_000) == pytest.approx(0.99)
    assert boot_share(BOOT, 0) == 0.0
    assert boot_share((0, 0), 0) == 1.0  # what stands needs no time
    assert (boot_share((5_000, 5_000), 4_999), boot_share((5_000, 5_000), 5_000)) == (0.0, 1.0)


@pytest.mark.parametrize("late", [0.5, 0.1, 0.01, 1e-4, 1e-8])
def test_a_quantile_is_the_share_backwards_even_far_out(late: float) -> None:
    batch_of_one = batch()
    at_ms = boot_quantile_ms(BOOT, late)
    assert late_share(batch_of_one, at_ms, SURE) == pytest.approx(late, rel=1e-6)


def test_all_of_many_are_ready_with_the_product_of_their_probabilities() -> None:
    at_ms = 300_000
    share = boot_share(BOOT, at_ms)
    assert probability([batch(200)], 200, at_ms, SURE) == pytest.approx(share**200)
    two = [batch(20), Batch("z-b", 30, 4, (20_000, 40_000), 100_000)]
    assert probability(two, 140, at_ms, SURE) == pytest.approx(share**20 * boot_share((20_000, 40_000), 200_000) ** 30)


def test_with_machines_to_spare_it_is_the_binomial_sum() -> None:
    at_ms, count, wanted = 150_000, 60, 57
    late = late_share(batch(), at_ms, SURE)
    expected = sum(math.comb(count, lost) * late**lost * (1 - late) ** (count - lost) for lost in range(4))
    assert probability([batch(count)], wanted, at_ms, SURE) == pytest.approx(expected)


def test_machines_of_different_size_add_up_as_counting_every_case_does() -> None:
    """Stock-outs, failures, two zones that may be lost, sizes with no common measure but one: all cases counted."""
    odds = Odds(boot_failed=0.03, stock_out_plenty=0.0, stock_out_low=0.0, zone_lost=0.05, spot_per_h=0.0)
    batches = [
        Batch("z-a", 2, 3, BOOT, 0, stock_out=0.2, spill_ms=30_000),
        Batch("z-a", 1, 5, BOOT, 10_000),
        Batch("z-b", 2, 4, (30_000, 50_000), 0, stock_out=0.1, spill_ms=None),
    ]
    at_ms = 100_000
    for wanted in range(1, 20):
        expected = counted(batches, wanted, at_ms, odds)
        assert probability(batches, wanted, at_ms, odds) == pytest.approx(expected, abs=1e-9), wanted


def counted(batches: list[Batch], wanted: int, at_ms: int, odds: Odds) -> float:
    """Every combination of lost zones, empty offers and late machines, weighed."""
    zones = sorted({one.zone for one in batches})
    total = 0.0
    for lost in itertools.product([False, True], repeat=len(zones)):
        for out in itertools.product([False, True], repeat=len(batches)):
            for ready in itertools.product(*(range(one.machines + 1) for one in batches)):
                weight = math.prod(odds.zone_lost if one else 1 - odds.zone_lost for one in lost)
                units = 0
                for one, empty, count in zip(batches, out, ready, strict=True):
                    weight *= one.stock_out if empty else 1 - one.stock_out
                    if empty and one.spill_ms is None:
                        late = 1.0
                    else:
                        late = late_share(one, at_ms, odds, one.spill_ms or 0.0 if empty else 0.0)
                    weight *= math.comb(one.machines, count) * (1 - late) ** count * late ** (one.machines - count)
                    units += 0 if lost[zones.index(one.zone)] else count * one.units
                total += weight if units >= wanted else 0.0
    return total


def test_it_is_what_a_simulation_of_the_same_machines_finds() -> None:
    odds = Odds(boot_failed=0.01, stock_out_plenty=0.0, stock_out_low=0.0, zone_lost=0.02, spot_per_h=0.0)
    batches = [
        Batch("z-a", 40, 8, BOOT, 0, stock_out=0.1, spill_ms=60_000),
        Batch("z-b", 25, 16, (20_000, 90_000), 30_000),
    ]
    at_ms, wanted, runs = 170_000, 700, 20_000
    chance = random.Random(5)
    met = 0
    for _ in range(runs):
        units = 0
        for one in batches:
            delay = (one.spill_ms or 0) if chance.random() < one.stock_out else 0
            median, p99 = one.boot_ms
            sigma = math.log(p99 / median) / 2.3263478740408408
            up = sum(
                one.ordered_ms + delay + chance.lognormvariate(math.log(median), sigma) <= at_ms
                and chance.random() >= odds.boot_failed
                for _ in range(one.machines)
            )
            units += 0 if chance.random() < odds.zone_lost else up * one.units
        met += units >= wanted
    found = probability(batches, wanted, at_ms, odds)
    assert 0.2 < found < 0.99, "the case says nothing at the ends"
    assert found == pytest.approx(met / runs, abs=4 * math.sqrt(found * (1 - found) / runs))


def test_nothing_serves_before_its_image_is_there_nor_before_what_follows_the_boot() -> None:
    assert probability([batch(after_ms=0, not_before_ms=1_000_000)], 1, 999_999, SURE) == 0.0
    assert probability([batch(after_ms=0, not_before_ms=1_000_000)], 1, 1_000_000, SURE) > 0.99
    assert probability([batch(after_ms=400_000)], 1, 460_000, SURE) == pytest.approx(0.5)


def test_spot_is_safe_for_an_hour_and_then_fades() -> None:
    odds = Odds(boot_failed=0.0, stock_out_plenty=0.0, stock_out_low=0.0, zone_lost=0.0, spot_per_h=0.1)
    spot = batch(spot=True)
    assert probability([spot], 1, 3_600_000, odds) == pytest.approx(1.0)
    assert probability([spot], 1, 2 * 3_600_000, odds) == pytest.approx(math.exp(-0.1))
    assert probability([batch()], 1, 2 * 3_600_000, odds) == pytest.approx(1.0)


def test_what_is_wanted_bounds_the_answer() -> None:
    assert probability([], 0, 0, SURE) == 1.0
    assert probability([], 1, 10**9, SURE) == 0.0
    assert probability([batch(3, 4)], 13, 10**9, SURE) == 0.0


def test_far_from_possible_is_nought_and_quickly_found() -> None:
    many = [Batch(f"z-{number % 6}", 500, 16, BOOT, 0) for number in range(60)]
    assert probability(many, 470_000, 61_000, SURE) == 0.0
    assert probability(many, 470_000, 150_000, SURE) > 0.0


def test_a_coarse_grid_never_overstates(monkeypatch: pytest.MonkeyPatch) -> None:
    """With very much to spare, it is counted in larger steps: what is late is rounded up, what is spare down."""
    odds = Odds(boot_failed=0.02, stock_out_plenty=0.0, stock_out_low=0.0, zone_lost=0.0, spot_per_h=0.0)
    many = [batch(4_000, 70), Batch("z-b", 4_000, 51, BOOT, 0)]
    whole = 4_000 * (70 + 51)
    found = [probability(many, whole - spare, 10**9, odds) for spare in range(9_500, 13_000, 250)]
    monkeypatch.setattr("springtide.decide.readiness.GRID_MAX", 100_000)
    exact = [probability(many, whole - spare, 10**9, odds) for spare in range(9_500, 13_000, 250)]
    assert min(exact) < 0.5
    assert max(exact) > 0.99
    assert all(coarse <= fine + 1e-9 for coarse, fine in zip(found, exact, strict=True))
    assert max(fine - coarse for coarse, fine in zip(found, exact, strict=True)) < 0.25
