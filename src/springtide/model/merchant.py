"""What a merchant keeps: sales under way or to come, keys of the API, refunds that are due."""

from enum import StrEnum

import msgspec

from springtide.model.orders import OrderState
from springtide.model.sale import Sale


class SaleStage(StrEnum):
    """Where a sale is in its life, as its merchant has it. A draft is not in the inventory yet."""

    DRAFT = "draft"
    PUBLISHED = "published"
    CLOSED = "closed"


class SaleRecord(msgspec.Struct, frozen=True):
    """A sale in the ledger. `revision` grows with each change and guards against two editors at once."""

    sale: Sale
    stage: SaleStage
    revision: int
    changed_ms: int


class Role(StrEnum):
    """What a key of the merchant's API may do. Each may do what those before it may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    OWNER = "owner"


class ApiKey(msgspec.Struct, frozen=True):
    """A key of the merchant's API. The ledger has only the SHA-256 of its secret, in hexadecimal."""

    key_id: str
    name: str
    role: Role
    secret_sha256: str
    created_ms: int
    revoked_ms: int | None = None


class OrderQuery(msgspec.Struct, frozen=True):
    """Orders of a sale that are wanted: those after `after` (an order id of the page before), at most `count`."""

    sale: str
    buyer: str = ""
    sku: str = ""
    state: OrderState | None = None
    order_id: str = ""
    after: str = ""
    count: int = 100


class RefundDue(msgspec.Struct, frozen=True):
    """A payment that arrived when its order had ended, or with a wrong amount: the merchant has to give it back.

    `seen_ms` is when a merchant said that he knows.
    """

    payment_id: str
    order_id: str
    sale: str
    buyer: str
    amount_fen: int
    received_ms: int
    seen_ms: int | None = None
