"""Revisions of replicas → which are to be replaced, which have proven themselves, and how far a rollout is.

A replica of the wanted revision has proven itself when its runtime calls it ready, the balancer itself finds it
healthy, and both for as long as an observation may be old. Only then may one of another revision go.
"""

from functools import cached_property

import msgspec

from springtide.decide.observed import STARTS_LATE, Observed
from springtide.decide.zones import Conclusions
from springtide.model import FleetPolicy, Replica, ReplicaState, Rollout, RolloutState, ZoneMode

_ACTIVE = {RolloutState.ROLLING, RolloutState.ROLLING_BACK}


class Revisions:
    """The replicas of one snapshot by revision, as a rollout (or, without one, the service's revision) wants them."""

    def __init__(
        self, observed: Observed, policy: FleetPolicy, rollout: Rollout | None, zones: Conclusions | None = None
    ) -> None:
        """`zones` says where a failure is not a replica's own."""
        snapshot = observed.snapshot
        self._observed = observed
        self._policy = policy
        self.now_ms = snapshot.now_ms
        self.rollout = rollout
        self.target = rollout.target if rollout else snapshot.revision
        # A replica that does not say is of the revision that was in force before anyone named one.
        rolled = rollout is None or rollout.state is RolloutState.DONE
        self._unnamed = self.target if rolled or rollout is None else rollout.previous
        self._wants = rollout is not None or bool(self.target)
        self._down = zones.down if zones else frozenset[str]()
        self._suspect = bool(zones and zones.suspect)

    def is_old(self, replica: Replica) -> bool:
        """Whether it is of another revision than it should be. Without a revision to want, none is."""
        return self._is_other(replica.revision)

    def _is_other(self, revision: str) -> bool:
        return self._wants and (revision or self._unnamed) != self.target

    @cached_property
    def old(self) -> list[Replica]:
        """Ready replicas that should be replaced and can be: not where operators or silence forbid it."""
        if not self._wants:
            return []
        ready, target, unnamed = self._observed.by_state[ReplicaState.READY], self.target, self._unnamed
        others = [r for r in ready if (r.revision or unnamed) != target]
        return [r for r in others if r.zone not in self._down and r.zone not in self._staying]

    @cached_property
    def waiting(self) -> dict[str, int]:
        """Old replicas by zone that have to stay for now."""
        found: dict[str, int] = {}
        if not self._staying:
            return found
        for replica in self._observed.by_state[ReplicaState.READY] + self._observed.by_state[ReplicaState.STARTING]:
            if self.is_old(replica) and replica.zone not in self._down and replica.zone in self._staying:
                found[replica.zone] = found.get(replica.zone, 0) + 1
        return found

    @cached_property
    def unfinished(self) -> bool:
        """Whether anything of another revision is left, but in zones that are down."""
        starting = self._observed.by_state[ReplicaState.STARTING]
        coming = [r.revision for r in starting if r.zone not in self._down]
        coming += [spec.revision for spec in self._observed.starts_in_flight]
        return bool(self.old or self.waiting) or any(map(self._is_other, coming))

    @property
    def replacing(self) -> bool:
        """Whether health gates are in force."""
        return bool(self.old) or (self.rollout is not None and self.rollout.state in _ACTIVE)

    @cached_property
    def coming(self) -> int:
        """Replicas of the wanted revision that have not proven themselves yet, and those that are about to start."""
        live = self._observed.by_state[ReplicaState.STARTING] + self._observed.by_state[ReplicaState.READY]
        serving = self._observed.serving if self._observed.healthy is not None else frozenset[str]()
        proven_ms = self.now_ms - self._policy.stale_ms
        unsure = [r for r in live if r.since_ms > proven_ms or r.replica_id not in serving]
        unproven = sum(not self.is_old(r) and not self.is_proven(r) and r.zone not in self._down for r in unsure)
        return unproven + sum(spec.revision == self.target for spec in self._observed.starts_in_flight)

    @cached_property
    def proven(self) -> int:
        """Replicas of the wanted revision that do well."""
        ready = self._observed.by_state[ReplicaState.READY]
        return sum(not self.is_old(r) and r.zone not in self._down and self.is_proven(r) for r in ready)

    def is_proven(self, replica: Replica) -> bool:
        """Ready, healthy at the balancer by its fresh word, and not only since a moment ago."""
        observed = self._observed
        long_enough = observed.snapshot.now_ms - replica.since_ms >= self._policy.stale_ms
        return observed.healthy is not None and observed.serves(replica) and long_enough

    def is_coming(self, replica: Replica) -> bool:
        """Whether it has been added to replace another, and has yet to show whether it can."""
        return self.replacing and not self.is_old(replica) and not self.is_proven(replica)

    def counts(self, replica: Replica) -> bool:
        """Whether it is capacity to rely on when another is to be taken away."""
        if self.replacing and not self.is_old(replica):
            return self.is_proven(replica)
        return self._observed.serves(replica)

    @cached_property
    def sick(self) -> list[Replica]:
        """Replicas of the wanted revision that were not found healthy in the time that a start may take."""
        observed = self._observed
        if not self.replacing or observed.healthy is None or self._suspect:
            return []
        late_ms = observed.snapshot.now_ms - STARTS_LATE * self._policy.start_ms
        return [
            r
            for r in observed.by_state[ReplicaState.READY]
            if not self.is_old(r) and r.since_ms < late_ms and not observed.serves(r) and not self._excused(r.zone)
        ]

    @cached_property
    def failed(self) -> list[Replica]:
        """Replicas of the wanted revision that failed by themselves, rather than with their zone."""
        failed = self._observed.by_state[ReplicaState.FAILED]
        return [r for r in failed if not self.is_old(r) and not self._excused(r.zone)] + self.sick

    def _excused(self, zone: str) -> bool:
        """Where a zone is down, or replicas of both revisions fail and none lives, the revision is not to blame."""
        return zone in self._down or zone in self._dead

    @cached_property
    def _dead(self) -> frozenset[str]:
        states = self._observed.by_state
        alive = {r.zone for state, rs in states.items() if state is not ReplicaState.FAILED for r in rs}
        return frozenset(r.zone for r in states[ReplicaState.FAILED] if self.is_old(r) and r.zone not in alive)

    @cached_property
    def _staying(self) -> frozenset[str]:
        """Zones in which an old replica can have no successor, or cannot be stopped."""
        snapshot = self._observed.snapshot
        cordoned = (zone for zone, mode in snapshot.modes.items() if mode is ZoneMode.CORDONED)
        silent = (zone.name for zone in snapshot.zones if self._observed.is_silent(zone.name))
        return frozenset((*cordoned, *silent))


def advance(revisions: Revisions, policy: FleetPolicy, wanted: int) -> Rollout | None:
    """The rollout after this snapshot: failures counted, each replica once; back when there are too many; done.

    It is done when no replica of another revision is left (but in zones that are down) and the `wanted` number has
    proven itself.
    """
    rollout = revisions.rollout
    if rollout is None or rollout.state not in _ACTIVE:
        return rollout
    now_ms = revisions.now_ms
    if rollout.state is RolloutState.ROLLING:
        fresh = [r for r in revisions.failed if r.replica_id not in rollout.failed_ids]
        if fresh:
            ids = (*rollout.failed_ids, *(r.replica_id for r in fresh))[: policy.rollout_failed_max + 1]
            failed = rollout.failed + len(fresh)
            reason = f"{failed} replicas of {rollout.revision} failed, the last one: {_why(fresh[-1])}"
            rollout = msgspec.structs.replace(rollout, failed=failed, failed_ids=ids, reason=reason)
        if rollout.failed > policy.rollout_failed_max:
            return _back(rollout, rollout.reason, now_ms)
        stuck_ms = STARTS_LATE * policy.start_ms * (policy.rollout_failed_max + 1)
        if rollout.progress_ms and now_ms - rollout.progress_ms > stuck_ms:
            return _back(rollout, f"no replica of {rollout.revision} came up within {stuck_ms / 1000:g} s", now_ms)
    if not revisions.unfinished and revisions.proven >= wanted:
        done = RolloutState.DONE if rollout.state is RolloutState.ROLLING else RolloutState.ROLLED_BACK
        return msgspec.structs.replace(rollout, state=done, since_ms=now_ms, failed_ids=(), progress_ms=0)
    return rollout


def noted(rollout: Rollout | None, revisions: Revisions, *, trying: bool) -> Rollout | None:
    """The rollout with its progress: its clock runs only while replicas are being started."""
    if rollout is None or rollout.state is not RolloutState.ROLLING:
        return rollout
    if revisions.proven > rollout.proven or not trying or not rollout.progress_ms:
        proven = max(revisions.proven, rollout.proven)
        return msgspec.structs.replace(rollout, proven=proven, progress_ms=revisions.now_ms)
    return rollout


def said(rollout: Rollout | None, revisions: Revisions) -> tuple[list[str], list[str]]:
    """Reasons, and alerts for a person."""
    reasons = [
        f"{count} replicas of another revision stay in {zone}, which is cordoned or silent"
        for zone, count in revisions.waiting.items()
    ]
    if rollout is None:
        return reasons, []
    left = len(revisions.old)
    match rollout.state:
        case RolloutState.ROLLING:
            reasons.append(f"rolling out {rollout.revision}: {left} to replace, {rollout.failed} failed")
        case RolloutState.ROLLING_BACK:
            reasons.append(f"rolling back to {_named(rollout.previous)}: {left} to replace; {rollout.reason}")
        case RolloutState.DONE | RolloutState.ROLLED_BACK:
            pass
    forth = rollout.state in {RolloutState.ROLLING, RolloutState.DONE}
    alert = f"{rollout.revision} is rolled back to {_named(rollout.previous)}: {rollout.reason}"
    return reasons, [] if forth else [alert]


def _back(rollout: Rollout, reason: str, now_ms: int) -> Rollout:
    return msgspec.structs.replace(
        rollout,
        state=RolloutState.ROLLING_BACK,
        since_ms=now_ms,
        reason=reason,
        failed_ids=(),
        proven=0,
        progress_ms=0,
    )


def _why(replica: Replica) -> str:
    if replica.state is ReplicaState.FAILED:
        return replica.failure or f"{replica.replica_id} failed"
    return f"{replica.replica_id} did not become ready and healthy in time"


def _named(revision: str) -> str:
    return revision or "the one before"
