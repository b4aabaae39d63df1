"""The least that anybody could have paid: by hand, and against a linear program that knows nothing of layers."""

import random

import pytest

from springtide.model import Market
from springtide.twin.simulation.clairvoyant import (
    Unit,
    cheapest_fen,
    clairvoyant_cost_cny,
    layer_seconds,
    lead_s,
    rented_needed,
    units,
)
from springtide.twin.simulation.demand import Demand
from springtide.twin.simulation.scenario import Scenario, SimOffer
from tests.twin.simulations import small

highspy = pytest.importorskip("highspy", reason="the linear program needs HiGHS: pip install highspy")


def test_a_layer_is_paid_for_while_needed_and_before() -> None:
    assert layer_seconds([0, 0, 2, 2, 1, 0], 10.0, lead=15.0) == [30 + 15, 20 + 15]


def test_a_short_gap_is_paid_through_and_a_long_one_is_not() -> None:
    assert layer_seconds([1, 0, 1, 0, 0, 0, 1], 10.0, lead=15.0) == [10 + 15 + 10 + 10 + 15 + 10]


def test_the_owner_s_replicas_come_first() -> None:
    scenario = small()
    # 8 cores at 80% take 64/s; four nodes of 16 cores are eight replicas of the owner's.
    assert rented_needed([0, 512, 513, 2_000], scenario) == [0, 0, 1, 24]


def test_the_longest_need_gets_the_cheapest_machine() -> None:
    assert cheapest_fen([7_200, 3_600, 1_800], [Unit(10, 1), Unit(20, 5)]) == 20 + 20 + 10
    assert cheapest_fen([7_200, 3_600], [Unit(10, 1)]) == 20  # what nobody has nobody pays for


def test_machines_count_in_whole_replicas_and_spot_by_its_share() -> None:
    offers = (
        SimOffer("ecs.a", 20, 32, 4.0, stock=3),
        SimOffer("ecs.tiny", 4, 8, 0.1, stock=9),
        SimOffer("ecs.a", 20, 32, 1.0, stock=9, market=Market.SPOT),
    )
    scenario = small()
    cloud = type(scenario.cloud)(offers=offers)
    scenario = small(cloud=cloud)
    assert units(scenario, 40) == [Unit(200.0, 6), Unit(200.0, 6)]  # two zones; no spot, and no room on four cores
    half = small(cloud=cloud, policy=type(scenario.policy)(spot_share_max=0.5))
    assert units(half, 40)[:2] == [Unit(50.0, 18), Unit(50.0, 2)]


def test_the_lead_is_boot_image_and_start() -> None:
    scenario = small()
    assert lead_s(scenario) == pytest.approx(20 + 500 / 1_250 + 10)  # ECI boots in 20 s
    assert clairvoyant_cost_cny(scenario, Demand(scenario.demand)) > 0


@pytest.mark.parametrize("seed", range(20))
def test_no_linear_program_finds_a_cheaper_way(seed: int) -> None:
    """The program: machines of each kind started and kept per step, fractions allowed, each with its lead."""
    chance = random.Random(seed)
    steps, lead = 24, chance.choice([1, 2, 3])
    needed = [0] * lead + [chance.choice([0, 0, 1, 2, 3, 5]) for _ in range(steps - lead - 1)] + [0]
    kinds = [Unit(float(price), chance.randint(1, 3)) for price in sorted(chance.sample(range(1, 50), 4))]
    kinds[-1] = Unit(kinds[-1].price_fen_per_h, 9)  # enough in any case
    ours = cheapest_fen(sorted(layer_seconds(needed, 1.0, lead), reverse=True), kinds) * 3600
    assert ours == pytest.approx(linear_program(needed, kinds, lead), rel=1e-6, abs=1e-6)


def linear_program(needed: list[int], kinds: list[Unit], lead: int) -> float:
    """Cost of the cheapest schedule: rented[k, t] machines, of which those count that were rented `lead` steps ago too.

    A machine that serves in step t has been rented in each of the steps t - lead .. t: what serves is at most what was
    rented in all of these, by machine; started[k, t] machines begin, stopped ones end.
    """
    model = highspy.Highs()
    model.silent()
    infinity = highspy.kHighsInf
    kinds_numbers, steps = range(len(kinds)), len(needed)
    rented, started = {}, {}
    for column, (k, t) in enumerate((k, t) for k in kinds_numbers for t in range(steps)):
        rented[k, t], started[k, t] = 2 * column, 2 * column + 1
        model.addVar(0.0, float(kinds[k].count))
        model.changeColCost(2 * column, kinds[k].price_fen_per_h)
        model.addVar(0.0, infinity)
    for k in kinds_numbers:
        for t in range(steps):  # started is at least what is rented now, less what was before
            row = {started[k, t]: 1.0, rented[k, t]: -1.0} | ({rented[k, t - 1]: 1.0} if t else {})
            model.addRow(0.0, infinity, len(row), list(row), list(row.values()))
    for t, count in enumerate(needed):  # what serves is what is rented, less what was started within the lead
        row = {rented[k, t]: 1.0 for k in kinds_numbers}
        row |= {started[k, begun]: -1.0 for k in kinds_numbers for begun in range(max(0, t - lead + 1), t + 1)}
        model.addRow(float(count), infinity, len(row), list(row), list(row.values()))
    model.run()
    return float(model.getInfo().objective_function_value)


def test_a_scenario_without_a_cloud_costs_nothing() -> None:
    scenario = small()
    own = tuple(zone for zone in scenario.zones if zone.kind == "idc")
    alone: Scenario = small(zones=own, lines=(), cloud=type(scenario.cloud)())
    assert clairvoyant_cost_cny(alone, Demand(alone.demand)) == 0
