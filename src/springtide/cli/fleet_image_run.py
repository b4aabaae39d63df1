"""The work of `springtide image …`, on the engines and registries that the platform of a folder names."""

import os
import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiodocker

from springtide.cli.platform_folder import PlatformFolder, PlatformSettings
from springtide.cli.platform_images import copy_settings, images_of
from springtide.cli.platform_link import linked
from springtide.cli.platform_options import Here
from springtide.cli.sale_show import moment, say, say_json, table
from springtide.config import ZoneSettings
from springtide.drivers.embedded_registry import RegistrySettings, start_registry
from springtide.drivers.image_build import Recipe
from springtide.drivers.image_build import build as build_image
from springtide.drivers.registry import RegistryImageCache
from springtide.drivers.registry_keeper import RegistryKeeper
from springtide.drivers.registry_push import push_image
from springtide.drivers.system import SystemClock
from springtide.errors import Refused, UserError
from springtide.fleet.images import Images, ImageZone
from springtide.model import ImageName

_MB = 1_000_000


@dataclass(frozen=True)
class BuildOptions:
    """What the command line asks for."""

    reference: str
    folder: Path | None
    command: str
    python: bool
    dockerfile: str
    engine: str


async def run_build(here: Here, options: BuildOptions) -> int:
    """Build it. Raises UserError, ImageError."""
    reference = _reference(options.reference)
    if options.folder is not None and not options.folder.is_dir():
        raise UserError(f"--folder {options.folder}: there is no such folder")
    recipe = Recipe(reference, options.folder, tuple(shlex.split(options.command)), options.python, options.dockerfile)
    built = await build_image(options.engine, recipe, SystemClock(), _layers())
    if here.json:
        layers = [{"name": one.name, "digest": one.digest, "size_bytes": one.size_bytes} for one in built.layers]
        said = {"reference": built.reference, "image_id": built.image_id, "size_bytes": built.size_bytes}
        say_json({**said, "layers": layers})
        return 0
    say(f"{built.reference} is {built.image_id}, {built.size_bytes / _MB:,.1f} MB")
    if built.layers:
        table(
            ("layer", "MB", "digest"), [(one.name, f"{one.size_bytes / _MB:,.1f}", one.digest) for one in built.layers]
        )
    return 0


def _layers() -> Path:
    """Where layers are kept from one build to the next, as the XDG base directory specification says."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "springtide" / "layers"


async def run_push(here: Here, reference: str, engine: str, origin: str) -> int:
    """Push it. Raises UserError, ImageError."""
    origin = origin or _origin(_known(here))
    async with aiodocker.Docker(url=engine) as docker:
        moved = await push_image(docker, origin, _reference(reference), SystemClock())
    if here.json:
        transfer = {"digest": moved.digest, "copied_bytes": moved.copied_bytes, "seconds": moved.seconds}
        say_json({"reference": moved.reference, "origin": origin, **transfer})
    else:
        megabytes = moved.copied_bytes / _MB
        say(f"{moved.reference} is at {origin}: {megabytes:,.1f} MB moved in {moved.seconds:.1f} s; {moved.digest}")
    return 0


async def run_warm(here: Here, reference: str, zones: Sequence[str], origin: str) -> int:
    """Warm it, zone by zone. Raises UserError, ImageError."""
    name = _reference(reference)
    warmed = []
    async with _images(here, zones, origin) as (images, names):
        for zone in names:
            moved = await images.warm(zone, name)
            warmed.append(
                {"zone": zone, "digest": moved.digest, "copied_bytes": moved.copied_bytes, "seconds": moved.seconds}
            )
            if not here.json:
                say(f"{zone} has {name}: {moved.copied_bytes / _MB:,.1f} MB crossed the line in {moved.seconds:.1f} s")
    if here.json:
        say_json({"reference": name, "zones": warmed})
    return 0


async def run_list(here: Here, zones: Sequence[str]) -> int:
    """List what caches hold. Raises UserError, ImageError."""
    async with _images(here, zones, "") as (images, names):
        found = [(zone, one) for zone in names for one in await images.list(zone)]
    if here.json:
        rows = [
            {"zone": zone, "reference": one.reference, "digest": one.digest, "size_bytes": one.size_bytes}
            for zone, one in found
        ]
        say_json({"images": rows})
        return 0
    table(
        ("zone", "image", "MB", "last used", "digest"),
        [
            (zone, one.reference, f"{one.size_bytes / _MB:,.1f}", moment(one.used_ms or None), one.digest)
            for zone, one in found
        ],
    )
    return 0


async def run_serve(folder: Path, host: str, port: int, upstream: str) -> int:
    """Run a registry until SIGTERM or Ctrl-C, started again when it dies. Raises EngineError."""
    clock = SystemClock()
    registry = await start_registry(folder, clock, RegistrySettings(host, port, upstream))
    try:
        say(f"images are at {registry.address}, kept in {registry.folder}; Ctrl-C ends it, the images stay")
        await RegistryKeeper(registry, clock).run()
    finally:
        await registry.stop()
    return 0


async def run_gc(here: Here, zones: Sequence[str]) -> int:
    """Collect. The wishes of the running platform say what is needed. Raises Refused without one, ImageError."""
    async with linked(here.data, SystemClock()) as link:
        services = (await link.state.wishes()).services.values()
        keep = {*images_of(link.settings.config).keep}
        for wish in services:
            keep |= {spec.image for spec in (wish.spec, wish.previous) if spec is not None and spec.image}
    freed = {}
    async with _images(here, zones, "") as (images, names):
        for zone in names:
            freed[zone] = await images.gc(zone, keep)
            if not here.json:
                say(f"{zone}: {freed[zone] / _MB:,.1f} MB are free again")
    if here.json:
        say_json({"freed_bytes": freed, "kept": sorted(keep)})
    return 0


@asynccontextmanager
async def _images(here: Here, zones: Sequence[str], origin: str) -> AsyncIterator[tuple[Images, list[str]]]:
    """The caches of these zones, or of all that have one."""
    settings, clock = _known(here), SystemClock()
    cached = {zone.name: zone for zone in settings.config.zones if zone.cache}
    for name in zones:
        if name not in cached:
            raise UserError(f"zone {name!r} has no cache; those with one are: {', '.join(cached) or 'none'}")
    names = list(zones) or sorted(cached)
    if not names:
        raise UserError("no zone has a cache: give one HOST:PORT of its registry as cache in [[zones]]")
    caches = {name: _cache(cached[name], settings, origin, clock) for name in names}
    images = Images({name: ImageZone(cache, {}) for name, cache in caches.items()}, clock)
    try:
        yield images, names
    finally:
        await images.close()
        for cache in caches.values():
            await cache.close()


def _cache(zone: ZoneSettings, settings: PlatformSettings, origin: str, clock: SystemClock) -> RegistryImageCache:
    rate = copy_settings(images_of(settings.config))
    return RegistryImageCache(origin or _origin(settings), zone.cache, clock, settings=rate)


def _origin(settings: PlatformSettings) -> str:
    return images_of(settings.config).address


def _known(here: Here) -> PlatformSettings:
    settings = PlatformFolder(here.data).settings()
    if settings is None:
        raise Refused(
            f"no platform was started from {here.data.absolute()}: run `springtide up` first, or name its --data"
        )
    return settings


def _reference(text: str) -> str:
    try:
        return ImageName.parse(text).reference
    except ValueError as error:
        raise UserError(str(error)) from error
