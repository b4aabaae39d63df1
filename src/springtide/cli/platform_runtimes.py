"""What runs the replicas of each zone: processes of this machine, or the containers of the zone's engine."""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

import aiodocker

from springtide.cli.platform_folder import PlatformFolder, PlatformSettings
from springtide.config import ImagesSettings, ZoneSettings
from springtide.drivers.docker import DockerRuntime, DockerSettings
from springtide.drivers.process import ProcessRuntime, ProcessSettings
from springtide.drivers.registry import RegistryImageCache
from springtide.drivers.registry_copy import CopySettings
from springtide.drivers.registry_engine import DockerImages
from springtide.ports import Clock, Runtime

BYTES_PER_MBIT = 125_000
_FLEET_LETTERS = 10

EnsureImage = Callable[[str], Awaitable[str]]


async def start_runtimes(
    stack: AsyncExitStack, folder: PlatformFolder, settings: PlatformSettings, clock: Clock
) -> dict[str, Runtime]:
    """By zone. They have adopted what ran before; what runs when the stack ends goes on. Raises ReplicaError."""
    zones = settings.config.zones
    if settings.config.fleet.runtime == "process":
        return {zone.name: await _processes(folder, zone, clock) for zone in zones}
    found: dict[str, Runtime] = {}
    for url, here in by_engine(zones).items():
        ensure = await _ensured(stack, settings, here, clock)
        runtime = DockerRuntime(docker_settings(folder, url, here), clock, ensure)
        stack.push_async_callback(runtime.detach)
        found |= dict.fromkeys((zone.name for zone in here), runtime)
    return found


async def _processes(folder: PlatformFolder, zone: ZoneSettings, clock: Clock) -> Runtime:
    runtime = ProcessRuntime(folder.replicas(zone.name), clock, ProcessSettings(die_with_parent=False))
    await runtime.adopt()
    return runtime


def by_engine(zones: Sequence[ZoneSettings]) -> dict[str, list[ZoneSettings]]:
    """The zones of each engine: one engine may serve several."""
    found: dict[str, list[ZoneSettings]] = {}
    for zone in zones:
        found.setdefault(zone.engine, []).append(zone)
    return found


def docker_settings(folder: PlatformFolder, url: str, zones: Sequence[ZoneSettings]) -> DockerSettings:
    """Containers are marked with the platform's folder, so that two platforms can share an engine."""
    mark = hashlib.sha256(str(folder.data).encode()).hexdigest()[:_FLEET_LETTERS]
    return DockerSettings(
        fleet=f"springtide-{mark}",
        url=url,
        zones=tuple(zone.name for zone in zones),
        address=zones[0].address or None,
    )


async def _ensured(
    stack: AsyncExitStack, settings: PlatformSettings, zones: Sequence[ZoneSettings], clock: Clock
) -> EnsureImage | None:
    """How an engine comes by an image it lacks: from its zone's cache; without a cache, not at all."""
    cached = [zone for zone in zones if zone.cache]
    if not cached:
        return None
    images = settings.config.images or ImagesSettings()
    cache = RegistryImageCache(images.address, cached[0].cache, clock, settings=copy_settings(images))
    stack.push_async_callback(cache.close)
    docker = await stack.enter_async_context(aiodocker.Docker(url=zones[0].engine))
    return DockerImages(docker, cache, clock).ensure


def copy_settings(images: ImagesSettings) -> CopySettings:
    """The line's limit."""
    return CopySettings(bytes_per_s=images.bandwidth_mbit * BYTES_PER_MBIT)
