"""Replicas as real processes: what the contract suite cannot say of every runtime."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from springtide.drivers.cgroups import Groups, Mount
from springtide.drivers.http_get import http_get
from springtide.drivers.listening import free_port
from springtide.drivers.pids import Process, find_by_environment, usage_of
from springtide.drivers.process import ProcessRuntime, ProcessSettings
from springtide.drivers.system import SystemClock
from springtide.errors import ReplicaError
from springtide.model import COUNTER, Replica, ReplicaSpec, ReplicaState, ServiceSpec
from tests.integration.echo_service import ECHO, echo
from tests.integration.http_load import Connection

CLOCK = SystemClock()

Make = Callable[..., Awaitable[ProcessRuntime]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Runtimes on one folder; every process of theirs has ended afterwards."""
    made: list[ProcessRuntime] = []

    async def runtime(
        *options: str, settings: ProcessSettings | None = None, start_ms_max: int = 15_000, stop_grace_ms: int = 2_000
    ) -> ProcessRuntime:
        made.append(ProcessRuntime(tmp_path / "replicas", CLOCK, settings))
        await made[-1].define(echo(COUNTER, *options, start_ms_max=start_ms_max, stop_grace_ms=stop_grace_ms))
        return made[-1]

    yield runtime
    for each in made:
        await each.close()
    assert list((tmp_path / "replicas").glob("*.state")) == []


async def until(runtime: ProcessRuntime, state: ReplicaState, replica_id: str = "r1") -> Replica:
    while True:
        for replica in await runtime.list():
            if replica.replica_id == replica_id and replica.state is state:
                return replica
        await asyncio.sleep(0.02)


async def failure(runtime: ProcessRuntime) -> str:
    (replica,) = await runtime.list()
    assert replica.state is ReplicaState.FAILED
    return replica.failure


def spec(replica_id: str = "r1") -> ReplicaSpec:
    return ReplicaSpec(replica_id, "idc-a", "idc-a-1")


def pid_of(folder: Path, replica_id: str = "r1") -> int:
    return int(json.loads((folder / "replicas" / f"{replica_id}.state").read_text())["pid"])


def runs(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def test_a_replica_serves_and_its_use_is_counted(make: Make) -> None:
    runtime = await make()
    await runtime.start(spec())
    replica = await until(runtime, ReplicaState.READY)
    assert (replica.zone, replica.node_id, replica.host) == ("idc-a", "idc-a-1", "127.0.0.1")
    assert await http_get(CLOCK, replica.host, replica.port, "/", 2.0) == (200, b"ok")
    assert replica.cpu_s > 0
    assert 1_000_000 < replica.memory_bytes < 1_000_000_000


async def test_a_drained_replica_is_not_ready_and_serves_on(make: Make) -> None:
    runtime = await make()
    await runtime.start(spec())
    port = (await until(runtime, ReplicaState.READY)).port
    await runtime.drain("r1")
    while (await http_get(CLOCK, "127.0.0.1", port, "/readyz", 2.0))[0] != 503:
        await asyncio.sleep(0.01)
    assert await http_get(CLOCK, "127.0.0.1", port, "/", 2.0) == (200, b"ok")
    assert (await runtime.list())[0].state is ReplicaState.DRAINING


async def test_a_drain_during_the_start_takes_effect_after_it(make: Make) -> None:
    runtime = await make()
    await runtime.start(spec())
    await runtime.drain("r1")
    while not (port := (await until(runtime, ReplicaState.DRAINING)).port):
        await asyncio.sleep(0.02)
    while (await http_get(CLOCK, "127.0.0.1", port, "/readyz", 2.0))[0] != 503:
        await asyncio.sleep(0.01)


async def test_stop_lets_the_open_request_finish(make: Make, tmp_path: Path) -> None:
    runtime = await make("delay_s=0.4")
    await runtime.start(spec())
    port, pid = (await until(runtime, ReplicaState.READY)).port, pid_of(tmp_path)
    connection = Connection(port)
    request = asyncio.create_task(connection.request())
    await asyncio.sleep(0.15)
    stop = asyncio.create_task(runtime.stop("r1"))
    await asyncio.sleep(0.05)
    assert [replica.state for replica in await runtime.list()] == [ReplicaState.DRAINING]
    assert (await request).status == 200
    await asyncio.gather(stop, runtime.stop("r1"))
    await connection.close()
    assert await runtime.list() == []
    assert not runs(pid)


async def test_a_replica_that_will_not_end_is_killed(make: Make, tmp_path: Path) -> None:
    runtime = await make("mode=stubborn", stop_grace_ms=200)
    await runtime.start(spec())
    await until(runtime, ReplicaState.READY)
    pid = pid_of(tmp_path)
    await runtime.stop("r1")
    assert not runs(pid)


async def test_a_replica_that_dies_has_failed_at_once(make: Make, tmp_path: Path) -> None:
    runtime = await make()
    await runtime.start(spec())
    await until(runtime, ReplicaState.READY)
    pid = pid_of(tmp_path)
    runtime.kill("nobody")
    runtime.kill("r1")
    while runs(pid):
        await asyncio.sleep(0.005)
    assert [replica.state for replica in await runtime.list()] == [ReplicaState.FAILED]
    assert "status -9" in await failure(runtime)


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("ends", "ended by itself with status 3.*no stomach for it"),
        ("silent", "not ready within 0.7 s"),
        ("unready", "not ready within 0.7 s"),
    ],
    ids=["ends", "silent", "unready"],
)
async def test_a_replica_that_does_not_start_fails_and_says_why(
    make: Make, tmp_path: Path, mode: str, why: str
) -> None:
    runtime = await make(f"mode={mode}", start_ms_max=700)
    await runtime.start(spec())
    await until(runtime, ReplicaState.FAILED)
    assert re.search(f"(?s){why}", await failure(runtime))
    pid = pid_of(tmp_path)
    await runtime.stop("r1")
    assert not runs(pid)


async def test_a_program_that_is_not_there_fails(make: Make, tmp_path: Path) -> None:
    runtime = await make()
    await runtime.define(ServiceSpec("nothing", "1", command=(str(tmp_path / "nothing"),)))
    await runtime.start(ReplicaSpec("r1", "idc-a", "idc-a-1", "nothing", "1"))
    await until(runtime, ReplicaState.FAILED)
    assert "cannot be started" in await failure(runtime)


async def test_a_service_without_a_command_is_refused(make: Make) -> None:
    with pytest.raises(ReplicaError, match="no command"):
        await (await make()).define(ServiceSpec("nothing", "1"))


async def test_no_more_start_at_once_than_allowed(make: Make) -> None:
    runtime = await make("mode=unready", settings=ProcessSettings(starting_max=2), start_ms_max=30_000)
    for number in range(5):
        await runtime.start(spec(f"r{number}"))
    while sum(replica.memory_bytes > 0 for replica in await runtime.list()) < 2:
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    assert sum(replica.memory_bytes > 0 for replica in await runtime.list()) == 2


async def test_no_more_replicas_than_allowed(make: Make) -> None:
    runtime = await make(settings=ProcessSettings(replicas_max=1))
    await runtime.start(spec())
    with pytest.raises(ReplicaError, match="at most 1"):
        await runtime.start(spec("r2"))


async def test_an_id_that_is_no_file_name_is_refused(make: Make) -> None:
    with pytest.raises(ReplicaError, match="letters"):
        await (await make()).start(spec("../r1"))


async def test_close_leaves_no_process(make: Make, tmp_path: Path) -> None:
    runtime = await make("mode=stubborn", settings=ProcessSettings(starting_max=3), stop_grace_ms=300)
    for number in range(4):
        await runtime.start(spec(f"r{number}"))
    await until(runtime, ReplicaState.READY, "r0")
    pids = [pid for number in range(4) if (pid := pid_of(tmp_path, f"r{number}"))]
    await runtime.close()
    assert len(pids) >= 3
    assert not any(runs(pid) for pid in pids)
    with pytest.raises(ReplicaError, match="closed"):
        await runtime.start(spec("r9"))


LOOP = """
import asyncio, os, sys
from pathlib import Path
from springtide.drivers.process import ProcessRuntime, ProcessSettings
from springtide.drivers.system import SystemClock
from springtide.model import ReplicaSpec, ReplicaState, ServiceSpec

async def main(echo, folder, dies):
    settings = ProcessSettings(die_with_parent=dies == "dies")
    runtime = ProcessRuntime(Path(folder), SystemClock(), settings)
    command = (sys.executable, echo, "{announce}")
    await runtime.define(ServiceSpec("counter", "", command=command, drain_signal="SIGUSR1"))
    for name in ("r1", "r2", "r3"):
        await runtime.start(ReplicaSpec(name, "idc-a", "idc-a-1"))
    while [replica.state for replica in await runtime.list()] != [ReplicaState.READY] * 3:
        await asyncio.sleep(0.02)
    await runtime.drain("r2")
    os._exit(0)

asyncio.run(main(*sys.argv[1:]))
"""


def crashed_loop(folder: Path, dies: str) -> None:
    """A loop in a process of its own that starts three replicas, drains one and crashes."""
    subprocess.run([sys.executable, "-c", LOOP, str(ECHO), str(folder / "replicas"), dies], check=True, timeout=30)


async def test_replicas_outlive_a_crashed_loop_and_are_adopted(make: Make, tmp_path: Path) -> None:
    await asyncio.to_thread(crashed_loop, tmp_path, "live")
    gone, pids = pid_of(tmp_path, "r3"), {name: pid_of(tmp_path, name) for name in ("r1", "r2")}
    os.kill(gone, signal.SIGKILL)
    while runs(gone):
        await asyncio.sleep(0.01)
    runtime = await make()
    assert await runtime.adopt() == 2
    assert await runtime.adopt() == 0
    states = {replica.replica_id: replica.state for replica in await runtime.list()}
    assert states == {"r1": ReplicaState.READY, "r2": ReplicaState.DRAINING, "r3": ReplicaState.FAILED}
    await runtime.start(spec())
    assert pid_of(tmp_path) == pids["r1"]
    os.kill(pids["r2"], signal.SIGKILL)
    await until(runtime, ReplicaState.FAILED, "r2")
    await runtime.close()
    assert not any(runs(pid) for pid in pids.values())
    assert await runtime.list() == []


async def test_replicas_end_with_their_loop_where_that_is_asked(make: Make, tmp_path: Path) -> None:
    await asyncio.to_thread(crashed_loop, tmp_path, "dies")
    pids = [pid_of(tmp_path, name) for name in ("r1", "r2", "r3")]
    while any(runs(pid) for pid in pids):
        await asyncio.sleep(0.02)
    runtime = await make()
    assert await runtime.adopt() == 0
    assert {replica.state for replica in await runtime.list()} == {ReplicaState.FAILED}


async def test_a_replica_launched_just_before_a_crash_is_found(make: Make, tmp_path: Path) -> None:
    first = await make()
    await first.start(spec())
    port = (await until(first, ReplicaState.READY)).port
    path = tmp_path / "replicas" / "r1.state"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "state": "starting", "pid": 0, "started_ticks": 0, "port": 0}))
    second = await make()
    assert await second.adopt() == 1
    assert (await until(second, ReplicaState.READY)).port == port


def waiting_process(env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "input()"]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **(env or {})}
    )


async def test_another_process_with_the_same_pid_is_left_alone(make: Make, tmp_path: Path) -> None:
    bystander = waiting_process()
    try:
        folder = tmp_path / "replicas"
        folder.mkdir()
        record = {"replica_id": "r1", "zone": "z", "node_id": "n", "state": "ready", "since_ms": 1, "port": 1}
        (folder / "r1.state").write_text(json.dumps({**record, "pid": bystander.pid, "started_ticks": 12345}))
        runtime = await make()
        assert await runtime.adopt() == 0
        assert (await runtime.list())[0].state is ReplicaState.FAILED
        await runtime.stop("r1")
        Process(bystander.pid, started_ticks=12345).send_signal(signal.SIGKILL)
        await asyncio.sleep(0.1)
        assert bystander.poll() is None
    finally:
        bystander.communicate()


async def test_a_state_file_that_cannot_be_read_is_named(make: Make, tmp_path: Path) -> None:
    runtime = await make()
    path = tmp_path / "replicas" / "r1.state"
    path.write_text("{")
    with pytest.raises(ReplicaError, match=r"r1\.state"):
        await runtime.adopt()
    path.unlink()


def test_a_process_is_found_by_its_environment() -> None:
    mark = "SPRINGTIDE_TEST_MARK=a b=c"
    name, _, value = mark.partition("=")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={**os.environ, name: value})
    try:
        found = find_by_environment(mark)
        assert found is not None
        assert found.pid == child.pid
        assert found.usage() is not None
        assert find_by_environment(mark + "d") is None
    finally:
        child.communicate()
    assert found.usage() is None


def served_at(folder: Path, replica_id: str = "r1") -> int:
    return int(json.loads((folder / "replicas" / f"{replica_id}.state").read_text())["given_port"])


async def test_a_port_that_was_taken_meanwhile_is_given_up_for_another(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = await make()
    await runtime.define(echo("told", announce=False))
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        ports = iter([taken, taken, free_port("127.0.0.1", frozenset({taken}))])
        monkeypatch.setattr("springtide.drivers.process.free_port", lambda host, avoid: next(ports))
        await runtime.start(ReplicaSpec("r1", "idc-a", "idc-a-1", "told"))
        replica = await until(runtime, ReplicaState.READY)
    assert replica.port != taken
    assert replica.port == served_at(tmp_path)


async def test_a_port_that_others_keep_taking_is_named(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = await make()
    await runtime.define(echo("told", announce=False))
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        monkeypatch.setattr("springtide.drivers.process.free_port", lambda host, avoid: taken)
        await runtime.start(ReplicaSpec("r1", "idc-a", "idc-a-1", "told"))
        await until(runtime, ReplicaState.FAILED)
    assert f"port {taken}" in await failure(runtime)


async def test_the_answers_of_another_program_are_not_taken_for_a_replicas(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that hangs before it listens, on a port where somebody else is ready."""
    runtime = await make()
    await runtime.start(spec("other"))
    other = (await until(runtime, ReplicaState.READY, "other")).port
    command = (sys.executable, "-c", "import time; time.sleep(60)")
    await runtime.define(ServiceSpec("mute", "1", command=command, start_ms_max=3_000))
    monkeypatch.setattr("springtide.drivers.process.free_port", lambda host, avoid: other)
    await runtime.start(ReplicaSpec("r1", "idc-a", "idc-a-1", "mute", "1"))
    replica = await until(runtime, ReplicaState.FAILED)
    assert f"port {other}, where another program listens" in replica.failure


def limited(runtime: ProcessRuntime) -> None:
    if runtime._groups.missing:
        pytest.skip(runtime._groups.missing)


def group_files(runtime: ProcessRuntime, replica_id: str, controller: str) -> Path:
    return runtime._groups._folders(replica_id)[controller]


async def test_a_core_share_is_enforced_and_its_group_removed(make: Make) -> None:
    """Two busy processes with a tenth of a core are held up by the kernel."""
    runtime = await make()
    limited(runtime)
    await runtime.define(msgspec.structs.replace(echo("busy", "threads=2"), cores=0.1))
    await runtime.start(ReplicaSpec("r1", "idc-a", "idc-a-1", "busy"))
    await until(runtime, ReplicaState.READY)
    folder = group_files(runtime, "r1", "cpu")
    while int(dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())["nr_throttled"]) == 0:
        await asyncio.sleep(0.05)
    pids = (folder / "cgroup.procs").read_text().split()
    assert len(pids) == 3
    (replica,) = await runtime.list()
    assert replica.memory_bytes > usage_of([runtime._slots["r1"].record.pid]).memory_bytes
    await runtime.stop("r1")
    assert not folder.exists()
    assert not any(runs(int(pid)) for pid in pids)


async def test_a_group_is_removed_by_a_runtime_that_would_make_it_elsewhere(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await make()
    limited(first)
    await first.start(spec())
    await until(first, ReplicaState.READY)
    folder = group_files(first, "r1", "cpu")
    assert folder.exists()
    folders = Groups._folders
    monkeypatch.setattr(Groups, "_folders", lambda self, replica_id: folders(self, f"elsewhere-{replica_id}"))
    second = await make()
    assert await second.adopt() == 1
    await second.stop("r1")
    assert not folder.exists()


async def test_a_replica_without_limits_has_no_group(make: Make) -> None:
    runtime = await make()
    limited(runtime)
    await runtime.define(msgspec.structs.replace(echo("free"), cores=0))
    await runtime.start(ReplicaSpec("r1", "idc-a", "idc-a-1", "free"))
    await until(runtime, ReplicaState.READY)
    assert not group_files(runtime, "r1", "cpu").exists()


async def test_where_limits_cannot_be_enforced_replicas_run_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> dict[str, Mount]:
        raise OSError("no controllers")

    monkeypatch.setattr("springtide.drivers.cgroups.find_mounts", nowhere)
    runtime = ProcessRuntime(tmp_path / "replicas", CLOCK)
    await runtime.define(echo(COUNTER))
    assert "no controllers" in runtime._groups.missing
    await runtime.start(spec())
    await until(runtime, ReplicaState.READY)
    await runtime.close()


async def test_no_secret_is_in_a_state_file(make: Make, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    runtime = await make()
    service = msgspec.structs.replace(
        echo("echo", "says=hunter2", "mode=ends"), secrets={"PASSWORD": str(tmp_path / "secret")}
    )
    await runtime.define(service)
    await runtime.start(ReplicaSpec("r1", "idc-a", "idc-a-1", "echo"))
    await until(runtime, ReplicaState.FAILED)
    state = (tmp_path / "replicas/r1.state").read_text()
    assert "hunter2" not in state
    assert "***" in state


async def test_a_drain_signal_that_there_is_not_is_refused(make: Make) -> None:
    runtime = await make()
    with pytest.raises(ReplicaError, match="is no signal"):
        await runtime.define(msgspec.structs.replace(echo("echo"), drain_signal="SIGNOT"))
