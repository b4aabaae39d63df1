"""Where the copies of a store go, one a zone, and what has to be sure before one of them takes over from a lost one.

The rule of a takeover is the same for Valkey's shards and for PostgreSQL. A write is acknowledged when the primary and
at least `acked` of its `replicas` have it on disk. So whoever has stopped more than `replicas - acked` of the replicas
from listening to the old primary has at least one in hand that has every acknowledged write, and knows that no further
one can be acknowledged: each needs an answer of a replica that listens. The one with the most of the log has all.
"""

from collections import Counter
from collections.abc import Mapping, Sequence


def spread_copies(zones: int, shards: int, copies: int) -> list[list[int]]:
    """For each shard the zones of its copies (numbers from 0), that of its primary first.

    No zone has two copies of a shard, and the primaries are as many in each zone as can be, give or take one. Raises
    ValueError when there are more copies than zones.
    """
    if not 1 <= copies <= zones:
        msg = f"{copies} copies need as many zones of their own, and there are {zones}"
        raise ValueError(msg)
    return [[(shard + copy) % zones for copy in range(copies)] for shard in range(shards)]


def enough_fenced(fenced: int, replicas: int, acked: int) -> bool:
    """Whether so many replicas that no longer listen to the old primary make a takeover safe (see above)."""
    return acked >= 1 and fenced > replicas - acked


def heir(logs: Mapping[str, int]) -> str:
    """Of fenced replicas and how far their logs reach, who takes over: the longest log, by name where two are equal."""
    return max(logs, key=lambda name: (logs[name], name))


def handover(primaries: Mapping[int, int], copies: Mapping[int, Sequence[int]]) -> tuple[int, int] | None:
    """A shard and the zone that its primary should move to, so that primaries are spread again; None when they are.

    `primaries` are the zones of the primaries and `copies` those of all copies in sync, both by shard. One at a time:
    from the zone with the most primaries to the one with the fewest, when they differ by two or more.
    """
    zones = {zone for of_shard in copies.values() for zone in of_shard}
    held = Counter(dict.fromkeys(zones, 0))
    held.update(primaries.values())
    moves = [
        (held[primaries[shard]] - held[zone], shard, zone)
        for shard, of_shard in copies.items()
        for zone in of_shard
        if zone != primaries[shard] and held[primaries[shard]] - held[zone] > 1
    ]
    if not moves:
        return None
    _, shard, zone = max(moves, key=lambda move: (move[0], -move[1], -move[2]))
    return shard, zone
