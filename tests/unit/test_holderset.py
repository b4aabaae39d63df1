"""Nobody who holds an order is missing from the set, whatever its size."""

import asyncio

import pytest

from springtide.drivers.memory.clock import VirtualClock
from springtide.errors import InventoryUnavailable
from springtide.model import Holders, Sale, SaleView, Sku
from springtide.sale import holderset
from springtide.sale.holderset import HolderSet, HolderSets
from springtide.sale.page import Page


class Books:
    """Journals of two buckets; a position is how many entries have been read."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.journals: list[list[str]] = [[], []]
        self.forgotten = 0
        self.asked: list[str] = []
        self.lasts_s = 0.0
        self.failure: Exception | None = None

    async def holders(self, sale: str, bucket: int, after: str) -> Holders:
        self.asked.append(after)
        if self.lasts_s:
            await self.clock.sleep(self.lasts_s)
        if self.failure is not None:
            raise self.failure
        journal = self.journals[bucket]
        start = int(after or 0)
        complete = not after or start < self.forgotten
        return Holders(tuple(journal if complete else journal[start:]), str(len(journal)), complete)


def page(name: str = "evening", epoch: int = 1) -> Page:
    sale = Sale(name, "An evening", (Sku("tea", "Tea", 1, 9),), 0, 10_000, 1000, epoch=epoch, buckets=2)
    return Page(SaleView(sale, {"tea": 0}, paused=False, stock_version=1, at_ms=5000), 0.0, 0)


async def load(sets: HolderSets, clock: VirtualClock, of: Page) -> HolderSet:
    assert not sets.known(of, clock.monotonic_s())
    await clock.advance(0.0)
    assert sets.known(of, clock.monotonic_s())
    known = await sets.caught_up(of)
    assert known is not None
    return known


async def test_a_set_is_complete_at_first_and_grows_by_what_is_new() -> None:
    clock = VirtualClock()
    books = Books(clock)
    books.journals = [["anna"], ["bert"]]
    sets = HolderSets(books, clock)
    known = await load(sets, clock, page())
    assert "anna" in known
    assert "bert" in known
    assert "cora" not in known
    books.journals[1].append("cora")
    books.asked.clear()
    assert await sets.caught_up(page()) is known
    assert "cora" in known
    assert books.asked == ["1", "1"]
    books.forgotten = 5
    books.journals[0] += ["dora", "emil"]
    await sets.caught_up(page())
    assert all(buyer in known for buyer in ("anna", "bert", "cora", "dora", "emil"))
    assert known.bits_set == 5


async def test_a_new_epoch_needs_a_new_set() -> None:
    clock = VirtualClock()
    sets = HolderSets(Books(clock), clock)
    await load(sets, clock, page())
    assert await sets.caught_up(page(epoch=2)) is None
    await load(sets, clock, page(epoch=2))


async def test_a_set_that_fills_up_is_made_anew_in_a_larger_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holderset, "BITS_MIN", 1 << 10)
    monkeypatch.setattr(holderset, "BITS_MAX", 1 << 16)
    clock = VirtualClock()
    books = Books(clock)
    books.journals[0] = [f"b{number}" for number in range(2000)]
    sets = HolderSets(books, clock)
    first = await load(sets, clock, page())
    assert first.bits == 1 << 14
    assert all(buyer in first for buyer in books.journals[0])
    assert sum(f"c{number}" in first for number in range(1000)) < 150
    books.journals[1] = [f"d{number}" for number in range(30_000)]
    full = await sets.caught_up(page())
    assert full is not None
    if full.crowded:
        full = await load(sets, clock, page())
    assert full.bits == 1 << 16
    assert not full.crowded, "it cannot become any larger"
    assert all(buyer in full for journal in books.journals for buyer in journal)
    assert 0.2 < sets.fill < 0.6
    assert sets.bytes_held == (1 << 16) // 8


async def test_a_failing_load_is_tried_again_later_and_a_failing_catch_up_changes_nothing() -> None:
    clock = VirtualClock()
    books = Books(clock)
    sets = HolderSets(books, clock)
    for failure in (InventoryUnavailable("away"), RuntimeError("a fault")):
        books.failure = failure
        assert not sets.known(page(), clock.monotonic_s())
        await clock.advance(0.0)
        assert not sets.known(page(), clock.monotonic_s())
        await clock.advance(1.0)
    assert len(books.asked) == 4
    books.failure = None
    await load(sets, clock, page())
    books.failure = InventoryUnavailable("away")
    with pytest.raises(InventoryUnavailable):
        await sets.caught_up(page())
    books.failure = None
    assert await sets.caught_up(page()) is not None
    await sets.close()


async def test_a_slow_inventory_is_left_alone_for_a_while() -> None:
    clock = VirtualClock()
    books = Books(clock)
    sets = HolderSets(books, clock)
    await load(sets, clock, page())
    books.lasts_s = 0.5
    await asyncio.gather(sets.caught_up(page()), clock.advance(0.6))
    assert not sets.known(page(), clock.monotonic_s())
    await clock.advance(2.0)
    assert sets.known(page(), clock.monotonic_s())


async def test_sets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holderset, "SETS_MAX", 3)
    clock = VirtualClock()
    sets = HolderSets(Books(clock), clock)
    for number in range(6):
        await load(sets, clock, page(f"s{number}"))
        await clock.advance(0.1)
    assert len(sets) == 3
    assert not sets.known(page("s0"), clock.monotonic_s())
    assert sets.known(page("s5"), clock.monotonic_s())
    await sets.close()
