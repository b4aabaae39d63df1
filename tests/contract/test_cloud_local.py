"""What the cloud on this machine does beside what every cloud does: its file, and boots that differ."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from springtide.drivers.localcloud import LocalCloud
from springtide.drivers.memory.clock import VirtualClock
from springtide.errors import CloudError
from springtide.model import NodeOrder, Zone, ZoneKind

H = Zone("cloud-h", ZoneKind.CLOUD, nodes_max=5, cores_per_node=8, lead_ms=10_000, price_fen_per_node_h=360)
ZONES = (H,)


def order(zone: Zone, count: int, token: str) -> NodeOrder:
    return NodeOrder(zone.name, count, token)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def reopen(tmp_path: Path, clock: VirtualClock) -> Callable[[], LocalCloud]:
    """The local cloud as a loop finds it when it starts."""
    return lambda: LocalCloud(tmp_path / "cloud.json", clock, random.Random(7), ZONES)


async def test_a_started_second_is_paid(clock: VirtualClock, reopen: Callable[[], LocalCloud]) -> None:
    cloud = reopen()
    (node,) = await cloud.rent(order(H, 1, "t1"))
    await clock.advance(1.001)
    assert await cloud.cost_fen(clock.now_ms()) == pytest.approx(0.2)
    await cloud.release([node.node_id])
    await clock.advance(10)
    assert await cloud.cost_fen(clock.now_ms()) == pytest.approx(0.2)


async def test_a_restarted_loop_sees_what_it_rented(clock: VirtualClock, reopen: Callable[[], LocalCloud]) -> None:
    before = reopen()
    nodes = await before.rent(order(H, 3, "t1"))
    await clock.advance(30)
    await before.release([nodes[0].node_id])
    after = reopen()
    assert await after.nodes() == await before.nodes()
    assert await after.cost_fen(clock.now_ms()) == await before.cost_fen(clock.now_ms()) > 0
    assert [node.node_id for node in await after.rent(order(H, 3, "t1"))] == [node.node_id for node in nodes[1:]]
    assert after.rented_total == 3
    (fresh,) = await after.rent(order(H, 1, "t2"))
    assert fresh.node_id not in {node.node_id for node in nodes}


async def test_boot_times_differ_within_the_jitter(clock: VirtualClock, reopen: Callable[[], LocalCloud]) -> None:
    cloud, rented_ms = reopen(), clock.now_ms()
    await cloud.rent(order(H, 5, "t1"))
    await clock.advance(3600)
    boots = [node.since_ms - rented_ms for node in await cloud.nodes()]
    assert len(set(boots)) == 5
    assert all(8_000 <= boot <= 12_000 for boot in boots)


async def test_what_cannot_be_written_is_not_rented(tmp_path: Path, clock: VirtualClock) -> None:
    (tmp_path / "file").write_text("")
    cloud = LocalCloud(tmp_path / "link" / "cloud.json", clock, random.Random(7), ZONES)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(CloudError, match="cannot be written"):
        await cloud.rent(order(H, 1, "t1"))
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
    kept = await cloud.rent(order(H, 1, "kept"))
    for number in range(4):
        (node,) = await cloud.rent(order(H, 1, f"t{number}"))
        await cloud.release([node.node_id])
    assert await cloud.rent(order(H, 1, "kept")) == kept
    assert await cloud.rent(order(H, 1, "t3")) == []
    assert len(await cloud.rent(order(H, 1, "t0"))) == 1


async def test_a_node_that_was_due_while_nobody_looked_costs_until_then(
    clock: VirtualClock, reopen: Callable[[], LocalCloud]
) -> None:
    due_ms = clock.now_ms() + 3_600_000
    await reopen().rent(NodeOrder(H.name, 1, "t1", release_at_ms=due_ms))
    await clock.advance(36_000)
    after = reopen()
    assert await after.cost_fen(clock.now_ms()) == pytest.approx(360)
    assert await after.nodes() == []
    assert await after.cost_fen(clock.now_ms()) == pytest.approx(360)


async def test_a_file_from_before_orders_were_kept_whole_is_read(
    tmp_path: Path, reopen: Callable[[], LocalCloud]
) -> None:
    before = """{"rented_total": 1, "released_cost_fen": 0.0, "nodes": {"cloud-h-1": {"node_id": "cloud-h-1",
        "zone": "cloud-h", "cores": 8, "client_token": "t1", "rented_ms": 1, "ready_ms": 2, "price_fen_per_h": 360}},
        "purchases": {"t1": {"zone": "cloud-h", "count": 1, "node_ids": ["cloud-h-1"]}}}"""
    (tmp_path / "cloud.json").write_text(before)
    cloud = reopen()
    assert [node.node_id for node in await cloud.rent(order(H, 1, "t1"))] == ["cloud-h-1"]
    assert [node.release_at_ms for node in await cloud.nodes()] == [0]
