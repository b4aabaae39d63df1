"""`springtide status`: what runs, where, and what the control loop makes of it; once, or as a live view."""

from typing import Any

import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

from springtide.cli.fleet_show import fleet, is_stale, show
from springtide.cli.platform_link import Link, linked
from springtide.cli.platform_options import Here
from springtide.cli.sale_show import say_json
from springtide.drivers.system import SystemClock
from springtide.errors import Refused, SpringtideError
from springtide.fleet.status import FleetStatus
from springtide.model import Wishes

EXIT_DEAD_LOOP = 1
WATCH_S = 0.5


async def run_status(here: Here, *, watch: bool) -> int:
    """Print it; 1 when the control loop has said nothing for too long."""
    clock = SystemClock()
    async with linked(here.data, clock) as link:
        if watch:
            return await _watch(link)
        status, wishes = await _ask(link)
    stale = is_stale(status, clock.now_ms())
    if here.json:
        say_json(as_json(status, wishes, clock.now_ms()))
    else:
        show(fleet(status, wishes, clock.now_ms()))
    return EXIT_DEAD_LOOP if stale else 0


async def _ask(link: Link) -> tuple[FleetStatus, Wishes]:
    status = await link.status()
    if status is None:
        raise Refused(f"no control loop has said anything yet; see {link.folder.log}")
    return status, await link.state.wishes()


def as_json(status: FleetStatus, wishes: Wishes, now_ms: int) -> dict[str, Any]:
    """The status, with its age, what is wanted, and whether its loop lives."""
    said: dict[str, Any] = msgspec.to_builtins(status)
    said["age_ms"] = now_ms - status.at_ms
    said["loop_alive"] = not is_stale(status, now_ms)
    for name, wish in wishes.services.items():
        service = said["services"].setdefault(name, {"service": name})
        service["bounds"] = [wish.replicas_min, wish.replicas_max]
        service["port"] = wish.port
        service["wished_revision"] = wish.spec.revision
        scale = wishes.scales.get(name)
        service["by_hand"] = msgspec.to_builtins(scale) if scale else None
    return said


async def _watch(link: Link) -> int:
    """Until Ctrl-C. A database that does not answer is asked again."""
    with Live(console=Console(markup=False, highlight=False), screen=False, auto_refresh=False) as live:
        while True:
            try:
                status, wishes = await _ask(link)
                live.update(fleet(status, wishes, link.clock.now_ms()), refresh=True)
            except SpringtideError as error:
                live.update(Text(str(error)), refresh=True)
            await link.clock.sleep(WATCH_S)
