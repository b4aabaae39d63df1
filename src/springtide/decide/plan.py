"""One decision: a snapshot and the policy in, a plan out. The same input gives the same plan."""

from springtide.decide import autoscale, forecast, place, route
from springtide.decide.observed import Observed
from springtide.decide.reconcile import Reconciler
from springtide.model import Action, DrainReplica, FleetPolicy, Plan, SetEndpoints, Snapshot


def plan(snapshot: Snapshot, policy: FleetPolicy) -> Plan:
    """What to do now.

    At most `policy.actions_max` actions, and before them the list for the balancer where it differs from the
    one it has (one idempotent write, not counted). A caller that fails to write the list must not begin the
    drains of that plan: a replica loses its traffic before it refuses to be ready.
    """
    observed = Observed(snapshot, policy)
    horizon = autoscale.horizon_ms(snapshot.zones, policy, snapshot.calendar)
    demand = forecast.forecast(snapshot.traffic, snapshot.calendar, snapshot.now_ms, horizon)
    wanted = autoscale.autoscale(demand, snapshot, policy, observed.live_by_zone.total())
    suspect = route.is_suspect(observed, policy)
    down = route.zones_down(observed, policy)
    placement = place.place(wanted.replicas, snapshot.zones, policy, down)
    steps = Reconciler(observed, policy, placement, down, hold=wanted.hold or suspect).compute()
    leaving = {step.replica_id for step in steps if isinstance(step, DrainReplica)}
    listed = route.endpoints(observed, leaving, frozen=suspect)
    actions: tuple[Action, ...] = steps
    if listed != snapshot.endpoints:
        actions = (
            SetEndpoints(listed, f"{sum(e.weight > 0 for e in listed)} of {len(listed)} take traffic"),
            *steps,
        )
    return Plan(
        tick=snapshot.tick,
        demand=demand,
        replicas_wanted=wanted.replicas,
        placement=placement.by_zone,
        weights=route.zone_weights(observed, leaving),
        actions=actions,
        reasons=(demand.reason, wanted.reason, *placement.reasons, *_warnings(observed, suspect=suspect)),
    )


def _warnings(observed: Observed, *, suspect: bool) -> list[str]:
    consequences = {
        "replicas": "nothing is started or stopped",
        "nodes": "nothing is rented or given back",
        "health": "every ready replica counts as healthy",
    }
    stale = [
        f"the last word on {source} is {observed.snapshot.ages_ms[source] / 1000:.1f} s old: {consequence}"
        for source, consequence in consequences.items()
        if observed.is_stale(source)
    ]
    if suspect:
        stale.append("more than half of the ready replicas seem unreachable: weights stay, nothing is taken away")
    return stale
