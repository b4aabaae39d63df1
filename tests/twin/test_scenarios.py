"""What each scenario that comes along shows beside its bounds; and the promises of the decisions in any small world."""

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from springtide.cli.simulate import simulate as command
from springtide.config import FleetSettings
from springtide.errors import ConfigError
from springtide.model import Market, ZoneKind
from springtide.twin.simulation.expectations import FIGURES, load_expectation, read_expectation, unmet
from springtide.twin.simulation.faults import Fault, FaultKind
from springtide.twin.simulation.flow import PathSettings
from springtide.twin.simulation.invariants import checks
from springtide.twin.simulation.outcome import Outcome, Sample
from springtide.twin.simulation.reading import find_scenario
from springtide.twin.simulation.run import simulate
from springtide.twin.simulation.scenario import (
    DemandSettings,
    PolicySettings,
    Scenario,
    Service,
    SimCloud,
    SimLine,
    SimOffer,
    SimQuota,
    SimZone,
    Wave,
)
from springtide.twin.simulation.seeds import try_scenario
from springtide.twin.simulation.writing import write_scenario
from tests.twin.simulations import FLEET

# What the scenarios show.


EXPECTATIONS = Path(__file__).parent / "expectations"


def run(name: str) -> Outcome:
    """The scenario as it comes along; it keeps within its bounds."""
    scenario = find_scenario(name)
    outcome = simulate(scenario, watches=(checks(scenario),))
    assert outcome.breaches == ()
    assert unmet(outcome, load_expectation(EXPECTATIONS / f"{name}.toml")) == []
    return outcome


def between(outcome: Outcome, from_s: float, until_s: float) -> list[Sample]:
    return [sample for sample in outcome.samples if from_s < sample.at_s <= until_s]


def test_double_eleven_has_an_empty_cloud_between_its_sales() -> None:
    outcome = run("double-eleven")
    waves = find_scenario("double-eleven").demand.waves
    for before, after in pairwise(waves):
        pause = between(outcome, before.opens_s + before.lasts_s, after.opens_s)
        assert min(sample.nodes for sample in pause) == 0
        assert pause[-1].nodes > 0  # the next one's are there
    peaks = [max(s.serving_cores for s in between(outcome, w.opens_s, w.opens_s + w.lasts_s)) for w in waves]
    assert peaks[2] < peaks[0] < peaks[1]


def test_zone_loss_moves_the_traffic_within_seconds_and_replaces_the_machines() -> None:
    outcome = run("zone-loss-at-peak")
    (fault,) = find_scenario("zone-loss-at-peak").faults
    lost = between(outcome, fault.at_s, fault.at_s + fault.lasts_s)
    failing = [sample.at_s for sample in lost if sample.failed_per_s]
    assert failing
    assert max(failing) <= fault.at_s + 15  # a bin's length after it, at most
    assert all(sample.served_per_s == pytest.approx(sample.demand_per_s, rel=1e-3) for sample in lost[2:])
    before = between(outcome, fault.at_s - 60, fault.at_s)[-1]
    assert lost[0].nodes - lost[0].nodes_booting < before.nodes * 0.9
    assert lost[0].nodes_booting > 0
    assert max(sample.capacity_per_s for sample in lost[20:]) > lost[1].capacity_per_s


def test_line_cut_keeps_the_other_line_within_its_share_and_the_data_centre_sells_on() -> None:
    outcome = run("line-cut")
    cut, slow = find_scenario("line-cut").faults
    alone = between(outcome, cut.at_s + 120, slow.at_s)
    one_line = 8e9 / 8 / 20_000  # requests/s
    idc = 2 * 40 * 2 * 160  # as many replicas of 16 cores as its machines take, at all of their cores
    for sample in alone:
        assert 0 < sample.shed_per_s < sample.demand_per_s * 0.3
        assert idc + one_line * 0.5 < sample.served_per_s < idc + one_line
    both = between(outcome, slow.at_s + 60, slow.at_s + slow.lasts_s)
    assert max(sample.served_per_s for sample in both) < min(sample.served_per_s for sample in alone)
    assert all(sample.served_per_s > 20_000 for sample in both)
    healed = between(outcome, cut.at_s + cut.lasts_s + 150, cut.at_s + cut.lasts_s + 300)
    assert max(sample.shed_per_s for sample in healed) == 0


def test_reclaimed_spot_machines_are_replaced_before_they_go() -> None:
    outcome = run("reclaimed-spot")
    (fault,) = find_scenario("reclaimed-spot").faults
    before = between(outcome, fault.at_s - 60, fault.at_s)[-1]
    assert before.serving_spot > before.serving_rented * 0.3
    after = between(outcome, fault.at_s, fault.at_s + 600)
    assert max(sample.nodes for sample in after) > before.nodes * 1.1  # old and new at once
    assert after[-1].nodes <= before.nodes * 1.05
    assert min(sample.serving_rented for sample in after) > before.serving_rented * 0.95
    assert min(sample.capacity_per_s - sample.demand_per_s for sample in after) > 0


def test_stock_out_buys_what_is_left_of_other_types_and_zones() -> None:
    full = msgspec.structs.replace(find_scenario("stock-out"), faults=())
    outcome, easy = run("stock-out"), simulate(full)
    assert outcome.cores_peak == pytest.approx(easy.cores_peak, rel=0.1)
    assert outcome.cost_cny > easy.cost_cny
    assert outcome.nodes_rented >= easy.nodes_rented


def test_ten_times_larger_is_shed_politely_until_the_cloud_has_come() -> None:
    outcome = run("ten-times-larger")
    assert outcome.ready_s is not None
    opens_s = find_scenario("ten-times-larger").demand.waves[0].opens_s
    assert max(sample.shed_per_s for sample in between(outcome, opens_s, opens_s + outcome.ready_s)) > 0
    assert all(not sample.shed_per_s for sample in between(outcome, opens_s + 300, 4_500))


def test_bots_take_little_of_the_stock_and_of_the_capacity() -> None:
    outcome = run("bots")
    scenario = find_scenario("bots")
    bots = outcome.requests * scenario.path.bots_share
    assert outcome.shed > bots * 0.5
    nobody = msgspec.structs.replace(
        scenario,
        path=msgspec.structs.replace(scenario.path, bots_share=0.0),
        demand=msgspec.structs.replace(
            scenario.demand, base_per_s=2_400.0, waves=tuple(map(people, scenario.demand.waves))
        ),
    )
    alone = simulate(nobody)
    assert alone.requests == pytest.approx(outcome.requests - bots, rel=0.02)
    assert outcome.acknowledged + scenario.path.bot_buyers >= alone.acknowledged * 0.98


def people(wave: Wave) -> Wave:
    return msgspec.structs.replace(wave, peak_per_s=wave.peak_per_s * 0.4)


def test_breaking_news_is_carried_by_what_stands_until_the_cloud_has_come() -> None:
    outcome = run("weibo-breaking-news")
    scenario = find_scenario("weibo-breaking-news")
    (news,) = scenario.demand.waves
    assert news.rise_s == 600
    assert news.peak_per_s + scenario.demand.base_per_s == 3 * scenario.demand.base_per_s
    assert not scenario.announced()
    assert between(outcome, 0, news.opens_s)[-1].nodes == 0
    assert max(sample.nodes for sample in outcome.samples) > 100


def test_the_small_world_keeps_within_its_bounds() -> None:
    assert run("small").nodes_rented > 0


# Expectations.


def test_an_outcome_is_held_against_its_bounds() -> None:
    outcome = Outcome("x", "springtide", 1, 9.0, None, 0.5, 100.0, 50.0, 8, 2, 0.0, 3.0, None)
    bounds = read_expectation("availability = [0.9, 1.0]\nnodes_left = [0, 2]\ncores_peak = [9, 9]", "x.toml")
    assert unmet(outcome, bounds) == ["availability is 0.5, expected 0.9 to 1", "cores_peak is 8, expected 9 to 9"]
    bounds = read_expectation("ready_s = [-9, 9]\ncost_ratio = [1, 2]", "x.toml")
    assert unmet(outcome, bounds) == [
        "ready_s is not known, expected -9 to 9",
        "cost_ratio is not known, expected 1 to 2",
    ]


def test_the_command_holds_a_scenario_against_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bounds.toml"
    file.write_text("availability = [0.9, 1.0]\nnodes_left = [0, 0]")
    assert command("small", expect=file) == 0
    file.write_text("availability = [0.0, 0.5]")
    assert command("small", expect=file) == 1
    assert "not as expected: availability is 1, expected 0 to 0.5" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        command("small", expect=tmp_path / "none.toml")


def test_all_figures_of_an_outcome_can_be_expected() -> None:
    assert {"ready_s", "availability", "cost_ratio", "clairvoyant_cost_cny", "line_share_max"} <= FIGURES
    assert not FIGURES & {"scenario", "policy", "samples", "breaches", "interrupted"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("available = [0, 1]", "available: no such figure; there are: acknowledged"),
        ("availability = [1, 0]", "availability: 1 to 0 is empty"),
        ("availability = 1", "write lines such as: availability = "),
        ("availability = [", "write lines such as: availability = "),
    ],
)
def test_bounds_that_make_no_sense_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"x\.toml: .*{words}"):
        read_expectation(text, "x.toml")


# Any small world.

ZONES = (
    SimZone("idc-a", ZoneKind.IDC, nodes=2, cores_per_node=16),
    SimZone("idc-b", ZoneKind.IDC, nodes=3, cores_per_node=16),
    SimZone("cloud-a", ZoneKind.CLOUD, nodes=12, cores_per_node=16, lines=("east",), lead_s=30),
    SimZone("cloud-b", ZoneKind.CLOUD, nodes=12, cores_per_node=16, lines=("west",), lead_s=60),
    SimZone("cloud-c", ZoneKind.CLOUD, nodes=3, cores_per_node=8, lines=("east", "west"), image_cached=True),
)
TARGETS = {
    FaultKind.ZONE_LOST: tuple(zone.name for zone in ZONES),
    FaultKind.LINE_CUT: ("east", "west"),
    FaultKind.LINE_SLOW: ("east", "west"),
    FaultKind.STOCK_OUT: ("", "cloud-a/", "cloud-b/c8/on_demand"),
    FaultKind.API_THROTTLED: ("", "RunInstances", "DeleteInstances"),
    FaultKind.SPOT_RECLAIM: ("", "cloud-a"),
    FaultKind.REGISTRY_GONE: ("", "cloud-b"),
}
OF_ZONES = {FaultKind.ZONE_LOST, FaultKind.SPOT_RECLAIM, FaultKind.REGISTRY_GONE}
LARGEST = {
    FaultKind.LINE_SLOW: 0.9,
    FaultKind.SPOT_RECLAIM: 1.0,
    FaultKind.STOCK_OUT: 4.0,
    FaultKind.SLOW_BOOTS: 8.0,
    FaultKind.LARGER_SALE: 6.0,
    FaultKind.RUSH: 4_000.0,
    FaultKind.VALKEY_FAILOVER: 3.0,
}


@st.composite
def some_faults(draw: st.DrawFn) -> tuple[Fault, ...]:
    found = []
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(FaultKind))
        lasts_s = draw(st.sampled_from([2.0, 20.0, 100.0, 300.0]))
        target = draw(st.sampled_from(TARGETS.get(kind, ("",))))
        amount = round(draw(st.floats(0, 1)) * LARGEST.get(kind, 1.0), 2)
        found.append(Fault(kind, float(draw(st.integers(0, 500))), lasts_s, target, amount))
    return tuple(found)


@st.composite
def some_offers(draw: st.DrawFn) -> tuple[SimOffer, ...]:
    kinds = [("c8", 8, Market.ON_DEMAND), ("c16", 16, Market.ON_DEMAND), ("c8", 8, Market.SPOT), ("e4", 4, Market.ECI)]
    taken = draw(st.lists(st.sampled_from(kinds), min_size=1, unique=True))
    return tuple(
        SimOffer(
            name, cores, cores * 2, cores * draw(st.sampled_from([0.1, 0.2, 0.3])), draw(st.integers(0, 8)), market
        )
        for name, cores, market in taken
    )


@st.composite
def some_worlds(draw: st.DrawFn) -> Scenario:
    """A quarter of an hour of any demand in up to five zones."""
    rooms = draw(st.lists(st.sampled_from(ZONES[:2]), min_size=1, unique=True))
    cloud = draw(st.lists(st.sampled_from(ZONES[2:]), unique=True))
    names = {"", *(zone.name for zone in (*rooms, *cloud))}
    wave = Wave(
        "sale",
        opens_s=draw(st.sampled_from([0.0, 120.0, 300.0])),
        peak_per_s=draw(st.sampled_from([0.0, 300.0, 1_000.0, 3_000.0])),
        rise_s=draw(st.sampled_from([1.0, 30.0, 200.0])),
        holds_s=draw(st.sampled_from([0.0, 100.0, 300.0])),
        fades_s=draw(st.sampled_from([0.0, 40.0])),
        announced_per_s=draw(st.sampled_from([0.0, 1_000.0, 4_000.0])),
    )
    fleet = {
        **FLEET,
        "base_replicas": draw(st.integers(1, 4)),
        "failure_budget": draw(st.integers(0, 1)),
        "actions_max": draw(st.sampled_from([3, 20, 200])),
        "scale_in_share": draw(st.sampled_from([0.1, 0.5, 1.0])),
        "headroom": draw(st.sampled_from([0.0, 0.3])),
    }
    faults = draw(some_faults())
    return Scenario(
        name="any",
        seed=draw(st.integers(0, 9)),
        duration_s=1_000,
        step_s=5.0,
        service=Service(cpu_s=0.1, load_max=0.8, replica_cores=draw(st.sampled_from([4, 8])), start_s=10, image_mb=500),
        demand=DemandSettings(base_per_s=draw(st.sampled_from([0.0, 20.0, 200.0])), waves=(wave,)),
        zones=(*rooms, *cloud),
        lines=(SimLine("east", gbit=draw(st.sampled_from([0.01, 0.1, 1.0]))), SimLine("west", gbit=0.1)),
        cloud=SimCloud(
            offers=draw(some_offers()) if cloud else (),
            quotas=(SimQuota(Market.ON_DEMAND, draw(st.integers(0, 120))), SimQuota(Market.SPOT, 40)),
            boot_median_s=20,
            boot_p99_s=60,
            eci_boot_median_s=5,
            eci_boot_p99_s=20,
        ),
        path=PathSettings(
            stock=draw(st.sampled_from([1, 5_000, 1_000_000])), shards=3, purchase_share=0.5, service_ms=100, hold_s=60
        ),
        fleet=msgspec.convert(fleet, FleetSettings),
        policy=PolicySettings(
            event_doubt=draw(st.sampled_from([0.0, 0.5])),
            release_after_s=draw(st.sampled_from([0.0, 1_800.0])),
            spend_max_cny_per_h=draw(st.sampled_from([0.0, 5.0, 20.0])),
            zone_share_max=draw(st.sampled_from([0.5, 1.0])),
            spot_share_max=draw(st.sampled_from([0.0, 0.5, 1.0])),
        ),
        faults=tuple(f for f in faults if f.kind not in OF_ZONES or f.target in names),
    )


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(some_worlds())
def test_no_small_world_breaks_an_invariant(scenario: Scenario) -> None:
    tried = try_scenario(scenario)
    assert tried.breaches == (), write_scenario(scenario)
