"""A command's connection to the platform that runs from a folder: its settings, and the fleet's state in PostgreSQL."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from springtide.cli.platform_folder import PlatformFolder, PlatformSettings, Running
from springtide.drivers.postgres_fleet import PostgresFleetState
from springtide.drivers.system import SystemClock
from springtide.errors import Refused, SpringtideError
from springtide.fleet.status import FleetStatus, read_status
from springtide.model import ServiceWish

POLL_S = 0.2


@dataclass(frozen=True)
class Link:
    """What a command needs to know and to ask."""

    folder: PlatformFolder
    settings: PlatformSettings
    running: Running
    state: PostgresFleetState
    clock: SystemClock

    async def status(self) -> FleetStatus | None:
        """What the loop said last; None when none has led yet."""
        return await read_status(self.state)

    async def wished(self, service: str) -> ServiceWish:
        """What is wanted of a service. Raises Refused when there is no such service."""
        services = (await self.state.wishes()).services
        if service not in services:
            known = ", ".join(sorted(services)) or "none"
            raise Refused(f"there is no service {service!r} here; there are: {known}")
        return services[service]

    async def wait(self, seconds: float, reached: Callable[[FleetStatus], bool]) -> bool:
        """Look at the status until it is as wanted; False when time is up. Raises Refused when the platform ends.

        What was said before the call does not count: a loop that has died since would go on being believed.
        """
        asked_ms, until = self.clock.now_ms(), self.clock.monotonic_s() + seconds
        while True:
            status = await self._status_if_answered()
            if status is not None and status.at_ms >= asked_ms and reached(status):
                return True
            if not self.running.alive:
                raise Refused(f"the platform has ended meanwhile; see {self.folder.log} and run `springtide up` again")
            if self.clock.monotonic_s() >= until:
                return False
            await self.clock.sleep(POLL_S)

    async def _status_if_answered(self) -> FleetStatus | None:
        try:
            return await self.status()
        except SpringtideError:  # a database that restarts is asked again
            return None


@asynccontextmanager
async def linked(data: Path, clock: SystemClock) -> AsyncIterator[Link]:
    """Connect. Raises Refused when no platform runs from there, FleetStateError or LedgerError."""
    folder = PlatformFolder(data)
    settings, running = folder.settings(), folder.running()
    if settings is None:
        raise Refused(f"no platform runs from {folder.data}: start one with `springtide up`, or name its --data")
    if running is None:
        raise Refused(
            f"the platform of {folder.data} is not running; its replicas may be. "
            "`springtide up` starts it again, `springtide down` ends everything"
        )
    state = await PostgresFleetState.connect(running.dsn, clock)
    try:
        yield Link(folder, settings, running, state, clock)
    finally:
        await state.close()
