"""Who comes to a simulated sale, second by second: as usual, in waves, by a file, and as nobody expected."""

import math
from collections.abc import Iterator, Sequence

from springtide.ports import Chance
from springtide.twin.simulation.faults import Fault, FaultKind
from springtide.twin.simulation.scenario import DemandSettings, Wave


class Demand:
    """People a second over time, in seconds since the beginning. What a seed changes is the noise alone."""

    def __init__(
        self, settings: DemandSettings, faults: Sequence[Fault] = (), counts: Sequence[float] | None = None
    ) -> None:
        """`counts` are the values of the settings' file, one for each bin."""
        self._settings = settings
        self._rushes = [fault for fault in faults if fault.kind is FaultKind.RUSH]
        self._larger = [fault for fault in faults if fault.kind is FaultKind.LARGER_SALE]
        scale = settings.scale / settings.bin_s
        self._bins = None if counts is None else [count * scale for count in counts]

    def expected(self, at_s: float) -> float:
        """The people a second at a moment, without noise."""
        people = self._normal(at_s)
        for wave in self._settings.waves:
            people += wave_per_s(wave, at_s) * self._factor(wave, at_s)
        return people + sum(rush.amount for rush in self._rushes if rush.at_s <= at_s < rush.at_s + rush.lasts_s)

    def per_s(self, at_s: float, dt_s: float, chance: Chance) -> float:
        """The people a second in a step that begins `at_s`: counts of independent arrivals (the normal limit)."""
        mean = self.expected(at_s + dt_s / 2)
        if not self._settings.noise or mean <= 0:
            return mean
        return max(0.0, mean + math.sqrt(mean / dt_s) * _normal(chance))

    def steps(self, until_s: float, dt_s: float) -> Iterator[float]:
        """The expected people a second of each step until then."""
        return (self.expected((number + 0.5) * dt_s) for number in range(math.ceil(until_s / dt_s)))

    def _normal(self, at_s: float) -> float:
        """Between the middles of two bins in a straight line; the last bin goes on."""
        bins = self._bins
        if bins is None:
            return self._settings.base_per_s
        position = max(0.0, at_s / self._settings.bin_s - 0.5)
        first = min(int(position), len(bins) - 1)
        second = min(first + 1, len(bins) - 1)
        return bins[first] + (bins[second] - bins[first]) * min(1.0, position - first)

    def _factor(self, wave: Wave, at_s: float) -> float:
        factor = 1.0
        for fault in self._larger:
            if fault.target in {"", wave.name} and fault.at_s <= at_s < fault.at_s + fault.lasts_s:
                factor *= fault.amount
        return factor


def wave_per_s(wave: Wave, at_s: float) -> float:
    """What a wave brings at a moment, people a second."""
    since = at_s - wave.opens_s
    if since < 0:
        return 0.0
    if since < wave.rise_s:
        return wave.peak_per_s * since / wave.rise_s
    fading = since - wave.lasts_s
    if fading <= 0:
        return wave.peak_per_s
    return wave.peak_per_s * math.exp(-fading / wave.fades_s) if wave.fades_s else 0.0


def largest_wave(waves: Sequence[Wave]) -> Wave | None:
    """The wave with the highest peak, the first of several; None when there is none."""
    return max(waves, key=lambda wave: wave.peak_per_s, default=None)


def first_rise_s(demand: Demand, until_s: float, share: float = 0.1) -> float:
    """When demand has begun to rise to its highest: the last moment before it at which it was below `share` of that.

    What a file has no opening for.
    """
    rates = list(demand.steps(until_s, 1.0))
    if not rates:
        return 0.0
    top = max(range(len(rates)), key=rates.__getitem__)
    low = rates[0] + share * (rates[top] - rates[0])
    below = [second for second in range(top) if rates[second] <= low]
    return float(below[-1]) if below else 0.0


def _normal(chance: Chance) -> float:
    """A standard normal figure, by Box and Muller's transform."""
    radius = math.sqrt(-2.0 * math.log(1.0 - chance.random()))
    return radius * math.cos(2.0 * math.pi * chance.random())
