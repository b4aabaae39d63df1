"""One seed of random faults in a scenario: what it breaks of the invariants."""

from collections.abc import Sequence

import msgspec

from springtide.errors import SpringtideError
from springtide.twin.simulation.decisions import Springtide
from springtide.twin.simulation.fault_draw import draw
from springtide.twin.simulation.invariants import checks
from springtide.twin.simulation.outcome import Breach
from springtide.twin.simulation.run import Simulation
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
    simulation = Simulation(scenario, scenario.seed, Springtide(), counts=counts)
    simulation.watches = (checks(scenario),)
    defects: list[Breach] = []
    try:
        simulation.run()
    except (SpringtideError, ArithmeticError, LookupError, ValueError, TypeError, AssertionError) as error:
        defects.append(Breach(simulation.at_s, DEFECT, f"{type(error).__name__}: {error}"))
    recorder = simulation.recorder
    breaches = (*recorder.breaches, *defects)
    return Tried(scenario.seed, breaches, faults, recorder.totals.requests, simulation.hands.rented)
