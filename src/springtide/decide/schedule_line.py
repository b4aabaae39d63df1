"""The lines of an event: how fast images cross them beforehand, and what share of them the peak takes."""

import math
from collections.abc import Sequence

import msgspec

from springtide.model import EventNeed, Line

WARM_SAFETY = 1.5
"""Images are given so many times the time that they take over the line, as in `ImagePolicy.safety`."""

BITS = 8


def without_line(need: EventNeed, name: str) -> EventNeed:
    """The same event with one line less."""
    lines = tuple(line for line in need.line.lines if line.name != name)
    line = msgspec.structs.replace(need.line, lines=lines)
    return msgspec.structs.replace(need, line=line)


def usable_bytes_per_s(lines: Sequence[Line]) -> float:
    """What the lines may carry: of each its share."""
    return sum(line.bits_per_s * line.share_max / BITS for line in lines)


def leading_to(need: EventNeed, zone: str) -> list[Line]:
    """The lines by which a zone is reached."""
    return [line for line in need.line.lines if not line.zones or zone in line.zones]


def peak_bytes_per_s(need: EventNeed) -> float:
    """What crosses the lines at the peak: the base, and the requests that rented replicas serve."""
    rented = need.requests_per_s * need.rented_cores / need.cores if need.cores else 0.0
    return need.line.base_bytes_per_s + rented * need.line.request_bytes


def peak_share(need: EventNeed) -> float:
    """Of the lines' whole bandwidth, what the peak takes; 0 when there is nothing to carry, infinite without a line."""
    carried = peak_bytes_per_s(need)
    whole = sum(line.bits_per_s for line in need.line.lines) / BITS
    if not carried:
        return 0.0
    return carried / whole if whole else math.inf


def warm_ms(need: EventNeed, zones: Sequence[str]) -> float:
    """How long the image takes over the lines into the caches of these zones; infinite when it finds no room.

    Each cache gets its own copy. A zone cannot be faster than the lines that lead to it, nor all zones together than
    all lines.
    """
    copies = {cache.zone: cache.copies for cache in need.image.caches if cache.zone in zones}
    if not need.image.size_bytes or not copies:
        return 0.0
    alone = [_crossing_ms(need, count, leading_to(need, zone)) for zone, count in copies.items()]
    used = [line for line in need.line.lines if any(line in leading_to(need, zone) for zone in copies)]
    return max(*alone, _crossing_ms(need, sum(copies.values()), used))


def _crossing_ms(need: EventNeed, copies: int, lines: Sequence[Line]) -> float:
    room = usable_bytes_per_s(lines) - need.line.base_bytes_per_s
    return copies * need.image.size_bytes / room * 1000 if room > 0 else math.inf


def pull_ms(need: EventNeed, zone: str, machines: int) -> float:
    """How long until so many machines of a zone have the image, if all ask at once: network, then unpacking.

    They pull from the zone's caches, or, where there is none, over the lines.
    """
    size = need.image.size_bytes
    if not size or not machines:
        return 0.0
    cache_rate = sum(cache.bytes_per_s for cache in need.image.caches if cache.zone == zone)
    rate = cache_rate or usable_bytes_per_s(leading_to(need, zone)) - need.line.base_bytes_per_s
    if rate <= 0:
        return math.inf
    network = max(machines * size / rate, size / need.image.node_bytes_per_s)
    return (network + size / need.image.unpack_bytes_per_s) * 1000
