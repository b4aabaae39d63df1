"""All buckets of a sale, each read in one atomic step, a few at a time."""

import asyncio
from typing import Protocol

from springtide.model import BucketCut

AT_ONCE_MAX = 16
"""Cuts under way at once: a sale may have more buckets than a connection takes calls."""


class Cuts(Protocol):
    """What is needed of the inventory."""

    async def cut(self, sale: str, bucket: int) -> BucketCut:
        """See `ports.Inventory`."""


async def cut_all(inventory: Cuts, sale: str, buckets: int) -> list[BucketCut]:
    """The cuts in the order of the buckets. Raises as the port does."""
    found: list[BucketCut] = []
    for first in range(0, buckets, AT_ONCE_MAX):
        some = range(first, min(first + AT_ONCE_MAX, buckets))
        found += await asyncio.gather(*(inventory.cut(sale, bucket) for bucket in some))
    return found
