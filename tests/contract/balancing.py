"""What the tests of balancers stand on: an engine, replicas that can be hurt, and single requests."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from springtide.drivers.balanced_service import BalancedService
from springtide.drivers.balancers import BalancerEngine, start_balancer
from springtide.drivers.embedded_haproxy import haproxy_binary
from springtide.drivers.system import SystemClock
from springtide.errors import EngineError
from springtide.model import Endpoint
from springtide.ports import Balancer
from tests.integration.http_load import Answer, Connection, Load, send

ECHO = Path(__file__).parents[1] / "integration" / "echo_replica.py"
CLOCK = SystemClock()
SHOP = BalancedService("shop", idempotent=True, try_ms=1_000, slow_start_ms=0)
"""Any request may be repeated, and shares are full from the beginning."""

Kind = Literal["haproxy", "envoy"]


def without_haproxy() -> str:
    """Why HAProxy cannot run here; '' when it can."""
    try:
        haproxy_binary()
    except EngineError as error:
        return str(error)
    return ""


KINDS = [
    pytest.param("haproxy", marks=pytest.mark.skipif(bool(without_haproxy()), reason=without_haproxy() or "is there")),
    pytest.param("envoy"),
]


class Inside:
    """A replica in this process, whose behaviour can be changed while it serves."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.status = 200
        self.check_status = 200
        self.delay_s = 0.0
        self.breaks = False
        """It closes the connection when it has read a request."""
        self.served = 0
        self.connections = 0
        self.server: asyncio.Server | None = None
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> None:
        await self.listen_on(socket.create_server((host, port), backlog=2048))

    async def listen_on(self, listener: socket.socket) -> None:
        """The same, on a socket that may be of another network namespace."""
        self.server = await asyncio.start_server(self._serve, sock=listener)
        self.port = self.server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Refuse connections, and end those that are open."""
        if self.server:
            self.server.close()
            for writer in list(self._writers):
                writer.close()
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().lower().split("\r\n")
                length = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length:")), 0)
                await reader.readexactly(length)
                if not await self._answer(lines[0], writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, line: str, writer: asyncio.StreamWriter) -> bool:
        status = self.check_status
        if not line.startswith("get /readyz "):
            self.served += 1
            if self.breaks:
                return False
            await asyncio.sleep(self.delay_s)
            status = self.status
        writer.write(f"HTTP/1.1 {status} x\r\nx-replica: {self.name}\r\ncontent-length: 2\r\n\r\nok".encode())
        await writer.drain()
        return True


@contextmanager
def constant() -> Iterator[int]:
    """A port on all addresses of this machine that answers everything at once, as a thousand replicas would."""
    with socket.create_server(("0.0.0.0", 0)) as probe:
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="constant-") as folder:
        settings = Path(folder) / "haproxy.cfg"
        settings.write_text(
            "global\n  maxconn 4000\n  nbthread 1\n"
            "defaults\n  mode http\n  timeout client 30s\n  timeout connect 5s\n  timeout server 5s\n"
            f"frontend constant\n  bind 0.0.0.0:{port}\n"
            '  http-request return status 200 content-type text/plain string "ok" hdr x-replica constant\n'
        )
        process = subprocess.Popen([haproxy_binary(), "-q", "-db", "-f", str(settings)])
        try:
            while process.poll() is None:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
            yield port
        finally:
            process.kill()
            process.wait()


class Stage:
    """An engine that serves SHOP (or what it is given) and replicas; a zone is the first letter of its replicas."""

    def __init__(self, engine: BalancerEngine, folder: Path, service: str) -> None:
        self.engine = engine
        self.folder = folder
        self.service = service
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.inside: dict[str, Inside] = {}
        self.ports: dict[str, int] = {}

    @property
    def balancer(self) -> Balancer:
        return self.engine.balancer(self.service)

    @property
    def port(self) -> int:
        return self.engine.port(self.service)

    async def begin(self, names: str, *options: str) -> None:
        """Replicas in processes of their own; with `echo_replica.py`'s options."""
        for name in names.split():
            command = [sys.executable, str(ECHO), str(self.folder / name), *options]
            environment = {**os.environ, "SPRINGTIDE_REPLICA_ID": name}
            self.processes[name] = subprocess.Popen(command, env=environment)
        for name in names.split():
            while not (self.folder / name).exists():
                await asyncio.sleep(0.02)
            self.ports[name] = json.loads((self.folder / name).read_text())["port"]

    async def begin_inside(self, names: str) -> list[Inside]:
        """Replicas in this process."""
        made = [Inside(name) for name in names.split()]
        for each in made:
            await each.listen()
            self.inside[each.name], self.ports[each.name] = each, each.port
        return made

    def endpoint(self, name: str, weight: int) -> Endpoint:
        return Endpoint(name, name[0], "127.0.0.1", self.ports[name], weight)

    async def route(self, **weights: int) -> None:
        await self.balancer.set_endpoints([self.endpoint(name, weight) for name, weight in weights.items()])

    def signal(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send_signal(number)

    def load(self, connections: int = 16) -> Load:
        return Load(self.port, connections)

    async def send(self, count: int, connections: int = 8) -> dict[str, int]:
        return dict(await send(self.port, count, connections))

    async def request(self) -> Answer:
        connection = Connection(self.port)
        try:
            return await connection.request()
        finally:
            await connection.close()

    async def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        for each in self.inside.values():
            await each.close()


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    """Wait for something that has to come."""
    async with asyncio.timeout(seconds):
        while not await true():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def staged(kind: Kind, folder: Path, service: BalancedService = SHOP, **changed: object) -> AsyncIterator[Stage]:
    """A stage whose engine and replicas end with the block."""
    service = msgspec.structs.replace(service, **changed)
    engine = await start_balancer(kind, folder, CLOCK, [service])
    stage = Stage(engine, folder, service.name)
    try:
        yield stage
    finally:
        await engine.stop()
        await stage.close()
    assert engine.process is None
