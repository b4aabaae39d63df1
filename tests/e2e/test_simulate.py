"""`springtide simulate` as a user runs it."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from springtide.twin.simulation.reading import shipped
from tests.e2e.commandline import command, environment, springtide

QUICK = "stock-out"


@pytest.fixture(scope="module")
def outcome() -> dict[str, Any]:
    done = springtide("simulate", QUICK, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_the_json_has_what_is_promised(outcome: dict[str, Any]) -> None:
    promised = (
        "ready_s, availability, requests, acknowledged, cores_peak, nodes_left, violation_s, cost_cny,"
        " clairvoyant_cost_cny, wall_s"
    )
    assert set(promised.split(", ")) <= outcome.keys()
    assert (outcome["scenario"], outcome["policy"], outcome["interrupted"]) == (QUICK, "springtide", False)
    assert outcome["wall_s"] > 0


def test_the_same_seed_is_the_same_to_the_byte_but_for_wall_time(outcome: dict[str, Any]) -> None:
    again = json.loads(springtide("simulate", QUICK, "--json").stdout)
    other = json.loads(springtide("simulate", QUICK, "--json", "--seed", "99").stdout)
    for each in (again, other):
        each["wall_s"] = outcome["wall_s"]
    assert json.dumps(again) == json.dumps(outcome)
    assert json.dumps(other) != json.dumps(outcome)


def test_a_person_gets_a_table(outcome: dict[str, Any]) -> None:
    done = springtide("simulate", QUICK, "--no-calendar")
    assert done.returncode == 0, done.stderr
    for words in ("without the calendar", "availability", "after the rise began", "the clairvoyant's", "CNY"):
        assert words in done.stdout
    assert outcome["calendar"]


def test_it_lists_what_comes_along_and_all_of_it_can_be_read() -> None:
    done = springtide("simulate", "--json")
    listed = json.loads(done.stdout)
    assert sorted(listed) == shipped()
    assert {"kuaishou-2023", "double-eleven", "bots"} <= listed.keys()
    assert all(listed.values())


SCENARIO = """
name = "mine"
duration_s = 300
cores_wanted = 16

[demand]
base_per_s = 50

[[zones]]
name = "idc"
kind = "idc"
nodes = 4

[service]
replica_cores = 8
"""


def test_a_file_of_counts_drives_the_demand_of_a_scenario_of_one_s_own(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(SCENARIO)
    counts = tmp_path / "counts.csv"
    counts.write_text("timestamp,value\n2026-01-01 00:00,300\n2026-01-01 00:05,300\n")
    done = springtide("simulate", str(tmp_path / "mine.toml"), "--json", "--demand", str(counts), "--scale", "100")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["until_s"] == 600  # two bins of five minutes, not the scenario's own time
    assert found["requests"] == pytest.approx(60_000, rel=0.02)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("nodes = 4", "nodes = 0"), "zones[0].nodes"),
        (("nodes = 4", "nods = 4"), "nods"),
        (('kind = "idc"', 'kind = "idc"\nlines = ["x"]'), "lines of a zone: 'x' is unknown; known are: none"),
        (("base_per_s = 50", "base_per_s = ["), "not valid TOML"),
        (("[service]", "[fleet]\nstart_s = 1\n[service]"), "fleet.start_s: the fleet gives a replica 1 s to start"),
        (("[demand]", '[[faults]]\nkind = "zone_lost"\nat_s = 1\n[demand]'), "target of zone_lost"),
    ],
    ids=["out of bounds", "unknown key", "unknown line", "no TOML", "starts too short", "fault without a zone"],
)
def test_a_mistake_is_told_with_its_key(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(SCENARIO.replace(*change))
    done = springtide("simulate", str(file))
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "kuaishou-2023"),
        ((QUICK, "--policy", "guess"), "springtide"),
        ((QUICK, "--scale", "0"), "more than 0"),
        ((QUICK, "--demand", "/nowhere.csv"), "cannot be read"),
    ],
    ids=["scenario", "policy", "scale", "demand"],
)
def test_what_does_not_exist_is_refused_with_what_does(arguments: tuple[str, ...], words: str) -> None:
    done = springtide("simulate", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_keeps_what_was_computed() -> None:
    process = subprocess.Popen(
        command("simulate", "kuaishou-2023", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    with process:
        time.sleep(4.0)
        os.kill(process.pid, signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "stopped after" in error
    found = msgspec.json.decode(out)
    assert found["interrupted"]
    assert 0 <= found["until_s"] < 7_200


def test_measured_figures_take_the_place_of_the_scenarios(tmp_path: Path) -> None:
    figures = tmp_path / "figures.toml"
    figures.write_text("nonsense = 1\n")
    wrong = springtide("simulate", "line-cut", "--calibration", str(figures))
    assert wrong.returncode == 2
    assert "figures.toml" in wrong.stderr
