"""Processes, ours or adopted, known by pid and start time: a reused pid is never taken for one of them."""

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from springtide.drivers.child import Child

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

# Fields of /proc/PID/stat after the command's name (which may hold spaces and brackets): proc_pid_stat(5).
_STATE, _UTIME, _STIME, _CUTIME, _CSTIME, _START, _RSS = 0, 11, 12, 13, 14, 19, 21
_ENDED = {"Z", "X", "x"}


class Usage(msgspec.Struct, frozen=True):
    """What a process has used: CPU seconds since its start, with children that have ended; resident memory now."""

    cpu_s: float
    memory_bytes: int


class _Stat(msgspec.Struct, frozen=True):
    started_ticks: int
    usage: Usage


class Process:
    """A running process, or one that ended meanwhile."""

    def __init__(self, pid: int, started_ticks: int, child: Child | None = None) -> None:
        """Use `of_child` or `find`. `started_ticks` is its start in clock ticks since the machine booted."""
        self.pid = pid
        self.started_ticks = started_ticks
        self._child = child

    @classmethod
    def of_child(cls, child: Child) -> "Process":
        """A child of ours: its pid is safe until we have asked for its return code."""
        stat = _stat(child.pid)
        return cls(child.pid, stat.started_ticks if stat else 0, child)

    @classmethod
    def find(cls, pid: int, started_ticks: int, environment: str) -> "Process | None":
        """The process with this pid, start time and `NAME=value` in its environment; None when it is gone."""
        stat = _stat(pid)
        if stat is None or stat.started_ticks != started_ticks or not _has(pid, environment):
            return None
        return cls(pid, started_ticks)

    @property
    def returncode(self) -> int | None:
        """How it ended, where it is a child of ours; None when it runs or that cannot be known."""
        return self._child.returncode if self._child else None

    def usage(self) -> Usage | None:
        """None when it has ended."""
        if self.returncode is not None:
            return None
        stat = _stat(self.pid)
        if stat and stat.started_ticks == self.started_ticks:
            return stat.usage
        if self._child:  # it ended this moment, and its parent has to take note of it
            _ = self._child.returncode
        return None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal if it still runs, and never to another process that got its pid."""
        if self._child:
            self._child.signal(number)
            return
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(self.pid)
            try:
                # The handle stays with one process: once its start time is right, no signal can go astray.
                if self.usage() is not None:
                    signal.pidfd_send_signal(handle, number)
            finally:
                os.close(handle)


def find_by_environment(environment: str) -> Process | None:
    """The process of this user that was started with this `NAME=value`; None when there is none."""
    for pid in _pids():
        stat = _stat(pid)
        if stat and _has(pid, environment):
            return Process(pid, stat.started_ticks)
    return None


def usage_of(pids: Iterable[int]) -> Usage:
    """What these processes have used together; those that are gone count for nothing."""
    usages = [stat.usage for pid in pids if (stat := _stat(pid))]
    return Usage(sum(usage.cpu_s for usage in usages), sum(usage.memory_bytes for usage in usages))


def started_ticks(pid: int) -> int:
    """When the process with this pid started, in clock ticks since the machine booted; -1 when there is none."""
    stat = _stat(pid)
    return stat.started_ticks if stat else -1


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())


def _stat(pid: int) -> _Stat | None:
    """None when there is no such process, or it has ended and waits for its parent."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if fields[_STATE] in _ENDED:
        return None
    cpu_s = sum(int(fields[at]) for at in (_UTIME, _STIME, _CUTIME, _CSTIME)) / _TICKS_PER_S
    return _Stat(int(fields[_START]), Usage(cpu_s, int(fields[_RSS]) * _PAGE_BYTES))


def _has(pid: int, environment: str) -> bool:
    try:
        return environment.encode() in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
