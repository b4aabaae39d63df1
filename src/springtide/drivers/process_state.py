"""What the process runtime keeps of each replica on disk, so that the next runtime can adopt it."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from springtide.errors import ReplicaError
from springtide.model import COUNTER, HealthCheck, Replica, ReplicaSpec, ReplicaState, ServiceSpec

HOST = "127.0.0.1"

_LOG_BYTES_PER_LINE = 512
_LOG_BYTES_MIN = 64 * 1024


class Record(msgspec.Struct):
    """The state file of one replica.

    A pid of 0: launched a moment ago, or about to be. `given_port` is the one it was told to listen on (0: it
    announces its own), `port` the one it listens on. What is needed to look after the replica without its
    definition is here too; of secrets only the files' names. `groups` are the folders of its control group.
    """

    replica_id: str
    zone: str
    node_id: str
    state: ReplicaState
    since_ms: int
    pid: int = 0
    started_ticks: int = 0
    port: int = 0
    service: str = COUNTER
    revision: str = ""
    given_port: int = 0
    failure: str = ""
    health: HealthCheck = HealthCheck()
    drain_signal: str = ""
    start_ms_max: int = 15_000
    stop_grace_ms: int = 5_000
    memory_mb: int = 0
    secrets: dict[str, str] = {}
    groups: dict[str, str] = {}

    @classmethod
    def of(cls, spec: ReplicaSpec, service: ServiceSpec, now_ms: int) -> "Record":
        """A replica that is about to be started."""
        return cls(
            replica_id=spec.replica_id,
            zone=spec.zone,
            node_id=spec.node_id,
            state=ReplicaState.STARTING,
            since_ms=now_ms,
            service=service.name,
            revision=service.revision,
            health=service.health,
            drain_signal=service.drain_signal,
            start_ms_max=service.start_ms_max,
            stop_grace_ms=service.stop_grace_ms,
            memory_mb=service.memory_mb,
            secrets=service.secrets,
        )

    def seen(self, cpu_s: float, memory_bytes: int) -> Replica:
        """The replica as the port shows it."""
        return Replica(
            replica_id=self.replica_id,
            zone=self.zone,
            node_id=self.node_id,
            state=self.state,
            host=HOST,
            port=self.port,
            since_ms=self.since_ms,
            cpu_s=cpu_s,
            memory_bytes=memory_bytes,
            service=self.service,
            revision=self.revision,
            failure=self.failure,
        )


class RecordFolder:
    """The files of all replicas: `.state`, `.announce` and `.log` by replica id. Raises ReplicaError."""

    def __init__(self, folder: Path) -> None:
        """Make the folder."""
        self._folder = folder.absolute()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ReplicaError(
                f"no replica can keep files in {folder}: {error.strerror}; name a folder you may write to"
            ) from error

    def path(self, record: Record, kind: str) -> Path:
        """A replica's file of one kind."""
        return self._folder / f"{record.replica_id}.{kind}"

    def save(self, record: Record) -> None:
        """Write the state file in one step."""
        path = self.path(record, "state")
        fresh = path.with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.json.encode(record))
            fresh.replace(path)
        except OSError as error:
            raise ReplicaError(
                f"{path} cannot be written: {error.strerror}; make room or name another folder"
            ) from error

    def forget(self, record: Record) -> None:
        """Remove all but the log."""
        for kind in ("announce", "state"):
            self.path(record, kind).unlink(missing_ok=True)

    def records(self) -> Iterator[Record]:
        """All that are here, by replica id."""
        for path in sorted(self._folder.glob("*.state")):
            try:
                yield msgspec.json.decode(path.read_bytes(), type=Record)
            except (OSError, msgspec.DecodeError) as error:
                raise ReplicaError(f"{path} cannot be read: {error}; end its process and remove the file") from error

    def log_end(self, record: Record, lines: int) -> str:
        """The end of a replica's log, long enough for this many usual lines; empty when there is none."""
        size = max(_LOG_BYTES_MIN, lines * _LOG_BYTES_PER_LINE)
        try:
            with self.path(record, "log").open("rb") as log:
                whole = log.seek(0, 2)
                log.seek(max(0, whole - size))
                return log.read(size).decode(errors="replace")
        except OSError:
            return ""
