"""A small sale through the whole product: what must hold on any machine, however slow."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.commandline import SMALL, command, environment, processes_with, springtide
from tests.e2e.watched import assert_nothing_lost

pytestmark = pytest.mark.timeout(180)


def report_of(out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    done = springtide("demo", str(SMALL), "--out", str(out), *options)
    assert (out / "report.json").exists(), done.stderr
    assert not processes_with(str(out))
    return done.returncode, json.loads((out / "report.json").read_text())


def test_without_scaling_nothing_is_rented_and_the_peak_is_shed(tmp_path: Path) -> None:
    status, report = report_of(tmp_path / "out", "--no-scale")
    assert_nothing_lost(report)
    assert status != 0
    assert report["nodes_rented"] == 0
    assert report["shed_share_at_peak"] > 0.001


def test_chaos_loses_nothing(tmp_path: Path) -> None:
    _, report = report_of(tmp_path / "out", "--chaos")
    assert_nothing_lost(report)
    assert len(report["faults"]) == 3
    assert report["nodes_left"] == 0
    # Rented of the cloud that the demo serves, through the real driver: one of each type is all that there is.
    assert {one["instance_type"] for one in report["rented"]} <= {"ecs.c7.large", "ecs.g7.large"}
    assert sum(one["nodes"] for one in report["rented"]) == report["nodes_rented"] >= 1
    assert report["cloud_calls"]["RunInstances"] >= 1
    assert report["cloud_calls_throttled"] == 0


def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        command("demo", str(SMALL), "--out", str(out)),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        until = time.monotonic() + 60
        while not (out / "seconds.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.1)
        run_folders = {Path(part).parent for part in _settings_paths(demo.pid)}
        assert run_folders
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert "Traceback" not in errors
    for folder in run_folders:
        assert not folder.exists()
        assert not processes_with(str(folder))


def _settings_paths(parent: int) -> list[str]:
    """The settings files named on the command lines of a process's children."""
    found = []
    for pid in Path("/proc").glob("[0-9]*"):
        try:
            words = (pid / "cmdline").read_bytes().split(b"\0")
            stat = (pid / "stat").read_text()
        except OSError:
            continue
        if int(stat.rsplit(")", 1)[1].split()[1]) == parent and b"--settings" in words:
            found.append(words[words.index(b"--settings") + 1].decode())
    return found
