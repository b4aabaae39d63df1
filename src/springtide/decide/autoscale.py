"""Demand → replicas: up at once, down with patience."""

import math
from collections.abc import Sequence

import msgspec

from springtide.decide.forecast import expect
from springtide.decide.signals import replicas_by_signals
from springtide.model import CalendarEvent, DemandRange, FleetPolicy, Snapshot, Zone, ZoneKind

_ROUNDING = 1e-9  # 1.3 * 1000 / 100 is 13.000000000000002 in floating point; that is 13 replicas, not 14


class Wanted(msgspec.Struct, frozen=True):
    """How many replicas the fleet should have. `hold` means that none may be taken away now.

    `asked` is what demand and signals alone asked for at this moment, without the memory of the last `patience_ms`.
    """

    replicas: int
    hold: bool
    reason: str
    asked: int


class Bounds(msgspec.Struct, frozen=True):
    """The fewest and the most replicas there may be; no most: as many as are asked for."""

    least: int
    most: int | None

    def keep(self, count: int) -> int:
        """The count, within the bounds; the most counts when they contradict each other."""
        count = max(count, self.least)
        return count if self.most is None else min(count, self.most)

    def __str__(self) -> str:
        """As it is said in a reason."""
        return f"at or above {self.least}" if self.most is None else f"between {self.least} and {self.most}"


def base_total(policy: FleetPolicy, zones: Sequence[Zone]) -> int:
    """The replicas that stay for ever: so many in each IDC zone."""
    return policy.base_replicas * sum(zone.kind is ZoneKind.IDC for zone in zones)


def replicas_needed(requests_per_s: float, policy: FleetPolicy, zones: Sequence[Zone]) -> int:
    """Replicas that carry this demand with headroom; at least the base, at most the budget."""
    carried = requests_per_s * (1 + policy.headroom) / policy.replica_requests_per_s
    needed = max(math.ceil(carried - _ROUNDING), base_total(policy, zones))
    return needed if policy.replicas_max is None else min(needed, policy.replicas_max)


def replica_rate(snapshot: Snapshot, policy: FleetPolicy) -> float:
    """What a replica takes, requests/s: what was learnt, where the policy allows it, or the calibrated figure."""
    if policy.capacity_learnt and snapshot.capacity:
        return snapshot.capacity.requests_per_s
    return policy.replica_requests_per_s


def bounds(snapshot: Snapshot, policy: FleetPolicy) -> Bounds:
    """The bounds that were set, while they are in force, else those of the policy: the base, and the budget."""
    scale = snapshot.scale
    if scale and (not scale.until_ms or snapshot.now_ms < scale.until_ms):
        return Bounds(scale.replicas_min, scale.replicas_max)
    return Bounds(base_total(policy, snapshot.zones), policy.replicas_max)


def autoscale(
    demand: DemandRange, snapshot: Snapshot, policy: FleetPolicy, present: int, serving: int | None = None
) -> Wanted:
    """Replicas wanted now.

    `present` are those that serve or are starting, `serving` those that signals are about (None: all that are present).
    Up at once, to the most that the demand or a signal asks for; down only when all of them have asked for less during
    all of `patience_ms`, and never on old news: without fresh figures what is present stays. While an engine is known
    to be the limit, nothing is added.
    """
    within = bounds(snapshot, policy)
    signals = replicas_by_signals(snapshot, policy, present if serving is None else serving)
    carried = demand.high * (1 + policy.headroom) / replica_rate(snapshot, policy)
    by_demand = math.ceil(carried - _ROUNDING)
    asked = within.keep(max(by_demand, signals.replicas))
    reason = f"{demand.high:.0f}/s with {policy.headroom:.0%} headroom need {by_demand} replicas"
    if signals.replicas > by_demand:
        reason = signals.reason
    since = snapshot.now_ms - policy.patience_ms
    remembered = within.keep(max((count for at_ms, count in snapshot.wanted_before if at_ms >= since), default=0))
    stale = traffic_is_stale(snapshot, policy)
    wanted, hold = asked, stale or signals.blind
    if hold:
        wanted = max(asked, present)
        why = "no fresh traffic figures" if stale else signals.reason
        reason = f"{why}: nothing is taken away"
    elif remembered > asked:
        wanted = remembered
        reason = f"{asked} would do, {remembered} were needed within the last {policy.patience_ms / 1000:g} s"
    elif asked != max(by_demand, signals.replicas):
        reason = f"{reason}; kept {within}"
    return _within_limit(Wanted(wanted, hold, reason, asked), snapshot, within, present)


def _within_limit(wanted: Wanted, snapshot: Snapshot, within: Bounds, present: int) -> Wanted:
    """No more than there are, or than have brought throughput, while something behind the replicas is the limit."""
    capacity = snapshot.capacity
    if capacity is None or not capacity.limit:
        return wanted
    useful = max(present, capacity.best_replicas, within.least)
    if wanted.replicas <= useful:
        return wanted
    reason = f"{wanted.reason}; more than {useful} bring nothing: {capacity.limit} is the limit"
    return msgspec.structs.replace(wanted, replicas=useful, reason=reason)


def demand_ahead(snapshot: Snapshot, policy: FleetPolicy) -> DemandRange:
    """The demand to expect until capacity that is asked for now would serve."""
    return expect(snapshot, policy, ahead_ms(snapshot, policy))


def ahead_ms(snapshot: Snapshot, policy: FleetPolicy) -> int:
    """The horizon of a snapshot's decision; a cloud with offers needs as long as the slowest of their boots."""
    boot_ms = max((offer.boot_ms[1] for offer in snapshot.offers), default=0)
    return horizon_ms(snapshot.zones, policy, snapshot.calendar, boot_ms)


def traffic_is_stale(snapshot: Snapshot, policy: FleetPolicy) -> bool:
    """Whether the newest traffic sample is too old to take capacity away by, or missing."""
    return not snapshot.traffic or snapshot.now_ms - snapshot.traffic[-1].at_ms > policy.stale_ms


def horizon_ms(zones: Sequence[Zone], policy: FleetPolicy, calendar: Sequence[CalendarEvent], boot_ms: int = 0) -> int:
    """How long before a demand the capacity for it must be asked for.

    The longest lead of a zone, or `boot_ms` where that is longer, then every wave of starts the largest announced event
    needs on top of the base, each a tick longer than a start because its end is seen at a tick; then the age that an
    observation may have. It depends on nothing that changes while capacity comes up, so an event once in sight stays in
    sight.
    """
    lead = max((zone.lead_ms for zone in zones), default=0)
    lead = max(lead, boot_ms)
    peak = max((event.peak_requests_per_s for event in calendar), default=0.0)
    extra = replicas_needed(peak, policy, zones) - base_total(policy, zones)
    waves = max(1, math.ceil(extra / min(policy.starting_max, policy.actions_max)))
    tick = policy.stale_ms // 3  # an observation is stale after three ticks
    return lead + waves * (policy.start_ms + tick) + policy.stale_ms
