"""A control loop as a process, killed at random moments: the next one converges, with no duplicate and no orphan."""

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import msgspec
import pytest

from springtide.drivers.embedded_postgres import start_postgres
from springtide.drivers.postgres import migrate
from springtide.drivers.postgres_fleet import PostgresFleetState
from springtide.drivers.system import SystemClock
from springtide.fleet.status import read_status
from springtide.model import ReplicaState, ScaleOverride, ServiceWish
from tests.integration.echo_service import echo
from tests.integration.loop_process import FileBalancer, local_cloud, process_runtime

CLOCK = SystemClock()
PROGRAM = Path(__file__).with_name("loop_process.py")
KILLS = 12
SEED = 20260


class Chaos:
    """The state, the folder of the replicas, and the loop that runs now."""

    def __init__(self, folder: Path, dsn: str, state: PostgresFleetState) -> None:
        self.folder = folder
        self.dsn = dsn
        self.state = state
        self.begun = 0
        self.process: asyncio.subprocess.Process | None = None

    async def begin(self) -> None:
        """Start a loop; returns when it leads."""
        self.begun += 1
        arguments = (str(PROGRAM), self.dsn, str(self.folder), f"r{self.begun}")
        environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, env=environment
        )
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            assert await self.process.stdout.readline() == b"leads\n"

    async def kill(self) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def wish(self, revision: str) -> None:
        spec = echo("web", revision=revision)
        await self.state.wish_service("web", ServiceWish(spec, 100.0, replicas_min=2, drain_ms=200))

    def processes(self) -> dict[str, int]:
        """The living processes of this fleet, by replica id, whoever knows of them."""
        found: dict[str, int] = {}
        mark = f"SPRINGTIDE_ANNOUNCE={self.folder / 'replicas'}".encode()
        for entry in Path("/proc").iterdir():
            try:
                environment = (entry / "environ").read_bytes().split(b"\0") if entry.name.isdigit() else []
            except OSError:
                continue
            if any(word.startswith(mark) for word in environment):
                (name,) = [word for word in environment if word.startswith(b"SPRINGTIDE_REPLICA_ID=")]
                assert name.decode() not in found, "two processes are one replica"
                found[name.decode().partition("=")[2]] = int(entry.name)
        return found

    async def converged(self, count: int, revision: str, nodes: int) -> str:
        """What is not as it should be yet; empty when all is."""
        status = await read_status(self.state)
        service = status.services.get("web") if status else None
        states = {state: n for zone in (service.replicas if service else {}).values() for state, n in zone.items()}
        listed = sum(n for zone in (service.replicas if service else {}).values() for n in zone.values())
        if set(states) - {ReplicaState.READY.value} or listed != count or (service and service.revision != revision):
            return f"replicas: {service}"
        processes = self.processes()
        if len(processes) != count:
            return f"processes: {processes}"
        endpoints = FileBalancer(self.folder / "endpoints.json", CLOCK).read()
        if {one.replica_id for one in endpoints} != set(processes) or not all(one.weight for one in endpoints):
            return f"endpoints: {endpoints}"
        rented = await local_cloud(self.folder, CLOCK).nodes()
        if len(rented) != nodes:
            return f"nodes: {rented}"
        return f"intents: {found}" if (found := await self.state.open_intents()) else ""

    async def until_converged(self, count: int, revision: str, nodes: int, seconds: float = 20.0) -> None:
        until_s = CLOCK.monotonic_s() + seconds
        while left := await self.converged(count, revision, nodes):
            assert CLOCK.monotonic_s() < until_s, left
            await asyncio.sleep(0.1)


@pytest.fixture
async def chaos(short_dir: Path) -> AsyncIterator[Chaos]:
    server = await start_postgres(CLOCK)
    try:
        await migrate(server.dsn)
        state = await PostgresFleetState.connect(server.dsn, CLOCK)
        made = Chaos(short_dir, server.dsn, state)
        try:
            yield made
        finally:
            if made.process is not None:
                await made.kill()
            await state.close()
            runtime = process_runtime(short_dir, CLOCK)
            await runtime.adopt()
            await runtime.close()
            assert made.processes() == {}
    finally:
        await server.stop()


async def test_a_loop_that_is_killed_again_and_again_converges(chaos: Chaos) -> None:
    chance = random.Random(SEED)
    revision = "v1"
    await chaos.wish(revision)
    for number in range(KILLS):
        await chaos.begin()
        if number % 3 == 1:
            revision = f"v{number}"
            await chaos.wish(revision)
        await chaos.state.wish_scale("web", ScaleOverride(*([7, 9] if number % 2 == 0 else [2, 3])))
        await asyncio.sleep(chance.uniform(0.0, 1.2))
        await chaos.kill()
    await chaos.begin()
    await chaos.state.wish_scale("web", ScaleOverride(5, 5))
    # Two of five are the base, in the IDC; three take two nodes of two cores.
    await chaos.until_converged(5, revision, nodes=2)
    purchases = msgspec.json.decode((chaos.folder / "cloud.json").read_bytes())["purchases"]
    assert len(purchases) == len(set(purchases))
    await chaos.state.wish_scale("web", None)
    await chaos.state.wish_service("web", None)
    until_s = CLOCK.monotonic_s() + 20
    while chaos.processes() or await local_cloud(chaos.folder, CLOCK).nodes() or await chaos.state.open_intents():
        assert CLOCK.monotonic_s() < until_s
        await asyncio.sleep(0.1)


async def test_a_frozen_loop_is_followed_and_does_nothing_when_it_wakes(chaos: Chaos) -> None:
    await chaos.wish("v1")
    await chaos.begin()
    await chaos.until_converged(2, "v1", nodes=0)
    frozen = chaos.process
    assert frozen is not None
    frozen.send_signal(signal.SIGSTOP)
    try:
        await chaos.begin()
        before = chaos.processes()
        await chaos.state.wish_scale("web", ScaleOverride(4, 4))
        frozen.send_signal(signal.SIGCONT)
        await chaos.until_converged(4, "v1", nodes=1)
        assert before.items() <= chaos.processes().items()
        await asyncio.sleep(1.0)
        status = await read_status(chaos.state)
        assert status is not None
        assert (status.leader, status.term) == ("r2", 2)
        connection = await asyncpg.connect(chaos.dsn)
        assert await connection.fetchval("SELECT max(term) FROM fleet_memory WHERE name = 'status'") == 2
        await connection.close()
    finally:
        frozen.kill()
        await frozen.wait()
