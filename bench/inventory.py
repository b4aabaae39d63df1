"""Purchases per second through ValkeyInventory.reserve, and the CPU seconds per 100,000 of client and server.

Run: python bench/inventory.py [purchases] [batch] [batches in flight]. Every purchase has a buyer of its own,
as in a flash sale. The rate depends on how fast the disk flushes; the CPU figures hardly do.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import psutil
import uvloop

from springtide.drivers.embedded_valkey import start_valkey
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey import ValkeyInventory
from springtide.model import ReserveRequest, ReserveStatus, Sale, Sku

SKUS = 3


def purchases(count: int, batch: int, deadline_ms: int) -> list[list[ReserveRequest]]:
    requests = [
        ReserveRequest(f"b{n:08d}", f"k{n:015d}", f"sku-{n % SKUS}", 1, f"o-{n:016d}", 1, deadline_ms)
        for n in range(count)
    ]
    return [requests[at : at + batch] for at in range(0, count, batch)]


async def measure(count: int, batch: int, in_flight: int) -> dict[str, float]:
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as folder:
        valkey = await start_valkey(Path(folder), clock)
        inventory = await ValkeyInventory.connect(valkey.host, valkey.port, clock, journal_lag_max=count)
        now_ms = clock.now_ms()
        skus = tuple(Sku(f"sku-{n}", "", 1, count) for n in range(SKUS))
        await inventory.publish(Sale("bench", "", skus, now_ms, now_ms + 3_600_000, 60_000))
        batches = iter(purchases(count, batch, now_ms + 3_600_000))
        server = psutil.Process(valkey.child.pid)
        sold = 0

        async def buy() -> None:
            nonlocal sold
            for purchase in batches:
                results = await inventory.reserve("bench", 0, purchase)
                sold += sum(result.status is ReserveStatus.RESERVED for result in results)

        server_before, client_before, began = (
            sum(server.cpu_times()[:2]),
            time.process_time(),
            time.perf_counter(),
        )
        await asyncio.gather(*(buy() for _ in range(in_flight)))
        took = time.perf_counter() - began
        client = time.process_time() - client_before
        server_cpu = sum(server.cpu_times()[:2]) - server_before
        await inventory.close()
        await valkey.stop()
    assert sold == count, f"{sold} of {count} were sold"
    return {
        "per_s": count / took,
        "client_s_per_100k": client / count * 1e5,
        "server_s_per_100k": server_cpu / count * 1e5,
    }


if __name__ == "__main__":
    arguments = [int(word) for word in sys.argv[1:]]
    figures = uvloop.run(measure(*(arguments + [200_000, 64, 4][len(arguments) :])))
    print("  ".join(f"{name}={value:,.3f}" for name, value in figures.items()))
