"""The whole loop on ports in memory and a clock moved by hand: sales, faults, and what is left afterwards."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import structlog

from springtide.fleet.journal import Decision, Outcome
from springtide.fleet.replay import replay
from springtide.model import DrainReplica, Node, NodeOrder, RentNodes, SetEndpoints, StopReplica
from tests.twin.world import EVENT_S, OPENS_S, PEAK, POLICY, READY_S, ZONES, World, sale_demand


@pytest.fixture
async def build(tmp_path: Path) -> AsyncIterator[Callable[..., World]]:
    worlds: list[World] = []

    def build_world(*args: object, **kwargs: object) -> World:
        worlds.append(World(tmp_path / str(len(worlds)), *args, **kwargs))  # type: ignore[arg-type] # passed on
        return worlds[-1]

    yield build_world
    for world in worlds:
        await world.close()


async def test_a_sale_is_carried_and_the_cloud_recedes(build: Callable[..., World]) -> None:
    world = build(sale_demand)
    await world.until(10)
    assert (world.serving("idc"), world.serving("cloud")) == (2, 0)
    assert await world.cloud.nodes() == []

    ready_at = None
    async for second in world.seconds_until(OPENS_S + EVENT_S):
        assert world.capacity >= world.demand(second)
        if ready_at is None and world.capacity >= PEAK * 1.3:
            ready_at = second
    assert ready_at is not None
    assert ready_at <= OPENS_S - READY_S
    assert world.serving("cloud") / world.serving() > 0.8

    async for second in world.seconds_until(OPENS_S + EVENT_S + 40):
        assert world.capacity >= world.demand(second)
    assert await world.cloud.nodes() == []
    assert [r.zone for r in world.runtime.replicas()] == ["idc-a", "idc-b"]
    assert world.cloud.rented_total == 4
    assert await world.loop.settle(1.0)


async def test_a_crowd_nobody_announced_is_followed(build: Callable[..., World]) -> None:
    def crowd(second: float) -> float:
        return min(2800.0, 30.0 + max(0.0, second - 20) * 70)

    world = build(crowd, announced=None)
    await world.until(20)
    assert world.cloud.rented_total == 0
    await world.until(90)
    assert world.capacity >= 2800 * 1.3


async def test_nothing_loses_its_traffic_after_it_began_to_drain(build: Callable[..., World]) -> None:
    world = build(sale_demand)
    await world.until(100)
    weights: dict[str, int] = {}
    drained: set[str] = set()
    stopped: set[str] = set()
    for entry in world.entries():
        if isinstance(entry, Outcome):
            match entry.action:
                case SetEndpoints(endpoints=endpoints):
                    weights = {e.replica_id: e.weight for e in endpoints}
                    gone = drained - weights.keys()
                    assert gone <= stopped, "an endpoint was dropped before its replica was stopped"
                case DrainReplica(replica_id=replica_id):
                    assert weights[replica_id] == 0
                    drained.add(replica_id)
                case StopReplica(replica_id=replica_id):
                    assert replica_id in drained
                    stopped.add(replica_id)
    assert len(drained) == len(stopped) == 13


async def test_a_crashed_replica_is_replaced(build: Callable[..., World]) -> None:
    world = build(sale_demand)
    await world.until(10)
    dead = world.ids("idc-a")
    world.runtime.fail(dead)
    await world.until(16)
    assert world.serving("idc-a") == 1
    assert not set(dead) & set(world.ids("idc-a"))
    assert not {e.replica_id for e in world.balancer.endpoints} & set(dead)


async def test_a_zone_whose_replicas_die_is_filled_again(build: Callable[..., World]) -> None:
    world = build(sale_demand)
    await world.until(OPENS_S - 1)
    assert world.serving("cloud") == 13
    world.runtime.fail(world.ids("cloud-h"))
    await world.until(OPENS_S + 15)
    assert world.capacity >= PEAK


async def test_lost_nodes_are_rented_again(build: Callable[..., World]) -> None:
    world = build(sale_demand)
    await world.until(OPENS_S - 4)
    world.runtime.fail(world.ids("cloud-h"))
    world.cloud.lose([node.node_id for node in await world.cloud.nodes()])
    await world.until(OPENS_S + EVENT_S + 6)
    assert world.cloud.rented_total == 8
    await world.until(OPENS_S + 70)
    assert await world.cloud.nodes() == []


async def test_a_zone_that_cannot_be_reached_is_replaced_elsewhere(build: Callable[..., World]) -> None:
    wide = (
        msgspec.structs.replace(ZONES[0], nodes_max=2),
        msgspec.structs.replace(ZONES[1], nodes_max=2),
        msgspec.structs.replace(ZONES[2], name="cloud-h"),
        msgspec.structs.replace(ZONES[2], name="cloud-j", nodes_max=8),
    )
    world = build(lambda _: 1800.0, wide, announced=None)
    await world.until(60)
    assert world.serving("cloud-h") == world.serving("cloud-j") == 4
    lost = world.ids("cloud-h")
    world.cut_off.update(lost)
    await world.until(100)
    assert world.serving("cloud-j") == 8
    assert world.loop.latest is not None
    plan = world.loop.latest[1]
    assert plan.weights["cloud-h"] == 0
    assert any("cloud-h does not answer" in reason for reason in plan.reasons)
    assert world.ids("cloud-h") == lost, "a zone that may come back is not torn down"
    world.cut_off.clear()
    await world.until(130)
    assert world.serving("cloud-h") == world.serving("cloud-j") == 4


async def test_a_balancer_that_sees_nothing_freezes_the_fleet(build: Callable[..., World]) -> None:
    world = build(sale_demand)
    await world.until(OPENS_S + EVENT_S)
    before = world.balancer.endpoints
    world.cut_off.update(world.ids("cloud-h") + world.ids("idc-a") + world.ids("idc-b"))
    await world.until(OPENS_S + EVENT_S + 30)
    assert world.balancer.endpoints == before
    assert world.loop.latest is not None
    assert any("unreachable" in reason for reason in world.loop.latest[1].reasons)
    world.cut_off.clear()
    await world.until(OPENS_S + EVENT_S + 70)
    assert await world.cloud.nodes() == []


async def test_without_figures_nothing_is_taken_away(build: Callable[..., World]) -> None:
    world = build(sale_demand)
    await world.until(OPENS_S + 1)
    world.balancer.failing = True
    await world.until(OPENS_S + 60)
    assert world.serving() == 15
    world.balancer.failing = False
    await world.until(OPENS_S + 100)
    assert world.serving() == 2
    assert await world.cloud.nodes() == []


async def test_a_silent_cloud_does_not_stop_the_loop(build: Callable[..., World]) -> None:
    world = build(sale_demand)
    await world.until(5)
    world.cloud.failing = True
    await world.until(30)
    world.runtime.fail(world.ids("idc-a"))
    await world.until(38)
    assert world.serving("idc-a") >= 1
    world.cloud.failing = False
    await world.until(OPENS_S + EVENT_S)
    assert world.capacity >= PEAK
    await world.until(OPENS_S + EVENT_S + 50)
    assert await world.cloud.nodes() == []


async def test_a_slow_purchase_is_made_once(build: Callable[..., World]) -> None:
    world = build(sale_demand)
    world.cloud.latency_s = 4.0
    await world.until(OPENS_S + EVENT_S)
    assert world.cloud.rented_total == 4
    assert world.capacity >= PEAK
    rents = [e.action for e in world.entries() if isinstance(e, Outcome) and isinstance(e.action, RentNodes)]
    assert [rent.count for rent in rents] == [4]


async def test_a_purchase_without_an_answer_is_repeated_with_its_token(build: Callable[..., World]) -> None:
    world = build(sale_demand)
    await world.until(12)
    real, tokens = world.cloud.rent, []

    async def lose_the_answer(order: NodeOrder) -> list[Node]:
        tokens.append(order.client_token)
        nodes = await real(order)
        if len(tokens) < 3:
            raise OSError("connection reset")
        return nodes

    world.cloud.rent = lose_the_answer  # type: ignore[method-assign] # a fault in between
    await world.until(OPENS_S)
    assert len(tokens) == 3
    assert len(set(tokens)) == 1
    assert world.cloud.rented_total == 4


async def test_what_one_zone_cannot_deliver_comes_from_another(build: Callable[..., World]) -> None:
    zones = (*ZONES, msgspec.structs.replace(ZONES[2], name="cloud-j", price_fen_per_node_h=99))
    world = build(sale_demand, zones)
    world.cloud.stock["cloud-h"] = 1
    await world.until(OPENS_S - 1)
    assert (world.serving("cloud-h"), world.serving("cloud-j")) == (4, 9)


async def test_a_quota_that_is_too_small_is_said(build: Callable[..., World]) -> None:
    zones = (*ZONES[:2], msgspec.structs.replace(ZONES[2], nodes_max=1))
    world = build(sale_demand, zones)
    await world.until(OPENS_S)
    assert world.serving() == 6 + 4
    assert world.loop.latest is not None
    reasons = world.loop.latest[1].reasons
    assert "capacity short by 5 replicas: quota of cloud-h is 1 nodes" in reasons


async def test_a_budget_keeps_the_base_alone(build: Callable[..., World]) -> None:
    world = build(sale_demand, ZONES, msgspec.structs.replace(POLICY, replicas_max=2))
    await world.until(OPENS_S + 5)
    assert world.serving() == 2
    assert world.cloud.rented_total == 0


async def test_giving_back_leaves_no_node(build: Callable[..., World]) -> None:
    world = build(sale_demand)
    await world.until(OPENS_S)
    assert len(await world.cloud.nodes()) == 4
    ending = asyncio.create_task(world.loop.shutdown(5.0))
    await world.clock.advance(6.0)
    assert await ending
    giving = asyncio.create_task(world.loop.give_back(5.0))
    await world.clock.advance(6.0)
    assert await giving == 0
    assert await world.cloud.nodes() == []
    assert world.ids("cloud-h") == []


async def test_replay_of_a_fresh_journal_differs_nowhere(build: Callable[..., World]) -> None:
    world = build(sale_demand)
    await world.until(90)
    decisions = [entry for entry in world.entries() if isinstance(entry, Decision)]
    assert len(decisions) >= 180
    assert list(replay(world.journal.path)) == []
    more = msgspec.structs.replace(POLICY, headroom=1.0)
    differing = list(replay(world.journal.path, more))
    assert differing
    assert "replicas_wanted" in {name for difference in differing for name in difference.fields}


@pytest.fixture(autouse=True)
def _no_log_lines() -> Iterator[None]:
    """Faults are logged on purpose here; they would only bury the failure of a test."""

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.reset_defaults()
