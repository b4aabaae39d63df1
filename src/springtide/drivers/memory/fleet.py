"""The fleet's ports in memory: a balancer, a runtime and a cloud that live on a clock and fail on demand."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from springtide.errors import (
    BalancerError,
    CloudError,
    CloudOutOfStock,
    CloudQuotaExceeded,
    CloudRefused,
    CloudUnavailable,
    ReplicaError,
)
from springtide.model import (
    COUNTER,
    Endpoint,
    Market,
    Node,
    NodeOrder,
    NodeState,
    Offer,
    Quota,
    Replica,
    ReplicaSpec,
    ReplicaState,
    ServiceSpec,
    StockLevel,
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
    """`ports.Cloud`: nodes boot for their zone's or offer's time, cost by the millisecond, and end when they are due.

    Without offers each zone has the one machine that it is configured with; with them that one may be had beside.
    """

    def __init__(
        self, clock: Clock, zones: Sequence[Zone], offers: Sequence[Offer] = (), quotas: Sequence[Quota] = ()
    ) -> None:
        """Rent nothing yet. `zones` may name IDC zones too; they are not for rent.

        An offer's `stock` is how many machines there really are (None: any number); what `offers` says has only its
        level. Of quotas the limits count.
        """
        self._clock = clock
        self._zones = {zone.name: zone for zone in zones if zone.kind is ZoneKind.CLOUD}
        self._offers = {offer.key: offer for offer in offers}
        self._quotas = tuple(quotas)
        self._nodes: dict[str, Node] = {}
        self._ready_ms: dict[str, int] = {}
        self._purchases: dict[str, tuple[NodeOrder, tuple[str, ...]]] = {}
        self._spent_fen = 0.0
        self.rented_total = 0
        self.failing = False
        """Set it to make every call fail."""
        self.latency_s = 0.0
        """How long the cloud thinks about a purchase."""
        self.stock: dict[str, int] = {offer.key: offer.stock for offer in offers if offer.stock is not None}
        """Nodes that a zone (by name) or an offer (by key) can still deliver; what is not named has any number."""

    async def rent(self, order: NodeOrder) -> list[Node]:
        """Rent up to `order.count` nodes; the same order again returns what is left of the first call."""
        if self.latency_s:
            await self._clock.sleep(self.latency_s)
        self._answer()
        if order.client_token not in self._purchases:
            self._purchases[order.client_token] = order, self._buy(order)
        known, bought = self._purchases[order.client_token]
        if known != order:
            raise CloudRefused(f"token {order.client_token} is of another purchase; take a new one")
        return [self._now(self._nodes[name]) for name in bought if name in self._nodes]

    async def nodes(self) -> list[Node]:
        """All rented nodes."""
        self._answer()
        return [self._now(node) for node in self._nodes.values()]

    async def release(self, node_ids: Sequence[str]) -> None:
        """Give nodes back; unknown ids are ignored."""
        self._answer()
        self.lose(node_ids)

    async def keep_until(self, node_ids: Sequence[str], release_at_ms: int) -> None:
        """Move the moment at which nodes end by themselves; unknown ids are ignored."""
        self._answer()
        self._check_future(release_at_ms)
        for node in [self._nodes[name] for name in node_ids if name in self._nodes]:
            self._nodes[node.node_id] = msgspec.structs.replace(node, release_at_ms=release_at_ms)

    async def offers(self) -> list[Offer]:
        """What there is, without its number."""
        self._answer()
        gone = {"level": StockLevel.NONE}
        return [
            msgspec.structs.replace(offer, stock=None, **({} if self.stock.get(key, 1) else gone))
            for key, offer in self._offers.items()
        ]

    async def quotas(self) -> list[Quota]:
        """The limits, and what is used of them."""
        self._answer()
        return [msgspec.structs.replace(quota, used_cores=self._used(quota)) for quota in self._quotas]

    async def cost_fen(self, now_ms: int) -> float:
        """What has been spent until now."""
        self._settle()
        return self._spent_fen + sum(_cost_fen(node, now_ms) for node in self._nodes.values())

    async def close(self) -> None:
        """Nothing is open."""

    def lose(self, node_ids: Iterable[str]) -> None:
        """Take nodes away, as a cloud that breaks or reclaims them; unknown ids are ignored."""
        for node in [self._nodes.pop(name) for name in node_ids if name in self._nodes]:
            self._ready_ms.pop(node.node_id)
            self._spent_fen += _cost_fen(node, self._clock.now_ms())

    def announce_reclaim(self, node_ids: Iterable[str], reclaim_ms: int) -> None:
        """Say of spot nodes that they will be taken away at this moment; `lose` takes them. Unknown ids are ignored."""
        for node in [self._nodes[name] for name in node_ids if name in self._nodes]:
            self._nodes[node.node_id] = msgspec.structs.replace(node, reclaim_ms=reclaim_ms)

    def _settle(self) -> None:
        now_ms = self._clock.now_ms()
        self.lose([name for name, node in self._nodes.items() if 0 < node.release_at_ms <= now_ms])

    def _check_future(self, release_at_ms: int) -> None:
        if 0 < release_at_ms <= self._clock.now_ms():
            raise CloudRefused(f"a release at {release_at_ms} ms is in the past; name a later moment, or 0 for never")

    def _used(self, quota: Quota) -> int:
        return sum(n.cores for n in self._nodes.values() if n.market is quota.market and quota.zone in {"", n.zone})

    def _offer_of(self, order: NodeOrder) -> Offer:
        """What is ordered, when it can be had at all. Raises CloudRefused."""
        zone = self._zones.get(order.zone)
        if zone is None:
            raise CloudRefused(f"this cloud has no zone {order.zone}; it has {', '.join(sorted(self._zones))}")
        if not 1 <= order.count_min <= order.count:
            raise CloudRefused(f"{order.count_min} to {order.count} nodes cannot be rented; ask for at least one")
        self._check_future(order.release_at_ms)
        if not order.instance_type and order.market is Market.ON_DEMAND:
            return _configured(zone)
        if order.offer_key not in self._offers:
            raise CloudRefused(f"{order.offer_key} is not for rent here; take one of the offers")
        return self._offers[order.offer_key]

    def _room(self, offer: Offer, count: int) -> int:
        """How many of this many nodes quotas leave. Raises CloudQuotaExceeded when it is none."""
        nodes_max = self._zones[offer.zone].nodes_max
        room = min(count, nodes_max - sum(node.zone == offer.zone for node in self._nodes.values()))
        for quota in self._quotas:
            if quota.market is offer.market and quota.zone in {"", offer.zone}:
                room = min(room, (quota.limit_cores - self._used(quota)) // offer.cores)
        if room < 1:
            raise CloudQuotaExceeded(f"zone {offer.zone} has all nodes rented that quotas allow; ask for less")
        return room

    def _buy(self, order: NodeOrder) -> tuple[str, ...]:
        offer = self._offer_of(order)
        if len(self._purchases) >= TOKENS_MAX:
            raise CloudError(f"{TOKENS_MAX} purchases are remembered; begin a new cloud")
        given = self._room(offer, order.count)
        stocks = [name for name in (order.zone, order.offer_key) if name in self.stock]
        given = min([given, *(self.stock[name] for name in stocks)])
        if given < order.count_min:
            raise CloudOutOfStock(f"zone {order.zone} has {given or 'no'} left of these; ask another zone or type")
        for name in stocks:
            self.stock[name] -= given
        return tuple(self._boot(offer, order).node_id for _ in range(given))

    def _boot(self, offer: Offer, order: NodeOrder) -> Node:
        self.rented_total += 1
        now_ms = self._clock.now_ms()
        node = Node(
            node_id=f"{order.zone}-{self.rented_total}",
            zone=order.zone,
            state=NodeState.BOOTING,
            cores=offer.cores,
            client_token=order.client_token,
            since_ms=now_ms,
            memory_mb=offer.memory_mb,
            instance_type=offer.instance_type,
            market=offer.market,
            price_fen_per_h=offer.price_fen_per_h,
            rented_ms=now_ms,
            release_at_ms=order.release_at_ms,
        )
        self._nodes[node.node_id] = node
        self._ready_ms[node.node_id] = now_ms + offer.boot_ms[0]
        return node

    def _now(self, node: Node) -> Node:
        """The stored node is booting; what others see has its state of the moment."""
        ready_ms = self._ready_ms[node.node_id]
        if self._clock.now_ms() < ready_ms:
            return node
        return msgspec.structs.replace(node, state=NodeState.READY, since_ms=ready_ms)

    def _answer(self) -> None:
        self._settle()
        if self.failing:
            raise CloudUnavailable("the cloud does not answer; repeat with the same token")


def _configured(zone: Zone) -> Offer:
    """The one machine that a zone is configured with."""
    return Offer(
        zone=zone.name,
        instance_type="",
        market=Market.ON_DEMAND,
        cores=zone.cores_per_node,
        memory_mb=zone.memory_mb_per_node,
        price_fen_per_h=zone.price_fen_per_node_h,
        boot_ms=(zone.lead_ms, zone.lead_ms),
    )


def _cost_fen(node: Node, now_ms: int) -> float:
    until_ms = min(now_ms, node.release_at_ms) if node.release_at_ms else now_ms
    return node.price_fen_per_h * max(0, until_ms - node.rented_ms) / _MS_PER_H
