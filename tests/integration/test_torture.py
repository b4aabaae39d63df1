"""The loss test itself: it holds on the product, and it sees a product that is broken."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.commandline import command, environment, processes_with

pytestmark = pytest.mark.timeout(180)

KILLS_VALKEY_FIRST = "15"


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    words = command("torture", "--kinds", "kill", "--json", "--out", str(out), *options)
    return subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(torture: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    with torture:
        output, errors = torture.communicate()
    assert output, errors
    return torture.returncode, json.loads(output)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, int, dict[str, Any]]]]:
    """Both at the same time: most of what they do is to wait."""
    folder = tmp_path_factory.mktemp("torture")
    begun = {
        "whole": start(folder / "whole", "--faults", "3", "--seed", "3"),
        "broken": start(folder / "broken", "--faults", "1", "--seed", KILLS_VALKEY_FIRST, "--broken", "no-journal"),
    }
    try:
        yield {name: (folder / name, *result(torture)) for name, torture in begun.items()}
    finally:
        for torture in begun.values():
            if torture.poll() is None:
                torture.terminate()
                torture.communicate()


Runs = dict[str, tuple[Path, int, dict[str, Any]]]


def test_killed_processes_lose_nothing(runs: Runs) -> None:
    out, status, report = runs["whole"]
    assert report["holds"], report["findings"]
    assert status == 0
    assert report["faults_counted"] == 3
    assert report["acknowledged"] > 0
    assert report["acknowledged"] <= report["orders"]
    assert not processes_with(str(out))


def test_stock_without_a_journal_entry_is_caught(runs: Runs) -> None:
    _, status, report = runs["broken"]
    assert status == 1
    assert report["findings"]["lost"]
    assert any(report["findings"]["differences"].values())


def test_the_history_of_a_failing_run_is_kept_and_judged_again_without_engines(runs: Runs) -> None:
    out, _, report = runs["broken"]
    done = subprocess.run(
        command("torture", "--replay", str(out), "--no-again", "--json"),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["findings"] == report["findings"]


def test_a_kind_that_is_none_and_a_folder_without_a_history_are_named(tmp_path: Path) -> None:
    for options, word in ((("--kinds", "burn"), "burn"), (("--replay", str(tmp_path)), "no history")):
        done = subprocess.run(
            command("torture", *options), env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert word in done.stderr
        assert "Traceback" not in done.stderr
