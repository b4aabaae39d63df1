"""Signs to states of zones, case by case, then over many ticks."""

from typing import Any

import msgspec
import pytest

from springtide.decide.observed import Observed
from springtide.decide.zones import DOUBLINGS_MAX, Conclusions, conclude, wait_ms
from springtide.model import (
    FleetPolicy,
    ReplicaState,
    TrafficSample,
    ZoneHealth,
    ZoneState,
    ZoneTraffic,
)
from tests.unit.fleets import BASE, IDC_NODES, NOW, POLICY, A, B, H, endpoint, node, replica, snapshot
from tests.unit.tiny_fleet import TinyFleet

NODE = node("h1")
CLOUD = tuple(replica(f"h{n}", NODE) for n in range(3))
FLEET = (*BASE, replica("a2", IDC_NODES[0]), replica("b2", IDC_NODES[1]), *CLOUD)
ALL = frozenset(r.replica_id for r in FLEET)
DOWN = ZoneHealth(ZoneState.DOWN, NOW - 60_000, "lost", failures=1)


def seen(policy: FleetPolicy = POLICY, **changes: Any) -> Conclusions:
    parts = {"nodes": (*IDC_NODES, NODE), "replicas": FLEET, "healthy": ALL, **changes}
    return conclude(Observed(snapshot(**parts), policy), policy)


def ids(*names: str) -> frozenset[str]:
    return ALL - frozenset(names)


CLOUD_GONE = ids("h0", "h1", "h2")


def traffic(failed: float, elsewhere: float = 0.0) -> tuple[TrafficSample, ...]:
    zones = tuple(
        ZoneTraffic(zone.name, 100.0, failed if zone is H else elsewhere, in_flight=1, healthy=3) for zone in (A, B, H)
    )
    return (TrafficSample(NOW, 300.0, zones),)


def test_all_is_well() -> None:
    found = seen()
    assert {health.state for health in found.health.values()} == {ZoneState.UP}
    assert (found.suspect, found.reasons, found.alerts) == (False, (), ())


def test_more_than_half_out_of_sight_is_the_observers_fault() -> None:
    five = (*BASE, *CLOUD)
    assert seen(replicas=five, healthy=frozenset()).suspect
    assert seen(replicas=five, healthy=CLOUD_GONE).suspect
    assert not seen(replicas=five, healthy=ids("h0", "h1")).suspect
    assert not seen(replicas=five, healthy=None).suspect


def test_an_old_word_on_health_and_new_replicas_raise_no_suspicion() -> None:
    old: dict[str, Any] = {"healthy": frozenset[str](), "ages_ms": {"health": 1_501}}
    assert not seen(**old).suspect
    fresh = tuple(replica(f"f{n}", NODE, age_ms=400) for n in range(3))
    assert not seen(replicas=(*BASE, *fresh), healthy=frozenset({"a1", "b1"})).suspect


def test_a_zone_of_which_nothing_answers_is_down_at_once_and_said_so() -> None:
    found = seen(healthy=CLOUD_GONE)
    assert found.down == {"cloud-h"}
    assert found.health["cloud-h"] == ZoneHealth(ZoneState.DOWN, NOW, "none of its 3 replicas is reached", failures=1)
    assert found.alerts == ("zone cloud-h is down: none of its 3 replicas is reached",)
    assert found.shares(NOW, POLICY) == {"idc-a": 1.0, "idc-b": 1.0, "cloud-h": 0.0}
    assert seen(healthy=ids("h1", "h2")).down == set()
    assert seen(healthy=frozenset()).down == set()


def test_of_two_equal_zones_one_can_die() -> None:
    found = seen(zones=(A, B), replicas=FLEET[:4], healthy=frozenset({"a1", "a2"}))
    assert not found.suspect
    assert found.down == {"idc-b"}


def test_more_than_half_may_be_down_when_the_runtime_agrees() -> None:
    fleet: dict[str, Any] = {"replicas": (*BASE, *CLOUD), "healthy": CLOUD_GONE}
    assert seen(**fleet).down == set()
    found = seen(**fleet, ages_ms={"replicas/cloud-h": 1_501})
    assert not found.suspect
    assert found.down == {"cloud-h"}
    assert "its runtime is silent" in found.alerts[0]
    nobody = seen(replicas=CLOUD, healthy=frozenset(), ages_ms={"replicas/cloud-h": 1_501})
    assert nobody.suspect
    assert nobody.down == set(), "with nothing reached anywhere, nothing is concluded"


def test_a_runtime_that_is_silent_alone_takes_no_traffic_away() -> None:
    found = seen(ages_ms={"replicas/cloud-h": 60_000})
    assert found.down == set()
    assert any("the runtime of cloud-h is silent" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("signs", "down"),
    [
        ({}, False),
        ({"healthy": ids("h0", "h1")}, True),
        ({"ages_ms": {"replicas/cloud-h": 1_501}}, True),
    ],
    ids=["alone", "and replicas are ill", "and the runtime is silent"],
)
def test_requests_that_fail_only_confirm_other_signs(signs: dict[str, Any], down: bool) -> None:  # noqa: FBT001 - a table's column
    found = seen(traffic=traffic(60.0), **signs)
    assert found.down == ({"cloud-h"} if down else set())
    assert any("60% of its requests fail" in reason for reason in found.reasons)


def test_requests_that_fail_everywhere_are_no_zones_fault() -> None:
    assert seen(traffic=traffic(60.0, elsewhere=50.0), healthy=ids("h0", "h1")).down == set()


def test_a_zone_must_be_ill_for_as_long_as_the_policy_says() -> None:
    slow = msgspec.structs.replace(POLICY, zone_down_ms=2_000)
    first = seen(slow, healthy=CLOUD_GONE)
    assert first.down == set()
    assert first.alerts == ("zone cloud-h: none of its 3 replicas is reached",)
    ill = msgspec.structs.replace(first.health["cloud-h"], bad_since_ms=NOW - 2_000)
    assert seen(slow, healthy=CLOUD_GONE, zone_health={"cloud-h": ill}).down == {"cloud-h"}
    assert seen(slow, zone_health={"cloud-h": ill}).health["cloud-h"].bad_since_ms == 0


def test_what_is_lost_already_makes_nobody_suspect() -> None:
    known: dict[str, Any] = {"zone_health": {"cloud-h": DOWN}, "healthy": CLOUD_GONE - {"a1"}}
    found = seen(**known)
    assert not found.suspect
    assert found.down == {"cloud-h"}


def test_the_last_zone_that_is_reached_comes_back_at_once() -> None:
    fleet: dict[str, Any] = {
        "replicas": (*FLEET[:4], *CLOUD),
        "zone_health": {"cloud-h": DOWN},
        "healthy": frozenset({"h0", "h1", "h2"}),
    }
    before = tuple(endpoint(r, 0 if r.zone == "cloud-h" else 100) for r in FLEET)
    found = seen(**fleet, endpoints=before)
    assert found.health["cloud-h"].state is ZoneState.UP
    assert found.rescued == {"cloud-h"}


def test_without_the_balancers_word_the_states_stay() -> None:
    assert seen(healthy=None, zone_health={"cloud-h": DOWN}).health["cloud-h"] == DOWN


def test_replicas_that_all_fail_are_replaced_in_their_zone_once() -> None:
    failed = tuple(replica(f"h{n}", NODE, ReplicaState.FAILED, age_ms=100) for n in range(3))
    fleet: dict[str, Any] = {"replicas": (*FLEET[:4], *failed), "healthy": CLOUD_GONE}
    first = seen(**fleet)
    assert first.down == set()
    assert first.alerts == ("zone cloud-h: all its replicas failed",)
    assert seen(**fleet, zone_health=first.health).down == set(), "the same failure is no second one"
    again = {"cloud-h": msgspec.structs.replace(first.health["cloud-h"], bad_since_ms=NOW - 5_000)}
    assert seen(**fleet, zone_health=again).down == {"cloud-h"}
    nobody_else = {**fleet, "replicas": failed, "healthy": frozenset[str]()}
    assert seen(**nobody_else, zone_health=again).down == set()


def test_the_wait_doubles_and_is_bounded() -> None:
    waits = [wait_ms(failures, POLICY) for failures in (0, 1, 2, 3, 100)]
    assert waits == [5_000, 5_000, 10_000, 20_000, 5_000 * 2**DOUBLINGS_MAX]


WIDE = tuple(msgspec.structs.replace(zone, nodes_max=3) for zone in (A, B))


def fleet_of_two(rate: float = 640.0) -> TinyFleet:
    fleet = TinyFleet(WIDE, msgspec.structs.replace(POLICY, base_replicas=4), rate)
    fleet.ticks(30)
    assert (fleet.count("idc-a"), fleet.count("idc-b")) == (4, 4)
    return fleet


def test_a_zone_is_lost_replaced_and_comes_back_in_steps() -> None:
    fleet = fleet_of_two()
    fleet.cut_off.add("idc-b")
    fleet.tick()
    assert fleet.state("idc-b") is ZoneState.DOWN
    assert {e.weight for e in fleet.endpoints if e.zone == "idc-b"} == {0}
    fleet.ticks(20)
    assert (fleet.count("idc-a"), fleet.count("idc-b")) == (8, 4)
    fleet.cut_off.clear()
    weights = []
    for _ in range(40):
        fleet.tick()
        weights.append(max(e.weight for e in fleet.endpoints if e.zone == "idc-b"))
        assert len(fleet.serving()) >= 8
    assert weights == [0] * 10 + [10] * 5 + [25] * 5 + [50] * 5 + [75] * 5 + [100] * 10
    fleet.ticks(20)
    assert (fleet.count("idc-a"), fleet.count("idc-b")) == (4, 4)


def test_a_silent_runtime_is_left_alone_and_the_rest_goes_on() -> None:
    fleet = fleet_of_two()
    fleet.silent.add("idc-b")
    fleet.rate = 960.0
    fleet.ticks(20)  # the tiny fleet refuses starts and stops where the runtime is silent
    assert (fleet.count("idc-a"), fleet.count("idc-b")) == (8, 4)
    assert len(fleet.serving()) == 12


def test_a_zone_whose_replicas_die_again_and_again_is_given_up_for_a_while() -> None:
    fleet = fleet_of_two()
    for _ in range(2):
        fleet.fail("idc-b")
        fleet.ticks(8)
    assert fleet.state("idc-b") is ZoneState.DOWN
    assert fleet.count("idc-a") == 8
    fleet.ticks(100)
    assert fleet.state("idc-b") is ZoneState.UP
    assert (fleet.count("idc-a"), fleet.count("idc-b")) == (4, 4)


def test_falls_are_forgotten_when_a_zone_has_been_well_for_long() -> None:
    fleet = fleet_of_two()
    fleet.cut_off.add("idc-b")
    fleet.tick()
    fleet.cut_off.clear()
    fleet.ticks(40)
    assert fleet.plan is not None
    assert (fleet.state("idc-b"), fleet.plan.zone_health["idc-b"].failures) == (ZoneState.UP, 1)
    fleet.ticks(300)
    assert fleet.plan.zone_health["idc-b"].failures == 0
