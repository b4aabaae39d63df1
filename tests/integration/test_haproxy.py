"""HAProxy as it is: what the contract suite cannot say of every balancer."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from springtide.drivers import balancers
from springtide.drivers.balanced_service import BalancedService
from springtide.drivers.balancers import choose, start_balancer
from springtide.drivers.embedded_haproxy import EmbeddedHaproxy, haproxy_binary, start_haproxy
from springtide.drivers.haproxy import HaproxyBalancer
from springtide.drivers.haproxy_api import RuntimeApi
from springtide.drivers.haproxy_latency import KEPT_MAX, LatencyLog
from springtide.drivers.system import SystemClock
from springtide.errors import BalancerError, EngineError
from springtide.model import Endpoint
from tests.contract.balancing import Inside, until, without_haproxy
from tests.integration.http_load import Load, send

pytestmark = pytest.mark.skipif(bool(without_haproxy()), reason=without_haproxy() or "is there")

CLOCK = SystemClock()
SHOP = BalancedService("shop", slow_start_ms=0)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("b")


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[EmbeddedHaproxy]:
    engine = await start_haproxy(folder, CLOCK, [SHOP])
    try:
        yield engine
    finally:
        await engine.stop()


@pytest.fixture
async def replica() -> AsyncIterator[Inside]:
    replica = Inside("a1")
    await replica.listen()
    yield replica
    await replica.close()


def endpoint(replica: Inside, weight: int = 10) -> Endpoint:
    return Endpoint(replica.name, "idc-a", "127.0.0.1", replica.port, weight)


async def test_servers_that_it_has_lost_come_back_with_the_next_sample(
    engine: EmbeddedHaproxy, replica: Inside, folder: Path
) -> None:
    balancer = engine.balancer("shop")
    await balancer.set_endpoints([endpoint(replica)])
    name = f"shop/a1:idc-a:127.0.0.1:{replica.port}"
    await RuntimeApi(folder / "api.sock", CLOCK).change([f"set server {name} state maint", f"del server {name}"])
    assert await balancer.healthy() == frozenset()
    await balancer.sample(1)
    await until(lambda: _healthy(balancer, "a1"))
    assert await send(engine.port("shop"), 10) == {"a1": 10}


async def test_a_server_that_returns_before_it_was_deleted_serves_again(
    engine: EmbeddedHaproxy, replica: Inside
) -> None:
    balancer = engine.balancer("shop")
    await balancer.set_endpoints([endpoint(replica)])
    replica.delay_s = 0.5
    async with Load(engine.port("shop"), connections=2) as load:
        await until(lambda: _in_flight(balancer, 2))
        await balancer.set_endpoints([])
        await balancer.set_endpoints([endpoint(replica)])
        replica.delay_s = 0.0
        await load.answered(20)
    assert load.answers["a1"] > 15


async def test_a_list_is_kept_for_a_restart_and_no_reload_is_needed_for_it(
    engine: EmbeddedHaproxy, replica: Inside, folder: Path
) -> None:
    api = RuntimeApi(folder / "api.sock", CLOCK)
    worker = await api.pid()
    for weight in (10, 20, 0):
        await engine.balancer("shop").set_endpoints([endpoint(replica, weight)])
    assert await api.pid() == worker
    assert (
        f"server a1:idc-a:127.0.0.1:{replica.port} 127.0.0.1:{replica.port} weight 0"
        in (folder / "conf" / "service-shop.cfg").read_text()
    )


async def test_servers_that_others_have_named_are_taken_over(
    engine: EmbeddedHaproxy, replica: Inside, folder: Path
) -> None:
    api = RuntimeApi(folder / "api.sock", CLOCK)
    await api.change([f"add server shop/byhand 127.0.0.1:{replica.port}", "enable server shop/byhand"])
    later = HaproxyBalancer(api, SHOP, CLOCK)
    await later.sample(0)
    assert await send(engine.port("shop"), 10) == {"a1": 10}
    assert [zone.zone for zone in (await later.sample(1)).zones] == [""]
    await later.set_endpoints([endpoint(replica)])
    assert await later.healthy() == {"a1"}


async def test_a_socket_that_says_nothing_is_an_error(folder: Path) -> None:
    ended = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        ended.set()

    server = await asyncio.start_unix_server(silent, folder / "silent")
    with pytest.raises(BalancerError, match="does not answer"):
        await RuntimeApi(folder / "silent", CLOCK).call("show info")
    server.close()
    await ended.wait()


async def test_a_service_that_the_haproxy_does_not_have_is_named(engine: EmbeddedHaproxy, folder: Path) -> None:
    balancer = HaproxyBalancer(RuntimeApi(folder / "api.sock", CLOCK), BalancedService("other"), CLOCK)
    with pytest.raises(BalancerError, match="does not have the service other"):
        await balancer.sample(1)


async def test_what_is_refused_is_said_and_the_old_list_stays(engine: EmbeddedHaproxy, replica: Inside) -> None:
    balancer = engine.balancer("shop")
    await balancer.set_endpoints([endpoint(replica)])
    balancer.service = BalancedService("shop", slow_start_ms=-1)  # past the checks, to meet HAProxy's own
    with pytest.raises(BalancerError, match="refused 1 endpoints of shop, b1"):
        await balancer.set_endpoints([endpoint(replica), Endpoint("b1", "b", "127.0.0.1", 9, 1)])
    assert await balancer.healthy() == {"a1"}


async def test_times_that_are_kept_have_a_limit_and_foreign_words_are_ignored(folder: Path) -> None:
    log = LatencyLog(folder / "log", CLOCK)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(str(log.path))
            for word in (b"-1", b"", b"x", b"7\n", *[b"5"] * (KEPT_MAX + 100), *[b"70"] * 80):
                while True:
                    try:
                        sender.send(word, socket.MSG_DONTWAIT)
                        break
                    except BlockingIOError:
                        await asyncio.sleep(0)
        while log.p99_ms(0.0) is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert log.p99_ms(0.0) == 70.0
        assert len(log._times) == KEPT_MAX
    finally:
        log.close()


async def test_a_folder_too_long_for_a_socket_is_named(folder: Path) -> None:
    with pytest.raises(EngineError, match="name a folder of at most"):
        await start_haproxy(folder / ("x" * 80), CLOCK)


async def test_a_port_in_use_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=f"{port}: the port is in use"):
            await start_haproxy(folder, CLOCK, [BalancedService("shop", port=port)])


async def test_it_starts_with_no_service_and_gets_one(folder: Path, replica: Inside) -> None:
    engine = await start_haproxy(folder, CLOCK)
    try:
        await engine.ensure_service(SHOP)
        await engine.balancer("shop").set_endpoints([endpoint(replica)])
        assert await send(engine.port("shop"), 10) == {"a1": 10}
    finally:
        await engine.stop()


async def test_auto_takes_envoy_where_haproxy_is_missing_or_does_not_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose("auto") == "haproxy"
    long = folder / ("x" * 80)
    engine = await start_balancer("auto", long, CLOCK, [SHOP])
    await engine.stop()
    assert engine.name == "envoy"

    def missing() -> Path:
        raise EngineError("not installed")

    monkeypatch.setattr(balancers, "haproxy_binary", missing)
    assert choose("auto") == "envoy"
    assert choose("haproxy") == "haproxy"


@pytest.mark.parametrize(("version", "said"), [("2.5.9", "not version 2.6"), ("x", "not version 2.6")])
def test_an_old_haproxy_is_not_taken(version: str, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "haproxy"
    program.write_text(f"#!/bin/sh\necho HAProxy version {version} 2022/01/01\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(EngineError, match=said):
        haproxy_binary()


async def _healthy(balancer: HaproxyBalancer, name: str) -> bool:
    return await balancer.healthy() == {name}


async def _in_flight(balancer: HaproxyBalancer, count: int) -> bool:
    return (await balancer.sample(1)).in_flight == count
