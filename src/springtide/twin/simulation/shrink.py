"""A broken invariant shown by less: fewer faults, a shorter time, a smaller world.

First the faults, by delta debugging (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002):
ever smaller parts of them are left out while the same invariant still breaks. Then what else there is, one change at a
time, as long as one helps. What is left breaks the same invariant, maybe at another moment, and by another cause.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import msgspec

from springtide.twin.simulation.faults import Fault
from springtide.twin.simulation.flow import PathSettings
from springtide.twin.simulation.outcome import Breach
from springtide.twin.simulation.scenario import DemandSettings, PolicySettings, Scenario, SimCloud, Wave
from springtide.twin.simulation.seeds import Tried, try_scenario

RUNS_MAX = 300
"""Simulations that one shrinking takes at most."""

AFTER_S = 5
"""Seconds that are kept after the breach."""

Run = Callable[[Scenario], Tried]


class Shrunk(msgspec.Struct, frozen=True):
    """The smallest scenario that was found, its first breach of the invariant, and how many simulations it took."""

    scenario: Scenario
    breach: Breach
    runs: int


def shrink(
    scenario: Scenario, invariant: str, run: Run = try_scenario, on_run: Callable[[int], None] | None = None
) -> Shrunk:
    """The smallest scenario that still breaks the invariant. Raises ValueError when this one does not."""
    search = _Search(invariant, run, on_run)
    breach = search.breach(scenario)
    if breach is None:
        raise ValueError(f"{scenario.name} with seed {scenario.seed} does not break: {invariant}")
    search.best, search.found = scenario, breach
    search.shorten()
    search.faults()
    while search.step():
        pass
    return Shrunk(search.best, search.found, search.runs)


class _Search:
    """The smallest until now, and how many simulations it took."""

    best: Scenario
    found: Breach

    def __init__(self, invariant: str, run: Run, on_run: Callable[[int], None] | None) -> None:
        self._invariant = invariant
        self._run = run
        self._on_run = on_run
        self.runs = 0

    def breach(self, scenario: Scenario) -> Breach | None:
        """The first breach of the invariant by a scenario; None: there is none, or the runs are used up."""
        if self.runs >= RUNS_MAX:
            return None
        self.runs += 1
        if self._on_run is not None:
            self._on_run(self.runs)
        return next((one for one in self._run(scenario).breaches if one.invariant == self._invariant), None)

    def take(self, scenario: Scenario) -> bool:
        """Keep a smaller scenario if it still breaks the invariant."""
        found = self.breach(scenario)
        if found is None:
            return False
        self.best, self.found = scenario, found
        self.shorten()
        return True

    def shorten(self) -> None:
        """End soon after the breach, where it is still one then: what ends later may be what shows it."""
        until_s = int(self.found.at_s) + AFTER_S
        if until_s >= self.best.duration_s:
            return
        shorter = msgspec.structs.replace(
            self.best,
            duration_s=until_s,
            faults=tuple(fault for fault in self.best.faults if fault.at_s <= until_s),
        )
        found = self.breach(shorter)
        if found is not None:
            self.best, self.found = shorter, found

    def faults(self) -> None:
        """Leave out as many faults as can be: halves, quarters and so on, down to single ones."""
        parts = 2
        while self.best.faults:
            faults = self.best.faults
            parts = min(parts, len(faults))
            if any(self.take(_with_faults(self.best, rest)) for rest in _without_a_part(faults, parts)):
                parts = max(2, parts - 1)
            elif parts >= len(faults):
                return
            else:
                parts *= 2

    def step(self) -> bool:
        """Make one change that leaves less, if any does."""
        before = self.best
        return any(smaller != before and self.take(smaller) for smaller in _smaller(before))


def _with_faults(scenario: Scenario, faults: Sequence[Fault]) -> Scenario:
    return msgspec.structs.replace(scenario, faults=tuple(faults))


def _without_a_part(faults: Sequence[Fault], parts: int) -> Iterator[list[Fault]]:
    """The faults without one of so many parts of them."""
    bounds = [len(faults) * part // parts for part in range(parts + 1)]
    for begin, end in pairwise(bounds):
        yield [*faults[:begin], *faults[end:]]


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    """Scenarios with one thing less, the largest changes first; those that are none are left out."""
    for changes in _changes(scenario):
        try:
            yield msgspec.structs.replace(scenario, **changes)
        except ValueError:
            continue  # what is left does not fit together


def _changes(scenario: Scenario) -> Iterator[dict[str, object]]:
    yield from _less_world(scenario)
    yield from _less_demand(scenario.demand)
    for number, fault in enumerate(scenario.faults):
        if fault.lasts_s > 1:
            shorter = msgspec.structs.replace(fault, lasts_s=float(round(fault.lasts_s / 2)))
            yield {"faults": (*scenario.faults[:number], shorter, *scenario.faults[number + 1 :])}
    path = scenario.path
    yield {"path": PathSettings(stock=path.stock, service_ms=path.service_ms)}
    for policy in _defaults(scenario.policy, PolicySettings()):
        yield {"policy": policy}


def _less_world(scenario: Scenario) -> Iterator[dict[str, object]]:
    """Without a zone, a line, an offer, a quota; with the cloud's other figures as by default."""
    for zone in scenario.zones:
        yield {"zones": tuple(other for other in scenario.zones if other is not zone)}
    for line in scenario.lines:
        yield {
            "lines": tuple(other for other in scenario.lines if other is not line),
            "zones": tuple(
                msgspec.structs.replace(zone, lines=tuple(name for name in zone.lines if name != line.name))
                for zone in scenario.zones
            ),
        }
    cloud = scenario.cloud
    for offer in cloud.offers if len(cloud.offers) > 1 else ():
        fewer = tuple(other for other in cloud.offers if other is not offer)
        yield {"cloud": msgspec.structs.replace(cloud, offers=fewer)}
    for quota in cloud.quotas if len(cloud.quotas) > 1 else ():
        left = tuple(other for other in cloud.quotas if other is not quota)
        yield {"cloud": msgspec.structs.replace(cloud, quotas=left)}
    yield {"cloud": SimCloud(offers=cloud.offers, quotas=cloud.quotas)}


def _less_demand(demand: DemandSettings) -> Iterator[dict[str, object]]:
    for wave in demand.waves:
        yield {"demand": msgspec.structs.replace(demand, waves=tuple(w for w in demand.waves if w is not wave))}
    if demand.noise:
        yield {"demand": msgspec.structs.replace(demand, noise=False)}
    halved = tuple(map(_half, demand.waves))
    if any(wave.peak_per_s > 1 for wave in demand.waves):
        yield {"demand": msgspec.structs.replace(demand, waves=halved)}
    if demand.base_per_s > 1:
        yield {"demand": msgspec.structs.replace(demand, base_per_s=float(round(demand.base_per_s / 2)))}


def _half(wave: Wave) -> Wave:
    return msgspec.structs.replace(
        wave,
        peak_per_s=float(round(wave.peak_per_s / 2)),
        announced_per_s=float(round(wave.announced_per_s / 2)),
    )


def _defaults(policy: PolicySettings, default: PolicySettings) -> Iterator[PolicySettings]:
    """With one field as it is by default."""
    for field in PolicySettings.__struct_fields__:
        if getattr(policy, field) != getattr(default, field):
            yield msgspec.structs.replace(policy, **{field: getattr(default, field)})
