"""A run of the demo, watched from outside while it lasts: its processes, its private files and what they hold."""

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

from tests.e2e.commandline import SMALL, command, environment

RUN_S_MAX = 110.0
POLL_S = 0.25
SECRET_NAME = re.compile(r"key|secret|master|token|password")
NO_SECRETS = {"client_token"}
"""What makes a request to a cloud idempotent is named like one (RunInstances: ClientToken)."""

SECRET_LETTERS_MIN = 16
PASSWORD = re.compile(r"password=([^\s&]+)|://[^/:@]*:([^@/]+)@")
TOKEN = re.compile(rb"v1\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.\d{10}\.[A-Za-z0-9_-]{43}")
"""A buyer token, with which anybody could buy in the buyer's name."""


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


def watched_run(out: Path) -> Watched:
    """Run the small sale to its end; what was seen."""
    seen = Watched(out)
    words = command("demo", str(SMALL), "--out", str(out))
    with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as demo:
        process = psutil.Process(demo.pid)
        until = time.monotonic() + RUN_S_MAX
        while demo.poll() is None and time.monotonic() < until:
            with contextlib.suppress(psutil.NoSuchProcess):
                seen.look(process)
            time.sleep(POLL_S)
        if demo.poll() is None:
            demo.terminate()
        seen.said, _ = demo.communicate(timeout=30)
    seen.returncode = demo.returncode
    return seen


def assert_nothing_lost(report: dict[str, Any]) -> None:
    assert report["acknowledged"] > 0
    assert (report["oversold"], report["lost"], report["duplicates"]) == (0, 0, 0)
    assert not any(report["stock_differences"].values())
    assert report["crowd"]["conflicting"] == 0
    assert report["crowd"]["unanswered"] == 0
