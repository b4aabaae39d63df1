"""The folder of a platform: where its settings, data and logs are, and which process runs it now."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from springtide.config import Config
from springtide.drivers.pids import started_ticks
from springtide.drivers.private_file import write_private
from springtide.errors import ConfigError, UserError

_T = TypeVar("_T")


class PlatformSettings(msgspec.Struct, frozen=True):
    """What the platform's process is started with. `config` has no services: those are wished for while it runs.

    `ledger` is the URL of a PostgreSQL of somebody else ("": an embedded one). The ports are the order path's.
    """

    config: Config
    ledger: str = ""
    inventory: str = ""
    port: int = 8080
    backoffice_port: int = 8000


class Running(msgspec.Struct, frozen=True):
    """The process that runs the platform, and where its state is. `dsn` may hold a password."""

    pid: int
    started_ticks: int
    dsn: str
    backoffice_url: str = ""

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return started_ticks(self.pid) == self.started_ticks


class PlatformFolder:
    """Paths, and the two files that commands and the platform's process tell each other things by."""

    def __init__(self, data: Path) -> None:
        """Nothing is made or read yet."""
        self.data = data.absolute()
        self.postgres = self.data / "postgres"
        self.valkey = self.data / "valkey"
        self.balancer = self.data / "balancer"
        self.images = self.data / "images"
        self.journal = self.data / "journal.jsonl"
        self.sweep_log = self.data / "sweep.jsonl"
        self.log = self.data / "logs" / "platform.log"
        self.counter = self.data / "platform" / "counter.json"
        self._settings = self.data / "platform" / "settings.json"
        self.running_file = self.data / "platform" / "running.json"
        self._sweeping = self.data / "platform" / "sweep.json"

    def replicas(self, zone: str) -> Path:
        """Where the process runtime of a zone keeps its files."""
        return self.data / "replicas" / zone

    def prepare(self) -> None:
        """Make the folders. Raises ConfigError when we may not write there."""
        try:
            # The embedded PostgreSQL of root runs as another user, who has to pass through.
            for folder in (self.data, self.log.parent):
                folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            for folder in (self._settings.parent, self.balancer):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            msg = f"{self.data}: cannot be written: {error.strerror}; give a folder of your own with --data"
            raise ConfigError(msg) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, as long as this process lives: two platforms on one would destroy its data."""
        with (self.data / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                msg = f"{self.data}: another springtide runs from here; end it or give another --data"
                raise UserError(msg) from None
            yield

    def settings(self) -> PlatformSettings | None:
        """What the platform was started with last; None when it never was."""
        return self._read(self._settings, PlatformSettings)

    def running(self) -> Running | None:
        """The platform's process; None when none runs."""
        found = self._read(self.running_file, Running)
        return found if found is not None and found.alive else None

    def keep_settings(self, settings: PlatformSettings) -> None:
        """Keep them for the next start; a private file."""
        _write(self._settings, settings)

    def announce(self, running: Running) -> None:
        """Say that the platform is ready, in one step; a private file."""
        _write(self.running_file, running)

    def sweeping(self) -> Running | None:
        """The process that sweeps for this platform, which may outlive it; None when none runs."""
        found = self._read(self._sweeping, Running)
        return found if found is not None and found.alive else None

    def announce_sweep(self, running: Running) -> None:
        """Say which process sweeps now."""
        _write(self._sweeping, running)

    def forget(self) -> None:
        """After everything has ended: the next start is a first one. The data stays."""
        for path in (self.running_file, self._settings, self.counter):
            path.unlink(missing_ok=True)

    def _read(self, path: Path, kind: type[_T]) -> _T | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            msg = f"{path}: cannot be read: {error}; remove it and run `springtide up` again"
            raise ConfigError(msg) from error


def _write(path: Path, value: msgspec.Struct) -> None:
    aside = path.with_suffix(".new")
    write_private(aside, value)
    aside.replace(path)
