"""What a merchant keeps, in memory: the part of the ledger in memory that the merchant's API stands on."""

from collections.abc import Sequence

import msgspec

from springtide.errors import LedgerError
from springtide.model import (
    ApiKey,
    Order,
    OrderQuery,
    Payment,
    PaymentOutcome,
    RefundDue,
    Restock,
    Sale,
    SaleRecord,
    SaleStage,
    TokenRing,
)
from springtide.ports import Clock

API_KEYS_MAX = 1000
"""The most keys that may exist, the revoked ones included."""


class PaymentRow(msgspec.Struct):
    """A payment that was applied, and what came of it."""

    payment: Payment
    outcome: PaymentOutcome
    received_ms: int
    seen_ms: int | None = None


class MerchantMemory:
    """Nothing awaits inside a method, so each is one atomic step of the event loop."""

    def __init__(self, clock: Clock) -> None:
        """Nothing yet; `clock` is the one that orders expire by."""
        self._clock = clock
        self._sales: dict[str, SaleRecord] = {}
        self._orders: dict[str, Order] = {}
        self._payments: dict[str, PaymentRow] = {}
        self._restocks: dict[str, Restock] = {}
        self._open_restocks: dict[str, Restock] = {}
        self._api_keys: dict[str, ApiKey] = {}
        self._token_ring = TokenRing(1, 1)

    async def publish(self, sale: Sale) -> None:
        record = self._sales.get(sale.sale)
        if record is None or record.stage is SaleStage.DRAFT:
            self._put(sale, SaleStage.PUBLISHED)

    async def create_sale(self, sale: Sale) -> bool:
        if sale.sale in self._sales:
            return False
        self._put(sale, SaleStage.DRAFT)
        return True

    async def change_sale(self, sale: Sale, revision: int) -> bool:
        record = self._sales.get(sale.sale)
        if record is None:
            raise LedgerError(f"there is no sale {sale.sale} to change; create it first")
        if record.revision != revision:
            return False
        if record.stage is SaleStage.CLOSED:
            if sale.epoch <= record.sale.epoch:
                raise LedgerError(f"sale {sale.sale} is closed for good; create another one")
            sale = msgspec.structs.replace(record.sale, epoch=sale.epoch)
        self._put(sale if record.stage is SaleStage.DRAFT else _kept(record.sale, sale), record.stage)
        return True

    async def close_sale(self, sale: str) -> None:
        record = self._sales.get(sale)
        if record is not None and record.stage is not SaleStage.CLOSED:
            self._put(record.sale, SaleStage.CLOSED)

    async def sale_record(self, sale: str) -> SaleRecord | None:
        return self._sales.get(sale)

    async def sale_records(self, after: str, count: int) -> list[SaleRecord]:
        return [self._sales[name] for name in sorted(self._sales) if name > after][:count]

    async def add_restock(self, restock: Restock) -> bool:
        if (known := self._restocks.get(restock.restock_id)) is not None:
            if known != restock:
                raise LedgerError(f"restock {restock.restock_id} is another one; give this one an id of its own")
            return False
        record = self._sales.get(restock.sale)
        if record is None or record.stage is not SaleStage.PUBLISHED:
            stage = "unknown" if record is None else f"a {record.stage} one"
            raise LedgerError(f"sale {restock.sale} is {stage}; only a published sale is restocked")
        if restock.sku not in {sku.sku for sku in record.sale.skus}:
            raise LedgerError(f"sale {restock.sale} has no SKU {restock.sku}; add it to the sale first")
        self._restocks[restock.restock_id] = self._open_restocks[restock.restock_id] = restock
        return True

    async def open_restocks(self, count: int) -> list[Restock]:
        return list(self._open_restocks.values())[:count]

    async def close_restocks(self, restock_ids: Sequence[str]) -> None:
        for restock_id in restock_ids:
            self._open_restocks.pop(restock_id, None)

    async def search_orders(self, wanted: OrderQuery) -> list[Order]:
        found = [order for order in self._orders.values() if order_matches(order, wanted)]
        return sorted(found, key=lambda order: order.reservation.order_id)[: wanted.count]

    async def refunds(self, sale: str, after: str, count: int) -> list[RefundDue]:
        due = [
            RefundDue(
                payment_id=payment_id,
                order_id=row.payment.order_id,
                sale=row.payment.sale,
                buyer=row.payment.buyer,
                amount_fen=row.payment.amount_fen,
                received_ms=row.received_ms,
                seen_ms=row.seen_ms,
            )
            for payment_id, row in sorted(self._payments.items())
            if row.outcome is not PaymentOutcome.ACCEPTED and payment_id > after and sale in {"", row.payment.sale}
        ]
        return due[:count]

    async def see_refund(self, payment_id: str) -> bool:
        row = self._payments.get(payment_id)
        if row is None or row.outcome is PaymentOutcome.ACCEPTED:
            return False
        row.seen_ms = self._clock.now_ms() if row.seen_ms is None else row.seen_ms
        return True

    async def add_api_key(self, key: ApiKey) -> None:
        if self._api_keys.get(key.key_id, key) != key:
            raise LedgerError(f"the key id {key.key_id} is taken; make another")
        if key.key_id not in self._api_keys and len(self._api_keys) >= API_KEYS_MAX:
            raise LedgerError(f"there are {API_KEYS_MAX} keys already, which is the most; revoked ones count too")
        self._api_keys[key.key_id] = key

    async def api_keys(self) -> list[ApiKey]:
        return list(self._api_keys.values())

    async def revoke_api_key(self, key_id: str) -> bool:
        key = self._api_keys.get(key_id)
        if key is None:
            return False
        if key.revoked_ms is None:
            self._api_keys[key_id] = msgspec.structs.replace(key, revoked_ms=self._clock.now_ms())
        return True

    async def token_ring(self) -> TokenRing:
        return self._token_ring

    async def set_token_ring(self, ring: TokenRing) -> None:
        self._token_ring = ring

    def _put(self, sale: Sale, stage: SaleStage) -> None:
        before = self._sales.get(sale.sale)
        revision = before.revision + 1 if before else 1
        self._sales[sale.sale] = SaleRecord(sale, stage, revision, self._clock.now_ms())


def _kept(before: Sale, sale: Sale) -> Sale:
    """What a published sale becomes: stock, spread and buckets stay, a new SKU begins with nothing."""
    known = {sku.sku: sku for sku in before.skus}
    if gone := sorted(known.keys() - {sku.sku for sku in sale.skus}):
        raise LedgerError(f"sale {sale.sale} would lose {', '.join(gone)}; a SKU that is published stays")
    skus = [
        msgspec.structs.replace(sku, stock=known[sku.sku].stock, spread=known[sku.sku].spread)
        if sku.sku in known
        else msgspec.structs.replace(sku, stock=0)
        for sku in sale.skus
    ]
    epoch = max(before.epoch, sale.epoch)
    return msgspec.structs.replace(sale, skus=tuple(skus), epoch=epoch, buckets=before.buckets)


def order_matches(order: Order, wanted: OrderQuery) -> bool:
    """Whether a search finds this order."""
    one = order.reservation
    return (
        one.sale == wanted.sale
        and one.order_id > wanted.after
        and wanted.order_id in {"", one.order_id}
        and wanted.buyer in {"", one.buyer}
        and wanted.sku in {"", one.sku}
        and wanted.state in {None, order.state}
    )
