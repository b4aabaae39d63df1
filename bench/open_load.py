"""An open-loop load generator: purchases are due at even intervals, whatever became of those before.

Run as `python -m bench.open_load`, with an `OpenJob` as JSON on standard input; prints an `OpenOutcome`. Latency is
from the moment a purchase was due until its answer was there, so a generator or a server that is late is not let off.
All requests are signed and written before the clock starts; a connection carries one at a time.
"""

import asyncio
import os
import sys
import time
from collections import deque
from typing import cast

import msgspec
import uvloop

from bench.load import cpu_s, purchases

TICK_S = 0.001
"""How often what has become due is sent; uvloop's timers are not finer."""

_GRACE_S = 10.0


class OpenJob(msgspec.Struct, frozen=True):
    """`rate` purchases a second for `warm_s` and then, measured, for `seconds`. `pids`: whose CPU to read."""

    port: int
    sale: str
    sku: str
    buyers: str
    token_key: str
    connections: int
    rate: float
    warm_s: float
    seconds: float
    pids: tuple[int, ...]
    cpu: int | None = None


class OpenOutcome(msgspec.Struct, frozen=True):
    """`reserved` are all that were acknowledged, the warm-up's too. The last of `cpu_s` is the generator's own."""

    reserved: int
    other: int
    unanswered: int
    seconds: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    sent_late_p99_ms: float
    cpu_s: tuple[float, ...]
    first_other: str = ""


class _Load:
    """The schedule, the idle connections, and the purchases that are due while none is idle."""

    def __init__(self, job: OpenJob) -> None:
        self.job = job
        count = int(job.rate * (job.warm_s + job.seconds))
        names = (f"{job.buyers}-{number}" for number in range(count))
        self.requests = purchases("bench", job.sale, job.sku, job.token_key, names)
        self.measured_from = int(job.rate * job.warm_s)
        self.idle: list[_Client] = []
        self.due: deque[int] = deque()
        self.sent = 0
        self.answered = 0
        self.reserved = 0
        self.other = 0
        self.first_other = b""
        self.latencies: list[float] = []
        self.lateness: list[float] = []
        self.began_s = 0.0
        self.before: list[float] = []
        self.finished = asyncio.Event()

    def start(self) -> None:
        self.began_s = time.perf_counter()
        self.tick()

    def due_s(self, number: int) -> float:
        return self.began_s + number / self.job.rate

    def tick(self) -> None:
        """Send all that is due by now."""
        now_s = time.perf_counter()
        if not self.before and self.sent >= self.measured_from:
            self.before = self.used()
        due = min(len(self.requests), int((now_s - self.began_s) * self.job.rate) + 1)
        self.due.extend(range(self.sent, due))
        self.sent = due
        while self.due and self.idle:
            self.idle.pop().send(self.due.popleft(), now_s)
        if due < len(self.requests):
            asyncio.get_running_loop().call_later(TICK_S, self.tick)

    def used(self) -> list[float]:
        return [cpu_s(pid) for pid in (*self.job.pids, os.getpid())]

    def answer(self, client: "_Client", number: int, answer: bytes) -> None:
        """Take an answer; the connection goes on with what is overdue, or is idle."""
        now_s = time.perf_counter()
        self.answered += 1
        if answer.startswith(b"HTTP/1.1 201"):
            self.reserved += 1
        else:
            self.other += 1
            self.first_other = self.first_other or answer
        if number >= self.measured_from:
            self.latencies.append(now_s - self.due_s(number))
        if self.due:
            client.send(self.due.popleft(), now_s)
        else:
            self.idle.append(client)
        if self.answered == len(self.requests):
            self.finished.set()


class _Client(asyncio.Protocol):
    def __init__(self, load: _Load) -> None:
        self._load = load
        self._transport: asyncio.Transport
        self._number = 0
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without being a subclass

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._load.finished.is_set():
            self._load.first_other = self._load.first_other or f"connection lost: {exc!r}".encode()

    def send(self, number: int, now_s: float) -> None:
        load = self._load
        self._number = number
        if number >= load.measured_from:
            load.lateness.append(now_s - load.due_s(number))
        self._transport.write(load.requests[number])

    def data_received(self, data: bytes) -> None:
        answer = self._answer + data if self._answer else data
        end = answer.find(b"\r\n\r\n")
        at = answer.find(b"Content-Length: ", 0, end)
        if end < 0 or (at >= 0 and len(answer) < end + 4 + int(answer[at + 16 : answer.index(b"\r", at)])):
            self._answer = answer
            return
        self._answer = b""
        self._load.answer(self, self._number, answer)


async def run(job: OpenJob) -> OpenOutcome:
    load = _Load(job)
    loop = asyncio.get_running_loop()
    for _ in range(job.connections):
        load.idle.append((await loop.create_connection(lambda: _Client(load), "127.0.0.1", job.port))[1])
    await asyncio.sleep(0.2)
    load.start()
    unanswered = 0
    try:
        async with asyncio.timeout(job.warm_s + job.seconds + _GRACE_S):
            await load.finished.wait()
    except TimeoutError:
        unanswered = len(load.requests) - load.answered
        load.finished.set()
    seconds = time.perf_counter() - load.due_s(load.measured_from)
    used = [now - was for now, was in zip(load.used(), load.before, strict=True)]
    latencies = sorted(load.latencies) or [0.0]
    lateness = sorted(load.lateness) or [0.0]
    return OpenOutcome(
        reserved=load.reserved,
        other=load.other,
        unanswered=unanswered,
        seconds=seconds,
        p50_ms=latencies[len(latencies) // 2] * 1000,
        p99_ms=latencies[len(latencies) * 99 // 100] * 1000,
        p999_ms=latencies[len(latencies) * 999 // 1000] * 1000,
        sent_late_p99_ms=lateness[len(lateness) * 99 // 100] * 1000,
        cpu_s=tuple(used),
        first_other=load.first_other[:500].decode("latin-1"),
    )


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=OpenJob)
    if job.cpu is not None:
        os.sched_setaffinity(0, {job.cpu})
    outcome = uvloop.run(run(job))
    sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")


if __name__ == "__main__":
    main()
