"""Copies images from one registry into another, each layer once: what is there, or under way, does not move again."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

import msgspec

from springtide.drivers.registry_client import RegistryClient
from springtide.drivers.registry_manifest import Blob, Manifest, this_machine
from springtide.errors import ImageError, ImageUnavailable
from springtide.model import ImageName
from springtide.ports import Clock

IMAGES_MAX = 10_000
"""Images of a registry that are looked through for a layer that can be taken over."""

AT_ONCE = 8
"""Questions to a registry that are open at once while its images are listed."""

ROUNDS_MAX = 3
"""How often a copy begins anew because a collection deleted layers of it before their manifest came."""


_T = TypeVar("_T")


class CopySettings(msgspec.Struct, frozen=True):
    """Limits of copying: layers at once, tries of each (the pause doubles), and bytes/s of the line (0: no limit)."""

    layers_at_once: int = 3
    tries: int = 6
    pause_s: float = 0.5
    bytes_per_s: float = 0.0


class Rate:
    """A limit of bytes/s over everything that passes; each taker waits its turn."""

    def __init__(self, clock: Clock, bytes_per_s: float) -> None:
        """0 is no limit."""
        self._clock = clock
        self._bytes_per_s = bytes_per_s
        self._free_at_s = 0.0

    async def pass_by(self, size: int) -> None:
        """Wait until so many bytes have had their time."""
        if self._bytes_per_s <= 0:
            return
        now_s = self._clock.monotonic_s()
        self._free_at_s = max(now_s, self._free_at_s) + size / self._bytes_per_s
        await self._clock.sleep(self._free_at_s - now_s)


class Copier:
    """Copies from `source` to `target`. Calls may run at once; layers that images share move once."""

    def __init__(self, source: RegistryClient, target: RegistryClient, clock: Clock, settings: CopySettings) -> None:
        """Nothing is asked before the first copy."""
        self._source = source
        self._target = target
        self._clock = clock
        self._settings = settings
        self._rate = Rate(clock, settings.bytes_per_s)
        self._slots = asyncio.Semaphore(settings.layers_at_once)
        self._moving: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._holders: dict[str, str] | None = None

    async def copy(self, image: ImageName, tag: str, manifest: Manifest) -> int:
        """Copy an image, its manifest last, so that what the target names is whole; how many bytes moved for that.

        They include those of failed tries. Raises ImageUnavailable when a registry does not answer after some tries
        (what is copied stays), ImageError when a digest is wrong, or the target's disk is full.
        """
        moved = 0
        for _ in range(ROUNDS_MAX):
            moved += sum(await _all(self._blob(image.name, blob) for blob in manifest.blobs))
            if await self._again(lambda: self._target.put_manifest(image.name, tag, manifest)):
                return moved
            self._holders = None
        raise ImageUnavailable(f"{image.reference} lost layers to a collection while it was copied; repeat it")

    def forget(self) -> None:
        """The target deleted images: what it has must be asked anew."""
        self._holders = None

    async def find(self, image: ImageName) -> Manifest:
        """The source's image for this machine's type: of a list of several, the others need not cross the line.

        Raises ImageUnavailable, or ImageError when the source has no such image.
        """
        version = image.version
        for _ in range(2):
            found = await self._again(partial(self._source.manifest, image.name, version))
            if found is None:
                raise ImageError(
                    f"the registry {self._source.url} has no image {image.reference}: push it "
                    f"(`springtide image push {image.reference}`)"
                )
            if not found.images:
                return found
            version = found.image_for(this_machine())
        raise ImageError(f"{image.reference} is a list of lists, which is not handled: push a plain image")

    async def _blob(self, name: str, blob: Blob) -> int:
        """Have a blob in the target; how many bytes moved for that."""
        moved = _Count()
        lock = self._moving.setdefault(blob.digest, asyncio.Lock())
        async with lock:
            await self._again(lambda: self._blob_once(name, blob, moved))
        return moved.bytes

    async def _blob_once(self, name: str, blob: Blob, moved: "_Count") -> None:
        size = await self._target.blob_size(name, blob.digest)
        if size == blob.size:
            return
        if size is not None:
            raise ImageError(
                f"layer {blob.digest} of {name} at {self._target.url} is damaged ({size} of {blob.size} bytes): delete "
                "the image there (`springtide image gc`), then repeat it"
            )
        lender = (await self._lenders()).get(blob.digest, "")
        async with self._slots:
            location = await self._target.begin_upload(name, blob.digest, lender if lender != name else "")
            if location is not None:
                chunks = self._metered(self._source.blob(name, blob.digest, blob.size), moved)
                try:
                    async with contextlib.aclosing(chunks):
                        await self._target.upload(location, blob.digest, blob.size, chunks)
                except ImageError:
                    # What it has of the upload takes room, and cannot be gone on with.
                    await self._target.cancel_upload(location)
                    raise
        (await self._lenders())[blob.digest] = name

    async def _metered(self, chunks: AsyncGenerator[bytes, None], moved: "_Count") -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                await self._rate.pass_by(len(chunk))
                moved.bytes += len(chunk)
                yield chunk

    async def _lenders(self) -> dict[str, str]:
        """A repository of the target that has a blob, by digest: the target can take it over from there."""
        if self._holders is None:
            self._holders = await self._scan()
        return self._holders

    async def _scan(self) -> dict[str, str]:
        holders: dict[str, str] = {}
        async for name, _, _, manifest in images_of(self._target):
            holders.update({blob.digest: name for blob in (manifest.blobs if manifest else ())})
        return holders

    async def _again(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Call, and call again after a pause while a registry does not answer."""
        for attempt in range(self._settings.tries - 1):
            try:
                return await call()
            except ImageUnavailable:
                await self._clock.sleep(self._settings.pause_s * 2**attempt)
        return await call()


class _Count:
    def __init__(self) -> None:
        self.bytes = 0


async def images_of(registry: RegistryClient) -> AsyncGenerator[tuple[str, str, str, Manifest | None], None]:
    """Every tagged image: name, tag, digest and manifest; None for one that cannot be read."""
    count = 0
    for name in await registry.names():
        tags = await registry.tags(name)
        count += len(tags)
        if count > IMAGES_MAX:
            raise ImageError(f"{registry.url} has more than {IMAGES_MAX} images: collect what is not needed")
        for at in range(0, len(tags), AT_ONCE):
            some = tags[at : at + AT_ONCE]
            for tag, (digest, manifest) in zip(
                some, await _all(_look(registry, name, tag) for tag in some), strict=True
            ):
                if digest is not None:
                    yield name, tag, digest, manifest


async def _look(registry: RegistryClient, name: str, tag: str) -> tuple[str | None, Manifest | None]:
    digest = await registry.digest(name, tag)
    try:
        return digest, await registry.manifest(name, digest) if digest else None
    except ImageUnavailable:
        raise
    except ImageError:
        return digest, None


async def _all(calls: Iterable[Awaitable[_T]]) -> list[_T]:
    """Run all to their end, then raise the first error: what the others copied need not move again."""
    done = await asyncio.gather(*calls, return_exceptions=True)
    for each in done:
        if isinstance(each, BaseException):
            raise each
    return [each for each in done if not isinstance(each, BaseException)]
