"""The lease as its holder sees it: never longer than the store does."""

import asyncio
from collections.abc import Callable

import pytest

from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.fleet_state import MemoryFleetState
from springtide.fleet.leader import Leader
from springtide.model import Leadership

LEASE_MS = 5_000


class SlowState(MemoryFleetState):
    """Reads a request after `there_s`, and its answer arrives after `back_s`."""

    there_s = 0.0
    back_s = 0.0

    async def lead(self, holder: str, lease_ms: int) -> Leadership:
        await self._clock.sleep(self.there_s)
        found = await super().lead(holder, lease_ms)
        await self._clock.sleep(self.back_s)
        return found


class Stage:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.state = SlowState(self.clock)
        self.faults: list[str] = []

    def leader(self, holder: str) -> Leader:
        return Leader(self.clock, self.state, holder, LEASE_MS, lambda source, error: self.faults.append(error))

    async def until_over(self, leader: Leader) -> None:
        while leader.holds:
            await self.clock.advance(0.05)

    async def during(self, seconds: float, call: Callable[[], object]) -> None:
        task = asyncio.ensure_future(call())  # type: ignore[call-overload] # a coroutine function
        await self.clock.advance(seconds)
        assert task.done()


@pytest.fixture
def stage() -> Stage:
    return Stage()


async def test_a_lease_is_counted_from_the_sending_and_not_used_to_its_end(stage: Stage) -> None:
    leader = stage.leader("a")
    assert leader.left_s <= 0
    stage.state.there_s, stage.state.back_s = 0.2, 1.0
    await stage.during(1.3, leader.tend)
    assert leader.holds
    assert leader.term == 1
    assert leader.left_s == pytest.approx(4.0 - 1.3)
    ends_s = 0.2 + LEASE_MS / 1000  # by the store's clock
    await stage.until_over(leader)
    assert ends_s - stage.clock.monotonic_s() > 0.9


async def test_nobody_leads_beside_another_whatever_the_delays(stage: Stage) -> None:
    """Two loops that ask all the time, over a store that is slow, silent and quick by turns."""
    leaders = [stage.leader("a"), stage.leader("b")]
    delays = [(0.0, 0.0), (0.4, 1.1), (0.0, 3.0), (1.5, 0.0), (0.0, 0.0), (0.7, 0.7)]
    terms: set[int] = set()

    async def ask(leader: Leader) -> None:
        while True:
            await leader.tend()
            await stage.clock.sleep(0.3)

    tasks = [asyncio.ensure_future(ask(leader)) for leader in leaders]
    for step in range(600):
        stage.state.there_s, stage.state.back_s = delays[step // 7 % len(delays)]
        stage.state.failing = step // 90 % 3 == 1
        await stage.clock.advance(0.1)
        assert sum(leader.holds for leader in leaders) <= 1
        terms |= {leader.term for leader in leaders if leader.holds}
    for task in tasks:
        task.cancel()
    assert len(terms) > 1


async def test_keep_prolongs_and_stops_in_time_when_it_cannot(stage: Stage) -> None:
    leader = stage.leader("a")
    await stage.during(0.0, leader.tend)
    keeping = asyncio.ensure_future(leader.keep())
    await stage.clock.advance(60)
    assert leader.holds
    assert leader.left_s > 2.5
    stage.state.failing = True
    asked_s = stage.clock.monotonic_s()
    await stage.until_over(leader)
    assert stage.clock.monotonic_s() - asked_s <= 4.1
    assert stage.faults
    keeping.cancel()


async def test_another_leader_is_news_at_once(stage: Stage) -> None:
    first, second = stage.leader("a"), stage.leader("b")
    await stage.during(0.0, first.tend)
    await stage.during(0.0, second.tend)
    assert (first.holds, second.holds) == (True, False)
    assert second.leader == "a"
    await stage.during(0.0, first.resign)
    assert not first.holds
    await stage.during(0.0, second.tend)
    assert (second.holds, second.term) == (True, 2)
    await stage.during(0.0, first.tend)
    assert (first.holds, first.leader) == (False, "b")
