"""What is sent: times, tokens, user data, batches; and what an answer means."""

import base64
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.drivers import alibaba_eci, alibaba_ecs
from springtide.drivers.alibaba_boot import docker_user_data, encoded
from springtide.drivers.alibaba_settings import (
    USER_DATA_BYTES_MAX,
    AccessKeys,
    AlibabaSettings,
    AlibabaZone,
    EciSettings,
    MachineType,
)
from springtide.drivers.alibaba_times import TOKEN_MAX, batch_token, moment_ms, release_time
from springtide.errors import CloudRefused
from springtide.model import Market, NodeOrder, NodeState

BIG = MachineType("eci-8c16g", 8, 16_384, markets=(Market.ECI,))
SETTINGS = AlibabaSettings(
    region="cn-beijing",
    installation="shop",
    zones={"cloud-h": AlibabaZone("vsw-h", zone_id="cn-beijing-h", image_cache="10.0.0.2:5000")},
    types=(MachineType("ecs.c7.8xlarge", 32, 65_536), BIG),
    image_id="debian_12",
    security_group_id="sg-1",
    key_pair="ops",
    eci=EciSettings("shop:1", command=("serve",), environment={"PORT": "80"}),
)
ORDER = NodeOrder("cloud-h", 250, "order-1", "ecs.c7.8xlarge", count_min=120, release_at_ms=1_700_000_001_000)


@given(st.integers(0, 4_000_000_000_000))
def test_a_release_is_never_early_and_less_than_a_minute_late(at_ms: int) -> None:
    assert 0 <= moment_ms(release_time(at_ms)) - at_ms < 60_000


@pytest.mark.parametrize("form", ["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%MZ"], ids=["seconds", "minutes"])
def test_both_spellings_of_a_time_are_read(form: str) -> None:
    moment = datetime(2026, 11, 27, 8, 30, tzinfo=UTC)
    assert moment_ms(moment.strftime(form)) == moment.timestamp() * 1000
    assert moment_ms("") == 0


@given(st.text(min_size=1, max_size=128), st.integers(0, 999))
def test_a_batch_token_is_what_the_cloud_takes(order_token: str, batch: int) -> None:
    token = batch_token(order_token, batch)
    assert len(token) <= TOKEN_MAX
    assert token.isascii()
    assert token == batch_token(order_token, batch)
    assert token != batch_token(order_token, batch + 1)


def test_a_short_token_can_be_read() -> None:
    assert batch_token("tick-17-h", 3) == "tick-17-h-3"


@given(st.integers(1, 100_000))
def test_batches_are_full_but_for_the_last(count: int) -> None:
    sizes = alibaba_ecs.batches(count)
    assert sum(sizes) == count
    assert set(sizes[:-1]) <= {100}
    assert 1 <= sizes[-1] <= 100


def test_a_batch_says_everything_that_is_wanted() -> None:
    first = alibaba_ecs.run_instances(SETTINGS, ORDER, "ecs.c7.8xlarge", 0, 100)
    assert (first["Amount"], first["MinAmount"], first["ClientToken"]) == (100, 100, "order-1-0")
    assert (first["ZoneId"], first["VSwitchId"], first["SecurityGroupId"]) == ("cn-beijing-h", "vsw-h", "sg-1")
    assert (first["ImageId"], first["KeyPairName"], first["SpotStrategy"]) == ("debian_12", "ops", "NoSpot")
    assert first["AutoReleaseTime"] == "2023-11-14T22:14:00Z"
    assert {(tag["Key"], tag["Value"]) for tag in first["Tag"]} == {
        ("springtide", "shop"),
        ("springtide-order", "order-1"),
        ("springtide-zone", "cloud-h"),
        ("springtide-type", "ecs.c7.8xlarge"),
    }
    assert base64.b64decode(first["UserData"]).startswith(b"#cloud-config")
    last = alibaba_ecs.run_instances(SETTINGS, ORDER, "ecs.c7.8xlarge", 2, 50)
    assert (last["Amount"], last["MinAmount"], last["ClientToken"]) == (50, 1, "order-1-2")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(0.0, ("SpotAsPriceGo", None)), (123.4567, ("SpotWithPriceLimit", 1.235))],
    ids=["any-price", "a-limit"],
)
def test_spot_has_a_limit_in_yuan_or_none(limit: float, expected: tuple[str, float | None]) -> None:
    order = NodeOrder("cloud-h", 1, "t", "ecs.c7.8xlarge", Market.SPOT, price_limit_fen_per_h=limit)
    query = alibaba_ecs.run_instances(SETTINGS, order, "ecs.c7.8xlarge", 0, 1)
    assert (query["SpotStrategy"], query.get("SpotPriceLimit")) == expected
    assert "AutoReleaseTime" not in query


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("Pending", NodeState.BOOTING),
        ("Starting", NodeState.BOOTING),
        ("Running", NodeState.READY),
        ("Stopping", NodeState.RELEASING),
        ("Stopped", NodeState.RELEASING),
        ("Unheard", NodeState.BOOTING),
    ],
)
def test_states_of_instances(status: str, state: NodeState) -> None:
    node = alibaba_ecs.node_of(SETTINGS, instance(Status=status), 1_000)
    assert node is not None
    assert node.state is state


def instance(**more: object) -> dict[str, object]:
    return {
        "InstanceId": "i-1",
        "ZoneId": "cn-beijing-h",
        "Cpu": 32,
        "Memory": 65_536,
        "InstanceType": "ecs.c7.8xlarge",
        "CreationTime": "2026-11-27T08:30Z",
        "Tags": {
            "Tag": [{"TagKey": "springtide", "TagValue": "shop"}, {"TagKey": "springtide-order", "TagValue": "t"}]
        },
        **more,
    }


def test_an_instance_is_a_node_of_ours() -> None:
    node = alibaba_ecs.node_of(SETTINGS, instance(AutoReleaseTime="2026-11-27T09:30Z"), 1_000)
    assert node is not None
    assert (node.zone, node.cores, node.memory_mb, node.client_token) == ("cloud-h", 32, 65_536, "t")
    assert node.release_at_ms - node.rented_ms == 3_600_000
    assert node.market is Market.ON_DEMAND


def test_a_spot_machine_that_is_recycled_has_five_minutes() -> None:
    locks = {"LockReason": [{"LockReason": "Recycling"}]}
    node = alibaba_ecs.node_of(SETTINGS, instance(SpotStrategy="SpotAsPriceGo", OperationLocks=locks), 1_000)
    assert node is not None
    assert (node.market, node.reclaim_ms) == (Market.SPOT, 301_000)


@pytest.mark.parametrize("tags", [{}, {"Tag": []}, {"Tag": [{"TagKey": "springtide", "TagValue": "other"}]}], ids=str)
def test_what_others_have_is_no_node(tags: object) -> None:
    assert alibaba_ecs.node_of(SETTINGS, instance(Tags=tags), 1_000) is None


def test_a_container_group_says_everything_that_is_wanted() -> None:
    order = NodeOrder("cloud-h", 2, "t", "eci-8c16g", Market.ECI, release_at_ms=3_600_500)
    assert SETTINGS.eci is not None
    query = alibaba_eci.create_group(SETTINGS, SETTINGS.eci, order, BIG, 1, 0)
    assert (query["Cpu"], query["Memory"], query["ClientToken"]) == (8, 16, "t-1")
    assert query["ActiveDeadlineSeconds"] == 3_601
    assert query["Container"][0]["Command"] == ["serve"]
    assert query["ContainerGroupName"] == alibaba_eci.group_name("t", 1)
    assert alibaba_eci.price_fen_per_h(8, 16_384) == pytest.approx(8 * 17.64 + 16 * 2.21)


@pytest.mark.parametrize("status", ["Succeeded", "Failed", "ScheduleFailed", "Expired"])
def test_a_group_that_has_ended_is_no_node(status: str) -> None:
    tags = [{"Key": "springtide", "Value": "shop"}]
    assert alibaba_eci.node_of(SETTINGS, {"ContainerGroupId": "eci-1", "Status": status, "Tags": tags}, 0) is None


def test_user_data_is_a_cloud_config_that_brings_up_the_engine() -> None:
    text = docker_user_data("cloud-h", "10.0.0.2:5000")
    assert text.startswith("#cloud-config\n")
    config = json.loads(text.split("\n", 1)[1])
    daemon = json.loads(config["write_files"][0]["content"])
    assert daemon["registry-mirrors"] == ["http://10.0.0.2:5000"]
    assert daemon["hosts"] == ["unix:///var/run/docker.sock"], "no engine listens on the network unless it is told to"
    assert config["runcmd"][-1] == ["systemctl", "restart", "docker"]
    assert "tcp://0.0.0.0:2375" in docker_user_data("cloud-h", port=2375)


def test_user_data_has_a_limit() -> None:
    encoded("x" * USER_DATA_BYTES_MAX)
    with pytest.raises(CloudRefused, match="32768"):
        encoded("x" * (USER_DATA_BYTES_MAX + 1))


def test_an_access_key_does_not_show_itself() -> None:
    keys = AccessKeys("LTAI-id", "very-secret", "token")
    for shown in (repr(keys), str(keys), f"{keys}", repr({"keys": keys})):
        assert "LTAI" not in shown
        assert "secret" not in shown
