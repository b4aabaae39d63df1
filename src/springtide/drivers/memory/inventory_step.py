"""How the inventory in memory decides a batch of purchases."""

from springtide.drivers.inventory_limits import ORDERS_REMEMBERED_MAX
from springtide.drivers.memory.inventory_bucket import Bucket, Held
from springtide.model import HeldState, Reservation, ReserveRequest, ReserveResult, ReserveStatus


class Step:
    """One batch against one bucket, at one moment."""

    def __init__(self, place: Bucket, index: int, now_ms: int, journal_lag_max: int) -> None:
        """A step on the bucket `place`, which has this index."""
        self._definition = place.definition
        self._index = index
        self._place = place
        self._now_ms = now_ms
        self._pay_by_ms = now_ms + place.definition.hold_ms
        self._refusal = place.refusal(now_ms)
        self._room = place.journal.unrecorded < journal_lag_max
        self._per_buyer_max = {sku.sku: sku.per_buyer_max for sku in place.definition.skus}
        self._sold: list[Reservation] = []

    def decide(self, request: ReserveRequest) -> ReserveResult:
        """Decide one purchase against the effects of those before it."""
        orders = self._place.holders.get(request.buyer, [])
        for held in orders:
            if held.reservation.key == request.key:
                return _repeated(held, request)
        refused = self._refused(request) or self._above_limit(request, orders) or self._out(request)
        return refused or self._sell(request)

    def commit(self) -> None:
        """Journal what the batch sold, in one entry."""
        if self._sold:
            self._place.journal.append(self._now_ms, self._sold)

    def _refused(self, request: ReserveRequest) -> ReserveResult | None:
        if self._now_ms > request.deadline_ms:
            return ReserveResult(ReserveStatus.LATE)
        if request.epoch != self._place.epoch:
            return ReserveResult(ReserveStatus.STALE_EPOCH)
        if self._refusal:
            return ReserveResult(self._refusal)
        return None if request.sku in self._place.stock else ReserveResult(ReserveStatus.UNKNOWN_SKU)

    def _above_limit(self, request: ReserveRequest, orders: list[Held]) -> ReserveResult | None:
        mine = [
            held.reservation
            for held in orders
            if held.state is not HeldState.ENDED and held.reservation.sku == request.sku
        ]
        wanted = sum(order.quantity for order in mine) + request.quantity
        if wanted <= self._per_buyer_max[request.sku] and len(orders) < ORDERS_REMEMBERED_MAX:
            return None
        if not mine:
            return ReserveResult(ReserveStatus.LIMIT_REACHED)
        return ReserveResult(ReserveStatus.LIMIT_REACHED, mine[-1].order_id, mine[-1].pay_by_ms)

    def _out(self, request: ReserveRequest) -> ReserveResult | None:
        if request.quantity > self._place.stock[request.sku]:
            return ReserveResult(ReserveStatus.SOLD_OUT)
        return None if self._room else ReserveResult(ReserveStatus.JOURNAL_FULL)

    def _sell(self, request: ReserveRequest) -> ReserveResult:
        place = self._place
        place.stock[request.sku] -= request.quantity
        place.sold[request.sku] = place.sold.get(request.sku, 0) + request.quantity
        sold = Reservation(
            order_id=request.order_id,
            sale=self._definition.sale,
            bucket=self._index,
            buyer=request.buyer,
            key=request.key,
            sku=request.sku,
            quantity=request.quantity,
            reserved_ms=self._now_ms,
            pay_by_ms=self._pay_by_ms,
        )
        place.holders.setdefault(request.buyer, []).append(Held(sold))
        self._sold.append(sold)
        return ReserveResult(ReserveStatus.RESERVED, sold.order_id, sold.pay_by_ms)


def _repeated(held: Held, request: ReserveRequest) -> ReserveResult:
    order = held.reservation
    if (order.sku, order.quantity) != (request.sku, request.quantity):
        return ReserveResult(ReserveStatus.KEY_REUSED)
    return ReserveResult(ReserveStatus.REPEATED, order.order_id, order.pay_by_ms, held.state is not HeldState.ENDED)
