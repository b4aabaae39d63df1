"""Puts a built image into a registry: from a `docker save` archive, or straight from an engine, whatever its network.

`docker push` would need an engine that reaches the registry under an address it trusts; an archive needs neither.
"""

import asyncio
import hashlib
import tarfile
import tempfile
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

import aiodocker
import msgspec

from springtide.drivers.registry import parse
from springtide.drivers.registry_client import RegistryClient
from springtide.drivers.registry_engine import docker_errors
from springtide.drivers.registry_manifest import Blob, compose, digest_of
from springtide.errors import ImageError, ImageUnavailable
from springtide.model import ImageName, ImageTransfer
from springtide.ports import Clock

EXPORT_S_MAX = 1800.0
TRIES = 6
PAUSE_S = 1.0
"""The pause after the first try, which doubles: half a minute in all, as long as a collection of garbage may take."""


_PIECE = 1024 * 1024
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_LEVEL = 1  # a quarter of the time of the default, for some per cent more bytes
_GZIP_WINDOW = 31  # zlib(3): the largest window, and gzip's header, which has no time in it: the digest is stable


async def push_image(docker: aiodocker.Docker, origin: str, reference: str, clock: Clock) -> ImageTransfer:
    """Push an image from an engine into the registry at `HOST:PORT`. Layers that are there do not move.

    Raises ImageError when the engine has no such image, ImageUnavailable when one of the two does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="springtide-push-") as folder:
        archive = Path(folder) / "image.tar"
        with docker_errors(f"save {reference}"):
            async with clock.timeout(EXPORT_S_MAX):
                await _save(docker, reference, archive)
        return await push_archive(archive, origin, reference, clock)


async def push_archive(archive: Path, origin: str, reference: str, clock: Clock) -> ImageTransfer:
    """Push the one image in a `docker save` archive under this reference. Raises ImageError, ImageUnavailable."""
    name = parse(reference)
    if name.digest:
        raise ImageError(f"an image is pushed under a tag; {reference} names a digest, which follows from its content")
    began_s = clock.monotonic_s()
    registry = RegistryClient(origin)
    try:
        push = _Push(registry, name, clock)
        with tarfile.open(archive) as tar:
            digest = await push.archive(tar)
    except (OSError, tarfile.TarError, KeyError, LookupError, msgspec.DecodeError, ValueError, TypeError) as error:
        raise ImageError(f"{archive} is no image archive: make it with `docker save` ({error!r})") from error
    finally:
        await registry.close()
    return ImageTransfer(name.reference, digest, push.moved, clock.monotonic_s() - began_s)


class _Push:
    """One push; `moved` bytes were sent so far."""

    def __init__(self, registry: RegistryClient, name: ImageName, clock: Clock) -> None:
        self._registry = registry
        self._name = name
        self._clock = clock
        self.moved = 0

    async def archive(self, tar: tarfile.TarFile) -> str:
        """The digest of the image."""
        images = msgspec.json.decode(_member(tar, "manifest.json").read(), type=list[dict[str, Any]])
        if len(images) != 1:
            raise ImageError(f"the archive has {len(images)} images: save one")
        config = _member(tar, images[0]["Config"]).read()
        layers = images[0]["Layers"]
        contents = msgspec.json.decode(config, type=dict[str, Any])["rootfs"]["diff_ids"]
        if len(contents) != len(layers):
            raise ImageError("the archive's layers are not those of its configuration: save the image again")
        blobs = [await self._layer(tar, layer, content) for layer, content in zip(layers, contents, strict=True)]
        with tempfile.TemporaryFile() as file:
            file.write(config)
            blob = Blob(digest_of(config), len(config))
            await self._send(blob, file)
        manifest = compose(blob, blobs)
        if not await self._registry.put_manifest(self._name.name, self._name.tag, manifest):
            raise ImageUnavailable("layers were deleted by a collection while the image was pushed; repeat it")
        return manifest.digest

    async def _layer(self, tar: tarfile.TarFile, layer: str, content: str) -> Blob:
        """Send a layer, unless it is there; `content` is the digest of it unpacked, which is verified."""
        with tempfile.TemporaryFile() as file:
            blob = await asyncio.to_thread(_compress, _member(tar, layer), file, content)
            await self._send(blob, file)
        return blob

    async def _send(self, blob: Blob, file: IO[bytes]) -> None:
        for attempt in range(TRIES):
            try:
                if await self._registry.blob_size(self._name.name, blob.digest) is None:
                    location = await self._registry.begin_upload(self._name.name, blob.digest)
                    if location is not None:
                        await self._registry.upload(location, blob.digest, blob.size, self._pieces(file))
            except ImageUnavailable:
                if attempt == TRIES - 1:
                    raise
                await self._clock.sleep(PAUSE_S * 2**attempt)
            else:
                return

    async def _pieces(self, file: IO[bytes]) -> AsyncIterator[bytes]:
        file.seek(0)
        while piece := await asyncio.to_thread(file.read, _PIECE):
            self.moved += len(piece)
            yield piece


async def _save(docker: aiodocker.Docker, reference: str, archive: Path) -> None:
    with await asyncio.to_thread(archive.open, "wb") as file:
        async with docker.images.export_image(reference) as content:
            async for piece in content.iter_chunked(_PIECE):
                await asyncio.to_thread(file.write, piece)


def _member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    file = tar.extractfile(name)
    if file is None:
        raise ImageError(f"the archive's member {name} is no file: save the image again")
    return file


def _compress(source: IO[bytes], target: IO[bytes], content: str) -> Blob:
    """Gzip a layer, or take it as it is when it was gzipped already."""
    gzip, sent, size = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW), hashlib.sha256(), 0
    first = source.read(_PIECE)
    packed = first.startswith(_GZIP_MAGIC)
    unpack, unpacked = zlib.decompressobj(_GZIP_WINDOW), hashlib.sha256()
    piece = first
    while piece:
        unpacked.update(unpack.decompress(piece) if packed else piece)
        out = piece if packed else gzip.compress(piece)
        sent.update(out)
        size += target.write(out)
        piece = source.read(_PIECE)
    if not packed:
        out = gzip.flush()
        sent.update(out)
        size += target.write(out)
    if f"sha256:{unpacked.hexdigest()}" != content:
        raise ImageError(f"a layer of the archive is damaged: it should be {content}; save the image again")
    return Blob(f"sha256:{sent.hexdigest()}", size)
