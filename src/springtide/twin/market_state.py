"""A market in a file: what it must not forget when its process ends, and how the next one goes on with it."""

import msgspec

from springtide.model import Node
from springtide.twin.market import Market, Sold
from springtide.twin.market_stock import PoolState


class MarketState(msgspec.Struct):
    """Everything but the stream of chance and the limits on calls, which begin anew."""

    now_ms: int
    created: int
    interrupted: int
    nodes: tuple[Node, ...]
    ready_ms: dict[str, int]
    bids_fen: dict[str, float]
    sold: dict[str, Sold]
    pools: dict[str, PoolState]
    billed_ms: list[tuple[float, int]]


def save(market: Market) -> MarketState:
    """The market as it is now. It shares what can change with the market: encode it before anything happens."""
    return MarketState(
        market.kernel.now_ms,
        market.created,
        market.interrupted,
        market.nodes(),
        market.ready_ms,
        market.bids_fen,
        market.sold,
        {key: pool.state for key, pool in market.pools.items()},
        list(market.bill.closed_ms.items()),
    )


def restore(market: Market, state: MarketState) -> None:
    """Let a new market go on where another stopped; offers that are no longer configured may not be rented.

    Raises KeyError for a machine whose offer is not configured any more.
    """
    market.created, market.interrupted = state.created, state.interrupted
    market.sold.update(state.sold)
    market.bill.closed_ms.update(dict(state.billed_ms))
    for key, pool_state in state.pools.items():
        if key in market.pools:
            market.pools[key].state = pool_state
    market.adopt(state.nodes, state.ready_ms, state.bids_fen)
