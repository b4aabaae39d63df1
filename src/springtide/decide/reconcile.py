"""Desired against observed → bounded, ordered actions, each with its reason.

Capacity is made before it is broken: what serves is taken away only while enough else serves. The order of
the actions is that of urgency: what takes longest to arrive is asked for first, what saves money comes last.
"""

from collections import Counter
from collections.abc import Collection, Iterable

from springtide.decide.names import client_token, replica_id
from springtide.decide.observed import Observed
from springtide.decide.place import Placement, node_slots, slots_of
from springtide.decide.rollout import Revisions
from springtide.decide.zones import Conclusions
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
    ZoneMode,
)


class Reconciler:
    """One comparison of a placement with what is there; `compute` gives the actions.

    Afterwards `scaled_in` tells whether a stage of scaling in has begun, `no_room` whether a rollout waits for room.
    """

    def __init__(
        self,
        observed: Observed,
        policy: FleetPolicy,
        placement: Placement,
        zones: Conclusions | None = None,
        revisions: Revisions | None = None,
        *,
        hold: bool = False,
    ) -> None:
        """`hold` forbids taking capacity away; so does a zone's being down, for that zone."""
        self._observed = observed
        self._snapshot = observed.snapshot
        self._policy = policy
        self._placement = placement
        self._hold = hold
        self._revisions = revisions or Revisions(observed, policy, self._snapshot.rollout, zones)
        modes = self._snapshot.modes
        names = [zone.name for zone in self._snapshot.zones]
        self._down = down = zones.down if zones else frozenset[str]()
        self._not_up = zones.not_up if zones else frozenset[str]()
        self._silent = {name for name in names if observed.is_silent(name)}
        drained = {name for name in names if modes.get(name) is ZoneMode.DRAINED}
        cordoned = {name for name in names if modes.get(name) is ZoneMode.CORDONED}
        self._drained = drained
        self._closed = self._silent | drained | cordoned | down
        # What may come back is not torn down, unless an operator wants it emptied.
        self._kept = self._silent | (down - drained)
        self._slots = {z.name: node_slots(z.cores_per_node, policy, z.memory_mb_per_node) for z in self._snapshot.zones}
        self._nodes: dict[str, list[Node]] = {name: [] for name in names}
        for node in self._snapshot.nodes:
            if node.zone in self._nodes and observed.node_state(node) is not NodeState.RELEASING:
                self._nodes[node.zone].append(node)
        self.scaled_in = False
        self.no_room = False

    def compute(self) -> tuple[Action, ...]:
        """At most `actions_max` actions; the rest is found again at the next tick."""
        if self._observed.is_stale("replicas"):
            return ()
        starts = self._starts()
        actions: list[Action] = [*self._rents(), *self._stops(ReplicaState.FAILED), *starts]
        actions += self._stops(ReplicaState.DRAINING)
        staged: frozenset[str] = frozenset()
        if not self._hold:
            drains, staged = self._drains()
            actions += drains
            actions += self._releases({start.spec.node_id for start in starts})
        begun = tuple(actions[: self._policy.actions_max])
        self.scaled_in = any(isinstance(action, DrainReplica) and action.replica_id in staged for action in begun)
        return begun

    def _rents(self) -> Iterable[RentNodes]:
        if self._observed.is_stale("nodes"):
            return
        room_for = self._zone_to_rent_room_in() if self.no_room else None
        for zone in self._cloud():
            if zone.name in self._closed:
                continue
            needed = self._nodes_needed(zone)
            coming = self._observed.renting[zone.name]
            have = len(self._nodes[zone.name]) + coming
            leaving = sum(node.zone == zone.name for node in self._snapshot.nodes) - len(self._nodes[zone.name])
            count = min(needed, zone.nodes_max - leaving) - have
            token = client_token(self._snapshot, zone.name)
            if count > 0:
                wanted = self._placement.by_zone[zone.name]
                reason = f"{wanted} replicas wanted in {zone.name} need {needed} nodes, {have} are there or coming"
                yield RentNodes(zone.name, count, token, reason)
            elif zone.name == room_for:
                yield RentNodes(zone.name, 1, token, "a rollout needs room for one replica more")

    def _zone_to_rent_room_in(self) -> str | None:
        """The cheapest zone with quota left; none while nodes are on their way."""
        nodes = Counter(node.zone for node in self._snapshot.nodes) + self._observed.renting
        if self._observed.renting or any(node.state is NodeState.BOOTING for node in self._snapshot.nodes):
            return None
        open_zones = (z.name for z in self._cloud() if z.name not in self._closed and nodes[z.name] < z.nodes_max)
        return next((name for name in open_zones if self._slots[name]), None)

    def _stops(self, state: ReplicaState) -> Iterable[StopReplica]:
        drained_before = self._snapshot.now_ms - self._policy.drain_ms
        for replica in self._observed.by_state[state]:
            if replica.replica_id in self._observed.stopping or replica.zone in self._silent:
                continue
            if state is ReplicaState.FAILED:
                yield StopReplica(replica.replica_id, replica.zone, self._failure(replica))
            elif replica.state is state and replica.since_ms <= drained_before:
                reason = f"drained for {self._policy.drain_ms / 1000:g} s"
                yield StopReplica(replica.replica_id, replica.zone, reason)

    def _failure(self, replica: Replica) -> str:
        if replica.state is ReplicaState.FAILED:
            return f"failed: {replica.failure}" if replica.failure else "failed"
        return f"still starting after {(self._snapshot.now_ms - replica.since_ms) / 1000:g} s"

    def _starts(self) -> list[StartReplica]:
        starts: list[StartReplica] = []
        room = min(self._policy.starting_max - self._observed.starting, self._policy.actions_max)
        nodes = _Room(self._observed, self._policy, self._nodes)
        for zone in self._open_zones():
            missing = self._placement.by_zone[zone.name] - self._observed.live_by_zone[zone.name]
            for _ in range(min(missing, room - len(starts))):
                node = nodes.take(zone)
                if node is None:
                    break
                starts.append(self._start(node, len(starts), f"{zone.name} is {missing} replicas short"))
        for _ in range(min(self._surge(len(starts)), room - len(starts))):
            node = next((found for zone in self._surge_zones() if (found := nodes.take(zone))), None)
            self.no_room = node is None
            if node is None:
                break
            reason = f"to replace one of {len(self._revisions.old)} replicas of another revision"
            starts.append(self._start(node, len(starts), reason))
        return starts

    def _start(self, node: Node, number: int, reason: str) -> StartReplica:
        name = replica_id(self._snapshot, node.zone, number)
        spec = ReplicaSpec(name, node.zone, node.node_id, self._snapshot.service, self._revisions.target)
        return StartReplica(spec, reason)

    def _surge(self, starts: int) -> int:
        """Replicas to start beyond what is wanted, so that old ones can go; `starts` are decided already."""
        if self._hold or not self._revisions.old:
            return 0
        unproven = self._revisions.coming + starts
        live = sum(count for zone, count in self._observed.live_by_zone.items() if zone not in self._down)
        beyond = live + starts - self._placement.total
        return min(self._policy.rollout_surge - max(unproven, beyond), len(self._revisions.old))

    def _surge_zones(self) -> list[Zone]:
        """First where the most is to be replaced."""
        old = Counter(replica.zone for replica in self._revisions.old)
        return sorted(self._open_zones(), key=lambda zone: -old[zone.name])

    def _drains(self) -> tuple[list[DrainReplica], frozenset[str]]:
        """Surplus replicas, as long as what is wanted serves without them; and which are a stage of scaling in."""
        ready = self._observed.by_state[ReplicaState.READY]
        # A zone that returns has little traffic yet: nobody's place can be taken by what is there.
        relied_on = {r.replica_id for r in ready if r.zone not in self._not_up and self._revisions.counts(r)}
        serving = {r.replica_id for r in ready if r.zone not in self._down and self._observed.serves(r)}
        wanted = self._placement.total + self._placement.short
        spare, left = len(relied_on) - wanted, len(serving) - wanted
        stage = self._stage(len(serving))
        drains: list[DrainReplica] = []
        staged: set[str] = set()
        seen: set[str] = set()
        for replica, reason, is_stage in self._surplus():
            if replica.replica_id in seen or replica.zone in self._silent:
                continue
            relied, serves = replica.replica_id in relied_on, replica.replica_id in serving
            if (relied and spare <= 0) or (serves and left <= 0) or (is_stage and len(staged) >= stage):
                continue
            spare -= relied
            left -= serves
            seen.add(replica.replica_id)
            if is_stage:
                staged.add(replica.replica_id)
            drains.append(DrainReplica(replica.replica_id, replica.zone, reason))
        return drains, frozenset(staged)

    def _stage(self, serving: int) -> int:
        """How many replicas scaling in may take now; none while the last stage is too short a time ago."""
        draining = (replica.since_ms for replica in self._snapshot.replicas if replica.state is ReplicaState.DRAINING)
        last_ms = max(self._snapshot.scaled_in_ms, *draining, 0)
        if last_ms and self._snapshot.now_ms - last_ms < self._policy.scale_in_every_ms:
            return 0
        return max(1, int(serving * self._policy.scale_in_share))

    def _surplus(self) -> Iterable[tuple[Replica, str, bool]]:
        """Who may go, in order, and whether that is a stage of scaling in.

        Those whose node is gone, those of another revision, those of zones that are drained, the cloud's (dearest zone
        first), the IDC's.
        """
        on_nodes: dict[str, list[Replica]] = {zone.name: [] for zone in self._snapshot.zones}
        for replica in self._observed.by_state[ReplicaState.READY]:
            if replica.zone in on_nodes and self._observed.has_node(replica.node_id):
                on_nodes[replica.zone].append(replica)
            else:
                yield replica, f"node {replica.node_id} is gone", False
        surplus = {name: len(found) - self._placement.by_zone[name] for name, found in on_nodes.items()}
        yield from self._outdated(surplus)
        for zone in sorted([*reversed(self._cloud()), *self._idc()], key=lambda zone: zone.name not in self._drained):
            count = surplus[zone.name]
            if count > 0 and zone.name not in self._kept:
                drained = zone.name in self._drained
                reason = f"{count} more than the {self._placement.by_zone[zone.name]} wanted in {zone.name}"
                for replica in self._first_to_go(on_nodes[zone.name])[:count]:
                    if self._revisions.is_coming(replica):
                        continue
                    yield replica, f"zone {zone.name} is to be emptied" if drained else reason, not drained

    def _outdated(self, surplus: dict[str, int]) -> Iterable[tuple[Replica, str, bool]]:
        """Of another revision, at most so many as may be started anew; and those that never became healthy."""
        revisions = self._revisions
        for replica in revisions.sick:
            yield replica, "not healthy though it has been ready for long", False
        surge = self._policy.rollout_surge
        old = sorted(revisions.old, key=lambda r: (-surplus.get(r.zone, 0), r.since_ms, r.replica_id))
        # An ill one costs no capacity, but its replacement is a start like any other.
        ill = [replica for replica in old if not self._observed.serves(replica)][: max(0, surge - revisions.coming)]
        for replica in (ill + [replica for replica in old if self._observed.serves(replica)])[:surge]:
            yield replica, f"revision {replica.revision or '(none)'} is replaced by {revisions.target}", False

    def _first_to_go(self, replicas: list[Replica]) -> list[Replica]:
        """The outdated and the sick first, then from the emptiest and newest node, so that whole nodes fall free."""
        observed = self._observed

        def key(replica: Replica) -> tuple[bool, bool, int, int, str, int, str]:
            node = observed.nodes.get(replica.node_id)
            node_since = node.since_ms if node else 0
            load = observed.occupied[replica.node_id]
            kept = not self._revisions.is_old(replica)
            serves = observed.serves(replica)
            return kept, serves, load, -node_since, replica.node_id, -replica.since_ms, replica.replica_id

        return sorted(replicas, key=key)

    def _releases(self, starting_on: Collection[str]) -> Iterable[ReleaseNode]:
        if self._observed.is_stale("nodes") or self._revisions.old:
            return
        for zone in self._cloud():
            if zone.name in self._kept:
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

    def _open_zones(self) -> list[Zone]:
        """Where replicas may start, the IDC first."""
        open_zones = (zone for zone in self._snapshot.zones if zone.name not in self._closed)
        return sorted(open_zones, key=lambda zone: zone.kind is ZoneKind.CLOUD)

    def _cloud(self) -> list[Zone]:
        """Cloud zones, the cheapest first."""
        cloud = [zone for zone in self._snapshot.zones if zone.kind is ZoneKind.CLOUD]
        return sorted(cloud, key=lambda zone: zone.price_fen_per_node_h / zone.cores_per_node)

    def _idc(self) -> list[Zone]:
        return [zone for zone in self._snapshot.zones if zone.kind is ZoneKind.IDC]


class _Room:
    """The nodes that replicas can start on; what is taken is remembered."""

    def __init__(self, observed: Observed, policy: FleetPolicy, nodes: dict[str, list[Node]]) -> None:
        self._taken = observed.occupied.copy()
        self._free = {
            zone: [(node, slots_of(observed, node, policy)) for node in found if node.state is NodeState.READY]
            for zone, found in nodes.items()
        }

    def take(self, zone: Zone) -> Node | None:
        """In the cloud the fullest node, so that whole nodes fall free later; in the IDC the emptiest."""
        taken = self._taken
        open_nodes = [node for node, slots in self._free[zone.name] if taken[node.node_id] < slots]
        sign = -1 if zone.kind is ZoneKind.CLOUD else 1
        found = min(open_nodes, key=lambda n: (sign * taken[n.node_id], n.since_ms, n.node_id), default=None)
        if found is not None:
            taken[found.node_id] += 1
        return found
