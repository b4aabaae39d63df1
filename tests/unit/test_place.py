"""Replicas to zones, case by case."""

import msgspec
import pytest

from springtide.decide.observed import Observed
from springtide.decide.place import Budget, node_slots, open_slots, place, promised, zone_slots
from springtide.model import ZoneMode
from tests.unit.fleets import BASE, IDC_NODES, POLICY, A, B, H, node, replica, snapshot

DEAR = msgspec.structs.replace(H, name="cloud-dear", price_fen_per_node_h=300)
TWIN = msgspec.structs.replace(H, name="cloud-twin")


@pytest.mark.parametrize(
    ("wanted", "by_zone"),
    [
        (0, {"idc-a": 0, "idc-b": 0, "cloud-h": 0}),
        (1, {"idc-a": 1, "idc-b": 0, "cloud-h": 0}),
        (2, {"idc-a": 1, "idc-b": 1, "cloud-h": 0}),
        (3, {"idc-a": 1, "idc-b": 1, "cloud-h": 1}),
        (12, {"idc-a": 1, "idc-b": 1, "cloud-h": 10}),
        (15, {"idc-a": 3, "idc-b": 2, "cloud-h": 10}),
        (18, {"idc-a": 4, "idc-b": 4, "cloud-h": 10}),
    ],
    ids=str,
)
def test_the_base_is_in_the_idc_the_spike_in_the_cloud_and_the_rest_where_room_is(
    wanted: int, by_zone: dict[str, int]
) -> None:
    placement = place(wanted, (A, B, H), POLICY)
    assert placement.by_zone == by_zone
    assert placement.short == 0


def test_what_fits_nowhere_is_said_with_the_quota() -> None:
    placement = place(21, (A, B, H), POLICY)
    assert (placement.total, placement.short) == (18, 3)
    assert "capacity short by 3 replicas: quota of cloud-h is 5 nodes" in placement.reasons


def test_the_cheaper_zone_is_filled_first() -> None:
    assert place(8, (A, DEAR, H), POLICY).by_zone == {"idc-a": 1, "cloud-dear": 0, "cloud-h": 7}
    assert place(12, (A, DEAR, H), POLICY).by_zone == {"idc-a": 1, "cloud-dear": 1, "cloud-h": 10}


def test_the_price_is_that_of_a_core() -> None:
    bigger = msgspec.structs.replace(DEAR, cores_per_node=8)
    assert place(5, (A, bigger, H), POLICY).by_zone == {"idc-a": 1, "cloud-dear": 4, "cloud-h": 0}


def test_zones_of_one_price_share() -> None:
    assert place(8, (A, TWIN, H), POLICY).by_zone == {"idc-a": 1, "cloud-twin": 4, "cloud-h": 3}


def test_a_small_zone_leaves_its_share_to_the_other() -> None:
    small = msgspec.structs.replace(TWIN, nodes_max=1)
    assert place(9, (A, small, H), POLICY).by_zone == {"idc-a": 1, "cloud-twin": 2, "cloud-h": 6}


def test_the_base_of_a_zone_that_is_down_goes_to_the_other_room_first() -> None:
    placement = place(3, (A, B, H), POLICY, down={"idc-a"})
    assert placement.by_zone == {"idc-a": 0, "idc-b": 2, "cloud-h": 1}
    assert any("idc-a does not answer" in reason for reason in placement.reasons)


def test_a_replica_does_not_span_nodes() -> None:
    policy = msgspec.structs.replace(POLICY, replica_cores=3)
    assert zone_slots(A, policy) == 1
    assert zone_slots(H, policy) == 0
    assert place(4, (A, B, H), policy).by_zone == {"idc-a": 1, "idc-b": 1, "cloud-h": 0}


def test_cores_may_be_parts_and_memory_counts_when_both_sides_know_it() -> None:
    half = msgspec.structs.replace(POLICY, replica_cores=0.1)
    assert node_slots(0.3, half) == 3
    memory = msgspec.structs.replace(POLICY, replica_cores=0.5, replica_memory_mb=1_000)
    assert node_slots(4, memory) == 8
    assert node_slots(4, memory, 3_500) == 3
    assert zone_slots(msgspec.structs.replace(H, memory_mb_per_node=1_000), memory) == 5


def test_what_other_services_hold_is_no_room() -> None:
    taken = {"idc-a-0": 2.5, "idc-b-0": 9.0, "elsewhere": 4.0}
    assert open_slots(Observed(snapshot(taken_cores=taken), POLICY), POLICY) == {"idc-a": 1, "idc-b": 0, "cloud-h": 10}
    policy = msgspec.structs.replace(POLICY, replica_memory_mb=1_000)
    zones = tuple(msgspec.structs.replace(zone, memory_mb_per_node=4_000) for zone in (A, B))
    nodes = tuple(msgspec.structs.replace(one, memory_mb=4_000) for one in IDC_NODES)
    seen = snapshot(zones=zones, nodes=nodes, taken_memory_mb={"idc-a-0": 2_500, "idc-b-0": 3_500})
    assert open_slots(Observed(seen, policy), policy) == {"idc-a": 1, "idc-b": 0}


def test_where_nothing_may_start_what_runs_counts() -> None:
    fleet = (*BASE, replica("c1", node("h1")))
    nodes = (*IDC_NODES, node("h1"))
    modes = {"idc-a": ZoneMode.DRAINED, "cloud-h": ZoneMode.CORDONED}
    seen = snapshot(replicas=fleet, nodes=nodes, modes=modes, ages_ms={"replicas/idc-b": 1_501})
    assert open_slots(Observed(seen, POLICY), POLICY) == {"idc-a": 0, "idc-b": 1, "cloud-h": 1}


def test_the_promise_is_the_demand_without_headroom() -> None:
    assert [promised(wanted, POLICY) for wanted in (0, 1, 2, 10, 11)] == [0, 1, 2, 8, 9]


BIG = tuple(msgspec.structs.replace(zone, nodes_max=10) for zone in (A, B, H))


@pytest.mark.parametrize(
    ("wanted", "by_zone"),
    [
        (2, {"idc-a": 2, "idc-b": 2, "cloud-h": 0}),
        (10, {"idc-a": 4, "idc-b": 4, "cloud-h": 4}),
        (20, {"idc-a": 8, "idc-b": 8, "cloud-h": 8}),
    ],
    ids=str,
)
def test_any_zone_may_be_lost_without_renting_more_than_the_spike(wanted: int, by_zone: dict[str, int]) -> None:
    placement = place(wanted, BIG, POLICY, budget=Budget(promised(wanted, POLICY)))
    assert placement.by_zone == by_zone
    assert placement.total - max(by_zone.values()) >= placement.promised == promised(wanted, POLICY)
    assert placement.alerts == ()


def test_with_many_zones_spreading_costs_nothing() -> None:
    zones = tuple(msgspec.structs.replace(H, name=f"cloud-{n}") for n in range(6))
    placement = place(12, zones, POLICY, budget=Budget(10))
    assert placement.total == 12
    assert set(placement.by_zone.values()) == {2}


def test_the_cloud_stands_in_where_the_idc_has_no_second_room() -> None:
    placement = place(1, (A, H), POLICY, budget=Budget(1))
    assert placement.by_zone == {"idc-a": 1, "cloud-h": 1}


def test_a_budget_that_cannot_be_kept_is_kept_as_far_as_it_goes_and_said() -> None:
    alone = place(4, (A,), POLICY, budget=Budget(4))
    assert (alone.by_zone, alone.promised) == ({"idc-a": 4}, 0)
    assert "the loss of a zone would leave 0 of the 4 replicas" in alone.alerts[0]
    bounded = place(10, BIG, POLICY, budget=Budget(8, most=11))
    assert (bounded.total, bounded.promised) == (11, 7)
    assert max(bounded.by_zone.values()) <= 4
    short = place(30, (A, B, H), POLICY, budget=Budget(24))
    assert (short.total, short.short) == (18, 12)
    assert any("capacity short by 12 replicas" in alert for alert in short.alerts)
    assert any("would leave 8 of the 24" in alert for alert in short.alerts)
