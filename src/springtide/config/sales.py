"""What the order path is told: sales and their SKUs, counters, inventory, waiting rooms, and the crowd of a demo."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from springtide.config.fields import Count, Milliseconds, Positive, Seconds, Share, to_ms
from springtide.model import BUCKETS_MAX, Sale, Sku, require_identifier


class CounterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[counter]`: one replica of the order path's front."""

    rate_max: Positive = 300.0
    queue_wait_ms_max: Milliseconds = 250
    cores: Count = 1
    batch_max: Annotated[int, Meta(ge=1, le=1024)] = 128
    batches_in_flight_max: Annotated[int, Meta(ge=1, le=64)] = 2
    purchase_timeout_ms: Milliseconds = 2000
    connections_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    body_bytes_max: Annotated[int, Meta(ge=64, le=1_048_576)] = 4096
    buyer_rate_max: Positive = 10.0
    buyer_burst_max: Count = 20
    address_rate_max: Annotated[float, Meta(ge=0)] = 100_000.0
    address_burst_max: Count = 100_000
    forwarded_hops: Annotated[int, Meta(ge=0, le=16)] = 0
    page_age_ms_max: Milliseconds = 200
    journal_lag_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000


class InventorySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[inventory]`: Valkey. The reserve is for the embedded one, the replicas for a cluster.

    `copies`: 1, or 3 for embedded stores, PostgreSQL as well, that have one in each of three failure domains.
    """

    replicas_acked: Annotated[int, Meta(ge=0, le=5)] = 1
    disk_reserve_mb: Annotated[int, Meta(ge=16, le=1_048_576)] = 256
    copies: Literal[1, 3] = 1


class RoomSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[room]`: the waiting rooms."""

    pass_s: Annotated[float, Meta(ge=5, le=3600)] = 120.0
    requests_per_buyer: Positive = 5.0
    rate_default: Positive = 200.0
    rate_max: Positive = 100_000.0


class SkuSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[sales.skus]]`."""

    sku: str
    title: str
    price_cny: Annotated[float, Meta(ge=0, le=10_000_000)]
    stock: Annotated[int, Meta(ge=0, le=1_000_000_000_000)]
    per_buyer_max: Count = 1
    spread: bool = False

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        require_identifier("sku", self.sku)

    def model(self) -> Sku:
        """The SKU as the order path has it."""
        return Sku(
            sku=self.sku,
            title=self.title,
            price_fen=round(self.price_cny * 100),
            stock=self.stock,
            per_buyer_max=self.per_buyer_max,
            spread=self.spread,
        )


class SaleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[sales]]`: what is sold and when, in seconds after the start of the run."""

    sale: str
    title: str
    opens_after_s: Seconds
    closes_after_s: Seconds
    hold_s: Annotated[float, Meta(ge=1, le=86_400)]
    skus: Annotated[tuple[SkuSettings, ...], Meta(min_length=1, max_length=100)]
    buckets: Annotated[int, Meta(ge=1, le=BUCKETS_MAX)] = 1
    waiting_room: bool = False
    pay_url: str = ""

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        require_identifier("sale", self.sale)
        if self.closes_after_s <= self.opens_after_s:
            msg = f"sale {self.sale} closes before it opens: closes_after_s must be above opens_after_s"
            raise ValueError(msg)

    def model(self, start_ms: int) -> Sale:
        """The sale, with its seconds counted from `start_ms`."""
        return Sale(
            sale=self.sale,
            title=self.title,
            skus=tuple(sku.model() for sku in self.skus),
            opens_ms=start_ms + to_ms(self.opens_after_s),
            closes_ms=start_ms + to_ms(self.closes_after_s),
            hold_ms=to_ms(self.hold_s),
            buckets=self.buckets,
            waiting_room=self.waiting_room,
            pay_url=self.pay_url,
        )


class CrowdSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[crowd]`: the buyers of a demo. `demand` is a CSV beside the TOML: `second,requests_per_second`."""

    demand: str
    seed: int = 1
    zipf_exponent: Positive = 1.1
    page_share: Share = 0.15
    pay_share: Share = 0.8
    pay_after_s: Seconds = 3.0
    retry_share: Share = 0.5
    retries_max: Annotated[int, Meta(ge=0, le=20)] = 3
    answer_timeout_s: Positive = 5.0
    connections: Annotated[int, Meta(ge=1, le=10_000)] = 256
