"""Keeps images where services will need them: looks at caches and engines, plans, and begins what is due.

It runs beside the control loop, seldom (every some seconds), since it asks every cache and every engine.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence

from springtide.decide.images import ZoneImages, image_demands, plan_collect, plan_images, plan_prune
from springtide.errors import SpringtideError
from springtide.fleet.images import Images
from springtide.model import CachedImage, CalendarEvent, EngineImage, ImageAction, ImageLine, ImagePolicy, ServiceWish
from springtide.ports import Clock, ImageCache, ImageEngine

ASKED_AT_ONCE = 16
"""Engines that are asked at once."""

ASK_S_MAX = 10.0
"""How long a cache or an engine may take to say what it has."""


class ImageKeeper:
    """One for all zones; `tick` is called by one caller at a time."""

    def __init__(
        self, images: Images, origin: ImageCache, lines: Sequence[ImageLine], policy: ImagePolicy, clock: Clock
    ) -> None:
        """`origin` says which images there are and how large; zones without a line in `lines` are left alone."""
        self._images = images
        self._origin = origin
        self._lines = lines
        self._policy = policy
        self._clock = clock
        self._slots = asyncio.Semaphore(ASKED_AT_ONCE)

    async def tick(
        self,
        wishes: Collection[ServiceWish],
        events: Mapping[str, Sequence[CalendarEvent]],
        nodes: Mapping[str, int],
        keep: Collection[str] = (),
    ) -> list[ImageAction]:
        """Begin what is due now, and say what that is.

        `events` are by service; `nodes` is how many engines each zone will have; `keep` is never collected. A cache or
        an engine that does not answer is left alone until the next time. While the origin does not answer, engines
        still get what is in the caches.
        """
        engines: dict[tuple[str, str], list[EngineImage]] = {}
        zones = [zone for line in self._lines if (zone := await self._look(line.zone, nodes, engines)) is not None]
        sizes = {image.reference: image.size_bytes for zone in zones for image in zone.cached}
        sizes |= {image.reference: image.size_bytes for image in await self._listed(self._origin) or ()}
        now_ms = self._clock.now_ms()
        demands = image_demands(wishes, events, sizes, zones, now_ms)
        lines = [line for line in self._lines if any(zone.zone == line.zone for zone in zones)]
        actions = plan_images(now_ms, demands, lines, self._policy)
        collects = [plan_collect(now_ms, zone, demands, keep, self._policy) for zone in zones]
        wanted = {demand.reference for demand in demands} | set(keep)
        prunes = [
            plan_prune(zone, engine, found, wanted, self._policy) for (zone, engine), found in sorted(engines.items())
        ]
        actions += [action for action in (*collects, *prunes) if action is not None]
        self._images.begin(actions)
        return actions

    async def _look(
        self, name: str, nodes: Mapping[str, int], engines: dict[tuple[str, str], list[EngineImage]]
    ) -> ZoneImages | None:
        """What a zone has; its engines' images are added to `engines`. None when its cache does not answer."""
        zone = self._images.zones.get(name)
        if zone is None:
            return None
        cached = await self._listed(zone.cache)
        if cached is None:
            return None
        found = await asyncio.gather(*(self._ask(engine) for engine in zone.engines.values()))
        here = {engine: images for engine, images in zip(zone.engines, found, strict=True) if images is not None}
        engines.update({(name, engine): images for engine, images in here.items()})
        references = {engine: frozenset(image.reference for image in images) for engine, images in here.items()}
        return ZoneImages(name, tuple(cached), references, nodes.get(name, 0))

    async def _listed(self, cache: ImageCache) -> list[CachedImage] | None:
        try:
            async with self._clock.timeout(ASK_S_MAX):
                return await cache.images()
        except (SpringtideError, TimeoutError):
            return None

    async def _ask(self, engine: ImageEngine) -> list[EngineImage] | None:
        async with self._slots:
            try:
                async with self._clock.timeout(ASK_S_MAX):
                    return await engine.images()
            except (SpringtideError, TimeoutError):
                return None
