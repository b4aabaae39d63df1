"""Replicas → zones: the IDC carries the base, the cloud the spike.

Scaling in needs no rule of its own: with fewer replicas wanted, the same filling order leaves the cloud
first.
"""

from collections.abc import Collection, Sequence
from itertools import groupby

import msgspec

from springtide.model import FleetPolicy, Zone, ZoneKind

_ROUNDING = 1e-9  # 0.3 / 0.1 is 2.9999999999999996 in floating point; that is 3 replicas, not 2


class Placement(msgspec.Struct, frozen=True):
    """Replicas by zone, in the order of the zones; `short` are those that fit nowhere."""

    by_zone: dict[str, int]
    short: int
    reasons: tuple[str, ...]

    @property
    def total(self) -> int:
        """Replicas that have a place."""
        return sum(self.by_zone.values())


def node_slots(cores: int, policy: FleetPolicy) -> int:
    """Replicas that a node of so many cores can run; a replica never spans two nodes."""
    return int(cores / policy.replica_cores + _ROUNDING)


def zone_slots(zone: Zone, policy: FleetPolicy) -> int:
    """Replicas that the zone can run with all the nodes it may have."""
    return zone.nodes_max * node_slots(zone.cores_per_node, policy)


def place(wanted: int, zones: Sequence[Zone], policy: FleetPolicy, down: Collection[str] = ()) -> Placement:
    """Spread `wanted` replicas over the zones that are not `down`.

    First the base over the IDC, as evenly as it goes; then the cloud, the cheapest price first and zones of
    one price evenly; then what room the IDC has left. What still has no place is `short`.
    """
    by_zone = {zone.name: 0 for zone in zones}
    free = {zone.name: 0 if zone.name in down else zone_slots(zone, policy) for zone in zones}
    idc = [zone for zone in zones if zone.kind is ZoneKind.IDC]
    base = min(policy.base_replicas * len(idc), wanted)
    left = wanted - base + _spread(base, [zone.name for zone in idc], free, by_zone)
    cloud = sorted((zone for zone in zones if zone.kind is ZoneKind.CLOUD), key=_price_per_core)
    for _, same_price in groupby(cloud, key=_price_per_core):
        left = _spread(left, [zone.name for zone in same_price], free, by_zone)
    before = sum(by_zone[zone.name] for zone in idc)
    left = _spread(left, [zone.name for zone in idc], free, by_zone)
    spare = sum(by_zone[zone.name] for zone in idc) - before
    return Placement(by_zone=by_zone, short=left, reasons=tuple(_reasons(zones, down, spare, left)))


def _price_per_core(zone: Zone) -> float:
    return zone.price_fen_per_node_h / zone.cores_per_node


def _spread(count: int, names: Sequence[str], free: dict[str, int], by_zone: dict[str, int]) -> int:
    """Fill the zones level by level, within what is free; what does not fit is returned."""
    while count > 0 and (open_zones := [name for name in names if free[name] > 0]):
        share = max(1, count // len(open_zones))
        for name in open_zones:
            given = min(share, free[name], count)
            by_zone[name] += given
            free[name] -= given
            count -= given
    return count


def _reasons(zones: Sequence[Zone], down: Collection[str], spare: int, short: int) -> list[str]:
    reasons = [f"zone {name} does not answer: its replicas are placed elsewhere" for name in sorted(down)]
    cloud = [zone for zone in zones if zone.kind is ZoneKind.CLOUD and zone.name not in down]
    quotas = ", ".join(f"quota of {zone.name} is {zone.nodes_max} nodes" for zone in cloud)
    if spare:
        reasons.append(f"the cloud is full: {spare} replicas go to spare room in the IDC ({quotas or 'no cloud zone'})")
    if short:
        reasons.append(f"capacity short by {short} replicas: {quotas or 'no cloud zone'}")
    return reasons
