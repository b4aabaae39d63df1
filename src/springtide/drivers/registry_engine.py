"""The images of one Docker Engine: pulled from the zone's cache by digest when needed, removed when they are not.

An image that is there is taken as it is, and nobody is asked: containers start while every registry is down. A tag
therefore has to mean one image for ever, as the tags of `springtide image build` do.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from typing import Any

import aiodocker
import aiohttp

from springtide.drivers.registry import parse
from springtide.errors import ImageError, ImageUnavailable
from springtide.model import EngineImage, ImageName
from springtide.ports import Clock, ImageCache

PULL_S_MAX = 1800.0
CACHE_TRIES = 3
CACHE_PAUSE_S = 0.5
"""The pause after the first try of the cache, which doubles: it is away for a moment while its garbage is collected."""

CALL_S_MAX = 30.0
_NOT_FOUND = 404
_CONFLICT = 409
_NO_ENGINE = 900  # what aiodocker says when it cannot connect

_NO_ANSWER = ("connection refused", "connection reset", "EOF", "i/o timeout", "no route to host", "Client.Timeout")
"""How an engine says that a registry did not answer (Go's errors of package net)."""

Locate = Callable[[str], Awaitable[str]]
"""A reference → what an engine pulls for it. Raises ImageError."""


class DockerImages:
    """`ports.ImageEngine` on a Docker Engine. Its `ensure` is called before a container is made."""

    def __init__(
        self,
        docker: aiodocker.Docker,
        cache: ImageCache,
        clock: Clock,
        *,
        origin: Locate | None = None,
        pulls: asyncio.Semaphore | None = None,
    ) -> None:
        """Where the engine's images come from; `docker` stays its owner's to close.

        `origin` (such as `RegistryImageCache.reference` of the origin) is pulled from over the line while the cache
        fails; None forbids that. `pulls` bounds how many engines of a zone pull at once; share it among them.
        """
        self._docker = docker
        self._cache = cache
        self._clock = clock
        self._origin = origin
        self._pulls = pulls or asyncio.Semaphore()
        self._under_way: dict[str, asyncio.Task[str]] = {}

    async def ensure(self, reference: str) -> str:
        """Have the image on the engine; what to run. A cold cache gets it first, by one copy, for all its engines.

        Raises ImageUnavailable when neither the cache nor, where it is allowed, the origin answers, or the engine does
        not; ImageError when there is no such image.
        """
        image = parse(reference)
        if found := await self._local(image):
            return found
        if reference not in self._under_way:
            task = asyncio.create_task(self._fetch(image))
            self._under_way[reference] = task
            task.add_done_callback(lambda done: self._ended(reference, done))
        # The pull goes on for the others, and for the next time, when one caller gives up.
        return await asyncio.shield(self._under_way[reference])

    async def images(self) -> list[EngineImage]:
        """What the engine has under a name, the newest first."""
        with docker_errors("list its images"):
            async with self._clock.timeout(CALL_S_MAX):
                images: Sequence[dict[str, Any]] = await self._docker.images.list()
                used = {container["ImageID"] for container in await self._docker.containers.list(all="true")}
        found = [
            EngineImage(tag, image["Id"], image["Size"], image["Created"] * 1000, image["Id"] in used)
            for image in images
            for tag in image["RepoTags"] or ()
            if tag != "<none>:<none>"
        ]
        return sorted(found, key=lambda image: (-image.created_ms, image.reference))

    async def remove(self, references: Collection[str]) -> int:
        """Remove images; how many names are gone. What a container is made of stays, also when it is stopped."""
        gone = 0
        for image in await self.images():
            if image.reference in references and not image.in_use and await self._remove(image.reference):
                gone += 1
                await self._remove_rest(image.image_id)
        return gone

    async def close(self) -> None:
        """Give up what is being pulled. The connection to the engine is its owner's to close."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _local(self, image: ImageName) -> str:
        """What to run when the engine has it; else ""."""
        with docker_errors("look for an image"):
            async with self._clock.timeout(CALL_S_MAX):
                if image.digest:
                    return await self._by_digest(f"{image.name}@{image.digest}")
                return image.reference if await self._inspect(image.reference) else ""

    async def _by_digest(self, wanted: str) -> str:
        """The engine knows digests only together with the registry they were pulled from."""
        for each in await self._docker.images.list(digests="true"):
            for known in each["RepoDigests"] or ():
                if known == wanted or known.partition("/")[2] == wanted:
                    return str(known)
        return ""

    async def _fetch(self, image: ImageName) -> str:
        reference, failures = image.reference, list[ImageError]()
        for locate, tries in ((self._from_cache, CACHE_TRIES), (self._origin, 1)):
            if locate is None:
                continue
            try:
                pulled = await self._pulled(locate, reference, tries)
            except ImageError as error:
                failures.append(error)
            else:
                return await self._named(image, pulled)
        kind = ImageUnavailable if isinstance(failures[-1], ImageUnavailable) else ImageError
        raise kind(
            f"{reference} cannot be had: {'; then: '.join(map(str, failures))}"
            + ("" if self._origin else "; pulling from the origin instead is not allowed here")
        )

    async def _pulled(self, locate: Locate, reference: str, tries: int) -> str:
        """What was pulled. Only what did not answer is tried again."""
        for attempt in range(tries):
            try:
                pulled = await locate(reference)
                async with self._pulls:
                    await self._pull(pulled)
            except ImageUnavailable:
                if attempt == tries - 1:
                    raise
                await self._clock.sleep(CACHE_PAUSE_S * 2**attempt)
            else:
                return pulled
        raise ImageUnavailable(f"{reference} was not tried")

    async def _from_cache(self, reference: str) -> str:
        try:
            return await self._cache.reference(reference)
        except ImageUnavailable:
            raise
        except ImageError:
            await self._cache.warm(reference)
            return await self._cache.reference(reference)

    async def _pull(self, source: str) -> None:
        with docker_errors(f"pull {source}"):
            async with self._clock.timeout(PULL_S_MAX):
                await self._docker.images.pull(source)

    async def _named(self, image: ImageName, pulled: str) -> str:
        """Give a pulled image the name by which it is looked for; the digest stays beside it."""
        if image.digest:
            return pulled
        with docker_errors(f"name {image.reference}"):
            async with self._clock.timeout(CALL_S_MAX):
                await self._docker.images.tag(pulled, image.name, tag=image.tag)
        return image.reference

    async def _inspect(self, name: str) -> dict[str, Any] | None:
        try:
            return await self._docker.images.inspect(name)
        except aiodocker.DockerError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    async def _remove(self, name: str) -> bool:
        """False when it is gone already, or a container was made of it meanwhile."""
        with docker_errors(f"remove {name}"):
            async with self._clock.timeout(CALL_S_MAX):
                try:
                    await self._docker.images.delete(name)
                except aiodocker.DockerError as error:
                    if error.status not in {_NOT_FOUND, _CONFLICT}:
                        raise
                    return False
        return True

    async def _remove_rest(self, image_id: str) -> None:
        """An image that lost its last tag is still held by the digest it was pulled by."""
        with docker_errors("look at an image"):
            async with self._clock.timeout(CALL_S_MAX):
                left = await self._inspect(image_id)
        for digest in (left or {}).get("RepoDigests") or () if not (left or {}).get("RepoTags") else ():
            await self._remove(digest)

    def _ended(self, reference: str, task: asyncio.Task[str]) -> None:
        del self._under_way[reference]
        if not task.cancelled():
            task.exception()  # whoever waited has it; without anybody waiting it is no accident


@contextlib.contextmanager
def docker_errors(what: str) -> Iterator[None]:
    """Turn what aiodocker raises while the engine is to `what` into ImageError and ImageUnavailable."""
    try:
        yield
    except aiodocker.DockerError as error:
        if error.status == _NO_ENGINE:
            raise ImageUnavailable(f"the container engine does not answer (to {what}): is it running?") from error
        kind = ImageUnavailable if any(sign in error.message for sign in _NO_ANSWER) else ImageError
        raise kind(f"the container engine could not {what}: {error.message}") from error
    except TimeoutError as error:
        raise ImageUnavailable(f"the container engine took too long (to {what}); repeat it") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise ImageUnavailable(f"the container engine broke off ({what}: {error}); repeat it") from error
