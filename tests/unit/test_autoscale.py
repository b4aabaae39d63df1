"""Demand to replicas, case by case."""

import msgspec
import pytest

from springtide.decide.autoscale import autoscale, horizon_ms, replicas_needed
from springtide.model import DemandRange
from tests.unit.fleets import NOW, POLICY, A, B, H, event, snapshot


def demand(high: float) -> DemandRange:
    return DemandRange(0, high, high, "")


@pytest.mark.parametrize(
    ("rate", "replicas"),
    [(0, 2), (160, 2), (160.1, 3), (800, 10), (801, 11)],
    ids=["nothing", "base", "above", "exact", "next"],
)
def test_replicas_carry_the_demand_with_headroom_and_never_fall_below_the_base(rate: float, replicas: int) -> None:
    assert replicas_needed(rate, POLICY, (A, B, H)) == replicas


def test_rounding_in_floating_point_costs_no_replica() -> None:
    policy = msgspec.structs.replace(POLICY, headroom=0.3)
    assert 1000 * 1.3 / 100 <= 13.000000000000002
    assert replicas_needed(1000, policy, (A, B, H)) == 13


def test_up_at_once() -> None:
    wanted = autoscale(demand(1000), snapshot(wanted_before=((NOW - 500, 2),)), POLICY, present=2)
    assert (wanted.replicas, wanted.hold) == (13, False)


def test_down_only_after_patience() -> None:
    recent = snapshot(wanted_before=((NOW - 10_000, 9), (NOW - 500, 2)))
    assert autoscale(demand(50), recent, POLICY, present=9).replicas == 9
    over = snapshot(wanted_before=((NOW - 10_001, 9), (NOW - 500, 2)))
    assert autoscale(demand(50), over, POLICY, present=9).replicas == 2


def test_old_figures_take_nothing_away_and_still_add() -> None:
    old = snapshot(traffic=tuple(s for s in snapshot().traffic if s.at_ms < NOW - 1_500))
    wanted = autoscale(demand(50), old, POLICY, present=9)
    assert (wanted.replicas, wanted.hold) == (9, True)
    assert autoscale(demand(5000), old, POLICY, present=9).replicas == 63


def test_no_figures_at_all_take_nothing_away() -> None:
    wanted = autoscale(demand(0), snapshot(traffic=()), POLICY, present=5)
    assert (wanted.replicas, wanted.hold) == (5, True)


def test_a_budget_bounds_demand_and_memory() -> None:
    policy = msgspec.structs.replace(POLICY, replicas_max=4)
    seen = snapshot(wanted_before=((NOW - 500, 9),))
    assert autoscale(demand(5000), seen, policy, present=2).replicas == 4
    assert autoscale(demand(50), seen, policy, present=2).replicas == 4


def test_the_horizon_counts_boot_and_every_wave_of_starts() -> None:
    # 800/s need 10 replicas, 8 beyond the base: 2 waves of 4, each a start of 3 s and a tick; 6 s boot.
    assert horizon_ms((A, B, H), POLICY, (event(60_000, 800),)) == 6_000 + 2 * 3_500 + 1_500
    # Twelve more need three more waves.
    assert horizon_ms((A, B, H), POLICY, (event(60_000, 1760),)) == 6_000 + 5 * 3_500 + 1_500


def test_without_events_the_horizon_is_one_boot_and_one_start() -> None:
    assert horizon_ms((A, B, H), POLICY, ()) == 6_000 + 3_500 + 1_500
