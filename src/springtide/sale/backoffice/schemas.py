"""The bodies of the merchant's API. Moments are Unix milliseconds, durations carry their unit, money is in fen."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StringConstraints

from springtide.model import (
    BUCKETS_MAX,
    IDEMPOTENCY_KEY,
    IDENTIFIER,
    QUANTITY_MAX,
    STOCK_MAX,
    ApiKey,
    Order,
    OrderState,
    RefundDue,
    Role,
    Sale,
    SaleRecord,
    SaleStage,
    Sku,
    TokenRing,
)

MOMENT_MS_MAX = 4_102_444_800_000
"""The year 2100."""

PRICE_FEN_MAX = 1_000_000_000
"""Ten million yuan: an order of a million units is still exact in JSON (2^53)."""

SKUS_MAX = 100
BUYERS_MAX = 1000
TTL_S_MAX = 7 * 86_400
HOLD_MS_MAX = 86_400_000

Name = Annotated[str, StringConstraints(pattern=f"^{IDENTIFIER.pattern}$")]
PaymentId = Annotated[str, StringConstraints(pattern=f"^{IDEMPOTENCY_KEY.pattern}$")]
Title = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
PayUrl = Annotated[str, StringConstraints(max_length=2000, pattern=r"^(https?://[!-~]+)?$")]
Moment = Annotated[int, Field(strict=True, ge=0, le=MOMENT_MS_MAX)]


class Body(BaseModel):
    """A body that is sent to us: what it does not know, it refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SkuBody(Body):
    """One article."""

    sku: Name
    title: Title
    price_fen: Annotated[int, Field(strict=True, ge=0, le=PRICE_FEN_MAX)]
    stock: Annotated[int, Field(strict=True, ge=0, le=STOCK_MAX, description="Units that the sale begins with.")]
    per_buyer_max: Annotated[int, Field(strict=True, ge=1, le=QUANTITY_MAX)] = 1
    spread: Annotated[StrictBool, Field(description="Lay the units out over all buckets from the start.")] = False

    def value(self) -> Sku:
        """As a value of the model."""
        return Sku(self.sku, self.title, self.price_fen, self.stock, self.per_buyer_max, self.spread)


class SaleBody(Body):
    """What is sold, when, and on what terms."""

    title: Title
    skus: Annotated[tuple[SkuBody, ...], Field(min_length=1, max_length=SKUS_MAX)]
    opens_ms: Moment
    closes_ms: Moment
    hold_ms: Annotated[int, Field(strict=True, ge=1000, le=HOLD_MS_MAX, description="A reservation waits for payment.")]
    waiting_room: StrictBool = False
    pay_url: Annotated[PayUrl, Field(description="Where a buyer pays; may hold {sale} and {order_id}.")] = ""

    def value(self, name: str, buckets: int) -> Sale:
        """As a value of the model. Raises ValueError for what the schema does not say."""
        return Sale(
            sale=name,
            title=self.title,
            skus=tuple(sku.value() for sku in self.skus),
            opens_ms=self.opens_ms,
            closes_ms=self.closes_ms,
            hold_ms=self.hold_ms,
            buckets=buckets,
            waiting_room=self.waiting_room,
            pay_url=self.pay_url,
        )


class NewSaleBody(SaleBody):
    """A sale to be drafted."""

    sale: Name
    buckets: Annotated[int, Field(strict=True, ge=1, le=BUCKETS_MAX, description="Parts of the stock; fixed.")] = 1


class LiveOut(BaseModel):
    """How a sale sells at this moment. `stock` is what is left, by SKU; `moving` is between two buckets."""

    stock: dict[str, int]
    moving: int
    paused: bool
    at_ms: int


class SaleSummary(BaseModel):
    """A sale in a list."""

    sale: str
    title: str
    stage: SaleStage
    revision: int
    opens_ms: int
    closes_ms: int
    changed_ms: int

    @classmethod
    def of(cls, record: SaleRecord) -> Self:
        """From a value of the model."""
        sale = record.sale
        return cls(
            sale=sale.sale,
            title=sale.title,
            stage=record.stage,
            revision=record.revision,
            opens_ms=sale.opens_ms,
            closes_ms=sale.closes_ms,
            changed_ms=record.changed_ms,
        )


class SaleOut(SaleSummary):
    """A sale. `state` is draft, scheduled, open, paused, over, closed, or missing: published and not in the inventory.

    `live` is null when the inventory does not have the sale.
    """

    skus: tuple[SkuBody, ...]
    hold_ms: int
    epoch: int
    buckets: int
    waiting_room: bool
    pay_url: str
    state: str
    live: LiveOut | None


class SalesPage(BaseModel):
    """A page of sales; `next` is the `after` of the page behind it, null at the end."""

    sales: list[SaleSummary]
    next: str | None


class RestockBody(Body):
    """Units to be added."""

    quantity: Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)]


class RestockOut(BaseModel):
    """What a restock did; `repeated` when its Idempotency-Key had done it before. `stock` is what is left by now."""

    restock_id: str
    sale: str
    sku: str
    quantity: int
    repeated: bool
    stock: int | None


class OrderOut(BaseModel):
    """An order. `amount_fen` is its price times its quantity."""

    order_id: str
    sale: str
    buyer: str
    sku: str
    quantity: int
    price_fen: int
    amount_fen: int
    state: OrderState
    reserved_ms: int
    pay_by_ms: int

    @classmethod
    def of(cls, order: Order) -> Self:
        """From a value of the model."""
        held = order.reservation
        return cls(
            order_id=held.order_id,
            sale=held.sale,
            buyer=held.buyer,
            sku=held.sku,
            quantity=held.quantity,
            price_fen=order.price_fen,
            amount_fen=order.price_fen * held.quantity,
            state=order.state,
            reserved_ms=held.reserved_ms,
            pay_by_ms=held.pay_by_ms,
        )


class OrdersPage(BaseModel):
    """A page of orders by their ids; `next` is the `after` of the page behind it, null at the end."""

    orders: list[OrderOut]
    next: str | None


class OrderStateOut(BaseModel):
    """What an order is after it was asked to be cancelled."""

    order_id: str
    state: OrderState


class RefundOut(BaseModel):
    """Money to be given back: it came when its order had ended, or was another amount."""

    payment_id: str
    order_id: str
    sale: str
    buyer: str
    amount_fen: int
    received_ms: int
    seen_ms: int | None

    @classmethod
    def of(cls, refund: RefundDue) -> Self:
        """From a value of the model."""
        return cls(
            payment_id=refund.payment_id,
            order_id=refund.order_id,
            sale=refund.sale,
            buyer=refund.buyer,
            amount_fen=refund.amount_fen,
            received_ms=refund.received_ms,
            seen_ms=refund.seen_ms,
        )


class RefundsPage(BaseModel):
    """A page of refunds by their payments; `next` is the `after` of the page behind it, null at the end."""

    refunds: list[RefundOut]
    next: str | None


class TokensBody(Body):
    """Buyers who get a token for a sale."""

    buyers: Annotated[tuple[Name, ...], Field(min_length=1, max_length=BUYERS_MAX)]
    ttl_s: Annotated[int, Field(strict=True, ge=1, le=TTL_S_MAX)] = 86_400


class TokenOut(BaseModel):
    """A buyer's token: a secret of this buyer's."""

    buyer: str
    token: str


class TokensOut(BaseModel):
    """Tokens in the order of the buyers, good until `expires_s` (Unix seconds) unless their generation is retired."""

    tokens: list[TokenOut]
    expires_s: int
    generation: int


class RetireBody(Body):
    """The generation that is to go: the oldest one."""

    generation: Annotated[int, Field(strict=True, ge=1, le=1_000_000)]


class RingOut(BaseModel):
    """The generations of token keys in use."""

    oldest: int
    newest: int

    @classmethod
    def of(cls, ring: TokenRing) -> Self:
        """From a value of the model."""
        return cls(oldest=ring.oldest, newest=ring.newest)


class NewKeyBody(Body):
    """A key to be made."""

    name: Title
    role: Role


class KeyOut(BaseModel):
    """A key of this API, without its secret."""

    key_id: str
    name: str
    role: Role
    created_ms: int
    revoked_ms: int | None

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        """From a value of the model."""
        return cls(
            key_id=key.key_id,
            name=key.name,
            role=key.role,
            created_ms=key.created_ms,
            revoked_ms=key.revoked_ms,
        )


class NewKeyOut(KeyOut):
    """A key that was made. Its secret is told this once."""

    secret: str


class KeysOut(BaseModel):
    """All keys, oldest first."""

    keys: list[KeyOut]


class PaymentBody(BaseModel):
    """A payment as the provider reports it; `payment_id` makes it idempotent."""

    payment_id: PaymentId
    order_id: Name
    sale: Name
    buyer: Name
    amount_fen: Annotated[int, Field(ge=0, le=2**53)]


class PaymentOut(BaseModel):
    """What a payment came to: accepted, refund_due or amount_differs."""

    outcome: str


class CancelBody(BaseModel):
    """A cancellation by whoever has the webhook's secret. `sale` and `buyer` find an order that is not recorded yet."""

    model_config = ConfigDict(extra="forbid")

    order_id: Name
    sale: Name
    buyer: Name


class HealthOut(BaseModel):
    """The service answers."""

    status: str
