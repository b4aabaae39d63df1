"""What the twin's cloud is made of: its offers, quotas and limits; by default a dozen types of cn-beijing.

Prices on demand are Alibaba Cloud's for cn-beijing in October 2024, per hour, from the price list of
cloudpilot-ai/priceserver (Apache-2.0); ECI's, 0.1764 CNY per vCPU·h and 0.0221 per GiB·h, from its documentation.
Spot is up to 90% off (ECS documentation, "Spot instances"); its prices here begin at 15 to 35% of those on demand.
"""

import msgspec

from springtide.model import Market, Offer, Quota

ZONES = ("cn-beijing-f", "cn-beijing-g", "cn-beijing-h", "cn-beijing-i", "cn-beijing-k", "cn-beijing-l")
"""Zones of cn-beijing; there are more."""

ECI_FEN_PER_CORE_H = 17.64
ECI_FEN_PER_GIB_H = 2.21

ECS_BOOT_MS = (60_000, 180_000)
ECI_BOOT_MS = (25_000, 75_000)

_TYPES = (
    # type, arch, cores, GiB, fen an hour on demand, share of it that spot begins at
    ("ecs.c7.4xlarge", "amd64", 16, 32, 326.1591, 0.25),
    ("ecs.c7.8xlarge", "amd64", 32, 64, 652.3183, 0.25),
    ("ecs.c7.16xlarge", "amd64", 64, 128, 1304.6366, 0.30),
    ("ecs.c8i.4xlarge", "amd64", 16, 32, 326.1591, 0.30),
    ("ecs.c8i.8xlarge", "amd64", 32, 64, 652.3183, 0.30),
    ("ecs.c8a.8xlarge", "amd64", 32, 64, 619.52, 0.35),
    ("ecs.c8y.8xlarge", "arm64", 32, 64, 427.0933, 0.20),
    ("ecs.c6.8xlarge", "amd64", 32, 64, 623.0, 0.15),
    ("ecs.g7.4xlarge", "amd64", 16, 64, 418.6, 0.25),
    ("ecs.g7.8xlarge", "amd64", 32, 128, 837.2, 0.25),
    ("ecs.g8i.8xlarge", "amd64", 32, 128, 837.2, 0.30),
    ("ecs.g8a.8xlarge", "amd64", 32, 128, 816.64, 0.35),
    ("ecs.u1-c1m2.4xlarge", "amd64", 16, 32, 280.8, 0.15),
    ("ecs.u1-c1m2.8xlarge", "amd64", 32, 64, 561.6, 0.15),
)
_GROUPS = ((4, 8), (8, 16), (16, 32), (32, 64), (64, 128))  # cores, GiB: at most 64 vCPU a group (ECI documentation)
_STOCK = {Market.ON_DEMAND: 300, Market.SPOT: 200, Market.ECI: 500}


def eci_type(cores: int, gib: int) -> str:
    """What stands for an instance type where a container group has none: `eci-8c16g`."""
    return f"eci-{cores}c{gib}g"


def default_offers(zones: tuple[str, ...] = ZONES) -> tuple[Offer, ...]:
    """Fourteen ECS types, on demand and as spot, and five sizes of ECI in each zone; `stock` is what is there."""
    offers = []
    for zone in zones:
        for name, arch, cores, gib, price, spot_share in _TYPES:
            for market, share in ((Market.ON_DEMAND, 1.0), (Market.SPOT, spot_share)):
                offers.append(
                    Offer(
                        zone,
                        name,
                        market,
                        cores,
                        gib * 1024,
                        round(price * share, 4),
                        stock=_STOCK[market],
                        arch=arch,
                        boot_ms=ECS_BOOT_MS,
                    )
                )
        for cores, gib in _GROUPS:
            price = round(cores * ECI_FEN_PER_CORE_H + gib * ECI_FEN_PER_GIB_H, 4)
            offer = Offer(zone, eci_type(cores, gib), Market.ECI, cores, gib * 1024, price, stock=_STOCK[Market.ECI])
            offers.append(msgspec.structs.replace(offer, boot_ms=ECI_BOOT_MS))
    return tuple(offers)


class ApiLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often the account may call, per API (action), in one region.

    Calls are counted by minutes of the clock: throttled in one, allowed again in the next. A creation is one machine;
    5,000 a minute is the account's documented limit. ECI's create and delete each have a bucket of `eci_burst` calls
    that fills by `eci_per_s` (documented: 100 and 20). The calls a minute of the other APIs are shown to each account
    in its own console and published nowhere: `calls_per_min_else` is an assumption, `calls_per_min` sets others.
    """

    calls_per_min: dict[str, int] = {}
    calls_per_min_else: int = 1_000
    creations_per_min: int = 5_000
    eci_burst: int = 100
    eci_per_s: float = 20.0


class MarketSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The cloud. An offer's `stock` is what is there at the beginning (None: `stock`); nobody outside sees it.

    An offer that has less than at the beginning gets about `refill_share_per_h` of that back in an hour. `low_share` is
    the share of it below which the level is LOW. Spot prices move every `price_every_ms` by up to `price_move` of
    themselves, and stay below those on demand. Of the spot machines, about `reclaims_per_h` are taken away each hour,
    and those whose price limit is passed; none in its first `spot_safe_ms` (ECS: `SpotDuration`, an hour by default),
    and each `notice_ms` after it was announced (ECS: 5 minutes). `boot_failed_share` of all machines never boot.
    `balance_fen` is what the account can still pay for in an hour of its machines; None: anything.
    """

    offers: tuple[Offer, ...] = msgspec.field(default_factory=default_offers)
    quotas: tuple[Quota, ...] = (
        Quota(Market.ON_DEMAND, 200_000),
        Quota(Market.SPOT, 200_000),
        Quota(Market.ECI, 100_000),
    )
    limits: ApiLimits = ApiLimits()
    region: str = "cn-beijing"
    stock: int = 300
    refill_share_per_h: float = 0.5
    refill_every_ms: int = 60_000
    low_share: float = 0.1
    price_every_ms: int = 600_000
    price_move: float = 0.03
    reclaims_per_h: float = 0.0
    spot_safe_ms: int = 3_600_000
    boot_failed_share: float = 0.0
    notice_ms: int = 300_000
    balance_fen: float | None = None
