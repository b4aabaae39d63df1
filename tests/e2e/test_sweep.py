"""The sweep: strays on a cloud over HTTP are found and given back, and nothing else is, whoever has died."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from springtide.cli.cloud_keys import read_keys
from springtide.cli.clouds import open_cloud
from springtide.config import load
from springtide.drivers.system import SystemClock
from springtide.model import NodeOrder
from springtide.ports import Cloud
from tests.e2e.commandline import Platform, command, environment, free_port, processes_with, springtide

pytestmark = pytest.mark.timeout(150)

EXAMPLES = Path(__file__).parents[2] / "examples"
H = 3_600_000
MARKET = """
[[market.offers]]
zone = "cn-beijing-h"
instance_type = "ecs.c7.large"
market = "on_demand"
cores = 2
memory_mb = 4096
price_fen_per_h = 40.8
stock = 20
boot_ms = [300, 500]
"""
CONFIG = """
[[zones]]
name = "room-a"
kind = "idc"
nodes_max = 1
cores_per_node = 1

[[zones]]
name = "cloud-h"
kind = "cloud"
nodes_max = 6
cores_per_node = 2
boot_s = 0.5
cloud_zone = "cn-beijing-h"
vswitch = "vsw-cn-beijing-h"

[cloud]
driver = "alibaba"
installation = "%INSTALLATION%"
ecs_endpoint = "%ENDPOINT%"
eci_endpoint = "%ENDPOINT%"
protocol = "http"
credentials = "keys.ini"
image = "m-1"
security_group = "sg-1"
poll_s = 0.3
sweep_every_s = 1.0
sweep_grace_s = 3.0
release_after_h = 1.0

[[cloud.types]]
name = "ecs.c7.large"
cores = 2
memory_gb = 4.0
price_cny_per_h = 0.408

[fleet]
tick_ms = 200
base_replicas = 1
failure_budget = 0
patience_s = 1.0
lease_s = 2.0

[[services]]
name = "web"
port = %PORT%
command = ["%PYTHON%", "{here}/web.py", "{port}"]
requests_per_s = 400
replicas_min = 3
replicas_max = 6
drain_s = 0.3
start_s = 3
stop_grace_s = 2.0

[services.health]
interval_ms = 200
"""


class World:
    """A folder with a cloud that is served, and configurations of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = folder / "keys.ini"
        (folder / "market.toml").write_text(MARKET)
        words = ("cloud", "serve", "--config", str(folder / "market.toml"), "--keys", str(self.keys))
        self.cloud = subprocess.Popen(command(*words), env=environment(), stdout=subprocess.DEVNULL)

    def config(self, installation: str = "shop", **words: str) -> str:
        known = {"ENDPOINT": read_keys(self.keys).endpoint, "INSTALLATION": installation, "PORT": "1", **words}
        text = CONFIG.replace("%PYTHON%", shutil.which("python3") or "")
        for name, value in known.items():
            text = text.replace(f"%{name}%", value)
        return text

    def file(self, installation: str = "shop") -> Path:
        path = self.folder / f"{installation}.toml"
        path.write_text(self.config(installation))
        return path

    def driver(self, installation: str = "shop") -> Cloud:
        return open_cloud(load(self.file(installation), {}), SystemClock(), self.folder)

    async def rent(self, count: int, token: str, installation: str = "shop") -> list[str]:
        order = NodeOrder("cloud-h", count, token, "ecs.c7.large", release_at_ms=SystemClock().now_ms() + H)
        return [node.node_id for node in await self.driver(installation).rent(order)]

    async def left(self, installation: str = "shop") -> list[str]:
        """What is rented, asked anew."""
        return [node.node_id for node in await self.driver(installation).nodes()]


@pytest.fixture
def world() -> Iterator[World]:
    # A socket's path is short, and the embedded PostgreSQL of root runs as another user, who has to come by.
    folder = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
    folder.chmod(0o755)
    shutil.copy(EXAMPLES / "web.py", folder)
    made = World(folder)
    try:
        wait_for(lambda: made.keys.exists() and "endpoint" in made.keys.read_text())
        yield made
    finally:
        for pid in processes_with(str(folder)):
            os.kill(pid, signal.SIGKILL)
        made.cloud.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(what: Callable[[], Any], seconds: float = 30.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "it did not come to that in time"
        time.sleep(0.1)
    return found


def sweep(*words: str) -> tuple[int, dict[str, Any]]:
    done = springtide("sweep", *words, "--json")
    assert done.stdout, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, said


async def test_a_node_whose_time_is_not_over_is_kept_until_an_operator_says_more(world: World) -> None:
    names = await world.rent(2, "t1")
    others = await world.rent(1, "t2", "another")
    data = world.folder / "data"
    words = ("--config", str(world.file()), "--data", str(data))
    status, said = sweep(*words, "--release")
    assert (status, said["nodes"], said["strays"]) == (0, 2, [])
    time.sleep(1.0)
    data.mkdir()
    status, said = sweep(*words, "--older-than-h", "0.0001")
    assert status == 1
    assert sorted(one["node"] for one in said["strays"]) == sorted(names)
    assert sorted(await world.left()) == sorted(names)
    status, said = sweep(*words, "--older-than-h", "0.0001", "--release")
    assert (status, said["left"]) == (0, 0)
    assert await world.left() == []
    # Whatever carries another tag is another's.
    assert await world.left("another") == others
    journal = [json.loads(line) for line in (data / "sweep.jsonl").read_text().splitlines()]
    assert [one["outcome"] for one in journal] == ["left", "left", "released", "released"]
    assert {one["client_token"] for one in journal} == {"t1"}
    assert springtide("sweep", "--older-than-h", "-1").returncode == 2


async def test_beside_a_platform_it_takes_nothing_that_a_sale_may_want_and_outlives_its_death(world: World) -> None:
    port = free_port()
    platform = Platform(world.folder, port, world.config(PORT=str(port)))
    status, said = platform.up()
    assert status == 0, said
    (sweeper,) = processes_with(f"run\0sweep\0--data\0{platform.data}")
    rented = wait_for(lambda: _rented(platform))
    wanted = sorted(one["node"] for one in rented)
    assert sorted(await world.left()) == wanted

    # Seconds of sweeps, every second, with a grace of three: what the leader has stays.
    time.sleep(6)
    assert set(wanted) <= set(await world.left())
    assert not (platform.data / "sweep.jsonl").exists()

    # Killed: no loop is left, and the sale may go on. The sweep outlives it and takes nothing whose time is not over.
    os.kill(_platform_pid(platform), signal.SIGKILL)
    time.sleep(5)
    assert processes_with(f"run\0sweep\0--data\0{platform.data}") == [sweeper]
    assert set(wanted) <= set(await world.left())
    status, said = sweep("--data", str(platform.data), "--release")
    assert (status, said["leaders"], said["strays"]) == (0, "dead", [])

    # `down` starts what is missing, gives all nodes back, and ends the sweep as well.
    done = platform.call("down", timeout_s=90)
    assert done.returncode == 0, done.stderr
    assert await world.left() == []
    assert not processes_with(str(platform.data))

    # What comes after that, of an order that was under way, nobody will ever want.
    late = await world.rent(1, "late")
    words = ("--config", str(platform.config), "--data", str(platform.data), "--release")
    status, said = sweep(*words)
    assert (status, said["leaders"], said["nodes"], said["strays"]) == (0, "gone", 1, [])
    time.sleep(3.5)
    status, said = sweep(*words)
    assert (status, [one["node"] for one in said["strays"]]) == (0, late)
    assert await world.left() == []


def _rented(platform: Platform) -> list[dict[str, Any]]:
    done = platform.call("nodes", "--json")
    nodes = json.loads(done.stdout)["nodes"] if done.returncode == 0 else []
    rented = [one for one in nodes if one["client_token"]]
    return rented if rented and all(one["state"] == "ready" and one["replicas"] for one in rented) else []


def _platform_pid(platform: Platform) -> int:
    (pid,) = processes_with(f"run\0platform\0--data\0{platform.data}")
    return pid
