"""Figures other than requests/s → replicas: each signal asks for as many as would keep it at its target.

The rule for figures that add up over replicas is that of the Horizontal Pod Autoscaler (Kubernetes documentation,
"Horizontal Pod Autoscaling", algorithm details): current replicas × current value / target, rounded up. Latency does
not add up: above its target it asks for more in the same proportion, bounded by `P99_GROWTH_MAX`; well below it has no
opinion, because a fast answer does not tell how many replicas would still give one.
"""

import math
from typing import assert_never

import msgspec

from springtide.model import FleetPolicy, Signal, SignalKind, SignalSample, Snapshot

P99_GROWTH_MAX = 2.0
"""A latency ten times too high is rarely cured by ten times the replicas: at most this multiple at once."""

P99_EASY = 0.5
"""Below this share of its target a latency asks for nothing; between it and the target, for what serves now."""

_ROUNDING = 1e-9


class Asked(msgspec.Struct, frozen=True):
    """What the signals ask for: `replicas` (0: nothing), the `reason`, and whether one is too old (`blind`)."""

    replicas: int
    reason: str
    blind: bool


def replicas_by_signals(snapshot: Snapshot, policy: FleetPolicy, serving: int) -> Asked:
    """The most that any signal asks for. `serving` are the replicas that the figures come from.

    A signal without a fresh sample (older than `policy.stale_ms`) asks for nothing and makes the answer `blind`:
    nothing may be taken away on it.
    """
    samples = {sample.name: sample for sample in snapshot.signals}
    replicas, reason, missing = 0, "", []
    for signal in policy.signals:
        sample = samples.get(signal.name)
        if sample is None or snapshot.now_ms - sample.at_ms > policy.stale_ms:
            missing.append(signal.name)
            continue
        asked = _asked(signal, sample, policy, serving)
        if asked > replicas:
            replicas, reason = asked, _reason(signal, sample, asked)
    if missing:
        reason = "; ".join(filter(None, [reason, f"no fresh figure for {', '.join(missing)}"]))
    return Asked(replicas, reason, blind=bool(missing))


def _asked(signal: Signal, sample: SignalSample, policy: FleetPolicy, serving: int) -> int:
    match signal.kind:
        case SignalKind.P99_MS:
            ratio = sample.value / signal.target
            if ratio < P99_EASY:
                return 0
            return math.ceil(serving * min(max(ratio, 1.0), P99_GROWTH_MAX) - _ROUNDING)
        case SignalKind.CPU:
            return math.ceil(sample.value / (signal.target * policy.replica_cores) - _ROUNDING)
        case SignalKind.IN_FLIGHT | SignalKind.QUEUE | SignalKind.PROMETHEUS:
            return math.ceil(sample.value / signal.target - _ROUNDING)
        case _:
            assert_never(signal.kind)


def _reason(signal: Signal, sample: SignalSample, asked: int) -> str:
    unit = {SignalKind.P99_MS: " ms", SignalKind.CPU: " cores"}.get(signal.kind, "")
    per = "" if signal.kind is SignalKind.P99_MS else " a replica"
    return f"{signal.name} is {sample.value:.4g}{unit}, target {signal.target:g}{per}: {asked} replicas"
