"""One seed of random faults in a scenario: what it breaks of the invariants."""

from collections.abc import Iterable, Sequence

import msgspec

from springtide.errors import SpringtideError
from springtide.twin.simulation.fault_draw import draw
from springtide.twin.simulation.invariants import checks
from springtide.twin.simulation.outcome import Breach
from springtide.twin.simulation.run import Simulation, simulate
from springtide.twin.simulation.scenario import Scenario

DEFECT = "no defect of the twin"
"""The invariant that is broken when a simulation raises an error: no decision may ask for what no engine would do."""

class Tried(msgspec.Struct, frozen=True):
    """One seed: what it broke (empty: nothing), and what was in it."""

    seed: int
    breaches: tuple[Breach, ...] = ()
    faults: tuple[str, ...] = ()
    requests: float = 0.0
    nodes_rented: int = 0


def try_seed(scenario: Scenario, seed: int, counts: Sequence[float] | None = None) -> Tried:
    """Run what a seed makes of a scenario. `counts` are the values of its demand's file."""
    return try_scenario(draw(scenario, seed), counts)


def try_scenario(scenario: Scenario, counts: Sequence[float] | None = None) -> Tried:
    """Run a scenario as it is, by its own seed, with all invariants checked at every step.

    Raises KeyboardInterrupt when it was interrupted: a part of a run proves nothing.
    """
    faults = tuple(fault.kind.value for fault in scenario.faults)
    now = Moment()
    try:
        outcome = simulate(scenario, counts=counts, watches=(checks(scenario), now))
    except (SpringtideError, ArithmeticError, LookupError, ValueError, TypeError, AssertionError) as error:
        defect = Breach(now.at_s, DEFECT, f"{type(error).__name__}: {error}")
        return Tried(scenario.seed, (defect,), faults)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return Tried(scenario.seed, outcome.breaches, faults, outcome.requests, outcome.nodes_rented)


class Moment:
    """A watch that knows how far a simulation has come."""

    def __init__(self) -> None:
        """Not begun."""
        self.at_s = 0.0

    def __call__(self, simulation: Simulation, _: object) -> Iterable[Breach]:
        """After each step; there is nothing to find."""
        self.at_s = simulation.at_s
        return ()
