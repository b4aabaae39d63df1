"""What every inventory refuses: the limits that the implementations of the port share."""

from collections.abc import Sequence

from springtide.model import ReserveRequest

BATCH_MAX = 1024
"""Purchases in one call of `reserve`: the port's promise; a Lua call may take 8,000 values."""

ORDERS_REMEMBERED_MAX = 64
"""Orders of one buyer in one bucket, the ended ones included; beyond it he is at his limit."""

ENTRIES_MAX = 1024
"""Journal entries that one call reads or acknowledges."""

JOURNAL_LAG_MAX = 10_000
"""Journal entries kept when the constructor is not told otherwise; beyond it purchases are JOURNAL_FULL."""

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


def bucket_share(stock: int, bucket: int, buckets: int) -> int:
    """The units of a SKU that a bucket starts with: equal parts, and the remainder to the first ones."""
    return stock // buckets + (bucket < stock % buckets)
