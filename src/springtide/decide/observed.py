"""A snapshot as the decisions read it: what was observed, and on top of it what is already under way.

An action that was begun counts as done where doing it again would be wrong (a rent, a start), and as not yet
done where relying on it would be (capacity that is only starting).
"""

from collections import Counter
from functools import cached_property

from springtide.model import (
    DrainReplica,
    FleetPolicy,
    Node,
    NodeState,
    ReleaseNode,
    RentNodes,
    Replica,
    ReplicaState,
    RolloutState,
    Snapshot,
    StartReplica,
    StopReplica,
)

STARTS_LATE = 5
"""A replica that has been starting for this many times `start_ms` will not come up any more."""


class Observed:
    """Lookups over one snapshot; it changes nothing and is used for one decision."""

    def __init__(self, snapshot: Snapshot, policy: FleetPolicy) -> None:
        """Index the snapshot."""
        self.snapshot = snapshot
        self._policy = policy
        self.stopping = {a.replica_id for a in snapshot.in_flight if isinstance(a, StopReplica)}
        self._draining = {a.replica_id for a in snapshot.in_flight if isinstance(a, DrainReplica)}
        self._releasing = {a.node_id for a in snapshot.in_flight if isinstance(a, ReleaseNode)}
        listed = {replica.replica_id for replica in snapshot.replicas}
        self.starts_in_flight = tuple(
            a.spec for a in snapshot.in_flight if isinstance(a, StartReplica) and a.spec.replica_id not in listed
        )
        self.nodes = {node.node_id: node for node in snapshot.nodes}

    def is_stale(self, source: str) -> bool:
        """Whether the observation of "replicas", "nodes" or "health" is too old to act on."""
        return self.snapshot.ages_ms.get(source, 0) > self._policy.stale_ms

    def is_silent(self, zone: str) -> bool:
        """Whether the word of this zone's runtime is too old to start or stop anything there."""
        return self.is_stale(f"replicas/{zone}")

    def free_cores(self, node: Node) -> float:
        """What other services leave of the node's cores."""
        return node.cores - self.snapshot.taken_cores.get(node.node_id, 0.0)

    def free_memory_mb(self, node: Node) -> int:
        """What other services leave of the node's memory; 0 when it is not counted, or nothing is left."""
        return max(0, node.memory_mb - self.snapshot.taken_memory_mb.get(node.node_id, 0))

    @cached_property
    def staying(self) -> dict[str, list[Node]]:
        """The nodes of each zone that stay: not being given back, and not about to be taken away."""
        found: dict[str, list[Node]] = {zone.name: [] for zone in self.snapshot.zones}
        standing = self._on_list
        for node in self.snapshot.nodes:
            if node.node_id in standing and (there := found.get(node.zone)) is not None:
                there.append(node)
        return found

    @cached_property
    def node_counts(self) -> Counter[str]:
        """All nodes by zone, also those that leave."""
        return Counter([node.zone for node in self.snapshot.nodes])

    @cached_property
    def reclaimed(self) -> dict[str, int]:
        """Nodes that will be taken away, and when."""
        return {node.node_id: node.reclaim_ms for node in self.snapshot.nodes if node.reclaim_ms}

    def node_state(self, node: Node) -> NodeState:
        """RELEASING from the moment that was asked for."""
        return NodeState.RELEASING if node.node_id in self._releasing else node.state

    def state(self, replica: Replica) -> ReplicaState:
        """DRAINING once that or its end was asked for; FAILED when it has been starting for too long."""
        return self._other_states.get(replica.replica_id, replica.state)

    @cached_property
    def _other_states(self) -> dict[str, ReplicaState]:
        """Where it is not the one that the runtime says."""
        leaving = self.stopping | self._draining
        late_ms = self.snapshot.now_ms - STARTS_LATE * self._policy.start_ms
        found = {}
        for replica in self.snapshot.replicas:
            state = replica.state
            if state is ReplicaState.READY and not leaving:
                continue
            if state is not ReplicaState.FAILED and replica.replica_id in leaving:
                found[replica.replica_id] = ReplicaState.DRAINING
            elif state is ReplicaState.STARTING and replica.since_ms < late_ms:
                found[replica.replica_id] = ReplicaState.FAILED
        return found

    @cached_property
    def by_state(self) -> dict[ReplicaState, list[Replica]]:
        """The listed replicas by state."""
        found: dict[ReplicaState, list[Replica]] = {state: [] for state in ReplicaState}
        others, ready = self._other_states, found[ReplicaState.READY]
        for replica in self.snapshot.replicas:
            if replica.state is ReplicaState.READY and not others:
                ready.append(replica)
            else:
                found[self.state(replica)].append(replica)
        return found

    @cached_property
    def healthy(self) -> frozenset[str] | None:
        """What the balancer finds healthy; None when it has not said lately."""
        return None if self.is_stale("health") else self.snapshot.healthy

    def serves(self, replica: Replica) -> bool:
        """Whether it is ready and, as far as the balancer has said, healthy."""
        return replica.replica_id in self.serving

    @cached_property
    def serving(self) -> frozenset[str]:
        """The ids of all that serve."""
        ready = frozenset(replica.replica_id for replica in self.by_state[ReplicaState.READY])
        return ready if self.healthy is None else ready & self.healthy

    def is_on_trial(self, replica: Replica) -> bool:
        """Whether its not being healthy says more of its revision than of its zone or of the observer.

        So it is with one that a rollout added and that has not had the time to become healthy, and with all of a
        revision that is being rolled back.
        """
        rollout = self.snapshot.rollout
        if rollout is None or replica.revision != rollout.revision or self.serves(replica):
            return False
        if rollout.state is RolloutState.ROLLING:
            age_ms = self.snapshot.now_ms - replica.since_ms
            return age_ms <= STARTS_LATE * self._policy.start_ms + self._policy.stale_ms
        return rollout.state is RolloutState.ROLLING_BACK

    @cached_property
    def live_by_zone(self) -> Counter[str]:
        """Replicas that serve or will, by zone: starting or ready, on a node that is still there to stay."""
        live = self.by_state[ReplicaState.STARTING] + self.by_state[ReplicaState.READY]
        standing = self.standing
        found = Counter([one.zone for one in live if standing is None or one.node_id in standing])
        found.update(spec.zone for spec in self.starts_in_flight)
        return found

    def has_node(self, node_id: str) -> bool:
        """Whether the node is listed and stays; true when the list is too old to tell."""
        return self.standing is None or node_id in self.standing

    @cached_property
    def standing(self) -> frozenset[str] | None:
        """The nodes that are listed and stay; None when the list is too old to tell."""
        return None if self.is_stale("nodes") else self._on_list

    @cached_property
    def _on_list(self) -> frozenset[str]:
        """The listed nodes that stay."""
        gone = [n.node_id for n in self.snapshot.nodes if n.reclaim_ms or n.state is NodeState.RELEASING]
        return frozenset(self.nodes).difference(gone, self._releasing)

    @cached_property
    def starting(self) -> int:
        """Replicas that are coming up now."""
        return len(self.by_state[ReplicaState.STARTING]) + len(self.starts_in_flight)

    @cached_property
    def occupied(self) -> Counter[str]:
        """Replicas by node that take room there, draining ones included; a failed one has no process."""
        running = (replica for replica in self.snapshot.replicas if self.state(replica) is not ReplicaState.FAILED)
        found = Counter(replica.node_id for replica in running)
        found.update(spec.node_id for spec in self.starts_in_flight)
        return found

    @cached_property
    def used_nodes(self) -> frozenset[str]:
        """Nodes with any replica on them, in whatever state."""
        return frozenset(replica.node_id for replica in self.snapshot.replicas) | {
            spec.node_id for spec in self.starts_in_flight
        }

    @cached_property
    def renting(self) -> Counter[str]:
        """Nodes by zone that were asked for and are not listed yet."""
        found: Counter[str] = Counter()
        for action, count in self.coming:
            found[action.zone] += count
        return found

    @cached_property
    def coming(self) -> tuple[tuple[RentNodes, int], ...]:
        """The purchases under way, each with its nodes that are not listed yet."""
        rents = [action for action in self.snapshot.in_flight if isinstance(action, RentNodes)]
        if not rents:
            return ()
        arrived = Counter(node.client_token for node in self.snapshot.nodes if node.client_token)
        return tuple((action, max(0, action.count - arrived[action.client_token])) for action in rents)
