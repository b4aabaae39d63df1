"""Offers and quotas are asked for in the background: the last word counts, and only the first one is waited for."""

import asyncio

import pytest

from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.fleet import MemoryCloud
from springtide.fleet.market import AGAIN_S_MAX, ASK_S, MarketWatch
from springtide.model import Market, Offer, Quota
from tests.unit.fleets import H

OFFER = Offer("cloud-h", "c.large", Market.ON_DEMAND, 4, 8_192, 80.0)


class Watched:
    """A watch over a cloud whose answers are counted and can be slow."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.cloud = MemoryCloud(self.clock, (H,), (OFFER,), (Quota(Market.ON_DEMAND, 100),))
        self.asked: list[float] = []
        self.said: list[str] = []
        self.takes_s = 0.0
        offers = self.cloud.offers

        async def counted() -> list[Offer]:
            self.asked.append(self.clock.monotonic_s())
            await self.clock.sleep(self.takes_s)
            return await offers()

        self.cloud.offers = counted  # type: ignore[method-assign] # counted and slow
        self.watch = MarketWatch(self.clock, self.cloud, lambda _, error: self.said.append(error))

    async def look(self, seconds: float) -> None:
        """As a loop does, twice a second."""
        for _ in range(round(seconds * 2)):
            looking = self.clock.monotonic_s()
            task = asyncio.create_task(self.watch.look(0.5))
            await self.clock.advance(0.5)
            await task
            assert self.clock.monotonic_s() - looking == pytest.approx(0.5)


@pytest.fixture
def watched() -> Watched:
    return Watched()


async def test_the_first_word_is_there_after_the_first_look(watched: Watched) -> None:
    before = len(watched.watch.offers)
    await watched.look(0.5)
    assert before == 0
    assert watched.watch.heard
    assert watched.watch.offers == (OFFER,)
    assert watched.watch.quotas == (Quota(Market.ON_DEMAND, 100),)


async def test_it_is_asked_again_now_and_then_and_nobody_waits(watched: Watched) -> None:
    watched.takes_s = 8.0
    await watched.look(60.0)
    gaps = [later - before for before, later in zip(watched.asked, watched.asked[1:], strict=False)]
    assert min(gaps) >= ASK_S + 8.0
    assert len(watched.asked) == 4


async def test_what_has_not_changed_stays_the_same_object(watched: Watched) -> None:
    await watched.look(1.0)
    before = watched.watch.offers
    await watched.look(30.0)
    assert len(watched.asked) > 1
    assert watched.watch.offers is before


async def test_a_cloud_that_fails_has_its_last_word_repeated_and_is_asked_ever_more_seldom(watched: Watched) -> None:
    await watched.look(1.0)
    watched.cloud.failing = True
    await watched.look(1_000.0)
    assert watched.watch.offers == (OFFER,)
    assert "does not answer" in watched.said[0]
    gaps = [later - before for before, later in zip(watched.asked, watched.asked[1:], strict=False)]
    assert max(gaps) <= AGAIN_S_MAX + 1
    assert len(watched.asked) < 20
    watched.cloud.failing = False
    await watched.look(AGAIN_S_MAX + 20)
    asked = len(watched.asked)
    await watched.look(30.0)
    assert len(watched.asked) > asked + 1


async def test_an_empty_list_after_a_full_one_is_not_believed(watched: Watched) -> None:
    await watched.look(1.0)
    watched.cloud._offers.clear()
    await watched.look(30.0)
    assert len(watched.asked) > 1
    assert watched.watch.offers == (OFFER,)


async def test_before_the_first_word_it_is_asked_at_every_look(watched: Watched) -> None:
    watched.cloud.failing = True
    await watched.look(5.0)
    assert not watched.watch.heard
    assert len(watched.asked) >= 9


async def test_an_answer_that_never_comes_is_given_up(watched: Watched) -> None:
    watched.takes_s = 1e9
    await watched.look(40.0)
    assert watched.said == ["no answer within 30 s"]
    await watched.watch.close()
