"""Desired against observed → bounded, ordered actions, each with its reason.

Capacity is made before it is broken: what serves is taken away only while enough else serves. The order of
the actions is that of urgency: what takes longest to arrive is asked for first, what saves money comes last.
"""

from collections.abc import Collection, Iterable

from springtide.decide.observed import Observed
from springtide.decide.place import Placement, node_slots
from springtide.model import (
    Action,
    DrainReplica,
    FleetPolicy,
    Node,
    NodeState,
    ReleaseNode,
    RentNodes,
    Replica,
    ReplicaSpec,
    ReplicaState,
    StartReplica,
    StopReplica,
    Zone,
    ZoneKind,
)

_ID_LETTERS_MAX = 64  # model.IDENTIFIER


class Reconciler:
    """One comparison of a placement with what is there; `compute` gives the actions."""

    def __init__(
        self,
        observed: Observed,
        policy: FleetPolicy,
        placement: Placement,
        down: Collection[str] = (),
        *,
        hold: bool = False,
    ) -> None:
        """`hold` forbids taking capacity away; so does a zone's being in `down`, for that zone."""
        self._observed = observed
        self._snapshot = observed.snapshot
        self._policy = policy
        self._placement = placement
        self._down = down
        self._hold = hold
        self._slots = {zone.name: node_slots(zone.cores_per_node, policy) for zone in self._snapshot.zones}
        self._nodes: dict[str, list[Node]] = {zone.name: [] for zone in self._snapshot.zones}
        for node in self._snapshot.nodes:
            if node.zone in self._nodes and observed.node_state(node) is not NodeState.RELEASING:
                self._nodes[node.zone].append(node)

    def compute(self) -> tuple[Action, ...]:
        """At most `actions_max` actions; the rest is found again at the next tick."""
        if self._observed.is_stale("replicas"):
            return ()
        actions: list[Action] = [*self._rents(), *self._stops(ReplicaState.FAILED)]
        starts = self._starts()
        actions += starts
        actions += self._stops(ReplicaState.DRAINING)
        if not self._hold:
            actions += self._drains()
            actions += self._releases({start.spec.node_id for start in starts})
        return tuple(actions[: self._policy.actions_max])

    def _rents(self) -> Iterable[RentNodes]:
        if self._observed.is_stale("nodes"):
            return
        for zone in self._cloud():
            needed = self._nodes_needed(zone)
            coming = self._observed.renting[zone.name]
            have = len(self._nodes[zone.name]) + coming
            leaving = sum(node.zone == zone.name for node in self._snapshot.nodes) - len(self._nodes[zone.name])
            count = min(needed, zone.nodes_max - leaving) - have
            if count > 0:
                token = f"{self._snapshot.run}-{self._snapshot.tick}-{zone.name}"
                wanted = self._placement.by_zone[zone.name]
                reason = f"{wanted} replicas wanted in {zone.name} need {needed} nodes, {have} are there or coming"
                yield RentNodes(zone.name, count, token, reason)

    def _stops(self, state: ReplicaState) -> Iterable[StopReplica]:
        drained_before = self._snapshot.now_ms - self._policy.drain_ms
        for replica in self._observed.by_state[state]:
            if replica.replica_id in self._observed.stopping:
                continue
            if state is ReplicaState.FAILED:
                yield StopReplica(replica.replica_id, replica.zone, self._failure(replica))
            elif replica.state is state and replica.since_ms <= drained_before:
                reason = f"drained for {self._policy.drain_ms / 1000:g} s"
                yield StopReplica(replica.replica_id, replica.zone, reason)

    def _failure(self, replica: Replica) -> str:
        if replica.state is ReplicaState.FAILED:
            return "failed"
        return f"still starting after {(self._snapshot.now_ms - replica.since_ms) / 1000:g} s"

    def _starts(self) -> list[StartReplica]:
        starts: list[StartReplica] = []
        room = min(self._policy.starting_max - self._observed.starting, self._policy.actions_max)
        taken = self._observed.occupied.copy()
        for zone in sorted(self._snapshot.zones, key=lambda zone: zone.kind is ZoneKind.CLOUD):
            missing = self._placement.by_zone[zone.name] - self._observed.live_by_zone[zone.name]
            for _ in range(min(missing, room - len(starts))):
                node = self._node_with_room(zone, taken)
                if node is None:
                    break
                taken[node.node_id] += 1
                spec = ReplicaSpec(self._replica_id(zone.name, len(starts)), zone.name, node.node_id)
                starts.append(StartReplica(spec, f"{zone.name} is {missing} replicas short"))
        return starts

    def _node_with_room(self, zone: Zone, taken: dict[str, int]) -> Node | None:
        """In the cloud the fullest node, so that whole nodes fall free later; in the IDC the emptiest."""
        open_nodes = [
            node
            for node in self._nodes[zone.name]
            if node.state is NodeState.READY and taken[node.node_id] < node_slots(node.cores, self._policy)
        ]
        sign = -1 if zone.kind is ZoneKind.CLOUD else 1
        return min(open_nodes, key=lambda n: (sign * taken[n.node_id], n.since_ms, n.node_id), default=None)

    def _replica_id(self, zone: str, number: int) -> str:
        suffix = f"-{self._snapshot.run}-{self._snapshot.tick}-{number}"
        return zone[: _ID_LETTERS_MAX - len(suffix)] + suffix

    def _drains(self) -> list[DrainReplica]:
        """Surplus replicas, as long as what is wanted serves without them."""
        observed = self._observed
        serving = sum(observed.serves(replica) for replica in observed.by_state[ReplicaState.READY])
        drains: list[DrainReplica] = []
        for replica, reason in self._surplus():
            if observed.serves(replica):
                if serving <= self._placement.total:
                    continue
                serving -= 1
            drains.append(DrainReplica(replica.replica_id, replica.zone, reason))
        return drains

    def _surplus(self) -> Iterable[tuple[Replica, str]]:
        """Who may go, in order: those whose node is gone, the cloud's (dearest zone first), the IDC's."""
        on_nodes: dict[str, list[Replica]] = {zone.name: [] for zone in self._snapshot.zones}
        for replica in self._observed.by_state[ReplicaState.READY]:
            if replica.zone in on_nodes and self._observed.has_node(replica.node_id):
                on_nodes[replica.zone].append(replica)
            else:
                yield replica, f"node {replica.node_id} is gone"
        for zone in [*reversed(self._cloud()), *self._idc()]:
            surplus = len(on_nodes[zone.name]) - self._placement.by_zone[zone.name]
            if surplus > 0 and zone.name not in self._down:
                reason = f"{surplus} more than the {self._placement.by_zone[zone.name]} wanted in {zone.name}"
                for replica in self._first_to_go(on_nodes[zone.name])[:surplus]:
                    yield replica, reason

    def _first_to_go(self, replicas: list[Replica]) -> list[Replica]:
        """The sick first, then from the emptiest and newest node, so that whole nodes fall free."""
        observed = self._observed

        def key(replica: Replica) -> tuple[bool, int, int, str, int, str]:
            node = observed.nodes.get(replica.node_id)
            node_since = node.since_ms if node else 0
            load = observed.occupied[replica.node_id]
            serves = observed.serves(replica)
            return serves, load, -node_since, replica.node_id, -replica.since_ms, replica.replica_id

        return sorted(replicas, key=key)

    def _releases(self, starting_on: Collection[str]) -> Iterable[ReleaseNode]:
        if self._observed.is_stale("nodes"):
            return
        for zone in self._cloud():
            if zone.name in self._down:
                continue
            needed = self._nodes_needed(zone)
            surplus = len(self._nodes[zone.name]) + self._observed.renting[zone.name] - needed
            empty = [
                node
                for node in self._nodes[zone.name]
                if node.node_id not in self._observed.used_nodes and node.node_id not in starting_on
            ]
            empty.sort(key=lambda node: (node.state is NodeState.READY, -node.since_ms, node.node_id))
            for node in empty[: max(0, surplus)]:
                yield ReleaseNode(node.node_id, zone.name, f"runs nothing; {zone.name} needs {needed} nodes")

    def _nodes_needed(self, zone: Zone) -> int:
        slots = self._slots[zone.name]
        return -(-self._placement.by_zone[zone.name] // slots) if slots else 0

    def _cloud(self) -> list[Zone]:
        """Cloud zones, the cheapest first."""
        cloud = [zone for zone in self._snapshot.zones if zone.kind is ZoneKind.CLOUD]
        return sorted(cloud, key=lambda zone: zone.price_fen_per_node_h / zone.cores_per_node)

    def _idc(self) -> list[Zone]:
        return [zone for zone in self._snapshot.zones if zone.kind is ZoneKind.IDC]
