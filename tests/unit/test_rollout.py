"""Rolling updates, case by case, then over many ticks."""

from typing import Any

import msgspec

from springtide.decide.observed import Observed
from springtide.decide.place import Placement
from springtide.decide.reconcile import Reconciler
from springtide.decide.rollout import Revisions, advance
from springtide.decide.zones import conclude
from springtide.model import (
    DrainReplica,
    Replica,
    ReplicaState,
    Rollout,
    RolloutState,
    StartReplica,
    ZoneMode,
)
from tests.unit.fleets import BASE, IDC_NODES, NOW, POLICY, A, B, H, node, replica, snapshot
from tests.unit.tiny_fleet import TinyFleet

ROLLING = Rollout("v2", "v1", RolloutState.ROLLING, NOW - 5_000)
BACK = msgspec.structs.replace(ROLLING, state=RolloutState.ROLLING_BACK, reason="it failed")


def of(revision: str, *replicas: Replica) -> tuple[Replica, ...]:
    return tuple(msgspec.structs.replace(each, revision=revision) for each in replicas)


OLD = of("v1", *BASE)
FRESH = of("v2", replica("a2", IDC_NODES[0], age_ms=1_500))
FAILED = of("v2", *(replica(f"f{n}", IDC_NODES[0], ReplicaState.FAILED) for n in range(3)))


def steps(rollout: Rollout | None = ROLLING, **changes: Any) -> list[tuple[str, str]]:
    """What is started (with its revision) and drained towards one replica in each room."""
    seen = Observed(snapshot(rollout=rollout, **{"replicas": OLD, **changes}), POLICY)
    placement = Placement({"idc-a": 1, "idc-b": 1, "cloud-h": 0}, 0, ())
    found = []
    for action in Reconciler(seen, POLICY, placement).compute():
        if isinstance(action, StartReplica):
            found.append(("start", action.spec.revision))
        if isinstance(action, DrainReplica):
            found.append(("drain", action.replica_id))
    return found


def after(rollout: Rollout = ROLLING, wanted: int = 2, **changes: Any) -> Rollout:
    seen = Observed(snapshot(rollout=rollout, **{"replicas": OLD, **changes}), POLICY)
    found = advance(Revisions(seen, POLICY, rollout, conclude(seen, POLICY)), POLICY, wanted)
    assert found is not None
    return found


def healthy(*fleet: tuple[Replica, ...]) -> frozenset[str]:
    return frozenset(r.replica_id for part in fleet for r in part)


def test_one_is_added_before_one_goes() -> None:
    assert steps() == [("start", "v2")]
    under_way = of("v2", replica("a2", IDC_NODES[0], ReplicaState.STARTING, age_ms=100))
    assert steps(replicas=(*OLD, *under_way)) == []


def test_one_goes_only_when_the_new_one_is_ready_healthy_and_has_been_for_a_while() -> None:
    fleet = (*OLD, *FRESH)
    assert steps(replicas=fleet, healthy=healthy(fleet)) == [("drain", "a1")]
    assert steps(replicas=fleet, healthy=healthy(OLD)) == [], "the balancer does not find it healthy"
    assert steps(replicas=fleet, healthy=None) == [], "the balancer has not said"
    young = of("v2", replica("a2", IDC_NODES[0], age_ms=1_499))
    assert steps(replicas=(*OLD, *young), healthy=healthy(fleet)) == []


def test_replicas_without_a_revision_are_of_the_one_in_force() -> None:
    assert steps(replicas=BASE) == [("start", "v2")]
    assert steps(None, replicas=BASE, revision="v1") == []
    done = msgspec.structs.replace(ROLLING, state=RolloutState.DONE)
    assert steps(done, replicas=BASE) == []
    assert steps(None, replicas=OLD) == [], "without a revision to want, none is replaced"


def test_what_is_of_another_revision_without_a_rollout_is_replaced_too() -> None:
    assert steps(None, replicas=OLD, revision="v2") == [("start", "v2")]


def test_scaling_out_uses_the_revision_that_is_wanted() -> None:
    assert steps(replicas=OLD[:1])[:1] == [("start", "v2")]
    assert steps(BACK, replicas=OLD[:1]) == [("start", "v1")]


def test_one_that_has_yet_to_prove_itself_serves_all_the_same() -> None:
    stray = of("v1", replica("x1", node("gone"), age_ms=100))
    assert ("drain", "x1") not in steps(BACK, replicas=stray, healthy=None)


def test_rolling_back_has_the_same_gates() -> None:
    mixed = (OLD[0], *of("v2", BASE[1]))
    assert steps(BACK, replicas=mixed, healthy=healthy(mixed)) == [("start", "v1")]
    added = of("v1", replica("b2", IDC_NODES[1], age_ms=1_500))
    assert steps(BACK, replicas=(*mixed, *added), healthy=healthy(mixed, added)) == [("drain", "b1")]


def test_one_that_never_becomes_healthy_goes_and_counts() -> None:
    stuck = of("v2", replica("a2", IDC_NODES[0], age_ms=15_001))
    fleet: dict[str, Any] = {"replicas": (*OLD, *stuck), "healthy": healthy(OLD)}
    assert steps(**fleet) == [("drain", "a2")]
    assert after(**fleet).failed_ids == ("a2",)


def test_each_failure_counts_once_and_too_many_roll_back() -> None:
    one = after(replicas=(*OLD, *FAILED[:1]))
    assert (one.failed, one.state) == (1, RolloutState.ROLLING)
    assert after(one, replicas=(*OLD, *FAILED[:1])).failed == 1
    three = after(one, replicas=(*OLD, *FAILED))
    assert (three.failed, three.state) == (3, RolloutState.ROLLING_BACK)
    assert three.reason == "3 replicas of v2 failed, the last one: f2 failed"
    assert after(replicas=(*of("v1", *FAILED), *OLD)).failed == 0, "an old one that fails is not the new one's fault"


def test_what_fails_with_its_zone_does_not_count() -> None:
    both = (OLD[1], *of("v1", replica("a1", IDC_NODES[0], ReplicaState.FAILED)), *FAILED)
    assert after(replicas=both).failed == 0
    lost = of("v2", replica("a2", IDC_NODES[0], age_ms=15_001), replica("a3", IDC_NODES[0]))
    others = of("v1", *(replica(f"b{n}", IDC_NODES[1]) for n in range(3)))
    assert after(replicas=(*others, *lost), healthy=healthy(others)).failed == 0


def test_it_is_done_when_all_are_replaced_and_serve() -> None:
    new = of("v2", *BASE)
    assert after(replicas=new, healthy=healthy(new)).state is RolloutState.DONE
    assert after(replicas=new, healthy=healthy(new[:1])).state is RolloutState.ROLLING
    assert after(replicas=(*new, OLD[0]), healthy=healthy(new, OLD)).state is RolloutState.ROLLING
    assert after(BACK, replicas=OLD, healthy=healthy(OLD)).state is RolloutState.ROLLED_BACK
    starting = of("v2", replica("b9", IDC_NODES[1], ReplicaState.STARTING, age_ms=100))
    assert after(BACK, replicas=(*OLD, *starting), healthy=healthy(OLD)).state is RolloutState.ROLLING_BACK


def test_old_replicas_stay_where_operators_or_silence_forbid_their_replacement() -> None:
    cordoned = {"idc-a": ZoneMode.CORDONED}
    fleet = (*OLD, *FRESH)
    assert steps(replicas=fleet, healthy=healthy(fleet), modes=cordoned)[0] == ("drain", "b1")
    new = (OLD[0], *of("v2", BASE[1]))
    assert after(replicas=new, healthy=healthy(new), modes=cordoned).state is RolloutState.ROLLING
    assert after(replicas=new, healthy=healthy(new), ages_ms={"replicas/idc-a": 9_000}).state is RolloutState.ROLLING


ROOMY = tuple(msgspec.structs.replace(zone, nodes_max=2) for zone in (A, B))


def rolled_out(fleet: TinyFleet, revision: str, ticks: int = 600) -> RolloutState:
    """Roll a revision out; how it ended. Nothing may serve less than is wanted meanwhile."""
    fleet.more = {"rollout": Rollout(revision, "v1", RolloutState.ROLLING, fleet.now_ms)}
    for _ in range(ticks):
        plan = fleet.tick()
        assert plan.rollout is not None
        assert len(fleet.serving()) >= plan.replicas_wanted
        if plan.rollout.state in {RolloutState.DONE, RolloutState.ROLLED_BACK}:
            fleet.ticks(30)
            return plan.rollout.state
    raise AssertionError(f"no end: {fleet.plans[-1]}")


def a_fleet(rate: float = 800.0, **policy: Any) -> TinyFleet:
    fleet = TinyFleet((*ROOMY, H), msgspec.structs.replace(POLICY, **policy), rate)
    fleet.more = {"revision": "v1"}
    fleet.ticks(60)
    assert set(fleet.revisions()) == {"v1"}
    return fleet


def test_all_are_replaced_and_capacity_never_falls() -> None:
    fleet = a_fleet()
    assert rolled_out(fleet, "v2") is RolloutState.DONE
    assert fleet.revisions() == {"v2": 10}
    fleet.ticks(20)
    assert fleet.revisions() == {"v2": 10}


def test_no_more_than_the_surge_are_added_at_once() -> None:
    fleet = a_fleet(rollout_surge=3)
    before = len(fleet.plans)
    assert rolled_out(fleet, "v2") is RolloutState.DONE
    starts = [sum(isinstance(a, StartReplica) for a in plan.actions) for plan in fleet.plans[before:]]
    assert max(starts) == 3


def test_a_revision_that_does_not_start_is_rolled_back_after_three_and_nothing_was_lost() -> None:
    fleet = a_fleet()
    fleet.broken = {"v2"}
    assert rolled_out(fleet, "v2") is RolloutState.ROLLED_BACK
    assert fleet.revisions() == {"v1": 10}
    assert fleet.plan is not None
    assert fleet.plan.rollout is not None
    assert fleet.plan.rollout.failed == 3
    assert any("v2 is rolled back to v1: 3 replicas of v2 failed" in alert for alert in fleet.plan.alerts)


def test_a_revision_that_is_never_healthy_is_rolled_back() -> None:
    fleet = a_fleet()
    fleet.sick = {"v2"}
    assert rolled_out(fleet, "v2") is RolloutState.ROLLED_BACK
    assert fleet.revisions() == {"v1": 10}


def test_a_revision_whose_starts_leave_no_trace_is_rolled_back() -> None:
    fleet = a_fleet()
    fleet.refused = {"v2"}
    assert rolled_out(fleet, "v2") is RolloutState.ROLLED_BACK
    assert fleet.plan is not None
    assert fleet.plan.rollout is not None
    assert fleet.plan.rollout.reason == "no replica of v2 came up within 45 s"


def test_without_room_for_one_more_a_node_is_rented_and_given_back() -> None:
    tight = TinyFleet((msgspec.structs.replace(H, nodes_max=3),), POLICY, 320.0)
    tight.more = {"revision": "v1"}
    tight.ticks(60)
    assert (len(tight.nodes), len(tight.replicas)) == (2, 4)
    assert rolled_out(tight, "v2") is RolloutState.DONE
    tight.ticks(20)
    assert (len(tight.nodes), tight.revisions()) == (2, {"v2": 4})


def test_without_any_room_the_rollout_waits_and_says_so() -> None:
    full = TinyFleet((A,), POLICY, 320.0)
    full.more = {"revision": "v1"}
    full.ticks(60)
    full.more = {"rollout": Rollout("v2", "v1", RolloutState.ROLLING, full.now_ms)}
    full.ticks(400)
    assert full.revisions() == {"v1": 4}
    assert full.plan is not None
    assert full.plan.rollout is not None
    assert full.plan.rollout.state is RolloutState.ROLLING
    assert "a rollout waits for room: raise a quota, or lower what is wanted" in full.plan.alerts


def test_a_zone_can_be_emptied_during_a_rollout() -> None:
    fleet = a_fleet()
    fleet.more["modes"] = {"idc-a": ZoneMode.DRAINED}
    fleet.more["rollout"] = Rollout("v2", "v1", RolloutState.ROLLING, fleet.now_ms)
    fleet.ticks(300)
    assert fleet.count("idc-a") == 0
    assert fleet.revisions() == {"v2": 10}


def test_a_node_that_is_full_is_no_place_for_a_surge() -> None:
    cloud = tuple(replica(f"c{n}", node("h1")) for n in range(2))
    seen = snapshot(zones=(H,), nodes=(node("h1"),), replicas=of("v1", *cloud), rollout=ROLLING)
    reconciler = Reconciler(Observed(seen, POLICY), POLICY, Placement({"cloud-h": 2}, 0, ()))
    (rent,) = reconciler.compute()
    assert rent == msgspec.structs.replace(rent, zone="cloud-h", count=1)
    assert reconciler.no_room
