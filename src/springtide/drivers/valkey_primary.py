"""Our connections to one Valkey server that takes writes, and the wait until replicas have them on disk.

`WAITAOF` blocks the connection that it is sent on until the replicas have flushed what that connection wrote. So writes
share it: those of one tick go out on one connection and then one `WAITAOF` for all; meanwhile the next ones go out on
another connection. When all are taken, what comes next gathers and shares the next one (group commit).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from springtide.drivers.valkey_store import Prepare
from springtide.drivers.valkey_wire import Connection, Wire, command
from springtide.errors import InventoryError, InventoryUnavailable, OutcomeUnknown
from springtide.ports import Clock

WRITERS = 2
"""Connections to one server that writes go out on, when they wait for replicas."""

WRITES_WAITING_MAX = 256
"""Writes to one server that wait for a connection; the next one is refused at once."""

WRITES_TOGETHER_MAX = 64
"""Writes that share one WAITAOF."""

# A replica tells what it has flushed when it is asked, by itself only once a second. Asked together with a write, it
# answers before it has flushed that. So it is asked when the primary has answered, since the replicas mostly have the
# write by then, and again soon when that was too early. For this the server's clock must tick that often: `hz 500`.
_ASK_AGAIN_MS = 2
_ASKING = command("ASKING")


class _Write(NamedTuple):
    data: bytes
    asking: bool
    answer: asyncio.Future[Any]
    since_s: float


class Primary:
    """One server: a connection for reads, and for writes as well unless they wait for replicas (`replicas_acked` > 0).

    A write is answered when the server has flushed it to its own disk and `replicas_acked` replicas to theirs.
    """

    def __init__(
        self, address: tuple[str, int], clock: Clock, prepare: Prepare, replicas_acked: int, timeout_s: float
    ) -> None:
        """`prepare` runs on each new connection."""
        self.on_lost: Callable[[], None] = lambda: None
        self.reader = Wire(address, clock, timeout_s, prepare, self._lost)
        self._writers = tuple(
            Wire(address, clock, timeout_s, prepare, self._lost) for _ in range(WRITERS if replicas_acked else 0)
        )
        self._clock = clock
        self._commit = GroupCommit(self._writers, clock, replicas_acked, timeout_s) if replicas_acked else None

    @property
    def connected(self) -> bool:
        """Whether all connections are there."""
        return all(wire.connection is not None for wire in (self.reader, *self._writers))

    @property
    def calls_in_flight(self) -> int:
        """Calls not answered, those that wait for a connection included."""
        return self.reader.calls_in_flight + (self._commit.writes_in_flight if self._commit else 0)

    @property
    def waits(self) -> int:
        """How often WAITAOF was asked."""
        return self._commit.waits if self._commit else 0

    async def open(self) -> InventoryError | None:
        """Connect; an error when that fails: it is then tried again in the background."""
        # The reader comes first, so that functions are loaded once and the others find them.
        errors = [await self.reader.open_or_restore()]
        errors += await asyncio.gather(*(wire.open_or_restore() for wire in self._writers))
        return next((error for error in errors if error is not None), None)

    async def read(self, data: bytes, *, asking: bool = False) -> Any:  # noqa: ANN401 - a reply has the shape of its command
        """Send a command that writes nothing; its reply."""
        if not asking:
            return await self.reader.send(data)
        _, reply = await asyncio.gather(*self.reader.send_all((_ASKING, data)), return_exceptions=True)
        if isinstance(reply, BaseException):
            raise reply
        return reply

    async def write(self, data: bytes, *, asking: bool = False) -> Any:  # noqa: ANN401 - a reply has the shape of its command
        """Send a command; its reply, once what it wrote is on as many disks as asked."""
        if self._commit is None:
            return await self.read(data, asking=asking)
        return await self._commit.write(data, asking=asking)

    async def drain(self, seconds: float) -> None:
        """Let calls end that are under way, at most so long, then let go."""
        until_s = self._clock.monotonic_s() + seconds
        while self.calls_in_flight and self._clock.monotonic_s() < until_s:
            await self._clock.sleep(0.05)
        await self.close()

    async def close(self) -> None:
        """Let go; calls that were sent are OutcomeUnknown."""
        await asyncio.gather(self.reader.close(), *(wire.close() for wire in self._writers))
        if self._commit is not None:
            await self._commit.close()

    def _lost(self) -> None:
        self.on_lost()


class GroupCommit:
    """Sends writes over some connections and answers each when WAITAOF has said that enough disks have it."""

    def __init__(self, wires: Sequence[Wire], clock: Clock, replicas_acked: int, timeout_s: float) -> None:
        """`replicas_acked` ≥ 1; a write that fewer have after `timeout_s` is OutcomeUnknown."""
        self.waits = 0
        self._idle = deque(wires)
        self._wires_count = len(wires)
        self._clock = clock
        self._replicas = replicas_acked
        self._timeout_s = timeout_s
        self._waiting: deque[_Write] = deque()
        self._sent = 0
        self._due = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._waitaof = command("WAITAOF", 1, replicas_acked, _ASK_AGAIN_MS)

    @property
    def writes_in_flight(self) -> int:
        """Writes not answered; at most WRITES_WAITING_MAX wait for a connection."""
        return len(self._waiting) + self._sent

    def write(self, data: bytes, *, asking: bool = False) -> asyncio.Future[Any]:
        """Send a command, at the latest when a connection is free. `asking`: to a slot that is being moved here."""
        if len(self._waiting) >= WRITES_WAITING_MAX:
            raise InventoryUnavailable(f"{WRITES_WAITING_MAX} writes wait for replicas already; repeat this one later")
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(_Write(data, asking, answer, self._clock.monotonic_s()))
        if self._idle and not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._send)
        return answer

    async def close(self) -> None:
        """Wait for what was sent, which is quick once its connections are closed; refuse the rest."""
        self._refuse("it was closed on purpose")
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _send(self) -> None:
        self._due = False
        while self._waiting and (wire := self._free_wire()) is not None:
            writes = self._next_writes()
            if not writes:
                self._idle.append(wire)
                return
            task = asyncio.get_running_loop().create_task(self._commit(wire, writes))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._waiting and len(self._idle) == self._wires_count:
            self._refuse("there is no connection to it")

    def _free_wire(self) -> Wire | None:
        for _ in range(len(self._idle)):
            if self._idle[0].connection is not None:
                return self._idle.popleft()
            self._idle.rotate(-1)
        return None

    def _next_writes(self) -> list[_Write]:
        """The next ones that somebody still waits for; those that have waited too long are refused."""
        since_s = self._clock.monotonic_s() - self._timeout_s
        writes: list[_Write] = []
        while self._waiting and len(writes) < WRITES_TOGETHER_MAX:
            write = self._waiting.popleft()
            if write.answer.done():
                continue
            if write.since_s < since_s:
                write.answer.set_exception(
                    InventoryUnavailable(f"no replica had time for {self._timeout_s:g} s; repeat the call later")
                )
            else:
                writes.append(write)
        return writes

    def _refuse(self, why: str) -> None:
        while self._waiting:
            answer = self._waiting.popleft().answer
            if not answer.done():
                answer.set_exception(InventoryUnavailable(f"Valkey got no write: {why}; repeat the call later"))

    async def _commit(self, wire: Wire, writes: list[_Write]) -> None:
        self._sent += len(writes)
        try:
            replies, unacknowledged = await self._committed(wire.connection, writes)
        except InventoryError as error:
            replies, unacknowledged = [error] * len(writes), None
        self._sent -= len(writes)
        self._idle.append(wire)
        for write, reply in zip(writes, replies, strict=True):
            if write.answer.done():
                continue
            if isinstance(reply, BaseException):
                write.answer.set_exception(reply)
            elif unacknowledged is not None:
                write.answer.set_exception(unacknowledged)
            else:
                write.answer.set_result(reply)
        self._send()

    async def _committed(
        self, connection: Connection | None, writes: list[_Write]
    ) -> tuple[list[Any], OutcomeUnknown | None]:
        """The replies, and why those that wrote must not be believed. Raises when nothing was sent."""
        if connection is None:
            raise InventoryUnavailable("the connection to Valkey broke; repeat the call when it is restored")
        until_s = self._clock.monotonic_s() + self._timeout_s
        data = [part for write in writes for part in ((_ASKING, write.data) if write.asking else (write.data,))]
        answers = iter(await asyncio.gather(*connection.send_all(data), return_exceptions=True))
        mine = [next(answers) if not write.asking else (next(answers), next(answers))[1] for write in writes]
        if all(isinstance(reply, BaseException) for reply in mine):
            return mine, None
        # Only this very connection knows what it wrote: a new one would be told at once that all is well.
        while not self._enough(counts := await self._ask(connection)):
            if isinstance(counts, BaseException):
                return mine, OutcomeUnknown(f"replicas could not be asked: {counts}")
            if self._clock.monotonic_s() >= until_s:
                return mine, self._too_few(counts)
        return mine, None

    async def _ask(self, connection: Connection) -> Any:  # noqa: ANN401 - two counts, or an error as a value
        self.waits += 1
        try:
            return await connection.send(self._waitaof)
        except InventoryError as error:
            return error

    def _enough(self, counts: Any) -> bool:  # noqa: ANN401 - what the server said
        return isinstance(counts, list) and counts[0] >= 1 and counts[1] >= self._replicas

    def _too_few(self, counts: Sequence[int]) -> OutcomeUnknown:
        return OutcomeUnknown(
            f"Valkey wrote, but {counts[1]} of {self._replicas} replicas confirmed within {self._timeout_s:g} s; "
            "repeat the call with the same key, and look after the replicas"
        )
