"""The keys of a run stay in its private files: no command line, environment, log, report or metric has them."""

import base64
import contextlib
import json
import os
import re
import stat
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.commandline import SMALL, command, environment

pytestmark = pytest.mark.timeout(150)

SALE_ENDS_S = 100.0
POLL_S = 0.25
SECRET_NAME = re.compile(r"key|secret|master|token|password")
NO_SECRETS = {"client_token"}
"""What makes a request to a cloud idempotent is named like one (RunInstances: ClientToken)."""

SECRET_LETTERS_MIN = 16
PASSWORD = re.compile(r"password=([^\s&]+)|://[^/:@]*:([^@/]+)@")
TOKEN = re.compile(rb"v1\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.\d{10}\.[A-Za-z0-9_-]{43}")
"""A buyer token, with which anybody could buy in the buyer's name."""

QUICK = {
    "opens_after_s = 8.0": "opens_after_s = 1.0",
    "closes_after_s = 16.0": "closes_after_s = 5.0",
    "hold_s = 3.0": "hold_s = 1.0",
    "lasts_s = 4.0": "lasts_s = 3.0",
    "ready_s = 2.0": "ready_s = 0.5",
    "pay_after_s = 1.0": "pay_after_s = 0.3",
}
DEMAND = "second,requests_per_second\n0,5\n1,40\n2,30\n3,30\n4,20\n5,5\n"


@dataclass
class Watched:
    """What was seen of a run from outside, while it lasted and afterwards; secrets by their names in the files."""

    out: Path
    returncode: int = -1
    said: bytes = b""
    secrets: dict[str, str] = field(default_factory=dict)
    processes: set[bytes] = field(default_factory=set)
    metrics: list[bytes] = field(default_factory=list)
    run_folders: set[Path] = field(default_factory=set)
    files: dict[Path, os.stat_result] = field(default_factory=dict)
    contents: dict[Path, bytes] = field(default_factory=dict)

    def look(self, demo: psutil.Process) -> None:
        """Note what can be seen now."""
        for process in [demo, *demo.children(recursive=True)]:
            # One that ends meanwhile has no more to show.
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{process.pid}/cmdline").read_bytes()
                self.processes |= {words, Path(f"/proc/{process.pid}/environ").read_bytes()}
                named = words.split(b"\0")
                for option in (b"--settings", b"--spec"):
                    if option in named:
                        self.run_folders.add(Path(named[named.index(option) + 1].decode()).parent)
        for folder in self.run_folders:
            self._look_into(folder)

    def _look_into(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):
                if stat.S_ISREG(path.lstat().st_mode):
                    self.contents[path] = path.read_bytes()
                    self.files[path] = path.lstat()
                    self._read(path)

    def _read(self, path: Path) -> None:
        if path.suffix != ".json":
            return
        with contextlib.suppress(ValueError):
            read = json.loads(self.contents[path])
            self.secrets |= secrets_in(read, path.stem)
            if isinstance(read, dict) and isinstance(read.get("port"), int):
                with (
                    contextlib.suppress(OSError),
                    urllib.request.urlopen(f"http://127.0.0.1:{read['port']}/metrics", timeout=2) as answer,
                ):
                    self.metrics.append(answer.read())


def secrets_in(value: Any, name: str) -> dict[str, str]:
    """All texts in it that are named like a secret, and passwords in addresses."""
    if isinstance(value, dict):
        return {k: text for key, one in value.items() for k, text in secrets_in(one, f"{name}.{key}").items()}
    if isinstance(value, list):
        return {k: text for at, one in enumerate(value) for k, text in secrets_in(one, f"{name}.{at}").items()}
    if not isinstance(value, str):
        return {}
    own = name.rpartition(".")[2]
    if SECRET_NAME.search(own) and own not in NO_SECRETS and len(value) >= SECRET_LETTERS_MIN:
        return {name: value}
    return {f"{name} password": first or second for first, second in PASSWORD.findall(value)}


def spellings(secret: str) -> set[bytes]:
    """The secret as text, as the bytes of which it is the hexadecimal text, and in base64 without padding."""
    forms = {secret.encode(), secret.upper().encode()}
    raws = {secret.encode()}
    with contextlib.suppress(ValueError):
        raws.add(bytes.fromhex(secret))
    for raw in raws:
        forms |= {raw, base64.b64encode(raw).rstrip(b"="), base64.urlsafe_b64encode(raw).rstrip(b"=")}
    return forms


def leaks(text: bytes, secrets: dict[str, str]) -> list[str]:
    """The names of the secrets that stand in the text, in any spelling; and whether a buyer token does."""
    found = [name for name, secret in secrets.items() if any(form in text for form in spellings(secret))]
    return found + ["a buyer token"] * bool(TOKEN.search(text))


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder = tmp_path_factory.mktemp("secrets")
    text = SMALL.read_text()
    for old, new in QUICK.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "sale.toml").write_text(text)
    (folder / "small.csv").write_text(DEMAND)
    seen = Watched(folder / "out")
    words = command("demo", str(folder / "sale.toml"), "--out", str(seen.out))
    with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as demo:
        process = psutil.Process(demo.pid)
        until = time.monotonic() + SALE_ENDS_S
        while demo.poll() is None and time.monotonic() < until:
            with contextlib.suppress(psutil.NoSuchProcess):
                seen.look(process)
            time.sleep(POLL_S)
        if demo.poll() is None:
            demo.terminate()
        seen.said, _ = demo.communicate(timeout=30)
    seen.returncode = demo.returncode
    return seen


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
