"""What every image cache does."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from springtide.drivers import embedded_registry
from springtide.drivers.embedded_registry import EmbeddedRegistry, start_registry
from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.images import MemoryImage, MemoryImageCache, MemoryOrigin
from springtide.drivers.registry import RegistryImageCache
from springtide.drivers.registry_copy import CopySettings
from springtide.drivers.registry_manifest import digest_of
from springtide.drivers.system import SystemClock
from springtide.errors import ImageError, ImageUnavailable
from springtide.ports import ImageCache
from tests.images import noise, push_blobs

T = TypeVar("T")
Push = Callable[[str, Sequence[bytes]], Awaitable[str]]

A, B, C = noise(300_000, 1), noise(200_000, 2), noise(100_000, 3)
LITTLE = 2_000
"""Room for configurations and manifests, which are bytes, too."""


class Stage:
    """A cache, a way to push to its origin, and a way to break the origin."""

    def __init__(
        self, cache: ImageCache, push: Push, origin_down: Callable[[], None], moves: VirtualClock | None
    ) -> None:
        self.cache = cache
        self.push = push
        self.origin_down = origin_down
        self._moves = moves

    async def done(self, call: Awaitable[T]) -> T:
        """Wait for a call, and let time pass where it does not by itself."""
        task = asyncio.ensure_future(call)
        while self._moves and not task.done():
            await self._moves.advance(1.0)
        return await task

    async def warmed(self, reference: str) -> int:
        return (await self.done(self.cache.warm(reference))).copied_bytes

    async def references(self) -> set[str]:
        return {image.reference for image in await self.cache.images()}


@contextlib.asynccontextmanager
async def in_memory(folder: Path) -> AsyncIterator[Stage]:
    clock, origin = VirtualClock(), MemoryOrigin()

    async def push(reference: str, layers: Sequence[bytes]) -> str:
        parts = {digest_of(layer): len(layer) for layer in layers}
        digest = digest_of("".join(parts).encode())
        origin.push(reference, MemoryImage(digest, parts))
        return digest

    def down() -> None:
        origin.up = False

    cache = MemoryImageCache(origin, clock, bytes_per_s=100_000)
    yield Stage(cache, push, down, clock)
    await cache.close()


@contextlib.asynccontextmanager
async def registries(folder: Path) -> AsyncIterator[Stage]:
    if reason := embedded_registry.missing():
        pytest.skip(reason)
    clock, running = SystemClock(), list[EmbeddedRegistry]()
    try:
        for name in ("origin", "cache"):
            running.append(await start_registry(folder / name, clock))
        origin, zone = running
        settings = CopySettings(tries=2, pause_s=0.05)
        cache = RegistryImageCache(origin.address, zone.address, clock, settings=settings, garbage=zone.collect_garbage)

        def down() -> None:
            origin.child.signal(signal.SIGKILL)

        yield Stage(cache, lambda reference, layers: push_blobs(origin.address, reference, layers), down, None)
        await cache.close()
    finally:
        for registry in running:
            await registry.stop()


@pytest.fixture(params=[in_memory, registries], ids=["memory", "registry"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    async with request.param(tmp_path) as made:
        yield made


async def test_a_warmed_image_is_pulled_from_the_cache_by_its_digest(stage: Stage) -> None:
    digest = await stage.push("shop/counter:1", [A, B])
    transfer = await stage.done(stage.cache.warm("shop/counter:1"))
    assert transfer.digest == digest
    assert len(A + B) <= transfer.copied_bytes <= len(A + B) + LITTLE
    assert transfer.seconds >= 0
    assert (await stage.cache.reference("shop/counter:1")).endswith(f"/shop/counter@{digest}")
    (image,) = await stage.cache.images()
    assert (image.reference, image.digest) == ("shop/counter:1", digest)
    assert len(A + B) <= image.size_bytes <= len(A + B) + LITTLE
    assert image.used_ms > 0


async def test_warming_again_moves_nothing(stage: Stage) -> None:
    await stage.push("counter:1", [A])
    await stage.warmed("counter:1")
    assert await stage.warmed("counter:1") == 0


async def test_twenty_who_warm_at_once_move_it_once(stage: Stage) -> None:
    await stage.push("counter:1", [A, B])
    moved = await stage.done(asyncio.gather(*(stage.cache.warm("counter:1") for _ in range(20))))
    assert len(A + B) <= sum(transfer.copied_bytes for transfer in moved) <= len(A + B) + LITTLE


async def test_a_layer_that_images_share_moves_once(stage: Stage) -> None:
    await stage.push("counter:1", [A, B])
    await stage.push("recorder:1", [A, C])
    both = await stage.done(asyncio.gather(*(stage.cache.warm(name) for name in ("counter:1", "recorder:1"))))
    assert sum(transfer.copied_bytes for transfer in both) <= len(A + B + C) + LITTLE
    await stage.push("counter:2", [A, C])
    assert await stage.warmed("counter:2") <= LITTLE


async def test_two_revisions_are_kept_apart(stage: Stage) -> None:
    first, second = await stage.push("counter:1", [A]), await stage.push("counter:2", [B])
    await stage.warmed("counter:1")
    await stage.warmed("counter:2")
    assert (await stage.cache.reference("counter:1")).endswith(first)
    assert (await stage.cache.reference("counter:2")).endswith(second)


async def test_an_image_is_had_by_its_digest_alone(stage: Stage) -> None:
    digest = await stage.push("counter:1", [A])
    await stage.warmed(f"counter@{digest}")
    assert (await stage.cache.reference(f"counter@{digest}")).endswith(f"/counter@{digest}")
    assert await stage.references() == {f"counter@{digest}"}
    assert await stage.cache.collect([f"counter@{digest}"]) == 0
    assert await stage.references() == {f"counter@{digest}"}


async def test_what_nobody_pushed_cannot_be_warmed(stage: Stage) -> None:
    with pytest.raises(ImageError, match="no image nothing:1"):
        await stage.warmed("nothing:1")
    assert await stage.references() == set()


async def test_what_was_not_warmed_has_no_reference(stage: Stage) -> None:
    await stage.push("counter:1", [A])
    with pytest.raises(ImageError, match="no image counter:1"):
        await stage.cache.reference("counter:1")


@pytest.mark.parametrize("reference", ["", "Upper:1", "a b", "docker.io:5000/name:1", "name@sha256:12"])
async def test_what_is_no_reference_is_refused(stage: Stage, reference: str) -> None:
    for call in (stage.cache.warm, stage.cache.reference):
        with pytest.raises(ImageError, match="NAME:TAG"):
            await call(reference)


async def test_collecting_keeps_what_it_is_told_and_the_layers_of_that(stage: Stage) -> None:
    await stage.push("counter:1", [A, B])
    await stage.push("counter:2", [A, C])
    await stage.warmed("counter:1")
    await stage.warmed("counter:2")
    freed = await stage.cache.collect(["counter:2"])
    assert len(B) <= freed <= len(B) + LITTLE
    assert await stage.references() == {"counter:2"}
    with pytest.raises(ImageError, match="no image counter:1"):
        await stage.cache.reference("counter:1")
    assert await stage.warmed("counter:2") == 0
    assert len(B) <= await stage.warmed("counter:1") <= len(B) + LITTLE


async def test_collecting_everything_leaves_nothing(stage: Stage) -> None:
    await stage.push("counter:1", [A, B])
    await stage.warmed("counter:1")
    assert await stage.cache.collect([]) >= len(A + B)
    assert await stage.references() == set()
    assert await stage.cache.collect([]) == 0


async def test_an_image_that_is_kept_under_another_tag_stays(stage: Stage) -> None:
    await stage.push("counter:1", [A])
    await stage.push("counter:stable", [A])
    await stage.warmed("counter:1")
    await stage.warmed("counter:stable")
    await stage.cache.collect(["counter:stable"])
    assert await stage.warmed("counter:stable") == 0


async def test_what_is_being_copied_survives_a_collection(stage: Stage) -> None:
    await stage.push("counter:1", [A, B, C])
    copy = asyncio.ensure_future(stage.cache.warm("counter:1"))
    await asyncio.sleep(0.01)
    await stage.done(stage.cache.collect([]))
    transfer = await stage.done(copy)
    assert (await stage.cache.reference("counter:1")).endswith(transfer.digest)
    assert await stage.warmed("counter:1") == 0


async def test_without_the_origin_what_is_here_counts_as_warm(stage: Stage) -> None:
    await stage.push("counter:1", [A])
    await stage.push("counter:2", [B])
    await stage.warmed("counter:1")
    stage.origin_down()
    assert await stage.warmed("counter:1") == 0
    with pytest.raises(ImageUnavailable):
        await stage.warmed("counter:2")
    assert await stage.references() == {"counter:1"}
