"""What every balancer engine does when packets to a zone are dropped: connections do not break, they fall silent."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from springtide.drivers import netns
from springtide.drivers.netns import PrivateNetwork
from springtide.model import Endpoint
from tests.contract.balancing import KINDS, Inside, Kind, Stage, staged, until
from tests.integration.http_load import Load

pytestmark = pytest.mark.skipif(bool(netns.missing()), reason=netns.missing() or "possible")


async def cut_and_heal(kind: Kind, folder: Path, network: PrivateNetwork) -> Load:
    nodes = {name: network.add() for name in ("a1", "a2", "b1", "b2")}
    replicas = [Inside(name) for name in nodes]
    for replica in replicas:
        with nodes[replica.name].entered():
            listener = socket.create_server((nodes[replica.name].host, 0))
        await replica.listen_on(listener)
    endpoints = [Endpoint(each.name, each.name[0], nodes[each.name].host, each.port, 10) for each in replicas]
    async with staged(kind, folder) as stage:
        await stage.balancer.set_endpoints(endpoints)
        async with stage.load() as load:
            await load.answered(200)
            nodes["b1"].cut()
            nodes["b2"].cut()
            await until(lambda: healthy(stage, "a1 a2"))
            before = load.answers["b1"] + load.answers["b2"]
            await load.answered(500)
            assert load.answers["b1"] + load.answers["b2"] == before
            nodes["b1"].heal()
            nodes["b2"].heal()
            await until(lambda: healthy(stage, "a1 a2 b1 b2"))
            await load.answered(500)
            assert load.answers["b1"] + load.answers["b2"] > before
    for replica in replicas:
        await replica.close()
    return load


async def healthy(stage: Stage, names: str) -> bool:
    return await stage.balancer.healthy() == set(names.split())


def in_a_network(kind: Kind, folder: Path) -> Load:
    """In a thread of its own, since it moves into the network."""
    network = PrivateNetwork()
    try:
        return asyncio.run(cut_and_heal(kind, folder, network))
    finally:
        network.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_zone_whose_packets_are_dropped_costs_no_request(
    kind: Kind, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with ThreadPoolExecutor(1) as thread:
        load = thread.submit(in_a_network, kind, tmp_path_factory.mktemp("b")).result()
    assert load.failed == {}
    assert load.answers.keys() == {"a1", "a2", "b1", "b2"}
