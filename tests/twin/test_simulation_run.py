"""Whole simulations: what comes out, again and again the same, and what is left when one is broken off."""

import math

import msgspec
import pytest

from springtide.model import ScaleOverride, Snapshot
from springtide.twin.simulation.decisions import Springtide
from springtide.twin.simulation.faults import Fault, FaultKind
from springtide.twin.simulation.flow import Flow
from springtide.twin.simulation.outcome import Breach, Outcome, Sample
from springtide.twin.simulation.run import Simulation, simulate
from springtide.twin.simulation.scenario import PolicySettings, Scenario
from tests.twin.simulations import small


@pytest.fixture(scope="module")
def announced() -> Outcome:
    return simulate(small())


def test_an_announced_sale_finds_its_capacity_and_leaves_none(announced: Outcome) -> None:
    assert announced.ready_s is not None
    assert announced.ready_s <= 0
    assert announced.availability == 1.0
    assert announced.violation_s == 0
    assert announced.nodes_left == 0
    assert announced.breaches == ()
    # 2,100/s with a tenth of headroom at 64/s a replica: 37, of which 8 may be the owner's.
    assert 24 * 8 <= announced.cores_peak <= 40 * 8


def test_its_counts_add_up(announced: Outcome) -> None:
    answered = announced.acknowledged + announced.sold_out + announced.shed + announced.failed
    assert answered < announced.requests  # the rest looked at pages
    expected = 200 * 1_500 + 1_800 * (20 / 2 + 500 + 60 * (1 - math.exp(-680 / 60)))
    assert announced.requests == pytest.approx(expected, rel=0.01)
    seconds = 1_500 / len(announced.samples)
    assert sum(sample.demand_per_s for sample in announced.samples) * seconds == pytest.approx(
        announced.requests, rel=1e-3
    )


def test_its_bill_is_what_stood_over_time(announced: Outcome) -> None:
    seconds = 1_500 / len(announced.samples)
    paid = sum(sample.cost_cny_per_h for sample in announced.samples) * seconds / 3600
    assert announced.cost_cny == pytest.approx(paid, rel=0.02)
    assert announced.clairvoyant_cost_cny is not None
    assert announced.cost_ratio is not None
    assert announced.cost_ratio > 1


def test_one_seed_has_one_outcome_to_the_byte(announced: Outcome) -> None:
    assert msgspec.json.encode(simulate(small())) == msgspec.json.encode(announced)
    assert msgspec.json.encode(simulate(small(), 8)) != msgspec.json.encode(announced)


def test_without_the_calendar_capacity_follows_the_rise() -> None:
    outcome = simulate(small(calendar=False))
    assert outcome.ready_s is not None
    assert 40 <= outcome.ready_s <= 300
    assert 0.5 < outcome.availability < 1
    assert outcome.violation_s >= outcome.ready_s / 2
    assert outcome.shed > 0
    assert outcome.samples[-1].cores_paid <= 100  # a reserve for the next rise: nobody has announced that it is over


@pytest.mark.parametrize(
    "scenario",
    [
        small(),
        small(calendar=False),
        small(Fault(FaultKind.LINE_SLOW, 500, 100, "line", 0.003)),
        small(Fault(FaultKind.ZONE_LOST, 500, 200, "idc-a")),
        small(policy=PolicySettings(release_after_s=1_800, replicas_max=30)),
        small(Fault(FaultKind.RUSH, 900, 60, "", 5_000), policy=PolicySettings(release_after_s=300)),
    ],
    ids=["announced", "unannounced", "a full line", "a lost zone", "a budget", "released soon"],
)
def test_the_short_cut_leaves_nothing_out(scenario: Scenario) -> None:
    """The same world, with all of the plan decided at every tick."""
    shortcut, whole = Simulation(scenario, 7, Springtide()), Simulation(scenario, 7, Springtide())
    whole.decisions.every_tick = True
    shortcut.run()
    whole.run()
    assert shortcut.decisions.plans < whole.decisions.plans == whole.decisions.ticks
    kept = [msgspec.structs.replace(one.outcome(), alerts=()) for one in (shortcut, whole)]
    assert msgspec.json.encode(kept[0]) == msgspec.json.encode(kept[1])


def test_an_interrupted_simulation_has_what_was_computed() -> None:
    seen: list[Sample] = []

    def stop(sample: Sample) -> None:
        seen.append(sample)
        if sample.at_s >= 400:
            raise KeyboardInterrupt

    outcome = simulate(small(), on_sample=stop)
    assert outcome.interrupted
    assert 400 <= outcome.until_s < 410
    assert outcome.samples == tuple(seen)
    assert outcome.clairvoyant_cost_cny is None
    assert 0 < outcome.requests < 400 * 2_000


class Fixed(Springtide):
    """So many replicas, whatever comes."""

    name = "fixed"

    def see(self, snapshot: Snapshot) -> Snapshot:
        return msgspec.structs.replace(snapshot, scale=ScaleOverride(20, 20))


def test_another_policy_decides_the_count_and_the_plan_does_the_rest() -> None:
    outcome = simulate(small(), policy=Fixed())
    assert outcome.policy == "fixed"
    assert outcome.replicas_peak == 20
    assert {sample.replicas_wanted for sample in outcome.samples} == {20}
    assert outcome.shed > 0


def test_watches_look_at_every_step_and_their_findings_are_kept() -> None:
    looked: list[float] = []

    def watch(simulation: Simulation, flow: Flow) -> list[Breach]:
        looked.append(flow.requests)
        return [Breach(simulation.at_s, "test", "always")] if len(looked) == 3 else []

    outcome = simulate(small(duration_s=20), watches=(watch,))
    assert len(looked) == 20
    assert outcome.breaches == (Breach(3.0, "test", "always"),)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(FaultKind.ZONE_LOST, 500, 120, "cloud-a"),
        Fault(FaultKind.ZONE_LOST, 500, 120, "idc-a"),
        Fault(FaultKind.LINE_CUT, 500, 60, "line"),
        Fault(FaultKind.LINE_SLOW, 200, 400, "line", 0.1),
        Fault(FaultKind.STOCK_OUT, 0, 1_000, "cloud-a", 1),
        Fault(FaultKind.API_THROTTLED, 100, 100),
        Fault(FaultKind.SLOW_BOOTS, 0, 1_000, "", 3),
        Fault(FaultKind.SPOT_RECLAIM, 500, 0, "", 0.5),
        Fault(FaultKind.REGISTRY_GONE, 0, 400),
        Fault(FaultKind.VALKEY_FAILOVER, 500, 5),
        Fault(FaultKind.LARGER_SALE, 0, 1_500, "", 3),
        Fault(FaultKind.RUSH, 700, 100, "", 3_000),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.target}",
)
def test_after_any_fault_the_cloud_is_empty_and_nobody_waits(fault: Fault) -> None:
    outcome = simulate(small(fault, duration_s=2_100))
    assert outcome.nodes_left == 0
    assert outcome.samples[-1].waiting < 100
    assert outcome.samples[-1].shed_per_s == 0
    assert outcome.samples[-1].failed_per_s == 0
    assert outcome.availability > 0.3


def test_a_lost_zone_is_seen_in_the_figures_and_replaced() -> None:
    outcome = simulate(small(Fault(FaultKind.ZONE_LOST, 500, 200, "cloud-a")))
    assert outcome.failed > 0
    after = [sample for sample in outcome.samples if 690 < sample.at_s < 700]
    assert all(sample.shed_per_s == 0 for sample in after)


def test_a_sale_larger_than_announced_is_still_served_in_the_end() -> None:
    outcome = simulate(small(Fault(FaultKind.LARGER_SALE, 0, 1_500, "", 2)))
    assert outcome.shed > 0
    assert outcome.cores_peak > 400


def test_counts_of_a_file_drive_demand() -> None:
    scenario = small(duration_s=600)
    demand = type(scenario.demand)(file="given", bin_s=60, scale=3.0)
    outcome = simulate(msgspec.structs.replace(scenario, demand=demand), counts=[6_000.0] * 10)
    assert outcome.requests == pytest.approx(600 * 300, rel=0.02)


def test_figures_that_alone_differ_make_one_alert() -> None:
    outcome = simulate(small(Fault(FaultKind.STOCK_OUT, 0, 1_500, "", 0)))
    assert outcome.alerts
    assert len(outcome.alerts) <= 6
    assert any(alert.times > 5 for alert in outcome.alerts)
