"""Envoy as it is: what the contract suite cannot say of every balancer."""

import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from springtide.drivers.embedded_envoy import EmbeddedEnvoy, start_envoy
from springtide.drivers.envoy import EnvoyBalancer
from springtide.drivers.system import SystemClock
from springtide.errors import BalancerError, EngineError
from springtide.model import Endpoint
from tests.contract.balancing import Inside
from tests.integration.http_load import Connection, send

CLOCK = SystemClock()


@pytest.fixture
async def envoy(tmp_path: Path) -> AsyncIterator[EmbeddedEnvoy]:
    envoy = await start_envoy(tmp_path / "envoy", CLOCK)
    try:
        yield envoy
    finally:
        await envoy.stop()
    assert envoy.child.returncode is not None


@pytest.fixture
async def replica() -> AsyncIterator[Inside]:
    replica = Inside("a1")
    await replica.listen()
    yield replica
    await replica.close()


def endpoint(replica: Inside, weight: int = 10) -> Endpoint:
    return Endpoint(replica.name, "idc-a", "127.0.0.1", replica.port, weight)


async def test_one_in_front_of_the_counter_alone(envoy: EmbeddedEnvoy, replica: Inside) -> None:
    await envoy.balancer.set_endpoints([endpoint(replica)])
    assert await send(envoy.port, 20) == {"a1": 20}
    assert envoy.url == f"http://127.0.0.1:{envoy.port}"
    assert envoy.engine.services == {"counter"}


async def test_its_own_answers_say_what_is_wrong(envoy: EmbeddedEnvoy) -> None:
    connection = Connection(envoy.port)
    answer = await connection.request()
    await connection.close()
    assert json.loads(answer.body) == {"type": "about:blank", "title": "no_healthy_upstream", "status": 503}


async def test_a_new_balancer_finds_the_replicas_it_had(envoy: EmbeddedEnvoy, replica: Inside, tmp_path: Path) -> None:
    await envoy.balancer.set_endpoints([endpoint(replica)])
    file = tmp_path / "envoy" / "discovery" / "endpoints" / "counter" / "endpoints.json"
    later = EnvoyBalancer(envoy.balancer.admin, file, CLOCK)
    assert await later.healthy() == {"a1"}
    await send(envoy.port, 50)
    first = await later.sample(1)
    assert (first.requests_per_s, [zone.zone for zone in first.zones]) == (0.0, ["idc-a"])
    await send(envoy.port, 50)
    assert (await later.sample(2)).requests_per_s > 0


async def test_endpoints_that_cannot_be_written_are_an_error_and_those_before_stay(
    envoy: EmbeddedEnvoy, replica: Inside, tmp_path: Path
) -> None:
    await envoy.balancer.set_endpoints([endpoint(replica)])
    (tmp_path / "envoy" / "discovery" / "endpoints" / "counter" / "endpoints.new").mkdir()
    with pytest.raises(BalancerError, match="cannot be written"):
        await envoy.balancer.set_endpoints([])
    assert await send(envoy.port, 20) == {"a1": 20}


async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=f"{port}: the port is in use"):
            await start_envoy(tmp_path, CLOCK, port)


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="file/envoy"):
        await start_envoy(tmp_path / "file" / "envoy", CLOCK)
