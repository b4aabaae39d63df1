"""A pipelined connection to Valkey that restores itself: RESP written by hand, read by libvalkey.

Replies come in the order of the calls, so a call costs one write, one future and no lock.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from libvalkey import ProtocolError, Reader, ReplyError, pack_command
from typing_extensions import override

from springtide.errors import InventoryError, InventoryUnavailable, OutcomeUnknown
from springtide.ports import Clock, Timer

CALLS_IN_FLIGHT_MAX = 256
"""Unanswered calls on one connection; the next one is refused at once."""

BACKOFF_S_MIN = 0.02
BACKOFF_S_MAX = 1.0

_MORE = object()
# The server says these before it runs anything, or our functions before they write anything.
_NOTHING_WRITTEN = (
    "LOADING",
    "OOM",
    "MISCONF",
    "NOREPLICAS",
    "MASTERDOWN",
    "BUSY",
    "NOAUTH",
    "NOPERM",
    "UNPUBLISHED",
)
# Nor was anything written when a cluster sends a command elsewhere or to a later moment.
_ELSEWHERE = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "READONLY")
_NO_FUNCTION = "ERR Function not found"


class Redirected(InventoryUnavailable):
    """The server does not serve this slot, or not now; nothing was written. `reply` is what it said."""

    def __init__(self, reply: str) -> None:
        super().__init__(f"Valkey refused: {reply}; repeat the call once the cluster has settled")
        self.reply = reply


def command(*words: str | bytes | int) -> bytes:
    """A command as it goes over the wire."""
    return pack_command(words)


class Connection(asyncio.Protocol):
    """One TCP connection. When it ends, unanswered calls are OutcomeUnknown and `on_lost` is called once."""

    def __init__(self, clock: Clock, timeout_s: float, on_lost: Callable[["Connection"], None]) -> None:
        self.lost = False
        self._clock = clock
        self._timeout_s = timeout_s
        self._on_lost = on_lost
        self._reader = Reader(notEnoughData=_MORE)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._new_future = asyncio.get_running_loop().create_future
        self._watchdog: Timer | None = None
        self._why = "the connection to Valkey broke"

    @property
    def calls_in_flight(self) -> int:
        """Calls sent and not answered."""
        return len(self._waiting)

    def send(self, data: bytes) -> asyncio.Future[Any]:
        """Send one command; the future has its reply, or InventoryUnavailable or OutcomeUnknown."""
        return self._send(data, 1)[0]

    def send_all(self, commands: Sequence[bytes]) -> list[asyncio.Future[Any]]:
        """Send commands that the server gets without a gap between them: all of them, or none and an error."""
        return self._send(b"".join(commands), len(commands))

    def _send(self, data: bytes, calls: int) -> list[asyncio.Future[Any]]:
        if self.lost or self._transport is None or self._transport.is_closing():
            raise InventoryUnavailable(f"{self._why}; repeat the call when it is restored")
        if len(self._waiting) + calls > CALLS_IN_FLIGHT_MAX:
            raise InventoryUnavailable(f"{CALLS_IN_FLIGHT_MAX} calls to Valkey are unanswered; repeat this one later")
        now_s = self._clock.monotonic_s()
        futures = [self._new_future() for _ in range(calls)]
        self._waiting.extend((future, now_s) for future in futures)
        self._transport.write(data)
        if self._watchdog is None:
            self._watchdog = self._clock.call_later(self._timeout_s, self._look)
        return futures

    def abort(self, why: str) -> None:
        """End the connection now; `why` becomes the message of every call that is under way."""
        self._why = why
        if self._transport is not None:
            self._transport.abort()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # a TCP connection has this kind of transport

    @override
    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not _MORE:
                future, _ = self._waiting.popleft()
                if isinstance(reply, ReplyError):
                    self._refuse(future, str(reply))
                elif not future.done():
                    future.set_result(reply)
        except (ProtocolError, IndexError):
            self.abort("Valkey sent what no call had asked for; check that it is Valkey that listens there")

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(
                    OutcomeUnknown(f"{self._why} before it answered; repeat the call with the same key")
                )
        self._on_lost(self)

    def _refuse(self, future: asyncio.Future[Any], text: str) -> None:
        if text.startswith(_NO_FUNCTION):
            # Somebody emptied the server; a new connection loads the functions again.
            self.abort("Valkey has lost its functions")
            error: InventoryError = InventoryUnavailable(f"Valkey: {text}; repeat the call, they are loaded again")
        elif text.startswith(_ELSEWHERE):
            error = Redirected(text)
        elif text.startswith(_NOTHING_WRITTEN):
            error = InventoryUnavailable(f"Valkey refused: {text}; repeat the call once that is mended")
        else:
            error = OutcomeUnknown(f"Valkey failed: {text}; repeat the call with the same key, and look into its log")
        if not future.done():
            future.set_exception(error)

    def _look(self) -> None:
        """Replies come in order: when the oldest call is overdue, so is everything behind it."""
        self._watchdog = None
        if not self._waiting:
            return
        left_s = self._waiting[0][1] + self._timeout_s - self._clock.monotonic_s()
        if left_s <= 0:
            self.abort(f"Valkey took longer than {self._timeout_s:g} s")
        else:
            self._watchdog = self._clock.call_later(left_s, self._look)


class Wire:
    """A connection that is made again, with bounded backoff, whenever it ends.

    `prepare` runs on each new connection before any call. Without one, calls raise InventoryUnavailable.
    `on_lost` is called when a connection that was in use has ended.
    """

    def __init__(
        self,
        address: tuple[str, int],
        clock: Clock,
        timeout_s: float,
        prepare: Callable[[Connection], Awaitable[None]],
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._address = address
        self._clock = clock
        self._timeout_s = timeout_s
        self._prepare = prepare
        self._tell_lost = on_lost
        self._connection: Connection | None = None
        self._restoring: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def calls_in_flight(self) -> int:
        """Calls sent and not answered; at most CALLS_IN_FLIGHT_MAX."""
        return self._connection.calls_in_flight if self._connection else 0

    @property
    def connection(self) -> Connection | None:
        """The connection now, for what has to be said on one and the same; None while there is none."""
        return self._connection

    async def open(self) -> None:
        """Connect for the first time. Raises InventoryUnavailable when that fails."""
        self._connection = await self._connect()

    async def open_or_restore(self) -> InventoryError | None:
        """Connect for the first time; an error when that fails: it is then tried again like after a loss."""
        try:
            await self.open()
        except InventoryError as error:
            if not self._closed:
                self._restoring = asyncio.get_running_loop().create_task(self._restore())
            return error
        return None

    def send(self, data: bytes) -> asyncio.Future[Any]:
        """Send one command; see `Connection.send`."""
        return self._connected().send(data)

    def send_all(self, commands: Sequence[bytes]) -> list[asyncio.Future[Any]]:
        """Send commands without a gap between them; see `Connection.send_all`."""
        return self._connected().send_all(commands)

    async def call(self, *words: str | bytes | int) -> Any:  # noqa: ANN401 - a reply has the shape of its command
        """Send one command and wait for its reply."""
        return await self.send(pack_command(words))

    async def close(self) -> None:
        """Let go; unanswered calls are OutcomeUnknown."""
        self._closed = True
        if self._restoring is not None:
            self._restoring.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._restoring
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort("the connection to Valkey was closed on purpose")
            while not connection.lost:
                await self._clock.sleep(0)

    def _connected(self) -> Connection:
        if self._connection is None:
            host, port = self._address
            raise InventoryUnavailable(f"not connected to Valkey at {host}:{port}; repeat the call when it is back")
        return self._connection

    async def _connect(self) -> Connection:
        host, port = self._address
        loop = asyncio.get_running_loop()
        try:
            async with self._clock.timeout(self._timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._clock, self._timeout_s, self._on_lost), host, port
                )
        except (OSError, TimeoutError) as error:
            raise InventoryUnavailable(f"Valkey at {host}:{port} cannot be reached ({error}); start it") from error
        try:
            await self._prepare(connection)
        except BaseException:
            connection.abort("Valkey could not be prepared")
            raise
        if connection.lost:
            raise InventoryUnavailable(f"Valkey at {host}:{port} hung up at once; look into its log")
        return connection

    def _on_lost(self, connection: Connection) -> None:
        if connection is self._connection and not self._closed:
            self._connection = None
            self._restoring = asyncio.get_running_loop().create_task(self._restore())
            self._tell_lost()

    async def _restore(self) -> None:
        pause_s = BACKOFF_S_MIN
        while True:
            try:
                self._connection = await self._connect()
            except InventoryError:
                await self._clock.sleep(pause_s)
                pause_s = min(2 * pause_s, BACKOFF_S_MAX)
            else:
                return
