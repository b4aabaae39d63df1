"""The engines of a measurement, in folders of their own that go with them."""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import processes
from springtide.drivers.embedded_postgres import start_postgres
from springtide.drivers.embedded_valkey import start_valkey
from springtide.drivers.postgres import PostgresLedger, migrate
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey import ValkeyInventory
from springtide.model import Sale, Sku

SALE = "bench"
SKU = "tea"
STOCK = 1_000_000_000
HOUR_MS = 3_600_000
CLOCK = SystemClock()

_PROBE_EVERY_S = 0.01
_PROBE_BYTES = 512


@dataclass(frozen=True)
class Store:
    """A Valkey with the sale published."""

    port: int
    pid: int
    inventory: ValkeyInventory

    async def left(self) -> int:
        """Units that are not sold."""
        view = await self.inventory.view(SALE)
        assert view is not None
        return view.stock[SKU]


@dataclass(frozen=True)
class Database:
    """A PostgreSQL with the ledger's tables. `pids` tells its processes as they are now."""

    dsn: str
    ledger: PostgresLedger
    postmaster: int

    def pids(self) -> list[int]:
        children = Path(f"/proc/{self.postmaster}/task/{self.postmaster}/children").read_text().split()
        return [self.postmaster, *map(int, children)]


@dataclass
class DiskProbe:
    """How long the disk takes to make a small write durable, while it is asked a hundred times a second."""

    seconds: list[float] = field(default_factory=list)

    @property
    def p99_ms(self) -> float:
        times = sorted(self.seconds) or [0.0]
        return times[len(times) * 99 // 100] * 1000


def bench_sale(stock: int, *, waiting_room: bool) -> Sale:
    now_ms = CLOCK.now_ms()
    skus = (Sku(SKU, "Tea", 100, stock),)
    return Sale(SALE, "Bench", skus, now_ms - 1000, now_ms + HOUR_MS, 600_000, waiting_room=waiting_room)


@asynccontextmanager
async def store(cpu: int | None, stock: int = STOCK, *, waiting_room: bool = False) -> AsyncIterator[Store]:
    """Embedded Valkey, `appendfsync always`."""
    folder = Path(tempfile.mkdtemp(prefix="bench-valkey-"))
    try:
        engine = await start_valkey(folder, CLOCK)
        try:
            processes.pin(engine.child.pid, cpu)
            inventory = await ValkeyInventory.connect("127.0.0.1", engine.port, CLOCK, journal_lag_max=1_000_000)
            await inventory.publish(bench_sale(stock, waiting_room=waiting_room))
            yield Store(engine.port, engine.child.pid, inventory)
            await inventory.close()
        finally:
            await engine.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def database(*, nice: int = 0) -> AsyncIterator[Database]:
    """Embedded PostgreSQL, durable as it is by default; `nice` is its priority, inherited by all its processes."""
    engine = await start_postgres(CLOCK)
    try:
        os.setpriority(os.PRIO_PROCESS, engine.child.pid, nice)
        await migrate(engine.dsn)
        ledger = await PostgresLedger.connect(engine.dsn, CLOCK)
        yield Database(engine.dsn, ledger, engine.child.pid)
        await ledger.close()
    finally:
        await engine.stop()


@contextmanager
def disk_probe() -> Iterator[DiskProbe]:
    """Measure the disk, in a thread, for as long as the block runs; on the file system where the engines write."""
    probe = DiskProbe()
    ended = threading.Event()
    thread = threading.Thread(target=_probe, args=(probe, ended))
    thread.start()
    try:
        yield probe
    finally:
        ended.set()
        thread.join()


def _probe(probe: DiskProbe, ended: threading.Event) -> None:
    with tempfile.TemporaryFile(prefix="bench-fsync-") as file:
        while not ended.wait(_PROBE_EVERY_S):
            os.write(file.fileno(), bytes(_PROBE_BYTES))
            began_s = time.perf_counter()
            os.fdatasync(file.fileno())
            probe.seconds.append(time.perf_counter() - began_s)
