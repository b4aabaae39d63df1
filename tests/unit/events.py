"""Events and offers to plan with, as small or as large as a test wants them."""

from typing import Any

from springtide.decide.schedule import event_plan
from springtide.model import (
    ApiLimit,
    EventImage,
    EventNeed,
    EventPlan,
    ImageCopy,
    Line,
    LineNeed,
    Market,
    Odds,
    Offer,
    Quota,
)

HOUR_MS = 3_600_000
AT_MS = 2_000_000_000_000
ZONES = ("z-a", "z-b", "z-c")
APIS = (
    ApiLimit("RunInstances", (Market.ON_DEMAND, Market.SPOT), 100, 5_000, 5_000 / 60),
    ApiLimit("CreateContainerGroup", (Market.ECI,), 1, 100, 20.0, call_ms=300, in_flight=20),
)


def offer(zone: str = "z-a", name: str = "big", **fields: Any) -> Offer:
    wanted: dict[str, Any] = {"market": Market.ON_DEMAND, "cores": 32, "memory_mb": 65_536, "price_fen_per_h": 640.0}
    return Offer(zone=zone, instance_type=name, **{**wanted, **fields})


def offers(stock: int | None = 200, **fields: Any) -> list[Offer]:
    """In three zones, a cheap type, a dearer one, and groups that start quickly."""
    found = []
    for zone in ZONES:
        found.append(offer(zone, "cheap", price_fen_per_h=600.0, stock=stock, **fields))
        found.append(offer(zone, "dear", price_fen_per_h=700.0, stock=stock, **fields))
        found.append(
            offer(zone, "group", market=Market.ECI, price_fen_per_h=706.0, stock=stock, boot_ms=(15_000, 45_000))
        )
    return found


def need(**fields: Any) -> EventNeed:
    wanted: dict[str, Any] = {"cores": 6_400, "replica_cores": 4.0, "apis": APIS, "ready_ms": 0}
    return EventNeed(**{"name": "eleven", "at_ms": AT_MS, "lasts_ms": 2 * HOUR_MS, **wanted, **fields})


def with_image(size_mb: float = 1_000, gbit: float = 10.0, lines: int = 2, **fields: Any) -> EventNeed:
    image = EventImage(round(size_mb * 1e6), tuple(ImageCopy(zone, 25e9 / 8) for zone in ZONES))
    line = LineNeed(tuple(Line(f"line-{number}", gbit * 1e9) for number in range(lines)), 1e8, 500)
    return need(image=image, line=line, requests_per_s=1_000_000.0, **fields)


def planned(what: EventNeed, lead_ms: int = 6 * HOUR_MS, have: list[Offer] | None = None, *quotas: Quota) -> EventPlan:
    return event_plan(what, offers() if have is None else have, quotas, what.at_ms - lead_ms)


CALM = Odds(boot_failed=0.0, stock_out_plenty=0.0, stock_out_low=0.0, zone_lost=0.0, spot_per_h=0.0)
