"""Purchases through `ValkeyInventory.reserve` alone: how fast, and what they cost client and server.

Every purchase has a buyer of its own, as in a flash sale. The rate depends on how fast the disk flushes; the CPU
figures hardly do. The rows are for batches of one to many, four batches in flight.
"""

import asyncio
import time

import msgspec
import uvloop

from bench import engines
from bench.engines import CLOCK, HOUR_MS, SALE, SKU
from bench.load import cpu_s
from bench.rows import Row, Skipped, median_row
from springtide.model import ReserveRequest, ReserveStatus

BATCHES = {1: 10_000, 64: 150_000, 256: 150_000}
"""Purchases of a run by the size of their batches."""

IN_FLIGHT = 4


class Measured(msgspec.Struct, frozen=True):
    """CPU in seconds for each 100,000 purchases."""

    per_s: float
    client_s: float
    server_s: float


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    """The rows of this bench."""
    rows = []
    for batch, count in BATCHES.items():
        measured = [uvloop.run(_one_run(count, batch)) for _ in range(runs)]
        rows += [
            median_row(f"batches of {batch}", "purchases/s", [run.per_s for run in measured]),
            median_row(f"batches of {batch}: client", "s per 100,000", [run.client_s for run in measured]),
            median_row(f"batches of {batch}: Valkey", "s per 100,000", [run.server_s for run in measured]),
        ]
    return rows, []


def _purchases(count: int, batch: int) -> list[list[ReserveRequest]]:
    deadline_ms = CLOCK.now_ms() + HOUR_MS
    requests = [ReserveRequest(f"b{n:08d}", f"k{n:015d}", SKU, 1, f"o-{n:016d}", 1, deadline_ms) for n in range(count)]
    return [requests[at : at + batch] for at in range(0, count, batch)]


async def _one_run(count: int, batch: int) -> Measured:
    async with engines.store(None) as store:
        batches = iter(_purchases(count, batch))
        sold = 0

        async def buy() -> None:
            nonlocal sold
            for purchases in batches:
                results = await store.inventory.reserve(SALE, 0, purchases)
                sold += sum(result.status is ReserveStatus.RESERVED for result in results)

        server_before, client_before, began_s = cpu_s(store.pid), time.process_time(), time.perf_counter()
        await asyncio.gather(*(buy() for _ in range(IN_FLIGHT)))
        seconds = time.perf_counter() - began_s
        client_s, server_s = time.process_time() - client_before, cpu_s(store.pid) - server_before
    if sold != count:
        raise RuntimeError(f"{sold} of {count} purchases were accepted")
    return Measured(count / seconds, client_s / count * 1e5, server_s / count * 1e5)
