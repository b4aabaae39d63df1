"""Demand to replicas, case by case."""

from typing import Any

import msgspec
import pytest

from springtide.decide.autoscale import autoscale, demand_ahead, horizon_ms, replicas_needed
from springtide.model import (
    CapacityEstimate,
    DemandRange,
    ScaleOverride,
    Signal,
    SignalKind,
    SignalSample,
    Snapshot,
    UsualDemand,
)
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


def with_scale(least: int, most: int, until_ms: int = 0, **changes: Any) -> Snapshot:
    return snapshot(scale=ScaleOverride(least, most, until_ms), **changes)


def test_an_operators_bounds_replace_those_of_the_policy() -> None:
    policy = msgspec.structs.replace(POLICY, replicas_max=4)
    assert autoscale(demand(5000), with_scale(0, 30), policy, present=2).replicas == 30
    assert autoscale(demand(0), with_scale(0, 30), policy, present=2).replicas == 0
    floor = autoscale(demand(50), with_scale(9, 30), policy, present=2)
    assert (floor.replicas, floor.asked) == (9, 9)
    assert "kept between 9 and 30" in floor.reason


def test_a_ceiling_takes_away_at_once_what_patience_would_keep() -> None:
    recent = with_scale(0, 3, wanted_before=((NOW - 500, 9),))
    assert autoscale(demand(800), recent, POLICY, present=9).replicas == 3


def test_an_operators_bounds_end() -> None:
    assert autoscale(demand(50), with_scale(9, 30, NOW + 1), POLICY, present=2).replicas == 9
    assert autoscale(demand(50), with_scale(9, 30, NOW), POLICY, present=2).replicas == 2


def test_a_learnt_capacity_counts_where_the_policy_allows_it() -> None:
    learnt = snapshot(capacity=CapacityEstimate(50.0, samples=9))
    assert autoscale(demand(800), learnt, POLICY, present=2).replicas == 10
    policy = msgspec.structs.replace(POLICY, capacity_learnt=True)
    assert autoscale(demand(800), learnt, policy, present=2).replicas == 20
    assert autoscale(demand(800), snapshot(), policy, present=2).replicas == 10


def test_nothing_is_added_while_an_engine_is_the_limit() -> None:
    limited = snapshot(capacity=CapacityEstimate(100.0, best_replicas=5, limit="valkey"))
    wanted = autoscale(demand(5000), limited, POLICY, present=6)
    assert (wanted.replicas, wanted.asked) == (6, 63)
    assert "valkey is the limit" in wanted.reason
    assert autoscale(demand(5000), limited, POLICY, present=4).replicas == 5, "so many have brought throughput"
    assert autoscale(demand(50), limited, POLICY, present=6).replicas == 2
    floor = msgspec.structs.replace(limited, scale=ScaleOverride(8, 30))
    assert autoscale(demand(5000), floor, POLICY, present=2).replicas == 8


def test_the_signal_that_asks_for_most_counts_and_an_old_one_takes_nothing_away() -> None:
    policy = msgspec.structs.replace(POLICY, signals=(Signal("queue", SignalKind.QUEUE, 10),))
    busy = snapshot(signals=(SignalSample("queue", NOW, 125),))
    wanted = autoscale(demand(800), busy, policy, present=10)
    assert (wanted.replicas, wanted.asked, wanted.hold) == (13, 13, False)
    assert wanted.reason.startswith("queue is 125")
    assert autoscale(demand(5000), busy, policy, present=10).replicas == 63
    blind = autoscale(demand(50), snapshot(), policy, present=10)
    assert (blind.replicas, blind.hold) == (10, True)
    assert "no fresh figure for queue" in blind.reason


def test_what_was_asked_for_forgets_what_was_needed_before() -> None:
    wanted = autoscale(demand(50), snapshot(wanted_before=((NOW - 500, 9),)), POLICY, present=9)
    assert (wanted.replicas, wanted.asked) == (9, 2)


def test_the_demand_ahead_is_forecast_over_the_horizon() -> None:
    assert demand_ahead(snapshot(calendar=(event(19_500, 800),)), POLICY).high == 800
    assert demand_ahead(snapshot(calendar=(event(19_501, 800),)), POLICY).high == 50
    usual = snapshot(usual=UsualDemand(rise_per_s=100, peak_per_s=900, bins=72))
    assert demand_ahead(usual, POLICY).high == 150
