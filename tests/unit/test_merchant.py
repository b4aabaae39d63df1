"""The merchant's logic on engines in memory that fail where a crash would have come between the two of them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.inventory import MemoryInventory
from springtide.drivers.memory.ledger import MemoryLedger
from springtide.drivers.system import SystemIds
from springtide.errors import InventoryUnavailable, LedgerUnavailable
from springtide.model import Reservation, ReserveRequest, Restock, Role, Sale, SaleStage, Sku, TokenRing
from springtide.sale.api_keys import KeyBook
from springtide.sale.merchant import Merchant, MerchantError, MerchantLimits, Refusal
from springtide.sale.orders import home_of
from springtide.sale.token_office import KNOWN_AFTER_S, TokenOffice

CLOCK_MS = 1_700_000_000_000
HOUR_MS = 3_600_000


class Crash(Exception):
    """The process ended here."""


class World:
    """Both engines; `crash_at` ends a call of the inventory before or after it took effect."""

    def __init__(self) -> None:
        self.clock = VirtualClock(CLOCK_MS)
        self.inventory = MemoryInventory(self.clock)
        self.ledger = MemoryLedger(self.clock)
        self.merchant = self.fresh_merchant()

    def fresh_merchant(self) -> Merchant:
        return Merchant(self.inventory, self.ledger, self.clock)

    async def published(self, **changes: object) -> Sale:
        sale = a_sale(**changes)
        await self.merchant.create(sale)
        await self.merchant.publish(sale.sale)
        return sale

    async def agree(self) -> bool:
        """Whether the inventory has what the ledger has."""
        record = await self.ledger.sale_record("live")
        view = await self.inventory.view("live")
        assert record is not None
        return view is not None and view.sale == record.sale


@pytest.fixture
def world() -> World:
    return World()


def a_sale(**changes: object) -> Sale:
    sale = Sale(
        "live",
        "Live",
        (Sku("tea", "Tea", 500, 10, per_buyer_max=5),),
        CLOCK_MS + HOUR_MS,
        CLOCK_MS + 2 * HOUR_MS,
        60_000,
        buckets=2,
    )
    return msgspec.structs.replace(sale, **changes)


def fail(monkeypatch: pytest.MonkeyPatch, engine: object, name: str, *, after: bool, error: Exception) -> None:
    """Let this method of an engine fail once, before or after it took effect."""
    real: Callable[..., Awaitable[Any]] = getattr(engine, name)

    async def failing(*arguments: Any) -> Any:
        monkeypatch.setattr(engine, name, real)
        if after:
            await real(*arguments)
        raise error

    monkeypatch.setattr(engine, name, failing)


CRASHES = [
    ("publish", "publish"),
    ("open", "redefine"),
    ("edit", "redefine"),
    ("close", "redefine"),
]


async def wish(world: World, name: str) -> None:
    match name:
        case "publish":
            await world.merchant.publish("live")
        case "open":
            await world.merchant.open_now("live")
        case "edit":
            await world.merchant.edit(a_sale(title="New"), None)
        case "close":
            await world.merchant.close("live")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("name", "call"), CRASHES, ids=[name for name, _ in CRASHES])
async def test_a_crash_between_ledger_and_inventory_is_repaired(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, call: str, *, after: bool
) -> None:
    await world.merchant.create(a_sale())
    if name != "publish":
        await world.merchant.publish("live")
    fail(monkeypatch, world.inventory, call, after=after, error=Crash())
    with pytest.raises(Crash):
        await wish(world, name)
    assert await world.agree() is after
    again = world.fresh_merchant()
    await again.reconcile()
    assert await world.agree()
    assert again.figures.published + again.figures.redefined == (not after)
    # Asked for again, it ends as if nothing had happened.
    world.merchant = again
    await wish(world, name)
    record = await again.record("live")
    assert record.stage is (SaleStage.CLOSED if name == "close" else SaleStage.PUBLISHED)
    assert await world.agree()


@pytest.mark.parametrize("call", ["restock", "close_restocks"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_restock_is_made_once_whatever_fails(
    world: World, monkeypatch: pytest.MonkeyPatch, call: str, *, after: bool
) -> None:
    await world.published()
    restock = Restock("r1", "live", "tea", 5)
    engine = world.inventory if call == "restock" else world.ledger
    fail(monkeypatch, engine, call, after=after, error=Crash())
    with pytest.raises(Crash):
        await world.merchant.restock(restock)
    (totals,) = await world.ledger.totals("live")
    assert totals.restocked == 5
    again = world.fresh_merchant()
    assert await again.reconcile() == (not (call == "close_restocks" and after))
    assert (await again.restock(restock)).repeated
    view = await world.inventory.view("live")
    (totals,) = await world.ledger.totals("live")
    assert view is not None
    assert (view.stock["tea"], totals.restocked, totals.returning) == (15, 5, 0)


async def test_a_restock_that_is_done_is_not_made_again_after_a_rebuild(world: World) -> None:
    sale = await world.published()
    restock = Restock("r1", "live", "tea", 5)
    await world.merchant.restock(restock)
    # A rebuilt inventory has the units and does not remember the restock.
    world.inventory = MemoryInventory(world.clock)
    home = home_of("tea", 2)
    await world.inventory.restore(sale, home, {"tea": 15}, [])
    await world.inventory.restore(sale, 1 - home, {"tea": 0}, [])
    world.merchant = world.fresh_merchant()
    assert (await world.merchant.restock(restock)).repeated
    view = await world.inventory.view("live")
    assert view is not None
    assert view.stock == {"tea": 15}


async def test_a_sale_that_sold_is_never_put_into_an_empty_inventory(world: World) -> None:
    await world.published()
    at_ms = world.clock.now_ms()
    await world.ledger.record([Reservation("o1", "live", 0, "b1", "k1", "tea", 1, at_ms, at_ms + 1000)])
    world.inventory = MemoryInventory(world.clock)
    again = world.fresh_merchant()
    await again.reconcile()
    assert await world.inventory.view("live") is None
    assert again.figures.troubled == 1
    with pytest.raises(MerchantError, match="rebuild") as refused:
        await again.publish("live")
    assert refused.value.refusal is Refusal.SALE_IS_LOST


async def test_a_sale_that_is_being_rebuilt_is_left_alone(world: World) -> None:
    sale = await world.published()
    rebuilt = msgspec.structs.replace(sale, epoch=2)
    for bucket in range(2):
        await world.inventory.fence("live", bucket, 2)
        await world.inventory.restore(rebuilt, bucket, {"tea": 5}, [])
    again = world.fresh_merchant()
    await again.reconcile()
    assert again.figures.troubled == 1
    assert await world.ledger.add_restock(Restock("r1", "live", "tea", 5))
    assert await again.reconcile() == 0
    with pytest.raises(MerchantError, match="being rebuilt"):
        await again.pause("live", paused=False)
    view = await world.inventory.view("live")
    assert view is not None
    assert (view.sale.epoch, view.paused) == (2, True)
    record = await again.record("live")
    assert await world.ledger.change_sale(rebuilt, record.revision)
    await again.pause("live", paused=False)
    assert await again.reconcile() == 1
    assert again.figures.troubled == 0
    assert await world.agree()


async def test_trouble_with_one_sale_does_not_keep_the_others_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        await world.ledger.publish(a_sale(sale=name))
    real = world.inventory.publish

    async def publish(sale: Sale) -> bool:
        if sale.sale == "b":
            raise InventoryUnavailable("not now")
        return await real(sale)

    monkeypatch.setattr(world.inventory, "publish", publish)
    await world.merchant.reconcile()
    assert await world.inventory.sales() == ["a", "c"]
    assert world.merchant.figures.troubled == 1
    monkeypatch.setattr(world.inventory, "publish", real)
    await world.merchant.reconcile()
    assert await world.inventory.sales() == ["a", "b", "c"]
    assert world.merchant.figures.troubled == 0


async def test_the_repair_looks_through_all_pages(world: World) -> None:
    names = [f"s{number}" for number in range(7)]
    for name in names:
        await world.ledger.publish(a_sale(sale=name))
    merchant = Merchant(world.inventory, world.ledger, world.clock, MerchantLimits(page=3))
    await merchant.reconcile()
    assert await world.inventory.sales() == names


async def test_the_repair_runs_on_after_an_outage(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.ledger.publish(a_sale())
    fail(monkeypatch, world.ledger, "sale_records", after=False, error=LedgerUnavailable("away"))
    running = asyncio.create_task(world.merchant.run())
    await world.clock.advance(10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await world.agree()
    assert world.merchant.figures.failures == 1
    assert world.merchant.figures.passes >= 2


async def test_of_two_changes_at_once_the_inventory_ends_with_the_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.published()
    other = world.fresh_merchant()
    real = world.inventory.redefine

    async def overtaken(sale: Sale) -> None:
        """While the first is on its way to the inventory, another office edits the sale and is done with it."""
        monkeypatch.setattr(world.inventory, "redefine", real)
        await other.edit(a_sale(title="Second"), None)
        await real(sale)

    monkeypatch.setattr(world.inventory, "redefine", overtaken)
    await world.merchant.edit(a_sale(title="First"), None)
    view = await world.inventory.view("live")
    assert view is not None
    assert view.sale.title == "Second"


async def test_closing_ends_the_sale_and_keeps_what_was_sold(world: World) -> None:
    sale = await world.published()
    await world.merchant.open_now("live")
    request = ReserveRequest("b1", "k1", "tea", 1, "o1", 1, world.clock.now_ms() + 1000)
    home = home_of("tea", sale.buckets)
    await world.inventory.reserve("live", home, [request])
    await world.clock.advance(1)
    record = await world.merchant.close("live")
    assert record.stage is SaleStage.CLOSED
    assert record.sale.closes_ms == world.clock.now_ms()
    view = await world.inventory.view("live")
    assert view is not None
    assert (view.sale.closes_ms, view.stock) == (record.sale.closes_ms, {"tea": 9})


async def test_a_sale_can_be_closed_before_it_was_published_or_opened(world: World) -> None:
    await world.merchant.create(a_sale(sale="draft"))
    assert (await world.merchant.close("draft")).stage is SaleStage.CLOSED
    assert await world.inventory.view("draft") is None
    await world.published()
    assert (await world.merchant.close("live")).sale.opens_ms < world.clock.now_ms()
    assert await world.agree()


async def test_keys_are_trusted_for_a_second(world: World) -> None:
    book = KeyBook(world.ledger, world.clock, SystemIds())
    new = await book.create("till", Role.OPERATOR)
    assert await book.check(new.secret) == new.key
    assert await book.check(new.secret[:-1]) is None
    assert await book.check("sk__") is None
    assert await book.check("") is None
    assert await book.check("sk_é_ü") is None
    await world.ledger.revoke_api_key(new.key.key_id)
    assert await book.check(new.secret) == new.key
    await world.clock.advance(1)
    assert await book.check(new.secret) is None


async def test_a_key_is_not_trusted_while_the_keys_cannot_be_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = KeyBook(world.ledger, world.clock, SystemIds())
    new = await book.create("till", Role.OPERATOR)
    await book.check(new.secret)
    await world.clock.advance(1)
    fail(monkeypatch, world.ledger, "api_keys", after=False, error=LedgerUnavailable("away"))
    with pytest.raises(LedgerUnavailable):
        await book.check(new.secret)
    assert await book.check(new.secret) == new.key


async def test_strangers_make_the_ledger_be_read_ten_times_a_second_at_most(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    real = world.ledger.api_keys

    async def counted() -> Any:
        nonlocal reads
        reads += 1
        return await real()

    monkeypatch.setattr(world.ledger, "api_keys", counted)
    book = KeyBook(world.ledger, world.clock, SystemIds())
    for number in range(100):
        assert await book.check(f"sk_k{number}_x") is None
        await world.clock.advance(0.001)
    assert reads <= 2


async def test_a_ring_that_a_crash_kept_from_the_inventory_is_brought_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    office = TokenOffice(world.inventory, world.ledger, world.clock, b"m" * 32)
    fail(monkeypatch, world.inventory, "set_token_ring", after=False, error=Crash())
    with pytest.raises(Crash):
        await office.rotate()
    assert await world.ledger.token_ring() == TokenRing(1, 2)
    assert await world.inventory.token_ring() == TokenRing(1, 1)
    await TokenOffice(world.inventory, world.ledger, world.clock, b"m" * 32).settle()
    assert await world.inventory.token_ring() == TokenRing(1, 2)


async def test_a_new_generation_signs_once_every_counter_knows_it(world: World) -> None:
    office = TokenOffice(world.inventory, world.ledger, world.clock, b"m" * 32)
    await office.rotate()
    assert (await office.issue("live", ["b1"], 60)).generation == 1
    await world.clock.advance(KNOWN_AFTER_S)
    assert (await office.issue("live", ["b1"], 60)).generation == 2
