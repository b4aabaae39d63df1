"""Purchases over a cluster, acknowledged when a replica has them on disk (`WAITAOF`) and when the primary alone has.

Three shards with two replicas each, all on this machine and one disk, `appendfsync always`; a sale of six buckets, each
bought from in batches by four at a time, every purchase by a buyer of its own.
"""

import asyncio
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from bench.rows import Row, Skipped, compared, median_row
from springtide.drivers.embedded_valkey_cluster import EmbeddedValkeyCluster, start_valkey_cluster
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey import ValkeyInventory
from springtide.drivers.valkey_cluster import ClusterStore
from springtide.drivers.valkey_library import prepare
from springtide.model import ReserveRequest, ReserveStatus, Sale, Sku

SECONDS = 2.5
BUCKETS = 6
BATCH = 64
IN_FLIGHT_PER_BUCKET = 4
STOCK = 100_000_000
FLOOR_WAITAOF = 0.5
ACKNOWLEDGED = {"cluster, acknowledged by a replica": 1, "cluster, acknowledged by the primary": 0}

CLOCK = SystemClock()


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    """The rows of this bench; both ways take turns on one cluster, so that a slow moment of the disk meets both."""
    return uvloop.run(_measure(runs)), []


async def _measure(runs: int) -> list[Row]:
    rates: dict[str, list[float]] = {name: [] for name in ACKNOWLEDGED}
    delays_ms: dict[str, list[float]] = {name: [] for name in ACKNOWLEDGED}
    with tempfile.TemporaryDirectory(prefix="bench-cluster-") as folder:
        cluster = await start_valkey_cluster(Path(folder) / "cluster", CLOCK)
        try:
            for run, (name, replicas) in itertools.product(range(runs), ACKNOWLEDGED.items()):
                rate, p99_ms = await _one_run(cluster, f"bench-{run}-{replicas}", replicas)
                rates[name].append(rate)
                delays_ms[name].append(p99_ms)
        finally:
            await cluster.stop()
    replica, primary = (median_row(name, "purchases/s", rates[name]) for name in ACKNOWLEDGED)
    p99 = [median_row(f"{name}: p99 of a batch of {BATCH}", "ms", delays_ms[name]) for name in ACKNOWLEDGED]
    return [compared(replica, primary, FLOOR_WAITAOF), primary, *p99]


async def _one_run(cluster: EmbeddedValkeyCluster, name: str, replicas: int) -> tuple[float, float]:
    """Purchases per second, and the 99th percentile of a batch's milliseconds."""
    store = await ClusterStore.connect(cluster.addresses, CLOCK, prepare, replicas_acked=replicas, timeout_s=5.0)
    inventory = ValkeyInventory.on(store, journal_lag_max=1_000_000)
    now_ms = CLOCK.now_ms()
    sku = Sku("tea", "Tea", 100, STOCK, spread=True)
    await inventory.publish(Sale(name, "", (sku,), now_ms - 1000, now_ms + 3_600_000, 600_000, buckets=BUCKETS))
    delays_s: list[float] = []
    batches = _batches(now_ms + 3_600_000)
    until = time.perf_counter() + SECONDS

    async def buy(bucket: int) -> int:
        sold = 0
        while (began := time.perf_counter()) < until:
            results = await inventory.reserve(name, bucket, next(batches))
            delays_s.append(time.perf_counter() - began)
            sold += sum(result.status is ReserveStatus.RESERVED for result in results)
        return sold

    began = time.perf_counter()
    sold = sum(await asyncio.gather(*(buy(bucket) for bucket in range(BUCKETS) for _ in range(IN_FLIGHT_PER_BUCKET))))
    seconds = time.perf_counter() - began
    await _check(inventory, name, sold, len(delays_s) * BATCH)
    await inventory.close()
    return sold / seconds, sorted(delays_s)[len(delays_s) * 99 // 100] * 1000


def _batches(deadline_ms: int) -> Iterator[list[ReserveRequest]]:
    numbers = itertools.count()
    while True:
        yield [
            ReserveRequest(f"b{n}", "key", "tea", 1, f"o{n}", 1, deadline_ms) for n in itertools.islice(numbers, BATCH)
        ]


async def _check(inventory: ValkeyInventory, name: str, sold: int, asked: int) -> None:
    """A figure counts only when every purchase was made, and the store holds each."""
    view = await inventory.view(name)
    assert view is not None
    if not sold == asked == STOCK - view.stock["tea"]:
        raise RuntimeError(f"of {asked} purchases {sold} were made, but the store sold {STOCK - view.stock['tea']}")
