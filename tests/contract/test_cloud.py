"""What every cloud does, and what the one on this machine does beside."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from springtide.drivers.localcloud import BOOT_JITTER, LocalCloud
from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.fleet import MemoryCloud
from springtide.errors import CloudError, CloudQuotaExceeded
from springtide.model import NodeState, Zone, ZoneKind

H = Zone("cloud-h", ZoneKind.CLOUD, nodes_max=5, cores_per_node=8, lead_ms=10_000, price_fen_per_node_h=360)
S = Zone("cloud-s", ZoneKind.CLOUD, nodes_max=3, cores_per_node=4, lead_ms=20_000, price_fen_per_node_h=720)
IDC = Zone("idc-a", ZoneKind.IDC, nodes_max=9, cores_per_node=8)
ZONES = (IDC, H, S)

AnyCloud = LocalCloud | MemoryCloud


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def reopen(tmp_path: Path, clock: VirtualClock) -> Callable[[], LocalCloud]:
    """The local cloud as a loop finds it when it starts."""
    return lambda: LocalCloud(tmp_path / "cloud.json", clock, random.Random(7), ZONES)


@pytest.fixture(params=["local", "memory"])
def cloud(request: pytest.FixtureRequest, clock: VirtualClock, reopen: Callable[[], LocalCloud]) -> AnyCloud:
    return reopen() if request.param == "local" else MemoryCloud(clock, ZONES)


async def test_a_node_costs_from_the_start_and_runs_after_the_lead_time(cloud: AnyCloud, clock: VirtualClock) -> None:
    rented_ms = clock.now_ms()
    (node,) = await cloud.rent(H, 1, "t1")
    assert (node.zone, node.cores, node.client_token) == ("cloud-h", 8, "t1")
    assert (node.state, node.since_ms) == (NodeState.BOOTING, rented_ms)
    await clock.advance(H.lead_ms / 1000 * (1 - BOOT_JITTER) - 0.1)
    assert [each.state for each in await cloud.nodes()] == [NodeState.BOOTING]
    await clock.advance(H.lead_ms / 1000 * 2 * BOOT_JITTER + 0.2)
    (ready,) = await cloud.nodes()
    assert (ready.node_id, ready.state) == (node.node_id, NodeState.READY)
    assert rented_ms < ready.since_ms <= clock.now_ms()


async def test_the_same_token_buys_once(cloud: AnyCloud) -> None:
    first = await cloud.rent(H, 2, "t1")
    again = await cloud.rent(H, 2, "t1")
    other = await cloud.rent(H, 2, "t2")
    assert first == again
    names = [node.node_id for node in await cloud.nodes()]
    assert len(names) == len(set(names)) == 4
    assert {node.node_id for node in (*first, *other)} == set(names)
    assert cloud.rented_total == 4


async def test_a_repeated_purchase_does_not_bring_released_nodes_back(cloud: AnyCloud) -> None:
    first, second = await cloud.rent(H, 2, "t1")
    await cloud.release(first.node_id)
    assert await cloud.rent(H, 2, "t1") == [second]


async def test_fewer_than_asked_is_a_success_and_none_is_an_error(cloud: AnyCloud) -> None:
    assert len(await cloud.rent(S, 2, "t1")) == 2
    assert len(await cloud.rent(S, 2, "t2")) == 1
    with pytest.raises(CloudQuotaExceeded, match="cloud-s"):
        await cloud.rent(S, 1, "t3")
    assert len(await cloud.rent(H, 1, "t4")) == 1
    assert len(await cloud.nodes()) == 4


async def test_a_refused_token_may_be_used_again(cloud: AnyCloud) -> None:
    node, *_ = await cloud.rent(S, 3, "t1")
    with pytest.raises(CloudQuotaExceeded):
        await cloud.rent(S, 1, "t2")
    await cloud.release(node.node_id)
    (later,) = await cloud.rent(S, 1, "t2")
    assert later.node_id != node.node_id


async def test_a_released_node_is_gone_and_unknown_ones_are_ignored(cloud: AnyCloud) -> None:
    first, second = await cloud.rent(H, 2, "t1")
    await cloud.release(first.node_id)
    await cloud.release(first.node_id)
    await cloud.release("nobody")
    assert await cloud.nodes() == [second]


@pytest.mark.parametrize("zone", [IDC, Zone("cloud-x", ZoneKind.CLOUD, 1, 1)], ids=["idc", "unknown"])
async def test_a_zone_that_is_not_for_rent_is_refused(cloud: AnyCloud, zone: Zone) -> None:
    with pytest.raises(CloudError, match=zone.name):
        await cloud.rent(zone, 1, "t1")


async def test_cost_grows_by_zone_until_the_release(cloud: AnyCloud, clock: VirtualClock) -> None:
    assert await cloud.cost_fen(clock.now_ms()) == 0
    node, _ = await cloud.rent(H, 2, "t1")
    await cloud.rent(S, 1, "t2")
    await clock.advance(1800)
    assert await cloud.cost_fen(clock.now_ms()) == pytest.approx(2 * 180 + 360)
    await cloud.release(node.node_id)
    await clock.advance(1800)
    assert await cloud.cost_fen(clock.now_ms()) == pytest.approx(180 + 360 + 720)


async def test_a_started_second_is_paid(clock: VirtualClock, reopen: Callable[[], LocalCloud]) -> None:
    cloud = reopen()
    (node,) = await cloud.rent(H, 1, "t1")
    await clock.advance(1.001)
    assert await cloud.cost_fen(clock.now_ms()) == pytest.approx(0.2)
    await cloud.release(node.node_id)
    await clock.advance(10)
    assert await cloud.cost_fen(clock.now_ms()) == pytest.approx(0.2)


async def test_a_restarted_loop_sees_what_it_rented(clock: VirtualClock, reopen: Callable[[], LocalCloud]) -> None:
    before = reopen()
    nodes = await before.rent(H, 3, "t1")
    await clock.advance(30)
    await before.release(nodes[0].node_id)
    after = reopen()
    assert await after.nodes() == await before.nodes()
    assert await after.cost_fen(clock.now_ms()) == await before.cost_fen(clock.now_ms()) > 0
    assert [node.node_id for node in await after.rent(H, 3, "t1")] == [node.node_id for node in nodes[1:]]
    assert after.rented_total == 3
    (fresh,) = await after.rent(H, 1, "t2")
    assert fresh.node_id not in {node.node_id for node in nodes}


async def test_boot_times_differ_within_the_jitter(clock: VirtualClock, reopen: Callable[[], LocalCloud]) -> None:
    cloud, rented_ms = reopen(), clock.now_ms()
    await cloud.rent(H, 5, "t1")
    await clock.advance(3600)
    boots = [node.since_ms - rented_ms for node in await cloud.nodes()]
    assert len(set(boots)) == 5
    assert all(8_000 <= boot <= 12_000 for boot in boots)


async def test_a_token_of_another_purchase_is_refused(reopen: Callable[[], LocalCloud]) -> None:
    cloud = reopen()
    await cloud.rent(H, 2, "t1")
    with pytest.raises(CloudError, match="t1"):
        await cloud.rent(S, 2, "t1")


async def test_what_cannot_be_written_is_not_rented(tmp_path: Path, clock: VirtualClock) -> None:
    (tmp_path / "file").write_text("")
    cloud = LocalCloud(tmp_path / "link" / "cloud.json", clock, random.Random(7), ZONES)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(CloudError, match="cannot be written"):
        await cloud.rent(H, 1, "t1")
    assert await cloud.nodes() == []
    assert cloud.rented_total == 0


def test_a_state_that_cannot_be_read_is_named(tmp_path: Path, reopen: Callable[[], LocalCloud]) -> None:
    (tmp_path / "cloud.json").write_text('{"nodes": 3}')
    with pytest.raises(CloudError, match=r"cloud\.json cannot be read"):
        reopen()


async def test_remembered_tokens_have_a_limit(
    monkeypatch: pytest.MonkeyPatch, reopen: Callable[[], LocalCloud]
) -> None:
    monkeypatch.setattr("springtide.drivers.localcloud.TOKENS_MAX", 2)
    cloud = reopen()
    kept = await cloud.rent(H, 1, "kept")
    for number in range(4):
        (node,) = await cloud.rent(H, 1, f"t{number}")
        await cloud.release(node.node_id)
    assert await cloud.rent(H, 1, "kept") == kept
    assert await cloud.rent(H, 1, "t3") == []
    assert len(await cloud.rent(H, 1, "t0")) == 1
