"""The Alibaba Cloud driver, through the official SDK, against the served cloud: batches, limits, faults, ECI."""

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from springtide.drivers.alibaba import AlibabaCloud
from springtide.drivers.alibaba_settings import AccessKeys
from springtide.drivers.api_rates import Rate
from springtide.errors import (
    CloudOutOfStock,
    CloudQuotaExceeded,
    CloudRefused,
    CloudThrottled,
    CloudUnavailable,
)
from springtide.model import Market, NodeOrder, NodeState, Offer, Quota, StockLevel
from springtide.twin.cloud_api import ServedCloud
from springtide.twin.market_settings import ApiLimits, MarketSettings
from tests.contract.clouds import KernelClock, served, settings_for

ZONE, OTHER = "cn-beijing-h", "cn-beijing-k"
TYPE, GROUP = "ecs.c7.8xlarge", "eci-8c16g"
BOOT_MS = (10_000, 12_000)


def offer(zone: str, name: str, market: Market, stock: int = 400, price: float = 652.0) -> Offer:
    cores, memory_mb = (8, 16_384) if market is Market.ECI else (32, 65_536)
    return Offer(zone, name, market, cores, memory_mb, price, stock=stock, boot_ms=BOOT_MS)


OFFERS = (
    offer(ZONE, TYPE, Market.ON_DEMAND),
    offer(ZONE, TYPE, Market.SPOT, price=160.0),
    offer(ZONE, GROUP, Market.ECI, price=176.48),
    offer(OTHER, TYPE, Market.ON_DEMAND),
)


class World:
    """A served cloud, and drivers on it."""

    def __init__(self, cloud: ServedCloud, clock: KernelClock, driver: AlibabaCloud) -> None:
        self.cloud, self.clock, self.driver = cloud, clock, driver
        self.market = cloud.market
        self.more: list[AlibabaCloud] = []

    @property
    def served_calls(self) -> dict[str, int]:
        """Calls that arrived, by API."""
        return dict(self.market.meter.calls)

    def another(self, **changes: object) -> AlibabaCloud:
        """The driver of another process, with other settings."""
        settings = settings_for(OFFERS, self.cloud.endpoint, self.market.settings.region)
        keys = AccessKeys(self.cloud.keys.access_key_id, self.cloud.keys.access_key_secret)
        self.more.append(AlibabaCloud(msgspec.structs.replace(settings, **changes), self.clock, keys))
        return self.more[-1]

    def pass_s(self, seconds: float) -> None:
        self.market.kernel.run(self.market.kernel.now_ms + round(seconds * 1000))


async def serve(settings: MarketSettings) -> AsyncGenerator[World, None]:
    async with served(OFFERS, settings) as (cloud, clock, reopen):
        made = World(cloud, clock, reopen())
        yield made
        for driver in made.more:
            await driver.close()


@pytest_asyncio.fixture
async def world() -> AsyncGenerator[World, None]:
    async for made in serve(MarketSettings(refill_share_per_h=0.0)):
        yield made


@pytest_asyncio.fixture
async def narrow() -> AsyncGenerator[World, None]:
    """A cloud that takes three calls of RunInstances a minute, has few cores left, and few groups a second."""
    limits = ApiLimits(calls_per_min={"RunInstances": 3}, eci_burst=5, eci_per_s=5.0)
    quotas = (Quota(Market.ON_DEMAND, 320), Quota(Market.SPOT, 64))
    async for made in serve(MarketSettings(refill_share_per_h=0.0, limits=limits, quotas=quotas)):
        yield made


def order(count: int, token: str, market: Market = Market.ON_DEMAND, **more: object) -> NodeOrder:
    name = GROUP if market is Market.ECI else TYPE
    return msgspec.structs.replace(NodeOrder(ZONE, count, token, name, market), **more)


async def test_many_machines_take_as_few_calls_as_there_can_be(world: World) -> None:
    nodes = await world.driver.rent(order(250, "t1"))
    assert len({node.node_id for node in nodes}) == 250
    assert world.served_calls["RunInstances"] == 3
    world.pass_s(20)
    seen = await world.driver.nodes()
    assert {node.state for node in seen} == {NodeState.READY}
    assert {node.address for node in seen} != {""}
    assert world.served_calls["DescribeInstances"] == 3
    await world.driver.nodes()
    assert world.served_calls["DescribeInstances"] == 3, "nothing is asked again within a poll's time"
    await world.driver.release([node.node_id for node in nodes])
    assert world.served_calls["DeleteInstances"] == 3
    assert await world.driver.nodes() == []
    assert not world.market.live


async def test_what_was_bought_carries_its_tags_and_its_end(world: World) -> None:
    due_ms = world.clock.now_ms() // 60_000 * 60_000 + 7_200_000
    (node,) = await world.driver.rent(order(1, "t1", release_at_ms=due_ms))
    assert world.cloud.account.machines[node.node_id].tags == {
        "springtide": "contract",
        "springtide-order": "t1",
        "springtide-zone": ZONE,
        "springtide-type": TYPE,
    }
    assert world.market.live[node.node_id].release_at_ms == due_ms


async def test_a_partial_fill_ends_the_order(world: World) -> None:
    world.market.set_stock(f"{ZONE}/{TYPE}/on_demand", 130)
    assert len(await world.driver.rent(order(400, "t1"))) == 130
    assert world.served_calls["RunInstances"] <= 5
    with pytest.raises(CloudOutOfStock):
        await world.driver.rent(order(400, "t2"))
    assert world.served_calls["RunInstances"] <= 6, "one call finds out"
    assert len(world.market.live) == 130


async def test_fewer_than_the_least_over_batches_are_given_back(world: World) -> None:
    world.market.set_stock(f"{ZONE}/{TYPE}/on_demand", 130)
    world.market.slow_boots(0.01, world.clock.now_ms() + 60_000)
    with pytest.raises(CloudOutOfStock, match="at least 300"):
        await world.driver.rent(order(400, "t1", count_min=300))
    await asyncio.sleep(0.2)
    await world.driver.release([node.node_id for node in await world.driver.nodes()])
    assert not world.market.live


@pytest.mark.parametrize("bought", [0, 1, 101, 201])
async def test_an_order_that_was_cut_off_is_finished_by_another_process_without_a_double(
    world: World, bought: int
) -> None:
    wanted = order(300, "t1")
    first = asyncio.create_task(world.driver.rent(wanted))
    while len(world.market.live) < bought:
        await asyncio.sleep(0.001)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    nodes = await world.another().rent(wanted)
    assert len({node.node_id for node in nodes}) == 300
    assert len(world.market.live) == 300


async def test_a_lost_answer_is_asked_for_again(world: World) -> None:
    impatient = world.another(call_s=0.001)
    with pytest.raises(CloudUnavailable, match="no answer"):
        await impatient.rent(order(100, "t1"))
    await asyncio.sleep(0.3)
    assert len(await world.another().rent(order(100, "t1"))) == 100
    assert len(world.market.live) == 100


@pytest.mark.parametrize(
    ("market", "create", "delete"),
    [
        (Market.ON_DEMAND, "RunInstances", "DeleteInstances"),
        (Market.ECI, "CreateContainerGroup", "DeleteContainerGroup"),
    ],
    ids=["ecs", "eci"],
)
async def test_work_whose_answer_was_lost_is_done_once(world: World, market: Market, create: str, delete: str) -> None:
    wanted = order(3, "t1", market, release_at_ms=world.clock.now_ms() + 7_200_000)
    world.cloud.api.lose_answers(create, 2)
    nodes = await world.driver.rent(wanted)
    assert len({node.node_id for node in nodes}) == len(world.market.live) == 3
    world.pass_s(20)
    world.cloud.api.lose_answers(delete, 1)
    await world.driver.release([node.node_id for node in nodes])
    assert not world.market.live
    assert await world.driver.nodes() == []


async def test_a_cloud_that_does_not_answer_is_tried_a_few_times_and_then_again_by_the_caller(world: World) -> None:
    world.cloud.api.lose_answers("RunInstances", 4)
    with pytest.raises(CloudUnavailable):
        await world.driver.rent(order(200, "t1"))
    assert world.served_calls["RunInstances"] == 3
    assert len(await world.driver.rent(order(200, "t1"))) == 200
    assert len(world.market.live) == 200


async def test_a_throttled_api_rests_and_its_neighbours_go_on(world: World) -> None:
    (node,) = await world.driver.rent(order(1, "t0"))
    world.pass_s(20)
    world.market.throttle("RunInstances", world.clock.now_ms() + 20_000)
    arrived = world.served_calls["RunInstances"]
    with pytest.raises(CloudThrottled) as throttled:
        await world.driver.rent(order(400, "t1"))
    assert 0 < throttled.value.retry_after_s <= 60
    for _ in range(5):
        with pytest.raises(CloudThrottled):
            await world.driver.rent(order(400, "t1"))
    assert world.served_calls["RunInstances"] == arrived + 1, "one call, and no storm"
    assert world.driver.calls.throttled == {"RunInstances": 1}
    assert [each.state for each in await world.driver.nodes()] == [NodeState.READY]
    await world.driver.keep_until([node.node_id], 0)
    await world.driver.release([node.node_id])
    world.pass_s(throttled.value.retry_after_s)
    assert len(await world.driver.rent(order(400, "t1"))) == 400


async def test_an_order_goes_on_where_it_was_throttled(narrow: World) -> None:
    small = [order(2, f"t{number}") for number in range(4)]
    for each in small[:3]:
        assert len(await narrow.driver.rent(each)) == 2
    with pytest.raises(CloudThrottled) as throttled:
        await narrow.driver.rent(small[3])
    narrow.pass_s(throttled.value.retry_after_s)
    assert len(await narrow.driver.rent(small[3])) == 2
    assert len(narrow.market.live) == 8


async def test_rates_of_ones_own_keep_below_the_clouds(narrow: World) -> None:
    careful = narrow.another(rates={"RunInstances": Rate(burst=2, per_s=0.01)})
    for number in range(2):
        await careful.rent(order(1, f"t{number}"))
    with pytest.raises(CloudThrottled):
        await careful.rent(order(1, "t2"))
    assert narrow.market.meter.throttled == {}, "it was not even sent"


async def test_quotas_are_told_and_kept(narrow: World) -> None:
    await narrow.driver.rent(order(9, "t1"))
    assert set(await narrow.driver.quotas()) == {
        Quota(Market.ON_DEMAND, 320, 288),
        Quota(Market.SPOT, 64, 0),
    }
    with pytest.raises(CloudQuotaExceeded):
        await narrow.driver.rent(order(2, "t2"))
    with pytest.raises(CloudQuotaExceeded):
        await narrow.driver.rent(order(3, "t3", Market.SPOT))


async def test_offers_have_prices_and_levels(world: World) -> None:
    offers = {each.key: each for each in await world.driver.offers()}
    only_eci = set(offers) - {each.key for each in OFFERS}
    assert only_eci == {f"{OTHER}/{GROUP}/eci"}, "of container groups no zone's stock is told"
    assert set(offers) > {each.key for each in OFFERS}
    on_demand, spot = offers[f"{ZONE}/{TYPE}/on_demand"], offers[f"{ZONE}/{TYPE}/spot"]
    assert on_demand.price_fen_per_h == pytest.approx(652, rel=0.001)
    assert 0 < spot.price_fen_per_h < on_demand.price_fen_per_h
    assert offers[f"{ZONE}/{GROUP}/eci"].price_fen_per_h == pytest.approx(8 * 17.64 + 16 * 2.21)
    assert {each.stock for each in offers.values()} == {None}
    assert on_demand.level is StockLevel.PLENTY
    asked = sum(world.served_calls.values())
    await world.driver.offers()
    assert sum(world.served_calls.values()) == asked, "answers are believed for a while"
    world.market.set_stock(f"{ZONE}/{TYPE}/on_demand", 0)
    world.pass_s(20)
    again = {each.key: each for each in await world.driver.offers()}
    assert again[f"{ZONE}/{TYPE}/on_demand"].level in {StockLevel.NONE, StockLevel.GONE}


async def test_a_spot_machine_has_its_price_and_tells_when_it_will_be_taken(world: World) -> None:
    nodes = await world.driver.rent(order(3, "t1", Market.SPOT))
    assert {node.market for node in nodes} == {Market.SPOT}
    assert all(0 < node.price_fen_per_h < 652 for node in nodes)
    with pytest.raises(CloudOutOfStock):
        await world.driver.rent(order(1, "t2", Market.SPOT, price_limit_fen_per_h=1.0))
    world.pass_s(60)
    assert all(not node.reclaim_ms for node in await world.driver.nodes())
    world.market.reclaim(1.0, ZONE)
    world.pass_s(31)
    told = await world.driver.nodes()
    assert {round((node.reclaim_ms - world.clock.now_ms()) / 60_000) for node in told} == {5}
    world.pass_s(320)
    assert await world.driver.nodes() == []


async def test_one_machine_that_is_gone_does_not_keep_the_others(world: World) -> None:
    nodes = await world.driver.rent(order(5, "t1"))
    world.pass_s(20)
    world.market.end([nodes[2].node_id])
    await world.driver.release([node.node_id for node in nodes])
    assert not world.market.live


async def test_a_machine_that_is_being_created_is_released_when_the_call_is_repeated(world: World) -> None:
    world.market.slow_boots(100, world.clock.now_ms() + 60_000)
    (node,) = await world.driver.rent(order(1, "t1"))
    with pytest.raises(CloudUnavailable, match="Initializing"):
        await world.driver.release([node.node_id])
    world.pass_s(2_000)
    await world.driver.release([node.node_id])
    assert not world.market.live


async def test_machines_of_others_are_not_seen_and_not_touched(world: World) -> None:
    others = world.another(installation="others")
    theirs = await others.rent(order(2, "t1"))
    world.pass_s(20)
    assert await world.driver.nodes() == []
    await world.driver.release([node.node_id for node in theirs])
    await world.driver.keep_until([node.node_id for node in theirs], world.clock.now_ms() + 7_200_000)
    assert {node.node_id for node in await others.nodes()} == {node.node_id for node in theirs}
    assert {node.release_at_ms for node in await others.nodes()} == {0}


async def test_container_groups_are_nodes_too(world: World) -> None:
    due_ms = world.clock.now_ms() + 7_200_000
    wanted = order(30, "t1", Market.ECI, release_at_ms=due_ms)
    groups = await world.driver.rent(wanted)
    assert len({node.node_id for node in groups}) == 30
    world.pass_s(30)
    seen = await world.driver.nodes()
    assert {node.state for node in seen} == {NodeState.READY}
    assert {(node.cores, node.memory_mb, node.instance_type) for node in seen} == {(8, 16_384, GROUP)}
    again = world.another()
    assert {node.node_id for node in await again.rent(wanted)} == {node.node_id for node in groups}, "at a later moment"
    assert len(world.market.live) == 30
    assert {node.client_token for node in await again.nodes()} == {"t1"}
    with pytest.raises(CloudRefused, match="cannot be moved"):
        await world.driver.keep_until([groups[0].node_id], due_ms + 3_600_000)
    await world.driver.release([node.node_id for node in groups[:29]])
    assert {node.node_id for node in await world.driver.nodes()} == {groups[29].node_id}
    world.pass_s(7_300)
    assert await world.driver.nodes() == []
    assert await again.nodes() == []


async def test_container_groups_stop_at_the_clouds_rate_and_go_on(narrow: World) -> None:
    eager = narrow.another(rates={"CreateContainerGroup": Rate(1_000, 1_000)})
    wanted = order(12, "t1", Market.ECI)
    waits: list[float] = []
    while len(waits) < 5:
        try:
            await eager.rent(wanted)
            break
        except CloudThrottled as throttled:
            waits.append(throttled.retry_after_s)
            narrow.pass_s(throttled.retry_after_s)
    assert len(await eager.nodes()) == len(narrow.market.live) == 12
    assert 1 <= len(waits) <= 4
    assert max(waits) <= 2, "its bucket fills by the second"


async def test_a_dry_run_that_passes_is_a_success(world: World) -> None:
    query = {
        "Amount": 1,
        "InstanceType": TYPE,
        "ImageId": "debian_12_x64",
        "SecurityGroupId": "sg-contract",
        "VSwitchId": f"vsw-{ZONE}",
        "DryRun": True,
    }
    assert await world.driver.calls.ecs("RunInstances", query) == {}
    assert not world.market.live


async def test_secrets_are_in_no_error_and_no_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    settings = settings_for(OFFERS, world.cloud.endpoint, world.market.settings.region)
    key_id = world.cloud.keys.access_key_id
    wrong = AlibabaCloud(settings, world.clock, AccessKeys(key_id, "a-wrong-secret"))
    world.more.append(wrong)
    with pytest.raises(CloudRefused) as refused:
        await wrong.nodes()
    shown = [str(refused.value), repr(refused.value), repr(wrong.__dict__), repr(wrong.calls.__dict__), caplog.text]
    assert refused.value.__cause__ is None
    for text in shown:
        assert "a-wrong-secret" not in text
        assert key_id not in text
    assert "check the access key" in str(refused.value)


async def test_nobody_there_is_unavailable(world: World) -> None:
    nowhere = world.another(ecs_endpoint="127.0.0.1:9", call_s=0.5)
    with pytest.raises(CloudUnavailable):
        await nowhere.nodes()


async def test_a_zone_that_is_lost_sells_nothing(world: World) -> None:
    world.market.lose_zone(ZONE, world.clock.now_ms() + 600_000)
    with pytest.raises(CloudOutOfStock):
        await world.driver.rent(order(1, "t1"))
    assert len(await world.driver.rent(NodeOrder(OTHER, 1, "t2", TYPE))) == 1


async def test_one_order_sent_twice_at_once_is_bought_once(world: World) -> None:
    twice = await asyncio.gather(*(world.driver.rent(order(150, "t1")) for _ in range(2)))
    assert {node.node_id for node in twice[0]} == {node.node_id for node in twice[1]}
    assert len(world.market.live) == 150


FROM_ENVIRONMENT = """
import asyncio, sys
from springtide.drivers.alibaba import AlibabaCloud
from springtide.drivers.alibaba_settings import AlibabaSettings
from springtide.drivers.system import SystemClock

async def main():
    settings = AlibabaSettings("cn-beijing", "shop", {}, (), ecs_endpoint=sys.argv[1], protocol="http")
    cloud = AlibabaCloud(settings, SystemClock())
    try:
        print(await cloud.nodes())
    except Exception as error:
        print(type(error).__name__, error)
    await cloud.close()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("keys", "answer"),
    [("there", "[]"), ("missing", "CloudRefused ListTagResources: no access key was found; set ALIBABA_CLOUD_ACCESS")],
    ids=["there", "missing"],
)
async def test_keys_come_from_the_sdks_chain(world: World, keys: str, answer: str, tmp_path: Path) -> None:
    # The SDK reads the environment when it is loaded, so this is a process of its own; it must not ask a machine's
    # metadata service for a role.
    environment = {"HOME": str(tmp_path), "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true"}
    if keys == "there":
        environment["ALIBABA_CLOUD_ACCESS_KEY_ID"] = world.cloud.keys.access_key_id
        environment["ALIBABA_CLOUD_ACCESS_KEY_SECRET"] = world.cloud.keys.access_key_secret
    command = [sys.executable, "-c", FROM_ENVIRONMENT, world.cloud.endpoint]
    child = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
    output, _ = await child.communicate()
    assert output.decode().startswith(answer)
