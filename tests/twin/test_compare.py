"""The same scenario under other policies: what each may do, what it costs, and what is kept when it is ended early."""

import math
from collections.abc import Iterable

import msgspec
import pytest

from springtide.errors import ConfigError
from springtide.model import Market, ReplicaState, ZoneKind
from springtide.twin.elasticity import Need
from springtide.twin.kernel_world import Step
from springtide.twin.series import Series
from springtide.twin.simulation.approaches import ABOUT, APPROACHES, COMPARED, approach, peak_replicas
from springtide.twin.simulation.compare import Compared, Comparison, compare
from springtide.twin.simulation.elastic import elastic, need_of
from springtide.twin.simulation.faults import Fault, FaultKind
from springtide.twin.simulation.flow import Flow
from springtide.twin.simulation.outcome import Breach, Sample
from springtide.twin.simulation.run import Simulation, simulate
from springtide.twin.simulation.scenario import PolicySettings, Scenario, SimCloud, SimOffer, SimQuota
from tests.twin.simulations import small

ROOMY = {"base_replicas": 1}
COUNTING = ("static-peak", "hpa", "keda", "hpa-default", "keda-default")


@pytest.fixture(scope="module")
def compared() -> dict[str, Compared]:
    """A base of 2 replicas in rooms that have 8."""
    return rows(compare(small(fleet=ROOMY)))


def rows(comparison: Comparison) -> dict[str, Compared]:
    return {row.outcome.policy: row for row in comparison.rows}


def run(scenario: Scenario, policy: str) -> Simulation:
    simulation = Simulation(scenario, scenario.seed, approach(policy, scenario))
    simulation.run()
    return simulation


def test_every_policy_meets_the_same_people(compared: dict[str, Compared]) -> None:
    assert tuple(compared) == COMPARED
    assert set(APPROACHES) == set(ABOUT)
    first_attempts = {row.outcome.requests - row.outcome.retries for row in compared.values()}
    assert max(first_attempts) == pytest.approx(min(first_attempts), rel=1e-6)
    assert len({row.outcome.clairvoyant_cost_cny for row in compared.values()}) == 1


def test_who_knows_of_the_sale_serves_it_and_who_does_not_is_late(compared: dict[str, Compared]) -> None:
    for name in ("springtide", "static-peak", "keda", "idc-first", "cloud-first"):
        assert compared[name].outcome.violation_s == 0, name
        assert (compared[name].outcome.ready_s or 0) < 0, name
        assert compared[name].elastic.under_share == 0, name
    assert compared["hpa"].outcome.ready_s is not None
    assert 40 < compared["hpa"].outcome.ready_s < 300
    assert compared["hpa"].outcome.violation_s > 40
    assert compared["hpa"].elastic.under_accuracy > 0
    assert compared["idc-only"].outcome.ready_s is None


def test_what_each_costs(compared: dict[str, Compared]) -> None:
    costs = {name: row.outcome.cost_cny for name, row in compared.items()}
    assert costs["idc-only"] == 0
    assert costs["static-peak"] == max(costs.values())
    assert costs["idc-first"] < costs["springtide"] <= costs["cloud-first"] < costs["static-peak"]
    for name in ("springtide", "static-peak", "keda", "idc-first", "cloud-first"):
        assert (compared[name].outcome.cost_ratio or 0) >= 1, name  # who serves everybody pays the bound at least
    assert compared["static-peak"].elastic.over_accuracy > 3 * compared["springtide"].elastic.over_accuracy


def test_where_each_places_its_replicas(compared: dict[str, Compared]) -> None:
    own = 8 * 8
    at_peak = {name: sample_at(row, 700) for name, row in compared.items()}
    assert at_peak["idc-first"].serving_idc == own
    assert at_peak["springtide"].serving_idc == 2 * 8
    assert at_peak["cloud-first"].serving_idc == 0
    assert at_peak["idc-only"].serving_rented == 0
    assert at_peak["hpa"].serving_idc == own
    assert at_peak["hpa"].serving_rented > 0
    before = {name: sample_at(row, 20) for name, row in compared.items()}
    assert before["idc-first"].nodes == before["hpa"].nodes == 0
    assert before["cloud-first"].nodes > 0
    assert before["static-peak"].serving_rented == at_peak["static-peak"].serving_rented > 0


def sample_at(row: Compared, at_s: float) -> Sample:
    return next(sample for sample in row.outcome.samples if sample.at_s >= at_s)


def test_where_the_base_fills_the_rooms_idc_first_does_what_springtide_does() -> None:
    found = rows(compare(small(), policies=("springtide", "idc-first")))
    assert found["idc-first"].outcome.samples == found["springtide"].outcome.samples


def test_a_static_fleet_has_the_room_of_the_scenario_without_its_faults() -> None:
    scenario = small()
    assert peak_replicas(scenario) == math.ceil(2_000 * 1.1 / 64)
    larger = small(Fault(FaultKind.LARGER_SALE, at_s=200, lasts_s=600, target="sale", amount=3))
    assert peak_replicas(larger) == peak_replicas(scenario)
    simulation = run(larger, "static-peak")
    assert {row.serving_cores for row in simulation.recorder.samples} == {35 * 8}
    assert simulation.recorder.totals.shed > 0


def test_the_documented_settings_are_slower_than_the_best() -> None:
    best, documented = (simulate(small(), policy=approach(name, small())) for name in ("hpa", "hpa-default"))
    assert (documented.ready_s or math.inf) > (best.ready_s or 0)
    assert documented.violation_s > best.violation_s


@pytest.mark.parametrize("policy", ["hpa", "keda"])
def test_everything_is_given_back_after_the_sale(policy: str) -> None:
    simulation = run(small(), policy)
    assert simulation.hands.rented > 0
    assert simulation.world.market.nodes() == ()
    assert all(replica.state is ReplicaState.READY for replica in simulation.world.replicas.all)


@pytest.mark.parametrize("policy", COUNTING)
def test_the_crew_s_short_cut_leaves_nothing_out(policy: str) -> None:
    scenario = small(Fault(FaultKind.ZONE_LOST, 500, 200, "cloud-a"), Fault(FaultKind.API_THROTTLED, 290, 60, ""))
    shortcut, whole = (Simulation(scenario, 7, approach(policy, scenario)) for _ in range(2))
    whole.decisions.every_tick = True
    shortcut.run()
    whole.run()
    assert shortcut.decisions.plans < whole.decisions.plans == whole.decisions.ticks
    assert msgspec.json.encode(shortcut.outcome()) == msgspec.json.encode(whole.outcome())


OFFERS = (
    SimOffer("ecs.a", 16, 32, 3.0, stock=4),
    SimOffer("ecs.b", 8, 16, 1.8, stock=3),
    SimOffer("ecs.s", 8, 16, 0.5, stock=40, market=Market.SPOT),
    SimOffer("ecs.tiny", 4, 8, 0.1, stock=40),
    SimOffer("ecs.c", 8, 16, 9.0, stock=40),
)


def bought(scenario: Scenario, policy: str = "static-peak") -> dict[str, int]:
    """Machines at the peak, by type."""
    counts: dict[str, int] = {}

    def look(simulation: Simulation, _: Flow) -> Iterable[Breach]:
        if simulation.at_s >= 600 and not counts:
            for node in simulation.world.market.nodes():
                counts[node.instance_type] = counts.get(node.instance_type, 0) + 1
        return ()

    simulate(scenario, policy=approach(policy, scenario), watches=(look,))
    return counts


def test_the_crew_buys_the_cheapest_and_goes_on_where_one_is_sold_out() -> None:
    """35 replicas, 8 of them on own nodes; two zones of each offer: 16 replicas on a, 6 on b, 5 left for c."""
    assert bought(small(cloud=SimCloud(offers=OFFERS))) == {"ecs.a": 8, "ecs.b": 6, "ecs.c": 5}


def test_the_crew_keeps_quotas_zones_and_budget() -> None:
    scenario = small(cloud=SimCloud(offers=OFFERS, quotas=(SimQuota(Market.ON_DEMAND, 72),)))
    counts = bought(scenario)
    assert 16 * counts["ecs.a"] + 8 * counts.get("ecs.b", 0) == 72
    zones = tuple(
        msgspec.structs.replace(zone, nodes=2) if zone.kind is ZoneKind.CLOUD else zone for zone in scenario.zones
    )
    assert bought(small(cloud=SimCloud(offers=OFFERS), zones=zones)) == {"ecs.a": 4}
    poor = small(cloud=SimCloud(offers=OFFERS), policy=PolicySettings(spend_max_cny_per_h=10))
    assert bought(poor) == {"ecs.a": 3}


def test_the_crew_has_spot_machines_up_to_their_share() -> None:
    cloud = SimCloud(offers=OFFERS, price_move=0)
    counts = bought(small(cloud=cloud, policy=PolicySettings(spot_share_max=0.5)))
    assert counts["ecs.s"] == 27 // 2
    assert counts["ecs.a"] == 7


@pytest.mark.parametrize("policy", ["static-peak", "keda"])
def test_the_crew_replaces_what_a_lost_zone_took(policy: str) -> None:
    simulation = run(small(Fault(FaultKind.ZONE_LOST, 450, 1_000, "cloud-a")), policy)
    lost = next(row for row in simulation.recorder.samples if row.at_s > 455)
    again = next(row for row in simulation.recorder.samples if row.at_s > 700)
    assert lost.serving_cores < again.serving_cores
    assert again.capacity_per_s >= 2_000


def test_the_crew_moves_off_spot_machines_before_they_are_taken() -> None:
    cloud = SimCloud(offers=OFFERS, price_move=0, boot_median_s=40, boot_p99_s=100)
    fault = Fault(FaultKind.SPOT_RECLAIM, 450, 1, "", 1.0)
    simulation = run(small(fault, cloud=cloud, policy=PolicySettings(spot_share_max=0.5)), "static-peak")
    assert simulation.world.market.interrupted == 0  # they were empty, and given back before their time
    assert simulation.recorder.totals.failed == 0
    later = [row.serving_cores for row in simulation.recorder.samples if row.at_s > 450]
    assert min(later) >= 35 * 8


def test_the_same_seed_gives_the_same_comparison() -> None:
    policies = ("hpa", "keda", "cloud-first")
    first, second, other = (compare(small(), seed, policies=policies) for seed in (3, 3, 4))
    assert msgspec.json.encode(first) == msgspec.json.encode(second)
    assert first.rows[0].outcome.cost_cny != other.rows[0].outcome.cost_cny


@pytest.mark.parametrize("where", ["between two policies", "within one"])
def test_what_was_finished_is_kept(where: str) -> None:
    begun: list[str] = []

    def begin(policy: str) -> None:
        begun.append(policy)
        if len(begun) == 3 and where == "between two policies":
            raise KeyboardInterrupt

    def sample(seen: Sample) -> None:
        if len(begun) == 3 and seen.at_s > 100:
            raise KeyboardInterrupt

    found = compare(small(), on_begin=begin, on_sample=sample)
    assert [row.outcome.policy for row in found.rows] == list(COMPARED[:2])
    assert found.left_out == COMPARED[2:]
    assert found.interrupted
    assert not any(row.outcome.interrupted for row in found.rows)


def test_an_unknown_policy_is_refused_before_anything_runs() -> None:
    def never(_: str) -> None:
        raise AssertionError("it has begun")

    with pytest.raises(ConfigError, match="'guess' is unknown; give one of: springtide, static-peak"):
        compare(small(), policies=("hpa", "guess"), on_begin=never)


def test_elasticity_by_hand() -> None:
    """100 s that need 4 replicas: 25 s with 2 (half too few), 50 s with 4, 25 s with 6 (half too many)."""
    need = Need.of(Series("flat", 1_000_000, [400.0] * 100, 0), 100.0)
    steps = [Step(1_000_500, 2, 2), Step(1_025_000, 4, 4), Step(1_075_000, 6, 6)]
    found = elastic(need, steps)
    assert found.under_share == pytest.approx(25)
    assert found.under_accuracy == pytest.approx(12.5)
    assert found.over_share == pytest.approx(25)
    assert found.over_accuracy == pytest.approx(12.5)


def test_need_is_of_the_people_who_are_expected_faults_included() -> None:
    rush = small(Fault(FaultKind.RUSH, at_s=1_000, lasts_s=100, amount=6_400))
    need = need_of(rush)
    assert need.units[100] == math.ceil(200 / 64)
    assert need.units[700] == math.ceil(2_000 / 64)
    assert need.units[1_050] >= 100
