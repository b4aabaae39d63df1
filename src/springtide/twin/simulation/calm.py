"""When nothing asks for the cloud any more: demand within the owner's base, no event near, no fault, for so long."""

import math

from springtide.model import Plan, ZoneKind
from springtide.twin.simulation.scenario import Scenario

SLACK_S = 180.0
"""What giving everything back takes beside what the policy says: throttled calls, ticks, a return of a zone."""

STAGES = 12
"""So many stages of scaling in come from the largest fleet to the base; a stage takes a share of what serves."""


class Calm:
    """For how long all has been calm. With a base that does not fit into the owner's rooms it never is."""

    def __init__(self, scenario: Scenario) -> None:
        """It has not been calm yet."""
        fleet, service = scenario.fleet, scenario.service
        self._scenario = scenario
        idc = [zone for zone in scenario.zones if zone.kind is ZoneKind.IDC]
        room = [zone.nodes * (zone.cores_per_node // service.replica_cores) for zone in idc]
        self._base = base = fleet.base_replicas * len(idc)
        self._per_s = base * service.replica_per_s / (1 + fleet.headroom)
        policy = scenario.fleet_policy()
        fits = min(room, default=0) >= fleet.base_replicas
        if policy.failure_budget:
            # What is left after the loss of a room still carries the base without its headroom.
            fits = fits and sum(room) - max(room, default=0) >= math.ceil(base / (1 + fleet.headroom))
        self._ever = fits and policy.scale_in_share > 0
        self._since_s: float | None = None
        horizon_s = max(scenario.cloud.boot_p99_s, scenario.cloud.eci_boot_p99_s, *(z.lead_s for z in scenario.zones))
        waves_s = fleet.start_s * math.ceil(self._peak_replicas() / min(fleet.starting_max, fleet.actions_max))
        self._before_s = horizon_s + waves_s + SLACK_S
        stages_s = STAGES * max(fleet.scale_in_every_s, fleet.tick_ms / 1000)
        self.enough_s = fleet.patience_s + fleet.drain_s + stages_s + SLACK_S
        """For so long it has to be calm until the cloud is empty, seconds."""

    def lasts_s(self, at_s: float, count: Plan | None, *, ours: bool = True) -> float:
        """For how long it has been calm at this moment, by the last plan; 0: it is not.

        What else decides the count than the fleet itself has its own reasons to want more than the base.
        """
        asks = count is None or count.demand.high > self._per_s or not (ours or count.replicas_wanted <= self._base)
        if not self._ever or asks or self._expects(at_s):
            self._since_s = None
            return 0.0
        if self._since_s is None:
            self._since_s = at_s
        return at_s - self._since_s

    def _expects(self, at_s: float) -> bool:
        """Whether an announced event is near or open, or a fault is under way or just over."""
        scenario = self._scenario
        if any(fault.at_s <= at_s <= fault.at_s + fault.lasts_s for fault in scenario.faults):
            return True
        return scenario.calendar and any(
            wave.opens_s - wave.ready_s - self._before_s <= at_s <= wave.opens_s + (wave.announced_s or wave.lasts_s)
            for wave in scenario.demand.waves
            if wave.announced_per_s
        )

    def _peak_replicas(self) -> int:
        announced = max((wave.announced_per_s for wave in self._scenario.demand.waves), default=0.0)
        return math.ceil(announced / self._scenario.service.replica_per_s) + 1
