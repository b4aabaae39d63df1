"""Ways to run a simulated fleet, by name: ours, and those it is compared with.

`idc-only`, `idc-first` and `cloud-first` are our decisions under other settings or with less to choose from;
`static-peak`, `hpa` and `keda` count replicas alone (`compare_crew` carries that out). What each is told:

- springtide: the base in the data centre, the spike in the cloud, what the cloud has no room for in the data centre.
- static-peak: the room for the highest demand that the scenario would have without its faults, with our headroom.
- hpa: scales by requests/s; keda: that, and a cron window for each announced event, as far ahead as our own horizon.
- idc-only: there is no cloud. idc-first: the data centre is full before anything is rented. cloud-first: the data
  centre has no base and takes what the cloud has no room for.

Where the base fills the data centre, as in most scenarios that come along, idc-first decides what springtide does.
"""

import math
from collections.abc import Callable

import msgspec

from springtide.decide import autoscale
from springtide.errors import ConfigError
from springtide.model import FleetPolicy, Snapshot, ZoneKind
from springtide.twin.policies import (
    DEFAULT_UP,
    FAST_UP,
    SYNC_MS,
    TOLERANCE,
    Counting,
    CronWindow,
    Hpa,
    HpaSettings,
    Keda,
    Seen,
    cron_windows,
)
from springtide.twin.simulation.cloud import offers
from springtide.twin.simulation.compare_crew import CrewDecisions
from springtide.twin.simulation.decisions import Approach, Deciding, Springtide
from springtide.twin.simulation.demand import Demand
from springtide.twin.simulation.hands import Hands
from springtide.twin.simulation.scenario import Scenario
from springtide.twin.simulation.world import World

USUAL_TARGET = 0.8
"""Share of what a replica takes that an HPA is usually told to keep it at."""

SCRAPED_MS = 30_000
"""The window of the metric that reacts soonest: two scrapes."""

DEFAULT_AHEAD_MS = 300_000
"""How long before an event an operator of `keda-default` lets its window begin."""

Counts = tuple[float, ...] | None
"""The values of the demand's file."""


class IdcOnly:
    """Our decisions where there is no cloud."""

    name = "idc-only"

    def policy(self, policy: FleetPolicy) -> FleetPolicy:
        """The scenario's."""
        return policy

    def see(self, snapshot: Snapshot) -> Snapshot:
        """The data centre alone."""
        own = tuple(zone for zone in snapshot.zones if zone.kind is ZoneKind.IDC)
        return msgspec.structs.replace(snapshot, zones=own, offers=(), quotas=())


class Based:
    """Our decisions with another base in each room of the data centre."""

    def __init__(self, name: str, base_replicas: int) -> None:
        """`base_replicas` as in FleetPolicy."""
        self.name = name
        self._base = base_replicas

    def policy(self, policy: FleetPolicy) -> FleetPolicy:
        """The scenario's, but for the base."""
        return msgspec.structs.replace(policy, base_replicas=self._base)

    def see(self, snapshot: Snapshot) -> Snapshot:
        """All of it."""
        return snapshot


class Counted:
    """A policy that counts replicas, and a crew that carries it out."""

    def __init__(self, name: str, counting: Counting) -> None:
        """One for each simulation: `counting` remembers."""
        self.name = name
        self._counting = counting

    def policy(self, policy: FleetPolicy) -> FleetPolicy:
        """The scenario's."""
        return policy

    def see(self, snapshot: Snapshot) -> Snapshot:
        """It decides by no snapshot."""
        return snapshot

    def decisions(self, world: World, hands: Hands) -> Deciding:
        """What takes the place of our decisions."""
        return CrewDecisions(world, hands, world.scenario.fleet_policy(), self._counting)


class Fixed:
    """So many replicas, all the time."""

    sync_ms = SYNC_MS

    def __init__(self, replicas: int) -> None:
        """At least one."""
        self.replicas = max(1, replicas)

    def decide(self, seen: Seen) -> int:
        """The same."""
        del seen
        return self.replicas


def best_settings(policy: FleetPolicy) -> HpaSettings:
    """The HPA that fits best to what our decisions are told.

    Up tenfold at each sync, by the mean of the last two scrapes; down after our patience. The target leaves our
    headroom also at the edge of the tolerance, within which an HPA does nothing.
    """
    target = policy.replica_requests_per_s / (1 + policy.headroom) / (1 + TOLERANCE)
    return HpaSettings(
        target=target,
        replicas_max=policy.replicas_max or HpaSettings(1.0).replicas_max,
        window_ms=SCRAPED_MS,
        up=FAST_UP,
        down_stabilization_ms=policy.patience_ms,
    )


def default_settings(policy: FleetPolicy) -> HpaSettings:
    """An HPA as it is documented, at the usual target."""
    return HpaSettings(
        target=policy.replica_requests_per_s * USUAL_TARGET,
        replicas_max=policy.replicas_max or HpaSettings(1.0).replicas_max,
        up=DEFAULT_UP,
    )


def peak_replicas(scenario: Scenario, counts: Counts = None) -> int:
    """Replicas for the highest demand of the scenario without its faults, with our headroom."""
    policy = scenario.fleet_policy()
    demand = Demand(scenario.demand, (), counts)
    peak = max(demand.steps(scenario.duration_s, scenario.step_s), default=0.0)
    return math.ceil(peak * (1 + policy.headroom) / policy.replica_requests_per_s)


def ahead_ms(scenario: Scenario) -> int:
    """Our own horizon: how long before an event's capacity has to stand it is asked for."""
    zones = [zone.model() for zone in scenario.zones]
    boot_ms = max((offer.boot_ms[1] for offer in offers(scenario)), default=0)
    horizon_ms = autoscale.horizon_ms(zones, scenario.fleet_policy(), scenario.announced(), boot_ms)
    return horizon_ms + max((event.ready_ms for event in scenario.announced()), default=0)


def _windows(scenario: Scenario, ahead: int) -> list[CronWindow]:
    """Sized by hand for what was announced with our headroom: a window knows nothing of an HPA's target."""
    policy = scenario.fleet_policy()
    sized = policy.replica_requests_per_s / (1 + policy.headroom)
    return cron_windows(scenario.announced(), sized, ahead)


def _idc_first(scenario: Scenario, _: Counts) -> Approach:
    """The base is all that the rooms have, so that the spike begins beyond it."""
    rooms = [zone for zone in scenario.zones if zone.kind is ZoneKind.IDC]
    slots = sum(zone.nodes * (zone.cores_per_node // scenario.service.replica_cores) for zone in rooms)
    return Based("idc-first", slots // len(rooms) if rooms else 0)


def _static(scenario: Scenario, counts: Counts) -> Approach:
    return Counted("static-peak", Fixed(peak_replicas(scenario, counts)))


def _hpa(scenario: Scenario, _: Counts) -> Approach:
    return Counted("hpa", Hpa(best_settings(scenario.fleet_policy())))


def _keda(scenario: Scenario, _: Counts) -> Approach:
    return Counted("keda", Keda(best_settings(scenario.fleet_policy()), _windows(scenario, ahead_ms(scenario))))


def _hpa_default(scenario: Scenario, _: Counts) -> Approach:
    return Counted("hpa-default", Hpa(default_settings(scenario.fleet_policy())))


def _keda_default(scenario: Scenario, _: Counts) -> Approach:
    windows = _windows(scenario, DEFAULT_AHEAD_MS)
    return Counted("keda-default", Keda(default_settings(scenario.fleet_policy()), windows))


APPROACHES: dict[str, Callable[[Scenario, Counts], Approach]] = {
    "springtide": lambda _scenario, _counts: Springtide(),
    "static-peak": _static,
    "hpa": _hpa,
    "keda": _keda,
    "idc-only": lambda _scenario, _counts: IdcOnly(),
    "idc-first": _idc_first,
    "cloud-first": lambda _scenario, _counts: Based("cloud-first", 0),
    "hpa-default": _hpa_default,
    "keda-default": _keda_default,
}
"""What makes each of them for a scenario and the values of its demand's file."""

OURS = "springtide"

COMPARED = (OURS, "static-peak", "hpa", "keda", "idc-only", "idc-first", "cloud-first")
"""What a comparison runs, in its order."""

ABOUT = {
    "springtide": "the production decisions: base in the data centre, spike in the cloud",
    "static-peak": "room for the scenario's highest demand, all the time",
    "hpa": "HPA v2 on requests/s, up tenfold each 15 s, down after our patience",
    "keda": "the same HPA, and a cron window for each announced event",
    "idc-only": "our decisions without a cloud",
    "idc-first": "our decisions, the data centre full before anything is rented",
    "cloud-first": "our decisions without a base in the data centre",
    "hpa-default": "HPA v2 as documented: doubles each 15 s, mean of 2 minutes, target 80%, down after 5 minutes",
    "keda-default": "the same, and a cron window from 5 minutes before each announced event",
}
"""What each of them is, in a line."""


def approach(name: str, scenario: Scenario, counts: list[float] | None = None) -> Approach:
    """The one of this name; `counts` are the values of the demand's file. Raises ConfigError."""
    make = APPROACHES.get(name)
    if make is None:
        raise ConfigError(f"policy {name!r} is unknown; give one of: {', '.join(APPROACHES)}")
    return make(scenario, None if counts is None else tuple(counts))
