"""The same commands on containers: an image built here, two zones of a Docker Engine, and nothing left at the end."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from springtide.drivers.embedded_registry import missing as no_registry
from springtide.drivers.netns import PrivateNetwork
from tests.dockers import OwnEngine, own_engines
from tests.e2e.commandline import Platform, command, environment, free_port, processes_with, springtide

pytestmark = pytest.mark.timeout(240)

EXAMPLES = Path(__file__).parents[2] / "examples"
IMAGE = "e2e/web:1"
CONFIG = """
[[zones]]
name = "room-a"
kind = "idc"
nodes_max = 1
cores_per_node = 8
engine = "%URL%"
address = "%ADDRESS%"

[[zones]]
name = "room-b"
kind = "idc"
nodes_max = 1
cores_per_node = 8
engine = "%URL%"
address = "%ADDRESS%"

[fleet]
runtime = "docker"
tick_ms = 250
base_replicas = 1
failure_budget = 0
lease_s = 2.0

[[services]]
name = "web"
port = %PORT%
image = "e2e/web:1"
container_port = 8080
requests_per_s = 400
memory_mb = 128
replicas_min = 2
replicas_max = 4
drain_s = 0.3
stop_grace_s = 2.0
idempotent = true
drain_signal = "SIGUSR1"

[services.env]
HOST = "0.0.0.0"
GREETING = "first"
"""


@pytest.fixture(scope="module")
def engines() -> Iterator[list[OwnEngine]]:
    with own_engines(2, "--insecure-registry", f"{PrivateNetwork.host}/24") as engines:
        yield engines


@pytest.fixture
def engine(engines: list[OwnEngine]) -> OwnEngine:
    return engines[0]


@pytest.fixture
def builder(engines: list[OwnEngine]) -> OwnEngine:
    """Another engine, so that what is built is not where it is to run."""
    return engines[1]


@pytest.fixture
def platform(engine: OwnEngine) -> Iterator[Platform]:
    folder = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "image").mkdir()
    shutil.copy(EXAMPLES / "web.py", folder / "image")
    port = free_port()
    text = CONFIG.replace("%PORT%", str(port)).replace("%URL%", engine.url).replace("%ADDRESS%", engine.address or "")
    try:
        yield Platform(folder, port, text)
    finally:
        for pid in processes_with(str(folder)):
            os.kill(pid, signal.SIGKILL)
        if left := containers(engine):
            engine.docker("rm", "--force", *left)
        shutil.rmtree(folder, ignore_errors=True)


def containers(engine: OwnEngine) -> set[str]:
    return set(engine.docker("ps", "--all", "--quiet").split())


def logged(platform: Platform, count: int) -> dict[str, list[str]]:
    """The logs by replica, as soon as there are so many; at the latest after 20 s."""
    until = time.monotonic() + 20
    while True:
        done = platform.call("logs", "web", "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, list[str]] = json.loads(done.stdout)
        if len(found) == count or time.monotonic() > until:
            return found


def test_an_image_is_built_and_runs_in_two_zones_through_updates_and_a_kill(
    platform: Platform, engine: OwnEngine
) -> None:
    build(platform, engine, IMAGE)
    status, said = platform.up()
    assert status == 0, (said, (platform.data / "logs" / "platform.log").read_text())
    assert platform.get().startswith("first ")
    first = containers(engine)
    zones = platform.status()["services"]["web"]["replicas"]
    assert {name: states.get("ready") for name, states in zones.items()} == {"room-a": 1, "room-b": 1}

    running = json.loads((platform.data / "platform" / "running.json").read_text())
    os.kill(running["pid"], signal.SIGKILL)
    until = time.monotonic() + 20
    while "not running" not in platform.call("status").stderr:
        assert time.monotonic() < until
    assert platform.get().startswith("first ")
    status, said = platform.up()
    assert status == 0, said
    assert containers(engine) == first

    platform.rewrite('"first"', '"second"')
    status, said = platform.up()
    assert status == 0, said
    assert platform.get().startswith("second ")
    assert len(logged(platform, 2)) == 2, "a replica that the update had too many goes a moment later"
    assert not containers(engine) & first

    done = platform.call("down")
    assert done.returncode == 0, done.stderr
    assert not containers(engine)
    assert not processes_with(str(platform.data))


def build(platform: Platform, engine: OwnEngine, reference: str) -> None:
    words = ("--folder", str(platform.folder / "image"), "--command", "python3 web.py 8080", "--engine", engine.url)
    built = springtide("image", "build", reference, *words, "--json", timeout_s=120)
    assert built.returncode == 0, built.stderr
    assert json.loads(built.stdout)["reference"] == reference


@pytest.fixture
def cache(platform: Platform) -> Iterator[str]:
    """A registry that the engine reaches, as a zone would have one."""
    if reason := no_registry():
        pytest.skip(reason)
    port = free_port()
    words = ("image", "serve", "--folder", str(platform.folder / "cache"), "--host", PrivateNetwork.host)
    ours = [*command(*words), "--port", str(port)]
    with subprocess.Popen(ours, stdout=subprocess.PIPE, env=environment(), text=True) as serving:
        try:
            assert serving.stdout
            assert str(port) in serving.stdout.readline()
            yield f"{PrivateNetwork.host}:{port}"
        finally:
            serving.send_signal(signal.SIGINT)
            assert serving.wait(20) == 130


def test_an_image_goes_from_here_over_the_origin_and_a_cache_to_the_engine(
    platform: Platform, engine: OwnEngine, builder: OwnEngine, cache: str
) -> None:
    reference = "e2e/cached:1"
    build(platform, builder, reference)
    platform.text = platform.text.replace(IMAGE, reference).replace("engine =", f'cache = "{cache}"\nengine =')
    platform.text += f"\n[images]\nport = {free_port()}\n"
    platform.rewrite()
    assert "cached" not in engine.docker("image", "ls")
    done = platform.call("up", str(platform.config), "--no-wait", "--json")
    assert done.returncode == 0, done.stderr

    done = platform.call("image", "push", reference, "--engine", builder.url, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["copied_bytes"] > 0
    status, said = platform.up()
    assert status == 0, (said, (platform.data / "logs" / "platform.log").read_text())
    done = platform.call("image", "warm", reference, "--zone", "room-a", "--json")
    assert done.returncode == 0, done.stderr
    assert [zone["zone"] for zone in json.loads(done.stdout)["zones"]] == ["room-a"]
    done = platform.call("image", "list", "--json")
    assert done.returncode == 0, done.stderr
    assert reference in {one["reference"] for one in json.loads(done.stdout)["images"]}

    done = platform.call("image", "gc", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kept"] == [reference]
    assert reference in platform.call("image", "list").stdout
    assert platform.call("down").returncode == 0
    assert not containers(engine)
