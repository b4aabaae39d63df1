"""Starts the platform's process in the background, and ends it; it is never a child that goes with its starter."""

import signal

from springtide.cli.platform_folder import PlatformFolder, PlatformSettings, Running
from springtide.cli.world import command
from springtide.drivers.child import Child, spawn
from springtide.drivers.pids import Process
from springtide.errors import EngineError
from springtide.ports import Clock

START_S = 90.0
STOP_S = 60.0
_POLL_S = 0.05


async def start_platform(folder: PlatformFolder, settings: PlatformSettings, clock: Clock) -> Running:
    """Start it and wait until it is ready. Raises EngineError with the end of its log; then nothing of it runs."""
    folder.prepare()
    folder.keep_settings(settings)
    words = command("platform", "--data", str(folder.data))
    child = spawn("the platform", words, folder.log, die_with_parent=False)
    try:
        return await _ready(folder, child, clock)
    except BaseException:
        await child.stop(clock, STOP_S)
        raise


async def _ready(folder: PlatformFolder, child: Child, clock: Clock) -> Running:
    until = clock.monotonic_s() + START_S
    while clock.monotonic_s() < until:
        running = folder.running()
        if running is not None and (running.pid == child.pid or child.returncode is not None):
            return running  # ours, or that of another `up` that was faster
        if child.returncode is not None:
            raise child.failure("did not start")
        await clock.sleep(_POLL_S)
    raise child.failure(f"was not ready within {START_S:.0f} s")


async def stop_platform(folder: PlatformFolder, running: Running, clock: Clock) -> None:
    """Ask it to end, and wait; what it runs stays. Raises EngineError when it does not end."""
    process = Process(running.pid, running.started_ticks)
    process.send_signal(signal.SIGTERM)
    until = clock.monotonic_s() + STOP_S
    while running.alive:
        if clock.monotonic_s() > until:
            msg = f"the platform (process {running.pid}) has not ended after {STOP_S:.0f} s; see {folder.log}"
            raise EngineError(msg)
        await clock.sleep(_POLL_S)
