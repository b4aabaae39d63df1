"""Whether an announced event's capacity will stand when it opens: an honest word, said as early as it is known."""

from springtide.decide.observed import Observed
from springtide.decide.place import slots_of
from springtide.decide.procure import Procured
from springtide.decide.supply import Supply
from springtide.model import CalendarEvent, FleetPolicy, NodeState, Offer, ReplicaState, ZoneKind


def unkept(observed: Observed, policy: FleetPolicy, procured: Procured, wanted: int, ahead_ms: int) -> list[str]:
    """One line for each event within `ahead_ms` whose `wanted` replicas are not sure to stand when it opens.

    A machine counts if 99 of 100 of its kind would be ready in time, a replica if its start ends in time.
    """
    snapshot = observed.snapshot
    events = [
        event
        for event in snapshot.calendar
        if snapshot.now_ms < event.opens_ms <= snapshot.now_ms + ahead_ms + event.ready_ms
    ]
    supply = procured.supply
    stands = len(observed.serving) >= wanted and not observed.reclaimed
    if not events or supply is None or stands:
        return []
    found = []
    for event in sorted(events, key=lambda one: one.opens_ms)[:1]:
        in_time = _in_time(observed, policy, supply, procured, event)
        if in_time < wanted:
            found.append(
                f"{event.name} will not be met: {in_time} of the {wanted} replicas that it needs are sure to stand when"
                f" it opens in {(event.opens_ms - snapshot.now_ms) / 1000:.0f} s"
            )
    return found


def _in_time(observed: Observed, policy: FleetPolicy, supply: Supply, procured: Procured, event: CalendarEvent) -> int:
    """Replicas that will stand: what serves or starts, and what nodes will have room for in time."""
    snapshot = observed.snapshot
    left_ms = event.opens_ms - snapshot.now_ms
    standing = sum(
        snapshot.now_ms - replica.since_ms + left_ms >= policy.start_ms
        for replica in observed.by_state[ReplicaState.STARTING]
        if observed.has_node(replica.node_id)
    )
    standing += sum(observed.has_node(replica.node_id) for replica in observed.by_state[ReplicaState.READY])
    standing += len(observed.starts_in_flight)
    # A start waits for its turn: so many may be starting at once.
    turns = max(0, left_ms // (policy.start_ms + policy.stale_ms // 3))
    most = turns * min(policy.starting_max, policy.actions_max)
    room = 0
    for zone in snapshot.zones:
        wanted = procured.placement.by_zone[zone.name] - observed.live_by_zone[zone.name]
        if wanted > 0:
            cloud = zone.kind is ZoneKind.CLOUD
            slots = (
                _cloud_room(observed, policy, supply, procured, zone.name, left_ms)
                if cloud
                else _own_room(observed, policy, zone.name)
            )
            room += min(wanted, slots)
    return standing + min(room, most)


def _own_room(observed: Observed, policy: FleetPolicy, zone: str) -> int:
    nodes = (node for node in observed.staying[zone] if node.node_id not in observed.snapshot.cordoned)
    return sum(max(0, slots_of(observed, node, policy) - observed.occupied[node.node_id]) for node in nodes)


def _cloud_room(
    observed: Observed, policy: FleetPolicy, supply: Supply, procured: Procured, zone: str, left_ms: int
) -> int:
    """Room on a cloud zone's nodes that are ready, or will be, a start before the event opens."""
    snapshot = observed.snapshot
    boot_left_ms = left_ms - policy.start_ms
    room = 0
    for node in observed.staying[zone]:
        free = supply.slots_on(node) - observed.occupied[node.node_id]
        if free <= 0 or node.node_id in snapshot.cordoned:
            continue
        if node.state is NodeState.BOOTING:
            boot_ms = _boot_ms(supply.offers.get(f"{zone}/{node.instance_type}/{node.market.value}"), observed, zone)
            # One that is late already may take as long again as is usual.
            booted_ms = max(boot_ms[1] - (snapshot.now_ms - node.since_ms), 0) or boot_ms[0]
            if booted_ms > boot_left_ms:
                continue
        room += free
    orders = [(action, count) for action, count in observed.coming if action.zone == zone]
    orders += [(rent, rent.count) for rent in procured.rents if rent.zone == zone]
    for action, count in orders:
        if _boot_ms(supply.offers.get(action.order.offer_key), observed, zone)[1] <= boot_left_ms:
            room += count * supply.slots_of(action)
    for purchase in snapshot.purchases:
        if procured.later and purchase.zone == zone and purchase.ready_ms <= snapshot.now_ms + boot_left_ms:
            room += purchase.count * supply.slots_of(purchase)
    return room


def _boot_ms(offer: Offer | None, observed: Observed, zone: str) -> tuple[int, int]:
    if offer is not None:
        return offer.boot_ms
    lead_ms = next((one.lead_ms for one in observed.snapshot.zones if one.name == zone), 0)
    return lead_ms, lead_ms
