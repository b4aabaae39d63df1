"""What every balancer engine does as a process: several services, its own end, and the end of who started it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from springtide.drivers.balanced_service import BalancedService
from springtide.drivers.balancers import start_balancer
from springtide.errors import BalancerError, EngineError
from springtide.model import HealthCheck
from tests.contract.balancing import CLOCK, KINDS, SHOP, Inside, Kind, Stage, staged, until
from tests.integration.http_load import Connection, send

WEB = BalancedService("web", slow_start_ms=0)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return kind


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("b")


@pytest.fixture
async def stage(kind: Kind, folder: Path) -> AsyncIterator[Stage]:
    async with staged(kind, folder) as stage:
        yield stage


async def test_services_come_change_and_go_under_load_of_another(stage: Stage) -> None:
    await stage.begin_inside("a1 b1")
    (web,) = await stage.begin_inside("w1")
    await stage.route(a1=10, b1=10)
    shop = stage.balancer
    async with stage.load() as load:
        for turn in range(3):
            await stage.engine.ensure_service(WEB)
            await load.answered(100)
            await stage.engine.balancer("web").set_endpoints([stage.endpoint("w1", 1)])
            assert await send(stage.engine.port("web"), 20) == {"w1": 20}
            await stage.engine.ensure_service(msgspec.structs.replace(SHOP, queue_max=100 + turn))
            await load.answered(100)
            await stage.engine.remove_service("web")
            await load.answered(100)
    assert load.failed == {}
    assert stage.balancer is shop
    assert await shop.healthy() == {"a1", "b1"}
    assert stage.engine.services == {"shop"}
    assert web.served == 60


async def test_a_new_service_breaks_no_idle_connection_and_brings_no_ill_replica_back(stage: Stage) -> None:
    (_, ill) = await stage.begin_inside("a1 b1")
    await stage.route(a1=10, b1=10)
    ill.check_status = 503
    await until(lambda: _healthy(stage, "a1"))
    ill.served = 0
    idle = [Connection(stage.port) for _ in range(8)]
    for connection in idle:
        assert (await connection.request()).status == 200
    await stage.engine.ensure_service(WEB)
    assert await stage.balancer.healthy() == {"a1"}
    assert await stage.send(20) == {"a1": 20}
    for connection in idle:
        assert (await connection.request()).status == 200
        await connection.close()
    assert ill.served == 0


async def test_each_service_has_its_own_replicas_port_and_figures(stage: Stage) -> None:
    await stage.begin_inside("a1 w1")
    await stage.engine.ensure_service(WEB)
    web = stage.engine.balancer("web")
    await stage.route(a1=1)
    await web.set_endpoints([stage.endpoint("w1", 1)])
    await stage.balancer.sample(0)
    await web.sample(0)
    assert await stage.send(10) == {"a1": 10}
    assert (await web.sample(1)).requests_per_s == 0
    assert await send(stage.engine.port("web"), 10) == {"w1": 10}
    assert (await web.sample(2)).requests_per_s > 0
    assert stage.engine.url("web").endswith(f":{stage.engine.port('web')}")


async def test_the_same_service_again_changes_nothing_and_a_change_keeps_its_replicas(stage: Stage) -> None:
    (one,) = await stage.begin_inside("a1")
    await stage.route(a1=1)
    port, pid = stage.port, stage.engine.process.pid if stage.engine.process else 0
    await stage.engine.ensure_service(SHOP)
    assert await stage.send(10) == {"a1": 10}
    one.check_status = 404
    await until(lambda: _nobody(stage))
    await stage.engine.ensure_service(msgspec.structs.replace(SHOP, health=HealthCheck(path="/other?x=1")))
    await until(lambda: _somebody(stage))
    assert await stage.send(10) == {"a1": 10}
    assert (stage.port, stage.engine.process.pid if stage.engine.process else -1) == (port, pid)


async def test_a_service_that_is_not_served_is_named(stage: Stage) -> None:
    await stage.engine.remove_service("web")
    for call in (stage.engine.port, stage.engine.balancer, stage.engine.url):
        with pytest.raises(EngineError, match="does not serve web; it serves shop"):
            call("web")


async def test_a_port_in_use_is_named_and_what_is_served_goes_on(stage: Stage) -> None:
    await stage.begin_inside("a1")
    await stage.route(a1=1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=f"{port}: the port is in use"):
            await stage.engine.ensure_service(msgspec.structs.replace(WEB, port=port))
    assert await stage.send(10) == {"a1": 10}
    assert stage.engine.services == {"shop"}
    await stage.engine.ensure_service(msgspec.structs.replace(WEB, port=port))
    assert stage.engine.port("web") == port


@pytest.mark.parametrize(
    "changed",
    [{"health": HealthCheck(path="no slash")}, {"health": HealthCheck(path="/a b")}, {"port": 70_000}, {"try_ms": 0}],
    ids=["path", "blank", "port", "time"],
)
async def test_a_service_that_no_engine_could_serve_is_refused(stage: Stage, changed: dict[str, object]) -> None:
    with pytest.raises(EngineError, match="web must"):
        await stage.engine.ensure_service(msgspec.structs.replace(WEB, **changed))
    assert stage.engine.services == {"shop"}


async def test_after_its_death_it_has_the_ports_and_replicas_it_had(stage: Stage) -> None:
    await stage.begin_inside("a1 b1")
    await stage.route(a1=10, b1=10)
    await stage.balancer.sample(0)
    port, shop = stage.port, stage.balancer
    assert stage.engine.process is not None
    os.kill(stage.engine.process.pid, signal.SIGKILL)
    await until(lambda: _dead(stage))
    with pytest.raises(BalancerError):
        await shop.sample(1)
    await stage.engine.restart()
    assert stage.port == port
    assert stage.balancer is shop
    await until(lambda: _healthy(stage, "a1 b1"))
    assert await stage.send(40) == {"a1": 20, "b1": 20}
    sample = await shop.sample(2)
    assert sample.requests_per_s == pytest.approx(sum(zone.requests_per_s for zone in sample.zones)) != 0
    await stage.route(b1=1)
    assert await stage.send(10) == {"b1": 10}


async def test_a_later_process_takes_over_the_one_that_runs(kind: Kind, folder: Path) -> None:
    one, two = Inside("a1"), Inside("b1")
    await one.listen()
    await two.listen()
    first = await start_balancer(kind, folder, CLOCK, [SHOP, WEB], survive=True)
    try:
        stage = Stage(first, folder, "shop")
        stage.ports = {"a1": one.port, "b1": two.port}
        await stage.route(a1=30, b1=10)
        first.detach()
        second = await start_balancer(kind, folder, CLOCK, [SHOP], survive=True)
        assert first.process is not None
        assert second.process is not None
        assert (second.process.pid, second.process.child) == (first.process.pid, None)
        assert (second.port("shop"), second.port("web")) == (first.port("shop"), first.port("web"))
        assert await second.balancer("shop").healthy() == {"a1", "b1"}
        await second.balancer("shop").sample(0)
        assert await send(second.port("shop"), 40) == {"a1": 30, "b1": 10}
        sample = await second.balancer("shop").sample(1)
        assert {zone.zone for zone in sample.zones} == {"a", "b"}
        await second.ensure_service(msgspec.structs.replace(WEB, name="third"))
        assert await send(second.port("shop"), 40) == {"a1": 30, "b1": 10}
        stage.engine = second
        await stage.route(b1=10)
        assert await send(second.port("shop"), 40) == {"b1": 40}
        await second.stop()
    finally:
        await first.stop()
        await one.close()
        await two.close()


async def test_one_that_died_with_who_started_it_begins_where_it_was(kind: Kind, folder: Path) -> None:
    one = Inside("a1")
    await one.listen()
    first = await start_balancer(kind, folder, CLOCK, [SHOP, WEB], survive=True)
    try:
        stage = Stage(first, folder, "shop")
        stage.ports = {"a1": one.port}
        await stage.route(a1=10)
        first.detach()
        assert first.process is not None
        os.kill(first.process.pid, signal.SIGKILL)
        await until(lambda: _dead(stage))
        second = await start_balancer(kind, folder, CLOCK, survive=True)
        try:
            assert second.services == {"shop", "web"}
            assert (second.port("shop"), second.port("web")) == (first.port("shop"), first.port("web"))
            stage.engine = second
            await until(lambda: _healthy(stage, "a1"))
            assert await stage.send(10) == {"a1": 10}
        finally:
            await second.stop()
        third = await start_balancer(kind, folder, CLOCK)
        assert third.services == frozenset()
        await third.stop()
    finally:
        await first.stop()
        await one.close()


STARTER = """
import asyncio, sys
from pathlib import Path
from springtide.drivers.balancers import start_balancer
from tests.contract.balancing import CLOCK, SHOP

async def main():
    engine = await start_balancer(sys.argv[1], Path(sys.argv[2]), CLOCK, [SHOP], survive=sys.argv[3] == "yes")
    print(engine.process.pid, engine.port("shop"), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("survive", ["yes", "no"])
async def test_it_ends_with_who_started_it_unless_it_is_to_survive(kind: Kind, folder: Path, survive: str) -> None:
    command = [sys.executable, "-c", STARTER, kind, str(folder), survive]
    starter = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert starter.stdout is not None
    pid, port = (int(word) for word in starter.stdout.readline().split())
    starter.kill()
    starter.wait()
    starter.stdout.close()
    if survive == "no":
        await until(lambda: _refused(port))
    later = await start_balancer(kind, folder, CLOCK, [SHOP])
    try:
        assert later.process is not None
        assert (later.process.pid == pid) is (survive == "yes")
        assert (later.process.child is None) is (survive == "yes")
        assert (later.port("shop") == port) or survive == "no"
        answers = await send(later.port("shop"), 5)
        assert answers == {"failed 503": 5}
    finally:
        await later.stop()
    assert await _refused(port)


async def test_a_folder_that_cannot_be_written_is_named(kind: Kind, folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(EngineError, match=f"file/{kind}"):
        await start_balancer(kind, folder / "file", CLOCK, [SHOP])


@pytest.mark.parametrize("call", ["set_endpoints", "sample", "healthy"])
async def test_an_engine_that_is_gone_is_said_at_once(stage: Stage, call: str) -> None:
    shop = stage.balancer
    await stage.engine.stop()
    with pytest.raises(BalancerError, match="does not answer"):
        await (
            shop.set_endpoints([])
            if call == "set_endpoints"
            else shop.sample(1)
            if call == "sample"
            else shop.healthy()
        )


async def _healthy(stage: Stage, names: str) -> bool:
    return await stage.balancer.healthy() == set(names.split())


async def _nobody(stage: Stage) -> bool:
    return not await stage.balancer.healthy()


async def _somebody(stage: Stage) -> bool:
    return bool(await stage.balancer.healthy())


async def _dead(stage: Stage) -> bool:
    return stage.engine.process is None or not stage.engine.process.alive


async def _refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False
