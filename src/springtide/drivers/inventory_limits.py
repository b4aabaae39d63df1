"""What every inventory refuses: the limits that the implementations of the port share."""

from collections.abc import Mapping, Sequence

from springtide.model import STOCK_MAX, HeldOrder, HeldState, ReserveRequest, Restock, Sale, TokenRing

BATCH_MAX = 1024
"""Purchases in one call of `reserve`: the port's promise; a Lua call may take 8,000 values."""

ORDERS_REMEMBERED_MAX = 64
"""Orders of one buyer in one bucket, the ended ones included; beyond it he is at his limit."""

ENTRIES_MAX = 1024
"""Journal entries that one call reads or acknowledges."""

JOURNAL_LAG_MAX = 10_000
"""Unrecorded journal entries when the constructor is not told otherwise; beyond it purchases are JOURNAL_FULL."""

RETAIN_MS = 1500
"""An acknowledged journal entry stays for this long, so that whoever asks for holders at least once a second is told
the new ones alone: reading all of them again would cost a large sale far more."""

RETAINED_MAX = 10_000
"""Acknowledged entries that stay for that reason; beyond it they are dropped early, and holders are told whole."""

HOLDERS_ENTRIES_MAX = 4096
"""Journal entries that are read to tell new holders; when there are more, all holders are told."""

RESTOCKS_MAX = 10_000
"""Restocks of one bucket: their ids are kept for the life of the sale."""

CLAIM_IDLE_MS = 5000
"""An entry that a consumer has held for this long without acknowledging it may be read by another."""


def check_batch(batch: Sequence[ReserveRequest]) -> None:
    """Raise ValueError for a batch that no inventory takes."""
    if len(batch) > BATCH_MAX:
        raise ValueError(f"a batch of {len(batch)} purchases is above {BATCH_MAX}: send it in parts")
    if min([request.quantity for request in batch], default=1) < 1:
        raise ValueError("a purchase asks for less than one unit: check quantities before they are sent")


def check_entries(count: int) -> None:
    """Raise ValueError for more journal entries than one call may handle."""
    if not 1 <= count <= ENTRIES_MAX:
        raise ValueError(f"{count} journal entries in one call: ask for 1 to {ENTRIES_MAX}")


def check_restock(restock: Restock) -> None:
    """Raise ValueError for a restock that adds nothing, or more than can be counted."""
    if not 1 <= restock.quantity <= STOCK_MAX:
        raise ValueError(f"restock {restock.restock_id} needs 1 to {STOCK_MAX} units, not {restock.quantity}")


def check_ring(ring: TokenRing) -> None:
    """Raise ValueError for generations that are none."""
    if not 1 <= ring.oldest <= ring.newest:
        raise ValueError(
            f"token keys from {ring.oldest} to {ring.newest}: the oldest is at least 1, the newest not older"
        )


def restored_orders(
    sale: Sale, bucket: int, stock: Mapping[str, int], orders: Sequence[HeldOrder]
) -> dict[str, list[HeldOrder]]:
    """The orders by buyer, as many as a bucket remembers: of those beyond, ended ones are dropped, the oldest first.

    Raises ValueError for what is not this bucket's, and for stock or orders of SKUs that the sale lacks.
    """
    skus = {sku.sku for sku in sale.skus}
    for sku, units in stock.items():
        if sku not in skus or not 0 <= units <= STOCK_MAX:
            raise ValueError(
                f"{units} units of {sku} cannot be restored: the sale lacks the SKU, or the figure is wrong"
            )
    found: dict[str, list[HeldOrder]] = {}
    for held in orders:
        one = held.reservation
        if (one.sale, one.bucket) != (sale.sale, bucket) or one.sku not in skus:
            raise ValueError(f"order {one.order_id} cannot be restored: it is of another sale, bucket or SKU")
        found.setdefault(one.buyer, []).append(held)
    return {buyer: _newest(mine) for buyer, mine in found.items()}


def _newest(orders: list[HeldOrder]) -> list[HeldOrder]:
    extra = len(orders) - ORDERS_REMEMBERED_MAX
    if extra <= 0:
        return orders
    ended = [at for at, held in enumerate(orders) if held.state is HeldState.ENDED]
    dropped = set(ended[:extra])
    return [held for at, held in enumerate(orders) if at not in dropped]
