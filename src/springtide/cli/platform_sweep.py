"""The sweep beside a platform: one process for each, which goes on when the platform's own is killed."""

import signal
from contextlib import AsyncExitStack

from springtide.cli.platform_folder import PlatformFolder, PlatformSettings
from springtide.cli.supervisor import Supervisor, starts
from springtide.cli.world import command
from springtide.drivers.child import Child, spawn
from springtide.drivers.pids import Process
from springtide.drivers.system import SystemClock
from springtide.ports import Clock

STOP_S = 20.0
_POLL_S = 0.05


async def start_sweep(
    stack: AsyncExitStack, folder: PlatformFolder, settings: PlatformSettings, clock: SystemClock
) -> None:
    """Start it, in place of one that an earlier platform left. Nodes on paper need none: they are this process's own.

    When the platform ends, it goes on: what is rented stays rented.
    """
    await end_sweep(folder, clock)
    if settings.config.cloud.driver == "local":
        return

    def start() -> Child:
        words = command("sweep", "--data", str(folder.data))
        return spawn("sweep", words, folder.log.with_name("sweep.log"), die_with_parent=False)

    supervisor = Supervisor("sweep", starts(start), clock)
    await supervisor.start()
    stack.push_async_callback(supervisor.release)


async def end_sweep(folder: PlatformFolder, clock: Clock) -> None:
    """End the process that sweeps for this folder, if there is one; killed when it does not end by itself."""
    found = folder.sweeping()
    if found is None:
        return
    process = Process(found.pid, found.started_ticks)
    process.send_signal(signal.SIGTERM)
    until = clock.monotonic_s() + STOP_S
    while found.alive and clock.monotonic_s() < until:
        await clock.sleep(_POLL_S)
    process.send_signal(signal.SIGKILL)
