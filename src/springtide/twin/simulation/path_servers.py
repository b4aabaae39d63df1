"""The counters of an order path, request by request: who comes when, and how long each has to wait."""

import heapq

from springtide.ports import Chance
from springtide.twin.simulation.flow import Capacity, PathSettings


class Servers:
    """Replicas (or slots) that serve one request after the other; who would wait longer than the deadline is refused.

    In one line for all, the next is served by the first that is free; with `own_queues` each replica has its own line,
    and requests go round.
    """

    def __init__(self, settings: PathSettings, chance: Chance) -> None:
        """Nothing serves before the first `resize`."""
        self._settings = settings
        self._chance = chance
        self._deadline_s = settings.deadline_ms / 1000
        self._varies = settings.service_scv**0.5
        self._free_s: list[float] = []
        self._capacity = Capacity(0.0)
        self._hold_s = 0.0
        self._turn = 0

    def resize(self, at_s: float, capacity: Capacity) -> bool:
        """From now on there are so many; True when that is another number, and who waits has to be placed anew.

        What is being served goes on.
        """
        if capacity.requests_per_s == self._capacity.requests_per_s and capacity.replicas == self._capacity.replicas:
            return False
        self._capacity = capacity
        per_s = capacity.requests_per_s
        count = capacity.replicas or max(1, round(per_s * self._settings.service_ms / 1000))
        busy_s = sorted(min(free_s, at_s + self._hold_s) for free_s in self._free_s if free_s > at_s)
        if per_s <= 0.0:
            count = 0
        self._hold_s = count / per_s if count else 0.0
        self._free_s = ([at_s] * max(0, count - len(busy_s)) + busy_s)[:count]
        heapq.heapify(self._free_s)
        self._turn = 0
        return True

    def place(self, at_s: float, came_s: float, cost: float) -> tuple[float, int] | None:
        """When a request that is there at this moment begins to be served, and by which replica of how many lines.

        None: it would have waited too long.
        """
        free_s = self._free_s
        if not free_s:
            return None
        own = self._capacity.own_queues
        which = self._turn if own else 0
        start_s = max(at_s, free_s[which] - self._settings.burst_s)
        if start_s - came_s > self._deadline_s:
            if own:
                self._turn = (which + 1) % len(free_s)
            return None
        takes_s = self._hold_s * cost
        if self._varies:
            takes_s *= 1.0 - self._varies + self._varies * self._chance.expovariate(1.0)
        done_s = max(free_s[which], at_s) + takes_s
        if own:
            free_s[which] = done_s
            self._turn = (which + 1) % len(free_s)
        else:
            heapq.heapreplace(free_s, done_s)
        return start_s, which
