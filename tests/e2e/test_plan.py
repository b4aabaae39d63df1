"""`springtide plan`: the example as it comes, refusals, and a plan in the hands of a platform that runs."""

import asyncio
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from springtide.cli.platform_folder import PlatformFolder
from springtide.drivers.postgres_fleet import PostgresFleetState
from springtide.drivers.system import SystemClock
from springtide.model import Market, Wishes
from tests.e2e.commandline import Platform, free_port, processes_with, springtide

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = EXAMPLES / "kuaishou-event.toml"
AT = (datetime.now().astimezone() + timedelta(hours=2)).replace(microsecond=0)
EARLY = "2027-11-11T18:00:00+08:00"

CONFIG = """
[[zones]]
name = "room"
kind = "idc"
nodes_max = 1
cores_per_node = 8

[[zones]]
name = "cloud-a"
kind = "cloud"
nodes_max = 4
cores_per_node = 8
boot_s = 1.0
price_cny_per_node_h = 1.6

[fleet]
tick_ms = 200
base_replicas = 1
lease_s = 2.0

[[services]]
name = "web"
port = %PORT%
command = ["%PYTHON%", "{here}/web.py", "{port}"]
requests_per_s = 400
replicas_min = 1
replicas_max = 20
start_s = 3

[[calendar]]
service = "web"
at = %AT%
peak_requests_per_s = 6000
lasts_s = 300
"""
EVENT = """
offers = "cloud"

[event]
name = "evening"
calendar = "web"
at = %AT%
lasts_min = 5
probability = 0.95               # there is one offer, and it may be out of stock

[service]
cores = 20
cores_per_replica = 1
"""


ZONE_ELSEWHERE = """
[[zones]]
name = "cn-x"

[event]
"""


def plan(*arguments: str) -> tuple[int, dict[str, Any], str]:
    done = springtide("plan", *arguments, "--json")
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def changed(folder: Path, *changes: tuple[str, str]) -> str:
    text = EXAMPLE.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "event.toml").write_text(text)
    return str(folder / "event.toml")


def test_the_example_is_planned_in_time_and_within_its_limits() -> None:
    status, said, error = plan(str(EXAMPLE), "--now", EARLY)
    assert (status, error) == (0, "")
    assert said["cores"] == 100_000
    assert sum(one["cores"] for one in said["purchases"]) == said["cores"] + said["spare_cores"]
    assert said["probability"] >= said["probability_asked"] == 0.99
    assert datetime.fromisoformat(said["ready_at"]) <= datetime.fromisoformat(said["wanted_at"])
    assert said["ready_at"].endswith("+08:00")
    assert said["lower_bound_cny"] <= said["cost_cny"] <= said["greedy_cost_cny"]
    assert said["gap"] <= 0.005
    assert said["gap"] == pytest.approx(1 - said["lower_bound_cny"] / said["cost_cny"], abs=1e-5)
    assert 0 < said["solve_ms"] <= said["plan_ms"]
    per_h = sum(one["count"] * one["price_cny_per_h"] for one in said["purchases"])
    assert said["cost_cny_per_h"] == pytest.approx(per_h, abs=0.01)
    assert said["cost_cny"] == pytest.approx(per_h * said["hours"], rel=1e-6)
    by_zone = {zone: sum(one["cores"] for one in said["purchases"] if one["zone"] == zone) for zone in "fghijk"}
    assert max(by_zone.values()) <= 0.25 * (said["cores"] + said["spare_cores"])
    spot = sum(one["cores"] for one in said["purchases"] if one["market"] == "spot")
    assert spot <= 0.2 * (said["cores"] + said["spare_cores"])
    assert {one["kind"] for one in said["breaks"]} == {"zone", "type", "line"}
    assert [one["name"] for one in said["milestones"]][:3] == ["warm caches", "rent", "boot"]


def test_people_get_tables() -> None:
    done = springtide("plan", str(EXAMPLE), "--now", EARLY)
    assert done.returncode == 0, done.stderr
    for said in ("100,000 to rent", "The way to it", "What is rented", "What would break it", "zone room-a lost"):
        assert said in done.stdout
    assert "HiGHS" not in done.stdout


def test_100_000_cores_stand_within_30_minutes() -> None:
    status, said, error = plan(str(EXAMPLE), "--now", "2027-11-11T19:30:00+08:00")
    assert (status, said["refused"], error) == (0, [], "")


def test_too_late_is_refused_and_the_plan_is_shown_all_the_same() -> None:
    status, said, error = plan(str(EXAMPLE), "--now", "2027-11-11T19:58:00+08:00")
    assert status == 1
    assert said["purchases"]
    assert said["probability"] < 0.99
    assert f"starting now, it is ready at {said['ready_at']}" in error
    assert datetime.fromisoformat(said["ready_at"]) > datetime.fromisoformat(said["wanted_at"])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("spend_cny = 100_000", "spend_cny = 30_000", "30,000.00 may be spent: raise limits.spend_cny"),
        ("on_demand = 120_000", "on_demand = 50_000", "50,000 are left of 50,000"),
        ("bandwidth_gbit = 10", "bandwidth_gbit = 3", "the line would be used to 92%, 80% may be"),
        ("probability = 0.99 ", "probability = 0.9999999 ", "at best it is ready in time with probability 0."),
        ("cores_per_replica = 4", "cores_per_replica = 256", "120,064 of 120,064 cores cannot be had"),
    ],
)
def test_limits_refuse_with_the_reason(tmp_path: Path, old: str, new: str, said: str) -> None:
    status, shown, error = plan(changed(tmp_path, (old, new)), "--now", EARLY)
    assert status == 1
    assert said in error
    assert any(said in reason for reason in shown["refused"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.toml"], "none.toml: there is no such file; give the path of an event's file"),
        ([str(EXAMPLE), "--now", "20:00"], "--now 20:00: give a moment with its offset"),
        ([str(EXAMPLE), "--apply", "--now", EARLY], "leave --now out"),
        ([str(EXAMPLE), "--apply", "--withdraw"], "--withdraw goes with neither --apply nor --now"),
        ([str(EXAMPLES / "shop.toml")], "shop.toml: event: missing; an event needs [event]"),
    ],
)
def test_bad_input_is_named(arguments: list[str], said: str) -> None:
    done = springtide("plan", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_without_a_platform_nothing_can_be_handed_over(tmp_path: Path) -> None:
    status, said, error = plan(str(EXAMPLE), "--apply", "--data", str(tmp_path / "none"))
    assert (status, said["applied"]) == (1, False)
    assert "no platform runs from" in error
    done = springtide("plan", str(EXAMPLE), "--withdraw", "--data", str(tmp_path / "none"))
    assert done.returncode == 1


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    # A socket's path is short, and the embedded PostgreSQL of root runs as another user, who has to come by.
    folder = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
    folder.chmod(0o755)
    shutil.copy(EXAMPLES / "web.py", folder)
    port = free_port()
    text = (
        CONFIG.replace("%AT%", AT.isoformat())
        .replace("%PORT%", str(port))
        .replace("%PYTHON%", shutil.which("python3") or "")
    )
    made = Platform(folder, port, text)
    try:
        status, said = made.up()
        assert status == 0, said
        yield made
        assert made.call("down").returncode == 0
    finally:
        for pid in processes_with(str(folder)):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def wishes(of: Platform) -> Wishes:
    running = PlatformFolder(of.data).running()
    assert running is not None

    async def read() -> Wishes:
        state = await PostgresFleetState.connect(running.dsn, SystemClock())
        try:
            return await state.wishes()
        finally:
            await state.close()

    return asyncio.run(read())


def test_a_plan_of_the_clouds_offers_is_handed_over_and_withdrawn(platform: Platform) -> None:
    file = platform.folder / "event.toml"
    file.write_text(EVENT.replace("%AT%", AT.isoformat()))
    done = platform.call("plan", str(file), "--apply", "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["applied"], said["cores"]) == (0, True, 20), done.stderr
    (wished,) = wishes(platform).purchases["web"]
    (shown,) = said["purchases"]
    assert (wished.zone, wished.market, wished.count) == ("cloud-a", Market.ON_DEMAND, shown["count"])
    assert wished.order_ms < wished.ready_ms <= wished.needed_ms < wished.needed_until_ms
    assert wished.needed_until_ms - wished.needed_ms == 6 * 60_000
    again = platform.call("plan", str(file), "--apply")
    assert again.returncode == 0
    assert "handed to the platform" in again.stdout
    assert len(wishes(platform).purchases["web"]) == 1
    assert platform.call("plan", str(file), "--withdraw").returncode == 0
    assert wishes(platform).purchases == {}
    gone = platform.call("plan", str(file), "--withdraw")
    assert (gone.returncode, "no plan of web was handed over here" in gone.stderr) == (1, True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([("web", "shop")], "the platform's calendar has no shop (it has: web) and would order nothing"),
        ([("%AT%", (AT + timedelta(hours=1)).isoformat())], "the platform's calendar has web at "),
        (
            [("[event]", ZONE_ELSEWHERE), ("cloud", "offers.csv")],
            "the platform has no cloud zone cn-x; it has: cloud-a",
        ),
    ],
)
def test_a_plan_that_the_platform_could_not_follow_is_refused(
    platform: Platform, changes: list[tuple[str, str]], said: str
) -> None:
    text = EVENT
    for old, new in changes:
        text = text.replace(old, new)
    file = platform.folder / "other.toml"
    file.write_text(text.replace("%AT%", AT.isoformat()))
    (platform.folder / "offers.csv").write_text(
        "instance_type,arch,vcpu,memory_gib,cny_per_hour,zones\necs.c7.xlarge,amd64,4,8,0.8,cn-x\n"
    )
    done = platform.call("plan", str(file), "--apply", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["applied"] is False
    assert said in done.stderr
    assert wishes(platform).purchases == {}
