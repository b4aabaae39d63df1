"""The configuration: a good file is read whole, and every mistake is named with its key and the remedy."""

from pathlib import Path
from typing import Any

import pytest

from springtide import config
from springtide.errors import ConfigError
from springtide.model import ZoneKind

EXAMPLE = Path(__file__).parents[2] / "examples" / "live-room.toml"


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
