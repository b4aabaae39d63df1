"""The measurements of `springtide calibrate`: each building block of the order path alone, with the real engine."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import msgspec

from springtide.cli.calibrate_load import ANSWER_S, CONNECTIONS, Buying, Load
from springtide.cli.roles import RoleSettings
from springtide.cli.stores import Stores
from springtide.cli.world import Folders, command, make_runtime, read_announced_port, settings_file
from springtide.drivers.child import spawn
from springtide.drivers.embedded_envoy import start_envoy
from springtide.drivers.pids import usage_of
from springtide.drivers.process import ProcessRuntime
from springtide.drivers.system import SystemClock, SystemIds, chance
from springtide.errors import EngineError
from springtide.model import Endpoint, ReplicaSpec, ReplicaState, ReserveRequest, ReserveStatus, Sale, Sku
from springtide.sale.recorder import Recorder
from springtide.twin.crowd.client import Pool

STOCK = 100_000_000
DAY_MS = 86_400_000
BATCH = 64
BATCHES_IN_FLIGHT = 4
SINGLES_IN_FLIGHT = 64
BATCHED = 40_000
SINGLE = 8_000
CLOSED_S = 1.0
PACED_S = 1.5
PACED_PER_S = 150.0
REPLICAS = 4
STOP_S = 5.0
START_S_MAX = 20.0
POLL_S = 0.01
_SKU = "unit"
_CREATED, _OK, _CONFLICT = 201, 200, 409


@dataclass(frozen=True)
class Bench:
    """What all measurements share: the engines, and the settings that their processes are started with."""

    folders: Folders
    stores: Stores
    settings: RoleSettings
    clock: SystemClock

    async def sale(self, stock: int = STOCK) -> Sale:
        """A new sale, open, in both stores."""
        now_ms = self.clock.now_ms()
        name = SystemIds().new("c")
        sale = Sale(name, "Calibration", (Sku(_SKU, "Unit", 0, stock),), now_ms - 1, now_ms + DAY_MS, hold_ms=DAY_MS)
        await self.stores.ledger.publish(sale)
        await self.stores.inventory.publish(sale)
        return sale


class CounterRun(msgspec.Struct, frozen=True):
    """One run of one counter: answers for each CPU second, purchases/s, and seconds of single purchases."""

    purchases_per_cpu_s: float
    purchases_per_s: float
    sold_out_per_cpu_s: float
    pages_per_cpu_s: float
    took_s: tuple[float, ...]


async def stores_once(bench: Bench) -> tuple[float, float, float]:
    """Purchases/s of the inventory one by one and in batches, and orders/s into the ledger. Raises EngineError."""
    recorder = Recorder(bench.stores.inventory, bench.stores.ledger, bench.clock, "calibration")
    single_per_s = await _sell(bench, 1, SINGLE, SINGLES_IN_FLIGHT)
    await _record(bench, recorder)
    batch_per_s = await _sell(bench, BATCH, BATCHED, BATCHES_IN_FLIGHT)
    recorded_before = recorder.figures.recorded
    took_s = await _record(bench, recorder)
    recorded = recorder.figures.recorded - recorded_before
    if recorded != BATCHED:
        raise EngineError(f"{BATCHED} orders were sold, but {recorded} recorded; see the recorder's log")
    return single_per_s, batch_per_s, recorded / took_s


async def _sell(bench: Bench, batch: int, purchases: int, in_flight: int) -> float:
    """Durable purchases/s in batches of this size, so many of them at a time."""
    sale = await bench.sale()
    deadline_ms = bench.clock.now_ms() + DAY_MS
    requests = [
        ReserveRequest(f"b{n}", f"k{n:015d}", _SKU, 1, f"{sale.sale}-{n:08d}", 1, deadline_ms) for n in range(purchases)
    ]
    batches = iter([requests[at : at + batch] for at in range(0, purchases, batch)])
    sold = 0

    async def buy() -> None:
        nonlocal sold
        for some in batches:
            results = await bench.stores.inventory.reserve(sale.sale, 0, some)
            sold += sum(result.status is ReserveStatus.RESERVED for result in results)

    began_s = bench.clock.monotonic_s()
    await asyncio.gather(*(buy() for _ in range(in_flight)))
    took_s = bench.clock.monotonic_s() - began_s
    if sold != purchases:
        raise EngineError(f"{sold} of {purchases} purchases were accepted; is the disk full?")
    return purchases / took_s


async def _record(bench: Bench, recorder: Recorder) -> float:
    """Move all that is in the journals into the ledger; the seconds that took."""
    began_s = bench.clock.monotonic_s()
    while await recorder.drain_once():
        pass
    return bench.clock.monotonic_s() - began_s


async def counter_once(bench: Bench) -> CounterRun:
    """One counter without a limit of its rate: purchases, sold-out answers and pages as fast as it can, then at ease.

    The generator, the engines and a recorder share the machine with it. Raises EngineError.
    """
    selling, gone = await bench.sale(), await bench.sale(stock=0)
    async with AsyncExitStack() as stack:
        port, pid = await _counter(stack, bench)
        pool = Pool(f"http://127.0.0.1:{port}", bench.clock, ANSWER_S, CONNECTIONS, CONNECTIONS)
        await pool.open()
        stack.push_async_callback(pool.close)
        load = Load(pool, bench.clock)
        host, master = f"127.0.0.1:{port}", bench.settings.token_master
        prefix = SystemIds().new("m")
        buying, late = Buying(host, selling, master, prefix), Buying(host, gone, master, prefix)
        purchases = await _closed(bench, load, pid, buying.purchase, _CREATED)
        await _record(bench, Recorder(bench.stores.inventory, bench.stores.ledger, bench.clock, "calibration"))
        sold_out = await _closed(bench, load, pid, late.purchase, _CONFLICT)
        pages = await _closed(bench, load, pid, buying.page, _OK)
        took_s = await load.paced(buying.purchase, PACED_PER_S, PACED_S, chance(1))
        return CounterRun(purchases[0], purchases[1], sold_out[0], pages[0], tuple(took_s))


async def _closed(bench: Bench, load: Load, pid: int, make: Callable[[], bytes], expected: int) -> tuple[float, float]:
    """Answers with this status for each CPU second of the process, and for each second. Raises EngineError."""
    before_s = 0.0

    def begin() -> None:
        nonlocal before_s
        before_s = usage_of([pid]).cpu_s

    seconds = await load.closed(make, CLOSED_S, begin)
    answers = load.statuses.get(expected, 0)
    used_s = usage_of([pid]).cpu_s - before_s
    if not answers or not used_s or answers < 0.99 * sum(load.statuses.values()):
        raise EngineError(f"a counter answered {load.statuses} where {expected} was due; see {bench.folders.out}/logs")
    return answers / used_s, answers / seconds


async def _counter(stack: AsyncExitStack, bench: Bench) -> tuple[int, int]:
    """Start one; its port and its process id."""
    name = SystemIds().new("counter-")
    path = settings_file(bench.folders, name, bench.settings)
    announce = bench.folders.run / f"{name}-port.json"
    arguments = ["--settings", str(path), "--replica-id", name, "--announce", str(announce)]
    child = spawn(name, command("counter", *arguments), bench.folders.log("counter"))
    stack.push_async_callback(child.stop, bench.clock, STOP_S)
    return await read_announced_port(child, announce, bench.clock), child.pid


class FleetRun(msgspec.Struct, frozen=True):
    """One run of several replicas behind the balancer: ms until each was ready, seconds that purchases took."""

    start_ms: tuple[float, ...]
    took_s: tuple[float, ...]


async def fleet_once(bench: Bench) -> FleetRun:
    """Start replicas one after the other, and buy through the balancer at ease. Raises EngineError."""
    sale = await bench.sale()
    async with AsyncExitStack() as stack:
        folder = bench.folders.run / SystemIds().new("envoy-")
        folder.mkdir()
        envoy = await start_envoy(folder, bench.clock)
        stack.push_async_callback(envoy.stop)
        runtime = await make_runtime(bench.folders, bench.clock, settings_file(bench.folders, "fleet", bench.settings))
        stack.push_async_callback(runtime.close)
        start_ms = [await _start(bench, runtime, SystemIds().new("r")) for _ in range(REPLICAS)]
        ready = await runtime.list()
        await envoy.balancer.set_endpoints(
            [Endpoint(one.replica_id, one.zone, one.host, one.port, weight=1) for one in ready]
        )
        pool = Pool(envoy.url, bench.clock, ANSWER_S, CONNECTIONS, CONNECTIONS)
        await pool.open()
        stack.push_async_callback(pool.close)
        load = Load(pool, bench.clock)
        buying = Buying(envoy.url.removeprefix("http://"), sale, bench.settings.token_master, SystemIds().new("f"))
        await load.paced(buying.purchase, PACED_PER_S, 0.5, chance(2))
        took_s = await load.paced(buying.purchase, PACED_PER_S, PACED_S, chance(3))
        if load.statuses.get(_CREATED, 0) < 0.99 * len(took_s):
            raise EngineError(f"the replicas answered {load.statuses}; see {bench.folders.out}/logs")
        return FleetRun(tuple(start_ms), tuple(took_s))


async def _start(bench: Bench, runtime: ProcessRuntime, replica_id: str) -> float:
    """From the decision to start a replica until it is ready, ms. Raises EngineError."""
    began_s = bench.clock.monotonic_s()
    await runtime.start(ReplicaSpec(replica_id, "here", "node-1"))
    while bench.clock.monotonic_s() < began_s + START_S_MAX:
        seen = next(one for one in await runtime.list() if one.replica_id == replica_id)
        if seen.state is ReplicaState.READY:
            return (bench.clock.monotonic_s() - began_s) * 1000
        if seen.state is ReplicaState.FAILED:
            raise EngineError(f"a counter did not start: {seen.failure}; see {bench.folders.out}/logs")
        await bench.clock.sleep(POLL_S)
    raise EngineError(f"a counter was not ready after {START_S_MAX:.0f} s; see {bench.folders.out}/logs")
