"""Demand → replicas: up at once, down with patience."""

import math
from collections.abc import Sequence

import msgspec

from springtide.decide.forecast import forecast
from springtide.model import CalendarEvent, DemandRange, FleetPolicy, Snapshot, Zone, ZoneKind

_ROUNDING = 1e-9  # 1.3 * 1000 / 100 is 13.000000000000002 in floating point; that is 13 replicas, not 14


class Wanted(msgspec.Struct, frozen=True):
    """How many replicas the fleet should have. `hold` means that none may be taken away now."""

    replicas: int
    hold: bool
    reason: str


def base_total(policy: FleetPolicy, zones: Sequence[Zone]) -> int:
    """The replicas that stay for ever: so many in each IDC zone."""
    return policy.base_replicas * sum(zone.kind is ZoneKind.IDC for zone in zones)


def replicas_needed(requests_per_s: float, policy: FleetPolicy, zones: Sequence[Zone]) -> int:
    """Replicas that carry this demand with headroom; at least the base, at most the budget."""
    carried = requests_per_s * (1 + policy.headroom) / policy.replica_requests_per_s
    needed = max(math.ceil(carried - _ROUNDING), base_total(policy, zones))
    return needed if policy.replicas_max is None else min(needed, policy.replicas_max)


def autoscale(demand: DemandRange, snapshot: Snapshot, policy: FleetPolicy, present: int) -> Wanted:
    """Replicas wanted now. `present` are those that serve or are starting.

    Down only when the demand has asked for less during all of `patience_ms`, and never on old news: without a
    fresh traffic sample what is present stays.
    """
    asked = replicas_needed(demand.high, policy, snapshot.zones)
    if traffic_is_stale(snapshot, policy):
        kept = max(asked, present)
        return Wanted(replicas=kept, hold=True, reason="no fresh traffic figures: nothing is taken away")
    since = snapshot.now_ms - policy.patience_ms
    remembered = max((count for at_ms, count in snapshot.wanted_before if at_ms >= since), default=0)
    if policy.replicas_max is not None:
        remembered = min(remembered, policy.replicas_max)
    if remembered > asked:
        reason = f"{asked} would do, {remembered} were needed within the last {policy.patience_ms / 1000:g} s"
        return Wanted(replicas=remembered, hold=False, reason=reason)
    reason = f"{demand.high:.0f}/s with {policy.headroom:.0%} headroom need {asked} replicas"
    return Wanted(replicas=asked, hold=False, reason=reason)


def demand_ahead(snapshot: Snapshot, policy: FleetPolicy) -> DemandRange:
    """The demand to expect until capacity that is asked for now would serve."""
    horizon = horizon_ms(snapshot.zones, policy, snapshot.calendar)
    return forecast(snapshot.traffic, snapshot.calendar, snapshot.now_ms, horizon)


def traffic_is_stale(snapshot: Snapshot, policy: FleetPolicy) -> bool:
    """Whether the newest traffic sample is too old to take capacity away by, or missing."""
    return not snapshot.traffic or snapshot.now_ms - snapshot.traffic[-1].at_ms > policy.stale_ms


def horizon_ms(zones: Sequence[Zone], policy: FleetPolicy, calendar: Sequence[CalendarEvent]) -> int:
    """How long before a demand the capacity for it must be asked for.

    The longest lead of a zone, then every wave of starts the largest announced event needs on top of the
    base, each a tick longer than a start because its end is seen at a tick; then the age that an observation
    may have. It depends on nothing that changes while capacity comes up, so an event once in sight stays in
    sight.
    """
    lead = max((zone.lead_ms for zone in zones), default=0)
    peak = max((event.peak_requests_per_s for event in calendar), default=0.0)
    extra = replicas_needed(peak, policy, zones) - base_total(policy, zones)
    waves = max(1, math.ceil(extra / min(policy.starting_max, policy.actions_max)))
    tick = policy.stale_ms // 3  # an observation is stale after three ticks
    return lead + waves * (policy.start_ms + tick) + policy.stale_ms
