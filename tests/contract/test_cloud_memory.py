"""What the cloud in memory has beside what every cloud does: offers with a stock, quotas, spot machines that go."""

import msgspec
import pytest

from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.fleet import MemoryCloud
from springtide.errors import CloudOutOfStock, CloudQuotaExceeded
from springtide.model import Market, NodeOrder, NodeState, Offer, Quota, StockLevel, Zone, ZoneKind

ZONE = Zone("cloud-h", ZoneKind.CLOUD, nodes_max=100, cores_per_node=8, lead_ms=10_000, price_fen_per_node_h=360)
BIG = Offer("cloud-h", "big", Market.ON_DEMAND, 32, 65_536, 700.0, stock=3, boot_ms=(20_000, 40_000))
SPOT = Offer("cloud-h", "big", Market.SPOT, 32, 65_536, 100.0)
ORDER = NodeOrder("cloud-h", 2, "t1", "big")


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def cloud(clock: VirtualClock) -> MemoryCloud:
    return MemoryCloud(
        clock, (ZONE,), (BIG, SPOT), (Quota(Market.SPOT, 64), Quota(Market.ON_DEMAND, 96, zone="cloud-h"))
    )


async def test_a_type_is_rented_as_it_is_offered(cloud: MemoryCloud, clock: VirtualClock) -> None:
    nodes = await cloud.rent(ORDER)
    assert {(node.instance_type, node.cores, node.price_fen_per_h) for node in nodes} == {("big", 32, 700.0)}
    await clock.advance(19)
    assert {node.state for node in await cloud.nodes()} == {NodeState.BOOTING}
    await clock.advance(2)
    assert {node.state for node in await cloud.nodes()} == {NodeState.READY}
    await clock.advance(3579)
    assert await cloud.cost_fen(clock.now_ms()) == pytest.approx(1_400)


async def test_stock_ends_and_offers_say_so_without_a_number(cloud: MemoryCloud) -> None:
    assert {offer.stock for offer in await cloud.offers()} == {None}
    assert len(await cloud.rent(msgspec.structs.replace(ORDER, count=5))) == 3
    levels = {offer.key: offer.level for offer in await cloud.offers()}
    assert levels == {BIG.key: StockLevel.NONE, SPOT.key: StockLevel.PLENTY}
    with pytest.raises((CloudOutOfStock, CloudQuotaExceeded)):
        await cloud.rent(msgspec.structs.replace(ORDER, client_token="t2"))


async def test_quotas_count_cores_of_their_market(cloud: MemoryCloud) -> None:
    spot = NodeOrder("cloud-h", 5, "t1", "big", Market.SPOT)
    assert len(await cloud.rent(spot)) == 2
    assert [quota.used_cores for quota in await cloud.quotas()] == [64, 0]
    with pytest.raises(CloudQuotaExceeded):
        await cloud.rent(msgspec.structs.replace(spot, client_token="t2"))
    assert len(await cloud.rent(msgspec.structs.replace(ORDER, client_token="t3"))) == 2
    assert [quota.used_cores for quota in await cloud.quotas()] == [64, 64]


async def test_a_reclaim_is_announced_and_then_happens(cloud: MemoryCloud, clock: VirtualClock) -> None:
    (node,) = await cloud.rent(NodeOrder("cloud-h", 1, "t1", "big", Market.SPOT))
    gone_ms = clock.now_ms() + 300_000
    cloud.announce_reclaim([node.node_id, "nobody"], gone_ms)
    assert [each.reclaim_ms for each in await cloud.nodes()] == [gone_ms]
    cloud.lose([node.node_id])
    assert await cloud.nodes() == []
