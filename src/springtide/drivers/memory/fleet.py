"""The fleet's ports in memory: a balancer, a runtime and a cloud that live on a clock and fail on demand."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from springtide.errors import (
    BalancerError,
    CloudError,
    CloudOutOfStock,
    CloudQuotaExceeded,
    CloudUnavailable,
    ReplicaError,
)
from springtide.model import (
    Endpoint,
    Node,
    NodeState,
    Replica,
    ReplicaSpec,
    ReplicaState,
    TrafficSample,
    Zone,
    ZoneKind,
    ZoneTraffic,
)
from springtide.ports import Clock

REPLICAS_MAX = 50_000
"""What one runtime may hold."""

TOKENS_MAX = 100_000
"""Purchases that the cloud remembers."""

_PORT_FIRST = 1_024
_PORTS = 64_000
_MS_PER_H = 3_600_000


class MemoryRuntime:
    """`ports.Runtime`: a replica is ready `start_s` after its start; none runs anything."""

    def __init__(self, clock: Clock, start_s: float) -> None:
        """Hold no replica yet."""
        self._clock = clock
        self._start_ms = round(start_s * 1000)
        self._replicas: dict[str, Replica] = {}
        self._ports_given = 0
        self.failing = False
        """Set it to make every call fail."""

    async def start(self, spec: ReplicaSpec) -> None:
        """Begin to start a replica; a second call with the same id does nothing."""
        self._answer()
        if spec.replica_id in self._replicas:
            return
        if len(self._replicas) >= REPLICAS_MAX:
            raise ReplicaError(f"{REPLICAS_MAX} replicas run already; stop some first")
        self._replicas[spec.replica_id] = Replica(
            replica_id=spec.replica_id,
            zone=spec.zone,
            node_id=spec.node_id,
            state=ReplicaState.STARTING,
            host="127.0.0.1",
            port=0,
            since_ms=self._clock.now_ms(),
        )

    async def drain(self, replica_id: str) -> None:
        """Let the replica refuse to be ready."""
        self._answer()
        replica = self._now(replica_id)
        if replica and replica.state in {ReplicaState.STARTING, ReplicaState.READY}:
            self._enter(replica, ReplicaState.DRAINING)

    async def stop(self, replica_id: str) -> None:
        """End a replica."""
        self._answer()
        self._replicas.pop(replica_id, None)

    def replicas(self) -> list[Replica]:
        """What `list` says when the runtime answers."""
        return [replica for name in tuple(self._replicas) if (replica := self._now(name))]

    async def close(self) -> None:
        """End them all."""
        self._replicas.clear()

    def fail(self, replica_ids: Iterable[str]) -> None:
        """Let these replicas die; unknown ids are ignored."""
        for replica in [found for name in replica_ids if (found := self._now(name))]:
            self._enter(replica, ReplicaState.FAILED)

    def _answer(self) -> None:
        if self.failing:
            raise ReplicaError("the runtime does not answer; try again")

    def _now(self, replica_id: str) -> Replica | None:
        replica = self._replicas.get(replica_id)
        if replica is None or replica.state is not ReplicaState.STARTING:
            return replica
        ready_ms = replica.since_ms + self._start_ms
        if self._clock.now_ms() < ready_ms:
            return replica
        port = _PORT_FIRST + self._ports_given % _PORTS
        self._ports_given += 1
        ready = msgspec.structs.replace(replica, state=ReplicaState.READY, since_ms=ready_ms, port=port)
        self._replicas[replica_id] = ready
        return ready

    def _enter(self, replica: Replica, state: ReplicaState) -> None:
        entered = msgspec.structs.replace(replica, state=state, since_ms=self._clock.now_ms())
        self._replicas[replica.replica_id] = entered

    async def list(self) -> list[Replica]:
        """All replicas that were started and not stopped."""
        self._answer()
        return self.replicas()


class MemoryBalancer:
    """`ports.Balancer`: splits a demand over the endpoints that answer, by weight."""

    def __init__(self, demand: Callable[[int], float], answers: Callable[[str], bool]) -> None:
        """`demand` is requests/s at a moment in ms; `answers` tells whether a replica can be reached."""
        self._demand = demand
        self._answers = answers
        self.endpoints: tuple[Endpoint, ...] = ()
        self.failing = False
        """Set it to make every call fail."""

    async def set_endpoints(self, endpoints: Sequence[Endpoint]) -> None:
        """Send traffic to exactly these."""
        self._answer()
        if len({(e.host, e.port) for e in endpoints}) != len(endpoints):
            raise BalancerError("two endpoints have the same address; give each its own")
        self.endpoints = tuple(endpoints)

    async def sample(self, now_ms: int) -> TrafficSample:
        """The demand of the moment, by zone; all of it fails when nothing can take it."""
        self._answer()
        demand = self._demand(now_ms)
        weights: Counter[str] = Counter()
        healthy: Counter[str] = Counter()
        for endpoint in self.endpoints:
            answers = self._answers(endpoint.replica_id)
            weights[endpoint.zone] += endpoint.weight * answers
            healthy[endpoint.zone] += answers
        total = weights.total()
        zones = tuple(
            ZoneTraffic(
                zone=zone,
                requests_per_s=demand * weights[zone] / total if total else 0.0,
                failed_per_s=0.0,
                in_flight=0,
                healthy=healthy[zone],
            )
            for zone in sorted(healthy)
        )
        return TrafficSample(at_ms=now_ms, requests_per_s=demand, zones=zones)

    async def healthy(self) -> frozenset[str]:
        """The endpoints that answer."""
        self._answer()
        return frozenset(e.replica_id for e in self.endpoints if self._answers(e.replica_id))

    def _answer(self) -> None:
        if self.failing:
            raise BalancerError("the balancer does not answer; try again")


class MemoryCloud:
    """`ports.Cloud`: nodes boot for their zone's lead time and cost by the millisecond."""

    def __init__(self, clock: Clock, zones: Sequence[Zone]) -> None:
        """Rent nothing yet. `zones` may name IDC zones too; they are not for rent."""
        self._clock = clock
        self._zones = {zone.name: zone for zone in zones if zone.kind is ZoneKind.CLOUD}
        self._nodes: dict[str, Node] = {}
        self._purchases: dict[str, tuple[str, ...]] = {}
        self._spent_fen = 0.0
        self.rented_total = 0
        self.failing = False
        """Set it to make every call fail."""
        self.latency_s = 0.0
        """How long the cloud thinks about a purchase."""
        self.stock: dict[str, int] = {}
        """Nodes that a zone can still deliver; one that is not named has as many as its quota."""

    async def rent(self, zone: Zone, count: int, client_token: str) -> list[Node]:
        """Rent up to `count` nodes; the same token again returns what is left of the first call."""
        if self.latency_s:
            await self._clock.sleep(self.latency_s)
        self._answer()
        if client_token not in self._purchases:
            self._purchases[client_token] = self._buy(zone, count, client_token)
        bought = self._purchases[client_token]
        return [self._now(self._nodes[name]) for name in bought if name in self._nodes]

    async def nodes(self) -> list[Node]:
        """All rented nodes."""
        self._answer()
        return [self._now(node) for node in self._nodes.values()]

    async def release(self, node_id: str) -> None:
        """Give a node back; unknown ids are ignored."""
        self._answer()
        self.lose([node_id])

    async def cost_fen(self, now_ms: int) -> float:
        """What has been spent until now."""
        return self._spent_fen + sum(self._cost(node, now_ms) for node in self._nodes.values())

    def lose(self, node_ids: Iterable[str]) -> None:
        """Take nodes away, as a cloud that breaks or reclaims them; unknown ids are ignored."""
        for node in [self._nodes.pop(name) for name in node_ids if name in self._nodes]:
            self._spent_fen += self._cost(node, self._clock.now_ms())

    def _buy(self, zone: Zone, count: int, client_token: str) -> tuple[str, ...]:
        known = self._zones.get(zone.name)
        if known is None:
            raise CloudError(f"this cloud has no zone {zone.name}; it has {', '.join(sorted(self._zones))}")
        if len(self._purchases) >= TOKENS_MAX:
            raise CloudError(f"{TOKENS_MAX} purchases are remembered; begin a new cloud")
        room = known.nodes_max - sum(node.zone == zone.name for node in self._nodes.values())
        if room < 1:
            raise CloudQuotaExceeded(f"zone {zone.name} has all its {known.nodes_max} nodes rented; ask for less")
        stock = self.stock.get(zone.name, room)
        if stock < 1:
            raise CloudOutOfStock(f"zone {zone.name} has no node left; ask another zone")
        given = min(count, room, stock)
        if zone.name in self.stock:
            self.stock[zone.name] -= given
        fresh = [self._boot(known, client_token) for _ in range(given)]
        return tuple(node.node_id for node in fresh)

    def _boot(self, zone: Zone, client_token: str) -> Node:
        self.rented_total += 1
        node = Node(
            node_id=f"{zone.name}-{self.rented_total}",
            zone=zone.name,
            state=NodeState.BOOTING,
            cores=zone.cores_per_node,
            client_token=client_token,
            since_ms=self._clock.now_ms(),
        )
        self._nodes[node.node_id] = node
        return node

    def _now(self, node: Node) -> Node:
        """The stored node has the moment of its purchase; what others see has the moment of its state."""
        ready_ms = node.since_ms + self._zones[node.zone].lead_ms
        if self._clock.now_ms() < ready_ms:
            return node
        return msgspec.structs.replace(node, state=NodeState.READY, since_ms=ready_ms)

    def _cost(self, node: Node, now_ms: int) -> float:
        return self._zones[node.zone].price_fen_per_node_h * (now_ms - node.since_ms) / _MS_PER_H

    def _answer(self) -> None:
        if self.failing:
            raise CloudUnavailable("the cloud does not answer; repeat with the same token")
