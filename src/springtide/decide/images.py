"""Which images go where and when: over the line just in time or earlier, onto engines at T − x, and what is deleted.

x is what the copy over the line and the pulls of all engines take, with a margin. One cache at 10 Gbit/s needs 42
minutes to give 3,125 nodes 1 GB each: that is why it is planned.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from springtide.model import (
    CachedImage,
    CalendarEvent,
    CollectImages,
    EngineImage,
    ImageAction,
    ImageDemand,
    ImageLine,
    ImageName,
    ImagePolicy,
    PrefetchImage,
    PruneImages,
    ServiceWish,
    WarmImage,
)

_Rank = tuple[int, int]
"""First what would be late, then what is needed without a date, then what can wait; each by its moment."""

_NOW = (1, 0)


class ZoneImages(msgspec.Struct, frozen=True):
    """What is known of a zone's images: its cache's, each engine's references, and the nodes that will be there."""

    zone: str
    cached: tuple[CachedImage, ...]
    engines: Mapping[str, frozenset[str]]
    nodes: int = 0


def image_demands(
    wishes: Collection[ServiceWish],
    events: Mapping[str, Sequence[CalendarEvent]],
    sizes: Mapping[str, int],
    zones: Sequence[ZoneImages],
    now_ms: int,
) -> list[ImageDemand]:
    """What services need: the image of each in each zone's cache now, and on all engines when its next event is near.

    The image before is needed in the cache, to roll back to. `events` are by service, `sizes` by reference; an image
    that the origin does not have (no size) is nobody's to deliver.
    """
    found = []
    for wish in sorted(wishes, key=lambda wish: wish.spec.name):
        upcoming = [event for event in events.get(wish.spec.name, ()) if event.opens_ms + event.lasts_ms > now_ms]
        event = min(upcoming, key=lambda event: event.opens_ms, default=None)
        for zone in zones:
            if wish.spec.image in sizes:
                found.append(_demand(zone, wish.spec.image, sizes, event, f"service {wish.spec.name}"))
            before = wish.previous.image if wish.previous else ""
            if before in sizes and before != wish.spec.image:
                found.append(_demand(zone, before, sizes, None, f"service {wish.spec.name} could be rolled back to it"))
    return found


def warm_ms(demand: ImageDemand, line: ImageLine) -> float:
    """How long what the cache lacks takes over the line, when nothing else moves."""
    return demand.missing_bytes / line.line_bytes_per_s * 1000


def prefetch_ms(demand: ImageDemand, line: ImageLine) -> float:
    """How long it takes until all nodes have pulled the image from the cache and unpacked it.

    Either the cache's network is the limit, or the engines' unpacking, `pulls_max` at a time.
    """
    nodes = max(demand.nodes, len(demand.engines))
    network = nodes * demand.size_bytes / line.cache_bytes_per_s
    unpacking = math.ceil(nodes / line.pulls_max) * demand.size_bytes / line.unpack_bytes_per_s
    return max(network, unpacking) * 1000


def plan_images(
    now_ms: int, demands: Sequence[ImageDemand], lines: Sequence[ImageLine], policy: ImagePolicy
) -> list[ImageAction]:
    """What to begin now, the most urgent first; at most `begun_max`."""
    actions: list[tuple[_Rank, ImageAction]] = []
    for line in lines:
        here = sorted((demand for demand in demands if demand.zone == line.zone), key=lambda demand: demand.by_ms)
        actions += [(_NOW, _warm(demand)) for demand in here if demand.missing_bytes and not demand.by_ms]
        dated = [demand for demand in here if demand.missing_bytes and demand.by_ms]
        for demand, start_ms in zip(dated, _latest_starts(dated, line, policy), strict=True):
            if now_ms >= start_ms:
                late = f": due {(now_ms - start_ms) / 1000:.0f} s ago" if now_ms > start_ms else ""
                actions.append(((0, demand.by_ms), _warm(demand, late)))
            elif policy.warm_early:
                actions.append(((2, demand.by_ms), _warm(demand, f": due in {(start_ms - now_ms) / 1000:.0f} s")))
        for demand in here:
            if demand.by_ms and not demand.missing_bytes and now_ms >= _prefetch_at(demand, line, policy):
                actions += [((0, demand.by_ms), _prefetch(demand, engine)) for engine in demand.engines]
    return [action for _, action in _unique(sorted(actions, key=lambda each: each[0]))][: policy.begun_max]


def plan_collect(
    now_ms: int, zone: ZoneImages, demands: Sequence[ImageDemand], keep: Collection[str], policy: ImagePolicy
) -> CollectImages | None:
    """Make room in a cache that is above its limit; None while it is not, or an event's images are still on their way.

    What is wanted and what is in `keep` stays; of the others, those that were used last, as far as the limit allows.
    """
    total = sum(image.size_bytes for image in zone.cached)
    here = [demand for demand in demands if demand.zone == zone.zone]
    if total <= policy.cache_bytes_max or any(demand.missing_bytes and demand.by_ms > now_ms for demand in here):
        return None
    kept = {demand.reference for demand in here} | set(keep)
    room = policy.cache_bytes_max - sum(image.size_bytes for image in zone.cached if image.reference in kept)
    for image in sorted(zone.cached, key=lambda image: (-image.used_ms, image.reference)):
        if image.reference not in kept and image.size_bytes <= room:
            kept.add(image.reference)
            room -= image.size_bytes
    if all(image.reference in kept for image in zone.cached):
        return None
    reason = f"{_mb(total)} of images, and the cache may hold {_mb(policy.cache_bytes_max)}"
    return CollectImages(zone.zone, tuple(sorted(kept)), reason)


def plan_prune(
    zone: str, engine: str, images: Sequence[EngineImage], wanted: Collection[str], policy: ImagePolicy
) -> PruneImages | None:
    """Old revisions on an engine: all but the newest `revisions` of each name that is ours; None when there are none.

    Ours is a name that is wanted. What is wanted, or what a container is made of, stays.
    """
    ours = {_name(reference) for reference in wanted}
    revisions: dict[str, list[EngineImage]] = defaultdict(list)
    for image in sorted(images, key=lambda image: (-image.created_ms, image.reference)):
        revisions[_name(image.reference)].append(image)
    old = [
        image.reference
        for name in sorted(ours)
        for image in revisions[name][policy.revisions :]
        if image.reference not in wanted and not image.in_use
    ]
    reason = f"older than the newest {policy.revisions} of their names, and unused"
    return PruneImages(zone, engine, tuple(old), reason) if old else None


def _demand(
    zone: ZoneImages, reference: str, sizes: Mapping[str, int], event: CalendarEvent | None, why: str
) -> ImageDemand:
    cached = any(image.reference == reference for image in zone.cached)
    lacking = tuple(sorted(name for name, has in zone.engines.items() if reference not in has)) if event else ()
    have = len(zone.engines) - len(lacking)
    return ImageDemand(
        zone=zone.zone,
        reference=reference,
        size_bytes=sizes[reference],
        missing_bytes=0 if cached else sizes[reference],
        by_ms=event.opens_ms - event.ready_ms if event else 0,
        engines=lacking,
        nodes=max(len(lacking), zone.nodes - have) if event else 0,
        reason=f"{why}, event {event.name}" if event else why,
    )


def _latest_starts(demands: Sequence[ImageDemand], line: ImageLine, policy: ImagePolicy) -> list[float]:
    """When each copy must begin, in the order of their deadlines, so that those after it are in time, too."""
    starts: list[float] = []
    latest_ms = math.inf
    for demand in reversed(demands):
        latest_ms = min(latest_ms, _prefetch_at(demand, line, policy)) - warm_ms(demand, line) * policy.safety
        starts.append(latest_ms)
    return starts[::-1]


def _prefetch_at(demand: ImageDemand, line: ImageLine, policy: ImagePolicy) -> float:
    return demand.by_ms - policy.slack_ms - prefetch_ms(demand, line) * policy.safety


def _warm(demand: ImageDemand, when: str = "") -> WarmImage:
    return WarmImage(demand.zone, demand.reference, demand.by_ms, demand.reason + when)


def _prefetch(demand: ImageDemand, engine: str) -> PrefetchImage:
    return PrefetchImage(demand.zone, engine, demand.reference, demand.by_ms, demand.reason)


def _unique(actions: Iterable[tuple[_Rank, ImageAction]]) -> list[tuple[_Rank, ImageAction]]:
    """Two services may have one image: the first action stands for all."""
    unique: dict[tuple[object, ...], tuple[_Rank, ImageAction]] = {}
    for rank, action in actions:
        engine = action.engine if isinstance(action, PrefetchImage) else ""
        reference = action.reference if isinstance(action, WarmImage | PrefetchImage) else ""
        unique.setdefault((type(action), action.zone, engine, reference), (rank, action))
    return list(unique.values())


def _name(reference: str) -> str:
    """The name without its tag; images that others named as they like are their own name."""
    try:
        return ImageName.parse(reference).name
    except ValueError:
        return reference


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
