"""Faults of the served cloud, over HTTP: stock that runs out, throttling, slow boots, reclaims, a zone that fails.

They are no part of the cloud's own API. `POST /springtide/faults` takes one as JSON, with the access key's secret as
a bearer token; it answers with how the cloud is, as `GET` does.
"""

from collections import Counter
from typing import Annotated

import msgspec

from springtide.model import NodeState
from springtide.twin.market import Market

PATH = "/springtide/faults"
FOR_MAX_S = 7 * 86_400

Seconds = Annotated[float, msgspec.Meta(gt=0, le=FOR_MAX_S)]


class Stock(msgspec.Struct, frozen=True, tag="stock", tag_field="fault", forbid_unknown_fields=True):
    """Every offer whose key (`ZONE/TYPE/MARKET`) begins with `prefix` has so many machines; None: as it was."""

    prefix: str
    count: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] | None


class Throttle(msgspec.Struct, frozen=True, tag="throttle", tag_field="fault", forbid_unknown_fields=True):
    """All calls of an API ("": of all) are throttled."""

    for_s: Seconds
    api: str = ""


class SlowBoots(msgspec.Struct, frozen=True, tag="slow_boots", tag_field="fault", forbid_unknown_fields=True):
    """Machines that are ordered meanwhile take `factor` times as long."""

    factor: Annotated[float, msgspec.Meta(gt=0, le=1000)]
    for_s: Seconds


class Reclaim(msgspec.Struct, frozen=True, tag="reclaim", tag_field="fault", forbid_unknown_fields=True):
    """A share of the spot machines (of a zone) gets its notice."""

    share: Annotated[float, msgspec.Meta(ge=0, le=1)]
    zone: str = ""


class LoseZone(msgspec.Struct, frozen=True, tag="lose_zone", tag_field="fault", forbid_unknown_fields=True):
    """A zone's machines are gone, and none is sold there."""

    zone: str
    for_s: Seconds


class LoseAnswers(msgspec.Struct, frozen=True, tag="lose_answers", tag_field="fault", forbid_unknown_fields=True):
    """The next calls of an API ("": of any) are carried out, and answered with ServiceUnavailable all the same."""

    count: Annotated[int, msgspec.Meta(ge=0, le=100_000)]
    api: str = ""


MarketFault = Stock | Throttle | SlowBoots | Reclaim | LoseZone
Fault = MarketFault | LoseAnswers


class CloudStatus(msgspec.Struct, frozen=True):
    """How the cloud is. Calls and throttled calls are by action; stock is what the API never tells."""

    now_ms: int
    booting: int
    ready: int
    reclaimed_soon: int
    created: int
    interrupted: int
    cost_fen: float
    calls: dict[str, int]
    throttled: dict[str, int]
    stock: dict[str, int]


def strike(market: Market, fault: MarketFault) -> None:
    """Let a fault happen now; durations are on the cloud's clock."""
    now_ms = market.kernel.now_ms
    match fault:
        case Stock(prefix=prefix, count=count):
            market.set_stock(prefix, count)
        case Throttle(api=api, for_s=for_s):
            market.throttle(api, now_ms + round(for_s * 1000))
        case SlowBoots(factor=factor, for_s=for_s):
            market.slow_boots(factor, now_ms + round(for_s * 1000))
        case Reclaim(share=share, zone=zone):
            market.reclaim(share, zone)
        case LoseZone(zone=zone, for_s=for_s):
            market.lose_zone(zone, now_ms + round(for_s * 1000))


def status(market: Market) -> CloudStatus:
    """How the cloud is now."""
    states = Counter(node.state for node in market.nodes())
    return CloudStatus(
        now_ms=market.kernel.now_ms,
        booting=states[NodeState.BOOTING],
        ready=states[NodeState.READY],
        reclaimed_soon=sum(node.reclaim_ms > 0 for node in market.nodes()),
        created=market.created,
        interrupted=market.interrupted,
        cost_fen=round(market.cost_fen(), 4),
        calls=dict(market.meter.calls),
        throttled=dict(market.meter.throttled),
        stock={key: pool.state.stock for key, pool in market.pools.items()},
    )
