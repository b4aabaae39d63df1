"""Random lives of a sale against a model of ten lines: no unit sold twice or lost, one order a key."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from springtide.drivers.embedded_valkey import EmbeddedValkey, start_valkey
from springtide.drivers.memory.inventory import MemoryInventory
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey import ValkeyInventory
from springtide.model import ReserveRequest, ReserveStatus, Sale, Sku, StockReturn
from springtide.ports import Inventory

CLOCK = SystemClock()
HOUR_MS = 3_600_000
SKUS = (Sku("a", "A", 1, 7, 3), Sku("b", "B", 1, 3, 2), Sku("c", "C", 1, 0, 1))
S = ReserveStatus
_numbers = itertools.count()

Purchase = tuple[str, str, str, int]
purchases = st.tuples(
    st.sampled_from(["ann", "bob", "cid", "dan"]),
    st.sampled_from(["k1", "k2", "k3", "k4", "k5", "k6"]),
    st.sampled_from(["a", "a", "b", "c", "d"]),
    st.integers(1, 4),
)
steps = st.lists(
    st.one_of(
        st.lists(purchases, min_size=1, max_size=12),
        st.integers(0, 30),  # give back the order with this number, of those there are
        st.just("cut"),
        st.just("record"),
    ),
    max_size=12,
)


@dataclass
class Model:
    """The promises, written down as plainly as they can be."""

    stock: dict[str, int] = field(default_factory=lambda: {sku.sku: sku.stock for sku in SKUS})
    orders: dict[tuple[str, str], tuple[str, str, int]] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)

    def decide(self, order_id: str, purchase: Purchase) -> ReserveStatus:
        buyer, key, sku, quantity = purchase
        known = self.orders.get((buyer, key))
        if known:
            return S.REPEATED if known[1:] == (sku, quantity) else S.KEY_REUSED
        if sku not in self.stock:
            return S.UNKNOWN_SKU
        mine = [order for (owner, _), order in self.orders.items() if owner == buyer]
        held = sum(units for order, article, units in mine if article == sku and order in self.live)
        if held + quantity > next(one.per_buyer_max for one in SKUS if one.sku == sku):
            return S.LIMIT_REACHED
        if quantity > self.stock[sku]:
            return S.SOLD_OUT
        self.stock[sku] -= quantity
        self.orders[buyer, key] = (order_id, sku, quantity)
        self.live.add(order_id)
        return S.RESERVED


class Life:
    """One sale on one inventory, step by step beside the model."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self.model = Model()
        self.sale = f"sale-{next(_numbers)}"
        self.journalled: list[str] = []

    async def run(self, plan: list[list[Purchase] | int | str]) -> None:
        now_ms = CLOCK.now_ms()
        await self.inventory.publish(Sale(self.sale, "", SKUS, now_ms - HOUR_MS, now_ms + HOUR_MS, 1000))
        for step in plan:
            if isinstance(step, list):
                await self.reserve(step)
            elif isinstance(step, int):
                await self.give_back(step)
            elif step == "record":
                await self.record()
            assert (await self.inventory.cut(self.sale, 0)).stock == self.model.stock
        await self.record()
        assert self.journalled == [order for order, _, _ in self.model.orders.values()]
        assert await self.inventory.journal_depth(self.sale, 0) == 0

    async def reserve(self, batch: list[Purchase]) -> None:
        deadline_ms = CLOCK.now_ms() + HOUR_MS
        requests = [
            ReserveRequest(buyer, key, sku, quantity, f"o-{next(_numbers)}", 1, deadline_ms)
            for buyer, key, sku, quantity in batch
        ]
        results = await self.inventory.reserve(self.sale, 0, requests)
        for request, purchase, result in zip(requests, batch, results, strict=True):
            assert result.status is self.model.decide(request.order_id, purchase)
            if result.status in {S.RESERVED, S.REPEATED}:
                assert result.order_id == self.model.orders[purchase[:2]][0]

    async def give_back(self, number: int) -> None:
        known = list(self.model.orders.items())
        if not known:
            return
        (buyer, _), (order_id, sku, quantity) = known[number % len(known)]
        back = StockReturn(order_id, self.sale, 0, buyer, sku, quantity)
        assert await self.inventory.give_back(back) is (order_id in self.model.live)
        if order_id in self.model.live:
            self.model.live.remove(order_id)
            self.model.stock[sku] += quantity

    async def record(self) -> None:
        while entries := await self.inventory.read_journal(self.sale, 0, "recorder", 3):
            self.journalled += [order.order_id for entry in entries for order in entry.reservations]
            await self.inventory.acknowledge(self.sale, 0, [entry.entry_id for entry in entries])


@given(steps)
@settings(max_examples=150)
def test_any_life_of_a_sale_keeps_its_promises_in_memory(plan: list[list[Purchase] | int | str]) -> None:
    asyncio.run(Life(MemoryInventory(CLOCK)).run(plan))


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
    @given(steps)
    @settings(max_examples=40)
    def check(plan: list[list[Purchase] | int | str]) -> None:
        run(Life(valkey).run(plan))

    check()
