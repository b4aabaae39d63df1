"""Signs of life of each zone → its state: one that dies loses its traffic at once, one that returns gets it in steps.

No sign is believed alone. The balancer's own checks count while they reach the greater part of the fleet; a runtime
that is silent, or requests that fail, only confirm them. A runtime that is silent while the balancer reaches its
replicas stops no traffic (nothing is started or stopped there), and replicas that have all failed are first replaced
where they were. Each fall within memory doubles the wait before the next return, so signs that alternate move traffic
only a few times.
"""

from collections import Counter
from collections.abc import Mapping

import msgspec

from springtide.decide.observed import Observed
from springtide.model import FleetPolicy, ReplicaState, ZoneHealth, ZoneState, ZoneTraffic

RAMP = (0.1, 0.25, 0.5, 0.75)
"""The shares of its weight that a returning zone has, each for an equal part of `zone_ramp_ms`."""

DOUBLINGS_MAX = 4
"""After so many falls the wait before a return does not double any more."""

FORGET = 10
"""A zone's falls are forgotten when it has been well for so many times its last wait and ramp."""

FAILED_SHARE = 0.5
"""Requests of a zone fail when at least this share of them does, and elsewhere less than half as many."""

REQUESTS_MIN = 10.0
"""Per second: with fewer, a share of failed requests says nothing."""


class Signs(msgspec.Struct):
    """What one snapshot shows of a zone.

    `settled` replicas have been ready and known to the balancer for long enough to be found healthy, and `reached` are
    those it finds so; `serving` counts the newer ones too. `failed_ms` is when the last replica failed. `silent`: its
    runtime's word is old. `failing` is the share of its requests that fail, when that is clearly more than elsewhere.
    """

    listed: int = 0
    failed: int = 0
    failed_ms: int = 0
    settled: int = 0
    reached: int = 0
    serving: int = 0
    silent: bool = False
    failing: float = 0.0

    @property
    def unreachable(self) -> bool:
        """The balancer reaches nothing of it."""
        return self.settled > 0 and self.reached == 0

    @property
    def crashed(self) -> bool:
        """Every replica of it has failed, by the fresh word of its runtime."""
        return self.listed > 0 and self.failed == self.listed and not self.silent


class Conclusions(msgspec.Struct, frozen=True):
    """The states of all zones. `suspect`: the observer is rather cut off itself, so nothing is concluded from it.

    `rescued` are zones that had to come back at once because nothing else serves.
    """

    health: dict[str, ZoneHealth]
    suspect: bool
    rescued: frozenset[str]
    reasons: tuple[str, ...]
    alerts: tuple[str, ...]

    @property
    def down(self) -> frozenset[str]:
        """Zones that must not be counted on."""
        return frozenset(name for name, health in self.health.items() if health.state is ZoneState.DOWN)

    @property
    def not_up(self) -> frozenset[str]:
        """Zones that do not carry their full share: those that are down, and those that return."""
        return frozenset(name for name, health in self.health.items() if health.state is not ZoneState.UP)

    def shares(self, now_ms: int, policy: FleetPolicy) -> dict[str, float]:
        """The share of its weight that each zone may have now, from 0 to 1."""
        return {name: _share(health, now_ms, policy) for name, health in self.health.items()}


def conclude(observed: Observed, policy: FleetPolicy) -> Conclusions:
    """The states after this snapshot.

    A zone is down at the first tick (or after `zone_down_ms`) at which the balancer reaches nothing of it. When more
    than half of what should be reached is not, that holds only for zones whose runtime is silent as well while another
    zone is reached; otherwise the observer is suspect. Without a fresh word of the balancer the states stay as they
    are.
    """
    signs = _signs(observed, policy)
    before = {name: _before(observed, name) for name in signs}
    # What is known to be lost is no news: it neither makes the observer suspect nor clears it.
    lost = {name for name, health in before.items() if health.state is ZoneState.DOWN and not signs[name].reached}
    agreed = _agreed(signs, lost)
    rest = [sign for name, sign in signs.items() if name not in lost | agreed]
    suspect = 2 * sum(sign.settled - sign.reached for sign in rest) > sum(sign.settled for sign in rest)
    judge = _Judge(observed.snapshot.now_ms, policy, signs, suspect=suspect, agreed=agreed)
    health = before if observed.healthy is None else judge.all(before)
    rescued = {name for name in health if before[name].state is ZoneState.DOWN and health[name].state is ZoneState.UP}
    return Conclusions(
        health=health,
        suspect=suspect,
        rescued=frozenset(rescued),
        reasons=tuple(_reasons(health, signs, policy, suspect=suspect)),
        alerts=tuple(_alerts(health, suspect=suspect)),
    )


def wait_ms(failures: int, policy: FleetPolicy) -> int:
    """How long the signs of a zone must be good before it returns from its so-many-th fall."""
    return int(policy.zone_return_ms * 2 ** min(max(failures - 1, 0), DOUBLINGS_MAX))


class _Judge:
    """One step of the state machine for each zone."""

    def __init__(
        self, now_ms: int, policy: FleetPolicy, signs: Mapping[str, Signs], *, suspect: bool, agreed: set[str]
    ) -> None:
        self._now_ms = now_ms
        self._policy = policy
        self._signs = signs
        self._suspect = suspect
        self._agreed = agreed

    def all(self, before: Mapping[str, ZoneHealth]) -> dict[str, ZoneHealth]:
        after: dict[str, ZoneHealth] = {}
        for name, health in before.items():
            others = (n for n in before if n != name and after.get(n, before[n]).state is not ZoneState.DOWN)
            others_serve = any(self._signs[other].serving for other in others)
            after[name] = self._one(name, health, others_serve=others_serve)
        return after

    def _one(self, name: str, before: ZoneHealth, *, others_serve: bool) -> ZoneHealth:
        signs = self._signs[name]
        bad = self._bad(name, signs)
        good = not bad and _is_good(signs)
        good_since = (before.good_since_ms or self._now_ms) if good else 0
        health = msgspec.structs.replace(before, good_since_ms=good_since)
        if before.state is ZoneState.DOWN:
            return self._when_down(health, signs, bad, others_serve=others_serve)
        if bad:
            return self._when_bad(health, bad)
        if signs.crashed and not signs.serving:
            return self._when_crashed(health, signs, others_serve=others_serve)
        if health.bad_since_ms and (signs.serving or not signs.listed):
            health = msgspec.structs.replace(health, bad_since_ms=0, reason="")
        return self._when_well(health)

    def _bad(self, name: str, signs: Signs) -> str:
        if signs.unreachable and (not self._suspect or name in self._agreed):
            also = " and its runtime is silent" if signs.silent else ""
            return f"none of its {signs.settled} replicas is reached{also}"
        ill = signs.settled - signs.reached + signs.failed
        if signs.failing and (signs.silent or 2 * ill >= max(1, signs.settled + signs.failed)) and not self._suspect:
            return f"{signs.failing:.0%} of its requests fail and {ill} of its replicas are ill"
        return ""

    def _when_down(self, health: ZoneHealth, signs: Signs, bad: str, *, others_serve: bool) -> ZoneHealth:
        if signs.reached and not others_serve:
            return ZoneHealth(ZoneState.UP, self._now_ms, "nothing else serves", health.failures, health.good_since_ms)
        if not health.good_since_ms:
            return msgspec.structs.replace(health, reason=bad or health.reason)
        wait = wait_ms(health.failures, self._policy)
        if self._now_ms - health.good_since_ms < wait:
            return health
        reason = f"well for {wait / 1000:g} s"
        return ZoneHealth(ZoneState.RETURNING, self._now_ms, reason, health.failures, health.good_since_ms)

    def _when_bad(self, health: ZoneHealth, bad: str) -> ZoneHealth:
        bad_since = health.bad_since_ms or self._now_ms
        if health.state is ZoneState.UP and self._now_ms - bad_since < self._policy.zone_down_ms:
            return msgspec.structs.replace(health, reason=bad, bad_since_ms=bad_since)
        return ZoneHealth(ZoneState.DOWN, self._now_ms, bad, health.failures + 1)

    def _when_crashed(self, health: ZoneHealth, signs: Signs, *, others_serve: bool) -> ZoneHealth:
        """The first time they are replaced where they were, which is the fastest; what fails again goes elsewhere."""
        again = health.failures > 0 and (health.bad_since_ms == 0 or signs.failed_ms > health.bad_since_ms)
        if again and others_serve:
            return ZoneHealth(ZoneState.DOWN, self._now_ms, "all its replicas failed again", health.failures + 1)
        if health.bad_since_ms:
            return health
        return msgspec.structs.replace(
            health,
            reason="all its replicas failed",
            failures=max(1, health.failures),
            bad_since_ms=self._now_ms,
        )

    def _when_well(self, health: ZoneHealth) -> ZoneHealth:
        since_ms = self._now_ms - health.since_ms
        if health.state is ZoneState.RETURNING and since_ms >= self._policy.zone_ramp_ms:
            return ZoneHealth(ZoneState.UP, self._now_ms, "", health.failures, health.good_since_ms)
        memory_ms = FORGET * (wait_ms(health.failures, self._policy) + self._policy.zone_ramp_ms)
        well_ms = self._now_ms - health.good_since_ms if health.good_since_ms else 0
        if health.state is ZoneState.UP and health.failures and well_ms > memory_ms:
            return msgspec.structs.replace(health, failures=0, reason="")
        return health


def _signs(observed: Observed, policy: FleetPolicy) -> dict[str, Signs]:
    snapshot = observed.snapshot
    found = {zone.name: Signs(silent=observed.is_silent(zone.name)) for zone in snapshot.zones}
    weights = {endpoint.replica_id: endpoint.weight for endpoint in snapshot.endpoints}
    settled_ms = snapshot.now_ms - policy.stale_ms
    without_traffic = {name for name in found if _before(observed, name).state is not ZoneState.UP}
    for name, count in Counter([replica.zone for replica in snapshot.replicas]).items():
        if name in found:
            found[name].listed = count
    for replica in observed.by_state[ReplicaState.FAILED]:
        if replica.zone in found:
            found[replica.zone].failed += 1
            found[replica.zone].failed_ms = max(found[replica.zone].failed_ms, replica.since_ms)
    serving = observed.serving
    for replica in observed.by_state[ReplicaState.READY]:
        signs = found.get(replica.zone)
        serves = replica.replica_id in serving
        if signs is None or (not serves and observed.is_on_trial(replica)):
            continue
        signs.serving += serves
        weight = weights.get(replica.replica_id)
        if (weight or (weight is not None and replica.zone in without_traffic)) and replica.since_ms < settled_ms:
            signs.settled += 1
            signs.reached += serves
    for name, share in _failing(observed, policy).items():
        if name in found:
            found[name].failing = share
    return found


def _failing(observed: Observed, policy: FleetPolicy) -> dict[str, float]:
    """The zones whose requests fail while those of the others do not."""
    traffic = observed.snapshot.traffic
    if not traffic or observed.snapshot.now_ms - traffic[-1].at_ms > policy.stale_ms:
        return {}
    zones = traffic[-1].zones
    found: dict[str, float] = {}
    for zone in zones:
        share = _failed_share([zone])
        if share >= FAILED_SHARE and 2 * _failed_share([other for other in zones if other is not zone]) < share:
            found[zone.zone] = share
    return found


def _failed_share(zones: list[ZoneTraffic]) -> float:
    requests = sum(zone.requests_per_s for zone in zones)
    return sum(zone.failed_per_s for zone in zones) / requests if requests >= REQUESTS_MIN else 0.0


def _agreed(signs: Mapping[str, Signs], lost: set[str]) -> set[str]:
    """Zones that neither the balancer nor their runtime reaches, while another zone is reached."""
    found = {name for name, sign in signs.items() if name not in lost and sign.unreachable and sign.silent}
    return found if any(sign.reached for name, sign in signs.items() if name not in found) else set()


def _is_good(signs: Signs) -> bool:
    """Enough to go back to a zone: its runtime speaks, and most of what is there is reached. An empty one may be so."""
    half_reached = 2 * signs.reached >= signs.settled
    return not signs.silent and not signs.failing and not signs.crashed and half_reached


def _before(observed: Observed, zone: str) -> ZoneHealth:
    known = observed.snapshot.zone_health.get(zone)
    return known or ZoneHealth(ZoneState.UP, observed.snapshot.now_ms)


def _share(health: ZoneHealth, now_ms: int, policy: FleetPolicy) -> float:
    if health.state is ZoneState.UP:
        return 1.0
    if health.state is ZoneState.DOWN:
        return 0.0
    step = len(RAMP) * (now_ms - health.since_ms) // max(1, policy.zone_ramp_ms)
    return RAMP[min(max(step, 0), len(RAMP) - 1)]


def _reasons(
    health: Mapping[str, ZoneHealth], signs: Mapping[str, Signs], policy: FleetPolicy, *, suspect: bool
) -> list[str]:
    found = []
    for name, state in health.items():
        sign = signs[name]
        if state.state is ZoneState.DOWN:
            wait = wait_ms(state.failures, policy) / 1000
            found.append(f"zone {name} is down: {state.reason}; it returns when it has been well for {wait:g} s")
        elif state.state is ZoneState.RETURNING:
            found.append(f"zone {name} returns: its traffic comes back over {policy.zone_ramp_ms / 1000:g} s")
        elif state.bad_since_ms:
            found.append(f"zone {name}: {state.reason}")
        elif sign.failing:
            found.append(f"zone {name}: {sign.failing:.0%} of its requests fail, though its replicas pass their check")
        if sign.silent:
            found.append(f"the runtime of {name} is silent: nothing is started or stopped there; what runs serves on")
    if suspect:
        found.append("more than half of the ready replicas seem unreachable: weights stay, nothing is taken away")
    return found


def _alerts(health: Mapping[str, ZoneHealth], *, suspect: bool) -> list[str]:
    found = [f"zone {name} is down: {h.reason}" for name, h in health.items() if h.state is ZoneState.DOWN]
    found += [
        f"zone {name}: {h.reason}" for name, h in health.items() if h.state is not ZoneState.DOWN and h.bad_since_ms
    ]
    if suspect:
        found.append("the balancer does not see more than half of the fleet: look at its own network first")
    return found
