"""The SPEC RG elasticity metrics of a simulation: `twin.elasticity`, on the replicas that served in each step.

What is needed is the demand that was expected, without retries and noise, so that it is the same for every policy:
at least one replica for each `replica_per_s` of it. What is supplied are the replicas that are reached. The seconds
that break the SLO are the outcome's; those of `twin.elasticity` are of another queue, and are left out here.
"""

from collections.abc import Iterable, Sequence

import msgspec

from springtide.twin.elasticity import Need, measure_steps
from springtide.twin.kernel_world import Step
from springtide.twin.series import Series
from springtide.twin.simulation.demand import Demand
from springtide.twin.simulation.flow import Flow
from springtide.twin.simulation.outcome import Breach
from springtide.twin.simulation.run import Simulation
from springtide.twin.simulation.scenario import Scenario


class Elastic(msgspec.Struct, frozen=True):
    """All in percent, as `twin.elasticity` defines them: accuracies, shares of the time, and instability."""

    under_accuracy: float
    over_accuracy: float
    under_share: float
    over_share: float
    instability: float


class Supply:
    """A watch that notes how many replicas serve, when that changes."""

    def __init__(self) -> None:
        """Nothing has been seen."""
        self.steps: list[Step] = []

    def __call__(self, simulation: Simulation, _: Flow) -> Iterable[Breach]:
        """After each step; there is nothing to find."""
        serving = simulation.world.capacity().replicas
        if not self.steps or self.steps[-1].serving != serving:
            self.steps.append(Step(simulation.kernel.now_ms, serving, serving))
        return ()


def need_of(scenario: Scenario, counts: Sequence[float] | None = None) -> Need:
    """The replicas that the expected demand takes in each second; `counts` are the values of its file."""
    demand = Demand(scenario.demand, scenario.faults, counts)
    rates = list(demand.steps(scenario.duration_s, 1.0))
    return Need.of(Series(scenario.name, scenario.start_ms, rates, 0), scenario.service.replica_per_s)


def elastic(need: Need, steps: Sequence[Step]) -> Elastic:
    """How the supply followed the whole of it."""
    first = [Step(need.series.start_ms, steps[0].serving, steps[0].paid)] if steps else []
    found = measure_steps(need, [*first, *steps], 0, need.series.seconds)
    return Elastic(
        under_accuracy=found.under_accuracy,
        over_accuracy=found.over_accuracy,
        under_share=found.under_share,
        over_share=found.over_share,
        instability=found.instability,
    )
