"""The command line as a user runs it, in a process of its own."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SMALL = HERE / "small.toml"


def springtide(*arguments: str, timeout_s: float = 110.0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=timeout_s, check=False, env=environment()
    )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "springtide.cli", *arguments]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "NO_COLOR": "1", "COLUMNS": "160", **extra}


def processes_with(text: str) -> list[int]:
    """Pids of processes whose command line contains `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


class Platform:
    """A platform of its own in a folder: a service of two zones, in processes of this machine."""

    def __init__(self, folder: Path, port: int, config: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.config = folder / "springtide.toml"
        self.port = port
        self.text = config
        self.config.write_text(config)

    def call(self, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A command about this platform."""
        return springtide(*arguments, "--data", str(self.data), timeout_s=timeout_s)

    def up(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """`up` with the file as it is: the status and what it said."""
        done = self.call("up", str(self.config), "--json", "--wait-s", "40", *arguments)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def rewrite(self, old: str = "", new: str = "") -> None:
        """The file as it was at first, with something else in it."""
        assert old in self.text
        self.config.write_text(self.text.replace(old, new))

    def status(self) -> dict[str, Any]:
        """What `status --json` says."""
        done = self.call("status", "--json")
        assert done.stdout, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    def pids(self) -> set[int]:
        """The replicas' processes."""
        return set(processes_with(str(self.folder / "web.py")))

    def get(self, path: str = "/") -> str:
        """A request through the balancer."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return str(answer.read().decode())


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
