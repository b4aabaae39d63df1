"""Ways to run a simulated fleet, by name: ours, and those it is compared with."""

from collections.abc import Callable

from springtide.errors import ConfigError
from springtide.twin.simulation.decisions import Approach, Springtide
from springtide.twin.simulation.scenario import Scenario

APPROACHES: dict[str, Callable[[Scenario], Approach]] = {"springtide": lambda _: Springtide()}
"""What makes each of them for a scenario."""


def approach(name: str, scenario: Scenario) -> Approach:
    """The one of this name. Raises ConfigError."""
    make = APPROACHES.get(name)
    if make is None:
        raise ConfigError(f"policy {name!r} is unknown; give one of: {', '.join(APPROACHES)}")
    return make(scenario)
