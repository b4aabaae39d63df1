"""The twin's world: nodes and replicas that take their time to come, as the decisions see them, and what is paid.

It takes the actions of a plan and checks what an engine would: a replica starts on a ready node with room for it, a
node that is given back is empty, a zone has no more nodes than it may. An action that breaks this is a defect of the
decision and raises WorldError. Rented nodes are paid for from their order to their release, whatever runs on them; in
the owner's zones each replica is paid for from its start to its end. A replica serves while it is ready and listed
with a weight; in a world that `lists_ready`, while it is ready.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from springtide.errors import SpringtideError
from springtide.model import (
    Action,
    DrainReplica,
    Endpoint,
    Node,
    NodeState,
    ReleaseNode,
    RentNodes,
    Replica,
    ReplicaSpec,
    ReplicaState,
    SetEndpoints,
    StartReplica,
    StopReplica,
    Zone,
    ZoneKind,
)
from springtide.twin.kernel import Kernel

_PORT_FIRST = 1_024
_PORTS = 64_000


class WorldError(SpringtideError):
    """A decision did what no engine would let it do: a defect of the decision, or of the twin."""


class Step(msgspec.Struct, frozen=True):
    """From `at_ms` on: the replicas that serve, and the replicas' worth of room that is paid for."""

    at_ms: int
    serving: int
    paid: int


class WorldSettings(msgspec.Struct, frozen=True):
    """What the world is made of: `start_ms` is from a replica's start until it can serve; each takes one core."""

    zones: tuple[Zone, ...]
    start_ms: int = 10_000
    lists_ready: bool = False


class World:
    """Nodes and replicas on a kernel's clock; the owner's nodes are there from the beginning."""

    def __init__(self, kernel: Kernel, settings: WorldSettings) -> None:
        """Nothing runs yet."""
        self.kernel = kernel
        self.settings = settings
        self.zones = {zone.name: zone for zone in settings.zones}
        self._nodes: dict[str, Node] = {}
        self._replicas: dict[str, Replica] = {}
        self._endpoints: tuple[Endpoint, ...] = ()
        self._weighted: frozenset[str] = frozenset()
        self.used: Counter[str] = Counter()
        self._made = 0
        self._idc_replicas = 0
        self._cloud_cores = 0
        self._serving = 0
        self.steps: list[Step] = []
        self._listed_nodes: tuple[Node, ...] | None = None
        self._listed_replicas: tuple[Replica, ...] | None = None
        self.on_node: Callable[[], None] = _nothing
        """Called after a node has become ready."""
        self.version = 0
        """Grows with every change of nodes, replicas and endpoints."""
        for zone in settings.zones:
            if zone.kind is ZoneKind.IDC:
                for _ in range(zone.nodes_max):
                    self._add_node(zone, "", NodeState.READY)
        self._changed()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes."""
        if self._listed_nodes is None:
            self._listed_nodes = tuple(self._nodes.values())
        return self._listed_nodes

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """All replicas that were started and not stopped."""
        if self._listed_replicas is None:
            self._listed_replicas = tuple(self._replicas.values())
        return self._listed_replicas

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The balancer's list."""
        return self._endpoints

    @property
    def serving(self) -> int:
        """Replicas that take traffic now."""
        return self._serving

    def apply(self, action: Action) -> None:
        """Do it, at this moment. Raises WorldError when no engine would."""
        match action:
            case RentNodes():
                self._rent(action)
            case ReleaseNode(node_id=node_id):
                self._release(node_id)
            case StartReplica(spec=spec):
                self._start(spec)
            case DrainReplica(replica_id=replica_id):
                self._enter(replica_id, ReplicaState.DRAINING)
            case StopReplica(replica_id=replica_id):
                self._stop(replica_id)
            case SetEndpoints(endpoints=endpoints):
                self._list(endpoints)
        self._changed()

    def check(self) -> None:
        """Recount what is kept by adding up. Raises WorldError where it differs."""
        used = Counter(replica.node_id for replica in self._replicas.values())
        idc = sum(self.zones[replica.zone].kind is ZoneKind.IDC for replica in self._replicas.values())
        cloud = sum(node.cores for node in self._nodes.values() if self.zones[node.zone].kind is ZoneKind.CLOUD)
        serving = sum(self._serves(replica) for replica in self._replicas.values())
        counted, kept = (idc, cloud, serving), (self._idc_replicas, self._cloud_cores, self._serving)
        if counted != kept or used != +self.used:
            raise WorldError(f"the twin has lost count: {counted} of {kept} (own, rented, serving)")

    def _rent(self, action: RentNodes) -> None:
        zone = self.zones[action.zone]
        there = sum(node.zone == zone.name for node in self._nodes.values())
        if zone.kind is not ZoneKind.CLOUD or there + action.count > zone.nodes_max:
            raise WorldError(f"{zone.name} has {there} of {zone.nodes_max} nodes: {action.count} more cannot be rented")
        for _ in range(action.count):
            node = self._add_node(zone, action.client_token, NodeState.BOOTING)
            self.kernel.at(self.kernel.now_ms + zone.lead_ms, lambda name=node.node_id: self._booted(name))  # type: ignore[misc] # a lambda's default

    def _add_node(self, zone: Zone, token: str, state: NodeState) -> Node:
        self._made += 1
        node = Node(f"{zone.name}-n{self._made}", zone.name, state, zone.cores_per_node, token, self.kernel.now_ms)
        self._nodes[node.node_id] = node
        self._cloud_cores += node.cores * (zone.kind is ZoneKind.CLOUD)
        return node

    def _booted(self, node_id: str) -> None:
        node = self._nodes.get(node_id)
        if node:
            self._nodes[node_id] = msgspec.structs.replace(node, state=NodeState.READY, since_ms=self.kernel.now_ms)
            self._changed()
            self.on_node()

    def _release(self, node_id: str) -> None:
        node = self._nodes.get(node_id)
        if node is None or self.used[node_id] or self.zones[node.zone].kind is not ZoneKind.CLOUD:
            raise WorldError(f"{node_id} cannot be given back: it runs {self.used[node_id]} replicas or is not rented")
        del self._nodes[node_id]
        self._cloud_cores -= node.cores

    def _start(self, spec: ReplicaSpec) -> None:
        node = self._nodes.get(spec.node_id)
        if node is None or node.state is not NodeState.READY or self.used[spec.node_id] >= node.cores:
            raise WorldError(f"{spec.replica_id} cannot start on {spec.node_id}: it is not ready, or full")
        if spec.replica_id in self._replicas:
            raise WorldError(f"{spec.replica_id} runs already")
        now_ms = self.kernel.now_ms
        name = spec.replica_id
        self._replicas[name] = Replica(name, spec.zone, spec.node_id, ReplicaState.STARTING, "127.0.0.1", 0, now_ms)
        self.used[spec.node_id] += 1
        self._idc_replicas += self.zones[spec.zone].kind is ZoneKind.IDC
        self.kernel.at(now_ms + self.settings.start_ms, lambda: self._started(name))

    def _started(self, replica_id: str) -> None:
        replica = self._replicas.get(replica_id)
        if replica is None or replica.state is not ReplicaState.STARTING:
            return
        self._made += 1
        port = _PORT_FIRST + self._made % _PORTS
        self._replicas[replica_id] = msgspec.structs.replace(replica, port=port)
        self._enter(replica_id, ReplicaState.READY)
        self._changed()

    def _enter(self, replica_id: str, state: ReplicaState) -> None:
        replica = self._replicas.get(replica_id)
        if replica is None:
            raise WorldError(f"{replica_id} does not run")
        entered = msgspec.structs.replace(replica, state=state, since_ms=self.kernel.now_ms)
        self._serving += self._serves(entered) - self._serves(replica)
        self._replicas[replica_id] = entered

    def _stop(self, replica_id: str) -> None:
        replica = self._replicas.pop(replica_id, None)
        if replica is None:
            raise WorldError(f"{replica_id} does not run")
        self._serving -= self._serves(replica)
        self.used[replica.node_id] -= 1
        self._idc_replicas -= self.zones[replica.zone].kind is ZoneKind.IDC

    def _list(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = tuple(endpoints)
        self._weighted = frozenset(endpoint.replica_id for endpoint in endpoints if endpoint.weight)
        self._serving = sum(self._serves(replica) for replica in self._replicas.values())

    def _serves(self, replica: Replica) -> bool:
        listed = self.settings.lists_ready or replica.replica_id in self._weighted
        return listed and replica.state is ReplicaState.READY

    def _changed(self) -> None:
        self.version += 1
        self._listed_nodes = self._listed_replicas = None
        paid = self._idc_replicas + self._cloud_cores
        before = self.steps[-1] if self.steps else None
        if before is None or (before.serving, before.paid) != (self._serving, paid):
            self.steps.append(Step(self.kernel.now_ms, self._serving, paid))


def _nothing() -> None:
    pass
