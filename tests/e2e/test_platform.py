"""`springtide up` and what follows: a service of two zones, from its file to its end, with real engines and load."""

import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.e2e.commandline import Platform, free_port, processes_with, springtide

pytestmark = pytest.mark.timeout(120)

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIG = """
[[zones]]
name = "room-a"
kind = "idc"
nodes_max = 1
cores_per_node = 8

[[zones]]
name = "room-b"
kind = "idc"
nodes_max = 1
cores_per_node = 8

[fleet]
tick_ms = 200
base_replicas = 1
patience_s = 1.0
scale_in_every_s = 0.5
zone_return_s = 1.0
zone_ramp_s = 1.0
rollout_failed_max = 1
lease_s = 2.0

[[services]]
name = "web"
port = %PORT%
command = ["%PYTHON%", "{here}/web.py", "{port}"]
requests_per_s = 400
replicas_min = 2
replicas_max = 6
drain_s = 0.3
start_s = 3
stop_grace_s = 2.0
idempotent = true
drain_signal = "SIGUSR1"

[services.health]
interval_ms = 200

[services.env]
GREETING = "first"
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Platform]:
    # A socket's path is short, and the embedded PostgreSQL of root runs as another user, who has to come by.
    folder = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
    folder.chmod(0o755)
    shutil.copy(EXAMPLES / "web.py", folder)
    port = free_port()
    made = Platform(
        folder, port, CONFIG.replace("%PORT%", str(port)).replace("%PYTHON%", shutil.which("python3") or "")
    )
    try:
        yield made
        done = made.call("down")
        assert done.returncode == 0, done.stderr
        assert not made.pids()
        assert not processes_with(str(made.data))
    finally:
        end_all(made)
        shutil.rmtree(folder, ignore_errors=True)


def end_all(of: Platform) -> None:
    """Whatever a failed test left: found by its folder, which no other process knows."""
    for pid in processes_with(str(of.folder)):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def platform(running: Platform) -> Platform:
    """As the file says, whatever the test before did."""
    running.rewrite()
    status, said = running.up()
    assert status == 0, (said, log(running))
    return running


def log(of: Platform) -> str:
    path = of.data / "logs" / "platform.log"
    return path.read_text()[-4000:] if path.exists() else "there is no log"


class Load:
    """Requests through the balancer, one after the other in each thread, until it is left; failures are kept."""

    def __init__(self, of: Platform, threads: int = 2) -> None:
        self.failures: list[str] = []
        self.answers: list[str] = []
        self._platform = of
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._ends.is_set():
            try:
                self.answers.append(self._platform.get())
            except (OSError, urllib.error.URLError) as error:
                self.failures.append(repr(error))
            time.sleep(0.005)


def ready(status: dict[str, Any], zone: str = "") -> int:
    zones = status["services"]["web"]["replicas"]
    return sum(states.get("ready", 0) for name, states in zones.items() if zone in {"", name})


def wait_until(what: Any, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not come to that in time"
        time.sleep(0.1)


def test_a_service_is_up_in_both_zones_and_again_changes_nothing(platform: Platform) -> None:
    assert platform.get().startswith("first ")
    wait_until(lambda: {platform.get().split()[-1] for _ in range(20)} == set(replicas(platform)))
    before = platform.pids()
    status, said = platform.up()
    assert status == 0
    assert said["platform"] == "unchanged"
    assert [one["change"] for one in said["services"]] == ["unchanged"]
    assert platform.pids() == before
    done = platform.call("up", str(platform.config))
    assert f"http://127.0.0.1:{platform.port}" in done.stdout


def replicas(of: Platform) -> list[str]:
    return sorted(path.stem for path in of.data.glob("replicas/*/*.state"))


def test_status_tells_what_is_so(platform: Platform) -> None:
    said = platform.status()
    web = said["services"]["web"]
    assert said["loop_alive"]
    assert ready(said, "room-a") >= 1
    assert ready(said, "room-b") >= 1
    assert ready(said) == len(platform.pids()) == sum(web["placement"].values())
    assert web["bounds"] == [2, 6]
    assert web["port"] == platform.port
    assert all(web["weights"][zone] > 0 for zone in ("room-a", "room-b"))
    done = platform.call("status")
    assert done.returncode == 0
    assert "web" in done.stdout
    assert "room-a" in done.stdout


def test_scale_by_hand_and_back(platform: Platform) -> None:
    done = platform.call("scale", "web", "5", "--for", "10m", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reached"]
    assert ready(platform.status()) == len(platform.pids()) == 5
    done = platform.call("scale", "web", "--auto")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: len(platform.pids()) < 5)


def test_a_drained_zone_is_empty_while_everything_is_answered(platform: Platform) -> None:
    with Load(platform) as load:
        done = platform.call("zone", "drain", "room-b", "--wait", "--json")
        assert done.returncode == 0, done.stderr
        drained = platform.status()
        assert ready(drained, "room-b") == 0
        assert ready(drained, "room-a") >= 2
        assert '"drained"' in platform.call("zone", "list", "--json").stdout
        done = platform.call("zone", "restore", "room-b", "--wait")
        assert done.returncode == 0, done.stderr
        wait_until(lambda: ready(platform.status(), "room-b") >= 1)
    assert not load.failures
    assert load.answers


def test_a_new_revision_is_rolled_out_under_load_without_a_failure(platform: Platform) -> None:
    before = platform.pids()
    platform.rewrite('"first"', '"second"')
    with Load(platform) as load:
        status, said = platform.up()
        wait_until(lambda: load.answers[-1].startswith("second"))
    assert status == 0, said
    assert "becomes" in said["services"][0]["change"]
    assert not load.failures
    assert platform.get().startswith("second ")
    assert not before & platform.pids()


def test_a_broken_revision_is_rolled_back_and_said_to_be(platform: Platform) -> None:
    before = platform.pids()
    platform.rewrite('"{here}/web.py", "{port}"', '"-c", "raise SystemExit(7)"')
    with Load(platform) as load:
        done = platform.call("up", str(platform.config), "--wait-s", "40")
    assert done.returncode == 1, done.stdout
    assert "rolled back" in done.stdout
    assert not load.failures
    assert platform.get().startswith("first ")
    assert len(platform.pids() & before) >= 1
    again = platform.call("up", str(platform.config), "--wait-s", "40", "--json")
    assert again.returncode == 1, again.stdout
    (web,) = json.loads(again.stdout)["services"]
    assert (web["state"], "tried again" in web["change"]) == ("rolled back", True)


def test_replicas_outlive_a_killed_platform_and_are_taken_over(platform: Platform) -> None:
    before = platform.pids()
    running = json.loads((platform.data / "platform" / "running.json").read_text())
    os.kill(running["pid"], signal.SIGKILL)
    wait_until(lambda: "not running" in platform.call("status").stderr)
    assert platform.pids() == before
    status, said = platform.up()
    assert (status, said["platform"]) == (0, "was started again"), log(platform)
    assert platform.pids() == before
    assert platform.get().startswith("first ")


def test_a_zone_that_goes_from_the_file_is_emptied_first(platform: Platform) -> None:
    platform.rewrite('"room-b"', '"room-c"')
    with Load(platform) as load:
        status, said = platform.up()
    assert status == 0, (said, log(platform))
    assert said["platform"] == "was started again with a new [zones]"
    assert not load.failures
    assert {path.parent.name for path in platform.data.glob("replicas/*/*.state")} == {"room-a", "room-c"}


def test_a_port_that_somebody_has_is_refused_and_nothing_changes(platform: Platform) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        platform.rewrite(f"port = {platform.port}", f"port = {taken}")
        done = platform.call("up", str(platform.config))
    assert done.returncode == 2, done.stdout
    assert f"web: port {taken} is in use" in done.stderr
    assert platform.status()["services"]["web"]["port"] == platform.port


def test_logs_are_those_of_the_replicas(platform: Platform) -> None:
    done = platform.call("logs", "web", "--json")
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)) == replicas(platform)
    assert platform.call("logs", "--platform").returncode == 0


def test_a_mistake_is_said_with_its_remedy(platform: Platform) -> None:
    mistakes = {
        ("scale", "wep", "3"): "there is no service 'wep' here; there are: web",
        ("scale", "web"): "--auto",
        ("scale", "web", "3", "--for", "soon"): "30m",
        ("zone", "drain", "room-c"): "room-a, room-b",
        ("logs", "web", "--replica", "none"): "has no replica 'none'",
        ("logs",): "--platform",
    }
    for arguments, named in mistakes.items():
        done = platform.call(*arguments)
        assert done.returncode in {1, 2}
        assert named in done.stderr
        assert "Traceback" not in done.stderr


def test_a_secret_is_in_the_replica_and_nowhere_else(platform: Platform) -> None:
    secret = "hunter2-" + os.urandom(12).hex()
    (platform.folder / "key.txt").write_text(f"{secret}\n")
    platform.rewrite('GREETING = "first"', 'GREETING = "third"\n\n[services.secrets]\nAPI_KEY = "key.txt"')
    status, said = platform.up()
    assert status == 0, said
    assert all(f"API_KEY={secret}".encode() in Path(f"/proc/{pid}/environ").read_bytes() for pid in platform.pids())
    kept = [path for path in platform.data.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert not kept
    shown = platform.call("status", "--json").stdout + platform.call("logs", "--platform").stdout
    assert secret not in shown + json.dumps(said)


def test_without_a_platform_every_command_says_how_to_start_one(short_dir: Path) -> None:
    for words in (("status",), ("scale", "web", "2"), ("zone", "list"), ("logs", "web"), ("down",)):
        done = springtide(*words, "--data", str(short_dir / "none"))
        assert done.returncode == 1
        assert "platform" in done.stderr
        assert "Traceback" not in done.stderr
    done = springtide("up", str(short_dir / "springtide.toml"), "--data", str(short_dir / "none"))
    assert done.returncode == 2
    assert "no such file" in done.stderr
    assert not (short_dir / "none").exists()
