"""`springtide run platform`: the process behind `springtide up`. Engines, runtimes, and the control loop.

It may be killed at any moment: replicas and balancer go on, and the next one takes them over.
"""

import asyncio
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog

from springtide.cli.clouds import open_for_replicas
from springtide.cli.platform_balancers import ServiceBalancers, start_engine
from springtide.cli.platform_folder import PlatformFolder, PlatformSettings, Running
from springtide.cli.platform_images import image_parts, start_keeper, start_origin
from springtide.cli.platform_order import OrderPath, start_order_path
from springtide.cli.platform_runtimes import start_runtimes
from springtide.cli.platform_sweep import start_sweep
from springtide.cli.supervisor import Supervisor
from springtide.cli.world import LOOP_STOP_S, cancelled
from springtide.config import Config
from springtide.drivers.child import Child
from springtide.drivers.embedded_postgres import start_postgres
from springtide.drivers.pids import started_ticks
from springtide.drivers.postgres import migrate
from springtide.drivers.postgres_fleet import PostgresFleetState
from springtide.drivers.prometheus_query import PrometheusSensor
from springtide.drivers.system import SystemClock, SystemIds
from springtide.errors import ConfigError
from springtide.fleet.journal import Journal
from springtide.fleet.loop import ControlLoop, LoopSettings
from springtide.fleet.ports import FleetPorts
from springtide.model import COUNTER, Signal

RUN_LETTERS = 8

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Platform:
    folder: PlatformFolder
    settings: PlatformSettings
    clock: SystemClock
    dsn: str

    @property
    def config(self) -> Config:
        return self.settings.config


async def run_platform(data: Path) -> int:
    """Run until SIGTERM. What is served then goes on. Raises UserError when the folder is in use, EngineError."""
    folder = PlatformFolder(data)
    settings = folder.settings()
    if settings is None:
        msg = f"{folder.data}: there are no settings of a platform; `springtide up` writes them and starts it"
        raise ConfigError(msg)
    try:
        await _run(folder, settings, SystemClock())
    except asyncio.CancelledError:
        log.info("ended as asked; what it serves goes on")
    return 0


async def _run(folder: PlatformFolder, settings: PlatformSettings, clock: SystemClock) -> None:
    async with AsyncExitStack() as stack:
        stack.enter_context(folder.locked())
        dsn = settings.ledger or await _postgres(stack, folder, clock)
        await migrate(dsn)
        platform = _Platform(folder, settings, clock, dsn)
        order_path = OrderPath()
        if platform.config.sales:
            order_path = await start_order_path(stack, folder, settings, dsn, clock)
        await start_origin(stack, folder, platform.config.images, clock)
        ticking = await _loop(stack, platform, order_path)
        await start_sweep(stack, folder, settings, clock)
        folder.announce(Running(os.getpid(), started_ticks(os.getpid()), dsn, order_path.backoffice_url))
        await ticking


async def _postgres(stack: AsyncExitStack, folder: PlatformFolder, clock: SystemClock) -> str:
    """The embedded PostgreSQL, started again on its data whenever it dies."""
    engine = await start_postgres(clock, folder.postgres)
    stack.push_async_callback(engine.stop)

    async def again() -> Child:
        await engine.restart()
        return engine.child

    supervisor = Supervisor("postgres", again, clock, engine.child)
    await supervisor.start()
    stack.push_async_callback(supervisor.release)
    return engine.dsn


async def _loop(stack: AsyncExitStack, platform: _Platform, order_path: OrderPath) -> "asyncio.Task[None]":
    """The control loop with all its ports."""
    folder, clock, config = platform.folder, platform.clock, platform.config
    state = await PostgresFleetState.connect(platform.dsn, clock)
    stack.push_async_callback(state.close)
    images = await image_parts(stack, platform.settings, clock)
    runtimes = await start_runtimes(stack, folder, platform.settings, images, clock)
    balancers = ServiceBalancers(await start_engine(config.fleet.balancer, folder.balancer, clock), clock)
    stack.push_async_callback(balancers.release)
    zones = config.fleet_zones()
    cloud = open_for_replicas(config, clock, folder.data)
    stack.push_async_callback(cloud.close)
    ports = FleetPorts(
        runtimes=runtimes,
        balancers=balancers,
        cloud=cloud,
        state=state,
        sensors=_sensor,
        engines={COUNTER: order_path.engines},
        lines={line.name: PrometheusSensor(line.url, line.query) for line in config.lines if line.url},
    )
    settings = LoopSettings(
        run_id=SystemIds().new("")[:RUN_LETTERS],
        zones=zones,
        policy=config.policy(),
        calendar=order_path.calendar,
        tick_ms=config.fleet.tick_ms,
        calendars={event.service: config.calendar_of(event.service) for event in config.calendar if event.service},
        lease_ms=round(config.fleet.lease_s * 1000),
    )
    loop = ControlLoop(clock, ports, settings, Journal(folder.journal))
    ticking = asyncio.create_task(loop.run(), name="control loop")
    stack.push_async_callback(_stop, loop, ticking)
    await start_keeper(stack, images, config, state, clock)
    return ticking


async def _stop(loop: ControlLoop, ticking: "asyncio.Task[None]") -> None:
    """Let it finish what it began; what is rented and what runs stays, for the next one."""
    await loop.shutdown(LOOP_STOP_S)
    await cancelled(ticking)


def _sensor(_service: str, signal: Signal) -> PrometheusSensor:
    return PrometheusSensor(signal.url, signal.query)
