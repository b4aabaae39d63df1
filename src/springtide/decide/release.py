"""Rented machines on their way out: which go first and when, and until when the cloud keeps the others by itself.

The dearest core goes first. Where a cloud bills by the hour, an empty machine stays until shortly before its hour is
over: it is paid for anyway. The moment at which the cloud takes a machine back by itself is set well past the end of
what it is for; it is moved later when that is, and never earlier, so that a control loop that has died ends no sale.
"""

from collections.abc import Collection, Iterable, Mapping

from springtide.decide.observed import Observed
from springtide.model import FleetPolicy, KeepNodes, Node, Offer, Snapshot

BILL_MARGIN_MS = 120_000
"""So long before its billing period ends a machine is given back: a call may have to be repeated."""

KEEP_SLACK_MS = 120_000
"""A release this much too early is not moved: a cloud rounds to minutes (ECS: `AutoReleaseTime`)."""

KEEP_MAX = 100
"""Machines whose release one action moves."""


def event_end_ms(snapshot: Snapshot, ahead_ms: int) -> int:
    """When the last event ends that is open or wants its capacity within `ahead_ms`; 0: there is none."""
    now_ms = snapshot.now_ms
    ends = (
        event.opens_ms + event.lasts_ms
        for event in snapshot.calendar
        if event.opens_ms - event.ready_ms <= now_ms + ahead_ms and event.opens_ms + event.lasts_ms > now_ms
    )
    return max(ends, default=0)


def release_at_ms(snapshot: Snapshot, policy: FleetPolicy, ahead_ms: int) -> int:
    """When the cloud shall take back by itself what is rented now; 0: never."""
    if not policy.release_after_ms:
        return 0
    return max(snapshot.now_ms, event_end_ms(snapshot, ahead_ms)) + policy.release_after_ms


def keeps(observed: Observed, policy: FleetPolicy, ahead_ms: int) -> tuple[KeepNodes, ...]:
    """What has to be kept for longer than the cloud was told, in one action of at most KEEP_MAX machines.

    All that is rented, when an event in sight ends later; and what still runs replicas with less than half of
    `release_after_ms` left.
    """
    snapshot, after_ms = observed.snapshot, policy.release_after_ms
    if not after_ms or observed.is_stale("nodes"):
        return ()
    end_ms = event_end_ms(snapshot, ahead_ms)
    for_event = end_ms + after_ms - KEEP_SLACK_MS if end_ms else 0
    for_use = snapshot.now_ms + after_ms // 2
    limit = max(for_event, for_use)
    early = [node for node in snapshot.nodes if 0 < node.release_at_ms < limit and not node.reclaim_ms]
    if not early:
        return ()
    moving = {name for one in snapshot.in_flight if isinstance(one, KeepNodes) for name in one.node_ids}
    due = [
        node.node_id
        for node in early
        if node.node_id not in moving
        and observed.has_node(node.node_id)
        and (node.release_at_ms < for_event or (node.release_at_ms < for_use and node.node_id in observed.used_nodes))
    ]
    if not due:
        return ()
    until_ms = max(snapshot.now_ms, end_ms) + after_ms
    reason = f"{len(due)} nodes are needed for longer than the cloud was told"
    return (KeepNodes(tuple(due[:KEEP_MAX]), until_ms, reason),)


def leaving_order(nodes: Iterable[Node]) -> list[Node]:
    """The dearest core first; of one price those that do not run yet, then the newest."""
    return sorted(nodes, key=lambda n: (-n.price_fen_per_h / n.cores, n.state == "ready", -n.since_ms, n.node_id))


def is_paid_for(node: Node, offers: dict[str, Offer], now_ms: int) -> bool:
    """Whether its billing period goes on for a while: given back now or later, it costs the same."""
    offer = offers.get(f"{node.zone}/{node.instance_type}/{node.market.value}")
    period_ms = offer.billing_ms if offer else 0
    if not node.rented_ms or period_ms <= BILL_MARGIN_MS:
        return False
    return (now_ms - node.rented_ms) % period_ms < period_ms - BILL_MARGIN_MS


def releasable(empty: Collection[Node], surplus: int, slots: Mapping[str, int], snapshot: Snapshot) -> list[Node]:
    """Which empty nodes of a zone go, when `surplus` replicas' worth of room is too much.

    `slots` is what each counts for; one that counts for nothing goes in any case.
    """
    billed = {offer.key: offer for offer in snapshot.offers if offer.billing_ms > BILL_MARGIN_MS} if empty else {}
    going = []
    for node in leaving_order(empty):
        count = slots[node.node_id]
        if count > surplus:
            continue
        surplus -= count
        if not node.reclaim_ms and is_paid_for(node, billed, snapshot.now_ms):
            continue
        going.append(node)
    return going
