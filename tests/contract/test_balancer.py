"""What every balancer does, the one in memory included."""

from collections.abc import AsyncIterator
from typing import Protocol

import pytest

from springtide.drivers.memory.fleet import MemoryBalancer
from springtide.errors import BalancerError
from springtide.model import Endpoint, TrafficSample
from springtide.ports import Balancer
from tests.contract.balancing import KINDS, Stage, staged, until


class Scene(Protocol):
    """A balancer, replicas behind it, buyers before it. A zone is the first letter of its replicas' ids."""

    @property
    def balancer(self) -> Balancer:
        """The one under test."""

    async def endpoint(self, name: str, weight: int) -> Endpoint:
        """The replica, which runs and is ready."""

    async def lose(self, name: str) -> None:
        """Kill it; returns when the balancer knows."""

    async def traffic(self) -> TrafficSample:
        """The figures of some hundred requests."""

    async def break_it(self) -> None:
        """Let the balancer not answer any more."""


async def route(scene: Scene, **weights: int) -> None:
    endpoints = [await scene.endpoint(name, weight) for name, weight in weights.items()]
    await scene.balancer.set_endpoints(endpoints)


async def shares(scene: Scene) -> dict[str, float]:
    """Each zone's share of what the zones get, in percent."""
    sample = await scene.traffic()
    total = sum(zone.requests_per_s for zone in sample.zones)
    return {zone.zone: 100 * zone.requests_per_s / total for zone in sample.zones if zone.requests_per_s}


class InMemory:
    def __init__(self) -> None:
        self.lost: set[str] = set()
        self.memory = MemoryBalancer(lambda _: 500.0, lambda name: name not in self.lost)
        self.balancer: Balancer = self.memory

    async def endpoint(self, name: str, weight: int) -> Endpoint:
        return Endpoint(name, name[0], "127.0.0.1", 1000 + int(name[1:]) + 100 * ord(name[0]), weight)

    async def lose(self, name: str) -> None:
        self.lost.add(name)

    async def traffic(self) -> TrafficSample:
        return await self.balancer.sample(1)

    async def break_it(self) -> None:
        self.memory.failing = True


class OnEngine:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @property
    def balancer(self) -> Balancer:
        return self.stage.balancer

    async def endpoint(self, name: str, weight: int) -> Endpoint:
        if name not in self.stage.inside:
            await self.stage.begin_inside(name)
        return self.stage.endpoint(name, weight)

    async def lose(self, name: str) -> None:
        await self.stage.inside[name].close()
        await until(lambda: self._lost(name))

    async def traffic(self) -> TrafficSample:
        await self.balancer.sample(1)
        await self.stage.send(400)
        return await self.balancer.sample(2)

    async def break_it(self) -> None:
        await self.stage.engine.stop()

    async def _lost(self, name: str) -> bool:
        return name not in await self.balancer.healthy()


@pytest.fixture(params=[*KINDS, "memory"])
async def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    if request.param == "memory":
        yield InMemory()
        return
    async with staged(request.param, tmp_path_factory.mktemp("b")) as stage:
        yield OnEngine(stage)


async def test_zones_get_the_sum_of_their_weights(scene: Scene) -> None:
    await route(scene, a1=70, b1=10, b2=10, b3=10)
    assert await shares(scene) == {"a": pytest.approx(70, abs=2), "b": pytest.approx(30, abs=2)}


async def test_every_request_is_counted_once(scene: Scene) -> None:
    await route(scene, a1=1, b1=1)
    sample = await scene.traffic()
    assert sample.requests_per_s > 0
    assert sum(zone.requests_per_s for zone in sample.zones) == pytest.approx(sample.requests_per_s)
    assert all(zone.failed_per_s == 0 for zone in sample.zones)
    assert {zone.zone: zone.healthy for zone in sample.zones} == {"a": 1, "b": 1}


async def test_a_new_list_replaces_the_old_one(scene: Scene) -> None:
    await route(scene, a1=1, b1=1)
    await route(scene, b1=1, c1=3)
    assert await shares(scene) == {"b": pytest.approx(25, abs=2), "c": pytest.approx(75, abs=2)}
    await route(scene, b1=3, c1=1)
    assert await shares(scene) == {"b": pytest.approx(75, abs=2), "c": pytest.approx(25, abs=2)}


async def test_the_same_list_again_changes_nothing(scene: Scene) -> None:
    for _ in range(3):
        await route(scene, a1=3, b1=1)
    assert await shares(scene) == {"a": pytest.approx(75, abs=2), "b": pytest.approx(25, abs=2)}


async def test_a_drained_replica_gets_nothing_and_its_zone_keeps_its_share(scene: Scene) -> None:
    await route(scene, a1=1, a2=1, b1=2, c1=1)
    await route(scene, a1=2, a2=0, b1=2, c1=0)
    assert await shares(scene) == {"a": pytest.approx(50, abs=2), "b": pytest.approx(50, abs=2)}


async def test_what_a_lost_replica_leaves_is_spread_over_the_others(scene: Scene) -> None:
    await route(scene, a1=10, a2=10, b1=20)
    assert await scene.balancer.healthy() == {"a1", "a2", "b1"}
    await scene.lose("a2")
    assert await scene.balancer.healthy() == {"a1", "b1"}
    assert await shares(scene) == {"a": pytest.approx(33.3, abs=2), "b": pytest.approx(66.7, abs=2)}


async def test_a_zone_with_a_lost_and_a_drained_replica_gets_what_is_left_of_it(scene: Scene) -> None:
    await route(scene, a1=1, a2=1, a3=0, b1=2)
    await scene.lose("a2")
    assert await shares(scene) == {"a": pytest.approx(33.3, abs=2), "b": pytest.approx(66.7, abs=2)}


async def test_with_no_endpoint_requests_are_still_counted(scene: Scene) -> None:
    await route(scene, a1=1)
    await route(scene)
    sample = await scene.traffic()
    assert sample.requests_per_s > 0
    assert sum(zone.requests_per_s for zone in sample.zones) == 0
    assert await scene.balancer.healthy() == frozenset()


async def test_two_replicas_at_one_address_are_refused_and_nothing_changes(scene: Scene) -> None:
    await route(scene, a1=1)
    first = await scene.endpoint("a1", 1)
    with pytest.raises(BalancerError, match="address"):
        await scene.balancer.set_endpoints([first, Endpoint("b1", "b", first.host, first.port, 1)])
    assert await shares(scene) == {"a": pytest.approx(100)}


async def test_a_balancer_that_does_not_answer_is_an_error(scene: Scene) -> None:
    await route(scene, a1=1)
    await scene.break_it()
    with pytest.raises(BalancerError):
        await scene.balancer.sample(1)
    with pytest.raises(BalancerError):
        await scene.balancer.healthy()
    with pytest.raises(BalancerError):
        await scene.balancer.set_endpoints([])
