"""Replicas to zones, case by case."""

import msgspec
import pytest

from springtide.decide.place import place, zone_slots
from tests.unit.fleets import POLICY, A, B, H

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
