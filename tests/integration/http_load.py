"""Closed-loop traffic for tests: some keep-alive connections that POST, one request after the other."""

import asyncio
import contextlib
from collections import Counter
from types import TracebackType
from typing import Self

import httptools


class Answer:
    """One response, as it is read."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.body = b""
        self.complete = False
        self.status = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True


class Connection:
    """One keep-alive connection to a port of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.writer: asyncio.StreamWriter | None = None

    async def request(self, method: str = "POST", target: str = "/v1/orders") -> Answer:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        answer = Answer()
        parser = httptools.HttpResponseParser(answer)
        body = "" if method == "GET" else "buy"
        head = f"{method} {target} HTTP/1.1\r\nhost: shop\r\ncontent-length: {len(body)}\r\n\r\n"
        self.writer.write((head + body).encode())
        while not answer.complete:
            data = await self.reader.read(65536)
            if not data:
                raise ConnectionResetError("cut off")
            parser.feed_data(data)
        answer.status = parser.get_status_code()
        if not parser.should_keep_alive():
            await self.close()
        return answer

    async def close(self) -> None:
        if self.writer:
            self.writer.close()
            with contextlib.suppress(ConnectionError):
                await self.writer.wait_closed()
            self.writer = None


async def send(port: int, count: int, connections: int = 8) -> Counter[str]:
    """`count` requests; how many each replica answered, under `failed N` what was no 200."""
    async with Load(port, connections, count) as load:
        await load.done()
    return load.answers


class Load:
    """Traffic for as long as the block lasts, or until `count` requests are answered."""

    def __init__(self, port: int, connections: int = 8, count: int = 1_000_000) -> None:
        self.answers: Counter[str] = Counter()
        self._port = port
        self._connections = connections
        self._left = count
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._go()) for _ in range(self._connections)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left = 0
        await self.done()

    async def done(self) -> None:
        await asyncio.gather(*self._tasks)

    @property
    def failed(self) -> dict[str, int]:
        return {name: count for name, count in self.answers.items() if name.startswith("failed")}

    async def answered(self, more: int) -> None:
        """Wait until this many more requests are answered."""
        goal = self.answers.total() + more
        while self.answers.total() < goal:
            await asyncio.sleep(0.01)

    async def _go(self) -> None:
        connection = Connection(self._port)
        while self._left > 0:
            self._left -= 1
            try:
                answer = await connection.request()
            except (OSError, httptools.HttpParserError) as error:
                self.answers[f"failed {error!r}"] += 1
                await connection.close()
                continue
            name = answer.headers.get("x-replica", "") if answer.status == 200 else f"failed {answer.status}"
            self.answers[name] += 1
        await connection.close()
