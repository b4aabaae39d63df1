"""Durable purchases for each CPU second of the counter, beside HAProxy and a FastAPI program.

256 connections without pipelining, a new buyer with a new token for each request, embedded Valkey with
`appendfsync always`. HAProxy answers a constant; the FastAPI program does one EVALSHA for each request.
"""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import valkey

from bench import engines, processes
from bench.engines import SALE, SKU, STOCK
from bench.load import Job, Outcome
from bench.rows import Row, Skipped, compared, median_row

CONNECTIONS = 256
SECONDS = 2.5
FLOOR_HAPROXY = 0.5
FLOOR_FASTAPI = 20.0

Start = Callable[[int, str, int | None], AbstractContextManager[tuple[int, int]]]


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    """The rows of this bench; the servers take turns, so that a slow moment of the machine meets all."""
    servers: dict[str, tuple[Start, int, str]] = {
        "counter": (_counter, 200_000, "201"),
        "FastAPI, one EVALSHA each": (_fastapi, 20_000, "201"),
    }
    haproxy, skipped = constant_or_skipped()
    if haproxy:
        servers["HAProxy, a constant"] = (_haproxy, 330_000, "200")
    outcomes: dict[str, list[Outcome]] = {name: [] for name in servers}
    for _ in range(runs):
        for name, (start, requests, expect) in servers.items():
            outcomes[name].append(asyncio.run(_one_run(start, requests, expect)))
    return _rows(outcomes), skipped


def constant_or_skipped() -> tuple[bool, list[Skipped]]:
    """Whether HAProxy can run here, and if not, what is missing."""
    if processes.has_haproxy():
        return True, []
    return False, [Skipped("HAProxy, a constant", "haproxy is not installed (apt-get install haproxy)")]


def constant() -> Outcome:
    """One run against HAProxy."""
    return asyncio.run(_one_run(_haproxy, 330_000, "200"))


def _rows(outcomes: dict[str, list[Outcome]]) -> list[Row]:
    per_cpu_s = {
        name: median_row(name, "requests per CPU second", [run.per_cpu_s for run in runs])
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
    async with engines.store(other_cpu) as store:
        client: Any = valkey.Valkey(port=store.port)  # its types mix those of its asynchronous twin
        client.hset("{ref}:bench:stock", SKU, STOCK)
        with start(store.port, token_key, server_cpu) as (server_pid, server_port):
            job = purchases(server_port, token_key, requests, expect, (server_pid, store.pid))
            outcome = await asyncio.to_thread(processes.load, job)
        left = min(await store.left(), int(client.hget("{ref}:bench:stock", SKU)))
        client.close()
        _check(outcome, expect, STOCK - left)
    return outcome


def purchases(port: int, token_key: str, requests: int, expect: str, pids: tuple[int, ...]) -> Job:
    """What the closed loop does here: 256 connections, each request by a new buyer."""
    return Job(
        host="127.0.0.1",
        port=port,
        sale=SALE,
        sku=SKU,
        buyers=f"b{secrets.token_hex(3)}",
        token_key=token_key,
        connections=CONNECTIONS,
        requests=requests,
        seconds=SECONDS,
        pids=pids,
        expect=expect,
        cpu=processes.cores()[1],
    )


def _check(outcome: Outcome, expect: str, sold: int) -> None:
    """A figure counts only when every answer was a purchase that the store really holds."""
    if outcome.other:
        raise RuntimeError(f"{outcome.other} answers were not {expect}; the first: {outcome.first_other}")
    if expect == "201" and sold != outcome.answered:
        raise RuntimeError(f"{outcome.answered} purchases were acknowledged, but the store sold {sold}")


def _counter(valkey_port: int, token_key: str, cpu: int | None) -> AbstractContextManager[tuple[int, int]]:
    return processes.counter(valkey_port, token_key, cpu)


def _fastapi(valkey_port: int, token_key: str, cpu: int | None) -> AbstractContextManager[tuple[int, int]]:
    return processes.python("bench.reference_fastapi", str(valkey_port), token_key, cpu=cpu)


def _haproxy(_valkey_port: int, _token_key: str, cpu: int | None) -> AbstractContextManager[tuple[int, int]]:
    return processes.haproxy(cpu)
