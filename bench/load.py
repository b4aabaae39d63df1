"""A closed-loop load generator: each connection sends its next purchase when the last is answered.

Run as `python -m bench.load`, with a `Job` as JSON on standard input; prints an `Outcome`. Every purchase is
by a new buyer with a new token; all are signed and written before the clock starts. CPU is that of the
processes measured, from /proc.
"""

import asyncio
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import msgspec
import uvloop

from springtide.sale.room_tickets import RoomKeys
from springtide.sale.tokens import TokenKeys

_TICKS = os.sysconf("SC_CLK_TCK")


class Job(msgspec.Struct, frozen=True):
    """What to send, where, for how long, and whose CPU to read. `token_key` is hexadecimal.

    With a `room_id` polls of that waiting room are sent, by the buyers in the places of their numbers.
    """

    host: str
    port: int
    sale: str
    sku: str
    buyers: str
    token_key: str
    connections: int
    requests: int
    seconds: float
    pids: tuple[int, ...]
    expect: str
    cpu: int | None = None
    room_id: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """`answered` counts the answers that began as expected; `other` all others. CPU seconds are by process,
    as in the job."""

    answered: int
    other: int
    seconds: float
    cpu_s: tuple[float, ...]
    p50_ms: float
    p99_ms: float
    first_other: str = ""

    @property
    def per_cpu_s(self) -> float:
        """Answers for each CPU second of the first process."""
        return self.answered / self.cpu_s[0]


def cpu_s(pid: int) -> float:
    """User and system time of a process, in seconds (proc(5): fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def purchases(host: str, sale: str, sku: str, token_key: str, buyers: Iterable[str]) -> list[bytes]:
    """The requests, whole: one for each buyer, whose name is the key as well."""
    keys = TokenKeys((bytes.fromhex(token_key),))
    expires_s = int(time.time()) + 3600
    body = msgspec.json.encode({"sku": sku, "quantity": 1})
    head = f"POST /v1/sales/{sale}/orders HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    tail = f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    return [
        f"{head}Authorization: Bearer {keys.sign(buyer, sale, expires_s)}\r\nIdempotency-Key: {buyer}\r\n".encode()
        + tail
        for buyer in buyers
    ]


def polls(job: Job) -> list[bytes]:
    """Polls of a waiting room, whole: one for each ticket."""
    keys = RoomKeys(bytes.fromhex(job.token_key))
    head = f"GET /v1/sales/{job.sale}/room HTTP/1.1\r\nHost: {job.host}:{job.port}\r\n"
    tickets = (keys.ticket(f"{job.buyers}-{place}", job.sale, job.room_id, place) for place in range(job.requests))
    return [f"{head}Authorization: Bearer {ticket}\r\n\r\n".encode() for ticket in tickets]


class _Load:
    def __init__(self, job: Job) -> None:
        names = (f"{job.buyers}-{number}" for number in range(job.requests))
        host = f"{job.host}:{job.port}"
        self.requests = polls(job) if job.room_id else purchases(host, job.sale, job.sku, job.token_key, names)
        self.expect = f"HTTP/1.1 {job.expect}".encode()
        self.open = 0
        self.answered = 0
        self.other = 0
        self.first_other = b""
        self.latencies: list[float] = []
        self.until_s = 0.0
        self.finished = asyncio.Event()


class _Client(asyncio.Protocol):
    def __init__(self, load: _Load) -> None:
        self._load = load
        self._transport: asyncio.Transport
        self._answer = b""
        self._sent_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without being a subclass

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._load.finished.is_set():
            self._load.other += 1
            self._load.first_other = self._load.first_other or repr(exc).encode()
            self._stop()

    def send(self) -> None:
        load = self._load
        now_s = time.perf_counter()
        if not load.requests or now_s >= load.until_s:
            self._stop()
            return
        self._sent_s = now_s
        self._transport.write(load.requests.pop())

    def data_received(self, data: bytes) -> None:
        answer = self._answer + data if self._answer else data
        end = answer.find(b"\r\n\r\n")
        at = answer.lower().find(b"content-length: ", 0, end)
        if end < 0 or (at >= 0 and len(answer) < end + 4 + int(answer[at + 16 : answer.index(b"\r", at)])):
            self._answer = answer
            return
        self._answer = b""
        load = self._load
        load.latencies.append(time.perf_counter() - self._sent_s)
        if answer.startswith(load.expect):
            load.answered += 1
        else:
            load.other += 1
            load.first_other = load.first_other or answer
        self.send()

    def _stop(self) -> None:
        self._load.open -= 1
        if self._load.open == 0:
            self._load.finished.set()


async def run(job: Job) -> Outcome:
    load = _Load(job)
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda: _Client(load), job.host, job.port))[1] for _ in range(job.connections)
    ]
    load.open = len(clients)
    await asyncio.sleep(0.2)
    before = [cpu_s(pid) for pid in job.pids]
    started_s = time.perf_counter()
    load.until_s = started_s + job.seconds
    for client in clients:
        client.send()
    await load.finished.wait()
    seconds = time.perf_counter() - started_s
    used = tuple(cpu_s(pid) - was for pid, was in zip(job.pids, before, strict=True))
    latencies = sorted(load.latencies) or [0.0]
    return Outcome(
        answered=load.answered,
        other=load.other,
        seconds=seconds,
        cpu_s=used,
        p50_ms=latencies[len(latencies) // 2] * 1000,
        p99_ms=latencies[len(latencies) * 99 // 100] * 1000,
        first_other=load.first_other[:500].decode("latin-1"),
    )


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    if job.cpu is not None:
        os.sched_setaffinity(0, {job.cpu})
    outcome = uvloop.run(run(job))
    sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")


if __name__ == "__main__":
    main()
