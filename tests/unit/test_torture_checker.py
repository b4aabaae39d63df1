"""The checker of the loss test: a good history passes, and each kind of broken one is caught."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from springtide.model import Order, OrderState, Reservation, Sale, Sku, SkuTotals
from springtide.twin.torture.checker import Findings, check
from springtide.twin.torture.history import (
    Action,
    Attempt,
    Ending,
    History,
    Record,
    Restocked,
    Struck,
    read_lines,
    write_line,
)
from springtide.twin.torture.report import make_report
from springtide.twin.torture.schedule import Fault, FaultKind

SALE = Sale("live", "Live", (Sku("tea", "Tea", 500, 10, per_buyer_max=2),), 0, 10**13, 60_000)
replace = msgspec.structs.replace


def attempt(buyer: str = "ann", key: str = "k1", status: int = 201, **more: Any) -> Attempt:
    order_id = f"o-{buyer}-{key}" if status in {200, 201} else ""
    state = "reserved" if order_id else ""
    one = Attempt(buyer, key, "tea", 1, 1000, 1010, "counter-1", status, "", order_id, state)
    return replace(one, **more)


def order(buyer: str = "ann", key: str = "k1", state: OrderState = OrderState.PAID, **more: object) -> Order:
    one = Reservation(f"o-{buyer}-{key}", "live", 0, buyer, key, "tea", 1, 1005, 61_005)
    return Order(replace(one, **more), state, 500)


PAID = Action("pay", "o-ann-k1", 2000, 2010, 200, "accepted")
RESTOCK = Restocked("r1", "tea", 5, 201)
STRUCK = Struck(Fault(0, FaultKind.KILL, "valkey", 2.0, 0.0), 900, 1100, 3, counted=True)
GOOD = History((attempt(), attempt("bob", status=409, code="sold_out")), (PAID,), (STRUCK,), (RESTOCK,))
TOTALS = SkuTotals("tea", initial=10, restocked=5, reserved=0, paid=1, returning=0)
REST = Ending(SALE, (order(),), (TOTALS,), {"tea": 14}, settled=True, open_returns=0, journal_entries=0)


def test_a_kept_promise_is_no_finding() -> None:
    findings = check(GOOD, REST)
    assert findings.holds, findings


def with_attempts(*attempts: Attempt) -> History:
    return replace(GOOD, attempts=attempts)


def with_orders(*orders: Order) -> Ending:
    return replace(REST, orders=orders)


LATER: dict[str, Any] = {"sent_ms": 1500, "done_ms": 1510}
BROKEN: dict[str, tuple[str, History, Ending]] = {
    "acknowledged, not recorded": ("lost", GOOD, with_orders()),
    "recorded with another quantity": ("lost", GOOD, with_orders(order(quantity=2))),
    "two acknowledged for one key": (
        "duplicates",
        with_attempts(attempt(), attempt(status=200, order_id="o-other")),
        with_orders(order(), order(order_id="o-other")),
    ),
    "two recorded for one key": ("duplicates", GOOD, with_orders(order(), order(order_id="o-other"))),
    "one recorded twice": ("duplicates", GOOD, with_orders(order(), order())),
    "above the buyer's limit": (
        "limits",
        with_attempts(*(attempt(key=key) for key in ("k1", "k2", "k3"))),
        with_orders(*(order(key=key, state=OrderState.RESERVED) for key in ("k1", "k2", "k3"))),
    ),
    "nobody asked for it": ("unasked", with_attempts(), REST),
    "refused each time": ("unasked", with_attempts(attempt(status=503, code="unavailable")), REST),
    "sold out to one who holds": (
        "untruthful",
        with_attempts(attempt(), attempt(status=409, code="sold_out", **LATER)),
        REST,
    ),
    "closed to one who holds": (
        "untruthful",
        with_attempts(attempt(), attempt(status=410, code="closed", **LATER)),
        REST,
    ),
    "key reused, said of the same purchase": (
        "untruthful",
        with_attempts(attempt(), attempt(status=422, code="key_reused", **LATER)),
        REST,
    ),
    "a limit without an order": (
        "untruthful",
        with_attempts(attempt(), attempt("bob", status=409, code="limit_reached")),
        REST,
    ),
    "a limit because of a stranger's order": (
        "untruthful",
        with_attempts(attempt(), attempt("ann", "k2", 409, code="limit_reached", order_id="o-bob-k1", **LATER)),
        REST,
    ),
    "ended, said of a paid order": ("untruthful", with_attempts(attempt(), attempt(status=200, state="ended")), REST),
    "accepted, and not paid": ("payments", GOOD, with_orders(order(state=OrderState.EXPIRED))),
    "to be refunded, and paid": ("payments", replace(GOOD, actions=(replace(PAID, outcome="refund_due"),)), REST),
    "cancelled, and paid": (
        "payments",
        replace(GOOD, actions=(PAID, Action("cancel", "o-ann-k1", 1, 2, 200, "cancelled"))),
        REST,
    ),
    "acknowledged, unknown to the back office": (
        "payments",
        replace(GOOD, actions=(PAID, Action("cancel", "o-ann-k1", 1, 2, 404))),
        REST,
    ),
    "paid by nobody": ("payments", replace(GOOD, actions=()), REST),
    "restocked twice": ("restocks", GOOD, replace(REST, totals=(replace(TOTALS, restocked=10),), stock={"tea": 19})),
    "restocked, not recorded": (
        "restocks",
        GOOD,
        replace(REST, totals=(replace(TOTALS, restocked=0),), stock={"tea": 9}),
    ),
    "oversold": ("oversold", GOOD, replace(REST, totals=(replace(TOTALS, paid=17),), stock={"tea": -2})),
    "stock taken, nothing to show for it": ("differences", GOOD, replace(REST, stock={"tea": 13})),
    "stock came back twice": ("differences", GOOD, replace(REST, stock={"tea": 15})),
    "negative stock": ("left_behind", GOOD, replace(REST, stock={"tea": -1})),
    "never at rest": ("left_behind", GOOD, replace(REST, settled=False)),
    "stock on its way for ever": ("left_behind", GOOD, replace(REST, open_returns=1)),
    "journal not acknowledged": ("left_behind", GOOD, replace(REST, journal_entries=1)),
    "reserved for ever": ("left_behind", GOOD, replace(REST, totals=(replace(TOTALS, reserved=1),))),
    "a process that outlived the run": ("left_behind", GOOD, replace(REST, processes_left=("valkey-server",))),
    "a process given up": ("left_behind", GOOD, replace(REST, given_up=("recorder",))),
    "a target that did not recover": ("left_behind", replace(GOOD, faults=(replace(STRUCK, note="not well"),)), REST),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_found(name: str) -> None:
    kind, history, ending = BROKEN[name]
    findings = check(history, ending)
    found = getattr(findings, kind)
    assert any(found.values()) if isinstance(found, dict) else found, findings
    assert not findings.holds


def asked_in_the_dark(status: int, code: str = "") -> History:
    return with_attempts(attempt(status=status, code=code), attempt("bob", status=409, code="sold_out"))


ALLOWED: dict[str, tuple[History, Ending]] = {
    "an order whose answer got lost": (asked_in_the_dark(0), REST),
    "an order whose outcome was unknown": (asked_in_the_dark(503, "outcome_unknown"), REST),
    "no order, though the outcome was unknown": (
        replace(asked_in_the_dark(0), actions=()),
        replace(REST, orders=(), totals=(replace(TOTALS, paid=0),), stock={"tea": 15}),
    ),
    "a refusal while the other attempt was under way": (
        with_attempts(attempt(status=0), attempt(status=409, code="sold_out", sent_ms=1001)),
        REST,
    ),
    "the same order again": (with_attempts(attempt(), attempt(status=200, **LATER)), REST),
    "a limit with an order": (
        with_attempts(attempt(), attempt("ann", "k2", 409, code="limit_reached", order_id="o-ann-k1", **LATER)),
        REST,
    ),
    "key reused for another quantity": (
        with_attempts(attempt(), attempt(status=422, code="key_reused", quantity=2, **LATER)),
        REST,
    ),
    "a restock that may have been": (replace(GOOD, restocks=(replace(RESTOCK, status=0),)), REST),
    "a restock that was put off and may have been": (replace(GOOD, restocks=(replace(RESTOCK, status=503),)), REST),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_may_happen_is_no_finding(name: str) -> None:
    assert check(*ALLOWED[name]).holds, check(*ALLOWED[name])


def test_a_history_survives_its_file_and_a_torn_last_line_is_left_out() -> None:
    records: tuple[Record, ...] = (*GOOD.attempts, *GOOD.actions, *GOOD.faults, *GOOD.restocks)
    lines = [write_line(record) for record in records]
    assert read_lines(lines) == GOOD
    assert read_lines([*lines, write_line(GOOD.attempts[0])[:-5]]) == GOOD
    with pytest.raises(msgspec.DecodeError):
        read_lines([*lines, b'{"type": "nonsense"}\n'])


def test_an_ending_survives_its_file() -> None:
    assert msgspec.json.decode(msgspec.json.encode(REST), type=Ending) == REST


def report(history: History, wanted: int, judge: Callable[[History, Ending], Findings] = check) -> bool:
    return make_report(history, judge(history, REST), 1, (7, wanted, {}), 1.0).holds


def test_faults_that_did_not_count_are_no_proof() -> None:
    idle = replace(GOOD, faults=(replace(STRUCK, counted=False, in_flight=0),))
    assert report(GOOD, 1)
    assert not report(GOOD, 2)
    assert not report(idle, 1)
