"""A private network of namespaces: each process on a link of its own, which can be cut. Linux, root, `ip`.

The thread that makes a `PrivateNetwork` moves into a fresh namespace and stays there: what it then binds or reaches is
out of sight of the machine's other users, and no interface, route or address of the machine is touched. The namespaces
have no names; they end with the last process in them, however that ends (network_namespaces(7)).
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from springtide.errors import EngineError

NODES_MAX = 100
"""Links of one network: a /24 has room for more, a torture needs ten."""

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_HERE = Path("/proc/thread-self/ns/net")
_PREFIX = "10.99.0."
_BRIDGE = "springtide"


class Namespace:
    """One node of the network: the address that its processes listen on, and a link that can be cut."""

    def __init__(self, descriptor: int, home: int, port: str, host: str) -> None:
        """Use `PrivateNetwork.add`."""
        self.host = host
        self._descriptor = descriptor
        self._home = home
        self._port = port

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Processes and sockets begun inside the block are in this namespace. Not to be left open over an await."""
        _enter(self._descriptor)
        try:
            yield
        finally:
            _enter(self._home)

    def cut(self) -> None:
        """Drop every packet from and to this node: connections do not break, they fall silent."""
        _ip("link", "set", self._port, "down")

    def heal(self) -> None:
        """Let packets pass again."""
        _ip("link", "set", self._port, "up")


class PrivateNetwork:
    """A switch with this thread on it; nodes are added one by one. Raises EngineError where `missing` has a reason."""

    host = _PREFIX + "1"

    def __init__(self) -> None:
        """Move the calling thread into the network."""
        if reason := missing():
            raise EngineError(reason)
        self._outside = _current()
        _unshare()
        self._home = _current()
        self._nodes: list[int] = []
        _ip("link", "set", "lo", "up")
        _ip("link", "add", _BRIDGE, "type", "bridge")
        _ip("addr", "add", self.host + "/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")

    def add(self) -> Namespace:
        """A new node. Raises EngineError when there are NODES_MAX."""
        if len(self._nodes) >= NODES_MAX:
            raise EngineError(f"a private network has at most {NODES_MAX} nodes")
        number = len(self._nodes) + 2
        _unshare()
        node = Namespace(_current(), self._home, f"port{number}", f"{_PREFIX}{number}")
        self._nodes.append(node._descriptor)  # noqa: SLF001 - the network owns its nodes' descriptors
        _enter(self._home)
        peer = f"/proc/{os.getpid()}/fd/{self._nodes[-1]}"
        _ip("link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", peer)
        _ip("link", "set", f"port{number}", "master", _BRIDGE, "up")
        with node.entered():
            _ip("link", "set", "lo", "up")
            _ip("addr", "add", node.host + "/24", "dev", "eth0")
            _ip("link", "set", "eth0", "up")
        return node

    def close(self) -> None:
        """Move the thread back to where it was, and let the namespaces go."""
        if self._outside < 0:
            return
        _enter(self._outside)
        for descriptor in (self._outside, self._home, *self._nodes):
            os.close(descriptor)
        self._outside = -1


def missing() -> str:
    """Why there can be no private network here; empty when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the program `ip` (package iproute2)"
    outside = _current()
    try:
        _unshare()
    except EngineError as error:
        return str(error)
    else:
        _enter(outside)
    finally:
        os.close(outside)
    return ""


def _current() -> int:
    return os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)


def _unshare() -> None:
    if _LIBC.unshare(_CLONE_NEWNET):
        raise EngineError(f"no network namespace can be made here: {os.strerror(ctypes.get_errno())}")


def _enter(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWNET):
        raise EngineError(f"a network namespace cannot be entered: {os.strerror(ctypes.get_errno())}")


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, check=False, text=True)  # noqa: S607 - `missing` looked for it
    if done.returncode:
        raise EngineError(f"ip {' '.join(words)}: {done.stderr.strip()}")
