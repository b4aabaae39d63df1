"""Whatever happens in whatever order: a refusal never comes before idempotency, and never was untrue all the time."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from springtide.drivers.memory.clock import VirtualClock
from springtide.model import HeldState, ReserveStatus, Restock, Sale, Sku, StockReturn
from springtide.sale.orders import bucket_of
from tests.unit.replica import Counted, Purchase, Replica

BUYERS = [f"b{number}" for number in range(6)]

_buy = st.tuples(st.just("buy"), st.integers(0, 1), st.sampled_from(BUYERS), st.sampled_from(["k1", "k2"]))
_return = st.tuples(st.just("return"), st.sampled_from(BUYERS))
_restock = st.tuples(st.just("restock"), st.integers(0, 1))
_pause = st.tuples(st.just("pause"), st.booleans())
_wait = st.tuples(st.just("wait"), st.sampled_from([0.0, 0.001, 0.005, 0.02, 0.07, 0.15]))
_steps = st.lists(st.one_of(_buy, _buy, _buy, _return, _restock, _pause, _wait, _wait), max_size=40)


class Evening:
    """Two replicas on one inventory; remembers what was true while a purchase was under way."""

    def __init__(self, buckets: int, lasts_s: float) -> None:
        self.clock = VirtualClock()
        self.inventory = Counted(self.clock)
        self.buckets = buckets
        self.lasts_s = lasts_s
        self.open: list[tuple[Purchase, bool]] = []
        self.restocks = 0

    async def begin(self) -> None:
        now_ms = self.clock.now_ms()
        sku = Sku("tea", "Tea", 1, 1, per_buyer_max=2, spread=True)
        sale = Sale("evening", "An evening", (sku,), now_ms, now_ms + 600_000, 60_000, buckets=self.buckets)
        await self.inventory.publish(sale)
        self.replicas = [Replica(self.inventory, self.clock) for _ in range(2)]
        for replica in self.replicas:
            await replica.start()
        self.inventory.lasts_s = self.lasts_s

    async def made(self, buyer: str, key: str) -> str | None:
        orders = await self.inventory.orders_of("evening", bucket_of(buyer, self.buckets), buyer)
        return next((one.reservation.order_id for one in orders if one.reservation.key == key), None)

    async def step(self, step: tuple[object, ...]) -> None:
        match step:
            case ("buy", int(at), str(buyer), str(key)):
                held = await self.made(buyer, key)
                self.open.append((self.replicas[at].buy(buyer, key), held is not None))
            case ("return", str(buyer)):
                bucket = bucket_of(buyer, self.buckets)
                for one in await self.inventory.orders_of("evening", bucket, buyer):
                    if one.state is HeldState.LIVE:
                        order_id = one.reservation.order_id
                        await self.inventory.give_back(StockReturn(order_id, "evening", bucket, buyer, "tea", 1))
            case ("restock", int(bucket)):
                self.restocks += 1
                restock = Restock(f"r{self.restocks}", "evening", "tea", 1)
                await self.inventory.restock(bucket % self.buckets, restock)
            case ("pause", bool(paused)):
                await self.inventory.pause("evening", paused)
            case ("wait", float(seconds)):
                await self.clock.advance(seconds)

    async def end(self) -> None:
        for _ in range(30):
            await self.clock.advance(0.1)
            if all(purchase.told for purchase, _ in self.open):
                break
        for purchase, held_before in self.open:
            assert purchase.told == 1
            if held_before:
                assert purchase.status is ReserveStatus.REPEATED, purchase.status
        for replica in self.replicas:
            await replica.close()
        # What was sent in a row and answered in any order: one order for each key at most.
        for buyer in BUYERS:
            orders = await self.inventory.orders_of("evening", bucket_of(buyer, self.buckets), buyer)
            keys = [one.reservation.key for one in orders]
            assert len(set(keys)) == len(keys)


@settings(max_examples=60, deadline=None)
@given(_steps, st.sampled_from([1, 2]), st.sampled_from([0.0, 0.003, 0.03]))
def test_a_buyer_who_holds_an_order_is_never_told_sold_out(
    steps: list[tuple[object, ...]], buckets: int, lasts_s: float
) -> None:
    async def run() -> None:
        evening = Evening(buckets, lasts_s)
        await evening.begin()
        for step in steps:
            await evening.step(step)
        await evening.end()

    asyncio.run(run())
