"""The inventory's keys on a Valkey Cluster: commands go to the primary that has their slot, also after a failover.

What an acknowledged write survives, with `replicas_acked` = n: n failures of servers of its shard, since a failover
elects the reachable replica that has most of the log. What it does not survive with fewer than all replicas asked: the
primary and each replica that confirmed it failing together, and a network that parts the primary with the replica that
confirmed from the others (what was sold in the `cluster-node-timeout` before the primary notices is then lost).
Do not move slots during a sale: a key is moved without waiting for the replicas of its new owner.
"""

import asyncio
from binascii import crc_hqx
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Self

from springtide.drivers.valkey_primary import Primary
from springtide.drivers.valkey_store import Prepare
from springtide.drivers.valkey_wire import Connection, Redirected, Wire, command
from springtide.errors import InventoryError, InventoryUnavailable
from springtide.ports import Clock

SLOTS = 16_384

REDIRECTS_MAX = 5
"""How often a command that wrote nothing is sent again, before its caller hears of it."""

NODES_MAX = 256
"""Servers whose addresses are remembered, to ask for the slot table."""

LEARN_PAUSE_S_MIN = 0.05
LEARN_PAUSE_S_MAX = 0.25
"""The slot table is read at most every `MIN`, and every `MAX` as long as a primary is not connected."""

_ASK_S_MAX = 0.5
_TABLE = (command("CLUSTER", "INFO"), command("CLUSTER", "SLOTS"))

Address = tuple[str, int]


class _Range(NamedTuple):
    first: int
    last: int
    owner: Address


class _Table(NamedTuple):
    sound: bool  # the server that told it sees a working cluster
    ranges: list[_Range]
    nodes: list[Address]


def slot_of(tag: str) -> int:
    """The slot of a hash tag: CRC-16/XMODEM modulo 16,384 (Valkey Cluster specification, "Key distribution model")."""
    return crc_hqx(tag.encode(), 0) % SLOTS


class ClusterStore:
    """`valkey_store.Store` on a cluster. A shard without a primary refuses at once; the others go on.

    Limits: REDIRECTS_MAX, and for each primary those of `valkey_primary` and CALLS_IN_FLIGHT_MAX of `valkey_wire`.
    """

    def __init__(self, seeds: Sequence[Address], clock: Clock, open_primary: Callable[[Address], Primary]) -> None:
        """Use `connect`."""
        self.replicated = False
        self.redirects = 0
        self.refreshes = 0
        self._nodes = list(dict.fromkeys(seeds))
        self._clock = clock
        self._new_primary = open_primary
        self._primaries: dict[Address, Primary] = {}
        self._slots: list[Address | None] = [None] * SLOTS
        self._learning: asyncio.Task[bool] | None = None
        self._learned_s = clock.monotonic_s() - LEARN_PAUSE_S_MIN
        self._mending: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._waits_retired = 0
        self._turn = 0
        self._fault: InventoryError | None = None
        self._closed = False

    @classmethod
    async def connect(
        cls,
        addresses: Sequence[Address],
        clock: Clock,
        prepare: Prepare,
        *,
        replicas_acked: int,
        timeout_s: float,
    ) -> Self:
        """Learn the slots from any of these servers and connect to the primaries; `prepare` runs there alone.

        A write is answered when `replicas_acked` replicas have it on disk, or (0) when the primary has; one that has no
        answer after `timeout_s` is OutcomeUnknown. Raises InventoryUnavailable when no server tells the slots, or no
        primary can be connected and prepared.
        """
        store = cls(addresses, clock, lambda address: Primary(address, clock, prepare, replicas_acked, timeout_s))
        store.replicated = replicas_acked > 0
        if not await store._learn_again():
            asked = ", ".join(f"{host}:{port}" for host, port in store._nodes)
            await store.close()
            raise InventoryUnavailable(f"none of {asked} told the slots of a Valkey Cluster; start it, or check these")
        if not any(primary.connected for primary in store._primaries.values()):
            await store.close()
            raise InventoryUnavailable(f"no primary of the Valkey Cluster can be used: {store._fault}")
        return store

    @property
    def calls_in_flight(self) -> int:
        """Calls not answered, over all primaries."""
        return sum(primary.calls_in_flight for primary in self._primaries.values())

    @property
    def waits(self) -> int:
        """How often WAITAOF was asked."""
        return self._waits_retired + sum(primary.waits for primary in self._primaries.values())

    @property
    def connected(self) -> bool:
        """Whether the primaries of all slots are connected."""
        return None not in self._slots and all(primary.connected for primary in self._primaries.values())

    async def read(self, tag: str, data: bytes) -> Any:  # noqa: ANN401 - a reply has the shape of its command
        """See Store."""
        return await self._at_owner(tag, lambda primary, asking: primary.read(data, asking=asking))

    async def write(self, tag: str, data: bytes) -> Any:  # noqa: ANN401 - a reply has the shape of its command
        """See Store."""
        return await self._at_owner(tag, lambda primary, asking: primary.write(data, asking=asking))

    async def primaries(self) -> Sequence[Wire]:
        """See Store."""
        return [primary.reader for primary in self._primaries.values()]

    async def close(self) -> None:
        """See Store."""
        self._closed = True
        for task in (self._mending, self._learning):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        await asyncio.gather(*(primary.close() for primary in self._primaries.values()), *self._retiring)

    async def _at_owner(self, tag: str, send: Callable[[Primary, bool], Awaitable[Any]]) -> Any:  # noqa: ANN401 - a reply has the shape of its command
        slot = slot_of(tag)
        primary, asking = await self._owner(slot), False
        for attempt in range(1, REDIRECTS_MAX + 1):
            try:
                return await send(primary, asking)
            except Redirected as refusal:
                if attempt == REDIRECTS_MAX:
                    raise
                self.redirects += 1
                primary, asking = await self._next(slot, refusal)
        raise AssertionError("the last attempt returns or raises")

    async def _owner(self, slot: int) -> Primary:
        owner = self._slots[slot]
        if owner is None:
            await self._learn_again()
            owner = self._slots[slot]
        if owner is None:
            raise InventoryUnavailable(f"slot {slot} of the Valkey Cluster has no server; repeat the call later")
        return self._primaries[owner]

    async def _next(self, slot: int, refusal: Redirected) -> tuple[Primary, bool]:
        """Who is to be asked next, and whether as the one the slot is on its way to."""
        kind, *rest = refusal.reply.split()
        target = _address(rest[1]) if kind in {"MOVED", "ASK"} and not rest[1].startswith(":") else None
        if kind == "ASK" and target in self._primaries:
            return self._primaries[target], True
        await self._learn_again(target)
        return await self._owner(slot), False

    async def _learn_again(self, first: Address | None = None) -> bool:
        """Read the slot table, or wait for who is reading it; False when no server told it."""
        if self._learning is None or self._learning.done():
            self._learning = asyncio.get_running_loop().create_task(self._learn(first))
        return await asyncio.shield(self._learning)

    async def _learn(self, first: Address | None) -> bool:
        pause_s = self._learned_s + LEARN_PAUSE_S_MIN - self._clock.monotonic_s()
        if pause_s > 0:
            await self._clock.sleep(pause_s)
        doubtful: _Table | None = None
        for address in self._whom_to_ask(first):
            try:
                table = await self._ask(address)
            except InventoryError:
                continue
            if table.sound:
                return await self._adopt(table)
            doubtful = doubtful or (table if table.ranges else None)
        self._learned_s = self._clock.monotonic_s()
        return await self._adopt(doubtful) if doubtful is not None else False

    def _whom_to_ask(self, first: Address | None) -> list[Address]:
        """All known servers, the connected primaries before the others, and another one first each time."""
        self._turn += 1
        live = [address for address, primary in self._primaries.items() if primary.reader.connection is not None]
        asked = [] if first is None else [first]
        for group in (live, self._nodes):
            at = self._turn % len(group) if group else 0
            asked += group[at:] + group[:at]
        return list(dict.fromkeys(asked))

    async def _ask(self, address: Address) -> _Table:
        known = self._primaries.get(address)
        connection = known.reader.connection if known else None
        if connection is not None:
            return await self._table(connection, address)
        wire = Wire(address, self._clock, _ASK_S_MAX, _nothing)
        try:
            await wire.open()
            assert wire.connection is not None  # noqa: S101 - `open` raises otherwise
            return await self._table(wire.connection, address)
        finally:
            await wire.close()

    async def _table(self, connection: Connection, asked: Address) -> _Table:
        try:
            async with self._clock.timeout(_ASK_S_MAX):
                info, slots = await asyncio.gather(*connection.send_all(_TABLE))
        except TimeoutError as error:
            raise InventoryUnavailable(f"{asked[0]}:{asked[1]} did not tell the slots in time") from error
        ranges = [_Range(first, last, _node(owner, asked)) for first, last, owner, *_ in slots]
        nodes = [_node(node, asked) for _, _, *all_nodes in slots for node in all_nodes]
        return _Table(b"cluster_state:ok" in info and bool(ranges), ranges, nodes)

    async def _adopt(self, table: _Table) -> bool:
        owners = {owner for _, _, owner in table.ranges}
        new = {owner: self._new_primary(owner) for owner in owners - self._primaries.keys()}
        for primary in new.values():
            primary.on_lost = self._mend
        try:
            errors = await asyncio.gather(*(primary.open() for primary in new.values()))
        except BaseException:
            await asyncio.gather(*(primary.close() for primary in new.values()))
            raise
        self._fault = next((error for error in errors if error is not None), self._fault)
        slots: list[Address | None] = [None] * SLOTS
        for first, last, owner in table.ranges:
            slots[first : last + 1] = [owner] * (last + 1 - first)
        gone = [self._primaries.pop(owner) for owner in self._primaries.keys() - owners]
        self._primaries |= new
        self._slots = slots
        self._nodes = list(dict.fromkeys([*table.nodes, *self._nodes]))[:NODES_MAX]
        self._learned_s = self._clock.monotonic_s()
        self.refreshes += 1
        for primary in gone:
            self._retire(primary)
        if not self.connected:
            self._mend()
        return True

    def _retire(self, primary: Primary) -> None:
        """Let go of a server without slots once what is under way there has ended."""
        self._waits_retired += primary.waits
        primary.on_lost = lambda: None
        task = asyncio.get_running_loop().create_task(primary.drain(_ASK_S_MAX))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _mend(self) -> None:
        if not self._closed and (self._mending is None or self._mending.done()):
            self._mending = asyncio.get_running_loop().create_task(self._until_connected())

    async def _until_connected(self) -> None:
        pause_s = LEARN_PAUSE_S_MIN
        while not self.connected:
            await self._learn_again()
            await self._clock.sleep(pause_s)
            pause_s = min(2 * pause_s, LEARN_PAUSE_S_MAX)


def _node(node: Sequence[Any], asked: Address) -> Address:
    """A server as CLUSTER SLOTS tells it; one that does not know its own address is the one that was asked."""
    host = (node[0] or b"").decode()
    return (host if host not in {"", "?"} else asked[0], int(node[1]))


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


async def _nothing(_: Connection) -> None:
    """A connection that only reads the slot table needs no functions."""
