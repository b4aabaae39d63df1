"""Engines in a zone behind a limited line: what crosses it, and what works when registries are gone."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiodocker
import pytest

from springtide.drivers.embedded_registry import EmbeddedRegistry, RegistrySettings
from springtide.drivers.registry import RegistryImageCache
from springtide.drivers.registry_copy import CopySettings
from springtide.drivers.registry_engine import DockerImages
from springtide.drivers.registry_manifest import digest_of
from springtide.drivers.registry_push import push_image
from springtide.errors import ImageError, ImageUnavailable
from tests import lines
from tests.images import SAYS, push_blobs, runnable
from tests.lines import CLOCK, PORT, Line

pytestmark = [
    pytest.mark.skipif(bool(lines.missing()), reason=lines.missing() or "possible"),
    pytest.mark.timeout(180),
]

MBIT = 20
SIZE = 12_000_000
QUICK = CopySettings(tries=2, pause_s=0.05)


class Zone:
    """An origin outside, and a registry and an engine behind the line."""

    def __init__(
        self, line: Line, origin: EmbeddedRegistry, registry: EmbeddedRegistry, docker: aiodocker.Docker
    ) -> None:
        self.line = line
        self.origin = origin
        self.registry = registry
        self.docker = docker
        self.cache = RegistryImageCache(
            origin.address, registry.address, CLOCK, settings=QUICK, garbage=registry.collect_garbage
        )
        self.beside_origin = RegistryImageCache(origin.address, origin.address, CLOCK)

    def images(self, *, origin: bool = False) -> DockerImages:
        return DockerImages(self.docker, self.cache, CLOCK, origin=self.beside_origin.reference if origin else None)

    async def push(self, reference: str, size: int = 100_000, seed: int = 0) -> int:
        """Push an image that runs; the bytes that a pull of it transfers."""
        layers, config = runnable(size, layers=2, seed=seed)
        await push_blobs(self.origin.address, reference, layers, config)
        return len(config) + sum(map(len, layers))


@contextlib.asynccontextmanager
async def zone_behind(folder: Path, line: Line) -> AsyncIterator[Zone]:
    async with (
        lines.registry(folder / "origin", RegistrySettings(line.host, PORT)) as origin,
        lines.zone_registry(folder / "zone", line) as registry,
        lines.engine(folder / "engine", line) as docker,
    ):
        zone = Zone(line, origin, registry, docker)
        try:
            yield zone
        finally:
            await zone.cache.close()
            await zone.beside_origin.close()


def in_a_zone(folder: Path, body: Callable[[Zone], Awaitable[None]], mbit: float = 1000) -> None:
    async def run(line: Line) -> None:
        async with zone_behind(folder, line) as zone:
            await body(zone)

    lines.behind_a_line(mbit, run)


def test_six_pulls_by_emptied_engines_cross_the_line_once(tmp_path: Path) -> None:
    async def body(zone: Zone) -> None:
        size = await zone.push("app:1", SIZE)
        before, _ = zone.line.crossed()
        images = zone.images()
        for _ in range(6):
            # Twice at once: the second waits for the pull of the first.
            assert set(await asyncio.gather(*(images.ensure("app:1") for _ in range(2)))) == {"app:1"}
            assert await lines.said(zone.docker, "app:1") == SAYS
            await lines.emptied(zone.docker)
        crossed = zone.line.crossed()[0] - before
        assert size <= crossed <= 1.15 * size

    in_a_zone(tmp_path, body, MBIT)


def test_containers_start_while_every_registry_is_gone(tmp_path: Path) -> None:
    async def body(zone: Zone) -> None:
        await zone.push("app:1")
        await zone.push("app:2", seed=2)
        images = zone.images()
        await images.ensure("app:1")
        for registry in (zone.origin, zone.registry):
            registry.child.signal(signal.SIGKILL)
        assert await images.ensure("app:1") == "app:1"
        assert await lines.said(zone.docker, "app:1") == SAYS
        with pytest.raises(ImageUnavailable, match=r"app:2 cannot be had.*not allowed"):
            await images.ensure("app:2")

    in_a_zone(tmp_path, body)


def test_without_the_cache_an_engine_pulls_from_the_origin_only_where_that_is_allowed(tmp_path: Path) -> None:
    async def body(zone: Zone) -> None:
        await zone.push("app:1")
        zone.registry.child.signal(signal.SIGKILL)
        with pytest.raises(ImageUnavailable, match="not allowed here"):
            await zone.images().ensure("app:1")
        assert await zone.images(origin=True).ensure("app:1") == "app:1"
        assert await lines.said(zone.docker, "app:1") == SAYS

    in_a_zone(tmp_path, body)


def test_an_engine_pulls_while_the_cache_is_collected(tmp_path: Path) -> None:
    async def body(zone: Zone) -> None:
        images = zone.images()
        for at in range(3):
            await zone.push(f"app:{at}", 2_000_000, seed=at)
            await zone.cache.warm(f"app:{at}")
        for at in range(3):
            keep = [f"app:{kept}" for kept in range(at, 3)]
            await asyncio.gather(zone.cache.collect(keep), images.ensure(f"app:{at}"))
            assert await lines.said(zone.docker, f"app:{at}") == SAYS
        assert [image.reference for image in await zone.cache.images()] == ["app:2"]

    in_a_zone(tmp_path, body)


def test_an_engine_refuses_a_layer_that_is_damaged_in_the_cache(tmp_path: Path) -> None:
    async def body(zone: Zone) -> None:
        await zone.push("app:1")
        await zone.cache.warm("app:1")
        layer = digest_of(runnable(100_000, layers=2)[0][1]).removeprefix("sha256:")
        (path,) = zone.registry.folder.glob(f"data/docker/registry/v2/blobs/sha256/*/{layer}/data")
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
        path.write_bytes(content)
        with pytest.raises(ImageError, match="could not pull"):
            await zone.images().ensure("app:1")
        assert await zone.images().images() == []
        assert await zone.images(origin=True).ensure("app:1") == "app:1"

    in_a_zone(tmp_path, body)


def test_an_image_goes_from_an_engine_to_the_origin_and_back_through_the_cache(tmp_path: Path) -> None:
    async def body(zone: Zone) -> None:
        await zone.push("made:1")
        images = zone.images()
        await images.ensure("made:1")
        (built,) = await images.images()
        await zone.docker.images.tag("made:1", "shop/app", tag="7")
        with pytest.raises(ImageError, match="could not save nothing:1"):
            await push_image(zone.docker, zone.origin.address, "nothing:1", CLOCK)
        pushed = await push_image(zone.docker, zone.origin.address, "shop/app:7", CLOCK)
        assert pushed.copied_bytes > 100_000
        await lines.emptied(zone.docker)
        assert await images.ensure("shop/app:7") == "shop/app:7"
        (pulled,) = await images.images()
        assert pulled.image_id == built.image_id
        assert await images.ensure(f"shop/app@{pushed.digest}") == f"{zone.registry.address}/shop/app@{pushed.digest}"

    in_a_zone(tmp_path, body)


def test_removing_keeps_what_a_container_is_made_of(tmp_path: Path) -> None:
    async def body(zone: Zone) -> None:
        images = zone.images()
        for at in (1, 2):
            await zone.push(f"app:{at}", seed=at)
            await images.ensure(f"app:{at}")
        container = await zone.docker.containers.create({"Image": "app:1", "HostConfig": {"NetworkMode": "none"}})
        assert {image.reference: image.in_use for image in await images.images()} == {"app:1": True, "app:2": False}
        assert await images.remove(["app:1", "app:2", "other:1"]) == 1
        assert [image.reference for image in await images.images()] == ["app:1"]
        await container.delete()
        assert await images.remove(["app:1"]) == 1
        # Nothing is left behind under a digest either.
        assert await zone.docker.images.list(all="true") == []

    in_a_zone(tmp_path, body)
