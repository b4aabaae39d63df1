"""Holds a run to what was promised in it. Pure: a history and its ending in, what is wrong out."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

from springtide.model import Order, OrderState, SkuAudit
from springtide.sale.audit import compare_acknowledged
from springtide.sale.orders import frees_stock
from springtide.twin.torture.history import Action, Attempt, Ending, History

FINDINGS_MAX = 1000
"""Findings of one kind that are named; the counts are whole."""

ACKNOWLEDGED = frozenset({200, 201})
_NOT_FOUND = 404
_SERVER_ERROR = 500

IN_THE_DARK = frozenset({"", "outcome_unknown", "internal"})
"""Codes of an answer that leaves open what happened; every other refusal says that this attempt reserved nothing."""

DENIALS = frozenset({"sold_out", "limit_reached", "closed", "not_open", "unknown_sku", "unknown_sale", "key_reused"})
"""Codes that would be a lie to a buyer whose key has an order: it comes before all of them."""


class Findings(msgspec.Struct, frozen=True):
    """What is wrong, in words that name order, buyer and key; empty lists and zeros when nothing is.

    lost: acknowledged, and not in the ledger as acknowledged. duplicates: a key with two orders. limits: a buyer with
    more than he may have. unasked: an order that no attempt can have made. untruthful: an answer that was wrong when it
    was given. payments: a payment or cancellation whose answer the ledger does not bear out. restocks: units added more
    or fewer times than once. differences: units by which the stock equation is out, by SKU. left_behind: what should
    have come to rest and did not.
    """

    lost: tuple[str, ...]
    duplicates: tuple[str, ...]
    limits: tuple[str, ...]
    unasked: tuple[str, ...]
    untruthful: tuple[str, ...]
    payments: tuple[str, ...]
    restocks: tuple[str, ...]
    oversold: int
    differences: dict[str, int]
    left_behind: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether every promise was kept."""
        lists = (self.lost, self.duplicates, self.limits, self.unasked, self.untruthful, self.payments, self.restocks)
        return not (any(lists) or self.left_behind or self.oversold or any(self.differences.values()))


@dataclass(frozen=True)
class _Books:
    """The ledger's orders and the attempts, arranged for looking up."""

    orders: Mapping[str, Order]
    by_key: Mapping[tuple[str, str], Order]
    by_buyer: Mapping[str, list[Order]]
    attempts: Mapping[tuple[str, str], list[Attempt]]


def check(history: History, ending: Ending) -> Findings:
    """Everything that is wrong with a run that has come to rest."""
    books = _arrange(history, ending)
    promises = [
        (one.order_id, one.buyer, one.key, one.sku, one.quantity)
        for one in history.attempts
        if one.status in ACKNOWLEDGED
    ]
    compared = compare_acknowledged(ending.orders, promises)
    audits = [SkuAudit(one, ending.stock.get(one.sku, 0)) for one in ending.totals]
    return Findings(
        lost=_some([f"order {one}: not in the ledger" for one in compared.lost])
        + _some(
            [f"order {one}: in the ledger with another buyer, key, SKU or quantity" for one in compared.mismatched]
        ),
        duplicates=_some(f"order {one}: its key has another order, or it stands twice" for one in compared.duplicates),
        limits=_some(_over_limits(ending)),
        unasked=_some(_unasked(books)),
        untruthful=_some(line for one in history.attempts for line in _lies(one, books)),
        payments=_some(line for one in history.actions for line in _broken_word(one, books))
        + _some(_paid_for_nothing(history, ending)),
        restocks=_some(_restocks(history, ending)),
        oversold=sum(one.oversold for one in audits),
        differences={one.totals.sku: one.difference for one in audits},
        left_behind=_some(_unhealed(history)) + _some(_left_behind(ending)),
    )


def _arrange(history: History, ending: Ending) -> _Books:
    attempts: dict[tuple[str, str], list[Attempt]] = defaultdict(list)
    for attempt in history.attempts:
        attempts[attempt.buyer, attempt.key].append(attempt)
    by_buyer: dict[str, list[Order]] = defaultdict(list)
    for order in ending.orders:
        by_buyer[order.reservation.buyer].append(order)
    orders = {order.reservation.order_id: order for order in ending.orders}
    by_key = {(order.reservation.buyer, order.reservation.key): order for order in ending.orders}
    return _Books(orders, by_key, by_buyer, attempts)


def _over_limits(ending: Ending) -> Iterator[str]:
    limits = {sku.sku: sku.per_buyer_max for sku in ending.sale.skus}
    held: Counter[tuple[str, str]] = Counter()
    for order in ending.orders:
        if not frees_stock(order.state):
            held[order.reservation.buyer, order.reservation.sku] += order.reservation.quantity
    for (buyer, sku), units in held.items():
        if units > limits.get(sku, 0):
            yield f"buyer {buyer} has {units} of {sku}, the limit is {limits.get(sku, 0)}"


def _unasked(books: _Books) -> Iterator[str]:
    for (buyer, key), order in books.by_key.items():
        one = order.reservation
        asked = [a for a in books.attempts.get((buyer, key), ()) if (a.sku, a.quantity) == (one.sku, one.quantity)]
        if not asked:
            yield f"order {one.order_id}: buyer {buyer} never asked for {one.quantity} of {one.sku} with key {key}"
        elif not any(attempt.status in ACKNOWLEDGED or attempt.code in IN_THE_DARK for attempt in asked):
            codes = sorted({attempt.code for attempt in asked})
            yield f"order {one.order_id}: every attempt of buyer {buyer} was told that nothing was reserved ({codes})"


def _lies(attempt: Attempt, books: _Books) -> Iterator[str]:
    order = books.by_key.get((attempt.buyer, attempt.key))
    who = f"buyer {attempt.buyer}, key {attempt.key}"
    if attempt.status in ACKNOWLEDGED:
        if attempt.state == "ended" and order is not None and order.state is OrderState.PAID:
            yield f"{who}: told that order {attempt.order_id} had ended, it is paid"
        return
    if attempt.code in DENIALS and order is not None:
        one = order.reservation
        same = (one.sku, one.quantity) == (attempt.sku, attempt.quantity)
        # The order may have been made by an attempt that was still under way when this one was refused.
        late_ms = attempt.sent_ms - one.reserved_ms
        if same and late_ms > 0:
            yield f"{who}: told {attempt.code}, {late_ms} ms after order {one.order_id} was made"
    if attempt.code == "limit_reached":
        yield from _groundless_limit(attempt, books, who)


def _groundless_limit(attempt: Attempt, books: _Books, who: str) -> Iterator[str]:
    held = [o.reservation for o in books.by_buyer.get(attempt.buyer, ()) if o.reservation.sku == attempt.sku]
    if not any(one.reserved_ms <= attempt.done_ms for one in held):
        yield f"{who}: told limit_reached for {attempt.sku}, without an order of it"
    elif attempt.order_id and attempt.order_id not in {one.order_id for one in held}:
        yield f"{who}: told limit_reached because of order {attempt.order_id}, which is not his"


def _broken_word(action: Action, books: _Books) -> Iterator[str]:
    order = books.orders.get(action.order_id)
    said = f"order {action.order_id}: {action.what} was answered {action.outcome or action.status}"
    if action.status == _NOT_FOUND:
        yield f"{said}, though the order had been acknowledged"
        return
    state = order.state if order is not None else None
    wrong: dict[str, Callable[[], bool]] = {
        "accepted": lambda: state is not OrderState.PAID,
        "refund_due": lambda: state is OrderState.PAID or state is OrderState.RESERVED,
        "cancelled": lambda: state is not OrderState.CANCELLED,
        "paid": lambda: state is not OrderState.PAID,
        "expired": lambda: state is not OrderState.EXPIRED,
    }
    if action.outcome in wrong and wrong[action.outcome]():
        yield f"{said}, its state is {state}"
    elif action.outcome == "amount_differs":
        yield f"{said}, though the amount was right"


def _paid_for_nothing(history: History, ending: Ending) -> Iterator[str]:
    paid = {action.order_id for action in history.actions if action.what == "pay"}
    for order in ending.orders:
        if order.state is OrderState.PAID and order.reservation.order_id not in paid:
            yield f"order {order.reservation.order_id}: paid, and nobody paid it"


def _restocks(history: History, ending: Ending) -> Iterator[str]:
    for one in ending.totals:
        asked = [restock for restock in history.restocks if restock.sku == one.sku]
        added = sum(restock.quantity for restock in asked if restock.status in ACKNOWLEDGED)
        open_ended = sum(
            restock.quantity for restock in asked if restock.status == 0 or restock.status >= _SERVER_ERROR
        )
        if not added <= one.restocked <= added + open_ended:
            yield f"{one.sku}: {added} units were restocked, and {open_ended} perhaps; the ledger has {one.restocked}"


def _unhealed(history: History) -> Iterator[str]:
    for one in history.faults:
        if one.note:
            yield f"fault {one.fault.number}, {one.fault.kind} of {one.fault.target}: {one.note}"


def _left_behind(ending: Ending) -> Iterator[str]:
    if not ending.settled:
        yield "the ledger did not reach the end of the journal, or units kept moving"
    if ending.open_returns:
        yield f"{ending.open_returns} orders' stock is still on its way back"
    if ending.journal_entries:
        yield f"{ending.journal_entries} journal entries are not acknowledged"
    yield from (f"{name} could not be kept running" for name in ending.given_up)
    yield from (f"a process was left: {name}" for name in ending.processes_left)
    for one in ending.totals:
        if one.reserved:
            yield f"{one.reserved} of {one.sku} are still reserved, long after they had to be paid"
        if one.returning:
            yield f"{one.returning} of {one.sku} are still on their way into stock"
        if ending.stock.get(one.sku, 0) < 0:
            yield f"the stock of {one.sku} is {ending.stock[one.sku]}"


def _some(lines: Iterable[str]) -> tuple[str, ...]:
    found = tuple(lines)
    if len(found) <= FINDINGS_MAX:
        return found
    return (*found[:FINDINGS_MAX], f"and {len(found) - FINDINGS_MAX} more")
