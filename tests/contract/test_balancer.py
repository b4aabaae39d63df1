"""What every balancer does."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest

from springtide.drivers.embedded_envoy import EmbeddedEnvoy, start_envoy
from springtide.drivers.memory.fleet import MemoryBalancer
from springtide.drivers.process import ProcessRuntime
from springtide.drivers.system import SystemClock
from springtide.errors import BalancerError
from springtide.model import Endpoint, ReplicaSpec, ReplicaState, TrafficSample
from springtide.ports import Balancer
from tests.integration.echo_service import echo
from tests.integration.http_load import send


class Stage(Protocol):
    """A balancer, replicas behind it, buyers before it. A zone is the first letter of its replicas' ids."""

    balancer: Balancer

    async def endpoint(self, name: str, weight: int) -> Endpoint:
        """The replica, which runs and is ready."""

    async def lose(self, name: str) -> None:
        """Kill it; returns when the balancer knows."""

    async def traffic(self) -> TrafficSample:
        """The figures of some hundred requests."""

    async def break_it(self) -> None:
        """Let the balancer not answer any more."""


async def route(stage: Stage, **weights: int) -> None:
    endpoints = [await stage.endpoint(name, weight) for name, weight in weights.items()]
    await stage.balancer.set_endpoints(endpoints)


async def shares(stage: Stage) -> dict[str, float]:
    """Each zone's share of what the zones get, in percent."""
    sample = await stage.traffic()
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


class OnEnvoy:
    def __init__(self, envoy: EmbeddedEnvoy, runtime: ProcessRuntime, folder: Path) -> None:
        self.balancer: Balancer = envoy.balancer
        self.envoy = envoy
        self.runtime = runtime
        self.folder = folder

    async def endpoint(self, name: str, weight: int) -> Endpoint:
        await self.runtime.define(echo("echo"))
        await self.runtime.start(ReplicaSpec(name, name[0], "node", "echo"))
        while True:
            (replica,) = [each for each in await self.runtime.list() if each.replica_id == name]
            if replica.state is ReplicaState.READY:
                return Endpoint(name, replica.zone, replica.host, replica.port, weight)
            await asyncio.sleep(0.02)

    async def lose(self, name: str) -> None:
        os.kill(json.loads((self.folder / f"{name}.state").read_text())["pid"], signal.SIGKILL)
        while name in await self.balancer.healthy():
            await send(self.envoy.port, 20)

    async def traffic(self) -> TrafficSample:
        await self.balancer.sample(1)
        await send(self.envoy.port, 400)
        return await self.balancer.sample(2)

    async def break_it(self) -> None:
        await self.envoy.stop()


@asynccontextmanager
async def on_envoy(folder: Path) -> AsyncIterator[Stage]:
    clock = SystemClock()
    envoy = await start_envoy(folder / "envoy", clock)
    runtime = ProcessRuntime(folder / "replicas", clock)
    try:
        yield OnEnvoy(envoy, runtime, folder / "replicas")
    finally:
        await runtime.close()
        await envoy.stop()


@asynccontextmanager
async def in_memory() -> AsyncIterator[Stage]:
    yield InMemory()


@pytest.fixture(params=["envoy", "memory"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    made: AbstractAsyncContextManager[Stage] = in_memory() if request.param == "memory" else on_envoy(tmp_path)
    async with made as stage:
        yield stage


async def test_zones_get_the_sum_of_their_weights(stage: Stage) -> None:
    await route(stage, a1=70, b1=10, b2=10, b3=10)
    assert await shares(stage) == {"a": pytest.approx(70, abs=2), "b": pytest.approx(30, abs=2)}


async def test_every_request_is_counted_once(stage: Stage) -> None:
    await route(stage, a1=1, b1=1)
    sample = await stage.traffic()
    assert sample.requests_per_s > 0
    assert sum(zone.requests_per_s for zone in sample.zones) == pytest.approx(sample.requests_per_s)
    assert all(zone.failed_per_s == 0 for zone in sample.zones)
    assert all(zone.in_flight == 0 for zone in sample.zones)
    assert {zone.zone: zone.healthy for zone in sample.zones} == {"a": 1, "b": 1}


async def test_a_new_list_replaces_the_old_one(stage: Stage) -> None:
    await route(stage, a1=1, b1=1)
    await route(stage, b1=1, c1=3)
    assert await shares(stage) == {"b": pytest.approx(25, abs=2), "c": pytest.approx(75, abs=2)}
    await route(stage, b1=3, c1=1)
    assert await shares(stage) == {"b": pytest.approx(75, abs=2), "c": pytest.approx(25, abs=2)}


async def test_the_same_list_again_changes_nothing(stage: Stage) -> None:
    for _ in range(3):
        await route(stage, a1=3, b1=1)
    assert await shares(stage) == {"a": pytest.approx(75, abs=2), "b": pytest.approx(25, abs=2)}


async def test_a_drained_replica_gets_nothing_and_its_zone_keeps_its_share(stage: Stage) -> None:
    await route(stage, a1=1, a2=1, b1=2, c1=1)
    await route(stage, a1=2, a2=0, b1=2, c1=0)
    assert await shares(stage) == {"a": pytest.approx(50, abs=2), "b": pytest.approx(50, abs=2)}


async def test_what_a_lost_replica_leaves_is_spread_over_the_others(stage: Stage) -> None:
    await route(stage, a1=10, a2=10, b1=20)
    assert await stage.balancer.healthy() == {"a1", "a2", "b1"}
    await stage.lose("a2")
    assert await stage.balancer.healthy() == {"a1", "b1"}
    assert await shares(stage) == {"a": pytest.approx(33.3, abs=2), "b": pytest.approx(66.7, abs=2)}


async def test_a_zone_with_a_lost_and_a_drained_replica_gets_what_is_left_of_it(stage: Stage) -> None:
    await route(stage, a1=1, a2=1, a3=0, b1=2)
    await stage.lose("a2")
    assert await shares(stage) == {"a": pytest.approx(33.3, abs=2), "b": pytest.approx(66.7, abs=2)}


async def test_with_no_endpoint_requests_are_still_counted(stage: Stage) -> None:
    await route(stage, a1=1)
    await route(stage)
    sample = await stage.traffic()
    assert sample.requests_per_s > 0
    assert sum(zone.requests_per_s for zone in sample.zones) == 0
    assert await stage.balancer.healthy() == frozenset()


async def test_two_replicas_at_one_address_are_refused_and_nothing_changes(stage: Stage) -> None:
    await route(stage, a1=1)
    first = await stage.endpoint("a1", 1)
    with pytest.raises(BalancerError, match="address"):
        await stage.balancer.set_endpoints([first, Endpoint("b1", "b", first.host, first.port, 1)])
    assert await shares(stage) == {"a": pytest.approx(100)}


async def test_a_balancer_that_does_not_answer_is_an_error(stage: Stage) -> None:
    await route(stage, a1=1)
    await stage.break_it()
    with pytest.raises(BalancerError):
        await stage.balancer.sample(1)
    with pytest.raises(BalancerError):
        await stage.balancer.healthy()
    with pytest.raises(BalancerError):
        await stage.balancer.set_endpoints([])
