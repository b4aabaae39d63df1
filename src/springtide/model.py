"""Every value that crosses a boundary: frozen, typed, with units in the names.

Times are Unix milliseconds (UTC) in fields that end in `_ms` and name a moment; durations also carry their unit.
Money is in fen (1/100 CNY), an integer.
"""

import re
from enum import StrEnum

import msgspec

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Sales, SKUs, buyers, zones: at most 64 characters that need no quoting in a URL, a key or a journal record."""

IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
"""What an `Idempotency-Key` header may hold."""

QUANTITY_MAX = 1_000_000
"""The most units that one order may ask for."""

STOCK_MAX = 1_000_000_000_000
"""The most units of a SKU that a sale may hold: far below 2^53, so exact in every engine."""


def require_identifier(what: str, value: str) -> None:
    """Raise ValueError unless `value` is an identifier; `what` names it in the message."""
    if not IDENTIFIER.fullmatch(value):
        msg = f"{what} {value!r} must be 1 to 64 letters, digits, '-' or '_' and start with a letter or digit"
        raise ValueError(msg)


# --- the sale ---------------------------------------------------------------------------------------------------------


class Sku(msgspec.Struct, frozen=True):
    """One article of a sale."""

    sku: str
    title: str
    price_fen: int
    stock: int
    per_buyer_max: int = 1

    def __post_init__(self) -> None:
        """Check the figures."""
        require_identifier("sku", self.sku)
        if self.price_fen < 0:
            msg = f"the price of {self.sku} is negative"
            raise ValueError(msg)
        if not 0 <= self.stock <= STOCK_MAX:
            msg = f"the stock of {self.sku} must be between 0 and {STOCK_MAX}, not {self.stock}"
            raise ValueError(msg)
        if not 1 <= self.per_buyer_max <= QUANTITY_MAX:
            msg = f"per_buyer_max of {self.sku} must be between 1 and {QUANTITY_MAX}, not {self.per_buyer_max}"
            raise ValueError(msg)


class Sale(msgspec.Struct, frozen=True):
    """A sale as it is published: what is sold, when, and for how long a reservation is held."""

    sale: str
    title: str
    skus: tuple[Sku, ...]
    opens_ms: int
    closes_ms: int
    hold_ms: int
    epoch: int = 1
    buckets: int = 1

    def __post_init__(self) -> None:
        """Check that the sale can be held at all."""
        require_identifier("sale", self.sale)
        if not self.skus:
            msg = f"sale {self.sale} has no SKU"
            raise ValueError(msg)
        names = [sku.sku for sku in self.skus]
        if len(set(names)) != len(names):
            msg = f"sale {self.sale} names a SKU twice"
            raise ValueError(msg)
        if self.closes_ms <= self.opens_ms:
            msg = f"sale {self.sale} closes before it opens: its window is empty"
            raise ValueError(msg)
        if self.hold_ms < 1000:  # noqa: PLR2004 - one second, in the unit of the field
            msg = f"sale {self.sale} holds a reservation for {self.hold_ms} ms; a buyer needs at least 1000 ms to pay"
            raise ValueError(msg)
        if self.buckets < 1:
            msg = f"sale {self.sale} needs at least one bucket"
            raise ValueError(msg)


class SaleView(msgspec.Struct, frozen=True):
    """What a sale looked like at one moment: its definition and the stock left of each SKU, by the engine's clock."""

    sale: Sale
    stock: dict[str, int]
    paused: bool
    stock_version: int
    at_ms: int


class ReserveRequest(msgspec.Struct, frozen=True, gc=False):
    """A purchase on its way to the inventory. `deadline_ms` is by the engine's clock; a later arrival is refused."""

    buyer: str
    key: str
    sku: str
    quantity: int
    order_id: str
    epoch: int
    deadline_ms: int


class ReserveStatus(StrEnum):
    """What became of a purchase. Only RESERVED took stock."""

    RESERVED = "reserved"
    REPEATED = "repeated"
    KEY_REUSED = "key_reused"
    SOLD_OUT = "sold_out"
    LIMIT_REACHED = "limit_reached"
    UNKNOWN_SKU = "unknown_sku"
    NOT_OPEN = "not_open"
    CLOSED = "closed"
    PAUSED = "paused"
    LATE = "late"
    STALE_EPOCH = "stale_epoch"
    JOURNAL_FULL = "journal_full"


class ReserveResult(msgspec.Struct, frozen=True, gc=False):
    """The inventory's answer to one purchase.

    `order_id` and `pay_by_ms` are set for RESERVED, REPEATED and LIMIT_REACHED (the order already held);
    `live` is false when that order has been cancelled or has expired since.
    """

    status: ReserveStatus
    order_id: str = ""
    pay_by_ms: int = 0
    live: bool = True


class Reservation(msgspec.Struct, frozen=True, gc=False):
    """An acknowledged purchase, as the journal holds it and the ledger records it."""

    order_id: str
    sale: str
    bucket: int
    buyer: str
    key: str
    sku: str
    quantity: int
    reserved_ms: int
    pay_by_ms: int


class JournalEntry(msgspec.Struct, frozen=True):
    """One entry of a bucket's journal: all purchases that one batch accepted. `entry_id` orders the entries."""

    entry_id: str
    reservations: tuple[Reservation, ...]


class BucketCut(msgspec.Struct, frozen=True):
    """One bucket at one moment, read in one atomic step: what it holds and how far its journal had come."""

    sale: str
    bucket: int
    stock: dict[str, int]
    last_entry_id: str
    at_ms: int


# --- orders and payments ----------------------------------------------------------------------------------------------


class OrderState(StrEnum):
    """The life of an order; the transitions are in `sale/orders.py`."""

    RESERVED = "reserved"
    PAID = "paid"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class PaymentOutcome(StrEnum):
    """What a payment came to. ACCEPTED is also the answer to the same payment said again."""

    ACCEPTED = "accepted"
    REFUND_DUE = "refund_due"
    UNKNOWN_ORDER = "unknown_order"
    AMOUNT_DIFFERS = "amount_differs"


class Payment(msgspec.Struct, frozen=True):
    """A payment as the provider reports it. `payment_id` is the provider's, unique, and makes it idempotent."""

    payment_id: str
    order_id: str
    sale: str
    buyer: str
    amount_fen: int


class Order(msgspec.Struct, frozen=True):
    """An order as the ledger knows it."""

    reservation: Reservation
    state: OrderState
    price_fen: int


class StockReturn(msgspec.Struct, frozen=True, gc=False):
    """Stock of an order that ended unpaid, on its way back to the bucket it came from (a row of the outbox)."""

    order_id: str
    sale: str
    bucket: int
    buyer: str
    sku: str
    quantity: int


class SkuTotals(msgspec.Struct, frozen=True):
    """What the ledger holds of one SKU, in units. `returning` left an order but is not back in stock yet."""

    sku: str
    initial: int
    restocked: int
    reserved: int
    paid: int
    returning: int


class SkuAudit(msgspec.Struct, frozen=True):
    """The stock equation of one SKU, in units: stock + reserved + paid + returning = initial + restocked."""

    totals: SkuTotals
    stock: int

    @property
    def difference(self) -> int:
        """Units too many (positive: oversold or counted twice) or missing (negative: lost)."""
        totals = self.totals
        held = self.stock + totals.reserved + totals.paid + totals.returning
        return held - totals.initial - totals.restocked

    @property
    def oversold(self) -> int:
        """Units sold beyond what there was to sell."""
        totals = self.totals
        return max(0, totals.reserved + totals.paid - totals.initial - totals.restocked)


# --- the fleet --------------------------------------------------------------------------------------------------------


class ZoneKind(StrEnum):
    """Whose machines a zone has: the owner's fixed pool, or rented ones."""

    IDC = "idc"
    CLOUD = "cloud"


class Zone(msgspec.Struct, frozen=True):
    """A room of the data centre or a zone of the cloud.

    `nodes_max` is the size of the fixed pool (IDC) or the quota (cloud). `lead_ms` is the time from the order of a node
    until it can run a replica; 0 for IDC. `price_fen_per_node_h` is what a rented node costs.
    """

    name: str
    kind: ZoneKind
    nodes_max: int
    cores_per_node: int
    lead_ms: int = 0
    price_fen_per_node_h: int = 0


class NodeState(StrEnum):
    """A node is paid for from BOOTING on, and can run replicas when READY."""

    BOOTING = "booting"
    READY = "ready"
    RELEASING = "releasing"


class Node(msgspec.Struct, frozen=True):
    """One machine. `client_token` names the purchase it came from (empty for IDC)."""

    node_id: str
    zone: str
    state: NodeState
    cores: int
    client_token: str
    since_ms: int


class ReplicaState(StrEnum):
    """Where a replica is in its life, as its runtime sees it."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Replica(msgspec.Struct, frozen=True):
    """One running copy of the counter. `port` is 0 until it listens; `since_ms` is when it entered its state."""

    replica_id: str
    zone: str
    node_id: str
    state: ReplicaState
    host: str
    port: int
    since_ms: int
    cpu_s: float = 0.0
    memory_bytes: int = 0


class ReplicaSpec(msgspec.Struct, frozen=True):
    """A replica to start. The id is chosen by the decision, so that doing it twice starts one."""

    replica_id: str
    zone: str
    node_id: str


class ZoneTraffic(msgspec.Struct, frozen=True):
    """What the balancer sent to a zone, per second over the last interval, and what came of it."""

    zone: str
    requests_per_s: float
    failed_per_s: float
    in_flight: int
    healthy: int


class TrafficSample(msgspec.Struct, frozen=True):
    """The balancer's figures at one moment. `requests_per_s` counts every request that arrived, answered or not."""

    at_ms: int
    requests_per_s: float
    zones: tuple[ZoneTraffic, ...] = ()


class Endpoint(msgspec.Struct, frozen=True):
    """A replica as the balancer sees it; a weight of 0 drains it: no new requests, open ones finish."""

    replica_id: str
    zone: str
    host: str
    port: int
    weight: int


class CalendarEvent(msgspec.Struct, frozen=True):
    """A sale on the calendar: this many requests a second are expected from `opens_ms` on, for `lasts_ms`.

    `ready_ms` is how long before the opening the capacity has to stand.
    """

    name: str
    opens_ms: int
    lasts_ms: int
    peak_requests_per_s: float
    ready_ms: int


class FleetPolicy(msgspec.Struct, frozen=True):
    """The limits and tastes of the decisions.

    `replica_requests_per_s` is what one replica can take; `headroom` is the spare share on top of the demand (0.25 = a
    quarter more); `base_replicas` stay in each IDC zone for ever; `patience_ms` is how long a lower demand must last
    before capacity goes; `actions_max` bounds what one tick may begin; `starting_max` what may be starting at once.
    `replicas_max` is a budget that no demand exceeds; None is no budget.
    """

    replica_requests_per_s: float
    replica_cores: int
    headroom: float
    base_replicas: int
    patience_ms: int
    drain_ms: int
    start_ms: int
    actions_max: int
    starting_max: int
    stale_ms: int
    replicas_max: int | None = None


class DemandRange(msgspec.Struct, frozen=True):
    """Requests per second expected within the horizon: at the least, most likely, and at the most."""

    low: float
    likely: float
    high: float
    reason: str


class RentNodes(msgspec.Struct, frozen=True, tag="rent_nodes"):
    """Rent `count` nodes in a cloud zone; the token makes the purchase idempotent."""

    zone: str
    count: int
    client_token: str
    reason: str


class ReleaseNode(msgspec.Struct, frozen=True, tag="release_node"):
    """Give a rented node back; it runs nothing any more."""

    node_id: str
    zone: str
    reason: str


class StartReplica(msgspec.Struct, frozen=True, tag="start_replica"):
    """Start one replica on a node that is ready."""

    spec: ReplicaSpec
    reason: str


class DrainReplica(msgspec.Struct, frozen=True, tag="drain_replica"):
    """Take a replica's traffic away; it finishes what it has."""

    replica_id: str
    zone: str
    reason: str


class StopReplica(msgspec.Struct, frozen=True, tag="stop_replica"):
    """End a replica that is drained or failed."""

    replica_id: str
    zone: str
    reason: str


class SetEndpoints(msgspec.Struct, frozen=True, tag="set_endpoints"):
    """Give the balancer this exact list."""

    endpoints: tuple[Endpoint, ...]
    reason: str


Action = RentNodes | ReleaseNode | StartReplica | DrainReplica | StopReplica | SetEndpoints


class Snapshot(msgspec.Struct, frozen=True):
    """Everything a decision may know. `run` and `tick` make the ids it chooses unique and reproducible.

    `traffic` is the recent history, oldest first; the age of the newest sample tells how far to trust it.
    `wanted_before` is the history of (moment, replicas that the demand alone asked for), oldest first, for patience in
    scaling in. `healthy` is what the balancer itself finds healthy; None when it has not said. `ages_ms` is how old the
    observation of "replicas", "nodes" or "health" is; one that is not named is fresh. `in_flight` are actions that were
    begun and have not ended.
    """

    run: str
    tick: int
    now_ms: int
    zones: tuple[Zone, ...]
    nodes: tuple[Node, ...]
    replicas: tuple[Replica, ...]
    endpoints: tuple[Endpoint, ...]
    traffic: tuple[TrafficSample, ...]
    calendar: tuple[CalendarEvent, ...]
    wanted_before: tuple[tuple[int, int], ...] = ()
    healthy: frozenset[str] | None = None
    ages_ms: dict[str, int] = {}
    in_flight: tuple[Action, ...] = ()


class Plan(msgspec.Struct, frozen=True):
    """What one tick decided, and why. `placement` is replicas wanted by zone; `weights` shares of traffic by zone."""

    tick: int
    demand: DemandRange
    replicas_wanted: int
    placement: dict[str, int]
    weights: dict[str, int]
    actions: tuple[Action, ...]
    reasons: tuple[str, ...]
