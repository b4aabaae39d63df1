"""The inventory on Valkey when a caller is cut off between two steps, or somebody else's comes in between."""

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest

from springtide.drivers import valkey
from springtide.drivers.embedded_valkey import EmbeddedValkey
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey import ValkeyInventory
from springtide.drivers.valkey_codec import key
from springtide.drivers.valkey_library import library_source
from springtide.drivers.valkey_store import Store
from springtide.drivers.valkey_wire import command
from springtide.errors import InventoryError, InventoryUnavailable, OutcomeUnknown
from springtide.model import HeldOrder, HeldState, Reservation, Restock, Sale, Sku, StockReturn, Transfer
from tests.contract.inventories import (
    LIMIT,
    REPEATED,
    RESERVED,
    SOLD_OUT,
    a_sale,
    buy,
    connected,
    journal,
    lose,
    now_ms,
    published,
    returned,
    started_server,
    statuses,
    want,
)


class Brittle:
    """A store that breaks, and that notes what was written."""

    def __init__(self, store: Store, *, replicated: bool = False) -> None:
        self.replicated = replicated
        self.calls_in_flight = 0
        self.writes_left = 1_000_000
        self.reached = True
        self.written: list[tuple[str, bytes]] = []
        self.read = store.read
        self.primaries = store.primaries
        self.close = store.close
        self._store = store

    async def write(self, tag: str, data: bytes) -> Any:
        self.writes_left -= 1
        if self.writes_left < 0 and not self.reached:
            raise InventoryUnavailable("cut off")
        reply = await self._store.write(tag, data)
        self.written.append((tag, data))
        if self.writes_left < 0:
            raise OutcomeUnknown("cut off")
        return reply

    def cut_off_after(self, writes: int, *, reached: bool) -> None:
        """The write behind these fails; with `reached`, only its answer is lost."""
        self.writes_left, self.reached = writes, reached

    def mend(self) -> None:
        self.writes_left = 1_000_000


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedValkey]:
    with started_server() as server:
        yield server


@pytest.fixture
async def inventory(server: EmbeddedValkey) -> AsyncIterator[ValkeyInventory]:
    inventory = await connected(server)
    yield inventory
    await inventory.close()


@pytest.fixture
def brittle(inventory: ValkeyInventory) -> Brittle:
    store = Brittle(inventory._store)
    inventory._store = store
    return store


@pytest.mark.parametrize("reached", [False, True])
async def test_a_publication_is_seen_whole_or_not_at_all_and_can_be_completed(
    inventory: ValkeyInventory, brittle: Brittle, *, reached: bool
) -> None:
    for writes in itertools.count():
        sale = a_sale(stock=11, buckets=5)
        brittle.cut_off_after(writes, reached=reached)
        try:
            created = await inventory.publish(sale)
        except InventoryError:
            brittle.mend()
            seen = await inventory.view(sale.sale)
            assert (seen is not None) is (sale.sale in await inventory.sales())
            assert (seen is not None) is (reached and writes == 4)
            assert await inventory.publish(sale) is (seen is None)
        else:
            assert created
            brittle.mend()
            break
        view = await inventory.view(sale.sale)
        assert view is not None
        assert (view.sale, view.stock, view.paused) == (sale, {"tea": 11, "cup": 5}, False)
    assert writes == 5


async def test_a_publication_that_was_begun_with_another_title_is_completed_with_the_new_one(
    inventory: ValkeyInventory, brittle: Brittle
) -> None:
    sale = a_sale(stock=9, buckets=3)
    brittle.cut_off_after(1, reached=True)
    with pytest.raises(OutcomeUnknown):
        await inventory.publish(msgspec.structs.replace(sale, title="Old", hold_ms=1000))
    brittle.mend()
    assert await inventory.publish(sale)
    for bucket in range(3):
        (result,) = await inventory.reserve(sale.sale, bucket, [want("ann")])
        assert result.pay_by_ms > now_ms() + sale.hold_ms - 5000
    await lose(inventory, sale.sale, 0)
    with pytest.raises(InventoryError, match="as it was begun, or under another id"):
        await inventory.publish(msgspec.structs.replace(sale, skus=(Sku("tea", "Tea", 1, 10),)))


async def test_what_is_left_without_its_stock_is_not_published_over(inventory: ValkeyInventory) -> None:
    sale = a_sale()
    await published(inventory, sale)
    await buy(inventory, sale.sale, want("ann"))
    await inventory._store.write(f"{sale.sale}:0", command("DEL", key(sale.sale, 0, "meta")))
    with pytest.raises(InventoryError, match="rebuild it"):
        await inventory.publish(sale)
    await inventory.restore(msgspec.structs.replace(sale, epoch=4), 0, {"tea": 9}, [])
    assert [order.buyer for entry in await journal(inventory, sale.sale) for order in entry.reservations] == ["ann"]


@pytest.mark.parametrize("reached", [False, True])
async def test_a_transfer_cut_off_anywhere_is_ended_by_repeating_it(
    inventory: ValkeyInventory, brittle: Brittle, *, reached: bool
) -> None:
    for writes in range(3):
        sale = await published(inventory, a_sale(stock=20, buckets=2))
        transfer = Transfer("t1", sale, 0, 1, "tea", 4)
        brittle.cut_off_after(writes, reached=reached)
        with pytest.raises(OutcomeUnknown if reached or writes else InventoryUnavailable):
            await inventory.move_stock(transfer)
        brittle.mend()
        cut = await inventory.cut(sale, 0)
        assert cut.stock["tea"] + sum(one.quantity for one in cut.transfers) in {6, 10}
        assert await inventory.move_stock(transfer) == 4
        cuts = [await inventory.cut(sale, bucket) for bucket in (0, 1)]
        assert [cut.stock["tea"] for cut in cuts] == [6, 14]
        assert [cut.transfers for cut in cuts] == [(), ()]


async def test_every_step_of_a_transfer_may_arrive_again_long_after(
    inventory: ValkeyInventory, brittle: Brittle
) -> None:
    sale = await published(inventory, a_sale(stock=200, buckets=2))
    brittle.written.clear()
    for n in range(12):
        source = n % 3 % 2
        await inventory.move_stock(Transfer(f"t{n}", sale, source, 1 - source, "tea", 1 + n))
    stock = [(await inventory.cut(sale, bucket)).stock["tea"] for bucket in (0, 1)]
    for tag, data in [*brittle.written, *reversed(brittle.written)]:
        await brittle.write(tag, data)
    cuts = [await inventory.cut(sale, bucket) for bucket in (0, 1)]
    assert [cut.stock["tea"] for cut in cuts] == stock
    assert [cut.transfers for cut in cuts] == [(), ()]


def orders_for(sale: Sale, count: int) -> list[HeldOrder]:
    return [
        HeldOrder(Reservation(f"o-{n}", sale.sale, 0, f"b{n}", "k1", "tea", 1, 5, 6), HeldState.LIVE)
        for n in range(count)
    ]


async def fenced(inventory: ValkeyInventory) -> Sale:
    sale = a_sale()
    await published(inventory, sale)
    await buy(inventory, sale.sale, want("ann"))
    await inventory.fence(sale.sale, 0, 4)
    return msgspec.structs.replace(sale, epoch=4)


@pytest.mark.parametrize("reached", [False, True])
async def test_a_restoration_cut_off_anywhere_is_completed_by_repeating_it(
    inventory: ValkeyInventory, brittle: Brittle, monkeypatch: pytest.MonkeyPatch, *, reached: bool
) -> None:
    monkeypatch.setattr(valkey, "_BUYERS_AT_ONCE", 2)
    for writes in itertools.count():
        sale = await fenced(inventory)
        orders = orders_for(sale, 5)
        brittle.cut_off_after(writes, reached=reached)
        try:
            await inventory.restore(sale, 0, {"tea": 5}, orders)
        except InventoryError:
            brittle.mend()
            if 0 < writes < 4:
                await half_a_bucket_tells_and_does_nothing(inventory, sale, orders[0].reservation)
            await inventory.restore(sale, 0, {"tea": 5}, orders)
        else:
            brittle.mend()
            break
        await inventory.pause(sale.sale, paused=False)
        assert len((await inventory.holders(sale.sale, 0, "")).buyers) == 5
        assert await inventory.give_back(returned(orders[4].reservation))
        assert (await inventory.cut(sale.sale, 0)).stock["tea"] == 6
    assert writes == 5


async def half_a_bucket_tells_and_does_nothing(inventory: ValkeyInventory, sale: Sale, order: Reservation) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: inventory.orders_of(sale.sale, 0, "b4"),
        lambda: inventory.holders(sale.sale, 0, ""),
        lambda: inventory.give_back(StockReturn("o-4", sale.sale, 0, "b4", "tea", 1)),
        lambda: inventory.restock(0, Restock("r1", sale.sale, "tea", 1)),
        lambda: inventory.pause(sale.sale, paused=False),
    ]
    for call in calls:
        with pytest.raises(InventoryUnavailable, match="is being rebuilt"):
            await call()
    assert (await inventory.reserve(sale.sale, 0, [want(order.buyer, epoch=4)]))[0].status is not RESERVED


async def test_a_rebuild_that_was_overtaken_writes_nothing_more(inventory: ValkeyInventory, brittle: Brittle) -> None:
    sale = await fenced(inventory)
    brittle.written.clear()
    brittle.cut_off_after(2, reached=False)
    with pytest.raises(InventoryUnavailable):
        await inventory.restore(sale, 0, {"tea": 5}, orders_for(sale, 3))
    brittle.mend()
    late = list(brittle.written)
    await inventory.restore(sale, 0, {"tea": 6}, orders_for(sale, 1))
    for tag, data in late:
        assert await brittle.write(tag, data) in (0, b"OVERTAKEN")
    assert (await inventory.holders(sale.sale, 0, "")).buyers == ("b0",)
    assert (await inventory.cut(sale.sale, 0)).stock["tea"] == 6


# --- with replicas ----------------------------------------------------------------------------------------


async def test_an_answer_about_an_order_that_was_there_makes_a_write_to_wait_for(inventory: ValkeyInventory) -> None:
    sale = await published(inventory, a_sale(stock=1))
    await inventory.reserve(sale, 0, [want("ann")])
    (wire,) = await inventory._store.primaries()

    async def written() -> int:
        info: bytes = await wire.call("INFO", "persistence")
        return next(int(line[17:]) for line in info.splitlines() if line.startswith(b"aof_current_size:"))

    replicated = ValkeyInventory.on(Brittle(inventory._store, replicated=True))
    telling = {"repeated": want("ann"), "limit": want("ann", "k2"), "key reused": want("ann", sku="cup")}
    for request in telling.values():
        for teller, writes in ((inventory, False), (replicated, True)):
            before = await written()
            await teller.reserve(sale, 0, [request])
            assert (await written() > before) is writes
    before = await written()
    assert await statuses(replicated, sale, want("bob")) == [SOLD_OUT]
    assert await written() == before
    assert await statuses(replicated, sale, want("ann"), want("ann", "k2")) == [REPEATED, LIMIT]
    for teller, writes in ((inventory, False), (replicated, True)):
        before = await written()
        assert len(await teller.orders_of(sale, 0, "ann")) == 1
        assert (await written() > before) is writes


# --- the library ------------------------------------------------------------------------------------------


async def test_a_server_can_be_given_another_library(server: EmbeddedValkey, inventory: ValkeyInventory) -> None:
    (line,) = [line for line in library_source().splitlines() if b"'XADD'" in line]
    broken = library_source().replace(line, b"")
    other = await ValkeyInventory.connect(server.host, server.port, SystemClock(), library=broken)
    try:
        sale = await published(other, a_sale())
        assert await statuses(other, sale, want("ann")) == [RESERVED]
        assert await journal(other, sale) == []
    finally:
        await other.close()
        again = await connected(server)
    assert await statuses(again, sale, want("bob")) == [RESERVED]
    assert len(await journal(again, sale)) == 1
    await again.close()
