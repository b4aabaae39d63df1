"""What a leading loop does with the fleet's state: takes over, writes down, strikes, remembers, until it is deposed."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Never

import msgspec

from springtide.errors import Deposed, FleetStateError
from springtide.fleet.desk import Desk
from springtide.fleet.intents import NEEDS_INTENT, Deed, Intents
from springtide.fleet.keeper import Keeper, Recalled
from springtide.fleet.leader import Leader
from springtide.fleet.status import FleetStatus
from springtide.model import Node
from springtide.ports import Clock, FleetState

TAKE_OVER_S = 5.0
"""How long a new leader may take to recall what was remembered."""

TAKE_OVER_TRIES = 5
"""After so many failures in a row the lead is left to another: he may be of the version that can read it."""

SWEEP_S = 30.0
"""How often intents are looked for that nobody carries out: their writing was given up, and came late."""


class Taken(msgspec.Struct, frozen=True):
    """What a new leader found: the memory of each service, and the purchases to send again."""

    memories: list[Recalled]
    again: list[Deed]


class Lead:
    """A loop's part in the shared state. Every failure is reported, and none raised."""

    def __init__(
        self,
        clock: Clock,
        state: FleetState,
        holder: str,
        lease_ms: int,
        answer_s: float,
        report: Callable[[str, str], None],
    ) -> None:
        """A call of the state may take `answer_s`, within which a tick waits for it."""
        self._clock = clock
        self._leader = Leader(clock, state, holder, lease_ms, report)
        self._keeper = Keeper(clock, state)
        self._answer_s = answer_s
        self._report = report
        self._ready_term = 0
        self._failures = 0
        self._swept_s = clock.monotonic_s()
        self._is_kept = False
        self._answers = True
        self.intents = Intents(clock, state)
        self.holder = holder

    @property
    def term(self) -> int:
        """Our last term."""
        return self._leader.term

    @property
    def run(self) -> str:
        """What marks this term's purchases and replicas: no other loop and no other term has it."""
        return f"{self.holder}t{self._leader.term}"

    @property
    def left_s(self) -> float:
        """For how long we surely lead."""
        return self._leader.left_s

    @property
    def acts(self) -> bool:
        """Whether we surely lead and have taken over."""
        return self._leader.holds and self._ready_term == self._leader.term

    async def keep(self) -> Never:
        """See `Leader.keep`."""
        self._is_kept = True
        try:
            await self._leader.keep()
        finally:
            self._is_kept = False

    async def tend(self) -> None:
        """Ask for the lead where we do not have it; `keep`, when it runs, prolongs the one that we have."""
        if not (self._leader.holds and self._is_kept):
            await self._leader.tend()

    async def take_over(self, active: Sequence[Deed], nodes: Sequence[Node], tick: int) -> Taken | None:
        """In a new term, find out where the fleet is. None when there is nothing to take over, or not yet."""
        if not self._leader.holds or self._ready_term == self._leader.term:
            return None
        term = self._leader.term
        taken: list[Taken] = []

        async def look() -> None:
            memories = await self._keeper.recall()
            again = await self.intents.left_open([deed.intent_id for deed in active], nodes)
            taken.append(Taken(memories, [msgspec.structs.replace(deed, tick=tick) for deed in again]))

        if not await self._asked("take over", look(), TAKE_OVER_S):
            self._failures += 1
            if self._failures >= TAKE_OVER_TRIES:
                self._failures = 0
                await self._leader.step_back()
            return None
        self._ready_term, self._failures = term, 0
        return taken[0]

    async def write(self, deeds: Sequence[Deed], refuse: Callable[[Deed, str], None]) -> list[Deed]:
        """Write the deeds down; those that may be begun now. `refuse` is told of the others."""
        named: list[Deed] = []

        async def begin() -> None:
            named.extend(await self.intents.begin(self.term, deeds, self._answer_s))

        self._answers = await self._asked("intents", begin(), self._answer_s) if deeds else True
        if not self._answers:
            named = [deed for deed in deeds if not isinstance(deed.action, NEEDS_INTENT)]
            for deed in deeds:
                if isinstance(deed.action, NEEDS_INTENT):
                    refuse(deed, "without the fleet's state nothing is rented or given back")
        if self._leader.holds:
            return named
        for deed in named:
            refuse(deed, "the lead was lost")
            if deed.intent_id:
                self.intents.done(deed.intent_id)
        return []

    async def remember(self, desks: Iterable[Desk], status: FleetStatus | None, active: Sequence[Deed] = ()) -> None:
        """Strike what has ended, write what has changed, tell the status. `active` is what is under way."""
        if not self._answers or not self.acts:
            return  # a tick waits for a state that does not answer once

        async def write() -> None:
            if self._clock.monotonic_s() - self._swept_s >= SWEEP_S:
                self._swept_s = self._clock.monotonic_s()
                await self.intents.sweep([deed.intent_id for deed in active])
            await self.intents.strike(self.term, self._answer_s)
            await self._keeper.remember(self.term, desks)
            if status is not None:
                await self._keeper.tell(self.term, status)

        await self._asked("memory", write(), self._answer_s)

    async def resign(self, desks: Iterable[Desk]) -> None:
        """At the end: leave everything written, and the lead to another."""
        await self.remember(desks, None)
        if self.term:
            await self._leader.resign()

    async def _asked(self, source: str, call: Awaitable[None], timeout_s: float) -> bool:
        """Whether the call went well."""
        try:
            async with self._clock.timeout(timeout_s):
                await call
        except Deposed as error:
            self._leader.depose()
            self._report(source, str(error))
        except TimeoutError:
            self._report(source, f"the fleet's state did not answer within {timeout_s:g} s")
        except (FleetStateError, OSError) as error:
            self._report(source, str(error))
        else:
            return True
        return False
