"""`[cloud]`, `[[cloud.types]]`, `[[lines]]`, and where zones are in the cloud: what is said, and what is wrong."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from springtide import config
from springtide.cli.clouds import access_keys, alibaba_settings, open_cloud, open_for_replicas
from springtide.drivers.localcloud import LocalCloud
from springtide.drivers.system import SystemClock
from springtide.errors import ConfigError
from springtide.model import Line, Market

SERVICE = {"name": "web", "port": 8080, "requests_per_s": 50.0, "command": "python3 {here}/web.py"}
C7 = {"name": "ecs.c7.8xlarge", "cores": 32, "memory_gb": 64.0}


def document(**cloud: Any) -> dict[str, Any]:
    """Two rooms of the cloud beside one of the data centre, rented of Alibaba Cloud; None takes a key away."""
    keys = {
        "driver": "alibaba",
        "installation": "shop",
        "image": "m-1",
        "security_group": "sg-1",
        "types": [dict(C7)],
        **cloud,
    }
    rented = {"kind": "cloud", "nodes_max": 9, "cores_per_node": 32}
    return {
        "zones": [
            {"name": "idc-a", "kind": "idc", "nodes_max": 1, "cores_per_node": 4},
            {"name": "h", "cloud_zone": "cn-beijing-h", "vswitch": "vsw-h", **rented},
            {"name": "k", "cloud_zone": "cn-beijing-k", "vswitch": "vsw-k", **rented},
        ],
        "services": [dict(SERVICE)],
        "cloud": {key: value for key, value in keys.items() if value is not None},
    }


def read(raw: dict[str, Any], **variables: str) -> config.Config:
    return config.parse(raw, "springtide.toml", variables)


def mistakes(raw: dict[str, Any], **variables: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(raw, **variables)
    return str(caught.value).splitlines()


def test_without_a_word_nodes_are_on_paper_and_limits_are_none(tmp_path: Path) -> None:
    raw = document()
    del raw["cloud"]
    for zone in raw["zones"][1:]:
        zone["price_cny_per_node_h"] = 6.5
    loaded = read(raw)
    assert loaded.cloud.driver == "local"
    policy = loaded.policy()
    assert (policy.spend_max_fen_per_h, policy.zone_share_max, policy.spot_share_max) == (0.0, 1.0, 0.0)
    assert policy.release_after_ms == 12 * 3_600_000
    assert isinstance(open_cloud(loaded, SystemClock(), tmp_path), LocalCloud)


def test_limits_become_policy_in_fen_and_milliseconds() -> None:
    raw = document(
        release_after_h=6.0,
        spend_max_cny_per_h=1234.5,
        zone_share_max=0.6,
        spot_share_max=0.25,
        markets=["on_demand", "spot"],
    )
    raw["lines"] = [
        {"name": "east", "bandwidth_gbit": 10.0, "latency_ms": 1.5, "share_max": 0.7, "zones": ["h"]},
        {"name": "west", "bandwidth_gbit": 40.0, "share_max": 0.6},
    ]
    loaded = read(raw)
    policy = loaded.policy()
    assert policy.release_after_ms == 6 * 3_600_000
    assert policy.spend_max_fen_per_h == 123_450
    assert (policy.zone_share_max, policy.spot_share_max) == (0.6, 0.25)
    assert policy.line_share_max == 0.6
    assert loaded.fleet_lines() == (Line("east", 1e10, 1.5, 0.7, ("h",)), Line("west", 4e10, 0.0, 0.6))


def test_the_account_is_what_the_driver_is_told() -> None:
    raw = document(
        markets=["on_demand", "eci"],
        eci_image="registry/shop:1",
        types=[
            {**C7, "markets": ["spot"]},
            {"name": "ecs.g7.xlarge", "cores": 4, "memory_gb": 16.0, "price_cny_per_h": 1.047},
            {**C7, "name": "ecs.u1.8xlarge", "arch": "arm64"},
            {"name": "eci-4c8g", "cores": 4, "memory_gb": 8.0, "markets": ["eci"]},
        ],
    )
    raw["zones"][1]["boot_s"] = 40.0
    settings = alibaba_settings(read(raw))
    assert (settings.region, settings.installation) == ("cn-beijing", "shop")
    assert (settings.image_id, settings.security_group_id) == ("m-1", "sg-1")
    assert {name: (zone.zone_id, zone.vswitch_id) for name, zone in settings.zones.items()} == {
        "h": ("cn-beijing-h", "vsw-h"),
        "k": ("cn-beijing-k", "vsw-k"),
    }
    # Spot is not a market of the whole, so the first type may not be had at all.
    assert [one.instance_type for one in settings.types] == ["ecs.g7.xlarge", "ecs.u1.8xlarge", "eci-4c8g"]
    assert settings.types[0].markets == (Market.ON_DEMAND,)
    assert settings.types[0].price_fen_per_h == pytest.approx(104.7)
    assert settings.types[2].memory_mb == 8192
    assert settings.eci is not None
    assert settings.eci.image == "registry/shop:1"
    assert settings.zones["h"].instance_type == "ecs.u1.8xlarge"  # which has the zone's cores
    assert settings.boot_ms[Market.ON_DEMAND] == (40_000, 60_000)


def test_files_are_found_beside_the_configuration_and_keys_are_never_shown(tmp_path: Path) -> None:
    (tmp_path / "boot.yaml").write_text("#cloud-config\n")
    keys_file = tmp_path / "keys.ini"
    keys_file.write_text("[default]\ntype = access_key\naccess_key_id = id-1\naccess_key_secret = very-secret%\n")
    cloud = config.CloudSettings(user_data="boot.yaml", credentials="keys.ini").beside(tmp_path)
    loaded = msgspec.structs.replace(read(document()), cloud=cloud)
    assert alibaba_settings(loaded).zones["h"].user_data == "#cloud-config\n"
    keys = access_keys(cloud)
    assert keys is not None
    assert (keys.key_id, keys.secret) == ("id-1", "very-secret%")
    assert "secret" not in repr(keys)
    for text in ("very-secret", "[default]\naccess_key_secret = very-secret\n"):
        keys_file.write_text(text)
        with pytest.raises(ConfigError, match=r"cloud\.credentials") as caught:
            access_keys(cloud)
        assert "very-secret" not in str(caught.value)
    (tmp_path / "boot.yaml").unlink()
    with pytest.raises(ConfigError, match=r"cloud\.user_data"):
        alibaba_settings(loaded)


def test_a_file_that_is_loaded_counts_its_paths_from_itself(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(
        """
[[zones]]
name = "idc-a"
kind = "idc"
nodes_max = 1
cores_per_node = 4

[[services]]
name = "web"
port = 8080
requests_per_s = 50
command = "true"

[cloud]
user_data = "boot.yaml"
"""
    )
    assert config.load(path, {}).cloud.user_data == str(tmp_path / "boot.yaml")
    assert config.load(path, {}).cloud.credentials == ""


def test_all_that_an_account_needs_is_asked_for_at_once() -> None:
    raw = document(installation=None, image=None, security_group=None, types=None)
    del raw["zones"][1]["vswitch"], raw["zones"][2]["cloud_zone"]
    said = mistakes(raw)
    for key in (
        "cloud.installation",
        "cloud.image",
        "cloud.security_group",
        "cloud.types",
        "zones[1].vswitch",
        "zones[2].cloud_zone",
    ):
        assert any(f"springtide.toml: {key}: " in line for line in said), key


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"driver": "aws"}, "cloud.driver"),
        ({"regoin": "cn-beijing"}, "cloud.regoin: unknown; did you mean region?"),
        ({"markets": []}, "cloud.markets"),
        ({"markets": ["idc"]}, '"idc" is not rented'),
        ({"markets": ["spot"]}, "give the share that it may have"),
        ({"markets": ["eci"]}, "eci_image"),
        ({"release_after_h": 0.2}, "cloud.release_after_h"),
        ({"zone_share_max": 0.0}, "cloud.zone_share_max"),
        ({"spot_share_max": 1.5}, "cloud.spot_share_max"),
        ({"spend_max_cny_per_h": -1.0}, "cloud.spend_max_cny_per_h"),
        ({"installation": "my shop"}, "installation"),
        ({"protocol": "http"}, "protocol"),
        ({"protocol": "http", "ecs_endpoint": "127.0.0.1:1", "eci_endpoint": "ecs.example.com"}, "protocol"),
        ({"types": [{"name": "c7.large", "cores": 2, "memory_gb": 4.0}]}, "ecs.c7.xlarge"),
        ({"types": [dict(C7), dict(C7)]}, "ecs.c7.8xlarge stands twice"),
        ({"types": [{**C7, "cores": 0}]}, "cloud.types"),
        ({"types": [{**C7, "markets": ["eci", "spot"]}]}, "alone"),
        ({"types": [{**C7, "name": "eci-big", "cores": 65, "markets": ["eci"]}]}, "at most 64 cores"),
        ({"markets": ["eci"], "eci_image": "i", "types": [dict(C7)]}, "cloud.types: nothing may be rented"),
    ],
)
def test_a_mistake_in_the_cloud_is_named(change: dict[str, Any], said: str) -> None:
    lines = mistakes(document(**change))
    assert any(said in line for line in lines), lines


def test_mistakes_of_zones_and_lines_are_named() -> None:
    raw = document()
    raw["zones"][2]["cloud_zone"] = "cn-beijing-h"
    assert any("zones[2].cloud_zone: 'cn-beijing-h' stands twice" in line for line in mistakes(raw))
    raw = document()
    raw["zones"][0]["vswitch"] = "vsw-a"
    assert any("idc-a is no cloud zone" in line for line in mistakes(raw))
    raw = document()
    raw["lines"] = [{"name": "east", "bandwidth_gbit": 10.0, "zones": ["hh"]}]
    assert "there is no cloud zone 'hh'; did you mean h?" in mistakes(raw)[0] or "known are: h, k" in mistakes(raw)[0]
    raw["lines"] = [{"name": "east", "bandwidth_gbit": 10.0}, {"name": "east", "bandwidth_gbit": 1.0}]
    assert "lines[1].name: 'east' stands twice" in mistakes(raw)[0]
    raw["lines"] = [{"name": "east", "bandwidth_gbit": 1.0, "url": "http://127.0.0.1:9090"}]
    assert "give both" in mistakes(raw)[0]
    raw["lines"] = [{"name": "east", "bandwidth_gbit": 0.0}]
    assert "lines[0].bandwidth_gbit" in mistakes(raw)[0]
    raw = document()
    raw["zones"] = raw["zones"][:1]
    assert any("rents nothing without a zone" in line for line in mistakes(raw))
    raw = document(driver="local")
    assert [line.split(": ")[1] for line in mistakes(raw)] == [
        "zones[1].price_cny_per_node_h",
        "zones[2].price_cny_per_node_h",
    ]


def test_machines_that_would_stay_idle_are_not_paid_for(tmp_path: Path) -> None:
    clock = SystemClock()
    with pytest.raises(ConfigError, match="in vain"):
        open_for_replicas(read(document()), clock, tmp_path)
    here = document(ecs_endpoint="127.0.0.1:1", eci_endpoint="127.0.0.1:1", protocol="http")
    assert not isinstance(open_for_replicas(read(here), clock, tmp_path), LocalCloud)
    raw = document(driver="local")
    for zone in raw["zones"][1:]:
        zone["price_cny_per_node_h"] = 6.5
    assert isinstance(open_for_replicas(read(raw), clock, tmp_path), LocalCloud)


def test_a_variable_overrides_a_key_of_the_cloud() -> None:
    loaded = read(document(), SPRINGTIDE_CLOUD_REGION="cn-hangzhou", SPRINGTIDE_CLOUD_SPEND_MAX_CNY_PER_H="50")
    assert (loaded.cloud.region, loaded.cloud.spend_max_cny_per_h) == ("cn-hangzhou", 50.0)
    assert "cloud.region" in mistakes(document(), SPRINGTIDE_CLOUD_REGION="[1]")[0]
