"""A comparison: the same scenario and seed under one policy after another, and what each of them cost and broke.

The demand, the faults and the cloud's boots and prices come of the same seed; the cloud draws in the order in which
machines are ordered, so a policy that orders otherwise meets other boot times of the same distribution.
"""

from collections.abc import Callable, Sequence

import msgspec

from springtide.twin.elasticity import Need
from springtide.twin.simulation.approaches import COMPARED, OURS, approach
from springtide.twin.simulation.elastic import Elastic, Supply, elastic, need_of
from springtide.twin.simulation.invariants import checks
from springtide.twin.simulation.outcome import Outcome, Sample
from springtide.twin.simulation.run import simulate
from springtide.twin.simulation.scenario import Scenario


class Compared(msgspec.Struct, frozen=True):
    """One policy. Invariants are checked of ours alone: the others have not promised them."""

    outcome: Outcome
    elastic: Elastic


class Comparison(msgspec.Struct, frozen=True):
    """The policies that were run to the end, in order; `left_out` are those that a Ctrl-C was in the way of."""

    scenario: str
    seed: int
    calendar: bool
    rows: tuple[Compared, ...]
    left_out: tuple[str, ...] = ()
    wall_s: float = 0.0

    @property
    def interrupted(self) -> bool:
        """Whether it was ended early."""
        return bool(self.left_out)


def compare(
    scenario: Scenario,
    seed: int | None = None,
    *,
    policies: Sequence[str] = COMPARED,
    counts: list[float] | None = None,
    on_begin: Callable[[str], None] | None = None,
    on_sample: Callable[[Sample], None] | None = None,
) -> Comparison:
    """Run each policy; `on_begin` is told of each. A KeyboardInterrupt leaves out the one under way and the rest.

    Raises ConfigError for an unknown policy, SimulationError for a defect.
    """
    for name in policies:
        approach(name, scenario, counts)
    rows: list[Compared] = []
    try:
        need = need_of(scenario, counts)
        for name in policies:
            if on_begin is not None:
                on_begin(name)
            row = _run(scenario, seed, name, counts, need, on_sample)
            if row is None:
                break
            rows.append(row)
    except KeyboardInterrupt:
        pass  # what is finished is kept
    return Comparison(
        scenario=scenario.name,
        seed=scenario.seed if seed is None else seed,
        calendar=scenario.calendar,
        rows=tuple(rows),
        left_out=tuple(policies[len(rows) :]),
    )


def _run(
    scenario: Scenario,
    seed: int | None,
    name: str,
    counts: list[float] | None,
    need: Need,
    on_sample: Callable[[Sample], None] | None,
) -> Compared | None:
    """One policy; None when it was interrupted."""
    supply = Supply()
    outcome = simulate(
        scenario,
        seed,
        policy=approach(name, scenario, counts),
        on_sample=on_sample,
        counts=counts,
        watches=(supply, checks(scenario)) if name == OURS else (supply,),
    )
    return None if outcome.interrupted else Compared(outcome, elastic(need, supply.steps))
