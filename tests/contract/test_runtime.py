"""What every runtime does."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.fleet import MemoryRuntime
from springtide.drivers.process import ProcessRuntime
from springtide.drivers.system import SystemClock
from springtide.model import COUNTER, Replica, ReplicaSpec, ReplicaState
from springtide.ports import Clock, Runtime
from tests.integration.echo_service import echo


class Stage:
    """A runtime, and what a test needs to do to its replicas."""

    def __init__(self, runtime: Runtime, clock: Clock, crash: Callable[[str], None]) -> None:
        self.runtime = runtime
        self.clock = clock
        self.crash = crash

    async def wait(self) -> None:
        if isinstance(self.clock, VirtualClock):
            await self.clock.advance(0.1)
        else:
            await asyncio.sleep(0.02)

    async def until(self, state: ReplicaState, *replica_ids: str) -> list[Replica]:
        while True:
            found = [replica for replica in await self.runtime.list() if replica.replica_id in replica_ids]
            if len(found) == len(replica_ids) and all(replica.state is state for replica in found):
                return found
            await self.wait()

    async def started(self, *replica_ids: str) -> list[Replica]:
        for replica_id in replica_ids:
            await self.runtime.start(spec(replica_id))
        return await self.until(ReplicaState.READY, *replica_ids)

    async def states(self) -> dict[str, ReplicaState]:
        return {replica.replica_id: replica.state for replica in await self.runtime.list()}


def spec(replica_id: str) -> ReplicaSpec:
    return ReplicaSpec(replica_id, "idc-a", f"node-of-{replica_id}")


def in_memory() -> Stage:
    clock = VirtualClock()
    runtime = MemoryRuntime(clock, start_s=1.0)
    return Stage(runtime, clock, lambda replica_id: runtime.fail([replica_id]))


def on_processes(folder: Path) -> Stage:
    def crash(replica_id: str) -> None:
        os.kill(json.loads((folder / f"{replica_id}.state").read_text())["pid"], signal.SIGKILL)

    clock = SystemClock()
    return Stage(ProcessRuntime(folder, clock), clock, crash)


@pytest.fixture(params=["process", "memory"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    made = in_memory() if request.param == "memory" else on_processes(tmp_path / "replicas")
    await made.runtime.define(echo(COUNTER))
    yield made
    await made.runtime.close()
    assert await made.runtime.list() == []


async def test_a_replica_starts_and_becomes_ready(stage: Stage) -> None:
    asked_ms = stage.clock.now_ms()
    await stage.runtime.start(spec("r1"))
    (starting,) = await stage.runtime.list()
    assert (starting.state, starting.port) == (ReplicaState.STARTING, 0)
    assert asked_ms <= starting.since_ms <= stage.clock.now_ms()
    (ready,) = await stage.until(ReplicaState.READY, "r1")
    assert (ready.zone, ready.node_id, ready.host) == ("idc-a", "node-of-r1", "127.0.0.1")
    assert ready.port > 0
    assert starting.since_ms < ready.since_ms <= stage.clock.now_ms()


async def test_starting_twice_starts_one(stage: Stage) -> None:
    await stage.runtime.start(spec("r1"))
    await stage.runtime.start(spec("r1"))
    (first,) = await stage.until(ReplicaState.READY, "r1")
    await stage.runtime.start(spec("r1"))
    (again,) = await stage.runtime.list()
    assert (again.state, again.port, again.since_ms) == (ReplicaState.READY, first.port, first.since_ms)


async def test_replicas_have_ports_of_their_own(stage: Stage) -> None:
    replicas = await stage.started("r1", "r2", "r3")
    assert len({replica.port for replica in replicas}) == 3


async def test_a_drained_replica_stays_until_it_is_stopped(stage: Stage) -> None:
    await stage.started("r1", "r2")
    await stage.runtime.drain("r1")
    assert await stage.states() == {"r1": ReplicaState.DRAINING, "r2": ReplicaState.READY}
    await stage.runtime.drain("r1")
    await stage.runtime.start(spec("r1"))
    assert (await stage.states())["r1"] is ReplicaState.DRAINING
    await stage.runtime.stop("r1")
    assert await stage.states() == {"r2": ReplicaState.READY}


async def test_a_replica_can_be_stopped_while_it_starts(stage: Stage) -> None:
    await stage.runtime.start(spec("r1"))
    await stage.runtime.stop("r1")
    assert await stage.runtime.list() == []


async def test_a_stopped_id_may_start_again(stage: Stage) -> None:
    await stage.started("r1")
    await stage.runtime.stop("r1")
    (again,) = await stage.started("r1")
    assert again.state is ReplicaState.READY


async def test_unknown_ids_are_ignored(stage: Stage) -> None:
    await stage.runtime.drain("nobody")
    await stage.runtime.stop("nobody")
    assert await stage.runtime.list() == []


async def test_a_replica_that_died_has_failed_until_it_is_stopped(stage: Stage) -> None:
    await stage.started("r1", "r2")
    stage.crash("r1")
    await stage.until(ReplicaState.FAILED, "r1")
    await stage.runtime.drain("r1")
    await stage.runtime.start(spec("r1"))
    assert await stage.states() == {"r1": ReplicaState.FAILED, "r2": ReplicaState.READY}
    await stage.runtime.stop("r1")
    assert await stage.states() == {"r2": ReplicaState.READY}


async def test_close_ends_everything(stage: Stage) -> None:
    await stage.started("r1", "r2")
    await stage.runtime.start(spec("r3"))
    await stage.runtime.close()
    assert await stage.runtime.list() == []
