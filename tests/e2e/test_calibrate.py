"""`springtide calibrate` on this machine: real engines, a file that simulations read, and nothing left behind."""

import json
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from springtide.twin.simulation.calibration import Calibration, Figure, load_calibration
from tests.e2e.commandline import command, environment, processes_with, springtide

pytestmark = pytest.mark.timeout(180)


def left() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("springtide-calibrate-*"))


def test_every_building_block_is_measured(tmp_path: Path) -> None:
    before, out = left(), tmp_path / "calibration.json"
    done = springtide("calibrate", "--runs", "1", "--json", "--out", str(out))
    assert done.returncode == 0, done.stderr
    calibration = load_calibration(out)
    figures = {name: getattr(calibration, name) for name in Calibration.__struct_fields__}
    measured = {name: one for name, one in figures.items() if isinstance(one, Figure)}
    assert len(measured) == 12
    assert all(0 < one.low <= one.median <= one.high for one in measured.values()), measured
    assert calibration.inventory_batch_per_s.median > calibration.inventory_single_per_s.median
    assert len(calibration.replica_start_ms.runs) == 4
    assert json.loads(done.stdout)["machine"] == calibration.machine
    assert "inventory and recorder" in done.stderr  # what it is at
    assert left() == before


def test_bad_input_is_said(tmp_path: Path) -> None:
    done = springtide("calibrate", "--runs", "0", "--out", str(tmp_path / "no.json"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "give 1 to 10" in done.stderr


def test_ctrl_c_ends_everything_that_was_started(tmp_path: Path) -> None:
    before, out = left(), tmp_path / "calibration.json"
    with subprocess.Popen(
        command("calibrate", "--out", str(out)),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as calibrating:
        assert calibrating.stderr is not None
        for line in calibrating.stderr:
            if "a counter" in line:
                break
        time.sleep(1.0)
        folders = left() - before
        assert folders
        calibrating.send_signal(signal.SIGINT)
        _, errors = calibrating.communicate(timeout=60)
    assert calibrating.returncode == 130
    assert "Traceback" not in errors
    assert not out.exists()
    assert left() == before
    assert not any(processes_with(str(folder)) for folder in folders)
