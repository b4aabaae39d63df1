"""The scenarios that come along: each has bounds (`expectations/NAME.toml`) and reads; the largest keeps its own."""

from pathlib import Path

import msgspec
import pytest

from springtide.errors import ConfigError
from springtide.twin.simulation.expectations import Expectation, load_expectation, unmet
from springtide.twin.simulation.invariants import checks
from springtide.twin.simulation.reading import counts_of, find_scenario, parse_scenario, shipped
from springtide.twin.simulation.run import simulate

EXPECTATIONS = Path(__file__).parent / "expectations"


@pytest.mark.long  # a hundred thousand cores take a quarter of a minute
def test_the_largest_scenario_keeps_within_its_bounds() -> None:
    scenario = find_scenario("kuaishou-2023")
    outcome = simulate(scenario, counts=counts_of(scenario), watches=(checks(scenario),))
    assert outcome.breaches == ()
    assert unmet(outcome, load_expectation(EXPECTATIONS / "kuaishou-2023.toml")) == []


@pytest.mark.long
def test_a_hundred_thousand_cores_serve_within_ten_minutes_when_nobody_knew() -> None:
    outcome = simulate(msgspec.structs.replace(find_scenario("kuaishou-2023"), calendar=False))
    bounds: Expectation = {
        "ready_s": (0, 600),
        "cores_peak": (100_000, 115_200),
        "nodes_left": (0, 0),
        "cost_ratio": (1.0, 1.15),
        "failed": (0, 0),
    }
    assert unmet(outcome, bounds) == []


def test_every_scenario_has_bounds_and_every_bound_a_scenario() -> None:
    assert sorted(path.stem for path in EXPECTATIONS.glob("*.toml")) == shipped()


@pytest.mark.parametrize("name", shipped())
def test_a_scenario_says_what_it_is_about_and_is_named_as_its_file(name: str) -> None:
    scenario = find_scenario(name)
    assert scenario.name == name
    assert 30 <= len(scenario.about) <= 200


def test_an_unknown_scenario_is_refused_with_those_that_are_there() -> None:
    with pytest.raises(ConfigError, match=r"'nowhere' is unknown.*weibo-breaking-news"):
        find_scenario("nowhere")


def test_a_file_s_demand_lies_beside_it(tmp_path: Path) -> None:
    text = 'name = "x"\n[demand]\nfile = "c.csv"\n[[zones]]\nname = "z"\nkind = "idc"\nnodes = 1\n'
    scenario = parse_scenario(text, "x.toml", tmp_path)
    (tmp_path / "c.csv").write_text("timestamp,value\n2026-01-01 00:00,1\n2026-01-01 00:05,2\n")
    assert counts_of(scenario) == [1.0, 2.0]
