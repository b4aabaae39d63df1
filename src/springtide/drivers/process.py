"""The runtime port on local processes: a replica is a process of this machine.

What a replica's program has to do:
- with `{announce}` in its service's command: bind port 0 on 127.0.0.1, install its signal handlers, then write
  `{"port": N, "pid": P}` to the path that stands there, in one step (write beside it, rename);
- without: listen on the port that stands for `{port}` and in `PORT`, on 127.0.0.1 or all addresses;
- answer `GET` of its health check's path with 200 once it can serve;
- on the service's drain signal, if there is one, answer that path with 503 and go on serving; on SIGTERM finish
  what is in flight and end.

Each replica has a state file, so that a runtime that comes after this one finds its replicas again: a process
is ours when its pid, its start time and the replica id in its environment agree. No other process is ever
signalled.
"""

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from springtide.drivers import cgroups
from springtide.drivers.cgroups import Groups, doors
from springtide.drivers.child import LOG_TAIL_LINES, spawn
from springtide.drivers.http_get import http_get
from springtide.drivers.listening import free_port, is_taken, listens
from springtide.drivers.pids import Process, Usage, find_by_environment, usage_of
from springtide.drivers.process_state import HOST, Record, RecordFolder
from springtide.drivers.replica_launch import (
    ANNOUNCE_VARIABLE,
    PORT_VARIABLE,
    REPLICA_VARIABLE,
    Definitions,
    announces,
    filled,
    last_lines,
    read_secrets,
    redacted,
)
from springtide.errors import ReplicaError
from springtide.model import Replica, ReplicaSpec, ReplicaState, ServiceSpec, require_identifier
from springtide.ports import Clock

PORT_TRIES = 3
"""Ports that are tried for one replica, when another program takes them first."""

_log = structlog.get_logger(__name__)
_POLL_S = 0.03
_KILL_S_MAX = 10.0


class ProcessSettings(msgspec.Struct, frozen=True):
    """Limits. `starting_max` start at once; the others wait, and their `start_ms_max` counts from their launch.

    `die_with_parent`: the kernel ends the replicas when this process ends; without it, the next runtime
    adopts them.
    """

    starting_max: int = 4
    replicas_max: int = 500
    die_with_parent: bool = True
    env: dict[str, str] = {}


class _Announcement(msgspec.Struct, frozen=True):
    port: int
    pid: int


class _PortTaken(ReplicaError):
    """Another program listens on the port that the replica was given."""


class _Slot:
    """One replica: its record, its process, and the tasks that bring it up and down."""

    def __init__(self, record: Record, service: ServiceSpec | None = None) -> None:
        self.record = record
        self.service = service
        self.process: Process | None = None
        self.bring_up: asyncio.Task[None] | None = None
        self.take_down: asyncio.Task[None] | None = None
        self.cpu_s = 0.0
        self.owns_port = False


class ProcessRuntime:
    """`ports.Runtime` whose replicas are processes; state files, announcements and logs are in `folder`.

    Use it from one event loop. Call `adopt` first where an earlier runtime may have left replicas in the
    folder.
    """

    def __init__(self, folder: Path, clock: Clock, settings: ProcessSettings | None = None) -> None:
        self._files = RecordFolder(folder)
        self._groups = Groups(str(folder.absolute()), clock.now_ms())
        self._clock = clock
        self._settings = settings or ProcessSettings()
        self._starting = asyncio.Semaphore(self._settings.starting_max)
        self._definitions = Definitions()
        self._slots: dict[str, _Slot] = {}
        self._closed = False
        self._said_missing = False

    async def adopt(self) -> int:
        """Take over what an earlier runtime left in the folder; the number of processes that still run.

        Replicas whose process is gone are listed as failed until they are stopped. Raises ReplicaError when a
        state file cannot be read.
        """
        adopted = 0
        for record in self._files.records():
            if record.replica_id not in self._slots:
                slot = self._slots[record.replica_id] = _Slot(record)
                adopted += self._adopt(slot)
        return adopted

    async def define(self, service: ServiceSpec) -> None:
        """Make a revision known. Raises ReplicaError when it has no command, or a drain signal that there is not."""
        if not service.command:
            raise ReplicaError(f"service {service.name} has no command, which local processes need; give it one")
        if service.drain_signal and service.drain_signal not in signal.Signals.__members__:
            raise ReplicaError(f"{service.drain_signal!r} is no signal; name one as kill -l does, such as SIGUSR1")
        if self._groups.missing and not self._said_missing:
            self._said_missing = True
            _log.warning("limits of local processes", reason=self._groups.missing)
        self._definitions.add(service)

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
        service = self._definitions.of(spec)
        slot = _Slot(Record.of(spec, service, self._clock.now_ms()), service)
        self._files.save(slot.record)
        self._slots[spec.replica_id] = slot
        slot.bring_up = asyncio.create_task(self._bring_up(slot), name=f"start {spec.replica_id}")

    async def drain(self, replica_id: str) -> None:
        """Let the replica refuse to be ready while it finishes what it has. Unknown ids are ignored."""
        slot = self._slots.get(replica_id)
        if slot is None or slot.record.state not in {ReplicaState.STARTING, ReplicaState.READY}:
            return
        # One that does not listen yet may die of the signal: `_watch` sends it afterwards.
        if slot.record.state is ReplicaState.READY:
            _signal_drain(slot)
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

    async def logs(self, replica_id: str, lines: int) -> Sequence[str]:
        """The last lines of its log, oldest first; empty for unknown ids."""
        slot = self._slots.get(replica_id)
        return last_lines(self._files.log_end(slot.record, lines), lines) if slot else []

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
                await self._bring_up_on_some_port(slot)
            except Exception as error:  # noqa: BLE001 - whatever stops a start is a replica that failed, and says why
                if slot.process:
                    slot.process.send_signal(signal.SIGKILL)
                self._fail(slot, str(error))

    async def _bring_up_on_some_port(self, slot: _Slot) -> None:
        for left in reversed(range(PORT_TRIES)):
            try:
                if slot.process is None:
                    self._launch(slot)
                return await self._watch(slot)
            except _PortTaken:
                if not left or slot.service is None:
                    raise
                if slot.process:
                    await self._end(slot.process, slot.record)
                slot.process = None
        return None

    def _launch(self, slot: _Slot) -> None:
        record, service = slot.record, slot.service
        if service is None:
            raise ReplicaError(f"replica {record.replica_id} was never launched, and its service is not known any more")
        announce = self._files.path(record, "announce")
        announce.unlink(missing_ok=True)
        ours = {REPLICA_VARIABLE: record.replica_id, ANNOUNCE_VARIABLE: str(announce)}
        record.groups = self._groups.make(record.replica_id, service.cores, service.memory_mb)
        if not announces(service):
            taken = frozenset(each.record.given_port or each.record.port for each in self._slots.values())
            record.given_port = free_port(HOST, taken)
            ours[PORT_VARIABLE] = str(record.given_port)
        self._files.save(record)
        values = {
            "replica_id": record.replica_id,
            "zone": record.zone,
            "port": str(record.given_port),
            "announce": str(announce),
        }
        child = spawn(
            f"replica {record.replica_id}",
            filled(service.command, values),
            self._files.path(record, "log"),
            {**self._settings.env, **service.env, **read_secrets(service.secrets), **ours},
            die_with_parent=self._settings.die_with_parent,
            groups=doors(record.groups),
        )
        slot.process = Process.of_child(child)
        record.pid, record.started_ticks = slot.process.pid, slot.process.started_ticks
        self._files.save(record)

    async def _watch(self, slot: _Slot) -> None:
        """Wait until it listens, then until it is well. Raises ReplicaError when either does not come."""
        record = slot.record
        until = self._clock.monotonic_s() + record.start_ms_max / 1000
        while self._clock.monotonic_s() < until:
            if slot.process is None or slot.process.usage() is None:
                if record.given_port and is_taken(HOST, record.given_port):
                    raise _PortTaken(f"{self._ended(slot)}\nport {record.given_port} was taken by another program")
                raise ReplicaError(self._ended(slot))
            port, well = await self._probe(slot, slot.process)
            if port and record.state is ReplicaState.DRAINING:
                record.port = port
                _signal_drain(slot)
                return self._files.save(record)
            if well:
                record.port = port
                # A drain that came meanwhile stays in force: the next turn passes it on.
                if record.state is ReplicaState.STARTING:
                    return self._enter(slot, ReplicaState.READY)
            await self._clock.sleep(_POLL_S)
        raise ReplicaError(self._late(slot))

    async def _probe(self, slot: _Slot, process: Process) -> tuple[int, bool]:
        """The port that the replica listens on, 0 until it does, and whether it is well."""
        record = slot.record
        port = record.given_port or self._announced_port(record, process)
        if not port:
            return 0, False
        try:
            timeout_s = record.health.timeout_ms / 1000
            status, _ = await http_get(self._clock, HOST, port, record.health.path, timeout_s)
        except OSError as error:
            # A refused connection says that nobody listens; anything else, that somebody does.
            if isinstance(error, ConnectionRefusedError):
                return (0 if record.given_port else port), False
            status = 0
        if record.given_port and not slot.owns_port:
            slot.owns_port = listens(process.pid, port)
            if not slot.owns_port:
                if process.usage() is None or not is_taken(HOST, port):
                    return 0, False
                raise _PortTaken(
                    f"replica {record.replica_id} was to listen on port {port}, where another program listens; "
                    f"see {self._files.path(record, 'log')}"
                )
        return port, status == 200  # noqa: PLR2004 - the status that HTTP names OK

    def _announced_port(self, record: Record, process: Process) -> int:
        """0 until it has announced."""
        path = self._files.path(record, "announce")
        try:
            said = msgspec.json.decode(path.read_bytes(), type=_Announcement)
        except FileNotFoundError:
            return 0
        except msgspec.DecodeError as error:
            raise ReplicaError(f'{path} must hold {{"port": N, "pid": P}}: {error}') from error
        if said.pid != process.pid:
            raise ReplicaError(
                f"replica {record.replica_id} is process {process.pid} and announced {said.pid}: "
                "its command must not start another process for it"
            )
        return said.port

    async def _take_down(self, slot: _Slot) -> None:
        try:
            if slot.bring_up:
                slot.bring_up.cancel()
                await asyncio.wait([slot.bring_up])
            if slot.record.state is not ReplicaState.FAILED:
                self._enter(slot, ReplicaState.DRAINING)
            if slot.process:
                await self._end(slot.process, slot.record)
            await self._clear_group(slot.record)
            self._files.forget(slot.record)
            del self._slots[slot.record.replica_id]
        finally:
            slot.take_down = None

    async def _end(self, process: Process, record: Record) -> None:
        for number, seconds in ((signal.SIGTERM, record.stop_grace_ms / 1000), (signal.SIGKILL, _KILL_S_MAX)):
            process.send_signal(number)
            until = self._clock.monotonic_s() + seconds
            while process.usage() is not None:
                if self._clock.monotonic_s() >= until:
                    break
                await self._clock.sleep(_POLL_S)
            else:
                return
        raise ReplicaError(f"replica {record.replica_id} (process {process.pid}) survives SIGKILL; its machine is ill")

    async def _clear_group(self, record: Record) -> None:
        """End what the replica has left behind, too."""
        until = self._clock.monotonic_s() + _KILL_S_MAX
        while not cgroups.remove(record.groups):
            cgroups.kill(record.groups)
            if self._clock.monotonic_s() >= until:
                raise ReplicaError(f"what replica {record.replica_id} started survives SIGKILL; its machine is ill")
            await self._clock.sleep(_POLL_S)

    def _look(self, slot: _Slot) -> Replica:
        usage = slot.process.usage() if slot.process else None
        if usage and slot.process:
            more = usage_of(cgroups.pids(slot.record.groups) - {slot.process.pid})
            usage = Usage(usage.cpu_s + more.cpu_s, usage.memory_bytes + more.memory_bytes)
            slot.cpu_s = max(slot.cpu_s, usage.cpu_s)
        # While it is brought up, that task finds the end out: it may be about to try another port.
        elif slot.process and not slot.take_down and (slot.bring_up is None or slot.bring_up.done()):
            self._fail(slot, self._ended(slot))
        return slot.record.seen(slot.cpu_s, usage.memory_bytes if usage else 0)

    def _adopt(self, slot: _Slot) -> bool:
        record = slot.record
        mark = f"{REPLICA_VARIABLE}={record.replica_id}"
        if record.pid:
            slot.process = Process.find(record.pid, record.started_ticks, mark)
        else:
            slot.process = find_by_environment(f"{ANNOUNCE_VARIABLE}={self._files.path(record, 'announce')}")
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
        if cgroups.out_of_memory(slot.record.groups):
            how += f", out of memory at its limit of {slot.record.memory_mb} MB"
        return self._with_log(slot, f"replica {slot.record.replica_id} ended by itself{how}")

    def _late(self, slot: _Slot) -> str:
        record = slot.record
        seconds = record.start_ms_max / 1000
        return self._with_log(slot, f"replica {record.replica_id} was not ready within {seconds:g} s")

    def _with_log(self, slot: _Slot, what: str) -> str:
        """What happened, with the end of the log; a program may have written its secrets there."""
        lines = last_lines(self._files.log_end(slot.record, LOG_TAIL_LINES), LOG_TAIL_LINES)
        try:
            tail = redacted("\n".join(lines), read_secrets(slot.record.secrets).values())
        except ReplicaError:
            tail = "(not shown: a secret's file is gone, so it could not be taken out)"
        return f"{what}; see {self._files.path(slot.record, 'log')}\n{tail}".rstrip()

    def _fail(self, slot: _Slot, why: str) -> None:
        if slot.record.state is not ReplicaState.FAILED:
            slot.record.failure = why
            self._enter(slot, ReplicaState.FAILED)

    def _enter(self, slot: _Slot, state: ReplicaState) -> None:
        if slot.record.state is not state:
            slot.record.state, slot.record.since_ms = state, self._clock.now_ms()
            self._files.save(slot.record)


def _signal_drain(slot: _Slot) -> None:
    if slot.process and slot.record.drain_signal:
        slot.process.send_signal(signal.Signals[slot.record.drain_signal])
