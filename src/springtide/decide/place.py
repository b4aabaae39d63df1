"""Replicas → zones: the IDC carries the base, the cloud the spike, and the loss of a zone is survived when asked for.

Scaling in needs no rule of its own: with fewer replicas wanted, the same filling order leaves the cloud
first.

The failure budget. The promised capacity is what the demand itself needs, without the headroom: `wanted / (1 +
headroom)`, rounded up. With a budget of one zone, no zone may hold more than the total less the promise, so that
what is left after the loss of any one zone still carries the demand. Spreading what is wanted anyway comes first; only
where it does not suffice are replicas added, in the IDC's spare room (it is paid for) before the cloud.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import groupby
from types import MappingProxyType

import msgspec

from springtide.decide.observed import Observed
from springtide.model import FleetPolicy, Node, Zone, ZoneKind, ZoneMode

_ROUNDING = 1e-9  # 0.3 / 0.1 is 2.9999999999999996 in floating point; that is 3 replicas, not 2


class Placement(msgspec.Struct, frozen=True):
    """Replicas by zone, in the order of the zones; `short` are those that fit nowhere.

    `promised` is how many are left in any case when one zone is lost (0: no budget is kept). `detour` are those that
    the cloud should have had and that are in the IDC, or nowhere, because it is full.
    """

    by_zone: dict[str, int]
    short: int
    reasons: tuple[str, ...]
    alerts: tuple[str, ...] = ()
    promised: int = 0
    detour: int = 0

    @property
    def total(self) -> int:
        """Replicas that have a place."""
        return sum(self.by_zone.values())


class Budget(msgspec.Struct, frozen=True):
    """What must be left after the loss of a zone: `promised` replicas, for which `most` may be placed in all."""

    promised: int
    most: int | None = None


class Offered(msgspec.Struct, frozen=True):
    """The room of each zone; where machines differ, what a core costs in each, fen/h, and what limits them."""

    slots: Mapping[str, int] | None = None
    prices: dict[str, float] = {}
    limits: str = ""


def promised(wanted: int, policy: FleetPolicy) -> int:
    """The part of the wanted replicas that the demand itself needs, without the headroom."""
    return math.ceil(wanted / (1 + policy.headroom) - _ROUNDING)


def node_slots(cores: float, policy: FleetPolicy, memory_mb: int = 0) -> int:
    """Replicas that so many cores can run; a replica never spans two nodes. A memory of 0 is not counted."""
    slots = int(cores / policy.replica_cores + _ROUNDING) if cores > 0 else 0
    if memory_mb > 0 and policy.replica_memory_mb > 0:
        slots = min(slots, memory_mb // policy.replica_memory_mb)
    return slots


def slots_of(observed: Observed, node: Node, policy: FleetPolicy) -> int:
    """Replicas of this service that a node can run beside what other services hold of it."""
    free_mb = observed.free_memory_mb(node)
    if node.memory_mb > 0 and policy.replica_memory_mb > free_mb:
        return 0
    return node_slots(observed.free_cores(node), policy, free_mb)


def zone_slots(zone: Zone, policy: FleetPolicy) -> int:
    """Replicas that the zone can run with all the nodes it may have."""
    return zone.nodes_max * node_slots(zone.cores_per_node, policy, zone.memory_mb_per_node)


def open_slots(
    observed: Observed, policy: FleetPolicy, cloud: Mapping[str, int] = MappingProxyType({})
) -> dict[str, int]:
    """Replicas that each zone may have now: its room less what others hold, and no new ones where none may start.

    `cloud` is the room of zones whose machines are not all of one size.
    """
    snapshot = observed.snapshot
    found = {zone.name: cloud.get(zone.name, zone_slots(zone, policy)) for zone in snapshot.zones}
    held = snapshot.taken_cores.keys() | snapshot.taken_memory_mb.keys()
    for name in sorted(held & observed.nodes.keys()):
        node = observed.nodes[name]
        if node.zone in found and node.zone not in cloud:
            found[node.zone] -= node_slots(node.cores, policy, node.memory_mb) - slots_of(observed, node, policy)
    for node in _cordoned(observed):
        if node.zone in found and node.zone not in cloud:
            found[node.zone] -= max(0, slots_of(observed, node, policy) - observed.occupied[node.node_id])
    for name, slots in found.items():
        mode = snapshot.modes.get(name, ZoneMode.OPEN)
        if mode is ZoneMode.DRAINED:
            found[name] = 0
        elif mode is ZoneMode.CORDONED or observed.is_silent(name):
            found[name] = min(max(slots, 0), observed.live_by_zone[name])
        else:
            found[name] = max(slots, 0)
    return found


def _cordoned(observed: Observed) -> list[Node]:
    """Nodes on which nothing new starts."""
    return [observed.nodes[name] for name in sorted(observed.snapshot.cordoned & observed.nodes.keys())]


def place(
    wanted: int,
    zones: Sequence[Zone],
    policy: FleetPolicy,
    down: Collection[str] = (),
    slots: Mapping[str, int] | Offered | None = None,
    budget: Budget | None = None,
) -> Placement:
    """Spread `wanted` replicas, and what the budget adds, over the zones that are not `down`.

    First the base over the IDC, as evenly as it goes; then the cloud, the cheapest price first and zones of
    one price evenly; then what room the IDC has left, then the cloud again for what the budget adds. What still has
    no place is `short`. `slots` is the room of each zone, where that is not all it may have.
    """
    offered = slots if isinstance(slots, Offered) else Offered(slots)
    room = {zone.name: zone_slots(zone, policy) for zone in zones} if offered.slots is None else dict(offered.slots)
    room |= dict.fromkeys(set(room) & set(down), 0)
    spike = max(0, wanted - policy.base_replicas * sum(zone.kind is ZoneKind.IDC for zone in zones))
    total, kept = wanted, 0
    if budget is not None:
        total, kept = _with_budget(wanted, spike, zones, room, budget)
    free = {name: min(count, total - kept) for name, count in room.items()} if kept else dict(room)
    total = max(total, wanted)
    by_zone, detour, spare, left = _fill(wanted, total, spike, zones, free, offered.prices)
    reasons = [f"zone {name} does not answer: its replicas are placed elsewhere" for name in sorted(down)]
    reasons += _reasons(zones, down, spare if not kept else 0, left, offered.limits)
    alerts = [reason for reason in reasons if reason.startswith("capacity short")]
    if budget is not None:
        said = _budget_reason(wanted, total, kept, budget)
        reasons.append(said)
        alerts += [said] if kept < budget.promised else []
    return Placement(
        by_zone=by_zone, short=left, reasons=tuple(reasons), alerts=tuple(alerts), promised=kept, detour=detour
    )


def keeping(placement: Placement, live: Mapping[str, int]) -> Placement:
    """The same number of replicas, but those that are `live` stay where they are.

    When nothing may be taken away, starting others elsewhere instead would only add to them.
    """
    floor = {name: min(live.get(name, 0), placement.total) for name in placement.by_zone}
    rest = placement.total - sum(floor.values())
    if rest < 0:
        return placement
    for name, wanted in placement.by_zone.items():
        more = min(max(0, wanted - floor[name]), rest)
        floor[name] += more
        rest -= more
    return msgspec.structs.replace(placement, by_zone=floor)


def _fill(
    wanted: int, total: int, spike: int, zones: Sequence[Zone], free: dict[str, int], price_of: Mapping[str, float]
) -> tuple[dict[str, int], int, int, int]:
    """The replicas by zone; how many the cloud lacked room for, went to spare room in the IDC, and have no place."""
    by_zone = dict.fromkeys((zone.name for zone in zones), 0)
    idc = [zone.name for zone in zones if zone.kind is ZoneKind.IDC]
    price = partial(price_per_core, prices=price_of)
    cloud = sorted((zone for zone in zones if zone.kind is ZoneKind.CLOUD), key=price)
    prices = [[zone.name for zone in same] for _, same in groupby(cloud, key=price)]
    homeless = _spread(wanted - spike, idc, free, by_zone)
    in_cloud = spike + homeless
    for names in prices:
        in_cloud = _spread(in_cloud, names, free, by_zone)
    detour = in_cloud
    left = in_cloud + total - wanted
    before = sum(by_zone[name] for name in idc)
    left = _spread(left, idc, free, by_zone)
    spare = sum(by_zone[name] for name in idc) - before
    for names in prices:
        left = _spread(left, names, free, by_zone)
    return by_zone, detour, spare, left


def _with_budget(
    wanted: int, spike: int, zones: Sequence[Zone], room: Mapping[str, int], budget: Budget
) -> tuple[int, int]:
    """How many replicas to place in all, and how many of them are then left whichever zone is lost.

    As few more than wanted as it takes, without renting for it if the IDC has the room. When the whole promise cannot
    be kept, as much of it as can be.
    """
    idc = [room[zone.name] for zone in zones if zone.kind is ZoneKind.IDC]
    cloud = [room[zone.name] for zone in zones if zone.kind is ZoneKind.CLOUD]
    whole = sum(idc) + sum(cloud)
    low = min(wanted, whole)
    high = max(low, whole if budget.most is None else min(whole, budget.most))

    def spare(kept: int, rented: int, total: int) -> int:
        """How many more than `total` fit when no zone may hold more than `total - kept`; concave in `total`."""
        most = total - kept
        in_cloud = sum(min(slots, most) for slots in cloud)
        return sum(min(slots, most) for slots in idc) + min(in_cloud, rented) - total

    def least(kept: int) -> int | None:
        low_enough = max(low, kept)
        if low_enough > high:
            return None
        for rented in (spike, whole):
            found = _first(low_enough, high, partial(spare, kept, rented))
            if found is not None:
                return found
        return None

    total = least(budget.promised)
    if total is not None:
        return total, budget.promised
    kept = bisect_left(range(budget.promised), x=True, key=lambda promise: least(promise + 1) is None)
    return least(kept) or low, kept


def _first(low: int, high: int, spare: Callable[[int], int]) -> int | None:
    """The smallest number in `low` to `high` of which `spare`, a concave function, is not negative."""
    peak = low + bisect_left(range(low, high), x=True, key=lambda total: spare(total + 1) <= spare(total))
    if spare(peak) < 0:
        return None
    return low + bisect_left(range(low, peak), x=True, key=lambda total: spare(total) >= 0)


def price_per_core(zone: Zone, prices: Mapping[str, float]) -> float:
    """What a core of the zone costs, fen/h: by these `prices`, or else by its configuration."""
    known = prices.get(zone.name)
    return zone.price_fen_per_node_h / zone.cores_per_node if known is None else known


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


def _reasons(zones: Sequence[Zone], down: Collection[str], spare: int, short: int, limits: str) -> list[str]:
    reasons: list[str] = []
    cloud = [zone for zone in zones if zone.kind is ZoneKind.CLOUD and zone.name not in down]
    quotas = limits or ", ".join(f"quota of {zone.name} is {zone.nodes_max} nodes" for zone in cloud)
    if spare:
        reasons.append(f"the cloud is full: {spare} replicas go to spare room in the IDC ({quotas or 'no cloud zone'})")
    if short:
        reasons.append(f"capacity short by {short} replicas: {quotas or 'no cloud zone'}")
    return reasons


def _budget_reason(wanted: int, total: int, kept: int, budget: Budget) -> str:
    if kept < budget.promised:
        return (
            f"failure budget: the loss of a zone would leave {kept} of the {budget.promised} replicas that the demand"
            " needs; add room in another zone, or raise a quota"
        )
    more = f", for which there are {total - wanted} more than wanted" if total > wanted else ""
    return f"failure budget: {kept} replicas stay whichever zone is lost{more}"
