"""The stores of the order path: inventory, ledger, waiting room."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from springtide.model import (
    ApiKey,
    BucketCut,
    CounterLoad,
    HeldOrder,
    Holders,
    JournalEntry,
    Order,
    OrderQuery,
    OrderState,
    Payment,
    PaymentOutcome,
    RefundDue,
    Reservation,
    ReserveRequest,
    ReserveResult,
    Restock,
    RoomBeats,
    RoomJoin,
    RoomPlaces,
    RoomReport,
    RoomStep,
    RoomView,
    Sale,
    SaleRecord,
    SaleView,
    SkuTotals,
    StockReturn,
    TokenRing,
    Transfer,
)


class Inventory(Protocol):
    """Stock, who holds what, and the journal of what was sold: one atomic store.

    Every method raises InventoryUnavailable when nothing was written, and OutcomeUnknown when that cannot be known; all
    of them may then be repeated, none takes effect twice.
    """

    async def publish(self, sale: Sale) -> bool:
        """Create the sale with its stock; False when it exists already (which changes nothing).

        Buckets are created one by one and the sale is seen with the last of them: a call that was cut off is repeated.
        A SKU that is not `spread` begins with all its units in its home bucket (`decide/buckets.py: home_of`).
        """

    async def redefine(self, sale: Sale) -> None:
        """Give a published sale another title, window, hold, price or limit; SKUs that are new begin with no stock.

        Stock, orders and buckets stay. Raises InventoryError when the sale is not published, has other buckets or
        another epoch, or would lose a SKU.
        """

    async def pause(self, sale: str, paused: bool) -> None:  # noqa: FBT001 - a state to be set, not a mode of the call
        """Stop selling, or go on. Raises InventoryError when the sale is not published."""

    async def restock(self, bucket: int, restock: Restock) -> bool:
        """Add units to a bucket, once: False when this restock is there already.

        Raises InventoryError when the sale or the SKU is not published.
        """

    async def move_stock(self, transfer: Transfer) -> int:
        """Move up to `quantity` units from one bucket to another, once; how many. The same transfer again ends it.

        The source is debited and remembers the transfer until the target has it; a transfer that was cut off is found
        in the source's cut, and is ended by repeating it as it stands there.
        """

    async def reserve(self, sale: str, bucket: int, batch: Sequence[ReserveRequest]) -> list[ReserveResult]:
        """Decide a batch in order, each purchase against the effects of those before it.

        Stock, holders and journal change in one durable step, before this returns. For each purchase, in this order: a
        purchase that its key already made is REPEATED (KEY_REUSED when SKU or quantity differ), whatever the state of
        the sale; then LATE, STALE_EPOCH, NOT_OPEN, CLOSED, PAUSED, UNKNOWN_SKU, LIMIT_REACHED, SOLD_OUT,
        JOURNAL_FULL; else RESERVED. Idempotency is per buyer and key. The batch has at most 1,024 entries. Of a sale
        that is not published every SKU is unknown. A buyer's limit counts live orders; whatever it is, it is at most
        64 orders in a bucket.
        """

    async def find(self, sale: str, bucket: int, buyer: str, order_id: str) -> Reservation | None:
        """The order that this buyer holds or held, as it was journalled; None when there is none."""

    async def orders_of(self, sale: str, bucket: int, buyer: str) -> list[HeldOrder]:
        """All orders of a buyer, oldest first, durable as an acknowledgement is: what it tells stays true.

        Raises InventoryError when the bucket is not there, and InventoryUnavailable while it is being restored.
        """

    async def settle(self, sale: str, bucket: int, buyer: str, order_id: str) -> bool:
        """Note that an order is paid; False when there is no such live order, which is no failure."""

    async def holders(self, sale: str, bucket: int, after: str) -> Holders:
        """Buyers with an order of this bucket: all of them (`after` empty), or those since a position given before.

        Raises as `orders_of`.
        """

    async def give_back(self, returned: StockReturn) -> bool:
        """Put the stock of an order back, once: False when this order's stock is back already, or it is paid.

        Raises InventoryError when the bucket is not there, and InventoryUnavailable while it is fenced.
        """

    async def view(self, sale: str) -> SaleView | None:
        """The sale and its stock now; None when it is not published."""

    async def sales(self) -> list[str]:
        """The ids of all published sales."""

    async def cut(self, sale: str, bucket: int) -> BucketCut:
        """One bucket's stock and the end of its journal, read in one atomic step.

        Raises InventoryError when the sale is not published.
        """

    async def fence(self, sale: str, bucket: int, epoch: int) -> BucketCut | None:
        """Refuse what has an earlier epoch from now on, and pause; what the bucket held, None when nothing is left.

        Until it is restored, no units come or go, and the sale cannot go on. Raises InventoryError for an epoch before
        the bucket's, and for its own when it was restored or published in that: each rebuild takes a later one. All
        buckets are fenced before the first is restored.
        """

    async def restore(self, sale: Sale, bucket: int, stock: Mapping[str, int], orders: Sequence[HeldOrder]) -> None:
        """Put a bucket back as given, under the sale's epoch and paused; it is missing, or fenced at that epoch.

        An unread journal is kept; transfers and restocks known before are forgotten. Repeating it is without effect as
        long as the sale is paused. Raises InventoryError when the bucket has another epoch or sells.
        """

    async def token_ring(self) -> TokenRing:
        """The generations of token keys in use; 1 to 1 when none was ever set."""

    async def set_token_ring(self, ring: TokenRing) -> None:
        """Let all counters take tokens of these generations, within their time of asking."""

    async def read_journal(self, sale: str, bucket: int, consumer: str, count: int) -> list[JournalEntry]:
        """Up to `count` entries nobody has acknowledged: this consumer's own, then those idle elsewhere, then new ones.

        An entry read and not acknowledged is read again later, by this consumer or another.
        """

    async def acknowledge(self, sale: str, bucket: int, entry_ids: Sequence[str]) -> None:
        """The ledger has these entries: they may be dropped from the journal once nothing before them is open."""

    async def journal_depth(self, sale: str, bucket: int) -> int:
        """Entries in the journal that the ledger does not have yet."""

    async def close(self) -> None:
        """Let go of the connections."""


class Ledger(Protocol):
    """The system of record for orders. Raises LedgerUnavailable; every method may be repeated without effect."""

    async def publish(self, sale: Sale) -> None:
        """Record the sale as published, with its SKUs and their initial stock; what is there already stays as it is.

        A draft of the same sale becomes published, as given.
        """

    async def create_sale(self, sale: Sale) -> bool:
        """Keep a sale as a draft; False when its id is taken."""

    async def change_sale(self, sale: Sale, revision: int) -> bool:
        """Replace the definition of a draft or a published sale; False when its revision is another by now.

        Stock is replaced in a draft only; a SKU that is new in a published sale begins with none; epoch and buckets of
        a published sale stay (the epoch may grow). Of a closed sale only the epoch changes, when it is to grow. Raises
        LedgerError when there is no such sale, it is closed, or it would lose a SKU that is published.
        """

    async def close_sale(self, sale: str) -> None:
        """Let a sale be closed for good: it can be read and audited, and not be changed. Idempotent."""

    async def sale_record(self, sale: str) -> SaleRecord | None:
        """One sale as its merchant has it, or None."""

    async def sale_records(self, after: str, count: int) -> list[SaleRecord]:
        """Up to `count` sales by id, those behind `after`."""

    async def add_restock(self, restock: Restock) -> bool:
        """Record a restock as under way (it counts as restocked and as returning); False: it is there already.

        Raises LedgerError when the sale or SKU is unknown, the sale is closed or a draft, or the id names another one.
        """

    async def open_restocks(self, count: int) -> list[Restock]:
        """Up to `count` restocks that are not in stock yet, oldest first."""

    async def close_restocks(self, restock_ids: Sequence[str]) -> None:
        """The units of these are in stock."""

    async def search_orders(self, query: OrderQuery) -> list[Order]:
        """A page of orders, in the order of their ids."""

    async def refunds(self, sale: str, after: str, count: int) -> list[RefundDue]:
        """A page of refunds that are due, of one sale or ('') of all, in the order of their payment ids."""

    async def see_refund(self, payment_id: str) -> bool:
        """A merchant knows of this refund; False when there is none."""

    async def add_api_key(self, key: ApiKey) -> None:
        """Keep a key of the merchant's API. Raises LedgerError when its id is taken."""

    async def api_keys(self) -> list[ApiKey]:
        """All keys, the revoked ones included, oldest first; at most 1,000 may exist."""

    async def revoke_api_key(self, key_id: str) -> bool:
        """Let a key be good for nothing from now on; False when there is none. Idempotent."""

    async def token_ring(self) -> TokenRing:
        """The generations of token keys in use; 1 to 1 when none was ever set."""

    async def set_token_ring(self, ring: TokenRing) -> None:
        """Keep it, so that an inventory that was lost can be told."""

    async def record(self, reservations: Sequence[Reservation]) -> int:
        """Record orders as reserved; those already there are left as they are. The number that were new.

        An order whose buyer and key have another order already is not recorded: it is kept as a conflict.
        """

    async def conflicts(self, sale: str, count: int) -> list[Reservation]:
        """Up to `count` reservations that are no orders, because their buyer and key had one already; newest first."""

    async def pay(self, payment: Payment) -> PaymentOutcome:
        """Apply a payment to its order, in one row-locked transition. The same payment again has the same outcome."""

    async def cancel(self, order_id: str) -> OrderState | None:
        """Cancel a reserved order; its stock goes to the outbox in the same transaction. The state it has then."""

    async def expire_due(self, grace_ms: int, count: int) -> int:
        """Expire up to `count` reserved orders whose `pay_by` is `grace_ms` past by the ledger's clock; how many."""

    async def returns(self, count: int, skip: Sequence[tuple[str, int]] = ()) -> list[StockReturn]:
        """Up to `count` open rows of the outbox, oldest first, without those of the (sale, bucket)s to `skip`."""

    async def close_returns(self, order_ids: Sequence[str]) -> None:
        """The stock of these orders is back."""

    async def order(self, order_id: str) -> Order | None:
        """One order, or None."""

    async def orders(self, sale: str) -> list[Order]:
        """All orders of a sale, oldest first."""

    async def totals(self, sale: str) -> list[SkuTotals]:
        """Units by SKU and state, read in one snapshot, in the order of the sale's SKUs."""

    async def positions(self, sale: str) -> dict[int, str]:
        """By bucket, the last journal entry that is recorded with everything before it."""

    async def record_entries(self, sale: str, bucket: int, entries: Sequence[JournalEntry]) -> int:
        """Record the orders of entries and move the bucket's position, in one transaction. The number of new orders."""

    async def close(self) -> None:
        """Let go of the connections."""


class WaitingRoom(Protocol):
    """The waiting rooms of all sales: places, the line, who is let in, and the load of the counters.

    Raises InventoryUnavailable when nothing was written, and OutcomeUnknown when that cannot be known; all methods may
    be repeated. A room begins with its first place, or when it is drawn.
    """

    async def join(self, sale: str, joins: Sequence[RoomJoin], opens_ms: int, seed: str) -> RoomPlaces:
        """Give places, in order, to up to JOINS_MAX buyers; who has one keeps it, unless it is the one that he lost.

        From `opens_ms` on, by the engine's clock, it is first made sure that the lot is drawn (see `draw`): who joins
        then stands behind those who were there.
        """

    async def draw(self, sale: str, opens_ms: int, seed: str) -> bool:
        """From `opens_ms` on, let the order of the places until now be that of this seed, once for ever.

        False before the opening. Whose seed it became is seen in the view.
        """

    async def view(self, sale: str, after: str) -> RoomView | None:
        """The room now, with the calls after that position; '-' is the beginning. None: there is no room."""

    async def step(self, sale: str, step: RoomStep) -> bool:
        """Move the line. False, and nothing is done, when another step was first or the room is another."""

    async def report(self, sale: str, report: RoomReport) -> bool:
        """Note who was seen and who has bought. A pass counts once as used. False: the room is another."""

    async def beats(self, sale: str, after: str) -> RoomBeats:
        """Who was seen after that position; '-' is the beginning. What is older than two minutes is forgotten."""

    async def declare(self, load: CounterLoad) -> None:
        """What a counter can take; forgotten after some seconds unless it is said again."""

    async def loads(self) -> list[CounterLoad]:
        """The counters that are live, by id."""

    async def close(self) -> None:
        """Let go of the connections."""
