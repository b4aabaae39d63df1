"""An embedded Valkey Cluster over several zones: each shard has its primary and replicas in different ones."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from springtide.decide.copies import spread_copies
from springtide.drivers.embedded_valkey import EmbeddedValkey, PortTakenError, free_port, start_valkey
from springtide.drivers.netns import Namespace
from springtide.drivers.valkey_cluster import SLOTS, slot_of
from springtide.drivers.valkey_wire import Connection, Wire
from springtide.errors import EngineError, InventoryError
from springtide.ports import Clock

NODE_TIMEOUT_MS = 2000
"""A primary that is silent for this long is replaced; with the election a failover takes 3 to 5 s."""

FORM_S_MAX = 30.0

_CALL_S_MAX = 2.0
_SHARDS_MIN = 3
_POLL_S = 0.05
_PORT_TRIES_MAX = 5
_PLAN = "cluster.json"
_SETTINGS = {
    "cluster-enabled": "yes",
    "cluster-config-file": "nodes.conf",
    "cluster-node-timeout": str(NODE_TIMEOUT_MS),
    # The buckets of the other shards go on selling while one shard has no primary.
    "cluster-require-full-coverage": "no",
    # Replicas stay with their shard, as many as were asked for.
    "cluster-allow-replica-migration": "no",
    "repl-diskless-sync-delay": "0",
    # A wait for replicas ends on a tick of the server's clock.
    "hz": "500",
    # A replica that says nothing for this long does not count. A shard that is cut off so stops taking stock that it
    # could not acknowledge; that a purchase is acknowledged with enough replicas is up to WAITAOF alone.
    "min-replicas-max-lag": "3",
}


class _Plan(msgspec.Struct, frozen=True):
    """What a formed cluster has to be started with again: its nodes know each other by address."""

    shards: int
    replicas: int
    ports: tuple[tuple[int, int], ...]  # of clients and of the cluster's bus


class _Started(NamedTuple):
    node: EmbeddedValkey
    bus: int


class EmbeddedValkeyCluster:
    """A running cluster. `nodes` keep their ports and folders over restarts; their roles change with failovers."""

    def __init__(self, nodes: Sequence[EmbeddedValkey], clock: Clock, replicas: int) -> None:
        """Use `start_valkey_cluster`."""
        self.nodes = tuple(nodes)
        self.replicas = replicas
        self._clock = clock
        self._zones = zones_of(len(nodes) // (1 + replicas), replicas)

    @property
    def zones(self) -> dict[tuple[str, int], int]:
        """The zone of each node's address: numbers from 0, as many as a shard has copies."""
        return {address: self._zones[at] for at, address in enumerate(self.addresses)}

    def in_zone(self, zone: int) -> list[EmbeddedValkey]:
        """The nodes of a zone: one copy of each shard."""
        return [node for at, node in enumerate(self.nodes) if self._zones[at] == zone]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each node: any of them tells the others."""
        return [(node.host, node.port) for node in self.nodes]

    async def shard_of(self, tag: str) -> tuple[EmbeddedValkey, list[EmbeddedValkey]]:
        """The primary that has the slot of a hash tag now, and its replicas, the dead ones left out.

        Raises EngineError when the nodes that run do not agree on one.
        """
        running = [node for node in self.nodes if node.child.returncode is None]
        slot = slot_of(tag)
        found = set()
        for node in running:
            slots = await _ask(node, self._clock, "CLUSTER", "SLOTS")
            found |= {
                tuple(int(one[1]) for one in all_nodes) for first, last, *all_nodes in slots if first <= slot <= last
            }
        by_port = {node.port: node for node in running}
        if len({ports[0] for ports in found}) != 1 or not found <= {p for p in found if p[0] in by_port}:
            raise EngineError(f"the cluster does not agree on who has slot {slot}; wait for its failover")
        replicas = {port for ports in found for port in ports[1:]}
        return by_port[next(iter(found))[0]], [by_port[port] for port in sorted(replicas & by_port.keys())]

    async def until_sound(self) -> None:
        """Wait until all nodes agree that all is well and each shard's replicas are in sync. Raises EngineError."""
        await _until(self._clock, "become sound", lambda: _sound(self.nodes, self._clock, self.replicas))

    async def stop(self) -> None:
        """End all nodes; what they acknowledged stays in the folder."""
        await asyncio.gather(*(node.stop() for node in self.nodes))


def zones_of(shards: int, replicas: int) -> list[int]:
    """The zone of each node, the first `shards` nodes being the primaries at first, then the replicas in rounds."""
    places = spread_copies(1 + replicas, shards, 1 + replicas)
    return [places[shard][copy] for copy in range(1 + replicas) for shard in range(shards)]


async def start_valkey_cluster(
    folder: Path,
    clock: Clock,
    shards: int = 3,
    replicas: int = 2,
    *,
    settings: Mapping[str, str] | None = None,
    zones: Sequence[Namespace] | None = None,
) -> EmbeddedValkeyCluster:
    """Start a cluster that keeps its data in `folder`, or the one that is there, and wait until it is sound.

    There are at least 3 shards, since a majority of the primaries decides on a failover. A shard takes writes while at
    least one replica is in sync. Each zone has one copy of each shard; with `zones` it is a namespace of its own.
    `settings` are further ones of each node. Raises EngineError.
    """
    if shards < _SHARDS_MIN or replicas < 0:
        raise EngineError(
            f"a cluster of {shards} shards with {replicas} replicas cannot be: {_SHARDS_MIN} and 0 are the least"
        )
    plan = _planned(folder, shards, replicas)
    least = {"min-replicas-to-write": str(min(1, replicas)), **_SETTINGS, **(settings or {})}
    started: dict[int, _Started] = {}
    try:
        ports = plan.ports if plan else (None,) * (shards * (1 + replicas))
        homes = [zones[zone] if zones else None for zone in zones_of(shards, replicas)]
        await _start_nodes(started, folder, clock, least, list(zip(ports, homes, strict=True)))
        nodes = [started[at].node for at in sorted(started)]
        if plan is None:
            await _form(nodes, [started[at].bus for at in sorted(started)], clock, shards)
        cluster = EmbeddedValkeyCluster(nodes, clock, replicas)
        await cluster.until_sound()
    except BaseException:
        await asyncio.gather(*(one.node.stop() for one in started.values()))
        raise
    if plan is None:
        taken = tuple((started[at].node.port, started[at].bus) for at in sorted(started))
        (folder / _PLAN).write_bytes(msgspec.json.encode(_Plan(shards, replicas, taken)))
    return cluster


def _planned(folder: Path, shards: int, replicas: int) -> _Plan | None:
    try:
        plan = msgspec.json.decode((folder / _PLAN).read_bytes(), type=_Plan)
    except FileNotFoundError:
        if (folder / "node-0").exists():
            raise EngineError(f"the cluster in {folder} was never complete, so it holds nothing: delete it") from None
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise EngineError(f"{folder / _PLAN} cannot be read ({error}); restore it from a backup") from error
    if (plan.shards, plan.replicas) != (shards, replicas):
        raise EngineError(
            f"the cluster in {folder} has {plan.shards} shards with {plan.replicas} replicas: ask for these"
        )
    return plan


async def _start_nodes(
    started: dict[int, _Started],
    folder: Path,
    clock: Clock,
    settings: Mapping[str, str],
    places: Sequence[tuple[tuple[int, int] | None, Namespace | None]],
) -> None:
    """Fill `started`, also when this ends with an error: what runs has to be ended by somebody."""

    async def start(at: int) -> None:
        started[at] = await _start_node(folder / f"node-{at}", clock, *places[at], settings)

    results = await asyncio.gather(*(start(at) for at in range(len(places))), return_exceptions=True)
    for error in results:
        if error is not None:
            raise error


async def _start_node(
    folder: Path, clock: Clock, ports: tuple[int, int] | None, zone: Namespace | None, settings: Mapping[str, str]
) -> _Started:
    for _ in range(_PORT_TRIES_MAX):
        port, bus = ports or (free_port(), free_port())
        try:
            node = await start_valkey(folder, clock, port, zone, settings={**settings, "cluster-port": str(bus)})
        except PortTakenError:
            if ports:
                raise
        else:
            return _Started(node, bus)
    raise EngineError(f"Valkey found no two ports that stayed free, in {_PORT_TRIES_MAX} tries; end other programs")


async def _form(nodes: Sequence[EmbeddedValkey], buses: Sequence[int], clock: Clock, shards: int) -> None:
    """The first `shards` nodes become primaries; of the others, each `shards`-th follows the same one."""
    first = nodes[0]
    for at, node in enumerate(nodes):
        await _ask(node, clock, "CLUSTER", "SET-CONFIG-EPOCH", at + 1)
        if at:
            await _ask(first, clock, "CLUSTER", "MEET", node.host, node.port, buses[at])
    for at, node in enumerate(nodes[:shards]):
        await _ask(node, clock, "CLUSTER", "ADDSLOTSRANGE", at * SLOTS // shards, (at + 1) * SLOTS // shards - 1)
    await _until(clock, "meet", lambda: _all_met(nodes, clock))
    ids = [(await _ask(node, clock, "CLUSTER", "MYID")).decode() for node in nodes[:shards]]
    await asyncio.gather(
        *(_ask(node, clock, "CLUSTER", "REPLICATE", ids[at % shards]) for at, node in enumerate(nodes) if at >= shards)
    )


async def _all_met(nodes: Sequence[EmbeddedValkey], clock: Clock) -> bool:
    known = [await _ask(node, clock, "CLUSTER", "NODES") for node in nodes]
    return all(text.count(b"connected") == len(nodes) and b"handshake" not in text for text in known)


async def _sound(nodes: Sequence[EmbeddedValkey], clock: Clock, replicas: int) -> bool:
    primaries = 0
    for node in nodes:
        if b"cluster_state:ok" not in await _ask(node, clock, "CLUSTER", "INFO"):
            return False
        info = await _ask(node, clock, "INFO", "replication", "persistence")
        # A replica counts from the moment that its append-only file holds all that it was sent at first.
        writing_file = b"aof_rewrite_in_progress:1" in info or b"aof_rewrite_scheduled:1" in info
        following = b"role:slave" in info and b"master_link_status:up" in info
        leading = b"role:master" in info and (not replicas or b"min_slaves_good_slaves:%d\r" % replicas in info)
        if writing_file or not (following or leading):
            return False
        primaries += leading
    # An old primary that has just come back may not know yet that it is one no more.
    return primaries * (1 + replicas) == len(nodes)


async def _until(clock: Clock, what: str, done: Callable[[], Awaitable[bool]]) -> None:
    until_s = clock.monotonic_s() + FORM_S_MAX
    while not await done():
        if clock.monotonic_s() > until_s:
            raise EngineError(
                f"the nodes of the cluster did not {what} in {FORM_S_MAX:g} s; look into their valkey.log"
            )
        await clock.sleep(_POLL_S)


async def _ask(node: EmbeddedValkey, clock: Clock, *words: str | int) -> Any:  # noqa: ANN401 - a reply has the shape of its command
    wire = Wire((node.host, node.port), clock, _CALL_S_MAX, _nothing)
    try:
        await wire.open()
        return await wire.call(*words)
    except InventoryError as error:
        raise EngineError(f"a node of the cluster failed: {error}; see {node.folder / 'valkey.log'}") from error
    finally:
        await wire.close()


async def _nothing(_: Connection) -> None:
    """These connections call no functions."""
