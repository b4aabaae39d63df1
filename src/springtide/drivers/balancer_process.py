"""The process of a load balancer: a child of ours, or one that an earlier process of ours left running."""

import contextlib
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec

from springtide.drivers.balanced_service import BalancedService
from springtide.drivers.child import Child, spawn
from springtide.drivers.pids import Process, started_ticks
from springtide.errors import EngineError
from springtide.ports import Clock

STOP_GRACE_S = 3.0
KEPT = "kept.json"
"""The file in an engine's folder that `keep` writes and `read_kept` reads."""

_POLL_S = 0.02
_TAG = "SPRINGTIDE_BALANCER"


class Front(msgspec.Struct, frozen=True):
    """A service with the port it has."""

    service: BalancedService
    port: int


class Kept(msgspec.Struct, frozen=True):
    """What a later process of ours has to know: who the engine is, and what it serves."""

    pid: int
    started_ticks: int
    fronts: dict[str, Front]


class BalancerProcess:
    """One engine's process; `child` is None when it was found running."""

    def __init__(self, process: Process, child: Child | None = None) -> None:
        """Use `launch` or `find`."""
        self.child = child
        self._process = process

    @classmethod
    def launch(cls, name: str, command: Sequence[str], folder: Path, *, survive: bool) -> "BalancerProcess":
        """Start it; with `survive` it goes on when we end. Its log is `NAME.log`, begun anew. Raises EngineError."""
        log = folder / f"{name.lower()}.log"
        log.unlink(missing_ok=True)
        child = spawn(name, command, log, {_TAG: str(folder)}, die_with_parent=not survive)
        return cls(Process(child.pid, started_ticks(child.pid), child), child)

    @classmethod
    def find(cls, folder: Path, kept: Kept) -> "BalancerProcess | None":
        """The one that an earlier process started for this folder; None when it is gone."""
        found = Process.find(kept.pid, kept.started_ticks, f"{_TAG}={folder}")
        return cls(found) if found else None

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """It runs."""
        return self._process.usage() is not None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        self._process.send_signal(number)

    async def stop(self, clock: Clock, grace_s: float = STOP_GRACE_S) -> None:
        """Ask it to end, wait, then kill it."""
        if self.child:
            await self.child.stop(clock, grace_s)
            return
        self.signal(signal.SIGTERM)
        until = clock.monotonic_s() + grace_s
        while self.alive:
            if clock.monotonic_s() > until:
                self.signal(signal.SIGKILL)
            await clock.sleep(_POLL_S)

    def keep(self, folder: Path, fronts: dict[str, Front]) -> None:
        """Write down for `find` who it is and what it serves. Raises OSError."""
        replace_file(folder / KEPT, msgspec.json.encode(Kept(self.pid, self._process.started_ticks, fronts)))


def read_kept(folder: Path) -> Kept | None:
    """What `keep` wrote; None when there is nothing that can be read."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode((folder / KEPT).read_bytes(), type=Kept)
    return None


def forget(folder: Path) -> None:
    """The engine was ended on purpose: the next one begins anew."""
    with contextlib.suppress(OSError):
        (folder / KEPT).unlink(missing_ok=True)


def runs(folder: Path) -> bool:
    """An engine that was started to survive runs for this folder."""
    kept = read_kept(folder)
    return kept is not None and BalancerProcess.find(folder.absolute(), kept) is not None


def replace_file(path: Path, text: bytes) -> None:
    """Write a file so that readers see the old or the new one. Raises OSError."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(text)
    fresh.replace(path)


def free_port(host: str, wanted: int) -> int:
    """That port if it is free, or (0) any. Another program can take it until the engine does, which then says so.

    Raises EngineError.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted))
        except OSError as error:
            raise EngineError(
                f"the balancer cannot listen on {host}:{wanted}: the port is in use or forbidden ({error.strerror}); "
                "end what listens there or name another port"
            ) from error
        return int(probe.getsockname()[1])
