"""What the platform's commands say and accept, without a platform."""

import io
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from springtide.cli.fleet_logs import after
from springtide.cli.fleet_scale import bounds_of, parse_duration_ms
from springtide.cli.fleet_show import duration, fleet, zone_state
from springtide.cli.fleet_status import as_json
from springtide.cli.fleet_up import difference, settled, state_of
from springtide.cli.platform_change import differences, leaving_zones
from springtide.cli.platform_folder import PlatformFolder, PlatformSettings, Running
from springtide.config import parse
from springtide.drivers.pids import started_ticks
from springtide.errors import ConfigError, Refused, UserError
from springtide.fleet.status import FleetStatus, ServiceStatus
from springtide.model import (
    CapacityEstimate,
    Rollout,
    RolloutState,
    ScaleOverride,
    ServiceSpec,
    ServiceWish,
    Wishes,
    ZoneHealth,
    ZoneMode,
    ZoneState,
)

NOW_MS = 1_800_000_000_000
WISH = ServiceWish(ServiceSpec("web", "r2", command=("web",)), requests_per_s=50.0, replicas_min=2, port=8080)
SERVING = ServiceStatus(
    "web",
    revision="r2",
    replicas={"a": {"ready": 1}, "b": {"ready": 2, "failed": 1}},
    wanted=3,
    placement={"a": 1, "b": 2},
    weights={"a": 33, "b": 67},
)


def status(**changes: object) -> FleetStatus:
    service = msgspec.structs.replace(SERVING, **changes)
    return FleetStatus(NOW_MS - 800, 7, "loop-1", 3, wishes=4, services={"web": service})


def printed(of: FleetStatus, wishes: Wishes) -> str:
    page = io.StringIO()
    Console(width=200, markup=False, highlight=False, file=page).print(fleet(of, wishes, NOW_MS))
    return page.getvalue()


def test_a_status_says_what_runs_where_and_who_leads() -> None:
    text = printed(status(), Wishes(services={"web": WISH}, modes={"a": ZoneMode.DRAINED}))
    assert "led by loop-1, term 3" in text
    assert "3 ready, 1 failed" in text
    assert "drained" in text
    assert "web: 2 ready, 1 failed (67)" in text


def test_a_dead_loop_is_said_first_and_in_json() -> None:
    old = msgspec.structs.replace(status(), at_ms=NOW_MS - 60_000)
    assert printed(old, Wishes()).startswith("The control loop has said nothing for 60 s")
    assert as_json(old, Wishes(), NOW_MS)["loop_alive"] is False
    assert as_json(status(), Wishes(), NOW_MS)["loop_alive"] is True


def test_alerts_ages_and_a_limit_are_told() -> None:
    capacity = CapacityEstimate(80.0, limit="valkey")
    text = printed(status(alerts=("zone b is down",), ages_ms={"health": 9000}, capacity=capacity), Wishes())
    assert "alert: web: zone b is down" in text
    assert "nothing heard of health for 9 s" in text
    assert "valkey is the limit" in text


def test_a_failure_keeps_the_lines_of_its_log() -> None:
    failure = "replica r ended by itself with status 7\nModuleNotFoundError"
    assert f"web: {failure}\n" in printed(status(failure=failure), Wishes())
    state, reason = state_of(WISH, msgspec.structs.replace(SERVING, replicas={}, failure=failure))
    assert (state, reason) == ("not ready", failure)


def test_what_others_wrote_cannot_steer_the_terminal() -> None:
    assert "\x1b]" not in printed(status(alerts=("\x1b]0;title\x07",)), Wishes())


def test_bounds_by_hand_are_shown_until_they_end() -> None:
    wishes = Wishes(services={"web": WISH}, scales={"web": ScaleOverride(4, 4, NOW_MS + 1_800_000)})
    assert "4 by hand, for 30 min" in printed(status(), wishes)
    ended = Wishes(services={"web": WISH}, scales={"web": ScaleOverride(4, 4, NOW_MS - 1)})
    assert "2 to 100" in printed(status(), ended)


def test_a_zone_is_as_ill_as_its_most_ill_service() -> None:
    well, ill = ZoneHealth(ZoneState.UP, 0), ZoneHealth(ZoneState.DOWN, 0, "no replica answers")
    services = {
        "a": ServiceStatus("a", zone_health={"z": ill}),
        "b": ServiceStatus("b", zone_health={"z": well}),
        "c": ServiceStatus("c", zone_health={"z": ZoneHealth(ZoneState.RETURNING, 0)}),
    }
    assert zone_state(FleetStatus(0, 0, "", 0, services=services), "z") == (ZoneState.DOWN, "no replica answers")


@pytest.mark.parametrize(
    ("ms", "said"), [(0, "0 s"), (90_000, "90 s"), (120_000, "2 min"), (7_200_000, "2 h"), (3 * 86_400_000, "3 d")]
)
def test_durations(ms: int, said: str) -> None:
    assert duration(ms) == said


@pytest.mark.parametrize(
    ("text", "ms"), [("", 0), ("90s", 90_000), ("30m", 1_800_000), ("1.5h", 5_400_000), ("1d", 86_400_000)]
)
def test_durations_that_are_given(text: str, ms: int) -> None:
    assert parse_duration_ms(text) == ms


@pytest.mark.parametrize("text", ["30", "m", "-5m", "0s", "5 minutes"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="30m"):
        parse_duration_ms(text)


def test_a_scale_is_a_number_or_bounds_or_the_automatic() -> None:
    assert bounds_of(3, None, None, auto=False) == (3, 3)
    assert bounds_of(None, 1, 5, auto=False) == (1, 5)
    assert bounds_of(None, None, None, auto=True) is None


@pytest.mark.parametrize(
    ("count", "least", "most", "auto"),
    [(None, None, None, False), (3, None, None, True), (3, 1, 5, False), (None, 1, None, False), (None, 5, 1, False)],
)
def test_anything_else_is_refused(count: int | None, least: int | None, most: int | None, *, auto: bool) -> None:
    with pytest.raises(UserError):
        bounds_of(count, least, most, auto=auto)


def test_a_service_serves_with_its_revision_ready_and_weighted() -> None:
    assert state_of(WISH, SERVING) == ("serving", "")
    assert state_of(WISH, None)[0] == "not ready"
    assert state_of(WISH, msgspec.structs.replace(SERVING, replicas={"a": {"ready": 1}}))[0] == "not ready"
    assert state_of(WISH, msgspec.structs.replace(SERVING, weights={"a": 0}))[0] == "not ready"
    assert state_of(WISH, msgspec.structs.replace(SERVING, revision="r1"))[0] == "not ready"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (RolloutState.ROLLING, "not ready"),
        (RolloutState.ROLLING_BACK, "not ready"),
        (RolloutState.ROLLED_BACK, "rolled back"),
        (RolloutState.DONE, "serving"),
    ],
)
def test_a_rollout_decides_whether_a_service_is_as_wished(state: RolloutState, said: str) -> None:
    rollout = Rollout("r2", "r1", state, NOW_MS, reason="2 replicas failed")
    assert state_of(WISH, msgspec.structs.replace(SERVING, rollout=rollout))[0] == said


def test_a_difference_names_what_changed_and_nothing_else() -> None:
    replace = msgspec.structs.replace
    assert difference(None, WISH) == "new"
    assert difference(WISH, WISH) == ""
    assert difference(replace(WISH, previous=ServiceSpec("web", "r1")), WISH) == ""
    assert difference(WISH, replace(WISH, replicas_max=9, port=1)) == "changed: replicas_max, port"
    assert difference(WISH, replace(WISH, spec=ServiceSpec("web", "r3"))) == "revision r2 becomes r3"


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        ([], ["a"], ["a"]),
        (["a", "b"], ["a", "b"], []),
        (["a", "b"], ["a", "b", "c"], ["c"]),
        (["a", "b", "c"], ["b", "c", "d", "e"], ["d", "e"]),
        (["a"], ["x", "y"], ["x", "y"]),
        (["a"], ["a", "a", "a"], ["a", "a"]),
        (["a"], [], []),
    ],
)
def test_following_a_log_shows_each_line_once(before: list[str], now: list[str], new: list[str]) -> None:
    assert list(after(before, now)) == new


def settings(*zones: str, runtime: str = "process", engine: str = "unix:///a", ledger: str = "") -> PlatformSettings:
    raw: dict[str, Any] = {
        "zones": [
            {"name": zone, "kind": "idc", "nodes_max": 1, "cores_per_node": 1, "engine": engine} for zone in zones
        ],
        "services": [{"name": "web", "port": 1, "requests_per_s": 1, "command": "web", "image": "web:1"}],
        "fleet": {"runtime": runtime},
    }
    return PlatformSettings(msgspec.structs.replace(parse(raw, "springtide.toml", {}), services=()), ledger)


def test_zones_that_go_or_move_to_another_engine_have_to_be_emptied() -> None:
    before = settings("a", "b")
    assert leaving_zones(before, settings("a", "b", "c")) == []
    assert leaving_zones(before, settings("b", "c")) == ["a"]
    moved = settings("a", "b").config.zones[0], settings("b", engine="unix:///b").config.zones[0]
    config = msgspec.structs.replace(before.config, zones=moved)
    assert leaving_zones(before, msgspec.structs.replace(before, config=config)) == ["b"]


@pytest.mark.parametrize(
    "after",
    [settings("c"), settings("a", "b", runtime="docker"), settings("a", "b", ledger="postgresql://x")],
    ids=["all zones", "runtime", "database"],
)
def test_what_would_lose_everything_is_refused(after: PlatformSettings) -> None:
    with pytest.raises(Refused, match="springtide down"):
        leaving_zones(settings("a", "b"), after)


def test_what_changed_is_named() -> None:
    assert differences(settings("a"), settings("a", "b")) == ["[zones]"]
    port = msgspec.structs.replace(settings("a"), port=1, backoffice_port=2)
    assert differences(settings("a"), port) == ["--port", "--backoffice-port"]


def test_a_service_has_settled_when_every_zone_has_its_replicas_and_traffic() -> None:
    assert settled(WISH, SERVING)
    assert not settled(WISH, msgspec.structs.replace(SERVING, placement={"a": 2, "b": 2}))
    assert not settled(WISH, msgspec.structs.replace(SERVING, weights={"a": 100, "b": 0}))
    assert settled(WISH, msgspec.structs.replace(SERVING, placement={"a": 1, "b": 2, "c": 0}))
    assert not settled(WISH, None)


def test_a_platform_is_known_by_its_process_and_not_by_its_pid_alone(tmp_path: Path) -> None:
    folder = PlatformFolder(tmp_path)
    assert folder.settings() is None
    assert folder.running() is None
    folder.prepare()
    folder.keep_settings(settings("a"))
    assert folder.settings() == settings("a")
    ours = started_ticks(os.getpid())
    folder.announce(Running(os.getpid(), ours, "postgresql://secret@x"))
    assert folder.running() is not None
    assert folder.running_file.stat().st_mode & 0o777 == 0o600
    folder.announce(Running(os.getpid(), ours - 1, ""))
    assert folder.running() is None
    folder.forget()
    assert folder.settings() is None


def test_two_platforms_cannot_have_one_folder(tmp_path: Path) -> None:
    one, other = PlatformFolder(tmp_path), PlatformFolder(tmp_path)
    with one.locked(), pytest.raises(UserError, match="another springtide"), other.locked():
        pass
    with other.locked():
        pass


def test_settings_that_cannot_be_read_are_said_with_the_remedy(tmp_path: Path) -> None:
    folder = PlatformFolder(tmp_path)
    folder.prepare()
    (tmp_path / "platform" / "settings.json").write_text("{")
    with pytest.raises(ConfigError, match="springtide up"):
        folder.settings()
