"""Health of zones and replicas → traffic weights.

All replicas are of one size, so every one that serves has the same weight and a zone's share follows from how
many it has, but where the zone is down or returns (see `zones`). A replica that the balancer finds sick keeps its
weight: the balancer ejects it by itself, and takes it back by itself.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from types import MappingProxyType

from springtide.decide.observed import Observed
from springtide.model import Endpoint, Replica, ReplicaState

ENDPOINT_WEIGHT = 100
"""The weight of a replica that takes traffic; 0 drains."""


def zone_weights(
    observed: Observed, leaving: Collection[str], shares: Mapping[str, float] = MappingProxyType({})
) -> dict[str, int]:
    """The weight of each zone: that of its replicas which serve and are not `leaving`, times the zone's share."""
    serves = observed.serving.difference(leaving)
    ready = observed.by_state[ReplicaState.READY]
    serving = Counter([replica.zone for replica in ready if replica.replica_id in serves])
    names = [zone.name for zone in observed.snapshot.zones]
    return {name: serving[name] * _weight(shares.get(name, 1.0)) for name in names}


def endpoints(
    observed: Observed,
    leaving: Collection[str],
    shares: Mapping[str, float] = MappingProxyType({}),
    *,
    frozen: bool,
    thawed: Collection[str] = (),
) -> tuple[Endpoint, ...]:
    """The list the balancer should have: ready replicas with weight, those that leave with none.

    `shares` (from 0 to 1) are of zones that may not have all their weight; those of a zone that is down stay listed
    without any, so that the balancer goes on to check them. A replica stays listed until its runtime no longer knows
    it, so no open request is cut. When `frozen`, weights that were given stay as they are, but in zones that are
    `thawed`, and only replicas that became ready are added.
    """
    if observed.is_stale("replicas"):
        return observed.snapshot.endpoints
    given = {endpoint.replica_id: endpoint for endpoint in observed.snapshot.endpoints}
    takes = {r.replica_id for r in observed.by_state[ReplicaState.READY] if r.replica_id not in leaving}
    weights = {zone.name: _weight(shares.get(zone.name, 1.0)) for zone in observed.snapshot.zones}
    taken: set[tuple[str, int]] | None = None
    listed = []
    changed = False
    for replica in observed.snapshot.replicas:
        if not replica.port:
            continue
        before = given.get(replica.replica_id)
        stays = frozen and replica.zone not in thawed
        if replica.replica_id in takes:
            weight = before.weight if stays and before is not None else weights.get(replica.zone, ENDPOINT_WEIGHT)
        elif before is None:
            continue
        else:
            # The port of a dead replica may be a live one's by now; no balancer takes one address twice.
            if taken is None:
                taken = {(r.host, r.port) for r in observed.snapshot.replicas if r.replica_id in takes}
            if (replica.host, replica.port) in taken:
                continue
            weight = before.weight if stays else 0
        if before is None or (before.weight, before.port, before.host) != (weight, replica.port, replica.host):
            before, changed = _endpoint(replica, weight), True
        listed.append(before)
    if not changed and len(listed) == len(observed.snapshot.endpoints):
        return observed.snapshot.endpoints
    return tuple(sorted(listed, key=lambda endpoint: (endpoint.zone, endpoint.replica_id)))


def _endpoint(replica: Replica, weight: int) -> Endpoint:
    return Endpoint(replica.replica_id, replica.zone, replica.host, replica.port, weight)


def _weight(share: float) -> int:
    return round(share * ENDPOINT_WEIGHT)
