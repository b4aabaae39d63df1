"""The runtime port on local processes: a replica is a process of this machine.

What a replica's program has to do:
- bind port 0 on 127.0.0.1, install its signal handlers, then write `{"port": N, "pid": P}` to the path it was
  given, in one step (write beside it, rename);
- answer `GET /readyz` with 200 once it can serve;
- on SIGUSR1 answer `/readyz` with 503 and go on serving (drain); on SIGTERM finish what is in flight and end.

Each replica has a state file, so that a runtime that comes after this one finds its replicas again: a process
is ours when its pid, its start time and the replica id in its environment agree. No other process is ever
signalled.
"""

import asyncio
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from springtide.drivers.child import LOG_TAIL_LINES, spawn
from springtide.drivers.http_get import http_get
from springtide.drivers.pids import Process, find_by_environment
from springtide.errors import ReplicaError
from springtide.model import Replica, ReplicaSpec, ReplicaState, require_identifier
from springtide.ports import Clock

HOST = "127.0.0.1"
REPLICA_VARIABLE = "SPRINGTIDE_REPLICA_ID"
ANNOUNCE_VARIABLE = "SPRINGTIDE_ANNOUNCE"

_POLL_S = 0.03
_PROBE_S_MAX = 1.0
_KILL_S_MAX = 10.0

Command = Callable[[ReplicaSpec, Path], Sequence[str]]
"""From a replica and the path for its announcement to the program and its arguments."""


class ProcessSettings(msgspec.Struct, frozen=True):
    """Limits. `start_s_max` counts from the launch, not from the request; `starting_max` start at once.

    `die_with_parent`: the kernel ends the replicas when this process ends; without it, the next runtime
    adopts them.
    """

    start_s_max: float = 15.0
    stop_grace_s: float = 5.0
    starting_max: int = 4
    replicas_max: int = 500
    die_with_parent: bool = True
    env: dict[str, str] = {}


class _Announcement(msgspec.Struct, frozen=True):
    port: int
    pid: int


class _Record(msgspec.Struct):
    """The state file. A pid of 0: launched a moment ago, or about to be."""

    replica_id: str
    zone: str
    node_id: str
    state: ReplicaState
    since_ms: int
    pid: int = 0
    started_ticks: int = 0
    port: int = 0


class _Slot:
    """One replica: its record, its process, and the tasks that bring it up and down."""

    def __init__(self, record: _Record) -> None:
        self.record = record
        self.process: Process | None = None
        self.bring_up: asyncio.Task[None] | None = None
        self.take_down: asyncio.Task[None] | None = None
        self.cpu_s = 0.0
        self.failure = ""


class ProcessRuntime:
    """`ports.Runtime` whose replicas are processes; state files, announcements and logs are in `folder`.

    Use it from one event loop. Call `adopt` first where an earlier runtime may have left replicas in the
    folder.
    """

    def __init__(self, command: Command, folder: Path, clock: Clock, settings: ProcessSettings | None = None) -> None:
        self._command = command
        self._folder = folder.absolute()
        self._clock = clock
        self._settings = settings or ProcessSettings()
        self._starting = asyncio.Semaphore(self._settings.starting_max)
        self._slots: dict[str, _Slot] = {}
        self._closed = False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ReplicaError(
                f"no replica can keep files in {folder}: {error.strerror}; name a folder you may write to"
            ) from error

    async def adopt(self) -> int:
        """Take over what an earlier runtime left in the folder; the number of processes that still run.

        Replicas whose process is gone are listed as failed until they are stopped. Raises ReplicaError when a
        state file cannot be read.
        """
        adopted = 0
        for record in _read_records(self._folder):
            if record.replica_id not in self._slots:
                slot = self._slots[record.replica_id] = _Slot(record)
                adopted += self._adopt(slot)
        return adopted

    async def start(self, spec: ReplicaSpec) -> None:
        """Begin to start a replica; a second call with its id does nothing. `list` tells when it is ready."""
        if spec.replica_id in self._slots:
            return
        try:
            require_identifier("replica", spec.replica_id)
        except ValueError as error:
            raise ReplicaError(str(error)) from error
        if self._closed:
            raise ReplicaError(f"{spec.replica_id} cannot be started: the runtime is closed")
        if len(self._slots) >= self._settings.replicas_max:
            raise ReplicaError(f"this machine runs at most {self._settings.replicas_max} replicas; stop some first")
        now_ms = self._clock.now_ms()
        slot = _Slot(_Record(spec.replica_id, spec.zone, spec.node_id, ReplicaState.STARTING, now_ms))
        self._save(slot)
        self._slots[spec.replica_id] = slot
        slot.bring_up = asyncio.create_task(self._bring_up(slot), name=f"start {spec.replica_id}")

    async def drain(self, replica_id: str) -> None:
        """Let the replica refuse to be ready while it finishes what it has. Unknown ids are ignored."""
        slot = self._slots.get(replica_id)
        if slot is None or slot.record.state not in {ReplicaState.STARTING, ReplicaState.READY}:
            return
        # One that has not announced yet may die of the signal: `_watch` sends it afterwards.
        if slot.record.state is ReplicaState.READY and slot.process:
            slot.process.send_signal(signal.SIGUSR1)
        self._enter(slot, ReplicaState.DRAINING)

    async def stop(self, replica_id: str) -> None:
        """End a replica: asked first, then killed; returns when it has ended. Unknown ids are ignored."""
        slot = self._slots.get(replica_id)
        if slot is None:
            return
        if slot.take_down is None:
            slot.take_down = asyncio.create_task(self._take_down(slot), name=f"stop {replica_id}")
        await asyncio.shield(slot.take_down)

    def kill(self, replica_id: str) -> None:
        """End its process at once, as a crash would: for drills. Unknown ids are ignored."""
        slot = self._slots.get(replica_id)
        if slot and slot.process:
            slot.process.send_signal(signal.SIGKILL)

    async def list(self) -> list[Replica]:
        """All replicas that were started and not stopped, failed ones included. One small read for each."""
        return [self._look(slot) for slot in self._slots.values()]

    def failure(self, replica_id: str) -> str:
        """Why a replica failed, with the end of its log; empty when it did not."""
        slot = self._slots.get(replica_id)
        return slot.failure if slot else ""

    async def close(self) -> None:
        """End everything this runtime started or adopted, all at once."""
        self._closed = True
        ends = await asyncio.gather(*(self.stop(name) for name in list(self._slots)), return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    async def _bring_up(self, slot: _Slot) -> None:
        async with self._starting:
            try:
                if slot.process is None:
                    self._launch(slot)
                await self._watch(slot)
            except Exception as error:  # noqa: BLE001 - whatever stops a start is a replica that failed, and says why
                if slot.process:
                    slot.process.send_signal(signal.SIGKILL)
                self._fail(slot, str(error))

    def _launch(self, slot: _Slot) -> None:
        record = slot.record
        announce = self._path(record, "announce")
        announce.unlink(missing_ok=True)
        command = self._command(ReplicaSpec(record.replica_id, record.zone, record.node_id), announce)
        ours = {REPLICA_VARIABLE: record.replica_id, ANNOUNCE_VARIABLE: str(announce)}
        child = spawn(
            f"replica {record.replica_id}",
            command,
            self._path(record, "log"),
            {**self._settings.env, **ours},
            die_with_parent=self._settings.die_with_parent,
        )
        slot.process = Process.of_child(child)
        record.pid, record.started_ticks = slot.process.pid, slot.process.started_ticks
        self._save(slot)

    async def _watch(self, slot: _Slot) -> None:
        """Wait for the announcement, then for `/readyz`. Raises ReplicaError when either does not come."""
        until = self._clock.monotonic_s() + self._settings.start_s_max
        while self._clock.monotonic_s() < until:
            if slot.process is None or slot.process.usage() is None:
                raise ReplicaError(self._ended(slot))
            port = self._announced_port(slot, slot.process)
            if port and slot.record.state is ReplicaState.DRAINING:
                slot.record.port = port
                slot.process.send_signal(signal.SIGUSR1)
                return self._save(slot)
            if port and await self._is_ready(port):
                slot.record.port = port
                # A drain that came meanwhile stays in force: the next turn passes it on.
                if slot.record.state is ReplicaState.STARTING:
                    return self._enter(slot, ReplicaState.READY)
            await self._clock.sleep(_POLL_S)
        raise ReplicaError(
            f"replica {slot.record.replica_id} was not ready within {self._settings.start_s_max:g} s; "
            f"see {self._path(slot.record, 'log')}"
        )

    def _announced_port(self, slot: _Slot, process: Process) -> int:
        """0 until it has announced."""
        path = self._path(slot.record, "announce")
        try:
            said = msgspec.json.decode(path.read_bytes(), type=_Announcement)
        except FileNotFoundError:
            return 0
        except msgspec.DecodeError as error:
            raise ReplicaError(f'{path} must hold {{"port": N, "pid": P}}: {error}') from error
        if said.pid != process.pid:
            raise ReplicaError(
                f"replica {slot.record.replica_id} is process {process.pid} and announced {said.pid}: "
                "its command must not start another process for it"
            )
        return said.port

    async def _is_ready(self, port: int) -> bool:
        try:
            status, _ = await http_get(self._clock, HOST, port, "/readyz", _PROBE_S_MAX)
        except (OSError, TimeoutError):
            return False
        return status == 200  # noqa: PLR2004 - the status that HTTP names OK

    async def _take_down(self, slot: _Slot) -> None:
        try:
            if slot.bring_up:
                slot.bring_up.cancel()
                await asyncio.wait([slot.bring_up])
            if slot.record.state is not ReplicaState.FAILED:
                self._enter(slot, ReplicaState.DRAINING)
            if slot.process:
                await self._end(slot.process, slot.record.replica_id)
            for kind in ("announce", "state"):
                self._path(slot.record, kind).unlink(missing_ok=True)
            del self._slots[slot.record.replica_id]
        finally:
            slot.take_down = None

    async def _end(self, process: Process, replica_id: str) -> None:
        for number, seconds in ((signal.SIGTERM, self._settings.stop_grace_s), (signal.SIGKILL, _KILL_S_MAX)):
            process.send_signal(number)
            until = self._clock.monotonic_s() + seconds
            while process.usage() is not None:
                if self._clock.monotonic_s() >= until:
                    break
                await self._clock.sleep(_POLL_S)
            else:
                return
        raise ReplicaError(f"replica {replica_id} (process {process.pid}) survives SIGKILL; its machine is ill")

    def _look(self, slot: _Slot) -> Replica:
        usage = slot.process.usage() if slot.process else None
        if usage:
            slot.cpu_s = usage.cpu_s
        elif slot.process and not slot.take_down:
            self._fail(slot, self._ended(slot))
        record = slot.record
        return Replica(
            replica_id=record.replica_id,
            zone=record.zone,
            node_id=record.node_id,
            state=record.state,
            host=HOST,
            port=record.port,
            since_ms=record.since_ms,
            cpu_s=slot.cpu_s,
            memory_bytes=usage.memory_bytes if usage else 0,
        )

    def _adopt(self, slot: _Slot) -> bool:
        record = slot.record
        mark = f"{REPLICA_VARIABLE}={record.replica_id}"
        if record.pid:
            slot.process = Process.find(record.pid, record.started_ticks, mark)
        else:
            slot.process = find_by_environment(f"{ANNOUNCE_VARIABLE}={self._path(record, 'announce')}")
        if slot.process is None:
            self._fail(slot, f"replica {record.replica_id} ended while nobody looked after it")
            return False
        record.pid, record.started_ticks = slot.process.pid, slot.process.started_ticks
        if not record.port and record.state is not ReplicaState.FAILED:
            slot.bring_up = asyncio.create_task(self._bring_up(slot), name=f"adopt {record.replica_id}")
        return True

    def _ended(self, slot: _Slot) -> str:
        code = slot.process.returncode if slot.process else None
        how = "" if code is None else f" with status {code}"
        log = self._path(slot.record, "log")
        return f"replica {slot.record.replica_id} ended by itself{how}; see {log}\n{_tail(log)}".rstrip()

    def _fail(self, slot: _Slot, why: str) -> None:
        if slot.record.state is not ReplicaState.FAILED:
            slot.failure = why
            self._enter(slot, ReplicaState.FAILED)

    def _enter(self, slot: _Slot, state: ReplicaState) -> None:
        if slot.record.state is not state:
            slot.record.state, slot.record.since_ms = state, self._clock.now_ms()
            self._save(slot)

    def _save(self, slot: _Slot) -> None:
        path = self._path(slot.record, "state")
        fresh = path.with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.json.encode(slot.record))
            fresh.replace(path)
        except OSError as error:
            raise ReplicaError(
                f"{path} cannot be written: {error.strerror}; make room or name another folder"
            ) from error

    def _path(self, record: _Record, kind: str) -> Path:
        return self._folder / f"{record.replica_id}.{kind}"


def _read_records(folder: Path) -> list[_Record]:
    records = []
    for path in sorted(folder.glob("*.state")):
        try:
            records.append(msgspec.json.decode(path.read_bytes(), type=_Record))
        except (OSError, msgspec.DecodeError) as error:
            raise ReplicaError(f"{path} cannot be read: {error}; end its process and remove the file") from error
    return records


def _tail(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
    except OSError:
        return ""
