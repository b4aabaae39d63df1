"""Health of zones and replicas → traffic weights.

All replicas are of one size, so every one that serves has the same weight and a zone's share follows from how
many it has. A replica that the balancer finds sick keeps its weight: the balancer ejects it by itself, and
takes it back by itself.
"""

from collections import Counter
from collections.abc import Collection

from springtide.decide.observed import Observed
from springtide.model import Endpoint, FleetPolicy, Replica, ReplicaState

ENDPOINT_WEIGHT = 100
"""The weight of a replica that takes traffic; 0 drains."""


def is_suspect(observed: Observed, policy: FleetPolicy) -> bool:
    """Whether the balancer has lost sight of more than half of what the runtimes call ready.

    So much does not fail at once while its processes live: the observer is rather the one that is cut off.
    """
    settled = _settled(observed, policy)
    sick = sum(not observed.serves(replica) for replica in settled)
    return 2 * sick > len(settled)


def zones_down(observed: Observed, policy: FleetPolicy) -> frozenset[str]:
    """Zones of which the balancer reaches nothing, while it reaches the greater part of the fleet."""
    if is_suspect(observed, policy):
        return frozenset()
    settled = _settled(observed, policy)
    reached = {replica.zone for replica in settled if observed.serves(replica)}
    return frozenset(replica.zone for replica in settled) - reached


def zone_weights(observed: Observed, leaving: Collection[str]) -> dict[str, int]:
    """The weight of each zone: that of its replicas which serve and are not `leaving`."""
    serving: Counter[str] = Counter()
    for replica in observed.by_state[ReplicaState.READY]:
        serving[replica.zone] += observed.serves(replica) and replica.replica_id not in leaving
    return {zone.name: serving[zone.name] * ENDPOINT_WEIGHT for zone in observed.snapshot.zones}


def endpoints(observed: Observed, leaving: Collection[str], *, frozen: bool) -> tuple[Endpoint, ...]:
    """The list the balancer should have: ready replicas with weight, those that leave with none.

    A replica stays listed until its runtime no longer knows it, so no open request is cut. When `frozen`,
    weights that were given stay as they are and only replicas that became ready are added.
    """
    if observed.is_stale("replicas"):
        return observed.snapshot.endpoints
    given = {endpoint.replica_id: endpoint.weight for endpoint in observed.snapshot.endpoints}
    takes = {r.replica_id for r in observed.by_state[ReplicaState.READY] if r.replica_id not in leaving}
    # The port of a dead replica may be a live one's by now; no balancer takes one address twice.
    taken = {(r.host, r.port) for r in observed.snapshot.replicas if r.replica_id in takes}
    listed = []
    for replica in observed.snapshot.replicas:
        before = given.get(replica.replica_id)
        if not replica.port:
            continue
        if replica.replica_id in takes:
            listed.append(_endpoint(replica, before if frozen and before is not None else ENDPOINT_WEIGHT))
        elif before is not None and (replica.host, replica.port) not in taken:
            listed.append(_endpoint(replica, before if frozen else 0))
    return tuple(sorted(listed, key=lambda endpoint: (endpoint.zone, endpoint.replica_id)))


def _endpoint(replica: Replica, weight: int) -> Endpoint:
    return Endpoint(replica.replica_id, replica.zone, replica.host, replica.port, weight)


def _settled(observed: Observed, policy: FleetPolicy) -> list[Replica]:
    """Ready replicas that have had traffic for long enough to be found healthy."""
    weighted = {endpoint.replica_id for endpoint in observed.snapshot.endpoints if endpoint.weight}
    since = observed.snapshot.now_ms - policy.stale_ms
    return [
        replica
        for replica in observed.by_state[ReplicaState.READY]
        if replica.replica_id in weighted and replica.since_ms < since
    ]
