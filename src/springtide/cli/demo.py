"""`springtide demo`: one whole sale on this machine, with a verdict.

Everything that is started goes onto one exit stack: Ctrl-C, a failure and the good end take the same way down.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from springtide.cli import figures
from springtide.cli.chaos import Chaos, Fault
from springtide.cli.demo_cloud import DemoCloud, start_cloud
from springtide.cli.examples import example
from springtide.cli.measure import unthrottled_rate
from springtide.cli.roles import RoleSettings
from springtide.cli.stores import Given, all_started
from springtide.cli.watch import Watch
from springtide.cli.world import (
    LOOP_STOP_S,
    Engines,
    Folders,
    Workers,
    cancelled,
    command,
    make_runtime,
    make_settings,
    prepare_folders,
    settings_file,
    start_engines,
    start_workers,
    stop_loop,
)
from springtide.config import Config, CrowdSettings, load_sale
from springtide.console.report import RunFigures, exit_status, write_report
from springtide.drivers.child import Child, spawn
from springtide.drivers.private_file import write_private
from springtide.drivers.process import ProcessRuntime
from springtide.drivers.run_folder import release
from springtide.drivers.system import SystemClock, SystemIds
from springtide.errors import CloudUnavailable, ConfigError, EngineError
from springtide.fleet.journal import Journal
from springtide.fleet.loop import ControlLoop, LoopSettings
from springtide.fleet.ports import FleetPorts, one_service
from springtide.model import CalendarEvent, ReplicaState, Sale, Zone, ZoneKind
from springtide.ports import Cloud
from springtide.sale.audit import audit
from springtide.sale.tokens import key_of
from springtide.twin.crowd.demand import Demand, load_demand
from springtide.twin.crowd.spec import CrowdSpec

LEAD_IN_S = 5.0
BASE_READY_S = 30.0
SETTLE_S = 30.0
CROWD_STOP_S = 5.0
AUDIT_S = 20.0
EXPIRY_S = 5.0
POLL_S = 0.1


@dataclass(frozen=True)
class DemoOptions:
    """What the command line asks for."""

    config: Path | None
    out: Path
    scale: bool
    chaos: bool
    port: int
    given: Given


@dataclass(frozen=True)
class Inputs:
    """What the files say, checked before anything is started."""

    config: Config
    crowd: CrowdSettings
    demand_path: Path
    demand: Demand
    zones: tuple[Zone, ...]


@dataclass
class Run:
    """One demo under way."""

    inputs: Inputs
    options: DemoOptions
    folders: Folders
    clock: SystemClock
    engines: Engines
    settings: RoleSettings
    workers: Workers
    runtime: ProcessRuntime
    rented_from: DemoCloud
    loop: ControlLoop
    sale: Sale
    start_ms: int
    faults: list[Fault] = field(default_factory=list)

    @property
    def cloud(self) -> Cloud:
        """What nodes are rented from."""
        return self.rented_from.cloud


async def run_demo(options: DemoOptions, environ: Mapping[str, str]) -> int:
    """Run the sale and write the report. 0: the verdict holds; 1: it does not; 3: this machine is too slow to tell."""
    inputs = read_inputs(options, environ)
    folders = prepare_folders(options.out)
    clock = SystemClock()
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(folders.log("loop").open("a")))
    watch = Watch(clock, options.out, inputs.config, inputs.demand)
    async with AsyncExitStack() as stack:
        stack.callback(release, folders.run)
        stack.enter_context(watch)
        run = await _start(stack, options, inputs, folders, clock)
        watching = asyncio.create_task(watch.follow(run.loop, run.engines, run.cloud, run.sale, run.start_ms))
        stack.push_async_callback(cancelled, watching)
        await _sell(stack, run)
        await _settle(run, watch)
        report = await _conclude(run, watch)
    write_report(options.out, report)
    watch.conclude(report)
    return exit_status(report)


def read_inputs(options: DemoOptions, environ: Mapping[str, str]) -> Inputs:
    """Read and check the configuration and the demand. Raises ConfigError."""
    path = options.config or example("live-room.toml")
    config = load_sale(path, environ)
    if config.crowd is None:
        msg = f"{path}: [crowd] is missing; a demo needs a demand and buyers"
        raise ConfigError(msg)
    if len(config.sales) != 1:
        msg = f"{path}: sales: a demo runs one sale, this file has {len(config.sales)}"
        raise ConfigError(msg)
    demand_path = path.parent / config.crowd.demand
    demand = load_demand(demand_path)
    if config.sales[0].opens_after_s >= len(demand.rates):
        msg = f"{path}: sales[0].opens_after_s: the demand in {demand_path} ends before the sale opens"
        raise ConfigError(msg)
    zones = config.fleet_zones() if options.scale else base_only(config)
    return Inputs(config, config.crowd, demand_path, demand, zones)


def base_only(config: Config) -> tuple[Zone, ...]:
    """The IDC zones with room for their base replicas and no more, and no cloud."""
    cores = config.fleet.base_replicas * config.counter.cores
    return tuple(
        msgspec.structs.replace(zone, nodes_max=1, cores_per_node=cores)
        for zone in config.fleet_zones()
        if zone.kind is ZoneKind.IDC
    )


async def _start(
    stack: AsyncExitStack, options: DemoOptions, inputs: Inputs, folders: Folders, clock: SystemClock
) -> Run:
    """Engines, workers, base replicas; the sale is published last, when its moments are certain."""
    ids = SystemIds()
    config = inputs.config
    engines, rented_from = await all_started(
        start_engines(stack, folders, clock, config, options.given, options.port),
        start_cloud(stack, folders, clock, config, inputs.zones),
    )
    settings = make_settings(config.counter, config.counter.rate_max, engines.stores, ids)
    settings = msgspec.structs.replace(settings, replicas_acked=config.inventory.replicas_acked, room=config.room)
    path = settings_file(folders, "settings", settings)
    workers = await start_workers(stack, folders, clock, path)
    runtime = await make_runtime(folders, clock, path)
    stack.push_async_callback(runtime.close)
    start_ms = clock.now_ms() + round(LEAD_IN_S * 1000)
    (sale,) = inputs.config.sales_from(start_ms)
    calendar = inputs.config.calendar_from(start_ms) if options.scale else ()
    ports = one_service(engines.envoy.balancer, runtime, rented_from.cloud, inputs.zones, engines.stores.loads(clock))
    loop = _make_loop(inputs, folders, clock, ports, calendar)
    ticking = asyncio.create_task(loop.run())
    stack.push_async_callback(stop_loop, loop, ticking)
    await engines.ledger.publish(sale)
    if not await engines.inventory.publish(sale):
        raise ConfigError(
            f"sale {sale.sale} is there already, on --inventory; give a Valkey without it, or rename the sale"
        )
    run = Run(inputs, options, folders, clock, engines, settings, workers, runtime, rented_from, loop, sale, start_ms)
    await _base_ready(run)
    return run


def _make_loop(
    inputs: Inputs,
    folders: Folders,
    clock: SystemClock,
    ports: FleetPorts,
    calendar: tuple[CalendarEvent, ...],
) -> ControlLoop:
    settings = LoopSettings(
        run_id=SystemIds().new("")[:8],
        zones=inputs.zones,
        policy=inputs.config.policy(),
        calendar=calendar,
        tick_ms=inputs.config.fleet.tick_ms,
    )
    return ControlLoop(clock, ports, settings, Journal(folders.out / "journal.jsonl"))


async def _base_ready(run: Run) -> None:
    """Wait until the base replicas serve. Raises EngineError when they do not come up before the first second."""
    idc = [zone for zone in run.inputs.zones if zone.kind is ZoneKind.IDC]
    wanted = run.inputs.config.fleet.base_replicas * len(idc)
    while run.clock.now_ms() < run.start_ms + BASE_READY_S * 1000:
        ready = [one for one in await run.runtime.list() if one.state is ReplicaState.READY]
        if len(ready) >= wanted:
            return
        await run.clock.sleep(POLL_S)
    msg = f"the base replicas did not become ready in {BASE_READY_S:.0f} s; see {run.folders.out / 'logs'}"
    raise EngineError(msg)


async def _sell(stack: AsyncExitStack, run: Run) -> None:
    """Let the crowd come, and the faults strike; returns when the crowd has gone."""
    crowd = _start_crowd(run)
    stack.push_async_callback(crowd.stop, run.clock, CROWD_STOP_S)
    if run.options.chaos:
        chaos = Chaos(
            run.runtime,
            run.workers.recorder,
            run.clock,
            run.start_ms,
            run.sale.opens_ms,
            [zone.name for zone in run.inputs.zones if zone.kind is ZoneKind.IDC][-1],
            run.faults,
        )
        striking = asyncio.create_task(chaos.run())
        stack.push_async_callback(cancelled, striking)
    while crowd.returncode is None:
        await run.clock.sleep(POLL_S)
    if crowd.returncode != 0:
        raise crowd.failure(f"ended with status {crowd.returncode}")


def _start_crowd(run: Run) -> Child:
    spec = CrowdSpec(
        url=run.engines.envoy.url,
        backoffice_url=run.workers.backoffice_url(),
        sale=run.sale,
        demand=str(run.inputs.demand_path.absolute()),
        settings=run.inputs.crowd,
        token_key_hex=key_of(bytes.fromhex(run.settings.token_master)).hex(),
        webhook_secret_hex=run.settings.webhook_secret,
        start_ms=run.start_ms,
        out=str(run.folders.out.absolute()),
    )
    path = run.folders.run / "crowd.json"
    write_private(path, spec)
    return spawn("crowd", command("crowd", "--spec", str(path)), run.folders.log("crowd"))


async def _settle(run: Run, watch: Watch) -> None:
    """Wait until reservations have been paid or have expired, their stock is back, and the cloud is given back."""
    watch.settling()
    until = run.clock.monotonic_s() + SETTLE_S
    while run.clock.monotonic_s() < until:
        open_units = sum(row.reserved + row.returning for row in await run.engines.ledger.totals(run.sale.sale))
        depth = await run.engines.inventory.journal_depth(run.sale.sale, 0)
        if not open_units and not depth and await _nodes(run) == 0:
            return
        await run.clock.sleep(POLL_S)


async def _nodes(run: Run) -> int | None:
    """How many nodes are rented; None while the cloud does not say, or says that it is asked too often."""
    try:
        return len(await run.cloud.nodes())
    except CloudUnavailable:
        return None


async def _conclude(run: Run, watch: Watch) -> RunFigures:
    """Audit, measure the unthrottled rate, and put the figures together."""
    watch.auditing()
    report = await audit(run.engines.inventory, run.engines.ledger, run.sale.sale, run.clock, AUDIT_S)
    orders = await run.engines.ledger.orders(run.sale.sale)
    nodes_left = await run.rented_from.left()
    await run.loop.shutdown(LOOP_STOP_S)
    rate = await unthrottled_rate(run.folders, run.engines, run.settings, run.clock)
    return figures.collect(
        figures.Findings(
            config=run.inputs.config,
            zones=run.inputs.zones,
            scale=run.options.scale,
            chaos=run.options.chaos,
            sale=run.sale,
            start_ms=run.start_ms,
            faults=tuple(run.faults),
            audit=report,
            orders=tuple(orders),
            nodes_left=nodes_left,
            calls=dict(run.rented_from.calls),
            throttled=sum(run.rented_from.throttled.values()),
            cost_fen=await run.cloud.cost_fen(run.clock.now_ms()),
            unthrottled_rps=rate,
            fleet=tuple(watch.fleet),
            out=run.folders.out,
        )
    )
