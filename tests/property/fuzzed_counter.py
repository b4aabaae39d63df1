"""A counter in a thread of its own, clients that send as they like, and everything about it that must not change."""

import asyncio
import itertools
import select
import socket
import struct
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from structlog.testing import capture_logs
from structlog.typing import EventDict

from springtide.drivers.memory.inventory import MemoryInventory
from springtide.drivers.system import SystemClock, SystemIds
from springtide.model import QUANTITY_MAX, STOCK_MAX, HeldOrder, ReserveRequest, ReserveResult, Sku
from springtide.sale import metrics
from springtide.sale.counter import CounterServer, event_loop_factory
from springtide.sale.problems import INTERNAL
from tests.integration.counter_client import KEYS, ROOMY, SALE, make_sale, purchase
from tests.property.http_grammar import BUYERS, Delivery, End

WAIT_S = 15.0
PAUSE_S = 0.001
LONG_MS = 24 * 3_600_000
JOURNAL_MAX = 10_000_000
SKUS = ("tea", "cup")
AT_ONCE = Delivery()

_T = TypeVar("_T")
_examples = itertools.count()


class LeapingClock(SystemClock):
    """The machine's clock; what it says of durations can be moved on, so that nobody has to wait for a timeout."""

    def __init__(self) -> None:
        self.leapt_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.leapt_s


class UnhurriedInventory(MemoryInventory):
    """One whose answers take a moment, in which more arrives from the same client."""

    async def reserve(self, sale: str, bucket: int, batch: Sequence[ReserveRequest]) -> list[ReserveResult]:
        await asyncio.sleep(2 * PAUSE_S)
        return await super().reserve(sale, bucket, batch)


@dataclass(frozen=True)
class Client:
    """What one client sends, and how."""

    stream: Sequence[bytes]
    delivery: Delivery = AT_ONCE


@dataclass
class Heard:
    """What a client received. `finished`: the counter closed in good order, rather than by a reset."""

    received: bytes = b""
    finished: bool = False


@dataclass
class Guarded:
    """The counter, and what it does wrong without saying so to a client."""

    server: CounterServer
    port: int
    clock: LeapingClock
    inventory: MemoryInventory
    loop: asyncio.AbstractEventLoop
    logs: list[EventDict] = field(default_factory=list)
    unhandled: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, question: Coroutine[Any, Any, _T]) -> _T:
        """Run it in the counter's loop."""
        return asyncio.run_coroutine_threadsafe(question, self.loop).result(WAIT_S)

    def buyers(self) -> dict[int, str]:
        """New buyers for one example."""
        example = next(_examples)
        return {number: f"fuzz-{example}-{number}" for number in range(BUYERS)}

    def tokens(self, buyers: dict[int, str]) -> dict[int, bytes]:
        """Their tokens."""
        expires_s = self.clock.now_ms() // 1000 + 3600
        return {number: KEYS.sign(buyer, SALE, expires_s).encode() for number, buyer in buyers.items()}

    def stock(self) -> int:
        """Units left, of all SKUs."""
        return sum(self.ask(self.inventory.cut(SALE, 0)).stock[sku] for sku in SKUS)

    def orders_of(self, buyer: str) -> list[HeldOrder]:
        """What the buyer holds."""
        return self.ask(self.inventory.orders_of(SALE, 0, buyer))

    @property
    def reserved(self) -> int:
        """Purchases answered with 201 so far."""
        return self.server.figures.successes[metrics.RESERVED]

    def connect(self) -> socket.socket:
        """A connection."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def talk(self, *clients: Client) -> list[Heard]:
        """Let the clients send, all at the same time, and read what they are told."""
        sockets = [self.connect() for _ in clients]
        heard = [Heard() for _ in clients]
        try:
            _send(sockets, clients)
            for one, client, told in zip(sockets, clients, heard, strict=True):
                _end(one, client.delivery.end, told)
        finally:
            for one in sockets:
                one.close()
        return heard

    def is_well(self) -> None:
        """Nothing is left of what was there before, nothing went wrong inside, and the next one is served at once."""
        self.until_empty()
        heard = self.talk(Client([purchase()]))[0]
        assert heard.received.startswith(b"HTTP/1.1 201 Created\r\n"), heard
        assert heard.finished
        self.until_empty()
        assert not self.unhandled
        assert not [one for one in self.logs if one["log_level"] in ("error", "critical")]
        assert self.server.figures.problems[INTERNAL.index] == 0

    def until_empty(self) -> None:
        """Wait until no connection is open and no request or purchase is under way."""
        until = time.monotonic() + WAIT_S
        while (left := self._left()) and time.monotonic() < until:
            time.sleep(0.001)
        assert not left

    def _left(self) -> dict[str, int]:
        server = self.server
        left = {
            "connections": len(server.listener.connections),
            "in flight": server.listener.in_flight,
            "batches": server.batcher.in_flight,
            "waiting": server.batcher.waiting,
            "order queries": server.orders.in_flight,
            "look-ups": server.pages.lookups,
            "in doubt": server.refusals.waiting,
        }
        return {name: count for name, count in left.items() if count}


def _send(sockets: Sequence[socket.socket], clients: Sequence[Client]) -> None:
    """One piece of each in turn."""
    pieces = [client.delivery.pieces(client.stream) for client in clients]
    pauses = [itertools.cycle(client.delivery.pauses or (client.delivery.apart,)) for client in clients]
    for row in itertools.zip_longest(*pieces):
        for one, piece, pause in zip(sockets, row, pauses, strict=True):
            if piece is None:
                continue
            try:
                one.sendall(piece)
            except ConnectionError:
                # The counter refused before and has closed: what it said can still be read.
                continue
            if next(pause):
                time.sleep(PAUSE_S)


def _end(one: socket.socket, end: End, told: Heard) -> None:
    if end is End.RESET:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if end is not End.HALF_CLOSE:
        return
    # It may have been reset already.
    with suppress(OSError):
        one.shutdown(socket.SHUT_WR)
    read_to_end(one, told)


def read_to_end(one: socket.socket, told: Heard) -> None:
    """Read until the counter closes. Raises TimeoutError when it does not."""
    try:
        while chunk := one.recv(65_536):
            told.received += chunk
        told.finished = True
    except ConnectionError:
        pass


def read_until_quiet(one: socket.socket, told: Heard, quiet_s: float) -> None:
    """Read until nothing has come for a while, or the counter closes."""
    try:
        while not told.finished and select.select([one], [], [], quiet_s)[0]:
            chunk = one.recv(65_536)
            told.received += chunk
            told.finished = not chunk
    except ConnectionError:
        told.finished = True


@contextmanager
def guarded_counter() -> Iterator[Guarded]:
    """A counter that sells enough for everybody, until the block ends."""
    started: list[Guarded] = []
    ready = threading.Event()
    stopping: list[asyncio.Event] = []

    async def serve(logs: list[EventDict]) -> None:
        clock = LeapingClock()
        inventory = UnhurriedInventory(clock, journal_lag_max=JOURNAL_MAX)
        skus = tuple(Sku(sku, sku.title(), 1, STOCK_MAX // 2, per_buyer_max=QUANTITY_MAX) for sku in SKUS)
        now_ms = clock.now_ms()
        sale = make_sale(skus=skus, opens_ms=now_ms - 1000, closes_ms=now_ms + LONG_MS, hold_ms=LONG_MS)
        await inventory.publish(sale)
        server = CounterServer(ROOMY, inventory, clock, SystemIds(), KEYS, "r1", rate_max=None)
        loop = asyncio.get_running_loop()
        guarded = Guarded(server, await server.start("127.0.0.1", 0), clock, inventory, loop, logs)
        loop.set_exception_handler(lambda _, context: guarded.unhandled.append(context))
        stopping.append(asyncio.Event())
        started.append(guarded)
        ready.set()
        await stopping[0].wait()
        await server.stop()

    def run() -> None:
        with capture_logs() as logs, asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            runner.run(serve(logs))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(20)
        yield started[0]
        started[0].is_well()
    finally:
        if started:
            started[0].loop.call_soon_threadsafe(stopping[0].set)
        thread.join(20)
    assert not thread.is_alive()
