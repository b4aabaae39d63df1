"""Where buyers and stock are kept: a sale's buckets, each of them one slot of the inventory."""

import zlib

from springtide.model import Sku


def bucket_of(buyer: str, buckets: int) -> int:
    """The bucket that holds everything of this buyer: the same in every process, for the life of the sale."""
    return zlib.crc32(buyer.encode()) % buckets


def home_of(sku: str, buckets: int) -> int:
    """The bucket in which all units of a SKU lie while it is not spread."""
    return zlib.crc32(sku.encode()) % buckets


def opening_stock(sku: Sku, bucket: int, buckets: int) -> int:
    """The units of a SKU that a bucket begins with.

    All of them in its home; when it is spread, equal parts, and the remainder to the first buckets.
    """
    if sku.spread:
        return sku.stock // buckets + (bucket < sku.stock % buckets)
    return sku.stock if bucket == home_of(sku.sku, buckets) else 0
