"""Bad input: one clear message that names the place and the remedy, status 2, nothing left running."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.commandline import SMALL, processes_with, springtide


def edited(tmp_path: Path, old: str, new: str) -> Path:
    text = SMALL.read_text()
    assert old in text
    path = tmp_path / "springtide.toml"
    path.write_text(text.replace(old, new))
    (tmp_path / "small.csv").write_text((SMALL.parent / "small.csv").read_text())
    return path


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("hold_s = 3.0", "hold_ms = 3000", "sales[0].hold_ms: unknown; did you mean hold_s?"),
        ("stock = 200", "stock = -1", "stock"),
        ("stock = 200", 'stock = "many"', "stock"),
        ("closes_after_s = 16.0", "closes_after_s = 8.0", "closes_after_s must be above opens_after_s"),
        ("opens_after_s = 8.0", "opens_after_s = 800.0", "opens_after_s"),
        ('demand = "small.csv"', 'demand = "missing.csv"', "missing.csv"),
        ("[crowd]", "[crowds]", "crowds: unknown; did you mean crowd?"),
    ],
    ids=["unit", "negative", "type", "window", "opening", "demand", "table"],
)
def test_a_mistake_in_the_file(tmp_path: Path, old: str, new: str, named: str) -> None:
    path = edited(tmp_path, old, new)
    done = springtide("demo", str(path), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_a_malformed_demand_names_file_and_line(tmp_path: Path) -> None:
    path = edited(tmp_path, "[counter]", "[counter]")
    (tmp_path / "small.csv").write_text("second,requests_per_second\n0,5\n1,lots\n")
    done = springtide("demo", str(path), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "small.csv" in done.stderr
    assert "3" in done.stderr


def test_a_missing_file(tmp_path: Path) -> None:
    done = springtide("demo", str(tmp_path / "nowhere.toml"))
    assert done.returncode == 2
    assert "no such file" in done.stderr


def test_an_unknown_command() -> None:
    assert springtide("sell").returncode == 2


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_in_use_ends_everything(tmp_path: Path, taken_port: int) -> None:
    out = tmp_path / "out"
    done = springtide("demo", str(SMALL), "--out", str(out), "--port", str(taken_port))
    assert done.returncode == 2
    assert str(taken_port) in done.stderr
    assert "Traceback" not in done.stderr
    assert not processes_with(str(out))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; an ordinary user runs this")
def test_no_write_permission_as_a_user() -> None:
    done = springtide("demo", str(SMALL), "--out", "/proc/springtide")
    assert done.returncode == 2
    assert "--out" in done.stderr


def test_a_folder_that_cannot_be_made() -> None:
    done = springtide("demo", str(SMALL), "--out", "/dev/null/out")
    assert done.returncode == 2
    assert "--out" in done.stderr
