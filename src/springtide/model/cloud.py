"""What can be rented, what was rented, and what is planned to be: offers, orders, quotas, and the plan for an event."""

from enum import StrEnum

import msgspec

FEN_PER_CNY = 100
"""Prices are kept in fen and shown in CNY."""


class Market(StrEnum):
    """How a machine is had.

    IDC machines are owned. ON_DEMAND and SPOT are ECS instances, SPOT with an interruption notice of 5 minutes. ECI is
    a serverless container group, which is a node of its own.
    """

    IDC = "idc"
    ON_DEMAND = "on_demand"
    SPOT = "spot"
    ECI = "eci"


class StockLevel(StrEnum):
    """What a cloud says of its stock, without a quantity (ECS: `StatusCategory` of DescribeAvailableResource)."""

    PLENTY = "WithStock"
    LOW = "ClosedWithStock"
    NONE = "WithoutStock"
    GONE = "ClosedWithoutStock"


class Offer(msgspec.Struct, frozen=True):
    """A type of machine in a zone, to be had in one way at one price.

    `price_fen_per_h` is of the whole machine. `stock` is how many machines can be had now as far as is known; None:
    nothing is known but `level`. `boot_ms` is the time from the order until the machine can run a replica: as half of
    the machines do it, and as 99 of 100 do. `billing_ms` is the granularity of the bill.
    """

    zone: str
    instance_type: str
    market: Market
    cores: int
    memory_mb: int
    price_fen_per_h: float
    level: StockLevel = StockLevel.PLENTY
    stock: int | None = None
    arch: str = "amd64"
    boot_ms: tuple[int, int] = (60_000, 180_000)
    billing_ms: int = 1_000

    @property
    def key(self) -> str:
        """What names the offer: `ZONE/TYPE/MARKET`."""
        return offer_key(self.zone, self.instance_type, self.market)


def offer_key(zone: str, instance_type: str, market: Market) -> str:
    """What names an offer: `ZONE/TYPE/MARKET`."""
    return f"{zone}/{instance_type}/{market.value}"


class NodeOrder(msgspec.Struct, frozen=True):
    """One purchase, exactly as it is sent, and sent again: the same token with anything else changed is refused.

    At least `count_min` machines or none (ECS: `MinAmount`), at most `count`. An `instance_type` of "" is the one
    machine that its zone is configured with. `release_at_ms` is when the cloud releases the machines by itself,
    whoever is still there to do it; 0: never. `price_limit_fen_per_h` bounds a spot price; 0: whatever it is.
    """

    zone: str
    count: int
    client_token: str
    instance_type: str = ""
    market: Market = Market.ON_DEMAND
    count_min: int = 1
    release_at_ms: int = 0
    price_limit_fen_per_h: float = 0.0

    @property
    def offer_key(self) -> str:
        """The offer it takes."""
        return offer_key(self.zone, self.instance_type, self.market)


class Fill(msgspec.Struct, frozen=True):
    """What came of one order: how many of `asked` were `filled`, and why not more ("": all came)."""

    offer_key: str
    at_ms: int
    asked: int
    filled: int
    error: str = ""


class Quota(msgspec.Struct, frozen=True):
    """An account's limit, in cores of one market in one zone ("" is all zones); `used` of it is taken."""

    market: Market
    limit_cores: int
    used_cores: int = 0
    zone: str = ""


class ProvisionNeed(msgspec.Struct, frozen=True):
    """Cores wanted on top of what is there, for so many hours, on machines that take a replica of this size.

    Of each machine only whole replicas count: `replica_cores` (and `replica_memory_mb`, 0 is not counted). `held` is
    cores by zone that are rented already and count for the spread (what they take of a quota is in its `used_cores`),
    `held_spot` those of them that are spot; None: not known, then spot may have its share of what is bought only.
    `zone_share_max` is the largest share of all rented cores that one zone may have (spread over zones),
    `spot_share_max` that spot may have. `spend_max_fen_per_h` bounds the price of everything bought; 0: unbounded.
    `arch` is what the image runs on.
    """

    cores: int
    hours: float = 1.0
    replica_cores: float = 1.0
    replica_memory_mb: int = 0
    held: dict[str, int] = {}
    zone_share_max: float = 1.0
    spot_share_max: float = 1.0
    spend_max_fen_per_h: float = 0.0
    arch: tuple[str, ...] = ("amd64",)
    held_spot: int | None = None


class Purchase(msgspec.Struct, frozen=True):
    """So many machines of one offer. `cores` is what counts of them all. Times are 0 when nothing is scheduled.

    `order_ms` is when to send the order, `ready_ms` when its machines are ready with the probability asked for.
    In a snapshot, `client_token` names a scheduled one, `ordered` says that it was, and it is for demand that is
    expected from `needed_ms` until `needed_until_ms`.
    """

    zone: str
    instance_type: str
    market: Market
    count: int
    cores: int
    price_fen_per_h: float
    order_ms: int = 0
    ready_ms: int = 0
    client_token: str = ""
    ordered: bool = False
    needed_ms: int = 0
    needed_until_ms: int = 0

    @property
    def offer_key(self) -> str:
        """The offer it takes."""
        return offer_key(self.zone, self.instance_type, self.market)


class Provision(msgspec.Struct, frozen=True):
    """What to buy for a need: the cheapest that was found, and how far from the cheapest possible it can be at most.

    `cost_fen_per_h` is of all purchases; `bound_fen_per_h` is a proven lower bound for any way to fill the need; `gap`
    is their distance as a share of the cost. `greedy_fen_per_h` is what a price-ordered first fit takes (None: it finds
    no way). `short_cores` is what no offer can deliver within stock, quotas, spread and spending limit: then bound, gap
    and greedy are of the part that can be had. `limits` names what binds, in words.
    """

    purchases: tuple[Purchase, ...]
    cores: int
    cost_fen_per_h: float
    bound_fen_per_h: float
    gap: float
    greedy_fen_per_h: float | None = None
    short_cores: int = 0
    limits: tuple[str, ...] = ()


class StockBelief(msgspec.Struct, frozen=True):
    """How many machines of an offer can be had, as orders have shown; from `until_ms` on it is asked again."""

    offer_key: str
    count: int
    until_ms: int


class Line(msgspec.Struct, frozen=True):
    """A dedicated line between the data centre and these zones of the cloud (empty: all), of which a share is used."""

    name: str
    bits_per_s: float
    latency_ms: float = 0.0
    share_max: float = 0.8
    zones: tuple[str, ...] = ()


class Milestone(msgspec.Struct, frozen=True):
    """A step on the way to an event, by when it begins and when it is done with the probability asked for."""

    name: str
    begin_ms: int
    done_ms: int
    reason: str


class EventRisk(msgspec.Struct, frozen=True):
    """What one loss does to the plan of an event, found by planning again without it.

    `kind` is "zone" (gone at the moment it is needed), "type" (out of stock in all zones when it is ordered) or "line"
    (down from the beginning on). So many cores are missing for `late_ms` after they were wanted; `short_cores` of them
    nothing can replace. What replaces the others costs `added_fen_per_h` more. `text` says it in words.
    """

    kind: str
    name: str
    missing_cores: int
    late_ms: int
    short_cores: int
    added_fen_per_h: float
    text: str


class EventPlan(msgspec.Struct, frozen=True):
    """How an event's capacity comes to stand, what it costs, how sure that is, and what would break it.

    `probability` is that of all cores being ready at `wanted_ms`; `ready_ms` is when they are with the one asked for.
    `refused` says why a plan must not be carried out (spending limit, quota, too late); empty: it may. `cores` are to
    be rented, with `spare_cores` on top because some machines are late or never come. `cost_fen` is of all of them from
    their orders to the end; `hours` is for how long they are paid on average. `breaks` is what would break the plan,
    `risks` the same in words. `line_share` of the lines is used at the peak.
    """

    event: str
    cores: int
    wanted_ms: int
    ready_ms: int
    probability: float
    hours: float
    provision: Provision
    milestones: tuple[Milestone, ...] = ()
    risks: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    cost_fen: float = 0.0
    spare_cores: int = 0
    breaks: tuple[EventRisk, ...] = ()
    line_share: float = 0.0
