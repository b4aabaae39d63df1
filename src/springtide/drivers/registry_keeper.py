"""Keeps an embedded registry in order: started again when it died, its garbage collected after images were deleted.

Deleting is an ordinary call that anybody may make from afar; the room comes back only to whoever runs the registry.
"""

import contextlib
from asyncio import to_thread
from pathlib import Path

from springtide.drivers.embedded_registry import IMAGES, EmbeddedRegistry
from springtide.drivers.registry_client import RegistryClient
from springtide.drivers.registry_copy import images_of
from springtide.errors import EngineError, ImageError
from springtide.ports import Clock

WATCH_S = 1.0
"""How often it is looked whether the registry runs."""

RESTART_PAUSE_S_MAX = 30.0
"""The longest pause between two starts; it doubles from WATCH_S on."""

GARBAGE_EVERY_S = 60.0
"""How often it is looked whether images were deleted."""

QUIET_S = 20.0
"""A collection waits until no upload has moved for so long, …"""

WAIT_S_MAX = 3600.0
"""… but no longer than this: an upload that is cut off then begins anew."""


class RegistryKeeper:
    """Looks after one registry until it is cancelled; `freed_bytes` is what its collections have brought so far."""

    def __init__(self, registry: EmbeddedRegistry, clock: Clock, garbage_every_s: float = GARBAGE_EVERY_S) -> None:
        """The registry runs already."""
        self.freed_bytes = 0
        self.collections = 0
        self._registry = registry
        self._clock = clock
        self._every_s = garbage_every_s
        self._known: frozenset[str] | None = None
        self._due_since_s: float | None = None

    async def run(self) -> None:
        """Look after it for ever. What fails is tried again at the next look."""
        pause_s, next_s = WATCH_S, self._clock.monotonic_s()
        while True:
            if self._registry.child.returncode is None:
                pause_s = WATCH_S
                if self._clock.monotonic_s() >= next_s:
                    next_s = self._clock.monotonic_s() + self._every_s
                    with contextlib.suppress(ImageError, EngineError, OSError):
                        await self.collect_if_due()
            else:
                pause_s = min(2 * pause_s, RESTART_PAUSE_S_MAX)
                with contextlib.suppress(EngineError):
                    await self._registry.revive()
            await self._clock.sleep(pause_s)

    async def collect_if_due(self) -> int:
        """Collect when images were deleted since the last time and no upload moves; the bytes that became free."""
        folder = self._registry.folder
        images = await to_thread(_images, folder)
        if self._known is not None and not self._known <= images and self._due_since_s is None:
            self._due_since_s = self._clock.monotonic_s()
        self._known = images
        if self._due_since_s is None:
            return 0
        moved_ms = await to_thread(_upload_moved_ms, folder)
        busy = self._clock.now_ms() - moved_ms < QUIET_S * 1000
        if busy and self._clock.monotonic_s() - self._due_since_s < WAIT_S_MAX:
            return 0
        freed = await self._registry.collect_garbage(untagged=not await self._has_lists())
        self._due_since_s = None
        self._known = await to_thread(_images, folder)
        self.freed_bytes += freed
        self.collections += 1
        return freed

    async def _has_lists(self) -> bool:
        """Whether there are images for several machine types: their parts have no tag, and are no garbage."""
        client = RegistryClient(self._registry.address)
        try:
            return any([manifest and manifest.images async for _, _, _, manifest in images_of(client)])
        finally:
            await client.close()


def _images(folder: Path) -> frozenset[str]:
    """The manifests that repositories name; a deleted one loses its link at once."""
    links = (folder / IMAGES / "repositories").glob("**/_manifests/revisions/sha256/*/link")
    return frozenset(str(link) for link in links)


def _upload_moved_ms(folder: Path) -> int:
    """When an upload that has not ended got its last bytes; 0 without one."""
    moved = 0
    for data in (folder / IMAGES / "repositories").glob("**/_uploads/*/data"):
        with contextlib.suppress(FileNotFoundError):
            moved = max(moved, data.stat().st_mtime_ns // 1_000_000)
    return moved
