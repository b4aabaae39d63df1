"""Gets a platform to run with the settings of a configuration: starts it, leaves it, or moves it from one to another.

Replicas and balancer outlive the change. What would lose replicas is emptied first: a zone that goes, or that moves to
another engine, is drained while the platform still knows it.
"""

from springtide.cli.platform_folder import PlatformFolder, PlatformSettings
from springtide.cli.platform_link import linked
from springtide.cli.platform_process import start_platform, stop_platform
from springtide.config import Config
from springtide.drivers.system import SystemClock
from springtide.errors import Refused
from springtide.fleet.status import FleetStatus
from springtide.model import ZoneMode


async def apply_settings(folder: PlatformFolder, settings: PlatformSettings, clock: SystemClock, wait_s: float) -> str:
    """Let the platform run with these; what was done, or `unchanged`.

    Raises Refused when what runs cannot come along, EngineError.
    """
    running, before = folder.running(), folder.settings()
    if before is None:
        try:
            await start_platform(folder, settings, clock)
        except BaseException:
            folder.forget()
            raise
        return "was started"
    if running is not None and before == settings:
        return "unchanged"
    leaving = leaving_zones(before, settings)
    if leaving:
        if running is None:
            running = await start_platform(folder, before, clock)
        await _empty(folder, leaving, clock, wait_s)
    if running is not None:
        await stop_platform(folder, running, clock)
    await start_platform(folder, settings, clock)
    if leaving:
        async with linked(folder.data, clock) as link:
            for zone in leaving:
                await link.state.wish_mode(zone, ZoneMode.OPEN)
    changed = differences(before, settings)
    return f"was started again with a new {', '.join(changed)}" if changed else "was started again"


def leaving_zones(before: PlatformSettings, after: PlatformSettings) -> list[str]:
    """Zones whose replicas the new settings would not find. Raises Refused when those are all."""
    if before.config.fleet.runtime != after.config.fleet.runtime:
        raise Refused("the runtime cannot change while services run: say `springtide down`, then `springtide up`")
    if before.ledger != after.ledger:
        raise Refused(
            "the fleet's state cannot move to another database while services run: say `springtide down`, then "
            "`springtide up`"
        )
    cloud, other = before.config.cloud, after.config.cloud
    if (cloud.driver, cloud.region, cloud.installation) != (other.driver, other.region, other.installation):
        raise Refused(
            "the cloud cannot change while services run, since what is rented there would be left: say "
            "`springtide down`, then `springtide up`"
        )
    stay = {(zone.name, zone.engine) for zone in after.config.zones}
    leaving = [zone.name for zone in before.config.zones if (zone.name, zone.engine) not in stay]
    if len(leaving) == len(before.config.zones):
        raise Refused(
            f"all zones ({', '.join(leaving)}) would go at once: add the new ones first and take the old ones away "
            "afterwards, or say `springtide down`"
        )
    return leaving


async def _empty(folder: PlatformFolder, zones: list[str], clock: SystemClock, wait_s: float) -> None:
    async with linked(folder.data, clock) as link:
        for zone in zones:
            await link.state.wish_mode(zone, ZoneMode.DRAINED)
        version = (await link.state.wishes()).version

        def empty(status: FleetStatus) -> bool:
            return status.wishes >= version and not any(
                one.nodes.get(zone) or any(one.replicas.get(zone, {}).values())
                for one in status.services.values()
                for zone in zones
            )

        if not await link.wait(wait_s, empty):
            raise Refused(
                f"{', '.join(zones)} cannot be emptied within {wait_s:g} s, which has to come before it goes from the "
                "configuration; see `springtide status`, and say `springtide up` again"
            )


def differences(before: PlatformSettings, after: PlatformSettings) -> list[str]:
    """The names of the tables and options that are not the same."""
    tables = [name for name in Config.__struct_fields__ if getattr(before.config, name) != getattr(after.config, name)]
    options = [
        name
        for name in PlatformSettings.__struct_fields__
        if name != "config" and getattr(before, name) != getattr(after, name)
    ]
    return [f"[{name}]" for name in tables] + [f"--{name.replace('_', '-')}" for name in options]
