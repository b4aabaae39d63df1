"""A small HTTP/1.1 client for many short requests: keep-alive connections, callbacks instead of tasks.

A general client library costs several times the processor time for each request, and the crowd shares the
machine with what it measures.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

import httptools

from springtide.errors import ConfigError
from springtide.ports import Clock

WAITING_MAX = 50_000
"""Requests that may wait for a free connection; one more fails at once."""
OPENING_MAX = 64
"""Connections that may be being opened at one time."""
SWEEP_S = 0.02
"""How often requests that take too long are looked for."""
BODY_BYTES_MAX = 1 << 20
"""A longer body of an answer is a connection error."""


class Request:
    """One request, and where its answer goes.

    `on_written(now_s)` is called when it leaves; `on_answer(response)` exactly once.
    """

    __slots__ = ("connection", "deadline_s", "done", "on_answer", "on_written", "payload")

    def __init__(
        self, payload: bytes, on_answer: "Callable[[Response], None]", on_written: Callable[[float], None]
    ) -> None:
        """`payload` is the whole request, headers and body."""
        self.payload = payload
        self.on_answer = on_answer
        self.on_written = on_written
        self.deadline_s = 0.0
        self.done = False
        self.connection: _Connection | None = None


class Response:
    """A response, or what there was instead: `status` 0 and `failure` `timeout` or `connection`."""

    __slots__ = ("body", "failure", "retry_after_s", "status")

    def __init__(self, status: int, body: bytes = b"", retry_after_s: float = 0.0, failure: str = "") -> None:
        """All there is to know."""
        self.status = status
        self.body = body
        self.retry_after_s = retry_after_s
        self.failure = failure


class _Connection(asyncio.Protocol):
    """One keep-alive connection: at most one request at a time."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._retry_after_s = 0.0
        self.request: Request | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, since uvloop's transports have the methods of asyncio.Transport and not its type.
        self._transport = cast("asyncio.Transport", transport)

    def send(self, request: Request, now_s: float) -> None:
        if self._transport is None:
            return
        self.request = request
        request.connection = self
        self._transport.write(request.payload)
        request.on_written(now_s)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()
        if len(self._body) > BODY_BYTES_MAX:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        self._transport = None
        request, self.request = self.request, None
        self._pool.lost(self)
        if request is not None:
            self._pool.finish(request, Response(0, failure="connection"))

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # the parser's callbacks

    def on_message_begin(self) -> None:
        self._body.clear()
        self._retry_after_s = 0.0

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == len(b"retry-after") and name.lower() == b"retry-after":
            with contextlib.suppress(ValueError):
                self._retry_after_s = float(value)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        request, self.request = self.request, None
        response = Response(self._parser.get_status_code(), bytes(self._body), self._retry_after_s)
        if self._parser.should_keep_alive() and request is not None:
            self._pool.free(self)
        else:
            self.abort()
        if request is not None:
            self._pool.finish(request, response)


class Pool:
    """Connections to one place: `connections_min` at first, up to `connections_max` when all are busy.

    A request that finds none free waits for one. `timeout_s` runs from the moment the request is given.
    """

    def __init__(self, url: str, clock: Clock, timeout_s: float, connections_min: int, connections_max: int) -> None:
        """Raises ConfigError unless `url` is `http://host:port`."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or not parts.port:
            msg = f"{url!r} is not of the form http://host:port; give such a URL"
            raise ConfigError(msg)
        self.host, self.port = parts.hostname, parts.port
        self._clock = clock
        self._timeout_s = timeout_s
        self._min, self._max = connections_min, connections_max
        self._connections: set[_Connection] = set()
        self._free: list[_Connection] = []
        self._waiting: deque[Request] = deque()
        self._pending: deque[Request] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self) -> None:
        """Open the first connections; those that fail are tried again when a request needs them."""
        self._sweeper = asyncio.create_task(self._sweep())
        while len(self._connections) < self._min:
            before = len(self._connections)
            for _ in range(min(OPENING_MAX, self._min - before)):
                self._open_one()
            await asyncio.gather(*self._opening)
            if len(self._connections) == before:
                return

    async def close(self) -> None:
        """Cut every connection; requests under way end as connection errors."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in list(self._opening):
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for connection in list(self._connections):
            connection.abort()
        for request in [*self._pending, *self._waiting]:
            self.finish(request, Response(0, failure="connection"))
        self._pending.clear()
        self._waiting.clear()

    def send(self, request: Request) -> None:
        """Send now, or as soon as a connection is free."""
        now_s = self._clock.monotonic_s()
        request.deadline_s = now_s + self._timeout_s
        if len(self._waiting) >= WAITING_MAX:
            self.finish(request, Response(0, failure="connection"))
            return
        self._pending.append(request)
        if self._free:
            self._free.pop().send(request, now_s)
            return
        self._waiting.append(request)
        if len(self._opening) < min(OPENING_MAX, len(self._waiting)):
            self._open_one()

    def finish(self, request: Request, response: Response) -> None:
        """Give a request its answer, once."""
        if not request.done:
            request.done = True
            request.on_answer(response)

    def free(self, connection: _Connection) -> None:
        """A connection has had its answer: the next request, or rest."""
        while self._waiting:
            request = self._waiting.popleft()
            if not request.done:
                connection.send(request, self._clock.monotonic_s())
                return
        self._free.append(connection)

    def lost(self, connection: _Connection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        with contextlib.suppress(ValueError):
            self._free.remove(connection)
        if self._waiting and not self._closed and len(self._opening) < OPENING_MAX:
            self._open_one()

    def _open_one(self) -> None:
        if len(self._connections) + len(self._opening) < self._max and not self._closed:
            task = asyncio.create_task(self._connect())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with self._clock.timeout(self._timeout_s):
                _, connection = await loop.create_connection(lambda: _Connection(self), self.host, self.port)
        except (OSError, TimeoutError):
            if self._waiting:
                self.finish(self._waiting.popleft(), Response(0, failure="connection"))
            if self._waiting:
                self._open_one()
            return
        self._connections.add(connection)
        self.free(connection)

    async def _sweep(self) -> None:
        """All requests have the same time, so the oldest is always the next one to run out of it."""
        while True:
            await self._clock.sleep(SWEEP_S)
            now_s = self._clock.monotonic_s()
            while self._pending and (self._pending[0].done or self._pending[0].deadline_s <= now_s):
                request = self._pending.popleft()
                if not request.done:
                    self._expire(request)

    def _expire(self, request: Request) -> None:
        self.finish(request, Response(0, failure="timeout"))
        if request.connection is not None:
            request.connection.abort()
