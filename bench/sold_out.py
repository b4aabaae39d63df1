"""Sold-out answers for each CPU second of the counter, beside HAProxy's constant.

As `counter`: a new buyer with a new signed token for each request, which is checked before he hears that there is
nothing left. The one unit of the sale is sold through the counter first.
"""

import asyncio
import http.client
import secrets
import time

from bench import counter, engines, processes
from bench.engines import SALE, SKU
from bench.load import Outcome
from bench.rows import Row, Skipped, compared, median_row
from springtide.sale.tokens import sign_token

FLOOR_HAPROXY = 0.6
REQUESTS = 300_000
SETTLE_S = 0.5
"""The counter asks for the stock five times a second."""


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    """The rows of this bench."""
    haproxy, skipped = counter.constant_or_skipped()
    outcomes: list[Outcome] = []
    constants: list[Outcome] = []
    for _ in range(runs):
        outcomes.append(asyncio.run(_one_run()))
        if haproxy:
            constants.append(counter.constant())
    answers = median_row("sold-out answers", "requests per CPU second", [run.per_cpu_s for run in outcomes])
    rows = [answers]
    if constants:
        reference = median_row("HAProxy, a constant", "requests per CPU second", [run.per_cpu_s for run in constants])
        rows = [compared(answers, reference, FLOOR_HAPROXY), reference]
    rows += [
        median_row("sold-out answers: rate", "requests/s", [run.answered / run.seconds for run in outcomes]),
        median_row("sold-out answers: p99", "ms", [run.p99_ms for run in outcomes]),
        median_row(
            "sold-out answers: CPU of Valkey",
            "s per 100,000 requests",
            [run.cpu_s[1] / run.answered * 1e5 for run in outcomes],
        ),
    ]
    return rows, skipped


async def _one_run() -> Outcome:
    server_cpu, other_cpu = processes.cores()
    token_key = secrets.token_hex(32)
    async with engines.store(other_cpu, stock=1) as store:
        with processes.counter(store.port, token_key, server_cpu) as (pid, port):
            first = await asyncio.to_thread(_buy, port, token_key, "first")
            await asyncio.sleep(SETTLE_S)
            second = await asyncio.to_thread(_buy, port, token_key, "second")
            if (first, second) != (201, 409):
                raise RuntimeError(f"the only unit was to be sold and no more: 201 and 409, not {first} and {second}")
            job = counter.purchases(port, token_key, REQUESTS, "409", (pid, store.pid))
            outcome = await asyncio.to_thread(processes.load, job)
    if outcome.other:
        raise RuntimeError(f"{outcome.other} answers were not 409; the first: {outcome.first_other}")
    return outcome


def _buy(port: int, token_key: str, buyer: str) -> int:
    token = sign_token(bytes.fromhex(token_key), buyer, SALE, int(time.time()) + 60)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": buyer, "Content-Type": "application/json"}
    connection.request("POST", f"/v1/sales/{SALE}/orders", f'{{"sku":"{SKU}","quantity":1}}', headers)
    status = connection.getresponse().status
    connection.close()
    return status
