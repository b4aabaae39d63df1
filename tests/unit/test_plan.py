"""Whole decisions, case by case."""

from typing import Any

import msgspec

from springtide.decide.plan import plan
from springtide.model import DrainReplica, RentNodes, ReplicaState, SetEndpoints, TrafficSample
from tests.unit.fleets import BASE, IDC_NODES, NOW, POLICY, endpoint, event, node, replica, snapshot

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
