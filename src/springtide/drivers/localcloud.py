"""The cloud port without a cloud: nodes on paper, which take time to boot, have a quota and cost money.

Everything else about them is this machine. The state is one JSON file, so a restarted loop still sees what it
rented.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from springtide.errors import CloudError, CloudQuotaExceeded
from springtide.model import Node, NodeState, Zone, ZoneKind
from springtide.ports import Chance, Clock

BOOT_JITTER = 0.2
"""Boot times lie within this share of the zone's lead time, either way."""

TOKENS_MAX = 10_000
"""Purchases whose tokens are remembered; the oldest whose nodes are all released are forgotten first."""

_S_PER_H = 3600


class _Rented(msgspec.Struct, frozen=True):
    node_id: str
    zone: str
    cores: int
    client_token: str
    rented_ms: int
    ready_ms: int
    price_fen_per_h: int


class _Purchase(msgspec.Struct, frozen=True):
    zone: str
    count: int
    node_ids: tuple[str, ...]


class _State(msgspec.Struct):
    """The file. `rented_total` is also what makes node ids unique."""

    rented_total: int = 0
    released_cost_fen: float = 0.0
    nodes: dict[str, _Rented] = {}
    purchases: dict[str, _Purchase] = {}


class LocalCloud:
    """`ports.Cloud` on a JSON file. Each started second of a node costs 1/3600 of its zone's hourly price."""

    def __init__(self, path: Path, clock: Clock, chance: Chance, zones: Sequence[Zone]) -> None:
        """Read the state when there is one. Raises CloudError when it cannot be read."""
        self._path = path.absolute()
        self._clock = clock
        self._chance = chance
        self._zones = {zone.name: zone for zone in zones if zone.kind is ZoneKind.CLOUD}
        self._state = self._load()

    @property
    def rented_total(self) -> int:
        """Nodes rented so far, the released ones included."""
        return self._state.rented_total

    async def rent(self, zone: Zone, count: int, client_token: str) -> list[Node]:
        """Rent up to `count` nodes; the quota may leave fewer. The same token again returns the same.

        Those released since are not among them. Raises CloudQuotaExceeded when not one is left,
        CloudError for a zone that is not ours or a token that was used for another purchase.
        """
        done = self._state.purchases.get(client_token)
        if done:
            if (done.zone, done.count) != (zone.name, count):
                raise CloudError(f"token {client_token} is of another purchase; take a new one")
        else:
            done = self._buy(zone, count, client_token)
        rented = self._state.nodes
        return [self._node(rented[node_id]) for node_id in done.node_ids if node_id in rented]

    async def nodes(self) -> list[Node]:
        """All rented nodes that still cost money, oldest first."""
        return [self._node(rented) for rented in self._state.nodes.values()]

    async def release(self, node_id: str) -> None:
        """Give a node back; its cost ends at once. Unknown ids are ignored."""
        rented = self._state.nodes.get(node_id)
        if rented is None:
            return
        nodes = {name: other for name, other in self._state.nodes.items() if name != node_id}
        cost_fen = self._state.released_cost_fen + _cost_fen(rented, self._clock.now_ms())
        self._become(msgspec.structs.replace(self._state, nodes=nodes, released_cost_fen=cost_fen))

    async def cost_fen(self, now_ms: int) -> float:
        """What has been spent on nodes until now."""
        return self._state.released_cost_fen + sum(_cost_fen(node, now_ms) for node in self._state.nodes.values())

    def _buy(self, zone: Zone, count: int, client_token: str) -> _Purchase:
        known = self._zones.get(zone.name)
        if known is None:
            raise CloudError(f"this cloud has no zone {zone.name}; it has {', '.join(sorted(self._zones)) or 'none'}")
        if count < 1:
            raise CloudError(f"{count} nodes cannot be rented; ask for at least one")
        state, now_ms = self._state, self._clock.now_ms()
        held = sum(node.zone == zone.name for node in state.nodes.values())
        given = min(count, known.nodes_max - held)
        if given < 1:
            raise CloudQuotaExceeded(
                f"zone {zone.name} has all its {known.nodes_max} nodes rented; raise nodes_max or ask another"
            )
        fresh = {
            f"{zone.name}-{number}": _Rented(
                node_id=f"{zone.name}-{number}",
                zone=zone.name,
                cores=known.cores_per_node,
                client_token=client_token,
                rented_ms=now_ms,
                ready_ms=now_ms + self._boot_ms(known),
                price_fen_per_h=known.price_fen_per_node_h,
            )
            for number in range(state.rented_total + 1, state.rented_total + given + 1)
        }
        purchase = _Purchase(zone.name, count, tuple(fresh))
        self._become(
            _State(
                rented_total=state.rented_total + given,
                released_cost_fen=state.released_cost_fen,
                nodes={**state.nodes, **fresh},
                purchases={**_remembered(state), client_token: purchase},
            )
        )
        return purchase

    def _boot_ms(self, zone: Zone) -> int:
        return round(zone.lead_ms * self._chance.uniform(1 - BOOT_JITTER, 1 + BOOT_JITTER))

    def _node(self, rented: _Rented) -> Node:
        booting = self._clock.now_ms() < rented.ready_ms
        zone = self._zones.get(rented.zone)
        return Node(
            node_id=rented.node_id,
            zone=rented.zone,
            state=NodeState.BOOTING if booting else NodeState.READY,
            cores=rented.cores,
            client_token=rented.client_token,
            since_ms=rented.rented_ms if booting else rented.ready_ms,
            memory_mb=zone.memory_mb_per_node if zone else 0,
        )

    def _load(self) -> _State:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_State)
        except FileNotFoundError:
            return _State()
        except (OSError, msgspec.DecodeError) as error:
            raise CloudError(f"{self._path} cannot be read: {error}; move it away to begin without nodes") from error

    def _become(self, state: _State) -> None:
        """On disk first: what the file does not have was neither rented nor released."""
        fresh = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(msgspec.json.encode(state))
            fresh.replace(self._path)
        except OSError as error:
            raise CloudError(f"{self._path} cannot be written: {error.strerror}; make room or name another") from error
        self._state = state


def _remembered(state: _State) -> dict[str, _Purchase]:
    """The purchases without as many of the oldest as make room for one more."""
    excess = len(state.purchases) + 1 - TOKENS_MAX
    if excess <= 0:
        return state.purchases
    over = [token for token, done in state.purchases.items() if not any(name in state.nodes for name in done.node_ids)]
    gone = set(over[:excess])
    return {token: done for token, done in state.purchases.items() if token not in gone}


def _cost_fen(rented: _Rented, now_ms: int) -> float:
    seconds = math.ceil(max(0, now_ms - rented.rented_ms) / 1000)
    return seconds * rented.price_fen_per_h / _S_PER_H
