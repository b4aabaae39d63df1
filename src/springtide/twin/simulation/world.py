"""The world of a simulation: the owner's nodes, the cloud's, replicas on them, lines and caches between, and faults."""

import math

from springtide.config.fields import to_ms
from springtide.model import Market as Channel
from springtide.model import Node, NodeState, ReplicaSpec, ZoneKind
from springtide.ports import Chance
from springtide.twin.kernel import Kernel
from springtide.twin.market import Market
from springtide.twin.simulation.cloud import market_settings
from springtide.twin.simulation.delivery import Delivery
from springtide.twin.simulation.faults import Fault, FaultKind
from springtide.twin.simulation.flow import Capacity
from springtide.twin.simulation.lines import Lines
from springtide.twin.simulation.replicas import Replicas
from springtide.twin.simulation.scenario import Scenario, SimZone

EJECT_MS = 2_000
"""How long a balancer sends to replicas that do not answer, until its checks have failed often enough."""


class World:
    """All that a fleet looks at and acts on, on a kernel's clock."""

    def __init__(self, kernel: Kernel, scenario: Scenario, chance: Chance) -> None:
        """The owner's nodes stand, nothing runs, nothing is rented. `chance` is the cloud's."""
        self.kernel = kernel
        self.scenario = scenario
        self.zones = {zone.name: zone for zone in scenario.zones}
        self.market = Market(kernel, chance, market_settings(scenario))
        self.market.on_change = self._nodes_changed
        self.lines = Lines(scenario.lines, scenario.zones)
        self.delivery = Delivery(kernel, scenario, self.lines)
        service = scenario.service
        self.replicas = Replicas(kernel, service.replica_cores, to_ms(service.start_s), self.delivery.pull)
        self.shards_down = 0
        self._own = tuple(
            _own_node(zone, number, kernel.now_ms)
            for zone in scenario.zones
            if zone.kind is ZoneKind.IDC
            for number in range(zone.nodes)
        )
        self._nodes: tuple[Node, ...] | None = None
        self._own_by_id = {node.node_id: node for node in self._own}
        self._rented: dict[str, str] = {}
        self._gone_count = 0
        self._gone_later: dict[str, list[str]] = {}
        self._lost_ms: dict[str, int] = {}
        self._faults: list[Fault] = []
        self._version = 0
        self._per_replica = service.replica_cores / service.cpu_s

    @property
    def version(self) -> int:
        """Grows with every change of nodes, replicas, lists, or who reaches whom."""
        return self._version + self.replicas.version

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The owner's and the rented ones; the same object until something changes."""
        if self._nodes is None:
            self._nodes = (*self._own, *self.market.nodes())
        return self._nodes

    def is_reached(self, zone: str) -> bool:
        """Whether the zone's runtime and replicas answer."""
        return zone not in self._lost_ms

    def silent_ms(self) -> dict[str, int]:
        """For how long each zone has not answered that does not."""
        return {zone: self.kernel.now_ms - since_ms for zone, since_ms in self._lost_ms.items()}

    def healthy(self) -> frozenset[str]:
        """What the balancer finds healthy: it takes EJECT_MS to see that a zone does not answer."""
        ejected = {zone for zone, ms in self.silent_ms().items() if ms >= EJECT_MS}
        if not ejected:
            return self.replicas.answering
        return frozenset(r.replica_id for r in self.replicas.all if r.zone not in ejected) & self.replicas.answering

    def line_load(self) -> dict[str, float]:
        """The share of each line that is taken; one that has failed is not named."""
        return {line: load for line, load in self.lines.load.items() if self.lines.is_up(line)}

    def start(self, spec: ReplicaSpec) -> None:
        """Start a replica; nothing happens where nobody answers, or the node has gone meanwhile."""
        node = self._own_by_id.get(spec.node_id) or self.market.live.get(spec.node_id)
        if node is not None and self.is_reached(spec.zone):
            self.replicas.start(spec, node)

    def shares(self) -> dict[str, float]:
        """The share of the requests that each zone gets now."""
        silent = self.silent_ms()
        weights = {
            zone: weight
            for zone, weight in self.replicas.serving.by_zone.items()
            if zone not in silent or silent[zone] < EJECT_MS
        }
        whole = sum(weights.values())
        return {zone: weight / whole for zone, weight in weights.items()} if whole else {}

    def capacity(self) -> Capacity:
        """What can be answered now: replicas that are reached, as far as the lines carry it."""
        weights = {zone: weight for zone, weight in self.replicas.serving.by_zone.items() if self.is_reached(zone)}
        per_zone = self.lines.carried({zone: weight * self._per_replica for zone, weight in weights.items()})
        per_s, replicas = sum(per_zone.values()), sum(weights.values())
        far_ms = sum(of_zone * self.lines.round_trip_ms(zone) for zone, of_zone in per_zone.items())
        shards = max(0, self.scenario.path.shards - self.shards_down)
        return Capacity(per_s, shards, 1.0 + (far_ms / per_s if per_s else 0.0), round(replicas))

    def failing_share(self) -> float:
        """The share of the requests that goes where nobody answers."""
        return sum(share for zone, share in self.shares().items() if not self.is_reached(zone))

    def strike(self, fault: Fault) -> None:
        """Let a fault happen now, and end when it is over. What is about demand is in the demand already."""
        until_ms = self.kernel.now_ms + to_ms(fault.lasts_s)
        market = self.market
        self._faults.append(fault)
        self._settle()  # first of all: what is in a lost zone is not heard of any more
        match fault.kind:
            case FaultKind.ZONE_LOST if self.zones[fault.target].kind is ZoneKind.CLOUD:
                market.lose_zone(fault.target, until_ms)
            case FaultKind.STOCK_OUT:
                market.set_stock(fault.target, round(fault.amount))
            case FaultKind.API_THROTTLED:
                market.throttle(fault.target, until_ms)
            case FaultKind.SLOW_BOOTS:
                market.slow_boots(max(1.0, fault.amount), until_ms)
            case FaultKind.SPOT_RECLAIM:
                market.reclaim(min(1.0, fault.amount), fault.target)
            case _:
                pass
        self.kernel.at(until_ms, lambda: self._heal(fault))

    def _heal(self, fault: Fault) -> None:
        self._faults.remove(fault)
        if fault.kind is FaultKind.STOCK_OUT:
            self.market.set_stock(fault.target, None)
            for other in self._faults:
                if other.kind is FaultKind.STOCK_OUT:
                    self.market.set_stock(other.target, round(other.amount))
        self._settle()

    def _settle(self) -> None:
        """Make lines, caches, shards and zones be what the faults of this moment leave of them."""
        left = dict.fromkeys((line.name for line in self.scenario.lines), 1.0)
        for fault in self._faults:
            if fault.kind is FaultKind.LINE_CUT:
                left[fault.target] = 0.0
            elif fault.kind is FaultKind.LINE_SLOW:
                left[fault.target] *= min(1.0, fault.amount)
        for line, share in left.items():
            self.lines.narrow(line, share)
        gone = {fault.target for fault in self._faults if fault.kind is FaultKind.REGISTRY_GONE}
        lost = {fault.target for fault in self._faults if fault.kind is FaultKind.ZONE_LOST}
        failing = sum(fault.amount for fault in self._faults if fault.kind is FaultKind.VALKEY_FAILOVER)
        self.shards_down = min(self.scenario.path.shards, math.ceil(failing))
        for zone in self.zones:
            self.delivery.set_gone(zone, gone=bool(gone & {zone, ""}) or zone in lost)
            if zone in lost or not self.lines.reaches(zone):
                self._lost_ms.setdefault(zone, self.kernel.now_ms)
            elif self._lost_ms.pop(zone, None) is not None:
                self.replicas.lose_nodes(self._gone_later.pop(zone, ()))
        self._version += 1

    def _nodes_changed(self) -> None:
        """Nodes came, became ready, or went; what ran on those is known to be gone where the runtime answers."""
        self._nodes = None
        self._version += 1
        live = self.market.live
        gone_count = self.market.created - len(live)
        if gone_count > self._gone_count:
            gone = [node_id for node_id in self._rented if node_id not in live]
            for node_id in gone:
                zone = self._rented[node_id]
                if zone in self._lost_ms:
                    self._gone_later.setdefault(zone, []).append(node_id)
            self.replicas.lose_nodes([node_id for node_id in gone if self._rented[node_id] not in self._lost_ms])
        if gone_count > self._gone_count or len(live) != len(self._rented):
            self._rented = {node_id: node.zone for node_id, node in live.items()}
        self._gone_count = gone_count


def _own_node(zone: SimZone, number: int, since_ms: int) -> Node:
    return Node(
        node_id=f"{zone.name}-n{number}",
        zone=zone.name,
        state=NodeState.READY,
        cores=zone.cores_per_node,
        client_token="",
        since_ms=since_ms,
        memory_mb=zone.memory_gib_per_node * 1024,
        market=Channel.IDC,
    )
