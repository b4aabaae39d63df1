"""Latency at a steady rate of purchases that no answer holds up, with the recorder and the ledger at work.

Counter, Valkey, recorder and PostgreSQL are processes of their own. The counter has a core to itself where there are
two; recorder and PostgreSQL have a lower priority, as the journal is there to wait for them. What was acknowledged must
be in the ledger at the end, no more and no less. A rate is kept up when the p99 is within the limit and nothing was
refused.
"""

import asyncio
import secrets
import subprocess
import sys
import time
from contextlib import AsyncExitStack

import msgspec

from bench import engines, processes
from bench.engines import SALE, SKU
from bench.open_load import OpenJob, OpenOutcome
from bench.rows import Row, Skipped, median_row

RATE = 25_000.0
P99_MS_MAX = 10.0
LOWER_RATES = (20_000.0, 16_000.0, 12_000.0, 10_000.0, 8_000.0, 6_000.0, 4_000.0)
"""Tried in turn when the rate asked for is beyond these cores, to say how far they go."""

CONNECTIONS = 512
WARM_S = 1.0
SECONDS = 4.0
NICE = 10
DRAIN_S = 120.0


class Measured(msgspec.Struct, frozen=True):
    """A run. `drain_s`: how long the recorder went on after the last answer; CPU as a share of one core."""

    rate: float
    outcome: OpenOutcome
    fsync_p99_ms: float
    drain_s: float
    shares: dict[str, float]


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    """The rows of this bench."""
    measured = [asyncio.run(_one_run(RATE)) for _ in range(runs)]
    rows = _rows(measured, P99_MS_MAX)
    if not _kept_up(rows):
        rows += _highest(min(runs, 3))
    return rows, []


def _highest(runs: int) -> list[Row]:
    """The first of the lower rates that is kept up within the limit."""
    for rate in LOWER_RATES:
        measured = [asyncio.run(_one_run(rate)) for _ in range(runs)]
        rows = _rows(measured, None)
        if _kept_up(rows):
            return [Row("highest of the rates tried that is kept up", rate, "purchases/s"), *rows]
    return [Row("highest of the rates tried that is kept up", 0.0, "purchases/s")]


def _kept_up(rows: list[Row]) -> bool:
    p99, refused, *_ = rows
    return p99.value <= P99_MS_MAX and not refused.value


def _rows(measured: list[Measured], ceiling: float | None) -> list[Row]:
    at = f"at {measured[0].rate:,.0f}/s"

    def row(what: str, unit: str, values: list[float], limit: float | None = None) -> Row:
        return median_row(f"{what} {at}", unit, values, limit)

    outcomes = [run.outcome for run in measured]
    rows = [
        row("p99", "ms", [each.p99_ms for each in outcomes], ceiling),
        row("refused or not answered", "purchases", [float(each.other + each.unanswered) for each in outcomes]),
        row("p50", "ms", [each.p50_ms for each in outcomes]),
        row("p99.9", "ms", [each.p999_ms for each in outcomes]),
        row("fsync of the disk, p99,", "ms", [run.fsync_p99_ms for run in measured]),
        row("sent after it was due, p99,", "ms", [each.sent_late_p99_ms for each in outcomes]),
        row("recorder finished after the last answer", "s", [run.drain_s for run in measured]),
    ]
    shares = [row(f"CPU of {name}", "cores", [run.shares[name] for run in measured]) for name in measured[0].shares]
    return rows + shares


async def _one_run(rate: float) -> Measured:
    counter_cpu, other_cpu = processes.cores()
    token_key = secrets.token_hex(32)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(engines.store(other_cpu))
        database = await stack.enter_async_context(engines.database(nice=NICE))
        recorder = stack.enter_context(processes.recorder(store.port, database.dsn, NICE))
        counter, port = stack.enter_context(processes.counter(store.port, token_key, counter_cpu))
        await asyncio.sleep(0.5)
        postgres = database.pids()
        probe = stack.enter_context(engines.disk_probe())
        job = OpenJob(
            port=port,
            sale=SALE,
            sku=SKU,
            buyers=f"b{secrets.token_hex(3)}",
            token_key=token_key,
            connections=CONNECTIONS,
            rate=rate,
            warm_s=WARM_S,
            seconds=SECONDS,
            pids=(counter, store.pid, recorder, *postgres),
            cpu=other_cpu,
        )
        outcome = await asyncio.to_thread(_generate, job)
        drain_s = await _drained(database, outcome.reserved, outcome.unanswered)
        used = outcome.cpu_s
        shares = {
            "counter": used[0],
            "Valkey": used[1],
            "recorder": used[2],
            "PostgreSQL": sum(used[3:-1]),
            "generator": used[-1],
        }
        return Measured(
            rate,
            outcome,
            probe.p99_ms,
            drain_s,
            {name: seconds / outcome.seconds for name, seconds in shares.items()},
        )


def _generate(job: OpenJob) -> OpenOutcome:
    finished = subprocess.run(
        [sys.executable, "-m", "bench.open_load"],
        input=msgspec.json.encode(job),
        stdout=subprocess.PIPE,
        check=True,
        timeout=180,
    )
    return msgspec.json.decode(finished.stdout, type=OpenOutcome)


async def _drained(database: engines.Database, orders: int, unknown: int) -> float:
    """Seconds until the ledger has all these orders.

    Raises RuntimeError when it does not get them, or more than those whose answer is not known besides.
    """
    began_s = time.perf_counter()
    while True:
        totals = await database.ledger.totals(SALE)
        recorded = sum(each.reserved for each in totals)
        if recorded >= orders:
            break
        if time.perf_counter() - began_s > DRAIN_S:
            raise RuntimeError(f"{orders} purchases were acknowledged, but the ledger has {recorded}")
        await asyncio.sleep(0.1)
    if recorded > orders + unknown:
        raise RuntimeError(f"{orders} purchases were acknowledged, but the ledger has {recorded}")
    return time.perf_counter() - began_s
