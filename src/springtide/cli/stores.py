"""The engines behind a run, Valkey and PostgreSQL: embedded and supervised, or given by address."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from springtide.cli.inventories import open_inventory, parse_addresses
from springtide.cli.store_copies import check_copies, start_cluster, start_group
from springtide.cli.supervisor import Supervisor
from springtide.config import InventorySettings
from springtide.drivers.child import Child
from springtide.drivers.disk_guard import DiskGuard
from springtide.drivers.embedded_postgres import EmbeddedPostgres, start_postgres
from springtide.drivers.embedded_valkey import EmbeddedValkey, start_valkey
from springtide.drivers.engine_load import EngineLoad
from springtide.drivers.netns import Namespace
from springtide.drivers.postgres import PostgresLedger, migrate
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey import ValkeyInventory
from springtide.ports import Clock, Sensor

MB = 1_048_576

_T = TypeVar("_T")


@dataclass(frozen=True)
class Given:
    """Engines of somebody else, to be used and never ended; what is empty is embedded."""

    inventory: str = ""
    ledger: str = ""


@dataclass(frozen=True)
class Places:
    """Where embedded engines run: the folder of Valkey's data, and their namespaces when they have some.

    `library` are the inventory's functions, in place of those that come along. Without `postgres_folder` PostgreSQL has
    a private one, which goes with it. A `valkey_port` of 0 takes a free one.
    """

    valkey_folder: Path
    postgres_folder: Path | None = None
    valkey_node: Namespace | None = None
    postgres_node: Namespace | None = None
    library: bytes | None = None
    valkey_port: int = 0


@dataclass(frozen=True)
class Stores:
    """Addresses, drivers connected to them, and for embedded engines what keeps them up."""

    address: str
    ledger_dsn: str
    inventory: ValkeyInventory
    ledger: PostgresLedger
    valkey: Supervisor | None
    postgres: Supervisor | None
    postgres_engine: EmbeddedPostgres | None
    guard: DiskGuard | None
    replicas_acked: int = 0
    """What the roles have to ask of the inventory at this address."""

    def loads(self, clock: Clock) -> dict[str, Sensor]:
        """How busy the inventory is, where it is ours and one process: the limit that no replica can move."""
        valkey = self.valkey
        return {"valkey": EngineLoad("valkey", lambda: valkey.child.pid, clock)} if valkey is not None else {}


async def start_stores(
    stack: AsyncExitStack, clock: SystemClock, given: Given, places: Places, settings: InventorySettings
) -> Stores:
    """Start what is not given, both at once; connect, and bring the schema up to date.

    Raises UserError for an address that is none, EngineError, and the drivers' errors when a given engine is not there.
    """
    address = given.inventory
    if address:
        parse_addresses(address)
    check_copies(settings, places.valkey_folder, places.postgres_folder)
    if settings.copies > 1:
        valkey = postgres = None
        address, dsn = await all_started(
            _cluster(stack, clock, address, places, settings), _group(stack, clock, given.ledger, places, settings)
        )
    else:
        valkey, postgres = await all_started(
            _valkey(stack, clock, places, wanted=not address), _postgres(stack, clock, places, wanted=not given.ledger)
        )
        if valkey is not None:
            address = f"{valkey.host}:{valkey.port}"
        dsn = postgres.dsn if postgres is not None else given.ledger
    inventory = await open_inventory(address, clock, replicas_acked=settings.replicas_acked, library=places.library)
    stack.push_async_callback(inventory.close)
    await migrate(dsn)
    ledger = await PostgresLedger.connect(dsn, clock)
    stack.push_async_callback(ledger.close)
    return Stores(
        address,
        dsn,
        inventory,
        ledger,
        valkey=await _supervised(stack, clock, "valkey", valkey),
        postgres=await _supervised(stack, clock, "postgres", postgres),
        postgres_engine=postgres,
        guard=await _guarded(stack, clock, valkey, settings.disk_reserve_mb),
        replicas_acked=settings.replicas_acked,
    )


async def all_started(*starting: Coroutine[Any, Any, _T]) -> Sequence[Any]:
    """Await all; the first error of any is raised when all have ended.

    Also after Ctrl-C: an engine that is half started is started whole, so that it is on the stack and is ended.
    """
    tasks = [asyncio.ensure_future(one) for one in starting]
    try:
        await asyncio.wait(tasks)
    finally:
        await asyncio.wait(tasks)
    for error in [task.exception() for task in tasks]:
        if error is not None:
            raise error
    return [task.result() for task in tasks]


async def _cluster(
    stack: AsyncExitStack, clock: SystemClock, address: str, places: Places, settings: InventorySettings
) -> str:
    if address:
        return address
    cluster = await start_cluster(stack, clock, places.valkey_folder, settings)
    return ",".join(f"{host}:{port}" for host, port in cluster.addresses)


async def _group(
    stack: AsyncExitStack, clock: SystemClock, dsn: str, places: Places, settings: InventorySettings
) -> str:
    if dsn:
        return dsn
    return (await start_group(stack, clock, places.postgres_folder, settings)).dsn


async def _valkey(stack: AsyncExitStack, clock: SystemClock, places: Places, *, wanted: bool) -> EmbeddedValkey | None:
    if not wanted:
        return None
    engine = await start_valkey(places.valkey_folder, clock, places.valkey_port, node=places.valkey_node)
    stack.push_async_callback(engine.stop)
    return engine


async def _postgres(
    stack: AsyncExitStack, clock: SystemClock, places: Places, *, wanted: bool
) -> EmbeddedPostgres | None:
    if not wanted:
        return None
    engine = await start_postgres(clock, places.postgres_folder, node=places.postgres_node)
    stack.push_async_callback(engine.stop)
    return engine


async def _supervised(
    stack: AsyncExitStack, clock: SystemClock, name: str, engine: EmbeddedValkey | EmbeddedPostgres | None
) -> Supervisor | None:
    """Start the engine again on its data and its address whenever it dies."""
    if engine is None:
        return None

    async def again() -> Child:
        await engine.restart()
        return engine.child

    supervisor = Supervisor(name, again, clock, engine.child)
    await supervisor.start()
    stack.push_async_callback(supervisor.release)
    return supervisor


async def _guarded(
    stack: AsyncExitStack, clock: SystemClock, engine: EmbeddedValkey | None, reserve_mb: int
) -> DiskGuard | None:
    """Watch the disk of an embedded server; that of a given one is on another machine."""
    if engine is None:
        return None
    guard = DiskGuard(engine.folder, reserve_mb * MB, (engine.host, engine.port), clock)
    await guard.start()
    stack.push_async_callback(guard.close)
    return guard
