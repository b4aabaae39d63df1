"""The served cloud's side of HTTP: signatures, errors as bodies, what is not served, faults, and its data file."""

import asyncio
import datetime as dt
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from alibabacloud_ecs20140526 import models
from alibabacloud_tea_openapi.exceptions import ClientException

from springtide.drivers.system import SystemClock, SystemIds, chance
from springtide.errors import UserError
from springtide.model import NodeOrder, NodeState
from springtide.twin.cloud_api import AccessKey, ServedCloud, ServedOptions, Sources
from springtide.twin.market import Market, MarketSettings
from tests.integration.cloud_client import OFFERS, REGION, TYPE, ZONE, eci, ecs, raw, served, signed_headers

SETTINGS = MarketSettings(offers=OFFERS, refill_share_per_h=0.0)
RUN = {"VSwitchId": f"vsw-{ZONE}", "InstanceType": TYPE, "ImageId": "image", "SecurityGroupId": "sg-1"}


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["Code"]


async def test_a_call_that_is_signed_by_hand_is_answered_in_json() -> None:
    async with served() as cloud:
        answer = await raw(cloud, "RunInstances", {**RUN, "Amount": "2", "Tag.1.Key": "a b/ä*", "Tag.1.Value": "~"})
        assert answer.status_code == 200
        assert len(answer.json()["InstanceIdSets"]["InstanceIdSet"]) == 2
        assert answer.json()["RequestId"]
        (seen, _) = (await raw(cloud, "DescribeInstances", {})).json()["Instances"]["Instance"]
        assert seen["Tags"]["Tag"] == [{"TagKey": "a b/ä*", "TagValue": "~"}]


async def test_an_error_is_a_body_with_code_message_request_and_host() -> None:
    async with served() as cloud:
        answer = await raw(cloud, "RunInstances", {})
        assert code_of(answer) == (400, "MissingParameter")
        assert set(answer.json()) == {"Code", "Message", "RequestId", "HostId"}
        assert answer.json()["HostId"] == cloud.endpoint


async def test_whoever_cannot_sign_is_refused() -> None:
    async with served() as cloud:
        async with httpx.AsyncClient(trust_env=False, base_url=f"http://{cloud.endpoint}") as client:
            assert code_of(await client.post("/?Action=DescribeInstances")) == (400, "IncompleteSignature")

            async def sent(headers: dict[str, str], query: dict[str, str], body: bytes = b"") -> tuple[int, str]:
                return code_of(await client.post("/", params=query, headers=headers, content=body))

            query = {"RegionId": "cn-beijing"}
            good = signed_headers(cloud.endpoint, cloud.keys, "DescribeInstances", query)
            assert await sent(good, {**query, "PageSize": "1"}) == (400, "SignatureDoesNotMatch")
            assert await sent({**good, "x-acs-action": "DeleteInstances"}, query) == (400, "SignatureDoesNotMatch")
            assert await sent(good, query, b"more=1") == (400, "SignatureDoesNotMatch")
            stranger = AccessKey("nobody", cloud.keys.access_key_secret)
            unknown = signed_headers(cloud.endpoint, stranger, "DescribeInstances", query)
            assert await sent(unknown, query) == (404, "InvalidAccessKeyId.NotFound")
            liar = AccessKey(cloud.keys.access_key_id, "guess")
            assert await sent(signed_headers(cloud.endpoint, liar, "DescribeInstances", query), query) == (
                400,
                "SignatureDoesNotMatch",
            )
        describe = models.DescribeInstancesRequest(region_id=REGION)
        with pytest.raises(ClientException) as refused:
            await ecs(cloud, secret="guess").describe_instances_async(describe)
        assert refused.value.code == "SignatureDoesNotMatch"
        assert cloud.market.created == 0
        assert not cloud.market.meter.calls


@pytest.mark.parametrize("minutes", [-16, -14, 14, 16], ids=str)
async def test_a_clock_may_be_a_quarter_of_an_hour_off(minutes: int) -> None:
    sent = (dt.datetime.now(dt.UTC) + dt.timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")
    async with served() as cloud:
        answer = await raw(cloud, "DescribeInstances", {}, x_acs_date=sent)
        if abs(minutes) < 15:
            assert answer.status_code == 200
        else:
            assert code_of(answer) == (400, "InvalidTimeStamp.Expired")


async def test_a_nonce_can_be_used_once() -> None:
    async with served() as cloud:
        first = await raw(cloud, "DescribeInstances", {}, x_acs_signature_nonce="n1")
        assert first.status_code == 200
        again = await raw(cloud, "DescribeInstances", {}, x_acs_signature_nonce="n1")
        assert code_of(again) == (400, "SignatureNonceUsed")


async def test_what_is_not_served_is_not_found() -> None:
    async with served() as cloud:
        assert code_of(await raw(cloud, "StopInstances", {})) == (404, "InvalidAction.NotFound")
        other_version = await raw(cloud, "RunInstances", {}, x_acs_version="2018-08-08")
        assert code_of(other_version) == (404, "InvalidAction.NotFound")
        assert code_of(await raw(cloud, "DescribeInstances", {"RegionId": "cn-hangzhou"})) == (
            404,
            "InvalidRegionId.NotFound",
        )


async def test_a_bad_page_token_and_bad_ids_are_refused() -> None:
    async with served() as cloud:
        for query in ({"NextToken": "x"}, {"InstanceIds": "i-1"}, {"InstanceIds": '{"a": 1}'}, {"MaxResults": "ten"}):
            assert code_of(await raw(cloud, "DescribeInstances", query)) == (400, "InvalidParameter")
        assert (await raw(cloud, "DescribeInstances", {"InstanceIds": "[]"})).json()["TotalCount"] == 0


GROUP = {"ContainerGroupName": "shop", "SecurityGroupId": "sg-1", "VSwitchId": f"vsw-{ZONE}", "Cpu": 8, "Memory": 16}
CONTAINER = {"Container": [{"Name": "counter", "Image": "registry/counter:1"}]}


async def test_container_groups_come_one_a_call_are_listed_by_pages_of_20_and_go() -> None:
    async with served() as cloud:
        ids = []
        for number in range(25):
            body = await eci(
                cloud,
                "CreateContainerGroup",
                **GROUP,
                **CONTAINER,
                ClientToken=f"t{number}",
                Tag=[{"Key": "springtide", "Value": "shop" if number else "other"}],
            )
            ids.append(body["ContainerGroupId"])
        again = await eci(
            cloud,
            "CreateContainerGroup",
            **GROUP,
            **CONTAINER,
            ClientToken="t3",
            Tag=[{"Key": "springtide", "Value": "shop"}],
        )
        assert again["ContainerGroupId"] == ids[3]
        first = await eci(cloud, "DescribeContainerGroups", Tag=[{"Key": "springtide", "Value": "shop"}])
        assert (len(first["ContainerGroups"]), first["TotalCount"]) == (20, 24)
        rest = await eci(
            cloud,
            "DescribeContainerGroups",
            Tag=[{"Key": "springtide", "Value": "shop"}],
            NextToken=first["NextToken"],
        )
        assert "NextToken" not in rest
        listed = [group["ContainerGroupId"] for group in first["ContainerGroups"] + rest["ContainerGroups"]]
        assert listed == ids[1:]
        async with asyncio.timeout(20):
            while any(node.state is not NodeState.READY for node in cloud.market.nodes()):
                await asyncio.sleep(0.02)
        running = await eci(cloud, "DescribeContainerGroups", Status="Running", ContainerGroupIds=json.dumps(ids[:3]))
        assert {(group["Cpu"], group["Memory"], group["ZoneId"]) for group in running["ContainerGroups"]} == {
            (8.0, 16.0, ZONE)
        }
        assert len(running["ContainerGroups"]) == 3
        await eci(cloud, "DeleteContainerGroup", ContainerGroupId=ids[0])
        with pytest.raises(ClientException) as refused:
            await eci(cloud, "DeleteContainerGroup", ContainerGroupId=ids[0])
        assert refused.value.code == "InvalidParameter.ContainerGroupId.NotFound"
        assert len(cloud.market.nodes()) == 24
        assert (await raw(cloud, "DescribeInstances", {})).json()["TotalCount"] == 0


async def test_container_groups_are_refused_as_documented() -> None:
    async with served() as cloud:
        for changes, code in (
            ({"ContainerGroupName": ""}, "MissingParameter"),
            ({"Container": []}, "MissingParameter"),
            ({"Cpu": 7}, "InvalidParameter.CPU.Memory"),
            ({"SpotStrategy": "SpotAsPriceGo"}, "InvalidParameter"),
            ({"VSwitchId": "vsw-nowhere"}, "InvalidVSwitchId.NotFound"),
            ({"Container": [{"Name": "c", "Image": "i"}] * 21}, "InvalidParameter"),
        ):
            with pytest.raises(ClientException) as refused:
                await eci(cloud, "CreateContainerGroup", **{**GROUP, **CONTAINER, **changes})
            assert refused.value.code == code
        cloud.market.set_stock(ZONE, 0)
        with pytest.raises(ClientException) as refused:
            await eci(cloud, "CreateContainerGroup", **GROUP, **CONTAINER)
        assert refused.value.code == "NoInstanceStock"
        assert cloud.market.created == 0


async def test_creations_of_container_groups_are_throttled_beyond_the_burst() -> None:
    async with served() as cloud:
        answers = await asyncio.gather(
            *(eci(cloud, "CreateContainerGroup", **GROUP, **CONTAINER) for _ in range(140)), return_exceptions=True
        )
        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        assert refused
        assert {getattr(error, "code", "") for error in refused} == {"Throttling.User"}
        assert cloud.market.created == 140 - len(refused) >= 100


async def test_what_a_container_group_costs_a_second() -> None:
    async with served() as cloud:
        body = await eci(cloud, "DescribeContainerGroupPrice", Cpu=2, Memory=4)
        assert body["PriceInfo"]["Price"]["TradePrice"] == pytest.approx(0.4412 / 3600, rel=1e-4)


async def test_a_container_group_ends_by_itself_after_its_deadline() -> None:
    async with served() as cloud:
        await eci(cloud, "CreateContainerGroup", **GROUP, **CONTAINER, ActiveDeadlineSeconds=1)
        assert len(cloud.market.nodes()) == 1
        async with asyncio.timeout(20):
            while cloud.market.nodes():
                await asyncio.sleep(0.02)


async def test_faults_come_over_http_with_the_secret_alone() -> None:
    async with served() as cloud:
        url = f"http://{cloud.endpoint}/springtide/faults"
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(url)).status_code == 401
            client.headers["Authorization"] = f"Bearer {cloud.keys.access_key_secret}"
            status = (await client.post(url, json={"fault": "stock", "prefix": f"{ZONE}/", "count": 0})).json()
            assert {count for key, count in status["stock"].items() if key.startswith(ZONE)} == {0}
            assert code_of(await raw(cloud, "RunInstances", RUN)) == (403, "OperationDenied.NoStock")
            await client.post(url, json={"fault": "stock", "prefix": f"{ZONE}/", "count": None})
            await client.post(url, json={"fault": "throttle", "api": "RunInstances", "for_s": 0.2})
            assert code_of(await raw(cloud, "RunInstances", RUN)) == (400, "Throttling")
            await asyncio.sleep(0.21)
            assert (await raw(cloud, "RunInstances", {**RUN, "SpotStrategy": "SpotAsPriceGo"})).status_code == 200
            status = (await client.post(url, json={"fault": "reclaim", "share": 1.0})).json()
            assert (status["reclaimed_soon"], status["throttled"]) == (1, {"RunInstances": 1})
            await client.post(url, json={"fault": "slow_boots", "factor": 2, "for_s": 60})
            status = (await client.post(url, json={"fault": "lose_zone", "zone": ZONE, "for_s": 60})).json()
            assert status["booting"] + status["ready"] == 0
            await client.post(url, json={"fault": "lose_answers", "count": 1})
            assert code_of(await raw(cloud, "DescribeInstances", {})) == (503, "ServiceUnavailable")
            assert (await raw(cloud, "DescribeInstances", {})).status_code == 200
            wrong: list[Any] = [{"fault": "fire"}, {"fault": "reclaim", "share": 2}, {"fault": "throttle"}, []]
            for bad in wrong:
                assert (await client.post(url, json=bad)).status_code == 400


def reopened(data: Path, **changes: object) -> ServedCloud:
    options = ServedOptions(market=SETTINGS, data=data, **changes)  # type: ignore[arg-type] # as the test says
    return ServedCloud(Sources(SystemClock(), SystemIds(), chance(1)), options)


async def test_a_restarted_cloud_knows_keys_machines_tags_tokens_and_the_bill(tmp_path: Path) -> None:
    data = tmp_path / "cloud.json"
    query = {**RUN, "ClientToken": "t", "Amount": "3", "Tag.1.Key": "springtide", "Tag.1.Value": "shop"}
    async with reopened(data) as cloud:
        first = (await raw(cloud, "RunInstances", query)).json()["InstanceIdSets"]
        keys, market = cloud.keys, cloud.market
        kept = data.read_bytes()
    assert data.stat().st_mode & 0o777 == 0o600
    assert json.loads(kept)["market"]["created"] == 3  # it was written before the answer, not at the end
    async with reopened(data) as cloud:
        assert cloud.keys == keys
        assert (await raw(cloud, "RunInstances", query)).json()["InstanceIdSets"] == first
        listed = (await raw(cloud, "DescribeInstances", {"Tag.1.Key": "springtide"})).json()
        assert listed["TotalCount"] == 3
        assert cloud.market.created == 3
        assert cloud.market.cost_fen(market.kernel.now_ms) == market.cost_fen()
        async with asyncio.timeout(20):
            while any(node.state is not NodeState.READY for node in cloud.market.nodes()):
                await asyncio.sleep(0.02)


async def test_a_data_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    data = tmp_path / "cloud.json"
    data.write_text("{}")
    with pytest.raises(UserError, match=r"cloud\.json"):
        reopened(data)
    data.unlink()
    async with reopened(data) as cloud:
        cloud.market.rent(NodeOrder(ZONE, 1, "t", TYPE))
    options = ServedOptions(market=MarketSettings(offers=OFFERS[1:]), data=data)
    with pytest.raises(UserError, match="not among the offers"):
        ServedCloud(Sources(SystemClock(), SystemIds(), chance(1)), options)


async def test_the_clouds_clock_can_run_faster() -> None:
    slow = tuple(offer for offer in OFFERS[:1])
    settings = MarketSettings(offers=slow)
    async with served(ServedOptions(market=settings, speed=200.0)) as cloud:
        begun_ms = cloud.market.kernel.now_ms
        await asyncio.sleep(0.3)
        cloud.advance()
        assert cloud.market.kernel.now_ms - begun_ms > 30_000
        answer = await raw(cloud, "RunInstances", RUN)
        assert answer.status_code == 200


async def test_a_port_that_is_taken_is_named() -> None:
    async with served() as cloud:
        with pytest.raises(UserError, match=str(cloud.port)):
            async with served(ServedOptions(market=SETTINGS, port=cloud.port)):
                pass


def test_a_market_needs_no_server() -> None:
    cloud = reopened(Path("/nonexistent/cloud.json"))
    assert isinstance(cloud.market, Market)
