"""Where the stock of a SKU should lie: in its home bucket, or, while it is hot, over all buckets by their demand.

Buyers never move between buckets, so stock has to be where it is asked for. A bucket that runs dry fetches units from
others for each purchase, which is exact and slow; what is decided here makes that rare.
"""

from collections.abc import Sequence

import msgspec


class BucketDemand(msgspec.Struct, frozen=True):
    """One bucket's units of a SKU, and how many it has sold a second of late."""

    stock: int
    sold_per_s: float


class SpreadPolicy(msgspec.Struct, frozen=True):
    """When a SKU counts as hot and how its stock is laid out then.

    It becomes hot at `hot_per_s` units a second over all buckets, and cools below `cool_share` of that. Below
    `units_min` units for each bucket it is gathered: crumbs in many places would only be carried to and fro.
    """

    hot_per_s: float = 50.0
    cool_share: float = 0.25
    units_min: int = 8


class Move(msgspec.Struct, frozen=True):
    """Units that should go from one bucket to another."""

    source: int
    target: int
    quantity: int


def is_hot(sold_per_s: float, policy: SpreadPolicy, *, was_hot: bool) -> bool:
    """Whether a SKU is hot now; it cools later than it heats, so that it does not flicker."""
    return sold_per_s >= policy.hot_per_s * (policy.cool_share if was_hot else 1.0)


def moves(buckets: Sequence[BucketDemand], home: int, policy: SpreadPolicy, *, hot: bool) -> list[Move]:
    """The moves that lay the stock out as it should be; none while no bucket is short by half of what it should have.

    Each unit moves at most once, and no more moves are made than there are buckets.
    """
    total = sum(bucket.stock for bucket in buckets)
    spread = hot and total >= policy.units_min * len(buckets)
    wanted = _by_demand(buckets, total) if spread else _all_at(home, len(buckets), total)
    if spread and all(bucket.stock * 2 >= want for bucket, want in zip(buckets, wanted, strict=True)):
        return []
    surplus = [bucket.stock - want for bucket, want in zip(buckets, wanted, strict=True)]
    return _matched(surplus)


def _all_at(home: int, buckets: int, total: int) -> list[int]:
    return [total if bucket == home else 0 for bucket in range(buckets)]


def _by_demand(buckets: Sequence[BucketDemand], total: int) -> list[int]:
    """Shares by demand; a bucket without any gets a quarter of the mean, for the buyers that are still to come."""
    floor = max(sum(bucket.sold_per_s for bucket in buckets) / len(buckets) / 4, 1e-9)
    weights = [max(bucket.sold_per_s, floor) for bucket in buckets]
    whole = sum(weights)
    wanted = [int(total * weight / whole) for weight in weights]
    for extra in range(total - sum(wanted)):
        wanted[extra % len(wanted)] += 1
    return wanted


def _matched(surplus: list[int]) -> list[Move]:
    """Pair the largest surplus with the largest lack until nothing is left of either."""
    givers = sorted((bucket for bucket, units in enumerate(surplus) if units > 0), key=lambda at: -surplus[at])
    takers = sorted((bucket for bucket, units in enumerate(surplus) if units < 0), key=lambda at: surplus[at])
    left = list(surplus)
    found: list[Move] = []
    while givers and takers:
        source, target = givers[0], takers[0]
        quantity = min(left[source], -left[target])
        found.append(Move(source, target, quantity))
        left[source] -= quantity
        left[target] += quantity
        if left[source] == 0:
            givers.pop(0)
        if left[target] == 0:
            takers.pop(0)
    return found
