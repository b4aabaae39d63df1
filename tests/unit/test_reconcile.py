"""Desired against observed, case by case."""

from typing import Any

import msgspec
import pytest

from springtide.decide.names import LETTERS_MAX, client_token, replica_id
from springtide.decide.observed import Observed
from springtide.decide.place import Placement
from springtide.decide.reconcile import Reconciler
from springtide.model import (
    Action,
    DrainReplica,
    FleetPolicy,
    NodeState,
    ReleaseNode,
    RentNodes,
    ReplicaSpec,
    ReplicaState,
    StartReplica,
    StopReplica,
    ZoneMode,
    require_identifier,
)
from tests.unit.fleets import BASE, IDC_NODES, NOW, POLICY, A, B, H, node, replica, snapshot

H1, H2 = node("h1"), node("h2")


def compute(
    cloud: int = 0, *, idc: int = 1, policy: FleetPolicy = POLICY, hold: bool = False, **changes: Any
) -> list[Any]:
    """The actions towards so many replicas in the cloud and in each room."""
    placement = Placement({"idc-a": idc, "idc-b": idc, "cloud-h": cloud}, 0, ())
    return list(Reconciler(Observed(snapshot(**changes), policy), policy, placement, hold=hold).compute())


def of(kind: type[Action], actions: list[Any]) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def test_nothing_to_do() -> None:
    assert compute() == []


def test_nodes_are_rented_for_what_has_no_room() -> None:
    (rent,) = compute(5)
    assert (rent.zone, rent.count, rent.client_token) == ("cloud-h", 3, "r1-7-cloud-h")
    assert rent.reason == "5 replicas wanted in cloud-h need 3 nodes, 0 are there or coming"


def test_nodes_that_boot_or_were_asked_for_are_not_rented_again() -> None:
    booting = node("h1", state=NodeState.BOOTING)
    asked = (RentNodes("cloud-h", 2, "r1-6-cloud-h", ""),)
    assert compute(5, nodes=(*IDC_NODES, booting), in_flight=asked) == []
    (rent,) = compute(7, nodes=(*IDC_NODES, booting), in_flight=asked)
    assert rent.count == 1


def test_a_purchase_that_has_arrived_in_part_is_counted_once() -> None:
    arrived = node("h1", state=NodeState.BOOTING, token="r1-6-cloud-h")
    asked = (RentNodes("cloud-h", 3, "r1-6-cloud-h", ""),)
    assert compute(5, nodes=(*IDC_NODES, arrived), in_flight=asked) == []


def test_nodes_that_are_given_back_still_count_against_the_quota() -> None:
    leaving = tuple(node(f"h{n}", state=NodeState.RELEASING) for n in range(4))
    (rent,) = compute(10, nodes=(*IDC_NODES, *leaving))
    assert rent.count == 1


def test_replicas_start_where_room_is_the_fullest_cloud_node_first() -> None:
    on_h2 = replica("c1", H2)
    starts = of(StartReplica, compute(3, nodes=(*IDC_NODES, H1, H2), replicas=(*BASE, on_h2)))
    assert [start.spec for start in starts] == [
        ReplicaSpec("cloud-h-r1-7-0", "cloud-h", "h2"),
        ReplicaSpec("cloud-h-r1-7-1", "cloud-h", "h1"),
    ]


def test_in_the_idc_replicas_spread_over_nodes() -> None:
    wide = msgspec.structs.replace(A, nodes_max=2)
    second = node("idc-a-1", A, token="")
    starts = of(StartReplica, compute(idc=2, zones=(wide, B, H), nodes=(*IDC_NODES, second)))
    assert [start.spec.node_id for start in starts] == ["idc-a-1", "idc-b-0"]


def test_no_more_start_at_once_than_the_machine_can_bear() -> None:
    nodes = (*IDC_NODES, H1, H2, node("h3"))
    starting = replica("c1", H1, ReplicaState.STARTING, age_ms=500)
    under_way = (StartReplica(ReplicaSpec("c2", "cloud-h", "h1"), ""),)
    actions = compute(6, nodes=nodes, replicas=(*BASE, starting), in_flight=under_way)
    assert len(of(StartReplica, actions)) == 2


def test_a_start_under_way_is_not_repeated() -> None:
    under_way = (StartReplica(ReplicaSpec("c1", "cloud-h", "h1"), ""),)
    assert compute(1, nodes=(*IDC_NODES, H1), in_flight=under_way) == []
    listed = replica("c1", H1, ReplicaState.STARTING, age_ms=100)
    assert compute(1, nodes=(*IDC_NODES, H1), replicas=(*BASE, listed), in_flight=under_way) == []


def test_a_long_zone_name_still_makes_an_identifier() -> None:
    zone = msgspec.structs.replace(H, name="z" * 64)
    placement = Placement({"z" * 64: 2}, 0, ())
    seen = snapshot(zones=(zone,), nodes=(node("h1", zone),), replicas=())
    actions = Reconciler(Observed(seen, POLICY), POLICY, placement).compute()
    names = [start.spec.replica_id for start in of(StartReplica, list(actions))]
    assert len(set(names)) == 2
    for name in names:
        require_identifier("replica", name)


def test_a_failed_replica_is_stopped_and_replaced_in_one_tick() -> None:
    failed = replica("a1", IDC_NODES[0], ReplicaState.FAILED)
    stop, start = compute(replicas=(failed, BASE[1]))
    assert stop == StopReplica("a1", "idc-a", "failed")
    assert start.spec.zone == "idc-a"


def test_a_replica_that_does_not_come_up_has_failed() -> None:
    stuck = replica("a1", IDC_NODES[0], ReplicaState.STARTING, age_ms=15_001)
    stop, start = compute(replicas=(stuck, BASE[1]))
    assert stop.reason == "still starting after 15.001 s"
    assert isinstance(start, StartReplica)


def test_surplus_drains_from_the_emptiest_node_so_that_it_falls_free() -> None:
    cloud = (replica("c1", H1), replica("c2", H1), replica("c3", H2))
    actions = compute(2, nodes=(*IDC_NODES, H1, H2), replicas=(*BASE, *cloud))
    assert actions == [DrainReplica("c3", "cloud-h", "1 more than the 2 wanted in cloud-h")]


def test_the_cloud_goes_before_the_idc() -> None:
    fleet = (*BASE, replica("a2", IDC_NODES[0]), replica("c1", H1))
    drains = of(DrainReplica, compute(nodes=(*IDC_NODES, H1), replicas=fleet))
    assert drains[0].replica_id == "c1"
    assert len(drains) == 2


def test_nothing_drains_before_its_replacement_serves() -> None:
    surplus = (*BASE, replica("a2", IDC_NODES[0]))
    coming = replica("c1", H1, ReplicaState.STARTING, age_ms=500)
    assert of(DrainReplica, compute(1, nodes=(*IDC_NODES, H1), replicas=(*surplus, coming))) == []
    ready = replica("c1", H1)
    unseen = frozenset(r.replica_id for r in surplus)
    assert of(DrainReplica, compute(1, nodes=(*IDC_NODES, H1), replicas=(*surplus, ready), healthy=unseen)) == []
    drains = of(DrainReplica, compute(1, nodes=(*IDC_NODES, H1), replicas=(*surplus, ready)))
    assert len(drains) == 1


def test_the_drained_are_stopped_after_their_time_and_once() -> None:
    early = replica("c1", H1, ReplicaState.DRAINING, age_ms=1_999)
    late = replica("c2", H1, ReplicaState.DRAINING, age_ms=2_000)
    fleet: dict[str, Any] = {"nodes": (*IDC_NODES, H1), "replicas": (*BASE, early, late)}
    assert compute(**fleet) == [StopReplica("c2", "cloud-h", "drained for 2 s")]
    assert compute(**fleet, in_flight=(StopReplica("c2", "cloud-h", ""),)) == []


def test_a_drain_under_way_is_not_repeated_and_gives_no_capacity() -> None:
    fleet: dict[str, Any] = {"nodes": (*IDC_NODES, H1), "replicas": (*BASE, replica("c1", H1))}
    assert compute(**fleet, in_flight=(DrainReplica("c1", "cloud-h", ""),)) == []


def test_a_node_is_released_when_it_runs_nothing() -> None:
    draining = replica("c1", H1, ReplicaState.DRAINING, age_ms=100)
    actions = compute(nodes=(*IDC_NODES, H1, H2), replicas=(*BASE, draining))
    assert actions == [ReleaseNode("h2", "cloud-h", "runs nothing; cloud-h needs 0 nodes")]


def test_a_failed_replica_keeps_its_node_until_it_is_stopped() -> None:
    failed = replica("c1", H1, ReplicaState.FAILED)
    actions = compute(nodes=(*IDC_NODES, H1), replicas=(*BASE, failed))
    assert [type(action) for action in actions] == [StopReplica]


def test_nodes_that_still_boot_are_given_back_first() -> None:
    booting = node("h2", state=NodeState.BOOTING)
    actions = compute(2, nodes=(*IDC_NODES, H1, booting))
    assert [a.node_id for a in of(ReleaseNode, actions)] == ["h2"]


def test_no_node_is_released_twice_or_with_a_start_on_its_way() -> None:
    nodes = (*IDC_NODES, H1)
    assert compute(nodes=nodes, in_flight=(ReleaseNode("h1", "cloud-h", ""),)) == []
    both = compute(2, nodes=(*IDC_NODES, H1, H2))
    assert {start.spec.node_id for start in of(StartReplica, both)} == {"h1"}
    assert [release.node_id for release in of(ReleaseNode, both)] == ["h2"]
    on_its_way = (StartReplica(ReplicaSpec("c1", "cloud-h", "h1"), ""),)
    assert of(ReleaseNode, compute(nodes=nodes, in_flight=on_its_way)) == []


def test_a_hold_takes_nothing_away_and_still_adds() -> None:
    fleet: dict[str, Any] = {"nodes": (*IDC_NODES, H1, H2), "replicas": (BASE[0], replica("c1", H1))}
    actions = compute(hold=True, **fleet)
    assert [type(action) for action in actions] == [StartReplica]


def test_without_a_fresh_list_of_replicas_nothing_is_done() -> None:
    assert compute(9, replicas=(), ages_ms={"replicas": 1_501}) == []


def test_without_a_fresh_list_of_nodes_nothing_is_rented_or_released() -> None:
    stale = {"nodes": 1_501}
    assert of(RentNodes, compute(9, ages_ms=stale)) == []
    assert compute(nodes=(*IDC_NODES, H1), ages_ms=stale) == []


def test_what_runs_on_a_node_that_is_gone_serves_until_it_is_replaced() -> None:
    orphan = replica("c1", H2)
    (rent,) = compute(1, replicas=(*BASE, orphan))
    assert isinstance(rent, RentNodes)
    replaced = (*BASE, orphan, replica("c2", H1))
    actions = compute(1, nodes=(*IDC_NODES, H1), replicas=replaced)
    assert actions == [DrainReplica("c1", "cloud-h", "node h2 is gone")]


def test_what_is_most_urgent_comes_first_within_the_limit() -> None:
    policy = msgspec.structs.replace(POLICY, actions_max=2)
    failed = replica("a1", IDC_NODES[0], ReplicaState.FAILED)
    actions = compute(5, policy=policy, replicas=(failed, BASE[1]))
    assert [type(action) for action in actions] == [RentNodes, StopReplica]


def test_what_other_services_hold_of_a_node_is_left_to_them() -> None:
    wide = msgspec.structs.replace(A, nodes_max=2)
    second = node("idc-a-1", A, token="")
    fleet: dict[str, Any] = {"zones": (wide, B, H), "nodes": (*IDC_NODES, second)}
    starts = of(StartReplica, compute(idc=3, **fleet, taken_cores={"idc-a-0": 3.0, "idc-a-1": 2.5, "idc-b-0": 3.5}))
    assert [start.spec.node_id for start in starts] == ["idc-a-1"]


def test_ids_and_tokens_are_short_enough_and_no_two_alike() -> None:
    names: list[str] = []
    tokens: list[str] = []
    for run in ("r1", "r1-web", "r1-" + "w" * 16):
        for number, zone in enumerate(("a", "web-a", "z" * 63, "z" * 64)):
            seen = snapshot(service="web", run=run)
            names.append(replica_id(seen, zone, number))
            tokens.append(client_token(seen, zone))
    assert len(set(names)) == len(set(tokens)) == 12
    for name in names:
        require_identifier("replica", name)
    assert max(map(len, tokens)) <= LETTERS_MAX


def test_a_start_names_its_service_and_revision() -> None:
    starts = of(StartReplica, compute(idc=2, service="web", revision="v2"))
    assert {(start.spec.service, start.spec.revision) for start in starts} == {("web", "v2")}


@pytest.mark.parametrize("mode", [ZoneMode.CORDONED, ZoneMode.DRAINED], ids=str)
def test_nothing_starts_and_nothing_is_rented_where_operators_forbid_it(mode: ZoneMode) -> None:
    actions = compute(9, idc=3, modes={"idc-a": mode, "cloud-h": mode})
    assert {start.spec.zone for start in of(StartReplica, actions)} == {"idc-b"}
    assert of(RentNodes, actions) == []


def test_where_the_runtime_is_silent_nothing_is_begun() -> None:
    failed = replica("a2", IDC_NODES[0], ReplicaState.FAILED)
    drained = replica("c1", H1, ReplicaState.DRAINING)
    fleet: dict[str, Any] = {"nodes": (*IDC_NODES, H1, H2), "replicas": (*BASE, failed, drained, replica("c2", H2))}
    silent = {"replicas/idc-a": 1_501, "replicas/cloud-h": 1_501}
    actions = compute(0, idc=2, **fleet, ages_ms=silent)
    assert [action.spec.zone for action in actions] == ["idc-b"]


SIX = tuple(replica(f"c{n}", H1, age_ms=60_000 - n) for n in range(6))


def test_scaling_in_goes_in_stages() -> None:
    policy = msgspec.structs.replace(POLICY, scale_in_share=0.25, scale_in_every_ms=10_000)
    fleet: dict[str, Any] = {"nodes": (*IDC_NODES, H1), "replicas": (*BASE, *SIX)}
    assert len(of(DrainReplica, compute(policy=policy, **fleet))) == 2
    assert of(DrainReplica, compute(policy=policy, **fleet, scaled_in_ms=NOW - 9_999)) == []
    assert len(of(DrainReplica, compute(policy=policy, **fleet, scaled_in_ms=NOW - 10_000))) == 2
    draining = replica("c9", H1, ReplicaState.DRAINING, age_ms=500)
    assert of(DrainReplica, compute(policy=policy, nodes=fleet["nodes"], replicas=(*BASE, *SIX, draining))) == []
    assert len(of(DrainReplica, compute(**fleet))) == 6


def test_a_stage_is_only_what_was_begun() -> None:
    policy = msgspec.structs.replace(POLICY, actions_max=1)
    seen = snapshot(nodes=(*IDC_NODES, H1), replicas=(BASE[1], *SIX), tick=1)
    placement = Placement({"idc-a": 1, "idc-b": 1, "cloud-h": 0}, 0, ())
    reconciler = Reconciler(Observed(seen, policy), policy, placement)
    assert [type(action) for action in reconciler.compute()] == [StartReplica]
    assert not reconciler.scaled_in


def test_a_zone_is_emptied_before_others_and_all_at_once() -> None:
    policy = msgspec.structs.replace(POLICY, scale_in_share=0.1, scale_in_every_ms=60_000)
    fleet = (*BASE, replica("a2", IDC_NODES[0]), replica("b2", IDC_NODES[1]), replica("b3", IDC_NODES[1]))
    placement = Placement({"idc-a": 0, "idc-b": 3, "cloud-h": 0}, 0, ())
    seen = snapshot(replicas=fleet, modes={"idc-a": ZoneMode.DRAINED}, scaled_in_ms=NOW - 1)
    drains = Reconciler(Observed(seen, policy), policy, placement).compute()
    assert drains == (
        DrainReplica("a1", "idc-a", "zone idc-a is to be emptied"),
        DrainReplica("a2", "idc-a", "zone idc-a is to be emptied"),
    )


def test_what_has_no_place_elsewhere_stays_in_a_zone_that_is_to_be_emptied() -> None:
    placement = Placement({"idc-a": 0, "idc-b": 1, "cloud-h": 0}, 1, ())
    seen = snapshot(modes={"idc-a": ZoneMode.DRAINED})
    assert Reconciler(Observed(seen, POLICY), POLICY, placement).compute() == ()
