"""Whole decisions, case by case."""

from typing import Any

import msgspec

from springtide.decide.plan import plan
from springtide.model import (
    DrainReplica,
    RentNodes,
    ReplicaState,
    ScaleOverride,
    SetEndpoints,
    StartReplica,
    TrafficSample,
    ZoneHealth,
    ZoneMode,
    ZoneState,
)
from tests.unit.fleets import BASE, IDC_NODES, NOW, POLICY, A, B, H, endpoint, event, node, replica, snapshot
from tests.unit.tiny_fleet import TinyFleet

H1 = node("h1")


def test_a_quiet_evening_needs_no_action() -> None:
    decided = plan(snapshot(), POLICY)
    assert decided.actions == ()
    assert decided.replicas_wanted == 2
    assert decided.placement == {"idc-a": 1, "idc-b": 1, "cloud-h": 0}
    assert decided.weights == {"idc-a": 100, "idc-b": 100, "cloud-h": 0}


def test_a_sale_is_rented_for_early_enough_and_not_earlier() -> None:
    # 800/s: 10 replicas, 2 waves of 3.5 s, 6 s boot, 1.5 s for the age of figures, ready 5 s before: 19.5 s.
    assert plan(snapshot(calendar=(event(19_501, 800),)), POLICY).actions == ()
    decided = plan(snapshot(calendar=(event(19_500, 800),)), POLICY)
    assert [(type(a), a.count) for a in decided.actions if isinstance(a, RentNodes)] == [(RentNodes, 4)]
    assert decided.reasons[0] == "announced: live at 800/s"


def test_traffic_leaves_a_replica_in_the_same_plan_before_it_drains() -> None:
    fleet = (*BASE, replica("c1", H1))
    decided = plan(snapshot(nodes=(*IDC_NODES, H1), replicas=fleet), POLICY)
    first, second = decided.actions
    assert isinstance(first, SetEndpoints)
    assert {e.replica_id: e.weight for e in first.endpoints} == {"a1": 100, "b1": 100, "c1": 0}
    assert isinstance(second, DrainReplica)
    assert decided.weights["cloud-h"] == 0


def test_the_list_is_written_only_when_it_differs() -> None:
    ready = (*BASE, replica("c1", H1))
    fleet: dict[str, Any] = {"rate": 170.0, "nodes": (*IDC_NODES, H1), "replicas": ready}
    decided = plan(snapshot(**fleet, endpoints=tuple(map(endpoint, BASE))), POLICY)
    assert any(isinstance(action, SetEndpoints) for action in decided.actions)
    assert not any(isinstance(a, SetEndpoints) for a in plan(snapshot(**fleet), POLICY).actions)


def test_a_suspect_observer_freezes_and_says_so() -> None:
    fleet = (*BASE, replica("c1", H1), replica("c2", H1))
    decided = plan(snapshot(nodes=(*IDC_NODES, H1), replicas=fleet, healthy=frozenset({"a1"})), POLICY)
    assert decided.actions == ()
    assert any("seem unreachable" in reason for reason in decided.reasons)


def test_old_news_is_named_with_its_consequence() -> None:
    ages = {"replicas": 2_000, "nodes": 2_500, "health": 3_000}
    reasons = plan(snapshot(ages_ms=ages), POLICY).reasons
    assert "the last word on replicas is 2.0 s old: nothing is started or stopped" in reasons
    assert "the last word on nodes is 2.5 s old: nothing is rented or given back" in reasons
    assert any("health is 3.0 s old" in reason for reason in reasons)


def test_old_figures_hold_the_fleet() -> None:
    fleet = (*BASE, replica("c1", H1))
    old = (TrafficSample(NOW - 10_000, 1.0),)
    decided = plan(snapshot(nodes=(*IDC_NODES, H1), replicas=fleet, traffic=old), POLICY)
    assert decided.actions == ()
    assert decided.replicas_wanted == 3


def test_a_plan_can_be_told_and_told_back() -> None:
    failed = replica("a1", IDC_NODES[0], ReplicaState.FAILED)
    decided = plan(snapshot(rate=900.0, replicas=(failed, BASE[1])), POLICY)
    assert decided.actions
    assert msgspec.json.decode(msgspec.json.encode(decided), type=type(decided)) == decided


N_PLUS_ONE = msgspec.structs.replace(POLICY, failure_budget=1)
LOST = {"cloud-h": ZoneHealth(ZoneState.DOWN, NOW, "lost", failures=1)}


def test_a_budget_is_kept_and_said() -> None:
    decided = plan(snapshot(), N_PLUS_ONE)
    assert decided.placement == {"idc-a": 2, "idc-b": 2, "cloud-h": 0}
    assert "failure budget: 2 replicas stay whichever zone is lost, for which there are 2 more" in str(decided.reasons)
    assert len([a for a in decided.actions if isinstance(a, StartReplica)]) == 2


def test_no_more_is_placed_for_the_budget_than_may_be() -> None:
    decided = plan(snapshot(scale=ScaleOverride(2, 2)), N_PLUS_ONE)
    assert sum(decided.placement.values()) <= 2
    assert any("failure budget: the loss of a zone would leave" in alert for alert in decided.alerts)


def test_a_budget_that_is_spent_is_not_doubled() -> None:
    decided = plan(snapshot(rate=400.0, zone_health=LOST, healthy=frozenset({"a1", "b1"})), N_PLUS_ONE)
    assert sum(decided.placement.values()) == decided.replicas_wanted == 5
    assert "the failure budget is spent on cloud-h: no second loss is provided for" in decided.reasons


def test_on_old_figures_the_budget_does_not_grow_by_itself() -> None:
    fleet = (*BASE, replica("a2", IDC_NODES[0]), replica("b2", IDC_NODES[1]))
    decided = plan(snapshot(replicas=fleet, traffic=()), N_PLUS_ONE)
    assert (decided.actions, decided.replicas_wanted) == ((), 4)


def test_a_short_capacity_is_alerted() -> None:
    alerts = plan(snapshot(rate=5_000.0), POLICY).alerts
    assert alerts == ("capacity short by 45 replicas: quota of cloud-h is 5 nodes",)


def test_modes_are_said() -> None:
    decided = plan(snapshot(modes={"idc-a": ZoneMode.CORDONED, "idc-b": ZoneMode.DRAINED}), POLICY)
    assert "zone idc-a is cordoned: nothing new starts there, 1 replicas serve on" in decided.reasons
    assert "zone idc-b is being emptied: 1 replicas are left" in decided.reasons
    alone = plan(snapshot(zones=(B,), replicas=BASE[1:], modes={"idc-b": ZoneMode.DRAINED}), POLICY)
    assert alone.actions == ()
    assert "zone idc-b cannot be emptied yet: 1 replicas have no place elsewhere" in alone.alerts


ROOMY = tuple(msgspec.structs.replace(zone, nodes_max=3) for zone in (A, B))


def test_a_zone_is_emptied_and_comes_back() -> None:
    fleet = TinyFleet((*ROOMY, H), msgspec.structs.replace(POLICY, base_replicas=3), 480.0)
    fleet.ticks(30)
    assert (fleet.count("idc-a"), fleet.count("idc-b")) == (3, 3)
    fleet.more["modes"] = {"idc-b": ZoneMode.DRAINED}
    for _ in range(40):
        fleet.tick()
        assert len(fleet.serving()) >= 6
    assert (fleet.count("idc-a"), fleet.count("idc-b")) == (6, 0)
    fleet.more["modes"] = {}
    fleet.ticks(40)
    assert (fleet.count("idc-a"), fleet.count("idc-b")) == (3, 3)


def test_a_zone_that_is_down_is_emptied_without_waiting_for_it() -> None:
    fleet = TinyFleet(ROOMY, msgspec.structs.replace(POLICY, base_replicas=3), 480.0)
    fleet.ticks(30)
    fleet.cut_off.add("idc-b")
    fleet.more["modes"] = {"idc-b": ZoneMode.DRAINED}
    fleet.ticks(8)
    assert fleet.count("idc-b") == 0


def test_a_cordoned_zone_keeps_what_runs_and_gets_nothing_new() -> None:
    fleet = TinyFleet((*ROOMY, H), msgspec.structs.replace(POLICY, base_replicas=3), 480.0)
    fleet.ticks(30)
    fleet.more["modes"] = {"idc-b": ZoneMode.CORDONED}
    fleet.rate = 800.0
    fleet.ticks(40)
    assert (fleet.count("idc-b"), len(fleet.serving())) == (3, 10)
    fleet.fail("idc-b")
    fleet.ticks(20)
    assert (fleet.count("idc-b"), len(fleet.serving())) == (0, 10)
