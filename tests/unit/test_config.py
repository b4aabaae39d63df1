"""The configuration: a good file is read whole, and every mistake is named with its key and the remedy."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from springtide import config
from springtide.errors import ConfigError
from springtide.model import SignalKind, ZoneKind

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = EXAMPLES / "live-room.toml"


def document() -> dict[str, Any]:
    return {
        "zones": [{"name": "idc-a", "kind": "idc", "nodes_max": 1, "cores_per_node": 4}],
        "sales": [
            {
                "sale": "s",
                "title": "S",
                "opens_after_s": 1.0,
                "closes_after_s": 9.0,
                "hold_s": 5.0,
                "skus": [{"sku": "a", "title": "A", "price_cny": 1.25, "stock": 10}],
            }
        ],
    }


def services(**changes: Any) -> dict[str, Any]:
    """A document with one service and no sale; None takes a key of the service away."""
    service = {"name": "web", "port": 8080, "requests_per_s": 50.0, "command": "python3 {here}/web.py", **changes}
    return {
        "zones": document()["zones"],
        "services": [{key: value for key, value in service.items() if value is not None}],
    }


def mistakes(raw: dict[str, Any], **variables: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.parse(raw, "springtide.toml", variables)
    return str(caught.value).splitlines()


def test_the_example_is_valid_and_has_three_zones_and_three_skus() -> None:
    loaded = config.load(EXAMPLE, {})
    assert [zone.kind for zone in loaded.fleet_zones()] == [ZoneKind.IDC, ZoneKind.IDC, ZoneKind.CLOUD]
    (sale,) = loaded.sales_from(1_000_000)
    assert len(sale.skus) == 3
    assert sale.opens_ms == 1_000_000 + 45_000
    (event,) = loaded.calendar_from(1_000_000)
    assert event.opens_ms == sale.opens_ms


def test_money_and_time_are_converted_exactly() -> None:
    loaded = config.parse(document(), "springtide.toml", {})
    (sale,) = loaded.sales_from(0)
    assert sale.skus[0].price_fen == 125
    assert sale.hold_ms == 5000


def test_every_wrong_key_is_named_at_once() -> None:
    raw = document()
    raw["zones"][0]["kind"] = "cellar"
    raw["sales"][0]["hold_ms"] = 5000
    raw["flet"] = {}
    lines = mistakes(raw)
    assert len(lines) == 3
    assert all(line.startswith("springtide.toml: ") for line in lines)
    assert "zones[0].kind" in lines[0]
    assert "sales[0].hold_ms: unknown; did you mean hold_s?" in lines[1]
    assert "flet: unknown; did you mean fleet?" in lines[2]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda raw: raw["sales"][0]["skus"][0].update(stock=-1), "stock"),
        (lambda raw: raw["sales"][0].update(closes_after_s=1.0), "closes_after_s"),
        (lambda raw: raw["sales"][0].update(hold_s="5s"), "sales[0].hold_s"),
        (lambda raw: raw["sales"][0].update(sale="no spaces"), "sale"),
        (lambda raw: raw["sales"][0]["skus"].append(dict(raw["sales"][0]["skus"][0])), "twice"),
        (
            lambda raw: raw.update(calendar=[{"sale": "x", "peak_requests_per_s": 5.0, "lasts_s": 1.0}]),
            "calendar[0].sale",
        ),
        (lambda raw: raw["zones"][0].update(kind="cloud", price_cny_per_node_h=1.0), "idc"),
        (lambda raw: raw["zones"].append(dict(raw["zones"][0])), "zones[1].name"),
        (lambda raw: raw.update(zones={}), "[[zones]]"),
        (lambda raw: raw.pop("zones"), "zones: missing"),
        (lambda raw: raw.update(fleet=3), "fleet: must be a table"),
    ],
)
def test_a_mistake_is_named(change: Any, named: str) -> None:
    raw = document()
    change(raw)
    assert any(named in line for line in mistakes(raw))


def test_variables_override_keys_and_are_checked_as_strictly() -> None:
    loaded = config.parse(document(), "springtide.toml", {"SPRINGTIDE_FLEET_HEADROOM": "0.5"})
    assert loaded.fleet.headroom == 0.5
    assert "fleet.headroom" in mistakes(document(), SPRINGTIDE_FLEET_HEADROOM="much")[0]


def test_a_missing_file_and_broken_toml_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        config.load(tmp_path / "springtide.toml", {})
    broken = tmp_path / "broken.toml"
    broken.write_text("[zones")
    with pytest.raises(ConfigError, match="not valid TOML"):
        config.load(broken, {})


def test_the_example_of_a_service_is_valid_and_needs_no_sale() -> None:
    loaded = config.load(EXAMPLES / "web.toml", {})
    assert not loaded.sales
    (wish,) = loaded.wishes(EXAMPLES).values()
    assert Path(wish.spec.command[1]).is_file()
    with pytest.raises(ConfigError, match=r"at least one \[\[sales\]\]"):
        config.load_sale(EXAMPLES / "web.toml", {})


def test_a_service_becomes_a_wish_with_times_in_milliseconds_and_paths_beside_the_file() -> None:
    raw = services(
        drain_s=1.5,
        stop_grace_s=4.0,
        secrets={"KEY": "key.txt"},
        signals=[{"kind": "p99_ms", "target": 40.0}],
        health={"path": "/health", "interval_ms": 200},
    )
    wish = config.parse(raw, "springtide.toml", {}).wishes(Path("/srv"))["web"]
    assert wish.spec.command == ("python3", "/srv/web.py")
    assert wish.spec.secrets == {"KEY": "/srv/key.txt"}
    assert (wish.drain_ms, wish.spec.stop_grace_ms) == (1500, 4000)
    assert (wish.spec.health.path, wish.spec.health.interval_ms) == ("/health", 200)
    assert [(one.name, one.kind) for one in wish.signals] == [("p99_ms", SignalKind.P99_MS)]


def revision(**changes: Any) -> str:
    return config.parse(services(**changes), "springtide.toml", {}).wishes(Path("/srv"))["web"].spec.revision


@pytest.mark.parametrize(
    "changes",
    [
        {"command": "python3 other.py"},
        {"env": {"A": "1"}},
        {"secrets": {"KEY": "a"}},
        {"memory_mb": 64},
        {"cores": 2.0},
        {"image": "web:2"},
        {"health": {"path": "/"}},
        {"stop_grace_s": 9.0},
    ],
    ids=str,
)
def test_what_makes_a_replica_makes_the_revision(changes: dict[str, Any]) -> None:
    assert revision(**changes) != revision()


@pytest.mark.parametrize(
    "changes",
    [
        {"replicas_min": 3},
        {"port": 9},
        {"requests_per_s": 9.0},
        {"signals": [{"kind": "queue", "target": 1.0}]},
        {"drain_s": 9.0},
    ],
    ids=str,
)
def test_bounds_and_signals_do_not_make_a_revision(changes: dict[str, Any]) -> None:
    assert revision(**changes) == revision()


def test_the_order_of_variables_does_not_make_a_revision() -> None:
    assert revision(env={"A": "1", "B": "2"}) == revision(env={"B": "2", "A": "1"})


def test_a_moment_on_the_calendar_counts_with_its_offset() -> None:
    raw = services()
    at = datetime.fromisoformat("2026-11-11T20:00:00+08:00")
    raw["calendar"] = [{"service": "web", "at": at, "peak_requests_per_s": 500.0, "lasts_s": 60.0}]
    loaded = config.parse(raw, "springtide.toml", {})
    (event,) = loaded.calendar_of("web")
    assert event.opens_ms == 1_794_398_400_000
    assert loaded.calendar_from(0) == ()


def entry(**changes: Any) -> dict[str, Any]:
    return {"service": "web", "peak_requests_per_s": 5.0, "lasts_s": 1.0, **changes}


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (services(name="counter"), "order path"),
        (services(name="no spaces"), "name"),
        (services(command=None), "image, command"),
        (services(command=None, image="web:1"), 'services[0].command: missing; with runtime = "process"'),
        (services(port=0), "services[0].port"),
        (services(requests_per_s=None), "services[0].requests_per_s: missing"),
        (services(replicas_min=5, replicas_max=4), "replicas_max"),
        (services(cores=5.0), "cores_per_node"),
        (services(drain_signal="SIGNOTHING"), "SIGUSR1"),
        (services(env={"A": "1"}, secrets={"A": "f"}), "A stands in env and in secrets"),
        (services(signals=[{"kind": "prometheus", "target": 1.0}]), "url"),
        (services(signals=[{"kind": "cpu", "target": 1.0, "query": "q"}]), "query"),
        (services(signals=[{"kind": "cpu", "target": 0.5}, {"kind": "cpu", "target": 0.6}]), "own name"),
        (services(health={"path": "readyz"}), "begin with /"),
        (services(replicas=3), "services[0].replicas: unknown; did you mean replicas_"),
        ({**services(), "services": services()["services"] * 2}, "services[1].name: 'web' stands twice"),
        ({**services(), "fleet": {"runtime": "docker"}}, "zones[0].engine: missing"),
        ({**services(), "fleet": {"runtime": "podman"}}, "fleet.runtime"),
        ({**services(), "fleet": {"failure_budget": 2}}, "fleet.failure_budget"),
        ({**services(), "calendar": [entry()]}, "needs at"),
        ({**services(), "calendar": [entry(sale="s")]}, "either a sale or a service"),
        ({**services(), "calendar": [entry(at=datetime.fromisoformat("2026-11-11T20:00:00"))]}, "calendar[0].at"),
        (
            {**services(), "calendar": [entry(service="wev", at=datetime.fromisoformat("2026-11-11T20:00:00Z"))]},
            "calendar[0].service: there is no service 'wev'; did you mean web?",
        ),
        ({"zones": document()["zones"]}, "[[services]]"),
        ({**services(), "zones": [{**document()["zones"][0], "engine": "/var/run/docker.sock"}]}, "unix:///"),
        ({**services(), "zones": [{**document()["zones"][0], "cache": "cache"}]}, "HOST:PORT"),
    ],
)
def test_a_mistake_about_the_platform_is_named(raw: dict[str, Any], named: str) -> None:
    assert any(named in line for line in mistakes(raw)), mistakes(raw)


def test_one_zone_of_several_may_be_lost_unless_the_file_says_otherwise() -> None:
    raw = services()
    assert config.parse(raw, "springtide.toml", {}).policy().failure_budget == 0
    raw["zones"] = [*raw["zones"], {**raw["zones"][0], "name": "idc-b"}]
    assert config.parse(raw, "springtide.toml", {}).policy().failure_budget == 1
    raw["fleet"] = {"failure_budget": 0}
    assert config.parse(raw, "springtide.toml", {}).policy().failure_budget == 0
