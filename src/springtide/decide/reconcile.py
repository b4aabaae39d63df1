"""Desired against observed → bounded, ordered actions, each with its reason.

Capacity is made before it is broken: what serves is taken away only while enough else serves. The order of
the actions is that of urgency: what takes longest to arrive is asked for first, what saves money comes last.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from heapq import heapify, heappop, heappush

from springtide.decide.autoscale import ahead_ms
from springtide.decide.names import client_token, replica_id
from springtide.decide.observed import Observed
from springtide.decide.place import Placement, node_slots, price_per_core, slots_of
from springtide.decide.procure import Buyer, Procured
from springtide.decide.release import releasable, release_at_ms
from springtide.decide.rollout import Revisions
from springtide.decide.supply import Supply
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

RELEASES_MAX = 100
"""Nodes that count as one action when they are given back together."""

RECLAIM_MARGIN_MS = 20_000
"""So long before a machine is taken away, beside what a drain takes, its replicas lose their traffic in any case."""


class Reconciler:
    """One comparison of a placement with what is there; `compute` gives the actions.

    Afterwards `scaled_in` tells whether a stage of scaling in has begun, `no_room` whether a rollout waits for room.
    """

    def __init__(
        self,
        observed: Observed,
        policy: FleetPolicy,
        placement: Placement | Procured,
        zones: Conclusions | None = None,
        revisions: Revisions | None = None,
        *,
        hold: bool = False,
    ) -> None:
        """`hold` forbids taking capacity away; so does a zone's being down, for that zone.

        Where there are offers, the placement comes with what was decided to buy for it.
        """
        procured = placement if isinstance(placement, Procured) else Procured(placement)
        self._observed = observed
        self._snapshot = observed.snapshot
        self._policy = policy
        self._placement = procured.placement
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
        self._nodes = observed.staying
        self._supply = procured.supply
        self._bought = procured.rents
        self._held = procured.held
        self.scaled_in = False
        self.no_room = False

    def compute(self) -> tuple[Action, ...]:
        """At most `actions_max` actions, beside nodes given back together; the rest is found again at the next tick."""
        if self._observed.is_stale("replicas"):
            return ()
        starts = self._starts()
        actions: list[Action] = [*self._rents(), *self._stops(ReplicaState.FAILED), *starts]
        actions += self._stops(ReplicaState.DRAINING)
        staged: frozenset[str] = frozenset()
        releases: list[ReleaseNode] = []
        if self._hold:
            actions += self._last_drains(())
        else:
            drains, staged = self._drains()
            actions += [*drains, *self._last_drains(drains)]
            releases += self._releases({start.spec.node_id for start in starts})
        begun = tuple(actions[: self._policy.actions_max])
        # Nodes of a cloud with offers are given back together: so many are one call, for which there is always room.
        calls = self._policy.actions_max - len(begun)
        begun += tuple(releases[: max(1, calls) * RELEASES_MAX if self._supply else calls])
        self.scaled_in = any(isinstance(action, DrainReplica) and action.replica_id in staged for action in begun)
        return begun

    def _rents(self) -> Iterable[RentNodes]:
        if self._observed.is_stale("nodes") or self._observed.is_stale("offers"):
            return
        if self._supply is not None:
            yield from self._bought
            if self.no_room and not self._bought:
                yield from self._rollout_room(self._supply)
            return
        room_for = self._zone_to_rent_room_in() if self.no_room else None
        until_ms = release_at_ms(self._snapshot, self._policy, ahead_ms(self._snapshot, self._policy))
        for zone in self._cloud():
            if zone.name in self._closed:
                continue
            needed = self._nodes_needed(zone)
            coming = self._observed.renting[zone.name]
            have = len(self._nodes[zone.name]) + coming
            leaving = self._observed.node_counts[zone.name] - len(self._nodes[zone.name])
            count = min(needed, zone.nodes_max - leaving) - have
            token = client_token(self._snapshot, zone.name)
            if count > 0:
                wanted = self._placement.by_zone[zone.name]
                reason = f"{wanted} replicas wanted in {zone.name} need {needed} nodes, {have} are there or coming"
                yield RentNodes(zone.name, count, token, reason, release_at_ms=until_ms)
            elif zone.name == room_for:
                reason = "a rollout needs room for one replica more"
                yield RentNodes(zone.name, 1, token, reason, release_at_ms=until_ms)

    def _rollout_room(self, supply: Supply) -> Iterable[RentNodes]:
        """One replica's worth, unless nodes are on their way."""
        if self._observed.renting or any(node.state is NodeState.BOOTING for node in self._snapshot.nodes):
            return
        buyer = Buyer(supply, 0)
        buyer.take(supply.cheapest(1), "a rollout needs room for one replica more")
        yield from buyer.rents

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
        candidates = list(self._surplus())
        if not candidates:
            return [], frozenset()
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
        for replica, reason, is_stage in candidates:
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
        ready, standing = self._observed.by_state[ReplicaState.READY], self._observed.standing
        on_nodes = ready if standing is None else [r for r in ready if r.node_id in standing]
        counts = Counter([replica.zone for replica in on_nodes])
        if len(on_nodes) < len(ready) or counts.keys() - self._slots.keys():
            for replica in ready:
                if replica.zone in self._slots and self._observed.has_node(replica.node_id):
                    continue
                leaves = replica.node_id in self._observed.reclaimed
                yield replica, f"node {replica.node_id} {'will be taken away' if leaves else 'is gone'}", False
        surplus = {name: counts[name] - self._placement.by_zone[name] for name in self._slots}
        yield from self._outdated(surplus)
        for zone in sorted([*reversed(self._cloud()), *self._idc()], key=lambda zone: zone.name not in self._drained):
            count = surplus[zone.name]
            if count > 0 and zone.name not in self._kept:
                drained = zone.name in self._drained
                reason = f"{count} more than the {self._placement.by_zone[zone.name]} wanted in {zone.name}"
                here = [replica for replica in on_nodes if replica.zone == zone.name]
                for replica in self._first_to_go(here)[:count]:
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

    def _last_drains(self, drains: Sequence[DrainReplica]) -> Iterable[DrainReplica]:
        """Replicas whose machine is about to be taken away lose their traffic, whether they are replaced or not."""
        drained = {drain.replica_id for drain in drains}
        margin_ms = self._policy.drain_ms + RECLAIM_MARGIN_MS
        due = {name for name, at_ms in self._observed.reclaimed.items() if at_ms - self._snapshot.now_ms <= margin_ms}
        if not due:
            return
        for replica in self._observed.by_state[ReplicaState.READY]:
            if replica.node_id in due and replica.replica_id not in drained and replica.zone not in self._silent:
                reason = f"the cloud takes {replica.node_id} away in a moment"
                yield DrainReplica(replica.replica_id, replica.zone, reason)

    def _first_to_go(self, replicas: list[Replica]) -> list[Replica]:
        """The outdated and the sick first, then from the dearest, emptiest and newest node: whole nodes fall free."""
        observed = self._observed

        def key(replica: Replica) -> tuple[bool, bool, float, int, int, str, int, str]:
            node = observed.nodes.get(replica.node_id)
            node_since = node.since_ms if node else 0
            price = node.price_fen_per_h / node.cores if node else 0.0
            load = observed.occupied[replica.node_id]
            kept = not self._revisions.is_old(replica)
            serves = observed.serves(replica)
            return kept, serves, -price, load, -node_since, replica.node_id, -replica.since_ms, replica.replica_id

        return sorted(replicas, key=key)

    def _releases(self, starting_on: Collection[str]) -> Iterable[ReleaseNode]:
        if self._observed.is_stale("nodes") or self._revisions.old:
            return
        if self._supply is not None:
            yield from self._releases_of(self._supply, starting_on)
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

    def _releases_of(self, supply: Supply, starting_on: Collection[str]) -> Iterable[ReleaseNode]:
        """Empty nodes, the dearest zone's first, as long as enough is left for what is placed and what is planned.

        What is on order does not count: less of it may come.
        """
        observed, cordoned = self._observed, self._snapshot.cordoned
        over = {name: count - self._placement.by_zone[name] for name, count in supply.there.items()}
        left = sum(count for name, count in over.items() if name not in self._kept) - self._held
        if left <= 0 and not observed.reclaimed and not cordoned:
            return
        for zone in reversed(self._cloud()):
            if zone.name in self._kept:
                continue
            nodes = [n for n in self._snapshot.nodes if n.reclaim_ms and n.zone == zone.name and n.client_token]
            nodes += self._nodes[zone.name]
            empty = [n for n in nodes if n.node_id not in observed.used_nodes and n.node_id not in starting_on]
            empty = [n for n in empty if observed.node_state(n) is not NodeState.RELEASING]
            slots = {n.node_id: 0 if n.reclaim_ms or n.node_id in cordoned else supply.slots_on(n) for n in empty}
            for node in releasable(empty, min(left, over[zone.name]), slots, self._snapshot):
                left -= slots[node.node_id]
                why = f"{zone.name} needs room for {self._placement.by_zone[zone.name]} replicas"
                reason = "will be taken away" if node.reclaim_ms else why
                yield ReleaseNode(node.node_id, zone.name, f"runs nothing; {reason}")

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
        prices = self._supply.prices if self._supply else {}
        return sorted(cloud, key=lambda zone: price_per_core(zone, prices))

    def _idc(self) -> list[Zone]:
        return [zone for zone in self._snapshot.zones if zone.kind is ZoneKind.IDC]


class _Room:
    """The nodes that replicas can start on; what is taken is remembered."""

    def __init__(self, observed: Observed, policy: FleetPolicy, nodes: dict[str, list[Node]]) -> None:
        self._observed = observed
        self._policy = policy
        self._nodes = nodes
        self._open: dict[str, list[tuple[int, float, int, str, int, Node]]] = {}

    def take(self, zone: Zone) -> Node | None:
        """In the cloud the fullest and cheapest node, so that whole ones fall free later; in the IDC the emptiest."""
        sign = -1 if zone.kind is ZoneKind.CLOUD else 1
        found = self._open.get(zone.name)
        if found is None:
            found = self._open[zone.name] = self._list(zone, sign)
        if not found:
            return None
        taken, price, since_ms, name, slots, node = heappop(found)
        if sign * taken + 1 < slots:
            heappush(found, (taken + sign, price, since_ms, name, slots, node))
        return node

    def _list(self, zone: Zone, sign: int) -> list[tuple[int, float, int, str, int, Node]]:
        """A heap of the nodes with room: what is taken of each, its price, how old it is, its id, its room."""
        taken, cordoned = self._observed.occupied, self._observed.snapshot.cordoned
        found = []
        for node in self._nodes[zone.name]:
            if node.state is NodeState.READY and node.node_id not in cordoned:
                slots = slots_of(self._observed, node, self._policy)
                if taken[node.node_id] < slots:
                    price = node.price_fen_per_h / node.cores
                    found.append((sign * taken[node.node_id], price, node.since_ms, node.node_id, slots, node))
        heapify(found)
        return found
