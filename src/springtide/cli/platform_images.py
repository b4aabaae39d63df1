"""What delivers images to a platform's engines: caches of the zones, the registry they are filled from, and a plan."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiodocker
import structlog

from springtide.cli.platform_folder import PlatformFolder, PlatformSettings
from springtide.cli.world import cancelled
from springtide.config import Config, ImagesSettings, ZoneSettings
from springtide.drivers.embedded_registry import RegistrySettings, start_registry
from springtide.drivers.registry import RegistryImageCache
from springtide.drivers.registry_copy import CopySettings
from springtide.drivers.registry_engine import DockerImages
from springtide.drivers.registry_keeper import RegistryKeeper
from springtide.errors import SpringtideError
from springtide.fleet.image_keeper import ImageKeeper
from springtide.fleet.images import Images, ImageZone
from springtide.model import ImageLine, ImagePolicy
from springtide.ports import Clock, FleetState

KEEP_S = 10.0
"""How often caches and engines are looked through."""

BYTES_PER_MBIT = 125_000
LINE_BYTES_PER_S = 125e6
"""A line, or a cache's network, of which nothing is said: 1 Gbit/s."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ImageParts:
    """Caches by zone, and the images of each engine that has one by the engine's address."""

    caches: Mapping[str, RegistryImageCache] = field(default_factory=dict)
    stores: Mapping[str, DockerImages] = field(default_factory=dict)


def images_of(config: Config) -> ImagesSettings:
    """What the configuration says of images, or what holds when it says nothing."""
    return config.images or ImagesSettings()


def copy_settings(images: ImagesSettings) -> CopySettings:
    """The line's limit."""
    return CopySettings(bytes_per_s=images.bandwidth_mbit * BYTES_PER_MBIT)


def by_engine(zones: Sequence[ZoneSettings]) -> dict[str, list[ZoneSettings]]:
    """The zones of each engine: one engine may serve several."""
    found: dict[str, list[ZoneSettings]] = {}
    for zone in zones:
        found.setdefault(zone.engine, []).append(zone)
    return found


async def start_origin(
    stack: AsyncExitStack, folder: PlatformFolder, images: ImagesSettings | None, clock: Clock
) -> None:
    """Run the registry that images come from, where the configuration asks for one of its own. Raises EngineError."""
    if images is None or images.origin:
        return
    place = Path(images.folder) if images.folder else folder.images
    registry = await start_registry(place, clock, RegistrySettings(port=images.port))
    stack.push_async_callback(registry.stop)
    keeping = asyncio.create_task(RegistryKeeper(registry, clock).run(), name="keep the registry")
    stack.push_async_callback(cancelled, keeping)


async def image_parts(stack: AsyncExitStack, settings: PlatformSettings, clock: Clock) -> ImageParts:
    """Connections to the caches and engines; none is asked yet."""
    zones = settings.config.zones
    images = images_of(settings.config)
    if settings.config.fleet.runtime != "docker":
        return ImageParts()
    caches: dict[str, RegistryImageCache] = {}
    for zone in zones:
        if zone.cache:
            caches[zone.name] = RegistryImageCache(images.address, zone.cache, clock, settings=copy_settings(images))
            stack.push_async_callback(caches[zone.name].close)
    stores: dict[str, DockerImages] = {}
    for url, here in by_engine(zones).items():
        cached = [zone.name for zone in here if zone.cache]
        if cached:
            docker = await stack.enter_async_context(aiodocker.Docker(url=url))
            stores[url] = DockerImages(docker, caches[cached[0]], clock)
    return ImageParts(caches, stores)


async def start_keeper(
    stack: AsyncExitStack, parts: ImageParts, config: Config, state: FleetState, clock: Clock
) -> None:
    """Warm caches, prefetch and collect by plan, in the background, where there are caches."""
    if not parts.caches:
        return
    images = images_of(config)
    zones = {
        zone.name: ImageZone(parts.caches[zone.name], {zone.engine: parts.stores[zone.engine]})
        for zone in config.zones
        if zone.name in parts.caches
    }
    line = images.bandwidth_mbit * BYTES_PER_MBIT or LINE_BYTES_PER_S
    lines = [ImageLine(name, line, LINE_BYTES_PER_S) for name in zones]
    moving = Images(zones, clock)
    stack.push_async_callback(moving.close)
    origin = RegistryImageCache(images.address, images.address, clock)
    stack.push_async_callback(origin.close)
    keeper = ImageKeeper(moving, origin, lines, ImagePolicy(), clock)
    keeping = asyncio.create_task(_keep(keeper, config, state, clock), name="keep images")
    stack.push_async_callback(cancelled, keeping)


async def _keep(keeper: ImageKeeper, config: Config, state: FleetState, clock: Clock) -> None:
    """For ever. What fails is said once and tried again."""
    events = {event.service: config.calendar_of(event.service) for event in config.calendar if event.service}
    nodes = {zone.name: 1 for zone in config.zones}
    said = ""
    while True:
        try:
            wishes = (await state.wishes()).services.values()
            await keeper.tick(wishes, events, nodes, images_of(config).keep)
        except (SpringtideError, TimeoutError) as error:
            if str(error) != said:
                said = str(error)
                _log.warning("images are left as they are", error=said)
        await clock.sleep(KEEP_S)
