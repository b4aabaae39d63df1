"""What goes through the order path in one step of a simulation, and what it is made of."""

from typing import Protocol

import msgspec


class PathSettings(msgspec.Struct, frozen=True):
    """The order path and its buyers. Rates are per second.

    A purchase takes a counter's slot for `service_ms`, and one of the inventory's `shards`, each of which takes
    `shard_per_s` purchases; the recorder moves `recorder_per_s` orders into the ledger, and purchases are refused while
    `journal_max` wait for it. A request that waits longer than `deadline_ms` is shed. Of the people who are shed,
    `retry_share` come again after `retry_after_s`, at most `retries_max` times; the rest give up. Of the orders,
    `pay_share` are paid after `pay_after_s`; the others give their stock back after `hold_s`.
    """

    stock: int
    shards: int = 1
    shard_per_s: float = 200_000.0
    recorder_per_s: float = 100_000.0
    journal_max: int = 50_000_000
    service_ms: float = 5.0
    deadline_ms: int = 1_000
    purchase_share: float = 1.0
    retry_share: float = 0.5
    retry_after_s: float = 2.0
    retries_max: int = 3
    pay_share: float = 0.8
    pay_after_s: float = 30.0
    hold_s: float = 300.0


class Capacity(msgspec.Struct, frozen=True):
    """What stands in a step: `requests_per_s` that the serving replicas take, and the shards that are up."""

    requests_per_s: float
    shards_up: int = 1
    round_trip_ms: float = 1.0


class Flow(msgspec.Struct, frozen=True):
    """What happened in one step. All but the last five are counts of the step.

    `requests` are all that arrived, with `retries` among them. Each was answered in one way: `acknowledged` (a new
    order), `sold_out`, `shed` (429 or 503, politely), `failed` (no answer, or an error), `pages` (no purchase); or it
    waits still. `waiting`, `journal` (not recorded yet), `stock` (left), `reserved` and `paid` are of the end of the
    step; `p99_ms` of the answers in it.
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


class OrderPath(Protocol):
    """The order path of a simulation: in fluid steps (any size), or request by request (small ones); the two agree."""

    def step(self, now_ms: int, dt_s: float, arrivals_per_s: float, capacity: Capacity) -> Flow:
        """Let `dt_s` seconds from `now_ms` on pass, in which so many new people a second come."""
