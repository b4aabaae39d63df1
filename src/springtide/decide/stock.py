"""What is believed of a cloud's stock: orders that came short close an offer for a while, longer each time in a row.

No cloud tells quantities. An order that was filled in part has shown that there is nothing left now; one that was
refused for the account's quota, that there is nothing for its market. The pause before an offer is tried again doubles
with each order in a row that came short, and an order that was filled ends all doubt.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec

from springtide.errors import CloudError, CloudOutOfStock, CloudQuotaExceeded
from springtide.model import Fill, Offer, StockBelief, StockLevel

FILLS_MS = 15 * 60_000
"""What orders have shown is forgotten after so long; no pause is longer."""

PAUSE_MS = 30_000
"""The pause after the first order that came short."""

REFUSED_MS = 5 * 60_000
"""The pause after a refusal that no repetition changes: a person has to look first."""

REFUSALS_MAX = 3
"""After refusals of so many offers the account is at fault, not an offer: none is tried for REFUSED_MS."""


class Shortfall(StrEnum):
    """How `Fill.error` begins: nothing was left, the account's limit, the account itself, or no answer came."""

    STOCK = "out of stock"
    QUOTA = "quota"
    REFUSED = "refused"
    SILENCE = "no answer"


def shortfall_of(error: CloudError) -> Shortfall:
    """What a refused order has shown."""
    match error:
        case CloudOutOfStock():
            return Shortfall.STOCK
        case CloudQuotaExceeded():
            return Shortfall.QUOTA
        case _:
            return Shortfall.REFUSED


def believed(offers: Sequence[Offer], fills: Sequence[Fill], now_ms: int) -> tuple[Offer, ...]:
    """The offers with their `stock` as orders have shown it, in their order. `fills` is oldest first."""
    closed = beliefs(fills, now_ms)
    markets = {key.rpartition("/")[2] for key in closed if key.startswith("*/")}
    everything = "*" in closed
    return tuple(
        msgspec.structs.replace(offer, stock=0)
        if everything or offer.key in closed or offer.market in markets or offer.level in _EMPTY
        else offer
        for offer in offers
    )


def beliefs(fills: Iterable[Fill], now_ms: int) -> dict[str, StockBelief]:
    """What is closed now, by offer; by `*/MARKET` where the account's limit for it is reached, by `*` for all."""
    found: dict[str, StockBelief] = {}
    in_a_row: dict[str, int] = {}
    refused: dict[str, int] = {}
    for fill in fills:
        if fill.at_ms < now_ms - FILLS_MS:
            continue
        keys = [fill.offer_key]
        if not fill.error:
            keys += [f"*/{fill.offer_key.rpartition('/')[2]}", "*"]
            for key in keys:
                found.pop(key, None)
                in_a_row.pop(key, None)
            refused.clear()
            continue
        if fill.error.startswith(Shortfall.QUOTA):
            keys.append(f"*/{fill.offer_key.rpartition('/')[2]}")
        if fill.error.startswith(Shortfall.REFUSED):
            refused[fill.offer_key] = fill.at_ms
            if len(refused) >= REFUSALS_MAX:
                keys.append("*")
        least_ms = REFUSED_MS if fill.error.startswith(Shortfall.REFUSED) else PAUSE_MS
        for key in keys:
            count = in_a_row[key] = in_a_row.get(key, 0) + 1
            pause_ms = min(least_ms * 2 ** (count - 1), FILLS_MS)
            found[key] = StockBelief(key, 0, fill.at_ms + pause_ms)
    return {key: belief for key, belief in found.items() if belief.until_ms > now_ms}


def refusals(fills: Iterable[Fill], now_ms: int) -> list[str]:
    """What a person has to look at: the last minutes' refusals, each text once."""
    recent = (fill for fill in fills if fill.at_ms > now_ms - REFUSED_MS and fill.error.startswith(Shortfall.REFUSED))
    texts = {fill.error: fill.offer_key for fill in recent}
    return [f"an order of {key} was {error}; look at the account, or at the order" for error, key in texts.items()]


_EMPTY = frozenset({StockLevel.NONE, StockLevel.GONE})
