"""The journal and its reader."""

from pathlib import Path

import pytest

from springtide.decide.plan import plan
from springtide.errors import UserError
from springtide.fleet.journal import Decision, Entry, Fault, Journal, Outcome, read_journal
from springtide.fleet.replay import replay
from springtide.model import StopReplica
from tests.unit.fleets import POLICY, event, snapshot


def decision(tick: int = 7) -> Decision:
    seen = snapshot(tick=tick, calendar=(event(10_000, 800),), healthy=frozenset({"a1", "b1"}))
    return Decision(POLICY, seen, plan(seen, POLICY))


def fault(number: int) -> Fault:
    return Fault(at_ms=number, tick=number, source="nodes", error="no answer")


def write(path: Path, *entries: Entry, bytes_max: int = 1_000_000) -> None:
    with Journal(path, bytes_max=bytes_max) as journal:
        for entry in entries:
            journal.write(entry)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    entries: list[Entry] = [
        decision(),
        Outcome(5, 7, StopReplica("a1", "idc-a", "failed"), "no answer"),
        fault(1),
    ]
    write(tmp_path / "deep" / "fleet.jsonl", *entries)
    assert list(read_journal(tmp_path / "deep" / "fleet.jsonl")) == entries


def test_a_journal_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "fleet.jsonl"
    write(path, fault(1))
    write(path, fault(2))
    assert list(read_journal(path)) == [fault(1), fault(2)]


def test_files_are_put_aside_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "fleet.jsonl"
    write(path, *map(fault, range(100)), bytes_max=600)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "fleet.jsonl",
        "fleet.jsonl.1",
        "fleet.jsonl.2",
        "fleet.jsonl.3",
    ]
    assert all(file.stat().st_size < 700 for file in tmp_path.iterdir())
    kept = list(read_journal(path))
    assert kept == list(map(fault, range(100)))[-len(kept) :]
    assert 20 < len(kept) < 100


@pytest.mark.parametrize("size", [10, 200_000], ids=["short", "long"])
def test_half_a_line_at_the_end_is_left_out_and_cut_off(tmp_path: Path, size: int) -> None:
    path = tmp_path / "fleet.jsonl"
    write(path, fault(1))
    with path.open("ab") as file:
        file.write(b'{"type":"fault","' + b"x" * size)
    assert list(read_journal(path)) == [fault(1)]
    write(path, fault(2))
    assert list(read_journal(path)) == [fault(1), fault(2)]


def test_a_file_of_half_a_line_alone_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "fleet.jsonl"
    path.write_bytes(b'{"type":')
    write(path, fault(2))
    assert list(read_journal(path)) == [fault(2)]


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "fleet.jsonl"
    write(path, fault(1))
    with path.open("ab") as file:
        file.write(b'{"type":"tide"}\n')
    with pytest.raises(UserError, match=r"fleet\.jsonl, line 2: not an entry"):
        list(read_journal(path))


def test_a_missing_journal_is_a_clear_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        list(read_journal(tmp_path / "none.jsonl"))


def test_a_place_that_cannot_be_written_is_a_clear_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Journal(tmp_path / "file" / "fleet.jsonl")


def test_replay_finds_no_difference_in_what_this_code_decided(tmp_path: Path) -> None:
    write(tmp_path / "fleet.jsonl", decision(1), fault(1), decision(2))
    assert list(replay(tmp_path / "fleet.jsonl")) == []


def test_replay_shows_what_would_be_decided_otherwise(tmp_path: Path) -> None:
    seen = snapshot(tick=3)
    other = plan(snapshot(tick=3, rate=400.0), POLICY)
    write(tmp_path / "fleet.jsonl", decision(1), Decision(POLICY, seen, other))
    (difference,) = replay(tmp_path / "fleet.jsonl")
    assert difference.tick == 3
    assert {"demand", "replicas_wanted", "placement", "actions"} <= set(difference.fields)
    assert difference.decided == plan(seen, POLICY)


def several(count: int = 6) -> list[Entry]:
    """Decisions on two services, of which little changes from one to the next."""
    found: list[Entry] = []
    for tick in range(count):
        for service in ("web", "api"):
            seen = snapshot(tick=tick, service=service, rate=50.0 + tick // 3, healthy=frozenset({"a1", "b1"}))
            found.append(Decision(POLICY, seen, plan(seen, POLICY)))
        found.append(fault(tick))
    return found


def test_what_stays_is_written_once_and_read_every_time(tmp_path: Path) -> None:
    path = tmp_path / "fleet.jsonl"
    entries = several()
    write(path, *entries)
    assert list(read_journal(path)) == entries
    assert list(replay(path)) == []
    lines = [line for line in path.read_bytes().splitlines() if b'"replicas":' in line]
    assert len(lines) == 2


def test_each_file_is_read_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "fleet.jsonl"
    entries = several(40)
    write(path, *entries, bytes_max=20_000)
    kept = list(read_journal(path))
    assert kept == entries[-len(kept) :]
    assert len(kept) > 20
    (tmp_path / "fleet.jsonl.3").unlink()
    fewer = list(read_journal(path))
    assert fewer == entries[-len(fewer) :]


@pytest.mark.parametrize("torn", [1, 40, 400])
def test_a_crash_within_a_line_leaves_the_others_whole(tmp_path: Path, torn: int) -> None:
    path = tmp_path / "fleet.jsonl"
    entries = several()
    write(path, *entries[:7])
    whole = path.read_bytes()
    path.write_bytes(whole[:-torn])
    before = list(read_journal(path))
    write(path, *entries[7:])
    assert list(read_journal(path)) == [*before, *entries[7:]]


def test_a_line_that_could_not_be_written_has_no_part_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fleet.jsonl"
    entries = several()
    with Journal(path) as journal:
        journal.write(entries[0])

        def half(line: memoryview) -> None:
            journal._file.write(line[: len(line) // 2])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as full:
            full.setattr(journal, "_write_all", half)
            with pytest.raises(OSError, match="No space"):
                journal.write(entries[3])
        for entry in entries[4:]:
            journal.write(entry)
    assert list(read_journal(path)) == [entries[0], *entries[4:]]


def test_a_line_that_rests_on_one_that_is_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "fleet.jsonl"
    write(path, *several())
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[1:]))
    with pytest.raises(UserError, match=r"line 3: rests on a line before it"):
        list(read_journal(path))
