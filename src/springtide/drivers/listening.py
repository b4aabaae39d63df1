"""Ports on this machine: a free one for a program that must be told, and whose program listens on one."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

_LISTEN = "0A"  # proc_net_tcp(5), include/net/tcp_states.h
_LOCAL, _STATE, _INODE = 1, 3, 9
_SESSION = 3  # of /proc/PID/stat, counted after the command's name: proc_pid_stat(5)


def free_port(host: str, avoid: frozenset[int]) -> int:
    """A port that nobody listens on now and that is not in `avoid`. Somebody else may still take it. Raises OSError."""
    held: list[socket.socket] = []
    try:
        for _ in range(len(avoid) + 1):
            held.append(socket.socket())
            held[-1].bind((host, 0))
            port = int(held[-1].getsockname()[1])
            if port not in avoid:
                return port
    finally:
        for each in held:
            each.close()
    raise OSError(f"no port of {host} is free")


def is_taken(host: str, port: int) -> bool:
    """Whether a program that wants to listen there would be refused."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def listens(session: int, port: int) -> bool:
    """Whether a process of this session holds a socket that listens on the port. It reads all of /proc: ask rarely."""
    wanted = {f"socket:[{inode}]" for inode in _listening(session, port)}
    return bool(wanted) and any(wanted & set(_sockets(pid)) for pid in _members(session))


def _listening(pid: int, port: int) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), (Path("/proc") / str(pid) / "net" / name).open() as table:
            next(table)
            for line in table:
                fields = line.split()
                if fields[_STATE] == _LISTEN and int(fields[_LOCAL].rpartition(":")[2], 16) == port:
                    yield fields[_INODE]


def _members(session: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[_SESSION]) == session:
                    yield int(entry.name)


def _sockets(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208 - names are all that is needed, of many
            with contextlib.suppress(OSError):
                yield os.readlink(f"{folder}/{name}")  # noqa: PTH115 - the target is no path
