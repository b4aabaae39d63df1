"""Envoy as it is: what the contract suite cannot say of every balancer."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from springtide.drivers.embedded_envoy import EmbeddedEnvoy, start_envoy
from springtide.drivers.envoy import EnvoyBalancer
from springtide.drivers.process import ProcessRuntime
from springtide.drivers.system import SystemClock
from springtide.errors import BalancerError, EngineError
from springtide.model import Endpoint, Replica, ReplicaSpec, ReplicaState
from tests.integration.echo_service import echo
from tests.integration.http_load import Connection, Load, send


class Shop:
    """An Envoy and some replicas behind it."""

    def __init__(self, envoy: EmbeddedEnvoy, runtime: ProcessRuntime) -> None:
        self.envoy = envoy
        self.runtime = runtime
        self.replicas: dict[str, Replica] = {}

    async def open(self, names: str, *options: str) -> None:
        """Start these replicas (`zone/id …`) and wait until they are ready."""
        for name in names.split():
            zone, replica_id = name.split("/")
            await self.runtime.define(echo(replica_id, *options))
            await self.runtime.start(ReplicaSpec(replica_id, zone, "node", replica_id))
        while True:
            found = {replica.replica_id: replica for replica in await self.runtime.list()}
            assert all(replica.state is not ReplicaState.FAILED for replica in found.values())
            if all(replica.state is ReplicaState.READY for replica in found.values()):
                self.replicas = found
                return
            await asyncio.sleep(0.02)

    async def route(self, **weights: int) -> None:
        await self.envoy.balancer.set_endpoints([self.endpoint(name, weight) for name, weight in weights.items()])

    def endpoint(self, name: str, weight: int) -> Endpoint:
        replica = self.replicas[name]
        return Endpoint(name, replica.zone, replica.host, replica.port, weight)

    def signal(self, name: str, number: signal.Signals) -> None:
        state = json.loads((self.runtime._files._folder / f"{name}.state").read_text())
        os.kill(state["pid"], number)


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    clock = SystemClock()
    envoy = await start_envoy(tmp_path / "envoy", clock)
    runtime = ProcessRuntime(tmp_path / "replicas", clock)
    try:
        yield Shop(envoy, runtime)
    finally:
        await runtime.close()
        await envoy.stop()
    assert envoy.child.returncode is not None


async def test_without_a_replica_clients_are_told_to_come_back(shop: Shop) -> None:
    connection = Connection(shop.envoy.port)
    answer = await connection.request()
    await connection.close()
    assert answer.status == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "1"
    assert json.loads(answer.body)["status"] == 503


async def test_a_killed_replica_costs_no_request(shop: Shop) -> None:
    await shop.open("idc-a/a1 idc-a/a2 idc-b/b1", "delay_s=0.002")
    await shop.route(a1=10, a2=10, b1=10)
    async with Load(shop.envoy.port, connections=16) as load:
        await load.answered(300)
        shop.signal("a2", signal.SIGKILL)
        await load.answered(1500)
        before = load.answers["a2"]
        await load.answered(200)
    assert load.failed == {}
    assert load.answers["a2"] == before
    assert await shop.envoy.balancer.healthy() == {"a1", "b1"}


async def test_changes_under_load_cost_no_request(shop: Shop) -> None:
    await shop.open("idc-a/a1 idc-b/b1 cloud-h/c1 cloud-h/c2", "delay_s=0.002")
    await shop.route(a1=10)
    async with Load(shop.envoy.port, connections=16) as load:
        for _ in range(3):
            await shop.route(a1=10, b1=10)
            await load.answered(80)
            await shop.route(a1=10, b1=5, c1=30, c2=30)
            await load.answered(80)
            await shop.route(a1=10, b1=5, c1=0, c2=0)
            await load.answered(80)
            await shop.route(a1=10)
            await load.answered(80)
            await shop.route(b1=10)  # all at once: those before leave only when those after can serve
            await load.answered(80)
            await shop.route(a1=10)
            await load.answered(80)
        await shop.route(b1=10)
        await shop.runtime.stop("a1")
        await load.answered(80)
    assert load.failed == {}
    assert load.answers.keys() == {"a1", "b1", "c1", "c2"}


async def test_a_new_replica_that_is_ill_does_not_hold_up_the_rest(shop: Shop) -> None:
    await shop.open("idc-a/a1 idc-b/b1 idc-b/b2")
    await shop.route(a1=10)
    shop.signal("b2", signal.SIGKILL)
    async with Load(shop.envoy.port) as load:
        await shop.route(b1=10, b2=10)
    assert load.failed == {}
    assert await send(shop.envoy.port, 50) == {"b1": 50}


async def test_a_drained_replica_finishes_and_gets_nothing_new(shop: Shop) -> None:
    await shop.open("idc-a/a1", "delay_s=0.5")
    await shop.open("idc-a/a2")
    await shop.route(a1=10)
    connection = Connection(shop.envoy.port)
    slow = asyncio.create_task(connection.request())
    while not (await shop.envoy.balancer.sample(1)).zones[0].in_flight:
        await asyncio.sleep(0.01)
    await shop.route(a1=0, a2=10)
    assert await send(shop.envoy.port, 100) == {"a2": 100}
    assert not slow.done()
    answer = await slow
    assert (answer.status, answer.headers["x-replica"]) == (200, "a1")
    await connection.close()


async def test_a_frozen_replica_costs_time_but_no_request(shop: Shop) -> None:
    await shop.open("idc-a/a1 idc-b/b1")
    await shop.route(a1=10, b1=10)
    shop.signal("b1", signal.SIGSTOP)
    try:
        answers = await send(shop.envoy.port, 40)
    finally:
        shop.signal("b1", signal.SIGCONT)
    assert answers == {"a1": 40}


async def test_refusals_do_not_eject_a_replica(shop: Shop) -> None:
    await shop.open("idc-a/a1", "status=503")
    await shop.route(a1=10)
    assert await send(shop.envoy.port, 200) == {"failed 503": 200}
    assert await shop.envoy.balancer.healthy() == {"a1"}
    traffic = (await shop.envoy.balancer.sample(1)).zones[0]
    assert traffic.failed_per_s == traffic.requests_per_s > 0


async def test_a_replica_that_is_not_ready_gets_nothing(shop: Shop) -> None:
    await shop.open("idc-a/a1 idc-a/a2")
    await shop.route(a1=10, a2=10)
    await shop.runtime.drain("a2")
    while "a2" in await shop.envoy.balancer.healthy():
        await asyncio.sleep(0.05)
    assert await send(shop.envoy.port, 100) == {"a1": 100}


async def test_a_restarted_loop_finds_the_replicas_it_had(shop: Shop, tmp_path: Path) -> None:
    await shop.open("idc-a/a1")
    await shop.route(a1=10)
    later = EnvoyBalancer(
        shop.envoy.balancer._admin, tmp_path / "envoy" / "discovery" / "endpoints.json", SystemClock()
    )
    assert await later.healthy() == {"a1"}
    await send(shop.envoy.port, 50)
    first = await later.sample(1)
    assert (first.requests_per_s, [zone.zone for zone in first.zones]) == (0.0, ["idc-a"])
    await send(shop.envoy.port, 50)
    assert (await later.sample(2)).requests_per_s > 0


async def test_figures_of_a_removed_replica_are_not_lost(shop: Shop) -> None:
    await shop.open("idc-a/a1 cloud-h/c1")
    await shop.route(a1=10, c1=10)
    await shop.envoy.balancer.sample(0)
    await send(shop.envoy.port, 100)
    await shop.route(a1=10)
    sample = await shop.envoy.balancer.sample(1)
    by_zone = {zone.zone: zone for zone in sample.zones}
    assert by_zone["cloud-h"].requests_per_s == by_zone["idc-a"].requests_per_s == sample.requests_per_s / 2 > 0
    assert (by_zone["cloud-h"].healthy, by_zone["idc-a"].healthy) == (0, 1)


@pytest.mark.parametrize(
    ("endpoints", "said"),
    [
        ((Endpoint("a", "z", "127.0.0.1", 9, -1),), "weight of a"),
        ((Endpoint("a", "z", "127.0.0.1", 9, 1), Endpoint("b", "y", "127.0.0.1", 9, 1)), "two endpoints"),
        ((Endpoint("a", "z", "not-an-address", 9, 1),), "refused"),
    ],
    ids=["weight", "twice", "name"],
)
async def test_a_list_that_cannot_be_used_changes_nothing(
    shop: Shop, endpoints: tuple[Endpoint, ...], said: str
) -> None:
    await shop.open("idc-a/a1")
    await shop.route(a1=10)
    with pytest.raises(BalancerError, match=said):
        await shop.envoy.balancer.set_endpoints(endpoints)
    assert await send(shop.envoy.port, 20) == {"a1": 20}
    await shop.route(a1=5)


@pytest.mark.parametrize("call", ["set_endpoints", "sample", "healthy"])
async def test_a_dead_envoy_is_said_at_once(shop: Shop, call: str) -> None:
    await shop.envoy.stop()
    balancer = shop.envoy.balancer
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "set_endpoints": lambda: balancer.set_endpoints([]),
        "sample": lambda: balancer.sample(1),
        "healthy": balancer.healthy,
    }
    with pytest.raises(BalancerError, match="does not answer"):
        await calls[call]()


async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=f"{port}: the port is in use"):
            await start_envoy(tmp_path, SystemClock(), port)


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="file/envoy"):
        await start_envoy(tmp_path / "file" / "envoy", SystemClock())
