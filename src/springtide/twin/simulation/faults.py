"""What may go wrong in a simulation, when, for how long, and to whom."""

from enum import StrEnum

import msgspec

from springtide.config.fields import NotNegative


class FaultKind(StrEnum):
    """What goes wrong, and what `target` and `amount` of a Fault mean then.

    ZONE_LOST: the zone; nothing in it answers until it is over, rented machines of it are gone for good.
    LINE_CUT: the line. LINE_SLOW: the line, and the share of its bandwidth that is left.
    STOCK_OUT: the beginning of offer keys (`ZONE/TYPE/MARKET`; "" is all), and how many of each can still be had.
    API_THROTTLED: the API ("": all of them). SLOW_BOOTS: boots take so many times as long.
    SPOT_RECLAIM: the zone ("": all), and the share of its spot machines that is taken back.
    REGISTRY_GONE: the zone whose image cache does not answer ("": all of them).
    VALKEY_FAILOVER: so many shards have no primary meanwhile.
    LARGER_SALE: the wave ("": all of them), and how many times as large as announced its demand is.
    RUSH: so many more people a second than anybody knew of.
    """

    ZONE_LOST = "zone_lost"
    LINE_CUT = "line_cut"
    LINE_SLOW = "line_slow"
    STOCK_OUT = "stock_out"
    API_THROTTLED = "api_throttled"
    SLOW_BOOTS = "slow_boots"
    SPOT_RECLAIM = "spot_reclaim"
    REGISTRY_GONE = "registry_gone"
    VALKEY_FAILOVER = "valkey_failover"
    LARGER_SALE = "larger_sale"
    RUSH = "rush"


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One fault, `at_s` seconds after the beginning, for `lasts_s`. See FaultKind for `target` and `amount`."""

    kind: FaultKind
    at_s: NotNegative
    lasts_s: NotNegative = 60.0
    target: str = ""
    amount: NotNegative = 1.0
