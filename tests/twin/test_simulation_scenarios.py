"""Every scenario that comes along keeps within its bounds (`expectations/NAME.toml`)."""

import tomllib
from pathlib import Path

import msgspec
import pytest

from springtide.errors import ConfigError
from springtide.twin.simulation.outcome import Outcome
from springtide.twin.simulation.reading import counts_of, find_scenario, parse_scenario, shipped
from springtide.twin.simulation.run import simulate

EXPECTATIONS = Path(__file__).parent / "expectations"
LONG = {"kuaishou-2023"}  # a hundred thousand cores take a quarter of a minute


def check(outcome: Outcome, bounds: dict[str, list[float]]) -> list[str]:
    """What lies outside of its bounds."""
    wrong = []
    for name, (low, high) in bounds.items():
        value = getattr(outcome, name)
        if value is None or not low <= value <= high:
            wrong.append(f"{name} is {value}, not {low} to {high}")
    return wrong


def names() -> list[object]:
    return [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in shipped()]


@pytest.mark.parametrize("name", names())
def test_a_scenario_keeps_within_its_bounds(name: str) -> None:
    scenario = find_scenario(name)
    outcome = simulate(scenario, counts=counts_of(scenario))
    assert outcome.breaches == ()
    assert check(outcome, tomllib.loads((EXPECTATIONS / f"{name}.toml").read_text())) == []


@pytest.mark.long
def test_a_hundred_thousand_cores_serve_within_ten_minutes_when_nobody_knew() -> None:
    outcome = simulate(msgspec.structs.replace(find_scenario("kuaishou-2023"), calendar=False))
    bounds: dict[str, list[float]] = {
        "ready_s": [0, 600],
        "cores_peak": [100_000, 115_200],
        "nodes_left": [0, 0],
        "cost_ratio": [1.0, 1.15],
        "failed": [0, 0],
    }
    assert check(outcome, bounds) == []


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
