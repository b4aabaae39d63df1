"""Load of the lines to the cloud → how much of its share of traffic the cloud may have.

A line above its share, or the one that is left of two, first loses load at once: the cloud's replicas get less weight.
What they no longer take is given room in the IDC, and nothing more is rented. It comes back in small steps.
"""

import math

from springtide.decide.observed import Observed
from springtide.model import FleetPolicy, LineLimit, Snapshot, ZoneKind

STEP_MS = 5_000
"""The time between two steps: the effect of one has to show in the figures first."""

RETURN = 1.1
"""A step back gives at most so many times the share before."""

CALM = 0.95
"""Below this part of what a line may carry, the cloud gets some of its share back."""

AIM = 0.98
"""A step back aims at this part of what the line may carry."""

SHARE_MIN = 0.05
"""The least share: enough to see that the line carries again."""


def limit(snapshot: Snapshot, policy: FleetPolicy) -> LineLimit:
    """The limit after this snapshot."""
    before = snapshot.line_limit
    if not snapshot.line_load:
        return before
    load, most = max(snapshot.line_load.values()), policy.line_share_max
    if snapshot.now_ms - before.since_ms < STEP_MS:
        return before
    if load > most:
        share = max(SHARE_MIN, before.share * most / load)
    elif before.share < 1.0 and load < most * CALM:
        share = min(1.0, before.share * min(RETURN, most * AIM / max(load, SHARE_MIN)))
    else:
        return before
    return LineLimit(share, snapshot.now_ms)


def shares(snapshot: Snapshot, found: LineLimit, by_zone: dict[str, float]) -> dict[str, float]:
    """The shares of traffic by zone, with the line's limit on those of the cloud."""
    if found.share >= 1.0:
        return by_zone
    cloud = {zone.name for zone in snapshot.zones if zone.kind is ZoneKind.CLOUD}
    return by_zone | {name: by_zone.get(name, 1.0) * found.share for name in cloud}


def room_in_idc(observed: Observed, found: LineLimit, free: dict[str, int]) -> dict[str, int]:
    """Replicas to add in the IDC, within what is `free` there, for what the cloud's replicas may not take."""
    if found.share >= 1.0:
        return {}
    snapshot = observed.snapshot
    cloud = [zone.name for zone in snapshot.zones if zone.kind is ZoneKind.CLOUD]
    left = math.ceil(sum(observed.live_by_zone[name] for name in cloud) * (1.0 - found.share))
    more: dict[str, int] = {}
    for name, room in free.items():
        if left > 0 and room > 0:
            more[name] = min(left, room)
            left -= more[name]
    return more


def said(snapshot: Snapshot, policy: FleetPolicy, found: LineLimit) -> list[str]:
    """What there is to say of it."""
    if found.share >= 1.0 or not snapshot.line_load:
        return []
    name = max(snapshot.line_load, key=lambda one: snapshot.line_load[one])
    load = snapshot.line_load[name]
    text = (
        f"line {name} is at {load:.0%} of its bandwidth, of which {policy.line_share_max:.0%} are ours:"
        f" the cloud has {found.share:.0%} of its share of the traffic"
    )
    return [text]
