"""Desks for what operators want and for what is there: services appear, change, retire."""

from collections.abc import Iterable, Sequence

from springtide.fleet.desk import Desk
from springtide.fleet.keeper import Recalled
from springtide.fleet.observe import Observation
from springtide.fleet.split import owners, run_of
from springtide.model import FleetPolicy, Wishes, Zone


class Desks:
    """The desks of a loop that follows wishes; `by_name` is what there is."""

    def __init__(self, policy: FleetPolicy, zones: Sequence[Zone]) -> None:
        """No service yet; `policy` is the base of each one's own."""
        self._policy = policy
        self._zones = zones
        self.by_name: dict[str, Desk] = {}

    def add(self, service: str, run: str) -> Desk:
        """A new desk, in place of one that may be there."""
        desk = self.by_name[service] = Desk(service, run, self._policy, self._zones)
        return desk

    def adopt(self, memories: Iterable[Recalled], run: str) -> None:
        """Take over what the leader before remembered; everything is marked as this term's from now on."""
        for recalled in memories:
            service = recalled.memory.service
            desk = self.by_name.get(service) or self.add(service, "")
            desk.restore(recalled.memory, recalled.listed, recalled.seasons)
        for service, desk in self.by_name.items():
            desk.run = run_of(run, service)

    def follow(self, seen: Observation, wishes: Wishes, run: str) -> None:
        """Let there be a desk for every service that is wished, and for every one that is not and still has something.

        Before anything was ever wished (version 0) nothing retires: an empty state beside a full fleet is rather a
        state that was lost.
        """
        for service, wish in wishes.services.items():
            desk = self.by_name.get(service)
            if desk is None or desk.retiring:
                # One that comes back begins anew: what was concluded of it is old.
                fresh = self.add(service, run_of(run, service))
                if desk is not None:
                    fresh.endpoints, fresh.homes, fresh.endpoints_unsure = desk.endpoints, desk.homes, True
                desk = fresh
            desk.follow(wish, wishes.scales.get(service), seen.now_ms)
        if not wishes.version:
            return
        present = {replica.service for replica in seen.replicas}
        present.update(owners(seen.nodes, {*self.by_name, *wishes.services}).values())
        for service in (present | self.by_name.keys()) - wishes.services.keys():
            (self.by_name.get(service) or self.add(service, run_of(run, service))).retire()
