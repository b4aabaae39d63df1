"""`springtide replay` on journals of fleets that rented: with offers, fills, quotas, scheduled purchases and lines."""

import json
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from springtide.cli.why import run_replay
from springtide.fleet.journal import Decision, Journal, read_journal
from springtide.fleet.replay import replay
from springtide.model import KeepNodes, Purchase, ReleaseNode, RentNodes
from springtide.twin.simulation.approaches import approach
from springtide.twin.simulation.faults import Fault, FaultKind
from springtide.twin.simulation.flow import Flow
from springtide.twin.simulation.outcome import Breach
from springtide.twin.simulation.run import Simulation
from springtide.twin.simulation.scenario import PolicySettings
from tests.twin.hybrid import Hybrid, told
from tests.twin.simulations import small


def decisions(path: Path) -> list[Decision]:
    return [entry for entry in read_journal(path) if isinstance(entry, Decision)]


async def loops(folder: Path, seeds: Iterable[int]) -> list[Path]:
    """The journals of real control loops over the twin's cloud, under faults and crashes."""
    runs: list[Hybrid] = [await told(folder / str(seed), seed) for seed in seeds]
    assert sum(run.crashes for run in runs) > 0
    return sorted(path for run in runs for path in run.folder.glob("*.jsonl"))


async def test_every_decision_of_a_fleet_that_rents_is_decided_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journals = await loops(tmp_path, (0, 3, 5))
    entries = [entry for path in journals for entry in decisions(path)]
    for field in ("offers", "fills", "quotas", "purchases"):
        assert any(getattr(entry.snapshot, field) for entry in entries), f"no snapshot has {field}"
    actions = {type(action) for entry in entries for action in entry.plan.actions}
    assert {RentNodes, ReleaseNode} <= actions
    assert any(isinstance(purchase, Purchase) for entry in entries for purchase in entry.snapshot.purchases)
    for path in journals:
        assert list(replay(path)) == [], path
        assert run_replay(path, as_json=False) == 0
    assert "every decision would be the same today" in capsys.readouterr().out


async def test_what_other_prices_would_have_changed_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The journal of a fleet whose code bought elsewhere: each order in it is told as today's would not be."""
    (path,) = await loops_without_crash(tmp_path)
    found = decisions(path)
    rented = next(entry for entry in found if any(isinstance(action, RentNodes) for action in entry.plan.actions))
    other = tuple(
        msgspec.structs.replace(action, instance_type="c.elsewhere") if isinstance(action, RentNodes) else action
        for action in rented.plan.actions
    )
    changed = tmp_path / "changed.jsonl"
    with Journal(changed) as journal:
        for entry in found:
            is_rented = entry.plan.tick == rented.plan.tick
            plan = msgspec.structs.replace(entry.plan, actions=other) if is_rented else entry.plan
            journal.write(msgspec.structs.replace(entry, plan=plan))
    capsys.readouterr()  # what the loop has said
    (difference,) = replay(changed)
    assert (difference.tick, difference.fields) == (rented.plan.tick, ("actions",))
    assert run_replay(changed, as_json=True) == 1
    (shown,) = json.loads(capsys.readouterr().out)
    assert "c.elsewhere" in json.dumps(shown["recorded"])
    assert "c.elsewhere" not in json.dumps(shown["decided"])
    assert run_replay(changed, as_json=False) == 1
    assert f"tick {rented.plan.tick}: actions would differ" in capsys.readouterr().out


async def test_another_policy_can_be_asked_what_if(tmp_path: Path) -> None:
    (path,) = await loops_without_crash(tmp_path)
    policy = msgspec.structs.replace(decisions(path)[0].policy, spend_max_fen_per_h=1.0)
    differing = [difference for difference in replay(path, policy) if "actions" in difference.fields]
    assert differing
    assert not any(isinstance(action, RentNodes) for each in differing for action in each.decided.actions)


async def loops_without_crash(folder: Path) -> list[Path]:
    for seed in range(20):
        run = await told(folder / str(seed), seed)
        if not run.crashes:
            return sorted(run.folder.glob("*.jsonl"))
    raise AssertionError("every seed crashes")


def test_the_journal_of_a_simulation_is_replayed(tmp_path: Path) -> None:
    """Lines, lost zones and machines that are kept for longer are in its snapshots."""
    scenario = small(
        Fault(FaultKind.ZONE_LOST, 500, 60, "cloud-a"),
        Fault(FaultKind.LINE_SLOW, 600, 120, "line", 0.01),
        policy=PolicySettings(release_after_s=400),
        duration_s=1_200,
        calendar=False,
    )
    path = tmp_path / "twin.jsonl"
    simulation = Simulation(scenario, 7, approach("springtide", scenario))
    simulation.decisions.every_tick = True
    with Journal(path) as journal:

        def note(running: Simulation, _: Flow) -> Iterable[Breach]:
            made = running.decisions
            if made.snapshot is not None and made.plan is not None and made.snapshot.tick not in written:
                written.add(made.snapshot.tick)
                journal.write(Decision(made.policy, made.snapshot, made.plan))
            return ()

        written: set[int] = set()
        simulation.watches = (note,)
        simulation.run()
    entries = decisions(path)
    assert len(entries) > 100
    actions = {type(action) for entry in entries for action in entry.plan.actions}
    assert {RentNodes, ReleaseNode, KeepNodes} <= actions
    assert any(entry.snapshot.line_load for entry in entries)
    assert any("replicas/cloud-a" in entry.snapshot.ages_ms for entry in entries)
    assert list(replay(path)) == []
