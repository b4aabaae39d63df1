"""The cloud port without a cloud: nodes on paper that take time to boot, have a quota, cost money and end in time.

Everything else about them is this machine. Each zone has the one machine that it is configured with. The state is one
JSON file, so a restarted loop still sees what it rented.
"""

import math
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from springtide.errors import CloudError, CloudOutOfStock, CloudQuotaExceeded, CloudRefused
from springtide.model import Market, Node, NodeOrder, NodeState, Offer, Quota, Zone, ZoneKind
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
    release_at_ms: int = 0


class _Purchase(msgspec.Struct, frozen=True):
    """`order` is None in files from before orders were kept whole: such a token is taken at its word."""

    node_ids: tuple[str, ...]
    order: NodeOrder | None = None


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

    async def rent(self, order: NodeOrder) -> list[Node]:
        """Rent up to `order.count` nodes; the quota may leave fewer. The same order again returns the same.

        Those released since are not among them. Raises CloudQuotaExceeded when not one is left, CloudOutOfStock when
        there are fewer than `order.count_min`, CloudRefused for a zone or type that is not ours, or a token that was
        used for another order.
        """
        self._settle()
        done = self._state.purchases.get(order.client_token)
        if done is None:
            done = self._buy(order)
        elif done.order not in {order, None}:
            raise CloudRefused(f"token {order.client_token} is of another purchase; take a new one")
        rented = self._state.nodes
        return [self._node(rented[node_id]) for node_id in done.node_ids if node_id in rented]

    async def nodes(self) -> list[Node]:
        """All rented nodes that still cost money, oldest first."""
        self._settle()
        return [self._node(rented) for rented in self._state.nodes.values()]

    async def release(self, node_ids: Sequence[str]) -> None:
        """Give nodes back; their cost ends at once. Unknown ids are ignored."""
        self._settle()
        self._end(set(node_ids) & self._state.nodes.keys())

    async def keep_until(self, node_ids: Sequence[str], release_at_ms: int) -> None:
        """Move the moment at which nodes end by themselves; 0: never. Raises CloudRefused for one that is past."""
        self._settle()
        self._check_future(release_at_ms)
        moved = {
            name: msgspec.structs.replace(self._state.nodes[name], release_at_ms=release_at_ms)
            for name in node_ids
            if name in self._state.nodes
        }
        if moved:
            self._become(msgspec.structs.replace(self._state, nodes={**self._state.nodes, **moved}))

    async def offers(self) -> list[Offer]:
        """None: each zone has its one machine."""
        return []

    async def quotas(self) -> list[Quota]:
        """None beside the size of each zone."""
        return []

    async def cost_fen(self, now_ms: int) -> float:
        """What has been spent on nodes until now."""
        return self._state.released_cost_fen + sum(_cost_fen(node, now_ms) for node in self._state.nodes.values())

    async def close(self) -> None:
        """Nothing is open."""

    def _settle(self) -> None:
        """Let the nodes go whose time is over, at the price of the moment they went."""
        now_ms = self._clock.now_ms()
        self._end([name for name, node in self._state.nodes.items() if 0 < node.release_at_ms <= now_ms])

    def _end(self, names: Collection[str]) -> None:
        if not names:
            return
        now_ms = self._clock.now_ms()
        cost_fen = sum(_cost_fen(self._state.nodes[name], now_ms) for name in names)
        self._become(
            msgspec.structs.replace(
                self._state,
                nodes={name: node for name, node in self._state.nodes.items() if name not in names},
                released_cost_fen=self._state.released_cost_fen + cost_fen,
            )
        )

    def _check_future(self, release_at_ms: int) -> None:
        if 0 < release_at_ms <= self._clock.now_ms():
            raise CloudRefused(f"a release at {release_at_ms} ms is in the past; name a later moment, or 0 for never")

    def _zone_of(self, order: NodeOrder) -> Zone:
        """The zone, when the order can be carried out in it. Raises CloudRefused."""
        zone = self._zones.get(order.zone)
        if zone is None:
            has = ", ".join(sorted(self._zones)) or "none"
            raise CloudRefused(f"this cloud has no zone {order.zone}; it has {has}")
        if order.instance_type or order.market is not Market.ON_DEMAND:
            raise CloudRefused(f"there is no {order.offer_key} here; order the one machine of the zone, without a type")
        if not 1 <= order.count_min <= order.count:
            raise CloudRefused(f"{order.count_min} to {order.count} nodes cannot be rented; ask for at least one")
        self._check_future(order.release_at_ms)
        return zone

    def _buy(self, order: NodeOrder) -> _Purchase:
        zone = self._zone_of(order)
        state, now_ms = self._state, self._clock.now_ms()
        room = zone.nodes_max - sum(node.zone == zone.name for node in state.nodes.values())
        given = min(order.count, room)
        if given < 1:
            raise CloudQuotaExceeded(
                f"zone {zone.name} has all its {zone.nodes_max} nodes rented; raise nodes_max or ask another"
            )
        if given < order.count_min:
            raise CloudOutOfStock(f"zone {zone.name} has only {given} nodes left; ask for less, or ask another zone")
        fresh = {
            f"{zone.name}-{number}": _Rented(
                node_id=f"{zone.name}-{number}",
                zone=zone.name,
                cores=zone.cores_per_node,
                client_token=order.client_token,
                rented_ms=now_ms,
                ready_ms=now_ms + self._boot_ms(zone),
                price_fen_per_h=zone.price_fen_per_node_h,
                release_at_ms=order.release_at_ms,
            )
            for number in range(state.rented_total + 1, state.rented_total + given + 1)
        }
        purchase = _Purchase(tuple(fresh), order)
        self._become(
            _State(
                rented_total=state.rented_total + given,
                released_cost_fen=state.released_cost_fen,
                nodes={**state.nodes, **fresh},
                purchases={**_remembered(state), order.client_token: purchase},
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
            price_fen_per_h=rented.price_fen_per_h,
            rented_ms=rented.rented_ms,
            release_at_ms=rented.release_at_ms,
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
    until_ms = min(now_ms, rented.release_at_ms) if rented.release_at_ms else now_ms
    seconds = math.ceil(max(0, until_ms - rented.rented_ms) / 1000)
    return seconds * rented.price_fen_per_h / _S_PER_H
