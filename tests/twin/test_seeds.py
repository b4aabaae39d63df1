"""Seeds of random faults: a hundred break no invariant, and what breaks one can be seen again."""

import json
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from springtide.cli import simulate_seeds
from springtide.cli.running import EXIT_INTERRUPTED
from springtide.cli.simulate import _words, simulate
from springtide.cli.simulate_seeds import SeedOptions, SeedReport, _command, run_seeds
from springtide.decide import reconcile
from springtide.errors import ConfigError, UserError
from springtide.twin.simulation import shrink
from springtide.twin.simulation.fault_draw import FAULTS_MAX, FAULTS_UNTIL, draw
from springtide.twin.simulation.faults import FaultKind
from springtide.twin.simulation.invariants import Checker
from springtide.twin.simulation.reading import find_scenario, parse_scenario, shipped
from springtide.twin.simulation.replicas import Replicas, SimulationError
from springtide.twin.simulation.scenario import Scenario
from springtide.twin.simulation.seeds import DEFECT, Tried, try_scenario, try_seed
from springtide.twin.simulation.writing import write_scenario

SEEDS = 100
MORE_SEEDS = 1_000
"""`make simulate-seeds` takes so many, in two processes."""

SMALL = find_scenario("small")


def check(seeds: Sequence[int]) -> list[Tried]:
    tried = [try_seed(SMALL, seed) for seed in seeds]
    for one in tried:
        assert one.breaches == (), f"springtide simulate small --seeds 1 --first-seed {one.seed}"
    return tried


@pytest.mark.parametrize("part", range(4))
def test_a_hundred_seeds_of_random_faults_break_no_invariant(part: int) -> None:
    tried = check(range(1 + part, SEEDS + 1, 4))
    assert sum(len(one.faults) for one in tried) > SEEDS / 2
    assert sum(one.nodes_rented > 0 for one in tried) > len(tried) * 0.8
    assert min(one.requests for one in tried) > 100_000


def test_they_have_every_kind_of_fault_alone_and_together() -> None:
    drawn = [draw(SMALL, seed) for seed in range(1, SEEDS + 1)]
    kinds = Counter(fault.kind for one in drawn for fault in one.faults)
    assert set(kinds) == set(FaultKind)
    assert min(kinds.values()) >= 15
    assert {len(one.faults) for one in drawn} == set(range(1, FAULTS_MAX + 1))
    assert {one.calendar for one in drawn} == {True, False}
    assert {one.fleet.failure_budget for one in drawn} == {0, 1}
    assert min(one.path.stock for one in drawn) < 1_000
    assert max(one.path.stock for one in drawn) > SMALL.path.stock


@pytest.mark.parametrize("name", shipped())
def test_every_scenario_can_be_made_harder_and_has_time_afterwards(name: str) -> None:
    scenario = find_scenario(name)
    for seed in range(30):
        drawn = draw(scenario, seed)
        assert drawn.faults[: len(scenario.faults)] == scenario.faults
        assert drawn.seed == seed
        for fault in drawn.faults[len(scenario.faults) :]:
            assert fault.at_s + fault.lasts_s <= scenario.duration_s * FAULTS_UNTIL + 1
    assert draw(scenario, 5) == draw(scenario, 5) != draw(scenario, 6)


def test_a_world_without_a_cloud_has_no_faults_of_one() -> None:
    text = 'name = "one"\n[demand]\nbase_per_s = 9\n[[zones]]\nname = "z"\nkind = "idc"\nnodes = 9\n'
    scenario = parse_scenario(text, "one.toml")
    kinds = {fault.kind for seed in range(60) for fault in draw(scenario, seed).faults}
    assert kinds == {FaultKind.REGISTRY_GONE, FaultKind.VALKEY_FAILOVER, FaultKind.RUSH}


def test_a_seed_is_the_same_again() -> None:
    assert try_seed(SMALL, 17) == try_seed(SMALL, 17)


@pytest.mark.parametrize("name", shipped())
def test_a_written_scenario_is_read_as_it_was(name: str) -> None:
    scenario = find_scenario(name)
    for one in (scenario, draw(scenario, 3)):
        text = write_scenario(one, "first line\n\nthird")
        assert parse_scenario(text, "written") == one
        assert text.startswith("# first line\n#\n# third\nname = ")
    limits = msgspec.structs.replace(scenario.cloud.limits, calls_per_min={"Run Instances": 3, "x": 1})
    odd = msgspec.structs.replace(
        scenario, about='say "hi" \\ é\n', cloud=msgspec.structs.replace(scenario.cloud, limits=limits)
    )
    assert parse_scenario(write_scenario(odd), "written") == odd


# The command.


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect in the decisions: nothing is given back."""
    monkeypatch.setattr(reconcile.Reconciler, "_releases", lambda *_: iter(()))


def test_the_command_tells_that_nothing_broke(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate("small", seeds=3, first_seed=7) == 0
    shown = capsys.readouterr().out
    assert "small: 3 of 3 seeds from 7" in shown
    assert "no invariant broken" in shown


@pytest.mark.usefixtures("idle")
def test_the_command_tells_what_broke_and_how_to_see_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate("small", seeds=8, calendar=True, json=True) == 1
    report = msgspec.json.decode(capsys.readouterr().out, type=SeedReport)
    assert report.seeds == report.wanted == 8
    assert 0 < len(report.broken) < 8  # in some worlds it is never calm
    again = report.commands[0].split()
    assert again == f"springtide simulate small --seeds 1 --first-seed {report.broken[0].seed}".split()
    assert simulate("small", seeds=1, first_seed=int(again[-1])) == 1
    shown = capsys.readouterr().out
    assert "cloud empty after the event" in shown
    assert report.commands[0] in shown
    assert "1 broke an invariant" in shown


def test_a_command_with_options_is_shown_with_them() -> None:
    words = _words("my world.toml", 4, calendar=False, demand=Path("a.csv"), scale=2.5)
    shown = _command(SeedOptions(8, words=words), 11)
    assert shown == (
        "springtide simulate 'my world.toml' --no-calendar --demand a.csv --scale 2.5 --seed 4"
        " --seeds 1 --first-seed 11"
    )
    assert _command(SeedOptions(words=("small",)), 1) == "springtide simulate small"


@pytest.mark.usefixtures("idle")
def test_shrink_writes_a_smaller_scenario_that_breaks_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shrink, "RUNS_MAX", 25)
    assert simulate("small", seeds=2, shrink=True, out=tmp_path / "new", json=True) == 1
    report = json.loads(capsys.readouterr().out)
    path = Path(report["shrunk"])
    assert path == tmp_path / "new" / f"small-seed-{report['broken'][0]['seed']}.toml"
    text = path.read_text()
    assert "cloud empty after the event" in text.splitlines()[0]
    assert f"springtide simulate {path}" in text
    assert tomllib.loads(text)["duration_s"] < SMALL.duration_s
    assert simulate(str(path)) == 1
    assert "cloud empty after the event" in capsys.readouterr().out
    monkeypatch.setattr(shrink, "RUNS_MAX", 3)
    assert simulate(str(path), shrink=True, out=tmp_path) == 1  # it can be shrunk again, by itself


def test_two_processes_find_what_one_finds(capsys: pytest.CaptureFixture[str]) -> None:
    reports = []
    for processes in (1, 2):
        assert run_seeds(SMALL, None, SeedOptions(12, processes=processes, words=("small",), as_json=True)) == 0
        report = json.loads(capsys.readouterr().out)
        reports.append({key: value for key, value in report.items() if key != "wall_s"})
    assert reports[0] == {**reports[1], "requests": pytest.approx(reports[1]["requests"])}


def test_ctrl_c_keeps_what_was_tried(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(scenario: Scenario, seed: int, counts: Sequence[float] | None) -> Tried:
        if seed == 3:
            raise KeyboardInterrupt
        return try_seed(scenario, seed, counts)

    monkeypatch.setattr(simulate_seeds, "try_seed", interrupted)
    assert simulate("small", seeds=5) == EXIT_INTERRUPTED
    assert "2 of 5 seeds" in capsys.readouterr().out


def test_a_simulation_that_was_interrupted_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> list[object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Checker, "look", interrupt)
    with pytest.raises(KeyboardInterrupt):
        try_scenario(SMALL)


def test_an_error_of_the_twin_is_a_breach(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SimulationError("r-1 cannot start on n-1")

    monkeypatch.setattr(Replicas, "drain", full)
    (breach,) = try_scenario(SMALL).breaches
    assert breach.invariant == DEFECT
    assert breach.detail == "SimulationError: r-1 cannot start on n-1"
    assert breach.at_s > 500


@pytest.mark.parametrize(
    "options",
    [{"seeds": -1}, {"seeds": 2_000_000}, {"seeds": 1, "first_seed": -1}, {"seeds": 1, "processes": 0}],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        simulate("small", **options)  # type: ignore[arg-type] # all of them are whole numbers


@pytest.mark.usefixtures("idle")
def test_a_folder_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(shrink, "RUNS_MAX", 3)
    short = tmp_path / "short.toml"
    short.write_text(write_scenario(msgspec.structs.replace(SMALL, duration_s=1_900)))
    with pytest.raises(UserError, match="give another folder with --out"):
        simulate(str(short), shrink=True, out=tmp_path / "file")


RUN = "import sys; from springtide.cli.app import main; sys.exit(main())"


def running() -> dict[int, int]:
    """All processes that run, each with the one that has started it."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if fields[0] != "Z":
            found[int(path.parent.name)] = int(fields[1])
    return found


def children(pid: int) -> set[int]:
    return {child for child, parent in running().items() if parent == pid}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
def test_a_command_that_is_ended_leaves_no_process(number: signal.Signals) -> None:
    words = ["small", "--seeds", "10000", "--processes", "2", "--json"]
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {RUN}"
    with subprocess.Popen([sys.executable, "-c", code, "simulate", *words], stdout=subprocess.PIPE) as command:
        until = time.monotonic() + 60
        while len(children(command.pid)) < 3 and time.monotonic() < until:  # two that work, and one that tracks
            time.sleep(0.1)
        working = children(command.pid)
        assert len(working) >= 3
        time.sleep(1.0)
        command.send_signal(number)
        shown, _ = command.communicate(timeout=60)
    assert command.returncode == (EXIT_INTERRUPTED if number is signal.SIGINT else -number)
    if number is signal.SIGINT:
        assert json.loads(shown)["wanted"] == 10_000
    until = time.monotonic() + 30
    while working & running().keys() and time.monotonic() < until:
        time.sleep(0.1)
    assert not working & running().keys()
