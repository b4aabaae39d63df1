"""One whole run, watched: it keeps every promise, and its keys stay in its private files.

No command line, environment, log, report or metric has them.
"""

import base64
import json
import os
import re
import stat
from typing import Any

import pytest

from tests.e2e.commandline import processes_with
from tests.e2e.watched import Watched, assert_nothing_lost, leaks, watched_run

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    return watched_run(tmp_path_factory.mktemp("watched") / "out")


def test_a_sale_keeps_every_promise_and_gives_the_cloud_back(watched: Watched) -> None:
    out = watched.out
    assert (out / "report.json").exists(), watched.said.decode()
    assert not processes_with(str(out))
    report = json.loads((out / "report.json").read_text())
    assert_nothing_lost(report)
    assert report["acknowledged"] <= report["recorded"]
    assert report["nodes_rented"] > 0
    assert report["nodes_left"] == 0
    assert watched.returncode in {0, 1, 3}
    page = (out / "report.html").read_text()
    assert "A small sale" in page
    assert 'src="http' not in page


def test_the_run_had_secrets_and_all_of_it_was_seen(watched: Watched) -> None:
    assert watched.returncode in {0, 1, 3}, watched.said.decode()
    names = " ".join(watched.secrets)
    assert "token" in names
    assert "webhook" in names
    assert any(b"run\0counter" in words for words in watched.processes)
    assert any(b"springtide_counter_requests" in page for page in watched.metrics)


def test_the_files_that_hold_secrets_are_ours_alone(watched: Watched) -> None:
    holding = [path for path, content in watched.contents.items() if leaks(content, watched.secrets)]
    assert holding
    for path in holding:
        assert stat.S_IMODE(watched.files[path].st_mode) == 0o600, path
        assert watched.files[path].st_uid == os.geteuid(), path


def test_no_secret_stands_on_a_command_line_or_in_an_environment(watched: Watched) -> None:
    assert not [(leaks(one, watched.secrets), one[:200]) for one in watched.processes if leaks(one, watched.secrets)]


def test_no_secret_stands_in_logs_journal_report_or_on_the_terminal(watched: Watched) -> None:
    written = [path for path in watched.out.rglob("*") if path.is_file()]
    assert {"report.json", "report.html", "journal.jsonl"} <= {path.name for path in written}
    assert any(path.parent.name == "logs" for path in written)
    found = {path: leaks(path.read_bytes(), watched.secrets) for path in written}
    assert not {path: names for path, names in found.items() if names}
    assert not leaks(watched.said, watched.secrets)


def test_no_secret_stands_in_metrics(watched: Watched) -> None:
    assert not [names for page in watched.metrics if (names := leaks(page, watched.secrets))]


def test_nothing_of_the_secrets_is_left_after_the_end(watched: Watched) -> None:
    assert watched.run_folders
    assert not [folder for folder in watched.run_folders if folder.exists()]


@pytest.mark.parametrize(
    "spell",
    [
        lambda text: text.encode(),
        lambda text: text.upper().encode(),
        bytes.fromhex,
        lambda text: base64.b64encode(bytes.fromhex(text)),
        lambda text: base64.urlsafe_b64encode(bytes.fromhex(text)),
        lambda text: base64.b64encode(text.encode()),
    ],
    ids=["text", "upper", "raw", "base64", "urlsafe", "base64-of-text"],
)
def test_a_secret_in_a_log_would_be_found(watched: Watched, spell: Any) -> None:
    name, secret = next((name, text) for name, text in watched.secrets.items() if re.fullmatch("[0-9a-f]{64}", text))
    assert name in leaks(b"2026-01-01 started key=" + spell(secret) + b" port=1\n", watched.secrets)
