"""What the connections of one server share: limits, the tick and its clock, timeouts, what is open.

What arrives in one tick of the loop is looked at when the tick has received everything, and answers are
written together: reading, deciding and writing in turn for each connection was measured to cost a fifth more
CPU, because each system call leaves cold caches behind.
"""

import asyncio
from email.utils import formatdate
from typing import Protocol

import structlog

from springtide.ports import Clock, Timer
from springtide.sale.glance import Glance
from springtide.sale.metrics import Figures

SWEEP_S = 0.25
"""How late a timeout may be noticed."""

_log = structlog.get_logger(__name__)


class Connection(Protocol):
    """What the listener does with a connection."""

    deadline_s: float
    transport: asyncio.Transport | None

    def take(self, data: bytes) -> None:
        """These bytes have arrived; none stand for the end."""

    def write(self, answer: bytes, last: bool) -> None:  # noqa: FBT001 - a call by name takes longer
        """Write this now, and close after the last."""

    def expire(self) -> None:
        """The deadline has passed."""

    def cut(self) -> None:
        """Close at once."""


class Listener:
    """One for each server; nothing arrives, and nothing is timed out, before `start`."""

    __slots__ = (
        "_loop",
        "_sweeper",
        "arrived",
        "body_bytes_max",
        "clock",
        "connections",
        "connections_max",
        "date_line",
        "draining",
        "figures",
        "glance",
        "in_flight",
        "lines",
        "made",
        "now_ms",
        "now_s",
        "outgoing",
        "watchers",
    )

    def __init__(self, clock: Clock, figures: Figures, connections_max: int, body_bytes_max: int) -> None:
        """Nothing is timed out until `start`."""
        self.clock = clock
        self.figures = figures
        self.connections_max = connections_max
        self.body_bytes_max = body_bytes_max
        self.lines = Glance(body_bytes_max)
        self.glance = self.lines.whole
        self.connections: set[Connection] = set()
        self.in_flight = 0
        self.draining = False
        self.now_s = 0.0
        self.now_ms = 0
        self.date_line = b""
        self.made: dict[int, bytes] = {}
        """Answers that are the same for many, by their number, until the date changes."""
        self._loop: asyncio.AbstractEventLoop
        # What has arrived in this tick, and what is to be written at its end; a connection may append to them directly
        # when they are not empty.
        self.arrived: list[tuple[Connection, bytes]] = []
        self.outgoing: list[tuple[Connection, bytes, bool]] = []
        self._sweeper: Timer | None = None
        self.watchers: list[asyncio.Future[None]] = []

    def start(self) -> None:
        """Begin to sweep: refresh the `Date` header, close what took too long. Needs the loop running."""
        self._loop = asyncio.get_running_loop()
        self._sweep()

    def _sweep(self) -> None:
        self.look_at_clock()
        self.date_line = b"Date: %b\r\n" % formatdate(self.now_ms // 1000, usegmt=True).encode()
        self.made.clear()
        for connection in [each for each in self.connections if each.deadline_s < self.now_s]:
            connection.expire()
        self._sweeper = self.clock.call_later(SWEEP_S, self._sweep)

    def look_at_clock(self) -> None:
        """Set `now_s` and `now_ms`, which serve everything that is decided in this tick."""
        self.now_s = self.clock.monotonic_s()
        self.now_ms = self.clock.now_ms()

    def receive(self, connection: Connection, data: bytes) -> None:
        """Have the bytes looked at when this tick has received everything; none stand for the end."""
        if not self.arrived:
            self._loop.call_soon(self._look)
        self.arrived.append((connection, data))

    def _look(self) -> None:
        arrived, self.arrived = self.arrived, []
        self.look_at_clock()
        for connection, data in arrived:
            try:
                connection.take(data)
            except Exception:  # noqa: BLE001 - one connection's fault must not keep the others from being served
                _log.exception("connection_failed")
                connection.cut()

    def send(self, connection: Connection, answer: bytes, last: bool) -> None:  # noqa: FBT001 - as `Connection.write`
        """Have the answer written at the end of this tick, in the order of the calls."""
        outgoing = self.outgoing
        if not outgoing:
            self._loop.call_soon(self._write)
        outgoing.append((connection, answer, last))

    def _write(self) -> None:
        outgoing, self.outgoing = self.outgoing, []
        for connection, answer, last in outgoing:
            transport = connection.transport
            try:
                if last or transport is None or transport.is_closing():
                    connection.write(answer, last)
                else:
                    transport.write(answer)
            except Exception:  # noqa: BLE001 - as above
                _log.exception("connection_failed")
                connection.cut()

    def stop(self) -> None:
        """Stop sweeping, write what is left and cut what is open."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._write()
        for connection in list(self.connections):
            connection.cut()

    def finished(self) -> None:
        """A request has ended."""
        self.in_flight -= 1
        if self.watchers:
            self.notice()

    def notice(self) -> None:
        """Tell those who wait for quiet when there is."""
        if not self.in_flight:
            for watcher in self.watchers:
                if not watcher.done():
                    watcher.set_result(None)
            self.watchers.clear()

    async def quiet(self, seconds: float) -> None:
        """Wait until nothing is in flight. Raises TimeoutError after `seconds`."""
        async with self.clock.timeout(seconds):
            while self.in_flight:
                watcher = asyncio.get_running_loop().create_future()
                self.watchers.append(watcher)
                await watcher
