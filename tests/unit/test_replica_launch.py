"""What a replica is started with."""

from pathlib import Path

import pytest

from springtide.drivers import replica_launch
from springtide.drivers.replica_launch import (
    SECRET_BYTES_MAX,
    Definitions,
    announces,
    filled,
    last_lines,
    read_secrets,
    redacted,
)
from springtide.errors import ReplicaError
from springtide.model import ReplicaSpec, ServiceSpec


def test_only_known_placeholders_are_filled() -> None:
    words = ["serve", "--port={port}", '{"a": {zone}}', "{other}"]
    assert filled(words, {"port": "80", "zone": "z"}) == ["serve", "--port=80", '{"a": z}', "{other}"]


def test_a_value_is_not_read_as_a_placeholder_of_those_before() -> None:
    assert filled(["{zone} {port}"], {"port": "1", "zone": "{port}"}) == ["{port} 1"]


def test_announcing_is_told_by_the_command() -> None:
    assert announces(ServiceSpec("s", "1", command=("x", "--to={announce}")))
    assert not announces(ServiceSpec("s", "1", command=("x", "{port}")))


@pytest.mark.parametrize(
    ("content", "value"), [(b"x\n", "x"), (b"x\r\n", "x"), (b"x\n\n", "x\n"), (b"", ""), (b" x ", " x ")]
)
def test_one_line_end_is_no_part_of_a_secret(tmp_path: Path, content: bytes, value: str) -> None:
    (tmp_path / "s").write_bytes(content)
    assert read_secrets({"A": str(tmp_path / "s")}) == {"A": value}


@pytest.mark.parametrize("content", [b"a\0b", b"x" * (SECRET_BYTES_MAX + 1)])
def test_what_no_variable_can_hold_is_refused_without_being_shown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(ReplicaError) as caught:
        read_secrets({"A": str(tmp_path / "s")})
    assert "xx" not in str(caught.value)


def test_longer_secrets_are_taken_out_before_shorter_ones() -> None:
    assert redacted("abc ab", ["ab", "abc", ""]) == "*** ***"


def test_the_oldest_definition_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_launch, "DEFINITIONS_MAX", 2)
    known = Definitions()
    for revision in ("1", "2", "2", "3"):
        known.add(ServiceSpec("s", revision))
    assert known.of(ReplicaSpec("r", "z", "n", "s", "3")).revision == "3"
    assert known.of(ReplicaSpec("r", "z", "n", "s", "2")).revision == "2"
    with pytest.raises(ReplicaError, match="define it"):
        known.of(ReplicaSpec("r", "z", "n", "s", "1"))


def test_last_lines() -> None:
    assert last_lines("a\nb\nc\n", 2) == ["b", "c"]
    assert last_lines("a", 0) == []
