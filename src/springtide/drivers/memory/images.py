"""Image caches and engines in memory: layers over a line whose bandwidth takes the clock's time."""

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping

import msgspec

from springtide.errors import ImageError, ImageUnavailable
from springtide.model import CachedImage, EngineImage, ImageName, ImageTransfer
from springtide.ports import Clock, ImageCache


class MemoryImage(msgspec.Struct, frozen=True):
    """An image: its digest, and the bytes of its layers by their digest."""

    digest: str
    layers: Mapping[str, int]

    @property
    def size_bytes(self) -> int:
        """What a pull transfers."""
        return sum(self.layers.values())


class MemoryOrigin:
    """Where images come from: `images` by reference. While it is not `up`, nothing can be copied."""

    def __init__(self) -> None:
        """Nothing was pushed yet."""
        self.images: dict[str, MemoryImage] = {}
        self.up = True

    def push(self, reference: str, image: MemoryImage) -> None:
        """Put an image there."""
        self.images[_parse(reference).reference] = image

    def find(self, reference: str) -> MemoryImage:
        """By tag or digest. Raises ImageUnavailable while it is down, ImageError when there is none."""
        if not self.up:
            raise ImageUnavailable("the origin does not answer; repeat it")
        wanted = _parse(reference)
        for known, image in self.images.items():
            if _matches(wanted, known, image):
                return image
        raise ImageError(f"the origin has no image {reference}: push it")


class MemoryImageCache:
    """`ports.ImageCache`. The line moves `bytes_per_s` (0: at once), one layer after the other."""

    def __init__(self, origin: MemoryOrigin, clock: Clock, *, address: str = "cache", bytes_per_s: float = 0.0) -> None:
        """An empty cache. `copied_bytes` counts what crossed the line; `up` says whether it answers."""
        self.copied_bytes = 0
        self.up = True
        self._origin = origin
        self._clock = clock
        self._address = address
        self._bytes_per_s = bytes_per_s
        self._line = asyncio.Lock()
        self._layers: dict[str, int] = {}
        self._images: dict[str, MemoryImage] = {}
        self._used_ms: dict[str, int] = {}
        self._copying: Counter[str] = Counter()

    async def warm(self, reference: str) -> ImageTransfer:
        """Copy the layers that are not here; a layer that is moving is waited for."""
        self._answer()
        name = _key(_parse(reference))
        began_s = self._clock.monotonic_s()
        moved = 0
        self._copying[name] += 1
        try:
            async with self._line:
                if self._origin.up or name not in self._images:
                    image = self._origin.find(reference)
                    for layer, size in image.layers.items():
                        moved += await self._move(layer, size)
                    self._images[name] = image
                self._used_ms[name] = self._clock.now_ms()
                digest = self._images[name].digest
        finally:
            self._copying -= Counter([name])
        return ImageTransfer(reference, digest, moved, self._clock.monotonic_s() - began_s)

    async def reference(self, reference: str) -> str:
        """What a node pulls: this cache's address and the digest."""
        self._answer()
        wanted = _parse(reference)
        for known, image in self._images.items():
            if _matches(wanted, known, image):
                self._used_ms[known] = self._clock.now_ms()
                return f"{self._address}/{wanted.name}@{image.digest}"
        raise ImageError(f"the cache has no image {reference}: warm it")

    async def images(self) -> list[CachedImage]:
        """What the cache holds."""
        self._answer()
        return [
            CachedImage(name, image.digest, image.size_bytes, self._used_ms.get(name, 0))
            for name, image in self._images.items()
        ]

    async def collect(self, keep: Collection[str]) -> int:
        """Delete all but these, and the layers that nothing needs any more."""
        self._answer()
        kept = {_key(_parse(reference)) for reference in keep} | set(self._copying)
        async with self._line:
            digests = {(_parse(name).name, image.digest) for name, image in self._images.items() if name in kept}
            self._images = {
                name: image for name, image in self._images.items() if (_parse(name).name, image.digest) in digests
            }
            needed = {layer for image in self._images.values() for layer in image.layers}
            return sum(self._layers.pop(layer) for layer in list(self._layers) if layer not in needed)

    async def close(self) -> None:
        """Nothing is open."""

    async def _move(self, layer: str, size: int) -> int:
        if layer in self._layers:
            return 0
        if self._bytes_per_s:
            await self._clock.sleep(size / self._bytes_per_s)
        self._answer()
        self._layers[layer] = size
        self.copied_bytes += size
        return size

    def _answer(self) -> None:
        if not self.up:
            raise ImageUnavailable("the cache does not answer; repeat it")


class MemoryImageEngine:
    """`ports.ImageEngine` that pulls from a cache; a pull takes `pull_s`. `origin` is asked while the cache is down."""

    def __init__(
        self, cache: ImageCache, clock: Clock, *, pull_s: float = 0.0, origin: MemoryOrigin | None = None
    ) -> None:
        """An engine without images. `running` are the references that a container was made of."""
        self.running: set[str] = set()
        self.pulls = 0
        self._cache = cache
        self._clock = clock
        self._pull_s = pull_s
        self._origin = origin
        self._have: dict[str, EngineImage] = {}
        self._pulling = asyncio.Lock()

    async def ensure(self, reference: str) -> str:
        """Have the image; what to run."""
        name = _parse(reference).reference
        async with self._pulling:
            if name not in self._have:
                await self._pull(name)
                self._have[name] = EngineImage(name, name, 0, self._clock.now_ms())
        return name

    async def images(self) -> list[EngineImage]:
        """What the engine has, the newest first."""
        found = [msgspec.structs.replace(image, in_use=name in self.running) for name, image in self._have.items()]
        return sorted(found, key=lambda image: (-image.created_ms, image.reference))

    async def remove(self, references: Collection[str]) -> int:
        """Remove those that no container was made of."""
        gone = [name for name in self._have if name in references and name not in self.running]
        for name in gone:
            del self._have[name]
        return len(gone)

    async def close(self) -> None:
        """Nothing is open."""

    async def _pull(self, name: str) -> None:
        self.pulls += 1
        try:
            await self._cache.warm(name)
        except ImageUnavailable:
            if self._origin is None:
                raise
            self._origin.find(name)
        await self._clock.sleep(self._pull_s)


def _parse(reference: str) -> ImageName:
    try:
        return ImageName.parse(reference)
    except ValueError as error:
        raise ImageError(str(error)) from error


def _key(image: ImageName) -> str:
    return f"{image.name}@{image.digest}" if image.digest else image.reference


def _matches(wanted: ImageName, known: str, image: MemoryImage) -> bool:
    """Whether `known` is what is wanted: by its digest under the same name, else by its tag."""
    if wanted.digest:
        return image.digest == wanted.digest and _parse(known).name == wanted.name
    return known == wanted.reference
