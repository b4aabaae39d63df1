"""What a replica really takes → the estimate that scaling goes by, and the engine that is the limit when there is one.

A replica shows its capacity only while more work waits for it than it can do, and only while what is behind it could do
more. So a sample counts when requests have been waiting at the balancer for `SAMPLES` samples in a row, no replica came
or went meanwhile, and no engine behind is saturated. Figures outside 0.5 to 1.5 of the calibrated one are not believed.
"""

from collections.abc import Sequence

import msgspec

from springtide.decide.observed import Observed
from springtide.model import CapacityEstimate, FleetPolicy, ReplicaState, TrafficSample

BELIEVED = (0.5, 1.5)
"""The bounds of a learnt capacity, as shares of the calibrated one."""

SAMPLES = 3
"""So many samples in a row must show a standing queue and the same replicas."""

WEIGHT = 0.2
"""Of a new sample in the estimate: an exponential mean over about nine samples (2 / WEIGHT - 1)."""

SATURATED = 0.85
"""An engine this busy is what limits the throughput, not the replicas."""

GAIN_MIN = 0.25
"""Added replicas must bring at least this share of the throughput that their number promises."""

MEMORY_MS = 60_000
"""A named limit, and the throughput to beat, count for so long after the last sample; then adding is tried again."""


def learn(observed: Observed, policy: FleetPolicy) -> CapacityEstimate:
    """The estimate after this snapshot. Without a sample that counts it is the one before, or the calibrated figure."""
    snapshot = observed.snapshot
    known = snapshot.capacity or CapacityEstimate(policy.replica_requests_per_s)
    if snapshot.now_ms - known.at_ms > MEMORY_MS:
        known = msgspec.structs.replace(known, limit="", best_per_s=0.0, best_replicas=0)
    window = snapshot.traffic[-SAMPLES:]
    if not all(sample.queued for sample in window):
        return known  # nothing waits, so there is nothing to learn
    serving = _steady(observed, window)
    if not serving or not _queue_stands(window, serving) or window[-1].at_ms <= known.at_ms:
        return known
    served_per_s = sum(map(_served_per_s, window)) / len(window)
    busiest = max(snapshot.engines, key=lambda name: snapshot.engines[name], default="")
    saturated = bool(busiest) and snapshot.engines[busiest] >= SATURATED
    known = _with_limit(known, served_per_s, serving, busiest if saturated else "")
    if not known.limit and not saturated:
        known = _with_sample(known, served_per_s / serving, policy)
    return msgspec.structs.replace(known, at_ms=window[-1].at_ms)


def _steady(observed: Observed, window: Sequence[TrafficSample]) -> int:
    """The replicas that served during all of the window; 0 when any came or went, or the window is too short."""
    if len(window) < SAMPLES:
        return 0
    since_ms = window[0].at_ms
    settled = (replica for replica in observed.snapshot.replicas if replica.state is not ReplicaState.STARTING)
    moved = any(replica.since_ms > since_ms for replica in settled)
    ready = [replica for replica in observed.by_state[ReplicaState.READY] if observed.serves(replica)]
    return 0 if moved else len(ready)


def _queue_stands(window: Sequence[TrafficSample], serving: int) -> bool:
    """At least one request waits for each replica: fewer may be the chance of a moment."""
    return all(sample.queued >= serving for sample in window)


def _served_per_s(sample: TrafficSample) -> float:
    return sum(zone.requests_per_s - zone.failed_per_s for zone in sample.zones)


def _with_limit(known: CapacityEstimate, served_per_s: float, serving: int, saturated: str) -> CapacityEstimate:
    """Compare with the best so far: more replicas must have brought more throughput."""
    if known.best_replicas == 0 or serving < known.best_replicas:
        return msgspec.structs.replace(known, best_per_s=served_per_s, best_replicas=serving, limit="")
    promised = known.best_per_s * (serving / known.best_replicas - 1)
    gained = served_per_s - known.best_per_s
    if serving > known.best_replicas and gained < GAIN_MIN * promised:
        # The best stays what it was, so that the limit is confirmed, or refuted, against it again.
        return msgspec.structs.replace(known, limit=saturated or "an engine behind the service")
    if serving == known.best_replicas and served_per_s <= known.best_per_s:
        return known
    return msgspec.structs.replace(known, best_per_s=served_per_s, best_replicas=serving, limit="")


def _with_sample(known: CapacityEstimate, per_replica: float, policy: FleetPolicy) -> CapacityEstimate:
    low, high = (bound * policy.replica_requests_per_s for bound in BELIEVED)
    if not low <= per_replica <= high:
        return known
    learnt = known.requests_per_s + WEIGHT * (per_replica - known.requests_per_s)
    return msgspec.structs.replace(known, requests_per_s=learnt, samples=known.samples + 1)
