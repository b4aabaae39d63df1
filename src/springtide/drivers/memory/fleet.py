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
    COUNTER,
    Endpoint,
    Node,
    NodeState,
    Replica,
    ReplicaSpec,
    ReplicaState,
    ServiceSpec,
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

REVISIONS_MAX = 10_000
"""Revisions of services that one runtime knows."""

QUEUE_S_MAX = 10.0
"""What waits for longer than this at a balancer whose replicas have a limit fails instead."""

_PORT_FIRST = 1_024
_PORTS = 64_000
_MS_PER_H = 3_600_000


class MemoryRuntime:
    """`ports.Runtime`: a replica is ready `start_s` after its start; none runs anything.

    Each uses `cpu_share` of a core from its start on. The counter without a revision needs no definition.
    """

    def __init__(self, clock: Clock, start_s: float, cpu_share: float = 0.0, host: str = "127.0.0.1") -> None:
        """Hold no replica yet. Two runtimes behind one balancer need different hosts: both give the same ports."""
        self._clock = clock
        self._start_ms = round(start_s * 1000)
        self._cpu_share = cpu_share
        self._host = host
        self._replicas: dict[str, Replica] = {}
        self._begun_ms: dict[str, int] = {}
        self._ports_given = 0
        self.defined: dict[tuple[str, str], ServiceSpec] = {}
        """What was defined, by service and revision; it is lost where a runtime's process ends."""
        self.broken_revisions: set[tuple[str, str]] = set()
        """Replicas of these (service, revision) fail when they should become ready."""
        self.failing = False
        """Set it to make every call fail."""

    async def define(self, service: ServiceSpec) -> None:
        """Make a revision known."""
        self._answer()
        if len(self.defined) >= REVISIONS_MAX:
            raise ReplicaError(f"{REVISIONS_MAX} revisions are known already; begin a new runtime")
        self.defined.setdefault((service.name, service.revision), service)

    async def start(self, spec: ReplicaSpec) -> None:
        """Begin to start a replica; a second call with the same id does nothing."""
        self._answer()
        if spec.replica_id in self._replicas:
            return
        if len(self._replicas) >= REPLICAS_MAX:
            raise ReplicaError(f"{REPLICAS_MAX} replicas run already; stop some first")
        revision = spec.service, spec.revision
        if revision not in self.defined and revision != (COUNTER, ""):
            raise ReplicaError(f"revision {spec.revision!r} of {spec.service} is not known here; define it first")
        self._begun_ms[spec.replica_id] = self._clock.now_ms()
        self._replicas[spec.replica_id] = Replica(
            replica_id=spec.replica_id,
            zone=spec.zone,
            node_id=spec.node_id,
            state=ReplicaState.STARTING,
            host=self._host,
            port=0,
            since_ms=self._clock.now_ms(),
            service=spec.service,
            revision=spec.revision,
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
        self._begun_ms.pop(replica_id, None)

    def replicas(self) -> list[Replica]:
        """What `list` says when the runtime answers."""
        return [replica for name in tuple(self._replicas) if (replica := self._now(name))]

    async def logs(self, replica_id: str, lines: int) -> Sequence[str]:
        """One line that says how the replica is."""
        self._answer()
        replica = self._now(replica_id)
        return [f"{replica_id} is {replica.state}"][-lines:] if replica and lines > 0 else []

    async def close(self) -> None:
        """End them all."""
        self._replicas.clear()
        self._begun_ms.clear()

    def fail(self, replica_ids: Iterable[str], why: str = "it was made to fail") -> None:
        """Let these replicas die; unknown ids are ignored."""
        for replica in [found for name in replica_ids if (found := self._now(name))]:
            self._enter(
                msgspec.structs.replace(replica, failure=f"replica {replica.replica_id}: {why}"), ReplicaState.FAILED
            )

    def _answer(self) -> None:
        if self.failing:
            raise ReplicaError("the runtime does not answer; try again")

    def _now(self, replica_id: str) -> Replica | None:
        replica = self._replicas.get(replica_id)
        if replica is None or self._cpu_share == 0.0:
            return self._become_ready(replica)
        cpu_s = self._cpu_share * (self._clock.now_ms() - self._begun_ms[replica_id]) / 1000
        return self._become_ready(msgspec.structs.replace(replica, cpu_s=cpu_s))

    def _become_ready(self, replica: Replica | None) -> Replica | None:
        if replica is None or replica.state is not ReplicaState.STARTING:
            return replica
        ready_ms = replica.since_ms + self._start_ms
        if self._clock.now_ms() < ready_ms:
            return replica
        if (replica.service, replica.revision) in self.broken_revisions:
            self._enter(msgspec.structs.replace(replica, failure="it never became ready"), ReplicaState.FAILED)
            return self._replicas[replica.replica_id]
        port = _PORT_FIRST + self._ports_given % _PORTS
        self._ports_given += 1
        ready = msgspec.structs.replace(replica, state=ReplicaState.READY, since_ms=ready_ms, port=port)
        self._replicas[replica.replica_id] = ready
        return ready

    def _enter(self, replica: Replica, state: ReplicaState) -> None:
        entered = msgspec.structs.replace(replica, state=state, since_ms=self._clock.now_ms())
        self._replicas[replica.replica_id] = entered

    async def list(self) -> list[Replica]:
        """All replicas that were started and not stopped."""
        self._answer()
        return self.replicas()


class MemoryBalancer:
    """`ports.Balancer`: splits a demand over the endpoints that answer, by weight.

    With `replica_per_s`, what each replica can take, more than that waits, and fails after QUEUE_S_MAX.
    """

    def __init__(
        self,
        demand: Callable[[int], float],
        answers: Callable[[str], bool],
        replica_per_s: float | None = None,
        answer_ms: float = 10.0,
    ) -> None:
        """`demand` is requests/s at a moment in ms; `answers` tells whether a replica can be reached."""
        self._demand = demand
        self._answers = answers
        self._replica_per_s = replica_per_s
        self._answer_ms = answer_ms
        self._queued = 0.0
        self._sampled_ms: int | None = None
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
        serving = 0
        for endpoint in self.endpoints:
            answers = self._answers(endpoint.replica_id)
            weights[endpoint.zone] += endpoint.weight * answers
            healthy[endpoint.zone] += answers
            serving += answers and endpoint.weight > 0
        total = weights.total()
        served, failed = self._serve(demand, serving, now_ms)
        in_flight = round(served * self._answer_ms / 1000)
        zones = tuple(
            ZoneTraffic(
                zone=zone,
                requests_per_s=served * weights[zone] / total if total else 0.0,
                failed_per_s=0.0,
                in_flight=round(in_flight * weights[zone] / total) if total else 0,
                healthy=healthy[zone],
            )
            for zone in sorted(healthy)
        )
        waits_ms = 1000 * self._queued / served if served else 0.0
        return TrafficSample(
            at_ms=now_ms,
            requests_per_s=demand,
            zones=zones,
            failed_per_s=failed,
            queued=round(self._queued),
            in_flight=in_flight,
            p99_ms=self._answer_ms + waits_ms if served else None,
        )

    def _serve(self, demand: float, serving: int, now_ms: int) -> tuple[float, float]:
        """What is served and what fails, per second; what waits is kept for the next sample."""
        passed_s = (now_ms - self._sampled_ms) / 1000 if self._sampled_ms is not None else 0.0
        self._sampled_ms = now_ms
        if not serving:
            self._queued = 0.0
            return 0.0, demand
        if self._replica_per_s is None:
            return demand, 0.0
        capacity = serving * self._replica_per_s
        waiting = self._queued + (demand - capacity) * passed_s
        self._queued = min(max(0.0, waiting), capacity * QUEUE_S_MAX)
        served = capacity if self._queued else min(demand, capacity)
        return served, (waiting - self._queued) / passed_s if waiting > self._queued and passed_s else 0.0

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
            memory_mb=zone.memory_mb_per_node,
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
