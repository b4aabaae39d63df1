"""What every runtime does."""

import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from springtide.errors import ReplicaError
from springtide.model import HealthCheck, ReplicaState
from tests.contract.runtimes import Stage, a_stage, get, readiness, spec, started, states, until
from tests.dockers import Engine, an_engine
from tests.integration.echo_service import echo


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with an_engine() as engine:
        yield engine


@pytest.fixture(scope="session")
def image_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(params=["process", "memory", "docker"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    async with a_stage(request.param, tmp_path / "replicas", request) as stage:
        await stage.runtime.define(stage.service(echo("echo", revision="1", announce=False)))
        yield stage


@pytest.fixture
def running(stage: Stage) -> Stage:
    if not stage.runs:
        pytest.skip("a replica in memory runs no program")
    return stage


async def test_a_replica_starts_and_becomes_ready(stage: Stage) -> None:
    asked_ms = stage.clock.now_ms()
    await stage.runtime.start(spec("r1"))
    (starting,) = await stage.runtime.list()
    assert (starting.state, starting.port) == (ReplicaState.STARTING, 0)
    assert asked_ms <= starting.since_ms <= stage.clock.now_ms()
    (ready,) = await until(stage, ReplicaState.READY, "r1")
    assert (ready.zone, ready.node_id, ready.service, ready.revision) == ("idc-a", "node-of-r1", "echo", "1")
    assert ready.host
    assert ready.port > 0
    assert starting.since_ms < ready.since_ms <= stage.clock.now_ms()


async def test_a_revision_that_is_not_defined_is_refused(stage: Stage) -> None:
    for unknown in (spec("r1", revision="2"), spec("r1", service="other")):
        with pytest.raises(ReplicaError, match="define it"):
            await stage.runtime.start(unknown)
    assert await stage.runtime.list() == []


async def test_a_revision_is_defined_once(running: Stage) -> None:
    await running.runtime.define(running.service(echo("echo", "mode=ends", revision="1", announce=False)))
    (replica,) = await started(running, "r1")
    assert replica.state is ReplicaState.READY


async def test_starting_twice_starts_one(stage: Stage) -> None:
    await stage.runtime.start(spec("r1"))
    await stage.runtime.start(spec("r1"))
    (first,) = await until(stage, ReplicaState.READY, "r1")
    await stage.runtime.start(spec("r1"))
    (again,) = await stage.runtime.list()
    assert (again.state, again.port, again.since_ms) == (ReplicaState.READY, first.port, first.since_ms)


async def test_replicas_have_addresses_of_their_own(stage: Stage) -> None:
    replicas = await started(stage, "r1", "r2", "r3")
    assert len({(replica.host, replica.port) for replica in replicas}) == 3


async def test_a_drained_replica_stays_until_it_is_stopped(stage: Stage) -> None:
    await started(stage, "r1", "r2")
    await stage.runtime.drain("r1")
    assert await states(stage) == {"r1": ReplicaState.DRAINING, "r2": ReplicaState.READY}
    await stage.runtime.drain("r1")
    await stage.runtime.start(spec("r1"))
    assert (await states(stage))["r1"] is ReplicaState.DRAINING
    await stage.runtime.stop("r1")
    assert await states(stage) == {"r2": ReplicaState.READY}


async def test_a_drained_replica_is_told(running: Stage) -> None:
    (replica,) = await started(running, "r1")
    await running.runtime.drain("r1")
    while await readiness(replica) != 503:
        await running.wait()
    assert await get(replica, "/") == "ok"


async def test_a_drain_during_the_start_takes_effect_after_it(running: Stage) -> None:
    await running.runtime.start(spec("r1"))
    await running.runtime.drain("r1")
    while not (replica := (await until(running, ReplicaState.DRAINING, "r1"))[0]).port:
        await running.wait()
    while await readiness(replica) != 503:
        await running.wait()


async def test_a_service_without_a_drain_signal_gets_none(running: Stage) -> None:
    service = msgspec.structs.replace(echo("deaf", revision="1", announce=False), drain_signal="")
    await running.runtime.define(running.service(service))
    (replica,) = await started(running, "r1", service="deaf")
    await running.runtime.drain("r1")
    assert await states(running) == {"r1": ReplicaState.DRAINING}
    assert await readiness(replica) == 200


async def test_a_replica_can_be_stopped_while_it_starts(stage: Stage) -> None:
    await stage.runtime.start(spec("r1"))
    await stage.wait()
    await stage.runtime.stop("r1")
    assert await stage.runtime.list() == []


async def test_a_stopped_id_may_start_again(stage: Stage) -> None:
    await started(stage, "r1")
    await stage.runtime.stop("r1")
    (again,) = await started(stage, "r1")
    assert again.state is ReplicaState.READY


async def test_unknown_ids_are_ignored(stage: Stage) -> None:
    await stage.runtime.drain("nobody")
    await stage.runtime.stop("nobody")
    assert await stage.runtime.logs("nobody", 10) == []
    assert await stage.runtime.list() == []


async def test_a_replica_that_died_has_failed_until_it_is_stopped(stage: Stage) -> None:
    await started(stage, "r1", "r2")
    await stage.crash("r1")
    (failed,) = await until(stage, ReplicaState.FAILED, "r1")
    assert "replica r1" in failed.failure
    await stage.runtime.drain("r1")
    await stage.runtime.start(spec("r1"))
    assert await states(stage) == {"r1": ReplicaState.FAILED, "r2": ReplicaState.READY}
    await stage.runtime.stop("r1")
    assert await states(stage) == {"r2": ReplicaState.READY}


async def test_a_program_that_ends_says_why(running: Stage) -> None:
    await running.runtime.define(running.service(echo("echo", "mode=ends", revision="bad", announce=False)))
    await running.runtime.start(spec("r1", revision="bad"))
    (failed,) = await until(running, ReplicaState.FAILED, "r1")
    assert "status 3" in failed.failure
    assert "no stomach for it" in failed.failure
    assert (await running.runtime.logs("r1", 100))[-1] == "no stomach for it"
    assert failed.revision == "bad"


async def test_a_program_that_does_not_get_ready_fails(running: Stage) -> None:
    service = echo("echo", "mode=unready", "says=not yet", revision="slow", announce=False, start_ms_max=1500)
    await running.runtime.define(running.service(service))
    await running.runtime.start(spec("r1", revision="slow"))
    (failed,) = await until(running, ReplicaState.FAILED, "r1")
    assert "not ready within 1.5 s" in failed.failure
    assert "not yet" in failed.failure


async def test_the_health_check_is_the_services_own(running: Stage) -> None:
    service = msgspec.structs.replace(
        echo("echo", "status=500", revision="ill", announce=False, start_ms_max=1500), health=HealthCheck("/other")
    )
    await running.runtime.define(running.service(service))
    await running.runtime.start(spec("r1", revision="ill"))
    (failed,) = await until(running, ReplicaState.FAILED, "r1")
    assert "not ready" in failed.failure


async def test_a_log_is_read_from_its_end(running: Stage) -> None:
    await running.runtime.define(running.service(echo("echo", "says=one\ntwo\nthree", revision="3", announce=False)))
    await started(running, "r1", revision="3")
    assert list(await running.runtime.logs("r1", 2)) == ["two", "three"]
    assert list(await running.runtime.logs("r1", 100)) == ["one", "two", "three"]
    assert list(await running.runtime.logs("r1", 0)) == []


async def test_environment_and_secrets_are_delivered(running: Stage, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2\n")
    service = msgspec.structs.replace(
        echo("echo", revision="4", announce=False),
        env={"COLOUR": "blue"},
        secrets={"PASSWORD": str(tmp_path / "secret")},
    )
    await running.runtime.define(running.service(service))
    (replica,) = await started(running, "r1", revision="4")
    assert await get(replica, "/env/COLOUR") == "blue"
    assert await get(replica, "/env/PASSWORD") == "hunter2"
    assert await get(replica, "/env/SPRINGTIDE_REPLICA_ID") == "r1"
    assert (await get(replica, "/env/PORT")).isdigit()


async def test_a_secret_that_is_written_out_is_not_passed_on(running: Stage, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    service = msgspec.structs.replace(
        echo("echo", "says=I have hunter2", "mode=ends", revision="5", announce=False),
        secrets={"PASSWORD": str(tmp_path / "secret")},
    )
    await running.runtime.define(running.service(service))
    await running.runtime.start(spec("r1", revision="5"))
    (failed,) = await until(running, ReplicaState.FAILED, "r1")
    assert "I have ***" in failed.failure


async def test_a_secret_that_is_not_there_is_named(running: Stage, tmp_path: Path) -> None:
    service = msgspec.structs.replace(
        echo("echo", revision="6", announce=False), secrets={"PASSWORD": str(tmp_path / "nothing")}
    )
    await running.runtime.define(running.service(service))
    await running.runtime.start(spec("r1", revision="6"))
    (failed,) = await until(running, ReplicaState.FAILED, "r1")
    assert "PASSWORD" in failed.failure
    assert "nothing" in failed.failure


async def test_two_services_run_side_by_side(stage: Stage) -> None:
    await stage.runtime.define(stage.service(echo("shop", revision="a", announce=False)))
    await started(stage, "r1")
    await started(stage, "s1", service="shop", revision="a")
    seen = {replica.replica_id: (replica.service, replica.revision) for replica in await stage.runtime.list()}
    assert seen == {"r1": ("echo", "1"), "s1": ("shop", "a")}


async def test_another_runtime_finds_what_one_has_left(stage: Stage) -> None:
    before = {replica.replica_id: replica for replica in await started(stage, "r1", "r2", "r3")}
    await stage.runtime.drain("r2")
    await stage.crash("r3")
    await stage.again()
    (failed,) = await until(stage, ReplicaState.FAILED, "r3")
    assert failed.revision == "1"
    after = {replica.replica_id: replica for replica in await stage.runtime.list()}
    assert {name: replica.state for name, replica in after.items()} == {
        "r1": ReplicaState.READY,
        "r2": ReplicaState.DRAINING,
        "r3": ReplicaState.FAILED,
    }
    for name in ("r1", "r2"):
        was, now = before[name], after[name]
        assert (now.host, now.port, now.zone, now.node_id) == (was.host, was.port, was.zone, was.node_id)
        assert (now.service, now.revision) == ("echo", "1")
    await stage.runtime.define(stage.service(echo("echo", revision="1", announce=False)))
    await stage.runtime.start(spec("r1"))
    assert [replica.replica_id for replica in await stage.runtime.list()].count("r1") == 1
    await stage.runtime.stop("r2")
    assert set(await states(stage)) == {"r1", "r3"}


async def test_a_start_that_was_cut_off_is_finished_by_the_next_runtime(running: Stage) -> None:
    await running.runtime.start(spec("r1"))
    while not await running.runtime.logs("r1", 1) and (await states(running))["r1"] is ReplicaState.STARTING:
        await running.wait()
    await running.again()
    (replica,) = await until(running, ReplicaState.READY, "r1")
    assert await get(replica, "/") == "ok"


async def test_too_much_memory_ends_a_replica_and_is_named(running: Stage) -> None:
    if running.limited:
        pytest.skip(running.limited)
    service = msgspec.structs.replace(
        echo("echo", "holds_mb=200", revision="7", announce=False), memory_mb=64, cores=0.5
    )
    await running.runtime.define(running.service(service))
    await running.runtime.start(spec("r1", revision="7"))
    (failed,) = await until(running, ReplicaState.FAILED, "r1")
    assert "out of memory at its limit of 64 MB" in failed.failure


async def test_what_a_replica_uses_is_counted(running: Stage) -> None:
    await started(running, "r1")
    while not ((replica := (await running.runtime.list())[0]).cpu_s and replica.memory_bytes):
        await running.wait()
    assert 1_000_000 < replica.memory_bytes < 500_000_000


async def test_a_port_that_others_use_is_no_obstacle(running: Stage) -> None:
    """The machine's port is somebody else's; each replica still gets one of its own."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 8080))
        other.listen()
        replicas = await started(running, "r1", "r2")
    assert {await get(replica, "/env/SPRINGTIDE_REPLICA_ID") for replica in replicas} == {"r1", "r2"}


async def test_close_ends_everything(stage: Stage) -> None:
    await started(stage, "r1", "r2")
    await stage.runtime.start(spec("r3"))
    await stage.runtime.close()
    await stage.again()
    assert await stage.runtime.list() == []
