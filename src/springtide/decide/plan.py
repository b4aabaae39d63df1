"""One decision: a snapshot and the policy in, a plan out. The same input gives the same plan."""

import msgspec

from springtide.decide import autoscale, line, rollout, route, zones
from springtide.decide.autoscale import Wanted
from springtide.decide.capacity import learn
from springtide.decide.observed import Observed
from springtide.decide.place import Budget, Placement, keeping, node_slots, open_slots, place, promised
from springtide.decide.procure import Procured, procure
from springtide.decide.promise import unkept
from springtide.decide.reconcile import Reconciler
from springtide.decide.release import keeps
from springtide.decide.rollout import Revisions
from springtide.decide.stock import refusals
from springtide.decide.supply import Supply
from springtide.decide.zones import Conclusions
from springtide.model import (
    DrainReplica,
    FleetPolicy,
    KeepNodes,
    LineLimit,
    Plan,
    SetEndpoints,
    Snapshot,
    StartReplica,
    ZoneKind,
    ZoneMode,
)


def plan(snapshot: Snapshot, policy: FleetPolicy) -> Plan:
    """What to do now.

    At most `policy.actions_max` actions, and before them the list for the balancer where it differs from the
    one it has (one idempotent write, not counted). A caller that fails to write the list must not begin the
    drains of that plan: a replica loses its traffic before it refuses to be ready.
    """
    observed = Observed(snapshot, policy)
    capacity = learn(observed, policy)
    demand = autoscale.demand_ahead(snapshot, policy)
    informed = msgspec.structs.replace(snapshot, capacity=capacity)
    wanted = autoscale.autoscale(demand, informed, policy, observed.live_by_zone.total(), len(observed.serving))
    seen = zones.conclude(observed, policy)
    hold = wanted.hold or seen.suspect
    limit = line.limit(snapshot, policy)
    ahead_ms = autoscale.ahead_ms(snapshot, policy)
    procured = _place(wanted, observed, policy, seen, limit)
    placement = procured.placement
    release = rollout.advance(Revisions(observed, policy, snapshot.rollout, seen), policy, placement.total)
    revisions = Revisions(observed, policy, release, seen)
    reconciler = Reconciler(observed, policy, procured, seen, revisions, hold=hold)
    steps = reconciler.compute()
    trying = revisions.coming > 0 or any(isinstance(step, StartReplica) for step in steps)
    release = rollout.noted(release, revisions, trying=trying)
    leaving = {step.replica_id for step in steps if isinstance(step, DrainReplica)}
    shares = line.shares(snapshot, limit, seen.shares(snapshot.now_ms, policy))
    reasons, alerts = _said(observed, placement, reconciler, revisions)
    of_line = line.said(snapshot, policy, limit)
    alerts += [*of_line, *procured.alerts, *refusals(snapshot.fills, snapshot.now_ms)]
    steps = (*steps, *_keep(observed, policy, len(steps), ahead_ms))
    alerts += unkept(observed, policy, procured, wanted.replicas, ahead_ms)
    if capacity.limit:
        alerts.append(f"more replicas bring no throughput: {capacity.limit} is the limit")
    return Plan(
        tick=snapshot.tick,
        demand=demand,
        replicas_wanted=wanted.replicas,
        placement=placement.by_zone,
        weights=route.zone_weights(observed, leaving, shares),
        actions=(*_list(observed, leaving, shares, seen), *steps),
        reasons=(demand.reason, wanted.reason, *placement.reasons, *seen.reasons, *of_line, *procured.alerts, *reasons),
        zone_health=seen.health,
        capacity=capacity,
        rollout=release,
        alerts=(*seen.alerts, *placement.alerts, *alerts),
        asked=wanted.asked,
        scaled_in_ms=snapshot.now_ms if reconciler.scaled_in else snapshot.scaled_in_ms,
        line_limit=limit,
    )


def _keep(observed: Observed, policy: FleetPolicy, steps: int, ahead_ms: int) -> tuple[KeepNodes, ...]:
    """What the cloud has to be told to keep for longer, where there is room for one action more."""
    if steps >= policy.actions_max or not policy.release_after_ms or observed.is_stale("replicas"):
        return ()
    return keeps(observed, policy, ahead_ms)


def _place(wanted: Wanted, observed: Observed, policy: FleetPolicy, seen: Conclusions, limit: LineLimit) -> Procured:
    """The placement, and what is bought for it; with a budget for the loss of a zone while none is lost.

    On old figures what is there is wanted as it is: it holds the budget's part already.
    """
    snapshot = observed.snapshot
    budget = None
    if policy.failure_budget and not seen.down and not wanted.hold:
        budget = Budget(promised(wanted.replicas, policy), autoscale.bounds(snapshot, policy).most)
    if not snapshot.offers:
        room = open_slots(observed, policy)
        if limit.share < 1.0:
            room = _without_more_cloud(observed, policy, room)
        procured = Procured(place(wanted.replicas, snapshot.zones, policy, seen.down, room, budget))
    else:
        ahead_ms = autoscale.ahead_ms(snapshot, policy)
        supply = Supply(observed, policy, seen.down)
        procured = procure(wanted.replicas, supply, budget, ahead_ms=ahead_ms, buys=limit.share >= 1.0)
    placement = procured.placement
    if wanted.hold:
        placement = keeping(placement, {**observed.live_by_zone, **dict.fromkeys(seen.down, 0)})
    placement = _beside_the_line(placement, observed, policy, limit, seen)
    if policy.failure_budget and seen.down:
        spent = f"the failure budget is spent on {', '.join(sorted(seen.down))}: no second loss is provided for"
        placement = msgspec.structs.replace(placement, reasons=(*placement.reasons, spent))
    return msgspec.structs.replace(procured, placement=placement)


def _without_more_cloud(observed: Observed, policy: FleetPolicy, room: dict[str, int]) -> dict[str, int]:
    """The room of each zone, but no more in the cloud than its nodes that are there or coming."""
    cloud = [zone for zone in observed.snapshot.zones if zone.kind is ZoneKind.CLOUD]
    most = {
        zone.name: (len(observed.staying[zone.name]) + observed.renting[zone.name])
        * node_slots(zone.cores_per_node, policy, zone.memory_mb_per_node)
        for zone in cloud
    }
    return {name: min(slots, most.get(name, slots)) for name, slots in room.items()}


def _beside_the_line(
    placement: Placement, observed: Observed, policy: FleetPolicy, limit: LineLimit, seen: Conclusions
) -> Placement:
    """With room in the IDC for what the line does not let the cloud take."""
    if limit.share >= 1.0:
        return placement
    room, snapshot = open_slots(observed, policy), observed.snapshot
    idc = [zone.name for zone in snapshot.zones if zone.kind is ZoneKind.IDC and zone.name not in seen.down]
    more = line.room_in_idc(observed, limit, {name: room[name] - placement.by_zone[name] for name in idc})
    by_zone = {name: count + more.get(name, 0) for name, count in placement.by_zone.items()}
    return msgspec.structs.replace(placement, by_zone=by_zone)


def _list(
    observed: Observed, leaving: set[str], shares: dict[str, float], seen: Conclusions
) -> tuple[SetEndpoints, ...]:
    """The list for the balancer, if it should have another one."""
    listed = route.endpoints(observed, leaving, shares, frozen=seen.suspect, thawed=seen.rescued)
    if listed == observed.snapshot.endpoints:
        return ()
    return (SetEndpoints(listed, f"{sum(e.weight > 0 for e in listed)} of {len(listed)} take traffic"),)


def _said(
    observed: Observed, placement: Placement, reconciler: Reconciler, revisions: Revisions
) -> tuple[list[str], list[str]]:
    """What else there is to say: reasons, and alerts for a person."""
    reasons, alerts = rollout.said(revisions.rollout, revisions)
    consequences = {
        "replicas": "nothing is started or stopped",
        "nodes": "nothing is rented or given back",
        "offers": "nothing is rented",
        "health": "every ready replica counts as healthy",
    }
    reasons += [
        f"the last word on {source} is {observed.snapshot.ages_ms[source] / 1000:.1f} s old: {consequence}"
        for source, consequence in consequences.items()
        if observed.is_stale(source)
    ]
    for name, mode in observed.snapshot.modes.items():
        live = observed.live_by_zone[name]
        if mode is ZoneMode.CORDONED:
            reasons.append(f"zone {name} is cordoned: nothing new starts there, {live} replicas serve on")
        elif mode is ZoneMode.DRAINED:
            reasons.append(
                f"zone {name} is being emptied: {live} replicas are left" if live else f"zone {name} is empty"
            )
            if live and placement.short:
                alerts.append(f"zone {name} cannot be emptied yet: {placement.short} replicas have no place elsewhere")
    if reconciler.no_room:
        reasons.append("the rollout waits: no node has room for one replica more")
        alerts.append("a rollout waits for room: raise a quota, or lower what is wanted")
    return reasons, alerts
