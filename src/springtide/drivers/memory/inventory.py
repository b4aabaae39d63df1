"""`ports.Inventory` in memory, with Valkey's semantics: for the twin and for tests."""

from collections.abc import Mapping, Sequence

import msgspec

from springtide.decide.buckets import opening_stock
from springtide.drivers.inventory_limits import (
    CLAIM_IDLE_MS,
    JOURNAL_LAG_MAX,
    RESTOCKS_MAX,
    check_batch,
    check_entries,
    check_restock,
    check_ring,
    restored_orders,
)
from springtide.drivers.inventory_refusals import refusal
from springtide.drivers.memory.inventory_bucket import Bucket, Held, Journal
from springtide.drivers.memory.inventory_step import Step
from springtide.drivers.stock_transfer import (
    TRANSFERS_OPEN_MAX,
    TRANSFERS_REMEMBERED,
    TRANSFERS_WINDOW,
    Debit,
    carry,
)
from springtide.model import (
    STOCK_MAX,
    BucketCut,
    HeldOrder,
    HeldState,
    Holders,
    JournalEntry,
    Reservation,
    ReserveRequest,
    ReserveResult,
    ReserveStatus,
    Restock,
    Sale,
    SaleView,
    StockReturn,
    TokenRing,
    Transfer,
)
from springtide.ports import Clock


class MemoryInventory:
    """The port's semantics on dictionaries; each method is one step of the event loop, hence atomic."""

    def __init__(
        self, clock: Clock, journal_lag_max: int = JOURNAL_LAG_MAX, claim_idle_ms: int = CLAIM_IDLE_MS
    ) -> None:
        """`journal_lag_max` is in unrecorded entries; one idle for `claim_idle_ms` may be read by another consumer."""
        self._clock = clock
        self._journal_lag_max = journal_lag_max
        self._claim_idle_ms = claim_idle_ms
        self._buckets: dict[tuple[str, int], Bucket] = {}
        self._ring = TokenRing(1, 1)

    async def publish(self, sale: Sale) -> bool:
        """See the port."""
        if (sale.sale, 0) in self._buckets:
            return False
        if any((sale.sale, bucket) in self._buckets for bucket in range(sale.buckets)):
            raise refusal("OTHER_PLAN", sale.sale)
        for bucket in range(sale.buckets):
            stock = {sku.sku: opening_stock(sku, bucket, sale.buckets) for sku in sale.skus}
            self._buckets[sale.sale, bucket] = Bucket(sale, stock, sale.epoch)
        return True

    async def redefine(self, sale: Sale) -> None:
        """See the port."""
        places = self._places(sale.sale)
        if len(places) != sale.buckets:
            raise refusal("OTHER_BUCKETS", sale.sale)
        skus = {sku.sku for sku in sale.skus}
        for place in places:
            _check_open(place, sale.sale)
            if place.epoch != sale.epoch:
                raise refusal("OTHER_EPOCH", sale.sale)
            if not skus.issuperset(sku.sku for sku in place.definition.skus):
                raise refusal("SKU_LOST", sale.sale)
        for place in places:
            place.definition = sale
            place.stock = {sku: place.stock.get(sku, 0) for sku in skus}

    async def pause(self, sale: str, paused: bool) -> None:  # noqa: FBT001 - the port's signature
        """See the port."""
        places = self._places(sale)
        if not paused:
            for place in places:
                _check_open(place, sale)
        for place in places:
            place.paused = paused

    async def restock(self, bucket: int, restock: Restock) -> bool:
        """See the port. Raises ValueError for a quantity that is none."""
        check_restock(restock)
        place = self._open(restock.sale, bucket)
        known = place.restocks.get(restock.restock_id)
        if known is not None:
            if known != restock:
                raise refusal("OTHER_RESTOCK", restock.sale)
            return False
        if restock.sku not in place.stock:
            raise refusal("NO_SKU", restock.sale)
        if place.stock[restock.sku] + restock.quantity > STOCK_MAX:
            raise refusal("STOCK_FULL", restock.sale)
        if len(place.restocks) >= RESTOCKS_MAX:
            raise refusal("RESTOCKS_FULL", restock.sale)
        place.restocks[restock.restock_id] = restock
        place.stock[restock.sku] += restock.quantity
        place.version += 1
        return True

    async def move_stock(self, transfer: Transfer) -> int:
        """See the port and `stock_transfer`."""
        return await carry(self, transfer)

    async def debit(self, transfer: Transfer) -> Debit:
        """See `stock_transfer`."""
        place = self._open(transfer.sale, transfer.source)
        moved = place.moved
        if transfer.transfer_id in moved.open:
            noted, number = moved.open[transfer.transfer_id]
            if (noted.target, noted.sku) != (transfer.target, transfer.sku):
                raise refusal("OTHER_TRANSFER", transfer.sale)
            return Debit(noted.quantity, place.epoch, number, moved.lowest_open(transfer.target, number))
        if transfer.transfer_id in moved.ended:
            return Debit(moved.ended[transfer.transfer_id])
        if transfer.sku not in place.stock:
            raise refusal("NO_SKU", transfer.sale)
        if transfer.target >= place.definition.buckets:
            raise refusal("NO_BUCKET", transfer.sale)
        units = min(transfer.quantity, place.stock[transfer.sku])
        if units == 0:
            return Debit(0)
        number = moved.numbers.get(transfer.target, 0) + 1
        lowest = moved.lowest_open(transfer.target, number)
        if len(moved.open) >= TRANSFERS_OPEN_MAX or number - lowest >= TRANSFERS_WINDOW:
            raise refusal("TRANSFERS_FULL", transfer.sale)
        moved.open[transfer.transfer_id] = (msgspec.structs.replace(transfer, quantity=units), number)
        moved.numbers[transfer.target] = number
        place.stock[transfer.sku] -= units
        return Debit(units, place.epoch, number, lowest)

    async def credit(self, transfer: Transfer, debit: Debit) -> bool:
        """See `stock_transfer`."""
        place = self._open(transfer.sale, transfer.target)
        if place.epoch != debit.epoch:
            raise refusal("OTHER_EPOCH", transfer.sale)
        if transfer.sku not in place.stock:
            raise refusal("NO_SKU", transfer.sale)
        if not place.moved.note_credit(transfer.source, debit.number, debit.lowest):
            return False
        place.stock[transfer.sku] += debit.units
        place.version += 1
        return True

    async def end_transfer(self, transfer: Transfer) -> None:
        """See `stock_transfer`."""
        moved = self._open(transfer.sale, transfer.source).moved
        if transfer.transfer_id in moved.open:
            noted, _ = moved.open.pop(transfer.transfer_id)
            moved.ended[transfer.transfer_id] = noted.quantity
            if len(moved.ended) > TRANSFERS_REMEMBERED:
                del moved.ended[next(iter(moved.ended))]

    async def reserve(self, sale: str, bucket: int, batch: Sequence[ReserveRequest]) -> list[ReserveResult]:
        """See the port."""
        check_batch(batch)
        place = self._buckets.get((sale, bucket))
        if place is None:
            return [ReserveResult(ReserveStatus.UNKNOWN_SKU) for _ in batch]
        step = Step(place, bucket, self._clock.now_ms(), self._journal_lag_max)
        results = [step.decide(request) for request in batch]
        step.commit()
        return results

    async def find(self, sale: str, bucket: int, buyer: str, order_id: str) -> Reservation | None:
        """See the port."""
        place = self._buckets.get((sale, bucket))
        held = place.held(buyer, order_id) if place else None
        return held.reservation if held else None

    async def orders_of(self, sale: str, bucket: int, buyer: str) -> list[HeldOrder]:
        """See the port."""
        return [HeldOrder(held.reservation, held.state) for held in self._place(sale, bucket).holders.get(buyer, [])]

    async def settle(self, sale: str, bucket: int, buyer: str, order_id: str) -> bool:
        """See the port."""
        place = self._buckets.get((sale, bucket))
        held = place.held(buyer, order_id) if place else None
        if held is None or held.state is HeldState.ENDED:
            return False
        held.state = HeldState.PAID
        return True

    async def holders(self, sale: str, bucket: int, after: str) -> Holders:
        """See the port. Raises ValueError for a position that is none."""
        place = self._place(sale, bucket)
        position = f"{place.epoch}:{place.journal.added}"
        epoch, added = _position(after) if after else (0, 0)
        new = place.journal.buyers_since(added) if epoch == place.epoch else None
        return Holders(tuple(place.holders) if new is None else new, position, complete=new is None, mark=place.mark)

    async def give_back(self, returned: StockReturn) -> bool:
        """See the port."""
        place = self._open(returned.sale, returned.bucket)
        held = place.held(returned.buyer, returned.order_id)
        if held is None or held.state is not HeldState.LIVE:
            return False
        held.state = HeldState.ENDED
        place.stock[held.reservation.sku] += held.reservation.quantity
        place.version += 1
        return True

    async def view(self, sale: str) -> SaleView | None:
        """See the port."""
        if (sale, 0) not in self._buckets:
            return None
        places = self._places(sale)
        first = places[0]
        definition = msgspec.structs.replace(first.definition, epoch=first.epoch)
        return SaleView(
            sale=definition,
            stock={sku.sku: sum(place.stock[sku.sku] for place in places) for sku in definition.skus},
            paused=first.paused,
            stock_version=sum(place.version for place in places),
            at_ms=self._clock.now_ms(),
            moving=sum(transfer.quantity for place in places for transfer, _ in place.moved.open.values()),
            marks=tuple(place.mark for place in places),
        )

    async def sales(self) -> list[str]:
        """See the port."""
        return sorted(sale for sale, bucket in self._buckets if bucket == 0)

    async def cut(self, sale: str, bucket: int) -> BucketCut:
        """See the port."""
        return self._place(sale, bucket).cut(sale, bucket, self._clock.now_ms())

    async def fence(self, sale: str, bucket: int, epoch: int) -> BucketCut | None:
        """See the port. Raises InventoryError for an epoch that the bucket has sold in, or an earlier one."""
        place = self._buckets.get((sale, bucket))
        if place is None:
            return None
        if epoch < place.epoch or (epoch == place.epoch and not place.fenced):
            raise refusal("OTHER_EPOCH", sale)
        place.epoch, place.paused, place.fenced = epoch, True, True
        return place.cut(sale, bucket, self._clock.now_ms())

    async def restore(self, sale: Sale, bucket: int, stock: Mapping[str, int], orders: Sequence[HeldOrder]) -> None:
        """See the port."""
        holders = restored_orders(sale, bucket, stock, orders)
        place = self._buckets.get((sale.sale, bucket))
        if place is not None:
            if place.epoch != sale.epoch:
                raise refusal("OTHER_EPOCH", sale.sale)
            if not place.fenced:
                if not place.paused:
                    raise refusal("SELLING", sale.sale)
                return
        self._buckets[sale.sale, bucket] = Bucket(
            definition=sale,
            stock={sku.sku: stock.get(sku.sku, 0) for sku in sale.skus},
            epoch=sale.epoch,
            paused=True,
            version=max(place.version + 1 if place else 0, self._clock.now_ms()),
            holders={buyer: [Held(one.reservation, one.state) for one in mine] for buyer, mine in holders.items()},
            journal=place.journal if place else Journal(),
        )

    async def token_ring(self) -> TokenRing:
        """See the port."""
        return self._ring

    async def set_token_ring(self, ring: TokenRing) -> None:
        """See the port. Raises ValueError for generations that are none."""
        check_ring(ring)
        self._ring = ring

    async def read_journal(self, sale: str, bucket: int, consumer: str, count: int) -> list[JournalEntry]:
        """See the port."""
        check_entries(count)
        place = self._buckets.get((sale, bucket))
        return place.journal.read(consumer, count, self._clock.now_ms(), self._claim_idle_ms) if place else []

    async def acknowledge(self, sale: str, bucket: int, entry_ids: Sequence[str]) -> None:
        """See the port."""
        place = self._buckets.get((sale, bucket))
        if entry_ids and place:
            check_entries(len(entry_ids))
            place.journal.acknowledge(entry_ids, self._clock.now_ms())

    async def journal_depth(self, sale: str, bucket: int) -> int:
        """See the port."""
        place = self._buckets.get((sale, bucket))
        return place.journal.unrecorded if place else 0

    async def close(self) -> None:
        """See the port: there is nothing to let go of."""

    def _place(self, sale: str, bucket: int) -> Bucket:
        place = self._buckets.get((sale, bucket))
        if place is None:
            raise refusal("UNPUBLISHED", sale)
        return place

    def _places(self, sale: str) -> list[Bucket]:
        first = self._place(sale, 0)
        return [self._place(sale, bucket) for bucket in range(first.definition.buckets)]

    def _open(self, sale: str, bucket: int) -> Bucket:
        """The bucket, unless it is being rebuilt."""
        place = self._place(sale, bucket)
        _check_open(place, sale)
        return place


def _check_open(place: Bucket, sale: str) -> None:
    if place.fenced:
        raise refusal("FENCED", sale)


def _position(text: str) -> tuple[int, int]:
    """Epoch and number of entries. Raises ValueError."""
    try:
        epoch, added = text.split(":")
        return int(epoch), int(added)
    except ValueError as error:
        raise ValueError(f"{text!r} is no position among holders: use one that was given, or ''") from error
