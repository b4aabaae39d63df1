"""The twin's clock and world: what happens when, what is refused, what is paid, and that a run can be repeated."""

import random

import msgspec
import pytest

from springtide.model import (
    CalendarEvent,
    DrainReplica,
    Endpoint,
    FleetPolicy,
    NodeState,
    ReleaseNode,
    RentNodes,
    ReplicaSpec,
    ReplicaState,
    SetEndpoints,
    StartReplica,
    StopReplica,
    Zone,
    ZoneKind,
)
from springtide.twin.elasticity import Need, measure_steps
from springtide.twin.kernel import Kernel
from springtide.twin.kernel_crew import Crew
from springtide.twin.kernel_run import run_counting, run_plan
from springtide.twin.kernel_world import World, WorldError, WorldSettings
from springtide.twin.policies import Hpa, HpaSettings
from springtide.twin.series import Sale, Series, flash_sales, normal_noise

START = 1_700_000_000_000
OWN = Zone("own", ZoneKind.IDC, nodes_max=1, cores_per_node=2)
CLOUD = Zone("cloud", ZoneKind.CLOUD, nodes_max=100, cores_per_node=4, lead_ms=75_000, price_fen_per_node_h=100)
SETTINGS = WorldSettings((OWN, CLOUD), start_ms=10_000)
POLICY = FleetPolicy(
    replica_requests_per_s=100,
    replica_cores=1,
    headroom=0.2,
    base_replicas=2,
    patience_ms=60_000,
    drain_ms=5_000,
    start_ms=10_000,
    actions_max=1_000,
    starting_max=1_000,
    stale_ms=15_000,
)


def world() -> World:
    return World(Kernel(START), SETTINGS)


def start(name: str, node: str = "own-n1", zone: str = "own") -> StartReplica:
    return StartReplica(ReplicaSpec(name, zone, node), "")


def evening(*sales: Sale, normal: float = 400.0) -> Series:
    return flash_sales("evening", normal, sales, normal_noise(random.Random(5)), START)


def test_events_happen_in_the_order_of_their_moments_and_then_of_their_coming() -> None:
    kernel, seen = Kernel(START), list[tuple[int, str]]()
    for ms, name in ((5, "c"), (1, "a"), (5, "d"), (2, "b"), (-7, "past")):
        kernel.at(START + ms, lambda name=name: seen.append((kernel.now_ms - START, name)))  # type: ignore[misc] # a lambda's default
    kernel.run(START + 5)
    assert seen == [(0, "past"), (1, "a"), (2, "b")]
    kernel.run(START + 6)
    assert seen[3:] == [(5, "c"), (5, "d")]
    assert kernel.now_ms == START + 6


def test_what_is_repeated_keeps_its_period() -> None:
    kernel, seen = Kernel(START), list[int]()
    kernel.every(15, lambda: seen.append(kernel.now_ms - START))
    kernel.run(START + 46)
    assert seen == [0, 15, 30, 45]
    with pytest.raises(ValueError, match="at least 1"):
        kernel.every(0, lambda: None)


def test_nodes_and_replicas_take_their_time_and_are_paid_for_from_the_order_on() -> None:
    there = world()
    there.apply(RentNodes("cloud", 1, "t", ""))
    assert there.steps[-1].paid == 4
    states = []
    for ms in (75_000, 75_001):
        there.kernel.run(START + ms)
        states.append(there.nodes[-1].state)
    assert states == [NodeState.BOOTING, NodeState.READY]
    there.apply(start("r1", there.nodes[-1].node_id, "cloud"))
    there.apply(start("r2"))
    assert [step.paid for step in there.steps] == [0, 4, 5]
    there.kernel.run(START + 85_002)
    assert {replica.state for replica in there.replicas} == {ReplicaState.READY}
    assert there.serving == 0, "nobody has listed them"
    listed = [Endpoint(r.replica_id, r.zone, r.host, r.port, 100 * (r.zone == "cloud")) for r in there.replicas]
    there.apply(SetEndpoints(tuple(listed), ""))
    assert there.serving == 1
    there.apply(DrainReplica("r1", "cloud", ""))
    assert there.serving == 0
    there.apply(StopReplica("r1", "cloud", ""))
    there.apply(ReleaseNode(there.nodes[-1].node_id, "cloud", ""))
    assert there.steps[-1].paid == 1
    there.check()


@pytest.mark.parametrize(
    "action",
    [
        start("r1", "nowhere"),
        start("r1", "cloud-n2", "cloud"),
        start("own1"),
        start("own3"),
        ReleaseNode("own-n1", "own", ""),
        StopReplica("r9", "own", ""),
        DrainReplica("r9", "own", ""),
        RentNodes("own", 1, "", ""),
        RentNodes("cloud", 100, "", ""),
    ],
    ids=["no node", "booting", "twice", "full", "not rented", "unknown", "unknown too", "own zone", "quota"],
)
def test_what_no_engine_would_do_is_a_defect(action: StartReplica) -> None:
    there = world()
    there.apply(RentNodes("cloud", 1, "t", ""))
    there.apply(start("own1"))
    there.apply(start("own2"))
    with pytest.raises(WorldError):
        there.apply(action)


def test_a_node_with_a_replica_cannot_be_given_back() -> None:
    there = world()
    there.apply(RentNodes("cloud", 1, "t", ""))
    there.kernel.run(START + 75_001)
    node = there.nodes[-1].node_id
    there.apply(start("r1", node, "cloud"))
    with pytest.raises(WorldError, match="runs 1 replicas"):
        there.apply(ReleaseNode(node, "cloud", ""))


def test_lost_count_is_found() -> None:
    there = world()
    there.apply(start("r1"))
    there.check()
    there.used["own-n1"] += 1
    with pytest.raises(WorldError, match="lost count"):
        there.check()


def test_a_crew_rents_what_has_no_place_and_gives_back_what_is_empty() -> None:
    there = World(Kernel(START), msgspec.structs.replace(SETTINGS, lists_ready=True))
    crew = Crew(there, drain_ms=5_000)
    crew.scale(11)
    assert (len(there.replicas), len(there.nodes) - 1) == (2, 3)
    there.kernel.run(START + 85_001)
    assert there.serving == 11
    crew.scale(3)
    assert there.serving == 3
    there.kernel.run(START + 90_002)
    assert (len(there.replicas), len(there.nodes) - 1) == (3, 1)
    crew.scale(20)
    crew.scale(3)
    there.kernel.run(START + 300_000)
    assert (len(there.replicas), len(there.nodes) - 1) == (3, 1), "nodes nobody waits for are given back"
    there.check()


def test_the_production_decisions_carry_an_announced_sale_and_go_back() -> None:
    sale = Sale(3_600, rise_s=10, peak=9_000, holds_s=300, fades_s=60)
    series = evening(sale)
    told = CalendarEvent("sale", START + 3_600_000, 400_000, 9_500, ready_ms=15_000)
    series = msgspec.structs.replace(series, calendar=(told,))
    there = run_plan(series, SETTINGS, POLICY, 5_000)
    found = measure_steps(Need.of(series, 100), there.steps, 0, series.seconds)
    assert found.violation_s == 0
    assert max(step.serving for step in there.steps) >= 90
    assert there.serving <= 8


def test_the_short_cut_decides_what_all_of_the_plan_decides() -> None:
    series = evening(Sale(1_800, rise_s=40, peak=3_000, holds_s=200, fades_s=100))
    short = run_plan(series, SETTINGS, POLICY, 5_000)
    whole = run_plan(series, SETTINGS, POLICY, 5_000, every_tick=True)
    assert short.steps == whole.steps
    assert len(short.steps) > 20


def test_a_seed_reproduces_a_run() -> None:
    sale = Sale(1_800, rise_s=40, peak=3_000, holds_s=200, fades_s=100)
    runs = [run_plan(evening(sale), SETTINGS, POLICY, 5_000).steps for _ in range(2)]
    assert runs[0] == runs[1]


def test_hpa_on_the_twin_settles_at_its_target() -> None:
    series = evening(Sale(1_800, rise_s=40, peak=3_000, holds_s=3_000, fades_s=100))
    series = msgspec.structs.replace(series, rates=series.rates[:4_000])
    there = run_counting(series, SETTINGS, Hpa(HpaSettings(target=50, replicas_min=2)), 5_000)
    # About 3,400/s at 50/s each, within the tolerance and the sway of the normal demand.
    assert 60 <= there.serving <= 80
