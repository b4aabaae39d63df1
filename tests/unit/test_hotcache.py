"""Pages in memory: true within their age, bounded, and no crowd at the inventory's door."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from springtide.drivers.memory.clock import VirtualClock
from springtide.errors import InventoryUnavailable
from springtide.model import Sale, SaleView, Sku
from springtide.sale import hotcache
from springtide.sale.hotcache import HotCache
from springtide.sale.page import page_state


class Views:
    """Only what a cache asks of an inventory."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.stock: dict[str, int] = {"evening": 5}
        self.asked: list[str] = []
        self.lasts_s = 0.0
        self.failing = False
        self.ahead_ms = 0

    async def view(self, sale: str) -> SaleView | None:
        self.asked.append(sale)
        if self.failing:
            raise InventoryUnavailable("away")
        if self.lasts_s:
            await self.clock.sleep(self.lasts_s)
        if sale not in self.stock:
            return None
        now_ms = self.clock.now_ms() + self.ahead_ms
        definition = Sale(sale, "An evening", (Sku("tea", "Tea", 1, 9),), now_ms, now_ms + 10_000, 1000)
        return SaleView(definition, {"tea": self.stock[sale]}, paused=False, stock_version=1, at_ms=now_ms)

    async def sales(self) -> list[str]:
        if self.failing:
            raise InventoryUnavailable("away")
        return list(self.stock)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def views(clock: VirtualClock) -> Views:
    return Views(clock)


@pytest.fixture
async def cache(clock: VirtualClock, views: Views) -> AsyncIterator[HotCache]:
    cache = HotCache(views, clock, 0.2)  # type: ignore[arg-type]  # the rest of the port is not asked
    yield cache
    await cache.close()


def stock(cache: HotCache, sale: bytes = b"evening") -> int:
    page = cache.get(sale)
    assert page is not None
    return int(msgspec.json.decode(page.body)["skus"][0]["stock"])


async def test_published_sales_are_known_from_the_start_and_kept_true(
    cache: HotCache, views: Views, clock: VirtualClock
) -> None:
    cache.start()
    await clock.advance(0.0)
    assert stock(cache) == 5
    views.stock["evening"] = 3
    for _ in range(50):
        await clock.advance(0.05)
        page = cache.get(b"evening")
        assert page is not None
        assert clock.monotonic_s() - page.asked_s <= 0.2
    assert stock(cache) == 3


async def test_a_page_is_not_renewed_while_the_inventory_is_away(
    cache: HotCache, views: Views, clock: VirtualClock
) -> None:
    cache.start()
    await clock.advance(1.0)
    views.failing = True
    await clock.advance(1.0)
    page = cache.get(b"evening")
    assert page is not None
    assert clock.monotonic_s() - page.asked_s > 0.9
    assert clock.monotonic_s() - cache.answered_s > 0.9
    views.failing = False
    await clock.advance(0.2)
    assert clock.monotonic_s() - cache.answered_s < 0.2


async def test_the_age_counts_from_before_the_question(cache: HotCache, views: Views, clock: VirtualClock) -> None:
    views.lasts_s = 0.15
    cache.start()
    await clock.advance(0.16)
    page = cache.get(b"evening")
    assert page is not None
    assert page.asked_s == 0.0


async def test_many_who_ask_for_a_sale_cause_one_question(cache: HotCache, views: Views, clock: VirtualClock) -> None:
    views.lasts_s = 0.1
    told: list[int] = []
    assert all(cache.look_up(b"evening", lambda: told.append(1)) for _ in range(100))
    await clock.advance(0.05)
    assert not told
    await clock.advance(0.1)
    assert len(told) == 100
    assert views.asked == ["evening"]


async def test_what_is_unknown_is_remembered_for_a_moment(cache: HotCache, views: Views, clock: VirtualClock) -> None:
    told: list[int] = []
    assert cache.look_up(b"morning", lambda: told.append(1))
    await clock.advance(0.0)
    assert told
    assert cache.get(b"morning") is None
    assert cache.known_unknown(b"morning", clock.monotonic_s())
    assert not cache.known_unknown(b"evening", clock.monotonic_s())
    await clock.advance(hotcache.UNKNOWN_S)
    assert not cache.known_unknown(b"morning", clock.monotonic_s())
    views.stock["morning"] = 1
    assert cache.look_up(b"morning", lambda: None)
    await clock.advance(0.0)
    assert stock(cache, b"morning") == 1


async def test_a_name_that_no_sale_can_have_is_not_asked_for(
    cache: HotCache, views: Views, clock: VirtualClock
) -> None:
    for name in (b"", b"a b", b"\xff", b"x" * 65):
        assert cache.look_up(name, lambda: None)
        await clock.advance(0.0)
        assert cache.known_unknown(name, clock.monotonic_s())
    assert views.asked == []


async def test_a_failed_look_up_tells_who_waits_and_says_nothing_about_the_sale(
    cache: HotCache, views: Views, clock: VirtualClock
) -> None:
    views.failing = True
    told: list[int] = []
    assert cache.look_up(b"evening", lambda: told.append(1))
    await clock.advance(0.0)
    assert told == [1]
    assert not cache.known_unknown(b"evening", clock.monotonic_s())


async def test_everything_is_bounded(
    cache: HotCache, views: Views, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hotcache, "SALES_MAX", 3)
    monkeypatch.setattr(hotcache, "UNKNOWN_MAX", 4)
    monkeypatch.setattr(hotcache, "LOOKUPS_MAX", 2)
    monkeypatch.setattr(hotcache, "WAITERS_MAX", 5)
    for number in range(8):
        views.stock[f"s{number}"] = number
        assert cache.look_up(b"s%d" % number, lambda: None)
        assert cache.look_up(b"u%d" % number, lambda: None)
        assert not cache.look_up(b"v%d" % number, lambda: None)
        await clock.advance(0.001)
    assert len(cache) == len(cache._refreshers) == 3
    assert cache.get(b"s7") is not None
    assert len(cache._unknown) == 4
    assert [cache.look_up(b"s7", lambda: None) for _ in range(6)] == [True] * 5 + [False]
    await clock.advance(1.0)
    assert len(cache) == len(cache._refreshers) == 3


async def test_a_sale_nobody_asks_for_is_let_go(
    cache: HotCache, views: Views, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hotcache, "IDLE_S", 2.0)
    assert cache.look_up(b"evening", lambda: None)
    await clock.advance(3.0)
    assert cache.get(b"evening") is None
    asked = len(views.asked)
    await clock.advance(3.0)
    assert len(views.asked) == asked


async def test_a_sale_that_is_withdrawn_is_forgotten(cache: HotCache, views: Views, clock: VirtualClock) -> None:
    assert cache.look_up(b"evening", lambda: None)
    await clock.advance(0.1)
    del views.stock["evening"]
    await clock.advance(0.2)
    assert cache.get(b"evening") is None


async def test_the_engines_clock_is_measured(cache: HotCache, views: Views, clock: VirtualClock) -> None:
    views.ahead_ms = 5000
    views.lasts_s = 0.02
    assert cache.look_up(b"evening", lambda: None)
    await clock.advance(0.03)
    page = cache.get(b"evening")
    assert page is not None
    assert abs(page.skew_ms - 5000) <= 10


async def test_closing_tells_who_waits(clock: VirtualClock, views: Views) -> None:
    cache = HotCache(views, clock, 0.2)  # type: ignore[arg-type]  # the rest of the port is not asked
    views.lasts_s = 0.5
    told: list[int] = []
    assert cache.look_up(b"evening", lambda: told.append(1))
    await asyncio.sleep(0)
    await cache.close()
    assert told == [1]


@pytest.mark.parametrize(
    ("at_ms", "paused", "state"),
    [
        (99, False, "upcoming"),
        (99, True, "upcoming"),
        (100, False, "open"),
        (199, True, "paused"),
        (200, True, "closed"),
    ],
    ids=range(5),
)
def test_the_state_of_a_page(at_ms: int, state: str, *, paused: bool) -> None:
    sale = Sale("evening", "An evening", (Sku("tea", "Tea", 1, 9),), 100, 200, 1000)
    assert page_state(SaleView(sale, {}, paused, 1, at_ms)) == state
