"""Promises of the decisions over many ticks: zones that are emptied, lost or flicker, and rollouts that fail."""

import math
from itertools import pairwise
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from springtide.model import (
    DrainReplica,
    FleetPolicy,
    Plan,
    Rollout,
    RolloutState,
    ZoneMode,
    ZoneState,
)
from tests.unit.fleets import POLICY, A, B, H
from tests.unit.tiny_fleet import TICK_MS, TinyFleet

SOME = settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
"""Each example is hundreds of decisions."""

ENDED = {RolloutState.DONE, RolloutState.ROLLED_BACK}
ZONES = (
    msgspec.structs.replace(A, nodes_max=3),
    msgspec.structs.replace(B, nodes_max=2),
    msgspec.structs.replace(H, nodes_max=8),
)
NAMES = tuple(zone.name for zone in ZONES)

policies = st.builds(
    lambda **changes: msgspec.structs.replace(POLICY, **changes),
    base_replicas=st.integers(1, 3),
    rollout_surge=st.integers(1, 3),
    rollout_failed_max=st.integers(0, 2),
    actions_max=st.integers(2, 8),
    drain_ms=st.sampled_from([0, 2_000]),
    scale_in_share=st.sampled_from([1.0, 0.3]),
    scale_in_every_ms=st.sampled_from([0, 3_000]),
)
rates = st.sampled_from([50.0, 320.0, 800.0])


def settled(policy: FleetPolicy, rate: float) -> TinyFleet:
    fleet = TinyFleet(ZONES, policy, rate)
    fleet.more = {"revision": "v1"}
    fleet.ticks(80)
    assert fleet.plan is not None
    assert len(fleet.serving()) == sum(fleet.plan.placement.values())
    return fleet


def checked_tick(fleet: TinyFleet) -> Plan:
    """One tick, in which no decision may take away what is wanted."""
    serves = {name for name in fleet.serving() if fleet.replicas[name].zone not in fleet.cut_off}
    plan = fleet.tick()
    up = {name for name, health in plan.zone_health.items() if health.state is ZoneState.UP}
    serves = {name for name in serves if name in fleet.replicas and fleet.replicas[name].zone in up}
    drained = {action.replica_id for action in plan.actions if isinstance(action, DrainReplica)}
    assert len(serves - drained) >= min(len(serves), plan.replicas_wanted)
    return plan


@SOME
@given(policies, rates, st.sampled_from(NAMES), st.booleans())
def test_a_zone_is_emptied_without_a_dip_and_comes_back(
    policy: FleetPolicy,
    rate: float,
    zone: str,
    rolling: bool,  # noqa: FBT001 - drawn by hypothesis
) -> None:
    fleet = settled(policy, rate)
    before = {name: fleet.count(name) for name in NAMES}
    fleet.more["modes"] = {zone: ZoneMode.DRAINED}
    if rolling:
        fleet.more["rollout"] = Rollout("v2", "v1", RolloutState.ROLLING, fleet.now_ms)
    for _ in range(400 if rolling else 120):
        plan = checked_tick(fleet)
        assert len(fleet.serving()) >= plan.replicas_wanted
    assert fleet.count(zone) == 0
    assert not any(node.zone == zone and node.client_token for node in fleet.nodes.values())
    fleet.more["modes"] = {}
    fleet.ticks(150)
    assert {name: fleet.count(name) for name in NAMES} == before


fates = st.lists(
    st.sampled_from(["well", "well", "well", "fails", "sick", "refused", "crashes"]), min_size=1, max_size=12
)


@SOME
@given(policies, rates, fates, st.integers(0, 60), st.none() | st.sampled_from(NAMES))
def test_a_rollout_ends_whatever_fails_and_capacity_is_never_taken_below_wanted(
    policy: FleetPolicy, rate: float, fate: list[str], lost_at: int, lost: str | None
) -> None:
    fleet = settled(policy, rate)
    fleet.fates = {"v2": fate}
    fleet.more["rollout"] = Rollout("v2", "v1", RolloutState.ROLLING, fleet.now_ms)
    for tick in range(1_000):
        if lost and tick == lost_at:
            fleet.cut_off.add(lost)
        if tick == lost_at + 30:
            fleet.cut_off.clear()
        plan = checked_tick(fleet)
        if "crashes" not in fate and not lost:
            assert len(fleet.serving()) >= plan.replicas_wanted
        if plan.rollout and plan.rollout.state in ENDED and tick > lost_at + 30:
            break
    assert fleet.plan is not None
    assert fleet.plan.rollout is not None
    assert fleet.plan.rollout.state in ENDED
    fleet.fates = {}
    fleet.ticks(400)
    assert set(fleet.revisions()) == {fleet.plan.rollout.target}
    if set(fate) == {"well"}:
        assert fleet.plan.rollout.state is RolloutState.DONE
    if not set(fate) & {"well", "crashes"}:
        assert fleet.plan.rollout.state is RolloutState.ROLLED_BACK


@SOME
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.sampled_from(NAMES))
def test_signs_that_flicker_move_traffic_only_a_few_times(signs: list[bool], zone: str) -> None:
    fleet = settled(msgspec.structs.replace(POLICY, base_replicas=2), 640.0)
    ticks, takes = 1_200, []
    for tick in range(ticks):
        if signs[tick % len(signs)]:
            fleet.cut_off.add(zone)
        else:
            fleet.cut_off.clear()
        fleet.tick()
        takes.append(any(e.weight for e in fleet.endpoints if e.zone == zone))
    switches = sum(now != before for before, now in pairwise(takes))
    # Falls are at least 5, 10, 20, 40 and then 80 s apart.
    longest_s = ticks * TICK_MS / 1000
    assert switches <= 2 * (4 + math.ceil(longest_s / 80))


@SOME
@given(rates, st.sampled_from([0.25, 1.0]), st.sampled_from(NAMES), st.sampled_from(["cut", "die"]))
def test_the_loss_of_any_zone_leaves_what_is_promised(rate: float, headroom: float, zone: str, how: str) -> None:
    fleet = settled(msgspec.structs.replace(POLICY, failure_budget=1, headroom=headroom), rate)
    assert fleet.plan is not None
    assert any("stay whichever zone is lost" in reason for reason in fleet.plan.reasons)
    promised = math.ceil(rate / POLICY.replica_requests_per_s)
    if how == "cut":
        fleet.cut_off.add(zone)
    else:
        fleet.fail(zone)
    for _ in range(60):
        plan = fleet.tick()
        assert len(fleet.serving()) >= promised
        assert sum(plan.placement.values()) <= 2 * max(2, plan.replicas_wanted), "no panic"
    assert len(fleet.serving()) >= fleet.plan.replicas_wanted


@SOME
@given(policies, st.data())
def test_whatever_happens_no_node_holds_more_than_it_can(policy: FleetPolicy, data: Any) -> None:
    fleet = TinyFleet(ZONES, policy, 50.0)
    taken = {name: 1.5 for name in fleet.nodes if data.draw(st.booleans())}
    fleet.more = {"revision": "v1", "taken_cores": taken}
    modes = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(list(ZoneMode)))
    for _ in range(12):
        fleet.rate = data.draw(rates)
        fleet.cut_off = data.draw(st.sets(st.sampled_from(NAMES), max_size=1))
        fleet.silent = data.draw(st.sets(st.sampled_from(NAMES), max_size=1))
        fleet.more["modes"] = data.draw(modes)
        if data.draw(st.integers(0, 3)) == 0:
            revision = data.draw(st.sampled_from(["v1", "v2", "v3"]))
            fleet.more["rollout"] = Rollout(revision, "v1", RolloutState.ROLLING, fleet.now_ms)
        for _ in range(15):
            checked_tick(fleet)
            for node in fleet.nodes.values():
                held = sum(replica.node_id == node.node_id for replica in fleet.replicas.values())
                assert held <= node.cores - taken.get(node.node_id, 0.0)
