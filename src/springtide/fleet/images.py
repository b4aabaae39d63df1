"""Images to where they are needed: warms caches, prefetches onto engines, collects, within limits.

An operator's commands (`warm`, `list`, `gc`) and the plan's actions (`begin`) go the same way and share what is copied.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from springtide.errors import ImageError, SpringtideError
from springtide.model import (
    CachedImage,
    CollectImages,
    ImageAction,
    ImageTransfer,
    PrefetchImage,
    PruneImages,
    WarmImage,
)
from springtide.ports import Clock, ImageCache, ImageEngine

ACTIONS_MAX = 256
"""Actions under way or waiting; what does not fit is decided again by the next plan."""

WARMS_MAX = 2
"""Images that are copied to one zone at once: more share the same line and all become late."""

TRIES_MAX = 3
"""How often an action is tried; between the tries the pause doubles."""

PAUSE_S = 2.0
"""The pause after the first try."""


class ImageZone(msgspec.Struct, frozen=True):
    """What delivers images in one zone. `pulls_max` engines pull at once."""

    cache: ImageCache
    engines: Mapping[str, ImageEngine]
    pulls_max: int = 16


class ImageOutcome(msgspec.Struct, frozen=True):
    """What came of an action; `error` is empty when it was done. `bytes` crossed the line, or became free."""

    at_ms: int
    action: ImageAction
    bytes: int = 0
    error: str = ""


class Images:
    """The images of all zones, behind their ports."""

    def __init__(
        self, zones: Mapping[str, ImageZone], clock: Clock, record: Callable[[ImageOutcome], None] = lambda _: None
    ) -> None:
        """`record` is given the outcome of every action that a plan began."""
        self._zones = zones
        self._clock = clock
        self._record = record
        self._tasks: dict[asyncio.Task[None], ImageAction] = {}
        self._warms = {zone: asyncio.Semaphore(WARMS_MAX) for zone in zones}
        self._pulls = {zone: asyncio.Semaphore(parts.pulls_max) for zone, parts in zones.items()}

    async def warm(self, zone: str, reference: str) -> ImageTransfer:
        """Copy an image from the origin into a zone's cache, once. Raises ImageError; repeating it goes on."""
        parts = self._zone(zone)
        async with self._warms[zone]:
            return await parts.cache.warm(reference)

    async def list(self, zone: str) -> list[CachedImage]:
        """What a zone's cache holds, by reference. Raises ImageError."""
        return sorted(await self._zone(zone).cache.images(), key=lambda image: image.reference)

    async def gc(self, zone: str, keep: Collection[str]) -> int:
        """Delete from a zone's cache all but these references; the bytes that became free. Raises ImageError."""
        return await self._zone(zone).cache.collect(keep)

    async def prefetch(self, zone: str, engine: str, reference: str) -> str:
        """Let an engine have the image now; what it runs. Raises ImageError."""
        parts = self._zone(zone)
        if engine not in parts.engines:
            raise ImageError(
                f"zone {zone} has no engine {engine!r}; it has {', '.join(sorted(parts.engines)) or 'none'}"
            )
        async with self._pulls[zone]:
            return await parts.engines[engine].ensure(reference)

    @property
    def zones(self) -> Mapping[str, ImageZone]:
        """The zones by name."""
        return self._zones

    @property
    def under_way(self) -> tuple[ImageAction, ...]:
        """Actions that were begun and have not ended, oldest first."""
        return tuple(self._tasks.values())

    def begin(self, actions: Sequence[ImageAction]) -> None:
        """Carry a plan's actions out in the background; one that is under way already is not begun again."""
        for action in actions:
            if any(_same(action, other) for other in self._tasks.values()):
                continue
            if len(self._tasks) >= ACTIONS_MAX:
                self._done(action, error=f"not begun: {ACTIONS_MAX} image actions are under way")
                continue
            task = asyncio.create_task(self._carry_out(action))
            self._tasks[task] = action
            task.add_done_callback(self._tasks.pop)

    async def close(self) -> None:
        """Break off what is under way; what was copied so far stays, and a repetition goes on from there."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry_out(self, action: ImageAction) -> None:
        error = ""
        for attempt in range(TRIES_MAX):
            if attempt:
                await self._clock.sleep(PAUSE_S * 2 ** (attempt - 1))
            try:
                self._done(action, await self._do(action))
            except SpringtideError as failure:
                error = str(failure)
            else:
                return
        self._done(action, error=error)

    async def _do(self, action: ImageAction) -> int:
        match action:
            case WarmImage():
                return (await self.warm(action.zone, action.reference)).copied_bytes
            case PrefetchImage():
                await self.prefetch(action.zone, action.engine, action.reference)
                return 0
            case CollectImages():
                return await self.gc(action.zone, action.keep)
            case PruneImages():
                engine = self._zone(action.zone).engines.get(action.engine)
                if engine is not None:
                    await engine.remove(action.references)
                return 0

    def _done(self, action: ImageAction, moved_bytes: int = 0, error: str = "") -> None:
        self._record(ImageOutcome(self._clock.now_ms(), action, moved_bytes, error))

    def _zone(self, zone: str) -> ImageZone:
        if zone not in self._zones:
            raise ImageError(
                f"there is no zone {zone!r} with an image cache; there is {', '.join(sorted(self._zones)) or 'none'}"
            )
        return self._zones[zone]


def _same(one: ImageAction, other: ImageAction) -> bool:
    """Whether doing both would do the same work twice: the reason and the moment do not matter."""
    return _work(one) == _work(other)


def _work(action: ImageAction) -> ImageAction:
    if isinstance(action, WarmImage | PrefetchImage):
        return msgspec.structs.replace(action, reason="", by_ms=0)
    return msgspec.structs.replace(action, reason="")
