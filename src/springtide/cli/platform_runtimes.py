"""What runs the replicas of each zone: processes of this machine, or the containers of the zone's engine."""

import hashlib
from collections.abc import Sequence
from contextlib import AsyncExitStack

from springtide.cli.platform_folder import PlatformFolder, PlatformSettings
from springtide.cli.platform_images import ImageParts, by_engine
from springtide.config import ZoneSettings
from springtide.drivers.docker import DockerRuntime, DockerSettings
from springtide.drivers.process import ProcessRuntime, ProcessSettings
from springtide.ports import Clock, Runtime

_FLEET_LETTERS = 10


async def start_runtimes(
    stack: AsyncExitStack, folder: PlatformFolder, settings: PlatformSettings, images: ImageParts, clock: Clock
) -> dict[str, Runtime]:
    """By zone. They have adopted what ran before; what runs when the stack ends goes on. Raises ReplicaError."""
    zones = settings.config.zones
    if settings.config.fleet.runtime == "process":
        return {zone.name: await _processes(folder, zone, clock) for zone in zones}
    found: dict[str, Runtime] = {}
    for url, here in by_engine(zones).items():
        # An engine without a cache runs what it has.
        store = images.stores.get(url)
        runtime = DockerRuntime(docker_settings(folder, url, here), clock, store.ensure if store else None)
        stack.push_async_callback(runtime.detach)
        found |= dict.fromkeys((zone.name for zone in here), runtime)
    return found


async def _processes(folder: PlatformFolder, zone: ZoneSettings, clock: Clock) -> Runtime:
    runtime = ProcessRuntime(folder.replicas(zone.name), clock, ProcessSettings(die_with_parent=False))
    await runtime.adopt()
    return runtime


def docker_settings(folder: PlatformFolder, url: str, zones: Sequence[ZoneSettings]) -> DockerSettings:
    """Containers are marked with the platform's folder, so that two platforms can share an engine."""
    mark = hashlib.sha256(str(folder.data).encode()).hexdigest()[:_FLEET_LETTERS]
    return DockerSettings(
        fleet=f"springtide-{mark}",
        url=url,
        zones=tuple(zone.name for zone in zones),
        address=zones[0].address or None,
    )
