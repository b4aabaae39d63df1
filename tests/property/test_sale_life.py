"""The whole life of a sale, in any order of its steps, against a model that says plainly what should come of them."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.inventory import MemoryInventory
from springtide.drivers.memory.ledger import MemoryLedger
from springtide.model import (
    OrderState,
    Payment,
    PaymentOutcome,
    ReserveRequest,
    ReserveStatus,
    Restock,
    Sale,
    Sku,
    Transfer,
)
from springtide.sale.audit import audit
from springtide.sale.orders import bucket_of
from springtide.sale.payments import PaymentLimits, Payments
from springtide.sale.pooled_stock import PooledStock
from springtide.sale.recorder import Recorder
from springtide.sale.stock_keeper import StockKeeper

BUCKETS = 3
PRICE_FEN = 100
HOLD_MS = 10_000
GRACE_MS = 2000
LIFE_MS = 3_600_000
SKUS = (Sku("a", "A", PRICE_FEN, 9, 4), Sku("b", "B", PRICE_FEN, 2, 2, spread=True))
LIMITS = {sku.sku: sku.per_buyer_max for sku in SKUS}
S = ReserveStatus

buyers = st.sampled_from(["ann", "bob", "cid", "dan", "eve"])
keys = st.sampled_from(["k1", "k2", "k3", "k4"])
skus = st.sampled_from(["a", "a", "b", "x"])


class CountingIds:
    """Ids without chance."""

    def __init__(self) -> None:
        self.count = 0

    def new(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"


@dataclass
class Bought:
    """An order as the model has it."""

    order_id: str
    buyer: str
    sku: str
    quantity: int
    pay_by_ms: int
    state: OrderState = OrderState.RESERVED


@dataclass
class Model:
    """The promises."""

    stock: dict[str, int] = field(default_factory=lambda: {sku.sku: sku.stock for sku in SKUS})
    orders: dict[tuple[str, str], Bought] = field(default_factory=dict)
    returning: list[Bought] = field(default_factory=list)

    def decide(self, purchase: tuple[str, str, str, int], refusal: ReserveStatus | None) -> ReserveStatus:
        buyer, key, sku, quantity = purchase
        known = self.orders.get((buyer, key))
        if known:
            return S.REPEATED if (known.sku, known.quantity) == (sku, quantity) else S.KEY_REUSED
        if refusal:
            return refusal
        if sku not in self.stock:
            return S.UNKNOWN_SKU
        mine = [one for one in self.orders.values() if (one.buyer, one.sku) == (buyer, sku)]
        # Units of an order that has ended count until they are back: only then does the inventory know.
        held = sum(one.quantity for one in mine if one in self.returning or one.state in {"reserved", "paid"})
        if held + quantity > LIMITS[sku]:
            return S.LIMIT_REACHED
        return S.SOLD_OUT if quantity > self.stock[sku] else S.RESERVED


class SaleLife(RuleBasedStateMachine):
    """Each rule does a step to the product and to the model; the invariant compares them."""

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.clock = VirtualClock()
        self.ids = CountingIds()
        self.inventory = MemoryInventory(self.clock)
        self.ledger = MemoryLedger(self.clock)
        self.pooled = PooledStock(self.inventory, self.ids)
        self.keeper = StockKeeper(self.inventory, self.clock, self.ids)
        self.recorder = Recorder(self.inventory, self.ledger, self.clock, "recorder")
        self.payments = Payments(self.inventory, self.ledger, self.clock, PaymentLimits(grace_ms=GRACE_MS))
        opens_ms = self.clock.now_ms() + 1000
        self.sale = Sale("live", "Live", SKUS, opens_ms, opens_ms + LIFE_MS, HOLD_MS, buckets=BUCKETS)
        self.model = Model()
        self.paused = False
        self.payment = 0
        self.run(self.ledger.publish(self.sale))
        self.run(self.inventory.publish(self.sale))

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        self.give_stock_back()
        self.record()
        report = self.run(audit(self.inventory, self.ledger, "live", self.clock, 0.0))
        assert report.holds, report
        self.runner.close()

    @property
    def refusal(self) -> ReserveStatus | None:
        now_ms = self.clock.now_ms()
        if now_ms < self.sale.opens_ms:
            return S.NOT_OPEN
        if now_ms >= self.sale.closes_ms:
            return S.CLOSED
        return S.PAUSED if self.paused else None

    @rule(purchase=st.tuples(buyers, keys, skus, st.integers(1, 5)))
    def buy(self, purchase: tuple[str, str, str, int]) -> None:
        buyer, key, sku, quantity = purchase
        expected = self.model.decide(purchase, self.refusal)
        request = ReserveRequest(buyer, key, sku, quantity, self.ids.new("o"), 1, self.clock.now_ms() + 1000)
        (result,) = self.run(self.pooled.reserve("live", bucket_of(buyer, BUCKETS), [request]))
        assert result.status is expected
        if expected is S.RESERVED:
            order = Bought(request.order_id, buyer, sku, quantity, self.clock.now_ms() + HOLD_MS)
            self.model.orders[buyer, key] = order
            self.model.stock[sku] -= quantity
        if expected in {S.RESERVED, S.REPEATED}:
            assert result.order_id == self.model.orders[buyer, key].order_id

    @rule(seconds=st.integers(1, 8))
    def let_time_pass(self, seconds: int) -> None:
        self.run(self.clock.advance(float(seconds)))

    @rule()
    def record(self) -> None:
        while self.run(self.recorder.drain_once()):
            pass

    @precondition(lambda self: self.model.orders)
    @rule(data=st.data(), off_fen=st.sampled_from([0, 0, 0, 1, -1]))
    def pay(self, data: st.DataObject, off_fen: int) -> None:
        order = data.draw(st.sampled_from(list(self.model.orders.values())))
        self.payment += 1
        amount_fen = PRICE_FEN * order.quantity + off_fen
        payment = Payment(f"p{self.payment}", order.order_id, "live", order.buyer, amount_fen)
        expected = PaymentOutcome.REFUND_DUE
        if off_fen:
            expected = PaymentOutcome.AMOUNT_DIFFERS
        elif order.state is OrderState.RESERVED:
            order.state, expected = OrderState.PAID, PaymentOutcome.ACCEPTED
        assert self.run(self.payments.pay(payment)) is expected
        assert self.run(self.payments.pay(payment)) is expected, "the same payment has the same outcome"

    @precondition(lambda self: self.model.orders)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        order = data.draw(st.sampled_from(list(self.model.orders.values())))
        self.end(order, OrderState.CANCELLED)
        assert self.run(self.payments.cancel(order.order_id, "live", order.buyer)) is order.state

    def end(self, order: Bought, state: OrderState) -> None:
        if order.state is OrderState.RESERVED:
            order.state = state
            self.model.returning.append(order)

    @rule()
    def expire(self) -> None:
        self.record()
        waits = self.clock.monotonic_s() * 1000 < GRACE_MS
        self.run(self.payments.expire_once())
        for order in self.model.orders.values():
            if not waits and order.pay_by_ms + GRACE_MS <= self.clock.now_ms():
                self.end(order, OrderState.EXPIRED)

    @rule()
    def give_stock_back(self) -> None:
        while self.run(self.payments.return_once()):
            pass
        for order in self.model.returning:
            self.model.stock[order.sku] += order.quantity
        self.model.returning.clear()

    @rule(sku=st.sampled_from(["a", "b"]), quantity=st.integers(1, 3))
    def restock(self, sku: str, quantity: int) -> None:
        restock = Restock(self.ids.new("r"), "live", sku, quantity)
        self.run(self.ledger.add_restock(restock))
        self.run(self.ledger.add_restock(restock))
        self.run(self.payments.restock_once())
        self.model.stock[sku] += quantity

    @rule(way=st.tuples(*[st.integers(0, BUCKETS - 1)] * 2), quantity=st.integers(1, 9))
    def move_stock(self, way: tuple[int, int], quantity: int) -> None:
        source, target = way
        if source != target:
            transfer = Transfer(self.ids.new("t"), "live", source, target, "a", quantity)
            self.run(self.inventory.move_stock(transfer))

    @rule()
    def keep_stock(self) -> None:
        self.run(self.keeper.look())

    @rule(paused=st.booleans())
    def pause(self, *, paused: bool) -> None:
        self.paused = paused
        self.run(self.inventory.pause("live", paused))

    @rule(change=st.sampled_from(["open now", "close now", "open longer"]))
    def change_window(self, change: str) -> None:
        now_ms = self.clock.now_ms()
        opens_ms, closes_ms = self.sale.opens_ms, self.sale.closes_ms
        if change == "open now":
            opens_ms = min(opens_ms, now_ms)
        elif change == "close now":
            closes_ms = max(min(closes_ms, now_ms), opens_ms + 1)
        else:
            closes_ms = max(closes_ms, now_ms) + LIFE_MS
        self.sale = Sale("live", "Live", SKUS, opens_ms, closes_ms, HOLD_MS, buckets=BUCKETS)
        self.run(self.inventory.redefine(self.sale))

    @invariant()
    def stock_is_what_the_model_says(self) -> None:
        if not hasattr(self, "runner"):
            return
        view = self.run(self.inventory.view("live"))
        assert view.stock == self.model.stock
        assert view.moving == 0


SaleLife.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSaleLife = SaleLife.TestCase
