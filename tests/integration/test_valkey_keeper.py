"""The keeper of a Valkey Cluster: takes over only what it may, leaves nothing behind, and spreads primaries again."""

import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from springtide.drivers.embedded_valkey import EmbeddedValkey
from springtide.drivers.embedded_valkey_cluster import EmbeddedValkeyCluster, start_valkey_cluster, zones_of
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey_cluster import ClusterStore
from springtide.drivers.valkey_keeper import ValkeyKeeper
from springtide.drivers.valkey_view import Said, Server, shards_of
from springtide.drivers.valkey_wire import Connection, command
from springtide.errors import InventoryError, InventoryUnavailable, OutcomeUnknown

CLOCK = SystemClock()
TAG = "tag"


@asynccontextmanager
async def started() -> AsyncIterator[EmbeddedValkeyCluster]:
    folder = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
    cluster = await start_valkey_cluster(folder / "cluster", CLOCK)
    try:
        yield cluster
    finally:
        await cluster.stop()
        shutil.rmtree(folder)


@asynccontextmanager
async def kept(cluster: EmbeddedValkeyCluster, spread_after_s: float = 1e9) -> AsyncIterator[ValkeyKeeper]:
    keeper = ValkeyKeeper(cluster.zones, CLOCK, replicas=2, acked=1, spread_after_s=spread_after_s)
    task = asyncio.create_task(keeper.run())
    try:
        yield keeper
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@asynccontextmanager
async def store_on(cluster: EmbeddedValkeyCluster, acked: int = 1) -> AsyncIterator[ClusterStore]:
    store = await ClusterStore.connect(cluster.addresses, CLOCK, nothing, replicas_acked=acked, timeout_s=2.0)
    try:
        yield store
    finally:
        await store.close()


async def nothing(_: Connection) -> None:
    pass


async def said_by(node: EmbeddedValkey) -> Said:
    server = Server((node.host, node.port), CLOCK)
    try:
        said = await server.said()
        assert said is not None
        return said
    finally:
        await server.close()


async def tell(node: EmbeddedValkey, *words: str) -> None:
    server = Server((node.host, node.port), CLOCK)
    try:
        await server.do(*words)
    finally:
        await server.close()


async def add(store: ClusterStore, member: str, tag: str = TAG) -> int:
    return int(await store.write(tag, command("SADD", f"{{{tag}}}:set", member)))


async def members(store: ClusterStore, tag: str = TAG) -> set[bytes]:
    return set(await store.read(tag, command("SMEMBERS", f"{{{tag}}}:set")))


async def until(done: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    give_up = time.monotonic() + seconds
    while not await done():
        assert time.monotonic() < give_up, "it did not come to pass"
        await asyncio.sleep(0.1)


async def added(store: ClusterStore, member: str) -> bool:
    try:
        await add(store, member)
    except InventoryError:
        return False
    return True


def test_each_zone_has_one_copy_of_each_shard() -> None:
    assert zones_of(3, 2) == [0, 1, 2, 1, 2, 0, 2, 0, 1]
    assert sorted(zones_of(6, 1)) == [0] * 6 + [1] * 6


async def test_shards_are_taken_over_only_when_no_order_can_be_missing_and_the_old_primary_rejoins() -> None:
    async with started() as cluster, store_on(cluster) as store, kept(cluster) as keeper:
        assert await add(store, "before") == 1
        primary, replicas = await cluster.shard_of(TAG)
        other = next(node for node in cluster.nodes[:3] if node is not primary)
        others = [node for node in cluster.nodes if (await said_by(node)).me.primary == (await said_by(other)).node_id]

        # With another primary the majority goes; with a replica of each of the two shards goes the certainty.
        for node in (primary, other, replicas[0], others[0]):
            node.child.signal(signal.SIGKILL)
            await node.child.wait(CLOCK, 5.0)
        await until(lambda: _async(lambda: "1 of its 2 replicas" in keeper.alarm))
        assert (await said_by(replicas[1])).me.primary  # it still follows
        assert keeper.takeovers == 0

        await replicas[0].restart()
        await until(lambda: added(store, "after"))
        assert keeper.takeovers == 1
        assert await members(store) == {b"before", b"after"}

        for node in (primary, other, others[0]):
            await node.restart()
        await cluster.until_sound()
        assert (await said_by(primary)).me.primary
        assert await members(store) == {b"before", b"after"}
        await until(lambda: _async(lambda: not keeper.alarm))


async def test_a_fenced_replica_confirms_nothing_and_a_fence_left_behind_is_taken_away() -> None:
    async with started() as cluster, store_on(cluster) as store:
        primary, replicas = await cluster.shard_of(TAG)
        assert await add(store, "before") == 1
        for replica in replicas:
            await tell(replica, "CONFIG", "SET", "primaryauth", "springtide-fenced:")
            await tell(replica, "CLIENT", "KILL", "TYPE", "primary")

        for _ in range(3):
            with pytest.raises((OutcomeUnknown, InventoryUnavailable)):
                await add(store, "unconfirmed")
        assert not any([(await said_by(replica)).linked for replica in replicas])

        async with kept(cluster) as keeper:
            await cluster.until_sound()
            assert await add(store, "after") == 1
            assert keeper.takeovers == 0
        assert (await cluster.shard_of(TAG))[0] is primary


async def test_primaries_that_came_together_in_a_zone_are_spread_again_and_nothing_is_lost() -> None:
    async with started() as cluster, store_on(cluster) as store:
        for node in cluster.in_zone(0):
            if (await said_by(node)).me.primary:
                await tell(node, "CLUSTER", "FAILOVER")
        await until(lambda: in_zone_0(cluster, 3))
        await cluster.until_sound()

        async with kept(cluster, spread_after_s=0.5) as keeper:
            names = [f"m{number}" for number in range(40)]
            kept_names = []
            for name in names:
                if await added(store, name):
                    kept_names.append(name)
                await asyncio.sleep(0.1)
            await until(lambda: in_zone_0(cluster, 1))
            await cluster.until_sound()
            assert keeper.handovers == 2
        assert {name.encode() for name in kept_names} <= await members(store)
        assert len(kept_names) > len(names) // 2
        shards = shards_of([await said_by(node) for node in cluster.nodes])
        assert {cluster.zones[shard.primary.address] for shard in shards} == {0, 1, 2}


async def in_zone_0(cluster: EmbeddedValkeyCluster, count: int) -> bool:
    return sum([not (await said_by(node)).me.primary for node in cluster.in_zone(0)]) == count


async def _async(done: Callable[[], bool]) -> bool:
    return done()
