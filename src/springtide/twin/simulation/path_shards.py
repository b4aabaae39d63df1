"""How the buyers of a sale spread over the inventory's shards, and what the shards then take together.

Buyers are hashed into buckets, buckets are keys of the cluster, and each shard has an equal range of its slots: as many
buckets as chance gives it. Computed with the functions that the order path itself uses.
"""

from collections.abc import Sequence

from springtide.decide.buckets import bucket_of
from springtide.drivers.valkey_cluster import SLOTS, slot_of
from springtide.drivers.valkey_codec import tag


def shard_of(sale: str, bucket: int, shards: int) -> int:
    """The shard of a bucket, where each shard has an equal range of the slots."""
    slot = slot_of(tag(sale, bucket))
    return next(shard for shard in range(shards) if slot < (shard + 1) * SLOTS // shards)


def shard_shares(sale: str, buckets: int, shards: int, buyers: Sequence[str] = ()) -> tuple[float, ...]:
    """The share of the buyers that each shard has: of these buyers, or (none named) of very many."""
    homes = [shard_of(sale, bucket, shards) for bucket in range(buckets)]
    counts = [0] * shards
    for home in homes if not buyers else (homes[bucket_of(buyer, buckets)] for buyer in buyers):
        counts[home] += 1
    total = sum(counts)
    return tuple(count / total for count in counts)


def taken_per_s(shares: Sequence[float], shard_per_s: float, offered_per_s: float) -> float:
    """Purchases/s that shards of this rate take of those offered; what is too much for one is not taken by another."""
    return sum(min(shard_per_s, offered_per_s * share) for share in shares)


def even_per_s(shares: Sequence[float], shard_per_s: float) -> float:
    """The most purchases/s that can be offered so that all are taken: then the fullest shard is just busy."""
    return shard_per_s / max(shares)


def batch_mean(purchases_per_s: float, counters: int, buckets: int, round_trip_ms: float, in_flight: int = 2) -> float:
    """How many purchases one call to the inventory carries, in the mean; at least 1.

    Each counter gathers them for each bucket by itself, and has `in_flight` calls under way for it
    (`[counter] batches_in_flight_max`): what comes meanwhile is the next batch. So more buckets or more counters make
    batches smaller, and a shard slower (`Calibration.shard_per_s`); more shards alone do not.
    """
    return max(1.0, purchases_per_s / (counters * buckets) * round_trip_ms / 1000 / in_flight)
