"""What a decision promises by itself, told from what it knew and what it decided, without asking the decision code.

Each function yields what is against its promise.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from springtide.model import (
    DrainReplica,
    FleetPolicy,
    KeepNodes,
    Plan,
    ReleaseNode,
    RentNodes,
    ReplicaState,
    SetEndpoints,
    Snapshot,
    StartReplica,
    StopReplica,
    ZoneKind,
)

Promise = Callable[[Snapshot, Plan, FleetPolicy], Iterable[str]]


def nothing_taken_away_on_stale_figures(snapshot: Snapshot, plan: Plan, policy: FleetPolicy) -> Iterable[str]:
    """Where the last word is older than three ticks, no replica is drained and no machine given back."""
    newest_ms = snapshot.traffic[-1].at_ms if snapshot.traffic else 0
    old = {source for source, age_ms in snapshot.ages_ms.items() if age_ms > policy.stale_ms}
    blind = snapshot.now_ms - newest_ms > policy.stale_ms or bool(old & {"replicas", "nodes"})
    leaving = {node.node_id for node in snapshot.nodes if node.reclaim_ms}
    nodes_of = {replica.replica_id: replica.node_id for replica in snapshot.replicas}
    for action in plan.actions:
        if not isinstance(action, DrainReplica | ReleaseNode):
            continue
        node_id = action.node_id if isinstance(action, ReleaseNode) else nodes_of.get(action.replica_id, "")
        if f"replicas/{action.zone}" in old or (blind and node_id not in leaving):
            yield f"takes away on stale figures ({', '.join(sorted(old)) or 'traffic'}): {action}"


def cloud_first_out(snapshot: Snapshot, plan: Plan, policy: FleetPolicy) -> Iterable[str]:
    """An IDC room is never drained below its base, or what the failure budget lets it hold: the cloud's goes first."""
    live = Counter(
        [r.zone for r in snapshot.replicas if r.state in {ReplicaState.READY, ReplicaState.STARTING}],
    )
    drained = Counter([action.zone for action in plan.actions if isinstance(action, DrainReplica)])
    for zone in snapshot.zones:
        if zone.kind is not ZoneKind.IDC or not drained[zone.name]:
            continue
        left, stay = live[zone.name] - drained[zone.name], policy.base_replicas
        if policy.failure_budget:
            stay = min(stay, plan.placement[zone.name])  # no zone may hold more than the fleet can lose
        if left < stay:
            yield f"leaves {left} replicas in {zone.name}, of {stay} that stay for ever"


def purchases_within_limits(snapshot: Snapshot, plan: Plan, policy: FleetPolicy) -> Iterable[str]:
    """What is ordered fits into the quotas, the rooms and the spending limit beside what is there and on order."""
    rents = [action for action in plan.actions if isinstance(action, RentNodes)]
    if not rents:
        return
    arrived = Counter([node.client_token for node in snapshot.nodes if node.client_token])
    coming = [(one, one.count - arrived[one.client_token]) for one in snapshot.in_flight if isinstance(one, RentNodes)]
    ordered = [(one, max(0, count)) for one, count in coming] + [(one, one.count) for one in rents]
    for quota in snapshot.quotas:
        ours = [(one, n) for one, n in ordered if one.market is quota.market and quota.zone in {"", one.zone}]
        bought = any(one in rents for one, _ in ours)
        cores = quota.used_cores + sum(one.cores * n for one, n in ours)
        if bought and cores > quota.limit_cores:
            yield f"orders {cores} cores of {quota.limit_cores} ({quota.market.value} {quota.zone})"
    nodes = Counter([node.zone for node in snapshot.nodes])
    for one, count in ordered:
        nodes[one.zone] += count
    limits = {zone.name: zone.nodes_max for zone in snapshot.zones}
    for name in sorted({one.zone for one in rents}):
        if nodes[name] > limits[name]:
            yield f"orders {nodes[name]} machines in {name}, which may have {limits[name]}"
    if policy.spend_max_fen_per_h:
        prices = {offer.key: offer.price_fen_per_h for offer in snapshot.offers}
        cost = sum(node.price_fen_per_h for node in snapshot.nodes)
        cost += sum(prices.get(one.order.offer_key, 0.0) * count for one, count in ordered)
        if cost > policy.spend_max_fen_per_h * (1 + 1e-9):
            yield f"orders {cost:.0f} fen/h of {policy.spend_max_fen_per_h:.0f}"


def actions_bounded(_: Snapshot, plan: Plan, policy: FleetPolicy) -> Iterable[str]:
    """A tick begins at most `actions_max` actions, beside the balancer's list and machines kept or given back."""
    begun = [a for a in plan.actions if not isinstance(a, SetEndpoints | ReleaseNode | KeepNodes)]
    if len(begun) > policy.actions_max:
        yield f"{len(begun)} actions of {policy.actions_max}"


def nothing_done_twice(snapshot: Snapshot, plan: Plan, _: FleetPolicy) -> Iterable[str]:
    """No machine is given back that runs something, or starts something; no replica is started or ended twice."""
    used = {r.node_id for r in snapshot.replicas if r.state is not ReplicaState.FAILED}
    starts = [a.spec for a in plan.actions if isinstance(a, StartReplica)]
    used |= {spec.node_id for spec in starts}
    stops = {a.replica_id for a in plan.actions if isinstance(a, StopReplica)}
    for action in plan.actions:
        if isinstance(action, ReleaseNode) and action.node_id in used:
            yield f"gives {action.node_id} back, which runs something"
        elif isinstance(action, DrainReplica) and action.replica_id in stops:
            yield f"drains and stops {action.replica_id}"
    known = {r.replica_id for r in snapshot.replicas}
    ids = Counter([spec.replica_id for spec in starts])
    twice = [name for name, count in ids.items() if count > 1 or name in known]
    if twice:
        yield f"starts {twice[0]} twice"


PROMISES: Mapping[str, Promise] = {
    "nothing taken away on stale figures": nothing_taken_away_on_stale_figures,
    "cloud first out": cloud_first_out,
    "purchases within limits": purchases_within_limits,
    "actions bounded": actions_bounded,
    "nothing done twice": nothing_done_twice,
}
