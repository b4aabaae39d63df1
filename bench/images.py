"""Images over a limited line: how soon a container of a 200 MB image starts, and what twenty pulls cost the line."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import aiodocker

from bench.rows import Row, Skipped, compared, median_row
from springtide.drivers.embedded_registry import EmbeddedRegistry, RegistrySettings
from springtide.drivers.registry import RegistryImageCache
from springtide.drivers.registry_engine import DockerImages
from tests import lines
from tests.images import SAYS, push_blobs, runnable
from tests.lines import CLOCK, PORT, Line

T = TypeVar("T")

MBIT = 100
SIZE = 200_000_000
LAYERS = 5
PULLS = 20
STARTS_MAX = 3
"""Cold starts take 17 s of line each, at least: three say as much as more."""

FASTER_MIN = 5.0
SIZES_MAX = 1.1
SMALL = 20_000_000
"""For the comparison with a cache that passes pulls through: how often it crosses does not depend on the size."""


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    """The rows of this bench."""
    if reason := lines.missing():
        return [], [Skipped("images over a limited line", reason)]
    starts = min(runs, STARTS_MAX)
    with tempfile.TemporaryDirectory(prefix="bench-images-") as folder:
        cold, warm, crossed = _behind(Path(folder), lambda place: _starts_and_bytes(place, starts))
    with tempfile.TemporaryDirectory(prefix="bench-images-") as folder:
        through = _behind(Path(folder), _through)
    without = median_row(f"start of a {SIZE // 10**6} MB image over {MBIT} Mbit/s, no cache", "s", cold)
    ours = median_row("the same, warmed cache", "s", warm)
    ratio = without.value / ours.value
    return [
        without,
        ours,
        Row("how many times faster with the warmed cache", ratio, "×", floor=FASTER_MIN, ratio=ratio),
        Row(f"bytes over the line for {PULLS} pulls, warming included", crossed, "image sizes", ceiling=SIZES_MAX),
        compared(
            Row("one cold pull through docker-registry as a proxy", through, "image sizes"),
            Row("one image", 1.0, "image sizes"),
            None,
        ),
    ], []


class _Place:
    """A zone behind the line, and an origin outside."""

    def __init__(self, folder: Path, line: Line, origin: EmbeddedRegistry, docker: aiodocker.Docker) -> None:
        self.folder = folder
        self.line = line
        self.origin = origin
        self.docker = docker

    async def push(self, size: int) -> int:
        """Push the image; the bytes that a pull of it transfers."""
        layers, config = runnable(size, LAYERS)
        await push_blobs(self.origin.address, "app:1", layers, config)
        return len(config) + sum(map(len, layers))

    @contextlib.asynccontextmanager
    async def images(self, cache: str) -> AsyncIterator[DockerImages]:
        """The engine's images, from the registry at this address."""
        source = RegistryImageCache(self.origin.address, cache, CLOCK)
        try:
            yield DockerImages(self.docker, source, CLOCK)
        finally:
            await source.close()

    async def start(self, images: DockerImages) -> float:
        """Seconds until a container of the image has said its word, from an empty store."""
        await lines.emptied(self.docker)
        began_s = time.perf_counter()
        reference = await images.ensure("app:1")
        if await lines.said(self.docker, reference) != SAYS:
            raise RuntimeError("the container did not run")
        return time.perf_counter() - began_s


def _behind(folder: Path, body: Callable[[_Place], Coroutine[Any, Any, T]]) -> T:
    async def run(line: Line) -> T:
        async with (
            lines.registry(folder / "origin", RegistrySettings(line.host, PORT)) as origin,
            lines.engine(folder / "engine", line) as docker,
        ):
            return await body(_Place(folder, line, origin, docker))

    return lines.behind_a_line(MBIT, run)


async def _starts_and_bytes(place: _Place, starts: int) -> tuple[list[float], list[float], float]:
    """Seconds of starts without and with the cache, and the image sizes that crossed for PULLS pulls with it."""
    size = await place.push(SIZE)
    async with place.images(place.origin.address) as images:
        cold = [await place.start(images) for _ in range(starts)]
    await lines.emptied(place.docker)
    async with lines.zone_registry(place.folder / "zone", place.line) as zone:
        before, _ = place.line.crossed()
        async with place.images(zone.address) as images:
            cache = RegistryImageCache(place.origin.address, zone.address, CLOCK)
            await cache.warm("app:1")
            await cache.close()
            warm = [await place.start(images) for _ in range(PULLS)]
        after, _ = place.line.crossed()
    return cold, warm, (after - before) / size


async def _through(place: _Place) -> float:
    """Image sizes that cross the line for one pull through a registry that passes pulls through."""
    size = await place.push(SMALL)
    async with lines.zone_registry(place.folder / "through", place.line, place.origin.address) as zone:
        before, _ = place.line.crossed()
        async with place.images(zone.address) as images:
            await place.start(images)
        await asyncio.sleep(2.0)  # it fetches its own copy beside the client's
        after, _ = place.line.crossed()
    return (after - before) / size
