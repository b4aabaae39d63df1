"""What every cloud does: in memory, on this machine, Alibaba Cloud's API served here, and (on demand) the real one."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from springtide.drivers.alibaba import AlibabaCloud
from springtide.drivers.system import SystemClock
from springtide.errors import CloudOutOfStock, CloudQuotaExceeded, CloudRefused
from springtide.model import Market, Node, NodeOrder, NodeState, StockLevel, Zone, ZoneKind
from tests.contract.clouds import IDC, Case, H, S, case_of, real_settings

BOOT_MIN, BOOT_MAX = 0.4, 2.0
"""A machine boots within these shares of its zone's lead time."""

NO_MORE = (CloudQuotaExceeded, CloudOutOfStock)
"""What ends a zone of a few machines: here a quota, there its stock."""


def order(zone: Zone, count: int, token: str, **more: Any) -> NodeOrder:
    return NodeOrder(zone.name, count, token, **more)


def ids(nodes: list[Node]) -> set[str]:
    return {node.node_id for node in nodes}


@pytest_asyncio.fixture(params=["local", "memory", "served"])
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Case, None]:
    async with case_of(request.param, tmp_path) as made:
        yield made


async def test_a_node_costs_from_the_start_and_runs_after_the_lead_time(case: Case) -> None:
    rented_ms = case.clock.now_ms()
    (node,) = await case.cloud.rent(order(H, 1, "t1"))
    assert (node.zone, node.cores, node.client_token) == ("cloud-h", 8, "t1")
    assert node.state is NodeState.BOOTING
    assert rented_ms <= node.rented_ms == node.since_ms <= case.clock.now_ms()
    assert (node.market, node.price_fen_per_h, node.release_at_ms) == (Market.ON_DEMAND, 360, 0)
    await case.advance(H.lead_ms / 1000 * BOOT_MIN)
    assert [each.state for each in await case.cloud.nodes()] == [NodeState.BOOTING]
    await case.advance(H.lead_ms / 1000 * (BOOT_MAX - BOOT_MIN))
    (ready,) = await case.cloud.nodes()
    assert (ready.node_id, ready.state) == (node.node_id, NodeState.READY)
    assert rented_ms < ready.since_ms <= case.clock.now_ms()


async def test_the_same_token_buys_once(case: Case) -> None:
    first = await case.cloud.rent(order(H, 2, "t1"))
    again = await case.cloud.rent(order(H, 2, "t1"))
    other = await case.cloud.rent(order(H, 2, "t2"))
    assert first == again
    assert len(ids(first)) == len(ids(other)) == 2
    assert ids(await case.cloud.nodes()) == ids(first) | ids(other)
    assert not ids(first) & ids(other)


async def test_another_process_that_repeats_an_order_gets_the_same_nodes(case: Case) -> None:
    first = await case.cloud.rent(order(H, 3, "t1"))
    await case.advance(30)
    await case.cloud.release([first[0].node_id])
    after = case.reopen()
    assert ids(await after.rent(order(H, 3, "t1"))) == ids(first[1:])
    assert ids(await after.nodes()) == ids(first[1:])
    assert {node.client_token for node in await after.nodes()} == {"t1"}


async def test_another_process_sees_and_releases_what_was_rented(case: Case) -> None:
    nodes = [*await case.cloud.rent(order(H, 2, "t1")), *await case.cloud.rent(order(S, 1, "t2"))]
    await case.advance(60)
    after = case.reopen()
    seen = {node.node_id: node for node in await after.nodes()}
    for node in nodes:
        found = seen[node.node_id]
        assert (found.zone, found.cores, found.client_token) == (node.zone, node.cores, node.client_token)
        assert found.state is NodeState.READY
    third = case.reopen()
    await third.release([nodes[0].node_id, nodes[2].node_id])
    assert ids(await third.nodes()) == {nodes[1].node_id}


async def test_a_repeated_purchase_does_not_bring_released_nodes_back(case: Case) -> None:
    first, second = await case.cloud.rent(order(H, 2, "t1"))
    await case.advance(30)
    await case.cloud.release([first.node_id])
    assert ids(await case.cloud.rent(order(H, 2, "t1"))) == {second.node_id}


async def test_fewer_than_asked_is_a_success_and_none_is_an_error(case: Case) -> None:
    assert len(await case.cloud.rent(order(S, 2, "t1"))) == 2
    assert len(await case.cloud.rent(order(S, 2, "t2"))) == 1
    with pytest.raises(NO_MORE, match="cloud-s"):
        await case.cloud.rent(order(S, 1, "t3"))
    assert len(await case.cloud.rent(order(H, 1, "t4"))) == 1
    assert len(await case.cloud.nodes()) == 4


async def test_a_refused_token_may_be_used_again(case: Case) -> None:
    node, *_ = await case.cloud.rent(order(S, 3, "t1"))
    await case.advance(60)
    with pytest.raises(NO_MORE):
        await case.cloud.rent(order(S, 1, "t2"))
    await case.cloud.release([node.node_id])
    (later,) = await case.cloud.rent(order(S, 1, "t2"))
    assert later.node_id != node.node_id


async def test_a_released_node_is_gone_and_unknown_ones_are_ignored(case: Case) -> None:
    first, second = await case.cloud.rent(order(H, 2, "t1"))
    await case.advance(30)
    await case.cloud.release([first.node_id])
    await case.cloud.release([first.node_id])
    await case.cloud.release(["nobody", "i-nobody"])
    assert ids(await case.cloud.nodes()) == {second.node_id}


@pytest.mark.parametrize("zone", [IDC, Zone("cloud-x", ZoneKind.CLOUD, 1, 1)], ids=["idc", "unknown"])
async def test_a_zone_that_is_not_for_rent_is_refused(case: Case, zone: Zone) -> None:
    with pytest.raises(CloudRefused, match=zone.name):
        await case.cloud.rent(order(zone, 1, "t1"))


async def test_cost_grows_by_zone_until_the_release(case: Case) -> None:
    assert await case.cloud.cost_fen(case.clock.now_ms()) == 0
    node, _ = await case.cloud.rent(order(H, 2, "t1"))
    await case.cloud.rent(order(S, 1, "t2"))
    await case.advance(1800)
    assert await case.cloud.cost_fen(case.clock.now_ms()) == pytest.approx(2 * 180 + 360, abs=2)
    await case.cloud.release([node.node_id])
    await case.advance(1800)
    assert await case.cloud.cost_fen(case.clock.now_ms()) == pytest.approx(180 + 360 + 720, abs=2)


@pytest.mark.parametrize(
    "other", [{"zone": "cloud-s"}, {"count": 3}, {"count_min": 2}, {"release_at_ms": 2_000_000_000_000}], ids=str
)
async def test_a_token_of_another_purchase_is_refused(case: Case, other: dict[str, Any]) -> None:
    first = order(H, 2, "t1")
    await case.cloud.rent(first)
    with pytest.raises(CloudRefused, match="t1"):
        await case.cloud.rent(msgspec.structs.replace(first, **other))
    with pytest.raises(CloudRefused):
        await case.reopen().rent(msgspec.structs.replace(first, **other))
    assert len(await case.cloud.nodes()) == 2


async def test_fewer_than_the_least_are_not_rented(case: Case) -> None:
    await case.cloud.rent(order(S, 2, "t1"))
    with pytest.raises(CloudOutOfStock, match="cloud-s"):
        await case.cloud.rent(order(S, 3, "t2", count_min=2))
    assert len(await case.cloud.nodes()) == 2


async def test_a_node_that_is_due_is_released_by_the_cloud(case: Case) -> None:
    due_ms = case.minute_ms(3600)
    first = order(H, 1, "t1", release_at_ms=due_ms)
    (due,) = await case.cloud.rent(first)
    (kept,) = await case.cloud.rent(order(H, 1, "t2"))
    assert due.release_at_ms == due_ms
    lasts_s = (due_ms - case.clock.now_ms()) / 1000
    await case.advance(lasts_s - 1)
    assert len(await case.cloud.nodes()) == 2
    await case.advance(2)
    assert ids(await case.cloud.nodes()) == {kept.node_id}
    assert await case.cloud.rent(first) == []
    await case.advance(3600)
    assert ids(await case.cloud.nodes()) == {kept.node_id}
    expected = 360 * (lasts_s + lasts_s + 1 + 3600) / 3600
    assert await case.cloud.cost_fen(case.clock.now_ms()) == pytest.approx(expected, abs=2)


async def test_the_end_can_be_moved(case: Case) -> None:
    due_ms = case.minute_ms(3700)
    nodes = await case.cloud.rent(order(H, 3, "t1", release_at_ms=due_ms))
    longer, shorter, endless = (node.node_id for node in nodes)
    await case.cloud.keep_until([longer, "nobody"], due_ms + 3_600_000)
    await case.cloud.keep_until([shorter], due_ms - 1_800_000)
    await case.cloud.keep_until([endless], 0)
    expected = {longer: due_ms + 3_600_000, shorter: due_ms - 1_800_000, endless: 0}
    assert {node.node_id: node.release_at_ms for node in await case.cloud.nodes()} == expected
    assert {node.node_id: node.release_at_ms for node in await case.reopen().nodes()} == expected
    await case.advance((due_ms - case.clock.now_ms()) / 1000 - 1_799)
    assert ids(await case.cloud.nodes()) == {longer, endless}
    await case.advance(7200)
    assert ids(await case.cloud.nodes()) == {endless}


async def test_an_end_in_the_past_is_refused(case: Case) -> None:
    (node,) = await case.cloud.rent(order(H, 1, "t1"))
    past_ms = case.clock.now_ms() - 60_000
    with pytest.raises(CloudRefused):
        await case.cloud.rent(order(H, 1, "t2", release_at_ms=past_ms))
    with pytest.raises(CloudRefused):
        await case.cloud.keep_until([node.node_id], past_ms)
    assert [each.release_at_ms for each in await case.cloud.nodes()] == [0]


async def test_a_type_that_is_not_for_rent_is_refused(case: Case) -> None:
    with pytest.raises(CloudRefused, match=r"cloud-h/ecs\.none/on_demand"):
        await case.cloud.rent(order(H, 1, "t1", instance_type="ecs.none"))


@pytest.mark.parametrize(("count", "least"), [(0, 0), (2, 3), (1, 0)], ids=["none", "more-than-all", "at-least-none"])
async def test_an_order_that_makes_no_sense_is_refused(case: Case, count: int, least: int) -> None:
    with pytest.raises(CloudRefused):
        await case.cloud.rent(order(H, count, "t1", count_min=least))
    assert await case.cloud.nodes() == []


async def test_many_are_released_in_one_call(case: Case) -> None:
    nodes = [*await case.cloud.rent(order(H, 5, "t1")), *await case.cloud.rent(order(S, 3, "t2"))]
    await case.advance(60)
    await case.cloud.release([node.node_id for node in nodes[:-1]])
    assert ids(await case.cloud.nodes()) == {nodes[-1].node_id}
    await case.cloud.close()


async def test_offers_name_what_an_order_can_name(case: Case) -> None:
    offers = await case.cloud.offers()
    for offer in offers:
        assert offer.price_fen_per_h > 0
        assert offer.cores > 0
        assert offer.level in set(StockLevel)
    if offers:
        offer = offers[0]
        wanted = NodeOrder(offer.zone, 1, "t1", instance_type=offer.instance_type, market=offer.market)
        (node,) = await case.cloud.rent(wanted)
        assert (node.instance_type, node.price_fen_per_h) == (offer.instance_type, offer.price_fen_per_h)
    for quota in await case.cloud.quotas():
        assert quota.used_cores <= quota.limit_cores


@pytest.mark.timeout(1200)
async def test_the_real_cloud_rents_one_machine_and_takes_it_back() -> None:
    """Costs a few fen. The cloud takes the machine back by itself after 40 minutes, whatever happens here."""
    settings, clock = real_settings(), SystemClock()
    cloud = AlibabaCloud(settings, clock)
    try:
        on_demand = [each for each in await cloud.offers() if each.market is Market.ON_DEMAND]
        offer = min(on_demand, key=lambda each: each.price_fen_per_h)
        now_ms = clock.now_ms()
        wanted = NodeOrder(offer.zone, 1, f"contract-{now_ms}", offer.instance_type, release_at_ms=now_ms + 40 * 60_000)
        (node,) = await cloud.rent(wanted)
        assert ids(await cloud.rent(wanted)) == {node.node_id}
        while next(each for each in await cloud.nodes() if each.node_id == node.node_id).state is NodeState.BOOTING:
            await clock.sleep(settings.poll_s)
        await cloud.release([node.node_id])
        assert node.node_id not in ids(await cloud.nodes())
    finally:
        await cloud.close()
