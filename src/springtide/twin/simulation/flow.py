"""What goes through the order path in one step of a simulation, and what it is made of."""

from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

SHARDS_MAX = 1_024
RETRIES_MAX = 20


class PathSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The order path and its buyers. Rates are per second.

    A purchase takes a counter's slot for `service_ms`, and one of the inventory's `shards`, each of which takes
    `shard_per_s` purchases; the recorder moves `recorder_per_s` orders into the ledger, and purchases are refused while
    `journal_max` wait for it. A request that would wait longer than `deadline_ms` is shed. Of the people who are shed
    or whose request failed, `retry_share` come again after `retry_after_s`, at most `retries_max` times; the rest give
    up. Of those who find it sold out, `sold_out_again_share` try another article, as often. Of the orders, `pay_share`
    are paid after `pay_after_s`; the others give their stock back after `hold_s`. An order is for one unit.

    `shard_shares` is how the buyers spread over the shards (empty: evenly); `path_shards.shard_shares` tells it for
    buckets that are hashed onto them. The costs are the capacity that a request takes which is no purchase, against one
    that is: a look at a page, a sold-out answer from memory, and a refusal by a rate limit. What is shed takes none:
    the balancer does that.

    A sale with an `opens_ms` (Unix ms; 0: it is open) has people who look at pages before it, but for an `early_share`
    that press "buy", hear "not open yet" and come again at the opening. From `closes_ms` on (0: never) nothing sells.

    `bots_share` of all who come are no people: they have `bot_buyers` accounts over `bot_addresses` networks, which may
    send `buyer_rate_max` and `address_rate_max` requests a second each, and `buyer_burst_max` and `address_burst_max`
    at once (config.CounterSettings); the others are refused. An account holds one order, and a bot does not retry.

    `service_p99_ms` is what 99 of 100 answers take without any queue (0: as `service_ms`); `burst_s` is how much of an
    idle moment a counter may catch up (`sale.admission.BURST_S`), `sold_out_wait_ms` the least time between two looks
    of a replica at the sale, which sold-out answers wait for. `arrival_scv` and `service_scv` are the squared
    coefficients of variation of the times between arrivals and of service times: 1 for independent arrivals, 0 for what
    is always the same.
    """

    stock: int
    shards: Annotated[int, Meta(ge=1, le=SHARDS_MAX)] = 1
    shard_per_s: float = 200_000.0
    recorder_per_s: float = 100_000.0
    journal_max: int = 50_000_000
    service_ms: Annotated[float, Meta(gt=0)] = 5.0
    deadline_ms: Annotated[int, Meta(ge=1)] = 1_000
    purchase_share: Annotated[float, Meta(ge=0, le=1)] = 1.0
    retry_share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    retry_after_s: Annotated[float, Meta(gt=0)] = 2.0
    retries_max: Annotated[int, Meta(ge=0, le=RETRIES_MAX)] = 3
    pay_share: Annotated[float, Meta(ge=0, le=1)] = 0.8
    pay_after_s: Annotated[float, Meta(ge=0)] = 30.0
    hold_s: Annotated[float, Meta(gt=0)] = 300.0
    sold_out_again_share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    shard_shares: tuple[float, ...] = ()
    page_cost: Annotated[float, Meta(gt=0)] = 1.0
    sold_out_cost: Annotated[float, Meta(gt=0)] = 1.0
    refused_cost: Annotated[float, Meta(gt=0)] = 1.0
    opens_ms: int = 0
    closes_ms: int = 0
    early_share: Annotated[float, Meta(ge=0, le=1)] = 0.05
    bots_share: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    bot_buyers: Annotated[int, Meta(ge=0)] = 0
    bot_addresses: Annotated[int, Meta(ge=0)] = 0
    buyer_rate_max: Annotated[float, Meta(gt=0)] = 10.0
    buyer_burst_max: Annotated[int, Meta(ge=1)] = 20
    address_rate_max: Annotated[float, Meta(gt=0)] = 100_000.0
    address_burst_max: Annotated[int, Meta(ge=1)] = 100_000
    service_p99_ms: Annotated[float, Meta(ge=0)] = 0.0
    burst_s: Annotated[float, Meta(ge=0)] = 0.0
    sold_out_wait_ms: Annotated[float, Meta(ge=0)] = 0.0
    arrival_scv: Annotated[float, Meta(ge=0)] = 1.0
    service_scv: Annotated[float, Meta(ge=0, le=1)] = 0.0

    def __post_init__(self) -> None:
        """Check what holds between the fields."""
        shares = self.shard_shares
        if shares and (len(shares) != self.shards or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6):  # noqa: PLR2004 - rounding of a written share
            raise ValueError(f"shard_shares: give {self.shards} shares, one for each shard, that add up to 1")
        if self.bots_share and not (self.bot_buyers and self.bot_addresses):
            raise ValueError("bots_share: say how many bot_buyers and bot_addresses they have, at least 1 each")
        if 0 < self.closes_ms <= self.opens_ms:
            raise ValueError("closes_ms: the sale closes before it opens; make it later than opens_ms")


class Capacity(msgspec.Struct, frozen=True):
    """What stands in a step: `requests_per_s` that the serving replicas take, and the shards that are up.

    `replicas` share it equally, each a server of its own; 0: as many slots of `service_ms` as make up the capacity.
    `own_queues`: who waits does so in the line of one replica; otherwise for the first that is free.
    """

    requests_per_s: float
    shards_up: int = 1
    round_trip_ms: float = 1.0
    replicas: int = 0
    own_queues: bool = False


class Flow(msgspec.Struct, frozen=True):
    """What happened in one step. All but those named last are counts of the step.

    `requests` are all that arrived, with `retries` and `bots` among them. Each was answered in one way: `acknowledged`
    (a new order), `sold_out` (409 or 410: sold out, closed, or the buyer has his order already), `shed` (429 or 503,
    politely; `bots_refused` of them by a rate limit, `shed_first` people at their first attempt), `failed` (no answer,
    or an error), `pages` (no purchase, or not open yet); or it waits still. `waiting`, `journal` (not recorded yet),
    `stock` (left), `reserved` and `paid` are of the end of the step; `p99_ms` of the answers in it that were not shed.
    """

    requests: float = 0.0
    retries: float = 0.0
    acknowledged: float = 0.0
    sold_out: float = 0.0
    shed: float = 0.0
    failed: float = 0.0
    pages: float = 0.0
    gave_up: float = 0.0
    recorded: float = 0.0
    expired: float = 0.0
    p99_ms: float = 0.0
    waiting: float = 0.0
    journal: float = 0.0
    stock: float = 0.0
    reserved: float = 0.0
    paid: float = 0.0
    bots: float = 0.0
    bots_refused: float = 0.0
    shed_first: float = 0.0


class OrderPath(Protocol):
    """The order path of a simulation: in fluid steps (any size), or request by request (small ones); the two agree."""

    def step(self, now_ms: int, dt_s: float, arrivals_per_s: float, capacity: Capacity) -> Flow:
        """Let `dt_s` seconds from `now_ms` on pass, in which so many new people (and bots) a second come."""
