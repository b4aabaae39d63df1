"""Lead or follow: a lease in the fleet's state, kept well before it ends, and not trusted to its end.

What keeps two loops from acting at once. The lease ends by the store's clock `lease_ms` after the store read it, which
is after we sent the request; we count it from the sending, by our own monotonic clock, and leave its last part
(`MARGIN`) unused for calls that are under way. So as long as the two clocks run equally fast, what we begin has ended
or timed out before another can lead. Writes to the fleet's state are safe even if they do not: each carries the term,
and the store refuses those of a term that is over. The ports of balancers and runtimes take no term: there the bound
in time protects, and that repeating any of these writes does no harm (lists are whole, ids are chosen by decisions).
A machine that sleeps may stop its clock: when it wakes, one write may come late, and the leader's next list corrects
it.
"""

import contextlib
from collections.abc import Callable
from typing import Never

from springtide.errors import FleetStateError
from springtide.ports import Clock, FleetState

MARGIN = 0.2
"""The last share of a lease, in which nothing is begun."""

RENEW = 0.25
"""The share of a lease after which it is prolonged."""

ANSWER = 1 / 3
"""The share of a lease that one request for it may take."""


class Leader:
    """One holder's claim. `tend` must be called at every tick, and `keep` run beside them."""

    def __init__(
        self, clock: Clock, state: FleetState, holder: str, lease_ms: int, report: Callable[[str, str], None]
    ) -> None:
        """`holder` must be another for each process. `report` is told of every failure."""
        self._clock = clock
        self._state = state
        self._lease_ms = lease_ms
        self._report = report
        self._sent_s = 0.0
        self._sure_until_s = clock.monotonic_s()
        self._asking = False
        self._not_before_s = clock.monotonic_s()
        self.holder = holder
        self.leader = ""
        """Who leads, as far as was heard."""
        self.term = 0
        """Our term; 0 before the first one."""

    @property
    def left_s(self) -> float:
        """For how long we surely lead; not above 0 when we may not act."""
        return self._sure_until_s - self._clock.monotonic_s()

    @property
    def holds(self) -> bool:
        """Whether we surely lead."""
        return self.left_s > 0

    async def tend(self) -> None:
        """Ask for the lead, or prolong it when that is due."""
        due = self._clock.monotonic_s() - self._sent_s >= self._lease_ms / 1000 * RENEW
        if self._asking or (self.holds and not due) or self._clock.monotonic_s() < self._not_before_s:
            return
        self._asking = True
        try:
            await self._ask()
        finally:
            self._asking = False

    async def keep(self) -> Never:
        """Prolong the lead whenever that is due, for ever: a slow tick must not lose it."""
        renew_s = self._lease_ms / 1000 * RENEW
        while True:
            if self.holds:
                await self.tend()
            due_s = self._sent_s + renew_s - self._clock.monotonic_s() if self.holds else renew_s
            await self._clock.sleep(max(due_s, renew_s / 4))

    def depose(self) -> None:
        """Another leads: begin nothing from now on."""
        self._sure_until_s = self._clock.monotonic_s()

    async def step_back(self) -> None:
        """Resign, and let others try for as long as a lease lasts."""
        self._not_before_s = self._clock.monotonic_s() + self._lease_ms / 1000
        await self.resign()

    async def resign(self) -> None:
        """Let another lead at once; without an answer he has to wait for the lease's end."""
        self.depose()
        with contextlib.suppress(FleetStateError, TimeoutError, OSError):
            async with self._clock.timeout(self._lease_ms / 1000 * ANSWER):
                await self._state.resign(self.holder, self.term)

    async def _ask(self) -> None:
        sent_s = self._clock.monotonic_s()
        try:
            async with self._clock.timeout(self._lease_ms / 1000 * ANSWER):
                found = await self._state.lead(self.holder, self._lease_ms)
        except TimeoutError:
            return self._report("lead", f"no answer within {self._lease_ms / 1000 * ANSWER:.1f} s")
        except (FleetStateError, OSError) as error:
            return self._report("lead", str(error))
        self.leader = found.holder
        if found.holder != self.holder:
            return self.depose()
        self.term, self._sent_s = found.term, sent_s
        self._sure_until_s = sent_s + self._lease_ms / 1000 * (1 - MARGIN)
        return None
