"""What the servers of a Valkey Cluster say of themselves and of each other: who has which shard by the newest of it."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from springtide.drivers.valkey_wire import Connection, Wire, command
from springtide.errors import EngineError, InventoryError
from springtide.ports import Clock

ANSWER_S = 1.0
"""A server that does not say how it is in this time counts as silent."""

Address = tuple[str, int]

_HOW = (command("CLUSTER", "NODES"), command("INFO", "replication"), command("CONFIG", "GET", "primaryauth"))


class Known(NamedTuple):
    """A line of CLUSTER NODES: a server as one of them knows it. `primary` is empty for one that follows nobody."""

    node_id: str
    address: Address
    primary: str
    epoch: int
    slots: tuple[str, ...]


class Said(NamedTuple):
    """What a server said: its id, what it knows of all, how far its log reaches, and whether it hears its primary.

    `secret` is what it would show a primary that it connects to.
    """

    node_id: str
    known: tuple[Known, ...]
    log: int
    linked: bool
    secret: str

    @property
    def me(self) -> Known:
        """Its own line."""
        return next(one for one in self.known if one.node_id == self.node_id)


class Shard(NamedTuple):
    """Who serves some slots, and who follows him."""

    primary: Known
    replicas: tuple[Known, ...]


class Server:
    """One connection to one server, made again when it breaks."""

    def __init__(self, address: Address, clock: Clock) -> None:
        """Nothing is sent before `ask`."""
        self.address = address
        self._clock = clock
        self._wire: Wire | None = None

    async def said(self) -> Said | None:
        """None when it does not answer within ANSWER_S."""
        try:
            nodes, info, secret = await self._ask(_HOW)
        except InventoryError:
            return None
        return _read(self.address, nodes.decode(), info.decode(), secret[1].decode() if len(secret) > 1 else "")

    async def do(self, *words: str | int) -> None:
        """A command. Raises EngineError."""
        try:
            await self._ask((command(*words),))
        except InventoryError as error:
            host, port = self.address
            raise EngineError(f"Valkey at {host}:{port} does not do as told: {error}") from error

    async def close(self) -> None:
        """Let go."""
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()

    async def _ask(self, commands: Sequence[bytes]) -> list[Any]:
        try:
            if self._wire is None:
                wire = Wire(self.address, self._clock, ANSWER_S, _nothing)
                self._wire = wire
                await wire.open()
            return list(await asyncio.gather(*self._wire.send_all(commands)))
        except InventoryError:
            with suppress(InventoryError):
                await self.close()
            raise


def shards_of(answers: Iterable[Said]) -> list[Shard]:
    """The shards by the newest that anyone knows: of two who claim a slot, the one with the higher epoch has it."""
    newest: dict[str, Known] = {}
    for said in answers:
        for one in said.known:
            # What a server says of itself comes before what others say, at the same epoch.
            known = newest.get(one.node_id)
            if known is None or (one.epoch, one.node_id == said.node_id) > (known.epoch, False):
                newest[one.node_id] = one
    owners: dict[str, Known] = {}
    for one in sorted(newest.values(), key=lambda known: known.epoch):
        owners.update(dict.fromkeys(one.slots, one))
    primaries = {one.node_id: one for one in owners.values()}
    return [
        Shard(primary, tuple(one for one in newest.values() if one.primary == primary.node_id))
        for primary in primaries.values()
    ]


def logs_of(replicas: Iterable[Known], answers: Mapping[str, Said]) -> dict[str, int]:
    """How far the logs reach of those that answered and hear no primary."""
    return {
        one.node_id: answers[one.node_id].log
        for one in replicas
        if one.node_id in answers and not answers[one.node_id].linked
    }


def _read(address: Address, nodes: str, info: str, secret: str) -> Said | None:
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    me, known = "", []
    for line in nodes.splitlines():
        node_id, place, flags, primary, _, _, epoch, _, *slots = line.split()
        marks = set(flags.split(","))
        if "myself" in marks:
            me = node_id
        if "handshake" in marks or "noaddr" in marks:
            continue
        host, _, port = place.partition("@")[0].rpartition(":")
        known.append(
            Known(
                node_id,
                (host or address[0], int(port)),
                "" if primary == "-" else primary,
                int(epoch),
                tuple(slot for slot in slots if not slot.startswith("[")),
            )
        )
    if all(one.node_id != me for one in known):
        return None
    log = int(fields.get("slave_repl_offset") or fields.get("master_repl_offset") or 0)
    return Said(me, tuple(known), log, fields.get("master_link_status") == "up", secret)


async def _nothing(_: Connection) -> None:
    """These connections call no functions."""
