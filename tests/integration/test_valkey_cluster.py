"""The store on a cluster: routing, acknowledgement by replicas, failover. On a real cluster of nine servers."""

import asyncio
import itertools
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from springtide.drivers.embedded_valkey import EmbeddedValkey, free_port, start_valkey
from springtide.drivers.embedded_valkey_cluster import EmbeddedValkeyCluster, start_valkey_cluster
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey import ValkeyInventory
from springtide.drivers.valkey_cluster import ClusterStore, slot_of
from springtide.drivers.valkey_library import prepare
from springtide.drivers.valkey_primary import WRITES_WAITING_MAX
from springtide.drivers.valkey_wire import Connection, Wire, command
from springtide.errors import EngineError, InventoryError, InventoryUnavailable, OutcomeUnknown
from springtide.model import ReserveRequest, ReserveStatus, Sale, Sku

CLOCK = SystemClock()
# Counts how often an id is applied; says how often it now was.
LIBRARY = b"""#!lua name=tally
server.register_function('tally', function(keys, args) return server.call('HINCRBY', keys[1], args[1], 1) end)
"""
_numbers = itertools.count()


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedValkeyCluster]:
    folder = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
    cluster = asyncio.run(start_valkey_cluster(folder / "cluster", CLOCK, settings={"min-replicas-max-lag": "2"}))
    try:
        yield cluster
    finally:
        asyncio.run(cluster.stop())
        shutil.rmtree(folder)


@pytest.fixture
async def store(cluster: EmbeddedValkeyCluster) -> AsyncIterator[ClusterStore]:
    async with connected(cluster) as store:
        yield store


@asynccontextmanager
async def connected(
    cluster: EmbeddedValkeyCluster, replicas_acked: int = 1, timeout_s: float = 1.0
) -> AsyncIterator[ClusterStore]:
    await cluster.until_sound()
    store = await ClusterStore.connect(
        cluster.addresses, CLOCK, load_tally, replicas_acked=replicas_acked, timeout_s=timeout_s
    )
    try:
        yield store
    finally:
        await store.close()


async def load_tally(connection: Connection) -> None:
    if not await connection.send(command("FUNCTION", "LIST", "LIBRARYNAME", "tally")):
        await connection.send(command("FUNCTION", "LOAD", "REPLACE", LIBRARY))


def fresh_numbers(count: int) -> list[int]:
    return [next(_numbers) for _ in range(count)]


def fresh_tag() -> str:
    return f"tag-{next(_numbers)}"


async def count(store: ClusterStore, tag: str, name: str) -> int:
    return int(await store.write(tag, command("FCALL", "tally", 1, f"{{{tag}}}:ids", name)))


async def counts(store: ClusterStore, tag: str) -> dict[bytes, int]:
    flat = await store.read(tag, command("HGETALL", f"{{{tag}}}:ids"))
    return {name: int(times) for name, times in zip(flat[::2], flat[1::2], strict=True)}


async def ask(node: EmbeddedValkey, *words: str | int) -> object:
    wire = Wire((node.host, node.port), CLOCK, 2.0, lambda _: asyncio.sleep(0))
    await wire.open()
    try:
        return await wire.call(*words)
    finally:
        await wire.close()


async def until(done: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    give_up = time.monotonic() + seconds
    while not await done():
        assert time.monotonic() < give_up, "it did not come to pass"
        await asyncio.sleep(0.05)


async def refused(store: ClusterStore, tag: str) -> bool:
    """Whether a write is refused before it is made; it must not succeed."""
    try:
        await count(store, tag, f"id-{next(_numbers)}")
    except InventoryUnavailable:
        return True
    except OutcomeUnknown:
        return False
    raise AssertionError("acknowledged without a replica")


class Writers:
    """Some writers, each an id after the other, at a bounded pace; what came of each id."""

    def __init__(self, store: ClusterStore, tags: list[str]) -> None:
        self.acknowledged: dict[str, list[str]] = {tag: [] for tag in tags}
        self.unknown = 0
        self.refused = 0
        self._store = store
        self._going = True
        self._tasks = [asyncio.create_task(self._write(tag)) for tag in tags for _ in range(2)]

    async def stop(self) -> None:
        self._going = False
        await asyncio.gather(*self._tasks)

    async def _write(self, tag: str) -> None:
        while self._going:
            name = f"id-{next(_numbers)}"
            try:
                assert await count(self._store, tag, name) == 1
            except OutcomeUnknown:
                self.unknown += 1
            except InventoryUnavailable:
                self.refused += 1
            else:
                self.acknowledged[tag].append(name)
            await asyncio.sleep(0.01)

    async def assert_all_there_and_once(self) -> None:
        for tag, names in self.acknowledged.items():
            there = await counts(self._store, tag)
            assert {name.encode() for name in names} <= there.keys()
            assert set(there.values()) == {1}


async def journal(inventory: ValkeyInventory, sale: Sale, bucket: int) -> list[str]:
    orders: list[str] = []
    while entries := await inventory.read_journal(sale.sale, bucket, "reader", 500):
        orders += [reservation.order_id for entry in entries for reservation in entry.reservations]
        await inventory.acknowledge(sale.sale, bucket, [entry.entry_id for entry in entries])
    return orders


class Buyers:
    """For each bucket some who buy in batches, at a bounded pace, each a new buyer."""

    def __init__(self, inventory: ValkeyInventory, sale: Sale) -> None:
        self.acknowledged: dict[int, list[str]] = {bucket: [] for bucket in range(sale.buckets)}
        self.open: list[tuple[int, ReserveRequest]] = []
        self.refused = 0
        self._inventory = inventory
        self._sale = sale
        self._going = True
        self._tasks = [asyncio.create_task(self._buy(bucket)) for bucket in self.acknowledged for _ in range(2)]

    async def stop(self) -> None:
        self._going = False
        await asyncio.gather(*self._tasks)

    async def _buy(self, bucket: int) -> None:
        while self._going:
            deadline_ms = CLOCK.now_ms() + 60_000
            batch = [ReserveRequest(f"b{n}", "key", "tea", 1, f"o{n}", 1, deadline_ms) for n in fresh_numbers(4)]
            try:
                results = await self._inventory.reserve(self._sale.sale, bucket, batch)
            except OutcomeUnknown:
                self.open += [(bucket, request) for request in batch]
            except InventoryUnavailable:
                self.refused += 1
            else:
                assert {result.status for result in results} <= {ReserveStatus.RESERVED, ReserveStatus.SOLD_OUT}
                self.acknowledged[bucket] += [
                    result.order_id for result in results if result.status is ReserveStatus.RESERVED
                ]
            await asyncio.sleep(0.05)

    async def ask_again(self) -> None:
        """What had no answer is asked again with the same key, as a buyer's client does."""
        for bucket, request in self.open:
            [result] = await self._inventory.reserve(self._sale.sale, bucket, [request])
            if result.status is not ReserveStatus.SOLD_OUT:
                assert result.status in {ReserveStatus.RESERVED, ReserveStatus.REPEATED}
                self.acknowledged[bucket].append(result.order_id)

    async def assert_all_there_and_stock_right(self) -> None:
        for bucket, acknowledged in self.acknowledged.items():
            journalled = await journal(self._inventory, self._sale, bucket)
            assert sorted(journalled) == sorted(set(acknowledged)) == sorted(acknowledged)
            held = await self._inventory.holders(self._sale.sale, bucket, "")
            assert {f"o{buyer[1:]}" for buyer in held.buyers} == set(acknowledged)
        view = await self._inventory.view(self._sale.sale)
        assert view is not None
        sold = sum(map(len, self.acknowledged.values()))
        assert view.stock == {"tea": self._sale.skus[0].stock - sold}
        assert max(map(len, self.acknowledged.values())) <= self._sale.skus[0].stock // self._sale.buckets


async def test_each_command_goes_to_the_server_that_has_its_slot(
    cluster: EmbeddedValkeyCluster, store: ClusterStore
) -> None:
    tags = [fresh_tag() for _ in range(200)]

    assert await asyncio.gather(*(count(store, tag, "a") for tag in tags)) == [1] * 200
    assert [await counts(store, tag) for tag in tags[:20]] == [{b"a": 1}] * 20

    assert store.redirects == 0
    assert [slot_of(tag) for tag in tags] == [await ask(cluster.nodes[0], "CLUSTER", "KEYSLOT", tag) for tag in tags]
    assert {(await cluster.shard_of(tag))[0].port for tag in tags[:20]} == {node.port for node in cluster.nodes[:3]}
    assert len(await store.primaries()) == 3


async def test_writes_of_a_moment_share_their_wait_for_the_replicas(store: ClusterStore) -> None:
    tag = fresh_tag()
    await count(store, tag, "first")
    before = store.waits

    await asyncio.gather(*(count(store, tag, f"id-{n}") for n in range(60)))

    assert len(await counts(store, tag)) == 61
    assert store.waits - before < 60
    assert store.calls_in_flight == 0


async def test_more_writes_than_may_wait_are_refused_and_not_written(store: ClusterStore) -> None:
    tag = fresh_tag()
    names = [f"id-{n}" for n in range(WRITES_WAITING_MAX + 40)]

    results = await asyncio.gather(*(count(store, tag, name) for name in names), return_exceptions=True)

    refused = [name.encode() for name, result in zip(names, results, strict=True) if result != 1]
    assert len(refused) == 40
    assert {type(result) for result in results if result != 1} == {InventoryUnavailable}
    assert not (await counts(store, tag)).keys() & set(refused)


async def test_a_write_that_no_replica_confirms_is_never_a_success(
    cluster: EmbeddedValkeyCluster, store: ClusterStore
) -> None:
    tag = fresh_tag()
    _, replicas = await cluster.shard_of(tag)
    for replica in replicas:
        replica.child.signal(signal.SIGSTOP)
    try:
        with pytest.raises(OutcomeUnknown, match="0 of 1 replicas"):
            await count(store, tag, "unconfirmed")
        # When a replica has been silent for longer than it may be, it is known before anything is written.
        await until(lambda: refused(store, tag))
    finally:
        for replica in replicas:
            replica.child.signal(signal.SIGCONT)
    await cluster.until_sound()

    assert await count(store, tag, "confirmed") == 1


async def test_a_shard_whose_replicas_are_dead_refuses_while_the_others_sell(
    cluster: EmbeddedValkeyCluster, store: ClusterStore
) -> None:
    tag = fresh_tag()
    primary, replicas = await cluster.shard_of(tag)
    tags = [fresh_tag() for _ in range(12)]
    other = [one for one in tags if (await cluster.shard_of(one))[0] is not primary]
    for replica in replicas:
        replica.child.signal(signal.SIGKILL)

    try:
        await asyncio.gather(*(replica.child.wait(CLOCK, 5.0) for replica in replicas))
        await until(lambda: refused(store, tag))
        assert await count(store, other[0], "a") == 1
    finally:
        await asyncio.gather(*(replica.restart() for replica in replicas))
    await cluster.until_sound()
    assert await count(store, tag, "afterwards") == 1


async def test_nothing_acknowledged_is_lost_or_oversold_when_a_primary_is_killed(
    cluster: EmbeddedValkeyCluster, store: ClusterStore
) -> None:
    selling = await ClusterStore.connect(cluster.addresses, CLOCK, prepare, replicas_acked=1, timeout_s=1.0)
    inventory = ValkeyInventory.on(selling)
    sale = six_buckets(stock=2400)
    await inventory.publish(sale)
    victim, _ = await cluster.shard_of(f"{sale.sale}:0")
    tags = [fresh_tag() for _ in range(6)]
    buyers, writers = Buyers(inventory, sale), Writers(store, tags)
    mine = buyers.acknowledged[0]
    await asyncio.sleep(0.5)

    victim.child.signal(signal.SIGKILL)
    await victim.child.wait(CLOCK, 5.0)
    killed_s, before = time.monotonic(), len(mine)
    await until(lambda: longer_than(mine, before + 20), 15.0)
    silent_s = time.monotonic() - killed_s
    await asyncio.gather(buyers.stop(), writers.stop())

    assert (await cluster.shard_of(f"{sale.sale}:0"))[0] is not victim
    assert buyers.refused > 0
    await writers.assert_all_there_and_once()
    await buyers.ask_again()
    await buyers.assert_all_there_and_stock_right()
    await inventory.close()
    await victim.restart()
    await cluster.until_sound()
    assert victim in (await cluster.shard_of(f"{sale.sale}:0"))[1]
    assert store.connected
    print(f"silent for {silent_s:.1f} s; {writers.refused} writes were refused, {writers.unknown} unknown")


def six_buckets(stock: int) -> Sale:
    now_ms = CLOCK.now_ms()
    skus = (Sku("tea", "Tea", 500, stock, spread=True),)
    return Sale("cluster", "Tea", skus, now_ms - 1000, now_ms + 3_600_000, 600_000, buckets=6)


async def longer_than(names: list[str], length: int) -> bool:
    return len(names) > length


async def test_commands_follow_a_primary_that_hands_over(cluster: EmbeddedValkeyCluster, store: ClusterStore) -> None:
    tag = fresh_tag()
    primary, replicas = await cluster.shard_of(tag)
    writers = Writers(store, [tag])
    await asyncio.sleep(0.2)

    await ask(replicas[0], "CLUSTER", "FAILOVER")

    async def handed_over() -> bool:
        return b"role:master" in await ask(replicas[0], "INFO", "replication")  # type: ignore[operator] # this command answers bytes

    await until(handed_over)
    before = len(writers.acknowledged[tag])
    await until(lambda: longer_than(writers.acknowledged[tag], before + 20))
    await writers.stop()
    await writers.assert_all_there_and_once()
    assert store.refreshes > 1
    assert primary.child.returncode is None


async def test_commands_follow_a_slot_that_is_moved(cluster: EmbeddedValkeyCluster, store: ClusterStore) -> None:
    tag = fresh_tag()
    source, _ = await cluster.shard_of(tag)
    other_tags = [fresh_tag() for _ in range(12)]
    target = next(node for node in [(await cluster.shard_of(one))[0] for one in other_tags] if node is not source)
    slot = slot_of(tag)
    source_id, target_id = [(await ask(node, "CLUSTER", "MYID")).decode() for node in (source, target)]  # type: ignore[attr-defined] # these answer bytes
    assert await count(store, tag, "before") == 1

    await ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
    await ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
    await ask(source, "MIGRATE", target.host, target.port, f"{{{tag}}}:ids", 0, 2000)
    assert await count(store, tag, "meanwhile") == 1  # ASK
    assert await counts(store, tag) == {b"before": 1, b"meanwhile": 1}
    asked = store.redirects
    for node in (target, source):
        await ask(node, "CLUSTER", "SETSLOT", slot, "NODE", target_id)
    assert await count(store, tag, "after") == 1  # MOVED
    assert store.redirects > asked >= 2

    moved = store.redirects
    assert await counts(store, tag) == {b"before": 1, b"meanwhile": 1, b"after": 1}
    assert store.redirects == moved


async def test_functions_that_a_server_has_lost_are_loaded_again(
    cluster: EmbeddedValkeyCluster, store: ClusterStore
) -> None:
    tag = fresh_tag()
    primary, _ = await cluster.shard_of(tag)
    await ask(primary, "FUNCTION", "FLUSH")

    async def counted() -> bool:
        try:
            return await count(store, tag, "a") == 1
        except InventoryError:
            return False

    await until(counted)


async def test_without_replicas_asked_it_is_answered_by_the_primary_alone(cluster: EmbeddedValkeyCluster) -> None:
    async with connected(cluster, replicas_acked=0) as store:
        assert await count(store, fresh_tag(), "a") == 1
        assert (store.waits, store.replicated) == (0, False)


async def test_what_is_not_a_cluster_is_told_so(tmp_path: Path) -> None:
    server = await start_valkey(tmp_path / "single", CLOCK, settings={"maxmemory": "64mb"})
    try:
        assert await ask(server, "CONFIG", "GET", "maxmemory") == [b"maxmemory", b"67108864"]
        addresses = [(server.host, free_port()), (server.host, server.port)]
        with pytest.raises(InventoryUnavailable, match="Valkey Cluster"):
            await ClusterStore.connect(addresses, CLOCK, load_tally, replicas_acked=1, timeout_s=1.0)
    finally:
        await server.stop()


async def test_why_the_functions_cannot_be_loaded_is_told(cluster: EmbeddedValkeyCluster) -> None:
    async def load_nonsense(connection: Connection) -> None:
        await connection.send(command("FUNCTION", "LOAD", "#!lua name=nonsense\nthis is no Lua"))

    with pytest.raises(InventoryUnavailable, match=r"can be used: .*compiling"):
        await ClusterStore.connect(cluster.addresses, CLOCK, load_nonsense, replicas_acked=1, timeout_s=1.0)


async def test_a_cluster_that_lost_its_power_has_what_was_acknowledged(cluster: EmbeddedValkeyCluster) -> None:
    """The last of this file: the servers are others afterwards."""
    folder, tags = cluster.nodes[0].folder.parent, [fresh_tag() for _ in range(12)]
    async with connected(cluster) as store:
        await asyncio.gather(*(count(store, tag, "a") for tag in tags))
    for node in cluster.nodes:
        node.child.signal(signal.SIGKILL)
    await asyncio.gather(*(node.child.wait(CLOCK, 5.0) for node in cluster.nodes))

    with pytest.raises(EngineError, match="has 3 shards with 2 replicas"):
        await start_valkey_cluster(folder, CLOCK, shards=4)
    again = await start_valkey_cluster(folder, CLOCK)
    try:
        assert again.addresses == cluster.addresses
        async with connected(again) as store:
            assert [await counts(store, tag) for tag in tags] == [{b"a": 1}] * 12
    finally:
        await again.stop()
