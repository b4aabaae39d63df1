"""The stock behind one offer, which nobody sees but by its level, and its price, which moves when it is spot's."""

import math
from collections import deque

import msgspec

from springtide.model import Market, Offer, StockLevel
from springtide.ports import Chance

SPOT_BELOW_ON_DEMAND = 0.95
SPOT_RANGE = (0.5, 3.0)  # of the price that a spot offer begins with

HISTORY_MAX = 500
"""Prices of a spot offer that are remembered."""


class PoolState(msgspec.Struct):
    """What a pool remembers. `stock + withheld + running == supplied`, always.

    `stock` can be rented, `running` is rented, `withheld` is hidden by a fault, `supplied` is all that the cloud ever
    put here less what it took away. `forced` is set while a fault says how much there is.
    """

    stock: int
    supplied: int
    price_fen_per_h: float
    running: int = 0
    withheld: int = 0
    forced: bool = False


class Pool:
    """One offer's machines."""

    def __init__(self, offer: Offer, stock: int, low_share: float, price_max: float) -> None:
        """`price_max` bounds a spot price."""
        self.offer = offer
        self.initial = stock
        self._low = math.ceil(stock * low_share)
        self._price_min = min(offer.price_fen_per_h * SPOT_RANGE[0], price_max)
        self._price_max = min(offer.price_fen_per_h * SPOT_RANGE[1], price_max)
        self.state = PoolState(stock, stock, offer.price_fen_per_h)
        self.history: deque[tuple[int, float]] = deque(maxlen=HISTORY_MAX)
        """Prices and since when they held, oldest first."""

    @property
    def level(self) -> StockLevel:
        """All that is told of the stock."""
        if self.state.stock <= 0:
            return StockLevel.NONE
        return StockLevel.LOW if self.state.stock < self._low else StockLevel.PLENTY

    def take(self, count: int) -> None:
        """Rent machines that are there."""
        self.state.stock -= count
        self.state.running += count

    def give_back(self) -> None:
        """Take a rented machine back; while a fault says how much there is, it stays hidden."""
        self.state.running -= 1
        if self.state.forced:
            self.state.withheld += 1
        else:
            self.state.stock += 1

    def lose(self) -> None:
        """Take a rented machine away for good: somebody else has it."""
        self.state.running -= 1
        self.state.supplied -= 1

    def force(self, count: int | None) -> None:
        """Let there be so many, whatever happens, but for those that are rented; None: as it was without."""
        state = self.state
        state.stock += state.withheld
        state.withheld = 0
        state.forced = count is not None
        if count is None:
            return
        if count > state.stock:
            state.supplied += count - state.stock
            state.stock = count
        state.withheld = state.stock - count
        state.stock = count

    def refill(self, share: float, chance: Chance) -> None:
        """Let some of what is missing come: `share` of the initial stock on average."""
        missing = self.initial - self.state.stock
        if missing <= 0 or self.state.forced:
            return
        expected = self.initial * share * chance.uniform(0.0, 2.0)
        come = min(missing, math.floor(expected + chance.random()))
        self.state.stock += come
        self.state.supplied += come

    def move_price(self, move: float, now_ms: int, chance: Chance) -> None:
        """Let a spot price move by at most this share of itself; others stay."""
        if self.offer.market is Market.SPOT:
            moved = self.state.price_fen_per_h * math.exp(chance.uniform(-move, move))
            self.state.price_fen_per_h = round(min(max(moved, self._price_min), self._price_max), 4)
            self.history.append((now_ms, self.state.price_fen_per_h))

    def shown(self) -> Offer:
        """The offer as the cloud shows it."""
        return msgspec.structs.replace(
            self.offer, price_fen_per_h=self.state.price_fen_per_h, level=self.level, stock=None
        )


def open_pools(offers: tuple[Offer, ...], stock: int, low_share: float) -> dict[str, Pool]:
    """A pool for each offer, by its key; an offer that does not say has `stock` machines."""
    on_demand = {
        (offer.zone, offer.instance_type): offer.price_fen_per_h for offer in offers if offer.market is not Market.SPOT
    }
    return {
        offer.key: Pool(
            offer,
            stock if offer.stock is None else offer.stock,
            low_share,
            SPOT_BELOW_ON_DEMAND * on_demand.get((offer.zone, offer.instance_type), math.inf),
        )
        for offer in offers
    }
