"""The runtimes that the contract suite is run on, and what a test needs to do to their replicas."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest

from springtide.drivers.docker import DockerRuntime, DockerSettings
from springtide.drivers.http_get import http_get
from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.fleet import MemoryRuntime
from springtide.drivers.process import ProcessRuntime, ProcessSettings
from springtide.drivers.system import SystemClock
from springtide.model import Replica, ReplicaSpec, ReplicaState, ServiceSpec
from springtide.ports import Clock, Runtime
from tests.dockers import Engine
from tests.integration.echo_service import in_container

FLEET = f"test-{os.getpid()}"


class Stage(Protocol):
    """A runtime. `runs` tells whether its replicas are programs; `hosts` where they may be reached."""

    runtime: Runtime
    clock: Clock
    runs: bool
    limited: str

    def service(self, service: ServiceSpec) -> ServiceSpec:
        """The service as this runtime needs it."""

    async def crash(self, replica_id: str) -> None:
        """Kill its program."""

    async def again(self) -> None:
        """The runtime's process dies, and another takes over."""

    async def wait(self) -> None:
        """Let a moment pass."""


async def until(stage: Stage, state: ReplicaState, *replica_ids: str) -> list[Replica]:
    """The replicas, once they are all in this state."""
    while True:
        found = [replica for replica in await stage.runtime.list() if replica.replica_id in replica_ids]
        if len(found) == len(replica_ids) and all(replica.state is state for replica in found):
            return found
        assert state is ReplicaState.FAILED or not any(replica.failure for replica in found), found
        await stage.wait()


async def started(stage: Stage, *replica_ids: str, service: str = "echo", revision: str = "1") -> list[Replica]:
    """Start these replicas; returns when they are ready."""
    for replica_id in replica_ids:
        await stage.runtime.start(spec(replica_id, service, revision))
    return await until(stage, ReplicaState.READY, *replica_ids)


async def states(stage: Stage) -> dict[str, ReplicaState]:
    """All replicas."""
    return {replica.replica_id: replica.state for replica in await stage.runtime.list()}


async def get(replica: Replica, path: str) -> str:
    """What a replica answers."""
    return (await http_get(SystemClock(), replica.host, replica.port, path, 5.0))[1].decode()


async def readiness(replica: Replica) -> int:
    """The status of its health check."""
    return (await http_get(SystemClock(), replica.host, replica.port, "/readyz", 5.0))[0]


def spec(replica_id: str, service: str = "echo", revision: str = "1") -> ReplicaSpec:
    """A replica in the one zone that every runtime here serves."""
    return ReplicaSpec(replica_id, "idc-a", f"node-of-{replica_id}", service, revision)


class InMemory:
    """Nothing runs."""

    runs = False
    limited = "a replica in memory uses nothing"

    def __init__(self) -> None:
        self.time = VirtualClock()
        self.clock: Clock = self.time
        self.memory = MemoryRuntime(self.time, start_s=1.0)
        self.runtime: Runtime = self.memory

    def service(self, service: ServiceSpec) -> ServiceSpec:
        return service

    async def crash(self, replica_id: str) -> None:
        self.memory.fail([replica_id])

    async def again(self) -> None:
        """There is no process that it could outlive."""

    async def wait(self) -> None:
        await self.time.advance(0.1)


class OnProcesses:
    """Replicas that end with the test, should all else fail."""

    runs = True

    def __init__(self, folder: Path) -> None:
        self.clock: Clock = SystemClock()
        self.folder = folder
        self.processes = self._make()
        self.runtime: Runtime = self.processes
        self.limited = self.processes._groups.missing
        self.past: list[ProcessRuntime] = []

    def _make(self) -> ProcessRuntime:
        return ProcessRuntime(self.folder, self.clock, ProcessSettings(die_with_parent=True))

    def service(self, service: ServiceSpec) -> ServiceSpec:
        return service

    async def crash(self, replica_id: str) -> None:
        os.kill(json.loads((self.folder / f"{replica_id}.state").read_text())["pid"], signal.SIGKILL)

    async def again(self) -> None:
        tasks = [slot.bring_up for slot in self.processes._slots.values() if slot.bring_up]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.past.append(self.processes)
        self.processes = self._make()
        await self.processes.adopt()
        self.runtime = self.processes

    async def wait(self) -> None:
        await asyncio.sleep(0.02)

    def bury(self) -> None:
        """Take note of the children of runtimes that are past: this process is their parent, and lives."""
        for runtime in self.past:
            for slot in runtime._slots.values():
                assert slot.process is None or slot.process.returncode is not None


class OnDocker:
    """Containers of one fleet."""

    runs = True
    limited = ""

    def __init__(self, engine: Engine, image: str) -> None:
        self.clock: Clock = SystemClock()
        self.engine = engine
        self.image = image
        self.docker = self._make()
        self.runtime: Runtime = self.docker

    def _make(self) -> DockerRuntime:
        settings = DockerSettings(FLEET, self.engine.url, ("idc-a",), address=self.engine.address)
        return DockerRuntime(settings, self.clock)

    def service(self, service: ServiceSpec) -> ServiceSpec:
        return in_container(service, self.image)

    async def crash(self, replica_id: str) -> None:
        self.engine.docker("kill", f"springtide-{FLEET}-{replica_id}")

    async def again(self) -> None:
        await self.docker.detach()
        self.docker = self._make()
        self.runtime = self.docker

    async def wait(self) -> None:
        await asyncio.sleep(0.02)


@asynccontextmanager
async def a_stage(name: str, folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """The runtime with this name; nothing of it is left afterwards."""
    if name == "docker":
        engine: Engine = request.getfixturevalue("engine")
        docker = OnDocker(engine, await engine.echo_image(request.getfixturevalue("image_cache")))
        yield docker
        await docker.runtime.close()
        assert not engine.docker("ps", "--all", "--quiet", "--filter", f"label=springtide.run/fleet={FLEET}")
    elif name == "memory":
        yield InMemory()
    else:
        processes = OnProcesses(folder)
        yield processes
        await processes.runtime.close()
        processes.bury()
