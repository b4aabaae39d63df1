"""An image cache that is a registry in the zone: filled by one copy over the line, read by engines by digest."""

import asyncio
from collections.abc import Collection
from typing import Protocol

import msgspec

from springtide.drivers.registry_client import RegistryClient
from springtide.drivers.registry_copy import Copier, CopySettings, images_of
from springtide.errors import ImageError, ImageUnavailable
from springtide.model import CachedImage, ImageName, ImageTransfer
from springtide.ports import Clock

COLLECT_WAIT_S_MAX = 600.0
"""How long a collection waits for the copies that are under way."""

USED_MAX = 10_000
"""References whose last use is remembered."""

_DIGEST_TAG = "digest-"


class Garbage(Protocol):
    """What deletes the garbage of a registry, such as `EmbeddedRegistry.collect_garbage`."""

    async def __call__(self, *, untagged: bool = True) -> int:
        """The bytes that became free. `untagged`: manifests without a tag are garbage, too."""


class RegistryImageCache:
    """`ports.ImageCache` over two registries: `origin` across the line, `cache` in the zone."""

    def __init__(
        self,
        origin: str,
        cache: str,
        clock: Clock,
        *,
        pull_address: str = "",
        settings: CopySettings | None = None,
        garbage: Garbage | None = None,
    ) -> None:
        """`origin` and `cache` are `HOST:PORT` as we reach them, `pull_address` the cache's as the engines do.

        Both may be the same: a zone beside the origin needs no copy. Without `garbage`, `collect` deletes images but
        frees nothing: whoever runs that registry collects its garbage.
        """
        self._origin = RegistryClient(origin)
        self._cache = RegistryClient(cache)
        self._address = pull_address or cache
        self._clock = clock
        self._copier = Copier(self._origin, self._cache, clock, settings or CopySettings())
        self._garbage = garbage
        self._copies: dict[str, asyncio.Task[ImageTransfer]] = {}
        self._collecting = asyncio.Lock()
        self._one_collection = asyncio.Lock()
        self._copied_since: set[str] = set()
        self._copying = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._used_ms: dict[str, int] = {}

    async def warm(self, reference: str) -> ImageTransfer:
        """Copy an image over the line, once; whoever asks meanwhile waits for that copy.

        While the origin does not answer, an image that is here counts as warm. Raises ImageUnavailable, ImageError.
        """
        image = parse(reference)
        joined = image.reference in self._copies
        if not joined:
            task = asyncio.create_task(self._warm(image))
            self._copies[image.reference] = task
            task.add_done_callback(lambda done: self._copied(image.reference, done))
        # The copy goes on for the others, and for the next time, when one caller gives up.
        transfer = await asyncio.shield(self._copies[image.reference])
        return msgspec.structs.replace(transfer, copied_bytes=0) if joined else transfer

    async def reference(self, reference: str) -> str:
        """`ADDRESS/NAME@DIGEST`. Raises ImageError when the image is not here, ImageUnavailable without an answer."""
        image = parse(reference)
        digest = await self._cache.digest(image.name, image.version)
        if digest is None:
            raise ImageError(f"the cache {self._cache.url} has no image {reference}: warm it (`springtide image warm`)")
        self._use(image)
        return f"{self._address}/{image.name}@{digest}"

    async def images(self) -> list[CachedImage]:
        """What the cache holds; the size of an image that cannot be read is 0."""
        found = []
        async for name, tag, digest, manifest in images_of(self._cache):
            reference = _reference(name, tag)
            size = manifest.size_bytes if manifest else 0
            found.append(CachedImage(reference, digest, size, self._used_ms.get(reference, 0)))
        return found

    async def collect(self, keep: Collection[str]) -> int:
        """Delete all images but these; the bytes that became free.

        It begins when nothing is copied; what was copied since the call stays, and copies that come while it runs wait
        for it. Copies by others may be cut off; they go on with what is missing. Raises ImageUnavailable when there are
        always copies, ImageError.
        """
        kept = {_key(parse(reference)) for reference in keep}
        async with self._one_collection:
            until_s = self._clock.monotonic_s() + COLLECT_WAIT_S_MAX
            self._copied_since = {_key(parse(reference)) for reference in self._copies}
            try:
                while True:
                    await self._copies_ended(until_s)
                    async with self._collecting:
                        if not self._copying:
                            return await self._collect(kept | self._copied_since)
            finally:
                self._copied_since = set()

    async def close(self) -> None:
        """Break off what is under way, and close connections."""
        copies = list(self._copies.values())
        for task in copies:
            task.cancel()
        await asyncio.gather(*copies, return_exceptions=True)
        await self._origin.close()
        await self._cache.close()

    async def _collect(self, kept: set[str]) -> int:
        found = [entry async for entry in images_of(self._cache)]
        stays = [each for each in found if _reference(each[0], each[1]) in kept]
        needed = {(name, digest) for name, _, digest, _ in stays}
        needed |= {(name, part) for name, _, _, manifest in stays if manifest for _, part in manifest.images}
        for name, digest in sorted({(name, digest) for name, _, digest, _ in found} - needed):
            await self._cache.delete_manifest(name, digest)
        self._copier.forget()
        lists = any(manifest and manifest.images for _, _, _, manifest in found)
        return await self._garbage(untagged=not lists) if self._garbage else 0

    async def _warm(self, image: ImageName) -> ImageTransfer:
        async with self._collecting:  # one that has begun ends first
            self._copying += 1
            self._idle.clear()
            if self._one_collection.locked():
                self._copied_since.add(_key(image))
        began_s = self._clock.monotonic_s()
        try:
            digest, moved = await self._copy(image)
        finally:
            self._copying -= 1
            if not self._copying:
                self._idle.set()
        self._use(image)
        return ImageTransfer(image.reference, digest, moved, self._clock.monotonic_s() - began_s)

    async def _copy(self, image: ImageName) -> tuple[str, int]:
        """The digest, and the bytes that moved."""
        if self._origin.url == self._cache.url:
            digest = await self._cache.digest(image.name, image.version)
            if digest is None:
                raise ImageError(f"{self._cache.url} has no image {image.reference}: push it (`springtide image push`)")
            return digest, 0
        try:
            manifest = await self._copier.find(image)
        except ImageUnavailable:
            digest = await self._cache.digest(image.name, image.version)
            if digest is None:
                raise
            return digest, 0
        return manifest.digest, await self._copier.copy(image, _tag(image), manifest)

    def _copied(self, reference: str, task: asyncio.Task[ImageTransfer]) -> None:
        del self._copies[reference]
        if not task.cancelled():
            task.exception()  # whoever waited has it; without anybody waiting it is no accident

    async def _copies_ended(self, until_s: float) -> None:
        try:
            async with self._clock.timeout(until_s - self._clock.monotonic_s()):
                await self._idle.wait()
        except TimeoutError as error:
            raise ImageUnavailable(
                f"there have been copies into {self._cache.url} for {COLLECT_WAIT_S_MAX:.0f} s: collect later"
            ) from error

    def _use(self, image: ImageName) -> None:
        self._used_ms.pop(_key(image), None)
        self._used_ms[_key(image)] = self._clock.now_ms()
        if len(self._used_ms) > USED_MAX:
            del self._used_ms[next(iter(self._used_ms))]


def parse(reference: str) -> ImageName:
    """Read a reference. Raises ImageError."""
    try:
        return ImageName.parse(reference)
    except ValueError as error:
        raise ImageError(str(error)) from error


def _key(image: ImageName) -> str:
    return f"{image.name}@{image.digest}" if image.digest else image.reference


def _tag(image: ImageName) -> str:
    """The tag in the cache. An image without one needs one there: what has no tag is garbage."""
    return _DIGEST_TAG + image.digest.removeprefix("sha256:") if image.digest else image.tag


def _reference(name: str, tag: str) -> str:
    """The reference that has this tag in the cache."""
    return f"{name}@sha256:{tag.removeprefix(_DIGEST_TAG)}" if tag.startswith(_DIGEST_TAG) else f"{name}:{tag}"
