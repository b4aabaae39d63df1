"""`springtide why`: only what changed, with its reasons, and what went wrong."""

import json
from pathlib import Path

import msgspec
import pytest

from springtide.cli.why import run_replay, run_why
from springtide.decide.plan import plan
from springtide.errors import UserError
from springtide.fleet.journal import Decision, Entry, Fault, Journal, Outcome
from springtide.fleet.why import describe, why
from springtide.model import SetEndpoints, Snapshot
from tests.unit.fleets import IDC_NODES as NODES
from tests.unit.fleets import NOW, POLICY, endpoint, event, replica, snapshot

QUIET = snapshot()


def decided(seen: Snapshot) -> Decision:
    return Decision(POLICY, seen, plan(seen, POLICY))


def later(seen: Snapshot, tick: int) -> Snapshot:
    return msgspec.structs.replace(seen, tick=tick, now_ms=NOW + 500 * tick)


def test_a_tick_that_changes_nothing_is_left_out() -> None:
    entries = [decided(later(QUIET, tick)) for tick in range(5)]
    moments = why(entries)
    assert len(moments) == 1, "the first tick tells where it began, the others nothing new"
    assert moments[0].wanted == (0, entries[0].plan.replicas_wanted)


def test_a_change_has_its_reasons_actions_and_failures() -> None:
    announced = snapshot(calendar=(event(6_000, 800.0),))
    change = decided(announced)
    begun = change.plan.actions[0]
    entries: list[Entry] = [
        decided(QUIET),
        change,
        Outcome(NOW, 7, begun, "no room on this machine"),
        Outcome(NOW, 7, begun),
        Fault(NOW, 7, "balancer", "does not answer"),
        Fault(NOW, 8, "balancer", "does not answer"),
    ]
    moment = why(entries)[-1]
    assert moment.wanted[1] > moment.wanted[0]
    assert any("announced" in reason for reason in moment.reasons)
    assert (describe(begun), begun.reason) in moment.actions
    assert moment.failures == [f"{describe(begun)}: no room on this machine", "balancer: does not answer"]


def test_services_are_told_apart_and_the_last_ones_kept() -> None:
    other = msgspec.structs.replace(QUIET, service="web")
    entries = [decided(QUIET), decided(other)]
    assert [moment.service for moment in why(entries)] == ["counter", "web"]
    assert [moment.service for moment in why(entries, "web")] == ["web"]
    assert [moment.service for moment in why(entries, last=1)] == ["web"]
    assert why(entries, "nobody") == []


def test_the_list_of_the_balancer_is_told_in_a_few_words() -> None:
    on, off = endpoint(replica("a", NODES[0])), endpoint(replica("b", NODES[0]), weight=0)
    assert describe(SetEndpoints((on, off), "why not")) == "balance over 1 replicas"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as written:
        written.write(decided(QUIET))
        written.write(decided(snapshot(calendar=(event(6_000, 800.0),))))
    return path


def test_the_command_prints_for_people_and_programs(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_why(journal, "", 10, as_json=False) == 0
    printed = capsys.readouterr().out
    assert "because" in printed
    assert "announced: live at 800/s" in printed
    assert run_why(journal, "counter", 1, as_json=True) == 0
    (moment,) = json.loads(capsys.readouterr().out)
    assert moment["wanted"][1] > moment["wanted"][0]
    with pytest.raises(UserError, match="no decision for 'web'"):
        run_why(journal, "web", 10, as_json=False)
    with pytest.raises(UserError, match="cannot be read"):
        run_why(journal.with_name("missing"), "", 10, as_json=False)
    with pytest.raises(UserError, match="at least 1"):
        run_why(journal, "", 0, as_json=False)


def test_replay_finds_what_would_be_decided_otherwise(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_replay(journal, as_json=False) == 0
    assert capsys.readouterr().out == "every decision would be the same today\n"
    with Journal(journal) as written:
        right = decided(QUIET)
        written.write(msgspec.structs.replace(right, plan=msgspec.structs.replace(right.plan, replicas_wanted=99)))
    assert run_replay(journal, as_json=False) == 1
    assert "replicas_wanted would differ" in capsys.readouterr().out
    assert run_replay(journal, as_json=True) == 1
    (difference,) = json.loads(capsys.readouterr().out)
    assert difference["fields"] == ["replicas_wanted"]
