"""`springtide down`: take the services away, give rented nodes back, and end the platform."""

from springtide.cli.fleet_show import counts
from springtide.cli.platform_folder import PlatformFolder
from springtide.cli.platform_link import Link, linked
from springtide.cli.platform_options import Here
from springtide.cli.platform_process import start_platform, stop_platform
from springtide.cli.platform_sweep import end_sweep
from springtide.cli.sale_show import say, say_json
from springtide.drivers.system import SystemClock
from springtide.errors import Refused
from springtide.fleet.status import FleetStatus


async def run_down(here: Here, wait_s: float, *, keep_services: bool) -> int:
    """End it. Raises Refused when something is left after `wait_s`; then the platform goes on, to be asked again."""
    clock = SystemClock()
    folder = PlatformFolder(here.data)
    settings = folder.settings()
    if settings is None:
        raise Refused(f"no platform runs from {folder.data}: there is nothing to take down")
    running = folder.running()
    if running is None and not keep_services:
        # What it left behind when it was killed can only be ended by one that knows it.
        running = await start_platform(folder, settings, clock)
    removed: list[str] = []
    if not keep_services:
        async with linked(here.data, clock) as link:
            removed = await _remove(link, wait_s, tell=not here.json)
    if running is not None:
        await stop_platform(folder, running, clock)
    if not keep_services:
        folder.forget()
        await end_sweep(folder, clock)
    if here.json:
        say_json({"removed": removed, "kept_services": keep_services})
    elif keep_services:
        say("the platform has ended; its replicas go on, and `springtide up` takes them over again")
    else:
        say(f"everything has ended; the data stays in {folder.data}")
    return 0


async def _remove(link: Link, wait_s: float, *, tell: bool) -> list[str]:
    names = sorted((await link.state.wishes()).services)
    for name in names:
        await link.state.wish_service(name, None)
    version = (await link.state.wishes()).version
    told: dict[str, str] = {}

    def gone(status: FleetStatus) -> bool:
        for name, one in status.services.items():
            if tell and told.get(name) != counts(one):
                told[name] = counts(one)
                say(f"  {name}: {told[name]}")
        return status.wishes >= version and not status.services and not status.in_flight

    if not await link.wait(wait_s, gone):
        status = await link.status()
        left = "; ".join(f"{name}: {counts(one)}" for name, one in status.services.items()) if status else "unknown"
        raise Refused(f"not everything has ended after {wait_s:g} s ({left}); say `springtide down` again to go on")
    return names
