"""Random lives of a sale in two buckets against a plain model: no unit sold twice or lost, one order a key.

Movers of stock are cut off at every step and come back late; restocks, returns and payments are said again.
"""

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from springtide.decide.buckets import opening_stock
from springtide.drivers.embedded_valkey import EmbeddedValkey, start_valkey
from springtide.drivers.memory.inventory import MemoryInventory
from springtide.drivers.stock_transfer import Debit
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey import ValkeyInventory
from springtide.model import HeldState, ReserveRequest, ReserveStatus, Restock, Sale, Sku, StockReturn, Transfer

CLOCK = SystemClock()
HOUR_MS = 3_600_000
SKUS = (Sku("a", "A", 1, 11, 3, spread=True), Sku("b", "B", 1, 3, 2), Sku("c", "C", 1, 0, 1))
BUCKET = {"ann": 0, "bob": 1, "cid": 0, "dan": 1}
BUCKETS = (0, 1)
S = ReserveStatus
_numbers = itertools.count()

Purchase = tuple[str, str, str, int]
Step = list[Purchase] | tuple[str, int] | str
Life = list[Step]
purchases = st.tuples(
    st.sampled_from(sorted(BUCKET)),
    st.sampled_from(["k1", "k2", "k3", "k4", "k5", "k6"]),
    st.sampled_from(["a", "a", "b", "c", "d"]),
    st.integers(1, 4),
)
# What a step's number says is written at the method of the step.
lives = st.lists(
    st.one_of(
        st.lists(purchases, min_size=1, max_size=12),
        st.tuples(st.sampled_from(["give_back", "settle", "restock"]), st.integers(0, 30)),
        st.tuples(st.sampled_from(["move", "take", "hand_over", "late"]), st.integers(0, 11)),
        st.just("record"),
    ),
    max_size=20,
)


@dataclass
class Moving:
    """A transfer, by the model: `credited` when its units are at the target."""

    units: int
    credited: bool = False


@dataclass
class Model:
    """The promises, written down as plainly as they can be."""

    stock: list[dict[str, int]] = field(
        default_factory=lambda: [{sku.sku: opening_stock(sku, bucket, 2) for sku in SKUS} for bucket in BUCKETS]
    )
    added: dict[str, int] = field(default_factory=lambda: {sku.sku: sku.stock for sku in SKUS})
    orders: dict[tuple[str, str], tuple[str, str, int]] = field(default_factory=dict)
    states: dict[str, HeldState] = field(default_factory=dict)
    restocks: set[str] = field(default_factory=set)
    moving: dict[str, Moving] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)

    def decide(self, order_id: str, purchase: Purchase) -> ReserveStatus:
        buyer, key, sku, quantity = purchase
        known = self.orders.get((buyer, key))
        if known:
            return S.REPEATED if known[1:] == (sku, quantity) else S.KEY_REUSED
        here = self.stock[BUCKET[buyer]]
        if sku not in here:
            return S.UNKNOWN_SKU
        mine = [order for (owner, _), order in self.orders.items() if owner == buyer]
        held = sum(
            units for order, article, units in mine if article == sku and self.states[order] is not HeldState.ENDED
        )
        if held + quantity > next(one.per_buyer_max for one in SKUS if one.sku == sku):
            return S.LIMIT_REACHED
        if quantity > here[sku]:
            return S.SOLD_OUT
        here[sku] -= quantity
        self.orders[buyer, key] = (order_id, sku, quantity)
        self.states[order_id] = HeldState.LIVE
        return S.RESERVED

    def take(self, transfer: Transfer) -> int:
        name, here = transfer.transfer_id, self.stock[transfer.source]
        if name in self.moved:
            return self.moved[name]
        if name not in self.moving:
            units = min(transfer.quantity, here[transfer.sku])
            if units == 0:
                return 0
            here[transfer.sku] -= units
            self.moving[name] = Moving(units)
        return self.moving[name].units

    def hand_over(self, transfer: Transfer) -> bool:
        moving = self.moving.get(transfer.transfer_id)
        if moving is None or moving.credited:
            return False
        self.stock[transfer.target][transfer.sku] += moving.units
        moving.credited = True
        return True

    def end(self, transfer: Transfer) -> None:
        moving = self.moving.pop(transfer.transfer_id, None)
        if moving:
            self.moved[transfer.transfer_id] = moving.units

    def held(self, sku: str) -> int:
        """Units of a SKU that are anywhere: in stock, on their way, or held by an order."""
        between = sum(
            moving.units
            for name, moving in self.moving.items()
            if not moving.credited and transfer_of("", int(name)).sku == sku
        )
        sold = sum(
            units
            for order, article, units in self.orders.values()
            if article == sku and self.states[order] is not HeldState.ENDED
        )
        return sum(here[sku] for here in self.stock) + between + sold


def transfer_of(sale: str, number: int) -> Transfer:
    """A transfer has the same content whenever its id is said."""
    source = number % 2
    return Transfer(str(number), sale, source, 1 - source, "ab"[number // 2 % 2], 1 + number % 5)


class Course:
    """One sale on one inventory, step by step beside the model."""

    def __init__(self, inventory: MemoryInventory | ValkeyInventory) -> None:
        self.inventory = inventory
        self.model = Model()
        self.sale = f"sale-{next(_numbers)}"
        self.journalled: list[str] = []
        self.debits: list[tuple[Transfer, Debit]] = []

    async def run(self, life: Life) -> None:
        now_ms = CLOCK.now_ms()
        await self.inventory.publish(Sale(self.sale, "", SKUS, now_ms - HOUR_MS, now_ms + HOUR_MS, 1000, buckets=2))
        for step in life:
            if isinstance(step, list):
                await self.reserve(step)
            elif step == "record":
                await self.record()
            else:
                await getattr(self, step[0])(int(step[1]))
            await self.compare()
        for transfer in [one for bucket in BUCKETS for one in (await self.inventory.cut(self.sale, bucket)).transfers]:
            await self.inventory.move_stock(transfer)
            self.model.hand_over(transfer)
            self.model.end(transfer)
        await self.compare()
        await self.record()
        assert sorted(self.journalled) == sorted(order for order, _, _ in self.model.orders.values())
        assert [await self.inventory.journal_depth(self.sale, bucket) for bucket in BUCKETS] == [0, 0]

    async def compare(self) -> None:
        cuts = [await self.inventory.cut(self.sale, bucket) for bucket in BUCKETS]
        assert [cut.stock for cut in cuts] == self.model.stock
        found = {one.transfer_id: one.quantity for cut in cuts for one in cut.transfers}
        assert found == {name: moving.units for name, moving in self.model.moving.items()}
        view = await self.inventory.view(self.sale)
        assert view is not None
        assert view.moving == sum(found.values())
        assert {sku.sku: self.model.held(sku.sku) for sku in SKUS} == self.model.added

    async def reserve(self, batch: list[Purchase]) -> None:
        deadline_ms = CLOCK.now_ms() + HOUR_MS
        for bucket in BUCKETS:
            mine = [purchase for purchase in batch if BUCKET[purchase[0]] == bucket]
            requests = [
                ReserveRequest(buyer, key, sku, quantity, f"o-{next(_numbers)}", 1, deadline_ms)
                for buyer, key, sku, quantity in mine
            ]
            results = await self.inventory.reserve(self.sale, bucket, requests)
            for request, purchase, result in zip(requests, mine, results, strict=True):
                assert result.status is self.model.decide(request.order_id, purchase)
                if result.status in {S.RESERVED, S.REPEATED}:
                    order_id = self.model.orders[purchase[:2]][0]
                    assert result.order_id == order_id
                    assert result.live is (self.model.states[order_id] is not HeldState.ENDED)

    async def give_back(self, number: int) -> None:
        """The order with this number, of those there are."""
        known = list(self.model.orders.items())
        if not known:
            return
        (buyer, _), (order_id, sku, quantity) = known[number % len(known)]
        back = StockReturn(order_id, self.sale, BUCKET[buyer], buyer, sku, quantity)
        live = self.model.states[order_id] is HeldState.LIVE
        assert await self.inventory.give_back(back) is live
        if live:
            self.model.states[order_id] = HeldState.ENDED
            self.model.stock[BUCKET[buyer]][sku] += quantity

    async def settle(self, number: int) -> None:
        """The order with this number, of those there are."""
        known = list(self.model.orders.items())
        if not known:
            return
        (buyer, _), (order_id, _, _) = known[number % len(known)]
        ended = self.model.states[order_id] is HeldState.ENDED
        assert await self.inventory.settle(self.sale, BUCKET[buyer], buyer, order_id) is not ended
        if not ended:
            self.model.states[order_id] = HeldState.PAID
        orders = await self.inventory.orders_of(self.sale, BUCKET[buyer], buyer)
        mine = [order for (owner, _), (order, _, _) in known if owner == buyer]
        assert [(one.reservation.order_id, one.state) for one in orders] == [
            (order, self.model.states[order]) for order in mine
        ]

    async def restock(self, number: int) -> None:
        """One of a few restocks; said again, it is the same."""
        restock = Restock(f"r{number % 7}", self.sale, "abc"[number % 7 % 3], 1 + number % 7)
        new = restock.restock_id not in self.model.restocks
        bucket = number % 7 % 2
        assert await self.inventory.restock(bucket, restock) is new
        if new:
            self.model.restocks.add(restock.restock_id)
            self.model.stock[bucket][restock.sku] += restock.quantity
            self.model.added[restock.sku] += restock.quantity

    async def move(self, number: int) -> None:
        """A whole transfer, or the rest of it."""
        transfer = transfer_of(self.sale, number)
        units = self.model.take(transfer)
        self.model.hand_over(transfer)
        self.model.end(transfer)
        assert await self.inventory.move_stock(transfer) == units

    async def take(self, number: int) -> None:
        """A mover that is cut off once the units have left their source."""
        transfer = transfer_of(self.sale, number)
        debit = await self.inventory.debit(transfer)
        assert debit.units == self.model.take(transfer)
        assert bool(debit.number) is (transfer.transfer_id in self.model.moving)
        if debit.number:
            self.debits.append((transfer, debit))

    async def hand_over(self, number: int) -> None:
        """A mover, perhaps a late one, that is cut off once the units are at their target."""
        if self.debits:
            transfer, debit = self.debits[number % len(self.debits)]
            assert await self.inventory.credit(transfer, debit) is self.model.hand_over(transfer)

    async def late(self, number: int) -> None:
        """A mover that had stopped before it handed over, and goes on to the end."""
        await self.hand_over(number)
        if self.debits:
            transfer, _ = self.debits[number % len(self.debits)]
            await self.inventory.end_transfer(transfer)
            self.model.end(transfer)

    async def record(self) -> None:
        for bucket in BUCKETS:
            while entries := await self.inventory.read_journal(self.sale, bucket, "recorder", 3):
                self.journalled += [order.order_id for entry in entries for order in entry.reservations]
                await self.inventory.acknowledge(self.sale, bucket, [entry.entry_id for entry in entries])


@given(lives)
@settings(max_examples=100)
def test_any_life_of_a_sale_keeps_its_promises_in_memory(life: Life) -> None:
    asyncio.run(Course(MemoryInventory(CLOCK)).run(life))


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[Coroutine[Any, Any, None]], None]]:
    """One event loop for the connection and all examples."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="module")
def valkey(
    run: Callable[[Coroutine[Any, Any, Any]], Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ValkeyInventory]:
    server: EmbeddedValkey = run(start_valkey(tmp_path_factory.mktemp("valkey"), CLOCK))
    inventory: ValkeyInventory = run(ValkeyInventory.connect(server.host, server.port, CLOCK))
    yield inventory
    run(inventory.close())
    run(server.stop())


def test_any_life_of_a_sale_keeps_its_promises_on_valkey(
    run: Callable[[Coroutine[Any, Any, None]], None], valkey: ValkeyInventory
) -> None:
    @given(lives)
    @settings(max_examples=40)
    def check(life: Life) -> None:
        run(Course(valkey).run(life))

    check()
