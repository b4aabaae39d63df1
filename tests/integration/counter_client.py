"""A raw HTTP client and the makings of a counter, for the tests of the order path's front."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from springtide.config import CounterSettings
from springtide.drivers.memory.inventory import MemoryInventory
from springtide.drivers.system import SystemClock, SystemIds
from springtide.model import Sale, Sku
from springtide.ports import Inventory
from springtide.sale.counter import CounterServer
from springtide.sale.tokens import TokenKeys

KEY = b"k" * 32
KEYS = TokenKeys((KEY,))
SALE = "evening"
TIMEOUT_S = 10.0
ROOMY = CounterSettings(buyer_rate_max=10_000.0, buyer_burst_max=10_000)
CLOCK = SystemClock()

_numbers = itertools.count()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    version: str = "1.1"

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def code(self) -> str:
        assert self.headers["content-type"] == "application/problem+json"
        problem = self.json
        assert problem["status"] == self.status
        assert set(problem) >= {"type", "title", "status", "detail", "code"}
        return str(problem["code"])


def make_sale(sale: str = SALE, **changes: Any) -> Sale:
    now_ms = CLOCK.now_ms()
    skus = (Sku("tea", "Tea", 1990, 100, per_buyer_max=2), Sku("cup", "Cup", 500, 1, per_buyer_max=2))
    fields = {
        "sale": sale,
        "title": "An evening",
        "skus": skus,
        "opens_ms": now_ms - 1000,
        "closes_ms": now_ms + 600_000,
        "hold_ms": 60_000,
    }
    return Sale(**{**fields, **changes})


def token(buyer: str, sale: str = SALE, ends_in_s: int = 600) -> str:
    return KEYS.sign(buyer, sale, CLOCK.now_ms() // 1000 + ends_in_s)


def new_buyer() -> str:
    return f"buyer-{next(_numbers)}"


def purchase(
    buyer: str | None = None,
    key: str | None = None,
    body: Any = None,
    sale: str = SALE,
    headers: dict[str, str | None] | None = None,
) -> bytes:
    """A whole purchase; a header given as None is left out."""
    buyer = buyer or new_buyer()
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body or {"sku": "tea"})
    merged: dict[str, str | None] = {
        "Host": "shop",
        "Authorization": f"Bearer {token(buyer, sale)}",
        "Idempotency-Key": key or f"key-{next(_numbers)}",
        "Content-Type": "application/json",
        "Content-Length": str(len(raw)),
        **(headers or {}),
    }
    lines = [f"POST /v1/sales/{sale}/orders HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in merged.items() if value is not None]
    return "\r\n".join([*lines, "", ""]).encode() + raw


def get(path: str, method: str = "GET", headers: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: shop\r\n{headers}\r\n".encode()


@dataclass
class Client:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def ask(self, data: bytes, *, head: bool = False) -> Answer:
        self.send(data)
        return await self.answer(head=head)

    async def answer(self, *, head: bool = False) -> Answer:
        async with asyncio.timeout(TIMEOUT_S):
            raw = await self.reader.readuntil(b"\r\n\r\n")
            lines = raw.decode("latin-1").split("\r\n")[:-2]
            version, status, _ = lines[0].split(" ", 2)
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
            body = b""
            if not head and int(status) >= 200:
                body = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(int(status), headers, body, version.removeprefix("HTTP/"))

    async def ended(self) -> bytes:
        """What comes until the server closes."""
        async with asyncio.timeout(TIMEOUT_S):
            return await self.reader.read()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@dataclass
class Shop:
    """A running counter."""

    server: CounterServer
    port: int
    clients: list[Client] = field(default_factory=list)

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def ask(self, data: bytes, *, head: bool = False) -> Answer:
        return await (await self.connect()).ask(data, head=head)

    async def until(self, condition: Any, seconds: float = TIMEOUT_S) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)


@asynccontextmanager
async def open_shop(
    inventory: Inventory | None = None,
    settings: CounterSettings = ROOMY,
    sale: Sale | None = None,
    rate_max: float | None = None,
) -> AsyncIterator[Shop]:
    inventory = inventory or MemoryInventory(CLOCK)
    await inventory.publish(sale or make_sale())
    server = CounterServer(settings, inventory, CLOCK, SystemIds(), KEYS, "r1", rate_max=rate_max)
    shop = Shop(server, await server.start("127.0.0.1", 0))
    try:
        yield shop
    finally:
        for client in shop.clients:
            await client.close()
        await server.stop()
