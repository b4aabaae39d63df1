"""The proof: for each SKU, stock + reserved + paid + returning = initial + restocked."""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from springtide.errors import UserError
from springtide.model import BucketCut, Order, OrderState, Sale, SkuAudit, SkuTotals, Transfer
from springtide.ports import Clock, Inventory, Ledger
from springtide.sale.audit_explain import FINDINGS_MAX, Books, explain
from springtide.sale.bucket_cuts import cut_all
from springtide.sale.orders import entry_place, frees_stock

_LOOK_AGAIN_S = 0.05
Acknowledged = tuple[str, str, str, str, int]
"""What a client was promised: order id, buyer, idempotency key, SKU, quantity."""


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    `settled` says that the ledger had reached the cut. `method` is `still` when nothing moved between the cut
    and the ledger's totals, so that the equation is exact; it is `moving` when something always did: then the
    orders that were reserved up to the cut are counted, to the millisecond, and stock that went back
    meanwhile shows as missing: audit again when the sale rests. `differences` are the units by SKU that the
    equation is out by; `moving` are the units of `stock` that were between two buckets. `epochs` are those that the
    buckets have and the ledger's: several say that a rebuild was cut off. The lists name orders and buyers;
    `conflicts` are orders that were acknowledged and are not in the ledger, because their buyer and key had another.
    """

    sale: str
    at_ms: int
    waited_s: float
    settled: bool
    method: str
    skus: tuple[SkuAudit, ...]
    differences: dict[str, int]
    oversold: int
    orders: int
    duplicates: tuple[str, ...]
    limit_violations: tuple[str, ...]
    explanations: tuple[str, ...]
    conflicts: tuple[str, ...] = ()
    moving: dict[str, int] = {}
    epochs: tuple[int, ...] = (1,)

    @property
    def holds(self) -> bool:
        """Whether everything is proved."""
        wrong = any(self.differences.values()) or self.oversold or len(self.epochs) > 1
        return self.settled and not (wrong or self.duplicates or self.limit_violations or self.conflicts)


class Comparison(msgspec.Struct, frozen=True):
    """Promises against the ledger, by order id; all are empty when each promise was kept once."""

    lost: tuple[str, ...]
    duplicates: tuple[str, ...]
    mismatched: tuple[str, ...]


class _Look(msgspec.Struct, frozen=True):
    """One attempt: the cuts, and the ledger's totals after it had reached them.

    `calm` says that between the buckets' cuts no units came, went or moved, but for those that were sold.
    """

    cuts: tuple[BucketCut, ...]
    settled: bool
    still: bool
    calm: bool
    totals: tuple[SkuTotals, ...]

    @property
    def proof(self) -> tuple[bool, bool, bool]:
        """How much it can prove; the larger, the more."""
        return self.settled, self.still, self.calm


async def audit(inventory: Inventory, ledger: Ledger, sale: str, clock: Clock, wait_s: float) -> AuditReport:
    """Audit a sale; it may be open. Waits at most `wait_s`, for the ledger to reach the cut and for rest.

    Reads only. Raises UserError when there is no such sale, and the ports' errors.
    """
    view = await inventory.view(sale)
    record = await ledger.sale_record(sale)
    if view is None:
        if record is not None:
            raise UserError(
                f"the ledger has the sale {sale!r} and the inventory does not: publish it, or, if it was sold, run "
                f"`springtide sale rebuild {sale}`"
            )
        raise UserError(f"there is no sale {sale!r}; known are: {', '.join(await inventory.sales()) or 'none'}")
    began_s = clock.monotonic_s()
    look = await _look(inventory, ledger, view.sale, clock, began_s + wait_s)
    while not (look.settled and look.still and _balanced(look)) and clock.monotonic_s() < began_s + wait_s:
        await clock.sleep(_LOOK_AGAIN_S)
        later = await _look(inventory, ledger, view.sale, clock, began_s + wait_s)
        look = later if later.proof >= look.proof else look
    orders = await ledger.orders(sale)
    skus = _audits(look, look.totals) if look.still else _audits_at_cut(look, orders)
    differences = {one.totals.sku: one.difference for one in skus}
    out = frozenset(sku for sku, units in differences.items() if units)
    books = Books(view.sale, look.cuts, tuple(orders), out)
    return AuditReport(
        sale=sale,
        at_ms=max(cut.at_ms for cut in look.cuts),
        waited_s=round(clock.monotonic_s() - began_s, 3),
        settled=look.settled,
        method="still" if look.still else "moving",
        skus=skus,
        differences=differences,
        oversold=sum(one.oversold for one in skus),
        orders=len(orders),
        duplicates=_duplicates(orders),
        limit_violations=_limit_violations(view.sale, orders),
        explanations=await explain(inventory, ledger, books) if out or not look.settled else (),
        conflicts=tuple(
            f"order {one.order_id} of buyer {one.buyer}: key {one.key} had another order"
            for one in await ledger.conflicts(sale, FINDINGS_MAX)
        ),
        moving=dict(_moving(look.cuts)),
        epochs=tuple(sorted({cut.epoch for cut in look.cuts} | ({record.sale.epoch} if record else set()))),
    )


async def _look(inventory: Inventory, ledger: Ledger, sale: Sale, clock: Clock, until_s: float) -> _Look:
    cuts = await _cuts(inventory, sale)
    settled = _reached(cuts, await ledger.positions(sale.sale))
    while not settled and clock.monotonic_s() < until_s:
        await clock.sleep(_LOOK_AGAIN_S)
        settled = _reached(cuts, await ledger.positions(sale.sale))
    # The totals lie between two cuts. If these are the same, nothing moved while it was read.
    before = await _cuts(inventory, sale)
    totals = await ledger.totals(sale.sale)
    after = await _cuts(inventory, sale)
    depths = [await inventory.journal_depth(sale.sale, bucket) for bucket in range(sale.buckets)]
    still = _content(cuts) == _content(before) == _content(after) and not any(depths)
    return _Look(cuts, settled, still, _unsold(cuts) == _unsold(before), tuple(totals))


async def _cuts(inventory: Inventory, sale: Sale) -> tuple[BucketCut, ...]:
    return tuple(await cut_all(inventory, sale.sale, sale.buckets))


def _content(cuts: Sequence[BucketCut]) -> list[BucketCut]:
    return [msgspec.structs.replace(cut, at_ms=0) for cut in cuts]


def _unsold(cuts: Sequence[BucketCut]) -> list[tuple[Counter[str], tuple[Transfer, ...]]]:
    """What purchases do not change: the units that each bucket has, with those it has sold, and what left it."""
    return [(Counter(cut.stock) + Counter(cut.sold), cut.transfers) for cut in cuts]


def _moving(cuts: Sequence[BucketCut]) -> Counter[str]:
    """Units between two buckets, by SKU."""
    units: Counter[str] = Counter()
    for cut in cuts:
        for transfer in cut.transfers:
            units[transfer.sku] += transfer.quantity
    return units


def _reached(cuts: Sequence[BucketCut], positions: dict[int, str]) -> bool:
    return all(entry_place(positions.get(cut.bucket, "0-0")) >= entry_place(cut.last_entry_id) for cut in cuts)


def _balanced(look: _Look) -> bool:
    return not any(one.difference for one in _audits(look, look.totals))


def _audits(look: _Look, totals: Iterable[SkuTotals]) -> tuple[SkuAudit, ...]:
    moving = _moving(look.cuts)
    return tuple(SkuAudit(one, sum(cut.stock.get(one.sku, 0) for cut in look.cuts) + moving[one.sku]) for one in totals)


def _audits_at_cut(look: _Look, orders: Iterable[Order]) -> tuple[SkuAudit, ...]:
    """The audits without the orders reserved after the cut of their bucket, by the inventory's clock.

    It counts milliseconds, so orders of the cut's own millisecond may lie on either side: as many of them are
    left out as the equation asks for.
    """
    cut_ms = {cut.bucket: cut.at_ms for cut in look.cuts}
    units: Counter[tuple[str, OrderState]] = Counter()
    tied: Counter[str] = Counter()
    for order in orders:
        one = order.reservation
        after_ms = one.reserved_ms - cut_ms[one.bucket]
        if after_ms <= 0:
            units[one.sku, order.state] += one.quantity
            tied[one.sku] += one.quantity if after_ms == 0 else 0
    totals = [
        msgspec.structs.replace(one, reserved=units[one.sku, OrderState.RESERVED], paid=units[one.sku, OrderState.PAID])
        for one in look.totals
    ]
    return tuple(_without_ties(one, tied[one.totals.sku]) for one in _audits(look, totals))


def _without_ties(one: SkuAudit, tied: int) -> SkuAudit:
    after_cut = min(max(0, one.difference), tied, one.totals.reserved)
    totals = msgspec.structs.replace(one.totals, reserved=one.totals.reserved - after_cut)
    return SkuAudit(totals, one.stock)


def _duplicates(orders: Sequence[Order]) -> tuple[str, ...]:
    """Purchases that stand twice. The ledger's constraints forbid it; a proof does not rest on them."""
    ids = Counter(order.reservation.order_id for order in orders)
    keys = Counter((order.reservation.buyer, order.reservation.key) for order in orders)
    found = [f"order {order_id} stands {count} times" for order_id, count in ids.items() if count > 1]
    found += [f"buyer {buyer} has {count} orders of key {key}" for (buyer, key), count in keys.items() if count > 1]
    return tuple(found[:FINDINGS_MAX])


def _limit_violations(sale: Sale, orders: Iterable[Order]) -> tuple[str, ...]:
    limits = {sku.sku: sku.per_buyer_max for sku in sale.skus}
    held: Counter[tuple[str, str]] = Counter()
    for order in orders:
        if not frees_stock(order.state):
            held[order.reservation.buyer, order.reservation.sku] += order.reservation.quantity
    found = [
        f"buyer {buyer} holds {units} of {sku}, the limit is {limits.get(sku, 0)}"
        for (buyer, sku), units in held.items()
        if units > limits.get(sku, 0)
    ]
    return tuple(found[:FINDINGS_MAX])


def compare_acknowledged(ledger_orders: Iterable[Order], acknowledged: Iterable[Acknowledged]) -> Comparison:
    """Hold what clients were promised against the ledger's orders; both of one sale.

    An order is lost when the ledger does not have it, a duplicate when a buyer's key led to two orders or an
    order stands twice, and mismatched when the ledger has it with another buyer, key, SKU or quantity.
    """
    recorded: dict[str, Acknowledged] = {}
    by_key: dict[tuple[str, str], str] = {}
    duplicates: dict[str, None] = {}
    for order in ledger_orders:
        one = order.reservation
        if one.order_id in recorded or by_key.setdefault((one.buyer, one.key), one.order_id) != one.order_id:
            duplicates[one.order_id] = None
        recorded[one.order_id] = (one.order_id, one.buyer, one.key, one.sku, one.quantity)
    lost: dict[str, None] = {}
    mismatched: dict[str, None] = {}
    for promise in acknowledged:
        order_id, buyer, key, *_ = promise
        if by_key.setdefault((buyer, key), order_id) != order_id:
            duplicates[order_id] = None
        if order_id not in recorded:
            lost[order_id] = None
        elif recorded[order_id] != promise:
            mismatched[order_id] = None
    return Comparison(tuple(lost), tuple(duplicates), tuple(mismatched))
