"""Durable purchases for each CPU second of the counter, beside HAProxy and a FastAPI program.

256 connections without pipelining, a new buyer with a new token for each request, embedded Valkey with
`appendfsync always`. HAProxy answers a constant; the FastAPI program does one EVALSHA for each request.
"""

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import valkey as valkey_client

from bench import processes
from bench.load import Job, Outcome
from bench.rows import Row, Skipped, compared, median_row
from springtide.drivers.embedded_valkey import start_valkey
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey import ValkeyInventory
from springtide.model import Sale, Sku

CONNECTIONS = 256
SECONDS = 2.5
STOCK = 1_000_000_000
SALE = "bench"
SKU = "tea"
FLOOR_HAPROXY = 0.5
FLOOR_FASTAPI = 20.0

Start = Callable[[int, str, int | None], AbstractContextManager[tuple[int, int]]]


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    """The rows of this bench; the servers take turns, so that a slow moment of the machine meets all."""
    servers: dict[str, tuple[Start, int, str]] = {
        "counter": (_counter, 200_000, "201"),
        "FastAPI, one EVALSHA each": (_fastapi, 20_000, "201"),
    }
    skipped = []
    if processes.has_haproxy():
        servers["HAProxy, a constant"] = (_haproxy, 330_000, "200")
    else:
        skipped.append(Skipped("HAProxy, a constant", "haproxy is not installed (apt-get install haproxy)"))
    outcomes: dict[str, list[Outcome]] = {name: [] for name in servers}
    for _ in range(runs):
        for name, (start, requests, expect) in servers.items():
            outcomes[name].append(asyncio.run(_one_run(start, requests, expect)))
    return _rows(outcomes), skipped


def _rows(outcomes: dict[str, list[Outcome]]) -> list[Row]:
    per_cpu_s = {
        name: median_row(name, "requests per CPU second", [run.answered / run.cpu_s[0] for run in runs])
        for name, runs in outcomes.items()
    }
    counter = per_cpu_s["counter"]
    rows = [
        compared(counter, reference, floor)
        for name, floor in (
            ("HAProxy, a constant", FLOOR_HAPROXY),
            ("FastAPI, one EVALSHA each", FLOOR_FASTAPI),
        )
        if (reference := per_cpu_s.get(name)) is not None
    ]
    for name, runs in outcomes.items():
        if name != "counter":
            rows.append(per_cpu_s[name])
        rows += [
            median_row(f"{name}: CPU", "s per 100,000 requests", [run.cpu_s[0] / run.answered * 1e5 for run in runs]),
            median_row(f"{name}: rate", "requests/s", [run.answered / run.seconds for run in runs]),
            median_row(f"{name}: p50", "ms", [run.p50_ms for run in runs]),
            median_row(f"{name}: p99", "ms", [run.p99_ms for run in runs]),
        ]
        if name != "HAProxy, a constant":
            rows.append(
                median_row(
                    f"{name}: CPU of Valkey",
                    "s per 100,000 requests",
                    [run.cpu_s[1] / run.answered * 1e5 for run in runs],
                )
            )
    return rows


async def _one_run(start: Start, requests: int, expect: str) -> Outcome:
    server_cpu, other_cpu = processes.cores()
    token_key = secrets.token_hex(32)
    async with _valkey(other_cpu) as (port, pid, left):
        with start(port, token_key, server_cpu) as (server_pid, server_port):
            job = Job(
                host="127.0.0.1",
                port=server_port,
                sale=SALE,
                sku=SKU,
                buyers=f"b{secrets.token_hex(3)}",
                token_key=token_key,
                connections=CONNECTIONS,
                requests=requests,
                seconds=SECONDS,
                pids=(server_pid, pid),
                expect=expect,
                cpu=other_cpu,
            )
            outcome = await asyncio.to_thread(processes.load, job)
        _check(outcome, expect, STOCK - await left())
    return outcome


def _check(outcome: Outcome, expect: str, sold: int) -> None:
    """A figure counts only when every answer was a purchase that the store really holds."""
    if outcome.other:
        raise RuntimeError(f"{outcome.other} answers were not {expect}; the first: {outcome.first_other}")
    if expect == "201" and sold != outcome.answered:
        raise RuntimeError(f"{outcome.answered} purchases were acknowledged, but the store sold {sold}")


@asynccontextmanager
async def _valkey(cpu: int | None) -> AsyncIterator[tuple[int, int, Callable[[], Awaitable[int]]]]:
    """Port, process id, and a function that tells the stock that is left."""
    clock = SystemClock()
    folder = Path(tempfile.mkdtemp(prefix="bench-valkey-"))
    try:
        engine = await start_valkey(folder, clock)
        processes.pin(engine.child.pid, cpu)
        inventory = await ValkeyInventory.connect("127.0.0.1", engine.port, clock)
        client: Any = valkey_client.Valkey(port=engine.port)  # its types mix those of its asynchronous twin
        now_ms = clock.now_ms()
        await inventory.publish(
            Sale(SALE, "Bench", (Sku(SKU, "Tea", 100, STOCK),), now_ms - 1000, now_ms + 3_600_000, 600_000)
        )
        client.hset("{ref}:bench:stock", SKU, STOCK)

        async def left() -> int:
            view = await inventory.view(SALE)
            assert view is not None
            return min(view.stock[SKU], int(client.hget("{ref}:bench:stock", SKU)))

        yield engine.port, engine.child.pid, left
        client.close()
        await inventory.close()
        await engine.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _counter(valkey_port: int, token_key: str, cpu: int | None) -> Iterator[tuple[int, int]]:
    with processes.python("bench.counter_replica", str(valkey_port), token_key, cpu=cpu) as server:
        yield server


@contextmanager
def _fastapi(valkey_port: int, token_key: str, cpu: int | None) -> Iterator[tuple[int, int]]:
    with processes.python("bench.reference_fastapi", str(valkey_port), token_key, cpu=cpu) as server:
        yield server


@contextmanager
def _haproxy(_valkey_port: int, _token_key: str, cpu: int | None) -> Iterator[tuple[int, int]]:
    with processes.haproxy(cpu) as server:
        yield server
