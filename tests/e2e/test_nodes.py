"""`springtide nodes, offers, cost`: data centre and cloud as one, of a platform that runs, and of its cloud alone."""

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.commandline import Platform, free_port, processes_with, springtide

pytestmark = pytest.mark.timeout(120)

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIG = """
[[zones]]
name = "room-a"
kind = "idc"
nodes_max = 2
cores_per_node = 1

[[zones]]
name = "cloud-h"
kind = "cloud"
nodes_max = 3
cores_per_node = 2
boot_s = 0.2
price_cny_per_node_h = 0.82

[cloud]
spend_max_cny_per_h = 5.0
release_after_h = 6.0

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
replicas_min = 4
replicas_max = 6
drain_s = 0.3
start_s = 3
stop_grace_s = 2.0

[services.health]
interval_ms = 200
"""


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    folder = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
    folder.chmod(0o755)
    shutil.copy(EXAMPLES / "web.py", folder)
    port = free_port()
    text = CONFIG.replace("%PORT%", str(port)).replace("%PYTHON%", shutil.which("python3") or "")
    made = Platform(folder, port, text)
    try:
        status, said = made.up()
        assert status == 0, said
        yield made
        done = made.call("down")
        assert done.returncode == 0, done.stderr
    finally:
        for pid in processes_with(str(folder)):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def ask(platform: Platform, *words: str) -> dict[str, Any]:
    done = platform.call(*words, "--json")
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def nodes(platform: Platform) -> dict[str, dict[str, Any]]:
    return {one["node"]: one for one in ask(platform, "nodes")["nodes"]}


def wait_for(what: Callable[[], Any], seconds: float = 30.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "it did not come to that in time"
        time.sleep(0.2)
    return found


def rented_ready(platform: Platform) -> dict[str, dict[str, Any]]:
    found = nodes(platform)
    rented = {name: one for name, one in found.items() if one["client_token"]}
    served = sum(sum(one["replicas"].values()) for one in found.values())
    return found if rented and served >= 4 else {}


def test_both_sides_are_one_list_with_what_runs_where_and_what_it_costs(platform: Platform) -> None:
    found = wait_for(lambda: rented_ready(platform))
    owned = [one for one in found.values() if one["market"] == "idc"]
    rented = [one for one in found.values() if one["client_token"]]
    assert sorted(one["node"] for one in owned) == ["room-a-0", "room-a-1"]
    assert all(one["price_cny_per_h"] == 0 for one in owned)
    assert all(one["zone"] == "cloud-h" and one["market"] == "on_demand" for one in rented)
    assert all(one["price_cny_per_h"] == pytest.approx(0.82) for one in rented)
    assert {one["service"] for one in rented} == {"web"}
    # Released by itself, well after, if nobody is there to do it.
    assert all(one["release_at_ms"] > one["rented_ms"] + 5 * 3_600_000 for one in rented)
    shown = platform.call("nodes").stdout
    assert "room-a-1" in shown
    assert f"{len(rented)} of them rented" in shown


def test_offers_of_both_sides_the_owned_first(platform: Platform) -> None:
    said = ask(platform, "offers")["offers"]
    assert [(one["zone"], one["market"]) for one in said] == [("room-a", "idc"), ("cloud-h", "on_demand")]
    assert said[1]["price_cny_per_core_h"] == pytest.approx(0.41)
    assert [one["zone"] for one in ask(platform, "offers", "--market", "idc")["offers"]] == ["room-a"]
    done = platform.call("offers", "--market", "sport")
    assert (done.returncode, "on_demand" in done.stderr) == (2, True)
    assert "room-a" in platform.call("offers").stdout


def test_cost_is_by_hour_and_so_far_beside_its_limit(platform: Platform) -> None:
    wait_for(lambda: rented_ready(platform))

    def spending() -> dict[str, Any]:
        said = ask(platform, "cost")
        return said if said["so_far"] > 0 else {}

    said = wait_for(spending)
    rented = sum(one["nodes"] for one in said["groups"])
    assert said["per_h"] == pytest.approx(0.82 * rented)
    assert said["per_h_max"] == 5.0
    assert said["groups"][0]["zone"] == "cloud-h"
    assert said["zones"] == [{"zone": "cloud-h", "nodes": rented, "nodes_max": 3}]
    assert said["forecast"] is None  # nothing is announced
    wait_for(lambda: ask(platform, "cost")["so_far"] > said["so_far"])
    assert "CNY/h of at most 5.00" in platform.call("cost").stdout


def test_a_node_is_cordoned_and_restored_and_a_wrong_name_is_refused(platform: Platform) -> None:
    wait_for(lambda: rented_ready(platform))
    assert ask(platform, "nodes", "cordon", "room-a-1")["cordoned"] == ["room-a-1"]
    assert nodes(platform)["room-a-1"]["cordoned"]
    assert "cordoned" in platform.call("nodes", "--zone", "room-a").stdout
    assert ask(platform, "nodes", "restore", "room-a-1")["cordoned"] == []
    done = platform.call("nodes", "cordon", "room-z-1")
    assert (done.returncode, "no node 'room-z-1'" in done.stderr) == (2, True)
    assert platform.call("nodes", "cordon").returncode == 2
    assert platform.call("nodes", "--zone", "room-z").returncode == 2


def test_the_cloud_is_asked_itself_when_no_platform_runs(platform: Platform, tmp_path: Path) -> None:
    done = springtide("nodes", "--config", str(platform.config), "--data", str(tmp_path / "none"), "--json")
    said = json.loads(done.stdout)
    assert {one["market"] for one in said["nodes"]} == {"idc"}
    done = springtide("cost", "--config", str(platform.config), "--data", str(tmp_path / "none"), "--json")
    assert json.loads(done.stdout)["so_far"] == 0
    done = springtide("nodes", "--data", str(tmp_path / "none"))
    assert (done.returncode, "--config" in done.stderr) == (1, True)
