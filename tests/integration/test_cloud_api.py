"""The served cloud, driven by the official SDK: what it sells, and every documented way in which it refuses."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from alibabacloud_ecs20140526 import models
from alibabacloud_ecs20140526.client import Client
from alibabacloud_tea_openapi.exceptions import ClientException, ServerException, ThrottlingException

from springtide.model import Market as Channel
from springtide.model import NodeState, Quota
from springtide.twin.cloud_api import ServedCloud, ServedOptions, ServedSettings
from springtide.twin.market import MarketSettings
from springtide.twin.market_settings import ApiLimits
from tests.integration.cloud_client import OFFERS, OTHER, REGION, TYPE, ZONE, ecs, served


@pytest.fixture
async def cloud() -> AsyncIterator[ServedCloud]:
    async with served() as running:
        yield running


def run_request(token: str = "", **changes: Any) -> models.RunInstancesRequest:
    given: dict[str, Any] = {
        "region_id": REGION,
        "v_switch_id": f"vsw-{ZONE}",
        "instance_type": TYPE,
        "image_id": "aliyun_3_x64_20G",
        "security_group_id": "sg-1",
        "amount": 1,
        "client_token": token,
        "tag": [models.RunInstancesRequestTag(key="springtide", value="shop")],
    }
    return models.RunInstancesRequest(**{**given, **changes})


async def run(client: Client, token: str = "", **changes: Any) -> list[str]:
    answer = await client.run_instances_async(run_request(token, **changes))
    return list(answer.body.instance_id_sets.instance_id_set)


async def describe(client: Client, **given: Any) -> list[Any]:
    request = models.DescribeInstancesRequest(region_id=REGION, max_results=100, **given)
    answer = await client.describe_instances_async(request)
    return list(answer.body.instances.instance)


async def delete(client: Client, ids: list[str], **given: Any) -> None:
    given = {"force": True, **given}
    await client.delete_instances_async(models.DeleteInstancesRequest(region_id=REGION, instance_id=ids, **given))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.02)


async def booted(cloud: ServedCloud) -> None:
    await until(lambda: all(node.state is NodeState.READY for node in cloud.market.nodes()))


async def test_instances_go_from_pending_to_running_and_say_what_they_are() -> None:
    slow = tuple(msgspec.structs.replace(offer, boot_ms=(1_500, 1_500)) for offer in OFFERS)
    async with served(offers=slow) as cloud:
        client = ecs(cloud)
        (node_id,) = await run(client, "t", instance_name="shop", host_name="h-${instance_id}")
        statuses: list[str] = []
        seen: Any = None
        async with asyncio.timeout(20):
            while not statuses or statuses[-1] != "Running":
                (seen,) = await describe(client)
                await asyncio.sleep(0.02)
                if [seen.status] != statuses[-1:]:
                    statuses.append(seen.status)
        assert statuses == ["Pending", "Starting", "Running"]
        assert (seen.instance_id, seen.instance_name, seen.host_name) == (node_id, "shop", f"h-{node_id}")
        assert (seen.zone_id, seen.instance_type, seen.cpu, seen.memory) == (ZONE, TYPE, 32, 65_536)
        assert [(tag.tag_key, tag.tag_value) for tag in seen.tags.tag] == [("springtide", "shop")]
        assert seen.vpc_attributes.private_ip_address.ip_address == [cloud.market.nodes()[0].address]
        assert seen.operation_locks.lock_reason == []


async def test_the_same_token_buys_once_and_another_order_with_it_is_a_mismatch(cloud: ServedCloud) -> None:
    client = ecs(cloud)
    first = await run(client, "t", amount=3)
    assert await run(client, "t", amount=3) == first
    for changes in ({"amount": 4}, {"user_data": base64.b64encode(b"other").decode()}, {"instance_name": "other"}):
        with pytest.raises(ClientException) as refused:
            await run(client, "t", **{"amount": 3, **changes})
        assert (refused.value.code, refused.value.status_code) == ("IdempotentParameterMismatch", 400)
    await booted(cloud)
    await delete(client, first)
    assert await run(client, "t", amount=3) == first
    assert await describe(client) == []
    assert cloud.market.created == 3


async def test_concurrent_calls_with_one_token_buy_once(cloud: ServedCloud) -> None:
    answers = await asyncio.gather(*(run(ecs(cloud), "t", amount=20) for _ in range(8)))
    assert all(answer == answers[0] for answer in answers)
    assert cloud.market.created == 20


async def test_a_stock_between_min_amount_and_amount_is_a_success_with_fewer(cloud: ServedCloud) -> None:
    client = ecs(cloud)
    there = {"v_switch_id": f"vsw-{OTHER}", "amount": 100}
    with pytest.raises(ClientException) as refused:
        await run(client, "t1", **there)
    assert (refused.value.code, refused.value.status_code) == ("OperationDenied.NoStock", 403)
    with pytest.raises(ClientException):
        await run(client, "t2", **there, min_amount=6)
    assert cloud.market.created == 0
    assert len(await run(client, "t3", **there, min_amount=5)) == 5


async def test_a_dry_run_answers_with_an_error_and_buys_nothing(cloud: ServedCloud) -> None:
    client = ecs(cloud)
    for changes, code in (({}, "DryRunOperation"), ({"v_switch_id": f"vsw-{OTHER}"}, "OperationDenied.NoStock")):
        with pytest.raises(ClientException) as refused:
            await run(client, "t", amount=6, dry_run=True, **changes)
        assert refused.value.code == code
    assert cloud.market.created == 0
    ids = await run(client, "t", amount=6)
    await booted(cloud)
    with pytest.raises(ClientException) as refused:
        await delete(client, ids, dry_run=True)
    assert refused.value.code == "DRYRUN.SUCCESS"
    assert len(await describe(client)) == 6


@pytest.mark.parametrize(
    ("quota", "strategy", "code"),
    [
        (Quota(Channel.ON_DEMAND, 64), "NoSpot", "QuotaExceed.ElasticQuota"),
        (Quota(Channel.ON_DEMAND, 64, zone=ZONE), "NoSpot", "QuotaExceeded.ElasticQuota"),
        (Quota(Channel.SPOT, 64), "SpotAsPriceGo", "QuotaExceed.Spot"),
    ],
    ids=["region", "zone", "spot"],
)
async def test_quotas_refuse_and_are_told(quota: Quota, strategy: str, code: str) -> None:
    async with served(quotas=(quota,)) as cloud:
        client = ecs(cloud)
        await run(client, "t1", amount=2, spot_strategy=strategy)
        with pytest.raises(ClientException) as refused:
            await run(client, "t2", amount=1, spot_strategy=strategy)
        assert refused.value.code == code
        answer = await client.describe_account_attributes_async(
            models.DescribeAccountAttributesRequest(region_id=REGION)
        )
        kind = "spot" if quota.market is Channel.SPOT else "postpaid"
        told = {
            item.attribute_name: [(value.value, value.zone_id or "") for value in item.attribute_values.value_item]
            for item in answer.body.account_attribute_items.account_attribute_item
        }
        assert told[f"max-{kind}-instance-vcpu-count"] == [("64", quota.zone)]
        assert told[f"used-{kind}-instance-vcpu-count"] == [("64", quota.zone)]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"amount": 101}, "InvalidParameter"),
        ({"min_amount": 2}, "InvalidParameter"),
        ({"client_token": "x" * 65}, "InvalidParameter"),
        ({"region_id": "cn-hangzhou"}, "InvalidRegionId.NotFound"),
        ({"v_switch_id": "vsw-nowhere"}, "InvalidVSwitchId.NotFound"),
        ({"v_switch_id": None}, "MissingParameter"),
        ({"zone_id": OTHER}, "InvalidParameter.Mismatch"),
        ({"instance_type": "ecs.none.large"}, "InvalidResourceType.NotSupported"),
        ({"image_id": None}, "MissingParameter"),
        ({"security_group_id": None}, "MissingParameter"),
        ({"user_data": "not base64!"}, "InvalidUserData.Base64FormatInvalid"),
        ({"user_data": base64.b64encode(bytes(32 * 1024 + 1)).decode()}, "InvalidUserData.SizeExceeded"),
        ({"auto_release_time": "tomorrow"}, "InvalidAutoReleaseTime.Malformed"),
        ({"auto_release_time": "2001-01-01T00:00:00Z"}, "InvalidAutoReleaseTime.Malformed"),
        (
            {"spot_strategy": "SpotWithPriceLimit", "spot_price_limit": 0.5},
            "InvalidSpotPriceLimit.LowerThanPublicPrice",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value)[:60],
)
async def test_a_bad_order_is_refused_with_its_code(cloud: ServedCloud, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(ClientException) as refused:
        await run(ecs(cloud), **{"token": "t", **changes} if "client_token" not in changes else changes)
    assert refused.value.code == code
    assert refused.value.request_id
    assert cloud.market.created == 0


async def test_user_data_of_32_kb_is_taken(cloud: ServedCloud) -> None:
    data = base64.b64encode(bytes(range(256)) * 128).decode()
    assert len(await run(ecs(cloud), "t", user_data=data)) == 1


async def test_a_launch_template_stands_for_image_and_security_group(cloud: ServedCloud) -> None:
    given = {"image_id": None, "security_group_id": None, "launch_template_name": "springtide"}
    assert len(await run(ecs(cloud), "t", **given)) == 1


async def test_names_are_numbered_with_a_unique_suffix(cloud: ServedCloud) -> None:
    client = ecs(cloud)
    await run(client, "t", amount=3, instance_name="node", host_name="node", unique_suffix=True)
    assert [node.instance_name for node in await describe(client)] == ["node001", "node002", "node003"]
    assert [node.host_name for node in await describe(client)] == ["node001", "node002", "node003"]
    assert len(await describe(client, instance_name="*2")) == 1


async def test_a_vswitch_runs_out_of_addresses() -> None:
    market = MarketSettings(offers=OFFERS)
    async with served(ServedOptions(market=market, api=ServedSettings(vswitch_addresses=3))) as cloud:
        client = ecs(cloud)
        await run(client, "t1", amount=2)
        with pytest.raises(ClientException) as refused:
            await run(client, "t2", amount=2)
        assert refused.value.code == "InvalidVSwitchId.IpNotEnough"


async def test_automatic_release_is_cut_to_the_minute_shown_and_moved(cloud: ServedCloud) -> None:
    client = ecs(cloud)
    at = datetime.now(UTC) + timedelta(hours=1)
    (node_id,) = await run(client, "t", auto_release_time=at.strftime("%Y-%m-%dT%H:%M:%SZ"))
    (seen,) = await describe(client)
    assert seen.auto_release_time == at.strftime("%Y-%m-%dT%H:%MZ")
    later = (at + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:00Z")
    request = models.ModifyInstanceAutoReleaseTimeRequest(
        region_id=REGION, instance_id=node_id, auto_release_time=later
    )
    await client.modify_instance_auto_release_time_async(request)
    (seen,) = await describe(client)
    assert seen.auto_release_time == later.removesuffix(":00Z") + "Z"
    request.auto_release_time = None
    await client.modify_instance_auto_release_time_async(request)
    assert cloud.market.nodes()[0].release_at_ms == 0


async def test_what_cannot_be_deleted_is_refused_and_nothing_is_deleted_with_it() -> None:
    async with served(offers=(*OFFERS[:2],)) as cloud:
        client = ecs(cloud)
        kept = await run(client, "t1", deletion_protection=True)
        ids = await run(client, "t2", amount=2)
        await booted(cloud)
        for given, force, code in (
            ([*ids, "i-unknown"], True, "InvalidInstanceId.NotFound"),
            ([*ids, *kept], True, "OperationDenied.DeletionProtection"),
            (ids, False, "IncorrectInstanceStatus"),
        ):
            with pytest.raises(ClientException) as refused:
                await delete(client, given, force=force)
            assert refused.value.code == code
            assert len(cloud.market.nodes()) == 3
        cloud.market.slow_boots(1000, cloud.market.kernel.now_ms + 1000)
        with pytest.raises(ClientException) as refused:
            await delete(client, await run(client, "t3"))
        assert refused.value.code == "IncorrectInstanceStatus.Initializing"
        await delete(client, ids)
        assert len(cloud.market.nodes()) == 2


async def test_pages_hold_every_instance_once_while_some_go(cloud: ServedCloud) -> None:
    client = ecs(cloud)
    for number in range(3):
        await run(client, f"t{number}", amount=80)
    await booted(cloud)
    token, seen, pages = "", [], 0
    while True:
        request = models.DescribeInstancesRequest(region_id=REGION, max_results=50, next_token=token)
        body = (await client.describe_instances_async(request)).body
        seen += [node.instance_id for node in body.instances.instance]
        pages += 1
        if pages == 1:
            await delete(client, seen[:10])
        token = body.next_token
        if not token:
            break
    assert pages == 5
    assert len(seen) == len(set(seen)) == 240


async def test_tags_list_what_the_filter_of_describe_cannot(cloud: ServedCloud) -> None:
    client = ecs(cloud)
    ids = await run(client, "t1", amount=60)
    await run(client, "t2", tag=[models.RunInstancesRequestTag(key="springtide", value="other")])
    await run(client, "t3", tag=None)
    await client.tag_resources_async(
        models.TagResourcesRequest(
            region_id=REGION,
            resource_type="instance",
            resource_id=ids[:2],
            tag=[models.TagResourcesRequestTag(key="drained", value="yes")],
        )
    )
    found: list[str] = []
    token: str | None = None
    while token != "":
        answer = await client.list_tag_resources_async(
            models.ListTagResourcesRequest(
                region_id=REGION,
                resource_type="instance",
                next_token=token,
                tag=[models.ListTagResourcesRequestTag(key="springtide", value="shop")],
            )
        )
        found += [each.resource_id for each in answer.body.tag_resources.tag_resource]
        token = answer.body.next_token
    assert found == ids
    tagged = await describe(client, tag=[models.DescribeInstancesRequestTag(key="drained", value="yes")])
    assert [node.instance_id for node in tagged] == ids[:2]


async def test_statuses_alone_can_be_asked_for(cloud: ServedCloud) -> None:
    client = ecs(cloud)
    ids = await run(client, "t", amount=60)
    await booted(cloud)
    request = models.DescribeInstanceStatusRequest(region_id=REGION, page_size=50, page_number=2)
    body = (await client.describe_instance_status_async(request)).body
    assert [status.instance_id for status in body.instance_statuses.instance_status] == ids[50:]
    assert {status.status for status in body.instance_statuses.instance_status} == {"Running"}


async def test_throttling_says_when_to_come_again_and_is_over_in_the_next_minute() -> None:
    async with served(limits=ApiLimits(calls_per_min={"DescribeInstances": 3})) as cloud:
        client = ecs(cloud)
        with pytest.raises(ThrottlingException) as refused:
            await asyncio.gather(*(describe(client) for _ in range(7)))  # a minute may end in between, once
        assert refused.value.code == "Throttling.User"
        left_ms = 60_000 - cloud.market.kernel.now_ms % 60_000
        assert 0 < refused.value.retry_after <= 60_000
        assert abs(refused.value.retry_after - left_ms) < 5_000
        await run(client, "t")  # another API goes on


async def test_faults_reach_the_api(cloud: ServedCloud) -> None:
    client = ecs(cloud)
    cloud.market.set_stock(ZONE, 0)
    with pytest.raises(ClientException) as refused:
        await run(client, "t")
    assert refused.value.code == "OperationDenied.NoStock"
    cloud.market.set_stock(ZONE, None)
    cloud.market.lose_zone(ZONE, cloud.market.kernel.now_ms + 60_000)
    with pytest.raises(ClientException) as refused:
        await run(client, "t")
    assert refused.value.code == "Zone.NotOnSale"
    cloud.market.throttle("RunInstances", cloud.market.kernel.now_ms + 300)
    with pytest.raises(ThrottlingException) as throttled:
        await run(client, "t")
    assert throttled.value.code == "Throttling"
    await asyncio.sleep(throttled.value.retry_after / 1000 + 0.01)
    with pytest.raises(ClientException) as refused:
        await run(client, "t")
    assert refused.value.code == "Zone.NotOnSale"


async def test_a_purchase_whose_answer_was_lost_is_made_once(cloud: ServedCloud) -> None:
    client = ecs(cloud)
    cloud.api.lose_answers("RunInstances", 2)
    for _ in range(2):
        with pytest.raises(ServerException) as lost:
            await run(client, "t", amount=4)
        assert (lost.value.code, lost.value.status_code) == ("ServiceUnavailable", 503)
    assert len(await run(client, "t", amount=4)) == 4
    assert cloud.market.created == 4


async def test_a_spot_instance_is_locked_before_it_goes() -> None:
    async with served(notice_ms=500) as cloud:
        client = ecs(cloud)
        spot = await run(client, "t", amount=2, spot_strategy="SpotWithPriceLimit", spot_price_limit=2.0)
        await booted(cloud)
        cloud.market.reclaim(0.5)
        (locked,) = await describe(client, lock_reason="Recycling")
        assert [lock.lock_reason for lock in locked.operation_locks.lock_reason] == ["Recycling"]
        assert (locked.spot_strategy, locked.spot_price_limit) == ("SpotWithPriceLimit", 2.0)
        await until(lambda: len(cloud.market.nodes()) == 1)
        (left,) = await describe(client)
        assert {left.instance_id} == set(spot) - {locked.instance_id}


async def test_stock_is_told_by_level_for_all_zones_at_once(cloud: ServedCloud) -> None:
    client = ecs(cloud)
    await run(client, "t1", amount=5, v_switch_id=f"vsw-{OTHER}")
    request = models.DescribeAvailableResourceRequest(
        region_id=REGION, destination_resource="InstanceType", instance_charge_type="PostPaid"
    )
    body = (await client.describe_available_resource_async(request)).body
    told = {}
    for zone in body.available_zones.available_zone:
        (kind,) = zone.available_resources.available_resource
        for each in kind.supported_resources.supported_resource:
            told[zone.zone_id, each.value] = each.status, each.status_category
    assert told == {(ZONE, TYPE): ("Available", "WithStock"), (OTHER, TYPE): ("SoldOut", "WithoutStock")}
    request.spot_strategy = "SpotAsPriceGo"
    spot = (await client.describe_available_resource_async(request)).body.available_zones.available_zone
    assert [zone.zone_id for zone in spot] == [ZONE]


async def test_prices_on_demand_and_spot() -> None:
    async with served(price_every_ms=100) as cloud:
        client = ecs(cloud)
        request = models.DescribePriceRequest(region_id=REGION, instance_type=TYPE, amount=2, price_unit="Hour")
        price = (await client.describe_price_async(request)).body.price_info.price
        assert (price.trade_price, price.currency) == (pytest.approx(13.046), "CNY")
        pool = cloud.market.pools[OFFERS[1].key]
        await until(lambda: len(pool.history) > 3)
        history = models.DescribeSpotPriceHistoryRequest(region_id=REGION, network_type="vpc", instance_type=TYPE)
        body = (await client.describe_spot_price_history_async(history)).body
        told = [each.spot_price for each in body.spot_prices.spot_price_type]
        assert len(set(told)) > 3
        assert told == [pytest.approx(fen / 100) for _, fen in list(pool.history)[: len(told)]]
        assert {each.origin_price for each in body.spot_prices.spot_price_type} == {6.523}


async def test_an_account_without_balance_is_told_so() -> None:
    async with served(balance_fen=100.0) as cloud:
        with pytest.raises(ClientException) as refused:
            await run(ecs(cloud), "t")
        assert refused.value.code == "InvalidAccountStatus.NotEnoughBalance"
