"""The embedded stores with a copy in each of three zones: a Valkey Cluster, PostgreSQL's copies, and their keepers."""

import asyncio
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from springtide.cli.supervisor import Start, Supervisor
from springtide.config import InventorySettings
from springtide.drivers.child import Child
from springtide.drivers.disk_guard import DiskGuard
from springtide.drivers.embedded_postgres_group import EmbeddedPostgresGroup, start_postgres_group
from springtide.drivers.embedded_valkey import EmbeddedValkey
from springtide.drivers.embedded_valkey_cluster import EmbeddedValkeyCluster, start_valkey_cluster
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey_keeper import ValkeyKeeper
from springtide.errors import UserError

SHARDS = 3
MB = 1_048_576
_CLUSTER = "cluster"


def check_copies(settings: InventorySettings, valkey_folder: Path, postgres_folder: Path | None) -> None:
    """Raise UserError when there cannot be so many copies, or the data that is there was written with another number.

    Nothing is moved from one kind of store to the other: it would look like a shop that never sold anything.
    """
    if settings.copies > 1 and not 1 <= settings.replicas_acked < settings.copies:
        raise UserError(
            f"[inventory] replicas_acked = {settings.replicas_acked} with copies = {settings.copies}: it must be 1 to "
            f"{settings.copies - 1}, or no copy could ever take over"
        )
    alone = [valkey_folder / "appendonlydir", *([postgres_folder / "data" / "PG_VERSION"] if postgres_folder else [])]
    several = [valkey_folder / _CLUSTER, *([postgres_folder / "primary.json"] if postgres_folder else [])]
    for other in alone if settings.copies > 1 else several:
        if other.exists():
            raise UserError(
                f"[inventory] copies = {settings.copies}: {other} is of stores with another number of copies; set it "
                "back, or give another folder"
            )


async def start_cluster(
    stack: AsyncExitStack, clock: SystemClock, folder: Path, settings: InventorySettings
) -> EmbeddedValkeyCluster:
    """Start Valkey's servers, keep each of them up, and watch over all. Raises EngineError."""
    cluster = await start_valkey_cluster(folder / _CLUSTER, clock, SHARDS, settings.copies - 1)
    stack.push_async_callback(cluster.stop)
    for at, node in enumerate(cluster.nodes):
        supervisor = Supervisor(f"valkey-{at}", _starter(node), clock, node.child)
        await supervisor.start()
        stack.push_async_callback(supervisor.release)
        guard = DiskGuard(node.folder, settings.disk_reserve_mb * MB, (node.host, node.port), clock)
        await guard.start()
        stack.push_async_callback(guard.close)
    keeper = ValkeyKeeper(cluster.zones, clock, replicas=settings.copies - 1, acked=settings.replicas_acked)
    stack.push_async_callback(_cancelled, asyncio.create_task(keeper.run(), name="keep Valkey"))
    return cluster


async def start_group(
    stack: AsyncExitStack, clock: SystemClock, folder: Path | None, settings: InventorySettings
) -> EmbeddedPostgresGroup:
    """Start PostgreSQL's copies, which their keeper keeps up. Raises EngineError."""
    zones = [f"zone-{'abcde'[at]}" for at in range(settings.copies)]
    group = await start_postgres_group(clock, folder, zones)
    stack.push_async_callback(group.stop)
    return group


def _starter(node: EmbeddedValkey) -> Start:
    async def again() -> Child:
        await node.restart()
        return node.child

    return again


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
