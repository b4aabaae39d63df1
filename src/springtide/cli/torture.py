"""`springtide torture`: load, faults, rest, and the verdict.

Everything that is started goes onto one exit stack. The history stays in `out`: `history.jsonl` line by line while it
runs, `ending.json` at the end, `options.json` for a replay, `torture.json` with the verdict; and when the audit finds a
difference, the inventory's append-only files.
"""

import asyncio
import contextlib
import logging
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog
from rich.console import Console

from springtide.cli.stores import Given
from springtide.cli.torture_faults import Striker
from springtide.cli.torture_show import show
from springtide.cli.torture_world import (
    TortureOptions,
    TortureWorld,
    copy_logs,
    keep_inventory,
    processes_of,
    start_world,
)
from springtide.cli.world import Folders, prepare_folders
from springtide.drivers.run_folder import release
from springtide.drivers.system import SystemClock, SystemIds, chance
from springtide.errors import ConfigError, InventoryError, LedgerError
from springtide.sale.audit import AuditReport, audit
from springtide.twin.torture.checker import check
from springtide.twin.torture.client import Client
from springtide.twin.torture.history import Ending, History, Record, Struck, read_lines, write_line
from springtide.twin.torture.merchant import Merchant
from springtide.twin.torture.report import TortureReport, make_report
from springtide.twin.torture.schedule import FaultKind, faults

BUYERS = 16
WARM_S = 1.5
SETTLE_S = 60.0
AUDIT_S = 5.0
POLL_S = 0.1


class _Kept(msgspec.Struct, frozen=True):
    """`options.json`."""

    faults: int
    seed: int
    kinds: tuple[FaultKind, ...]
    broken: str
    impossible: dict[FaultKind, str]
    duration_s: float


class _Log:
    """Appends each record to the history's file at once: what was promised is on record, whatever comes next."""

    def __init__(self, path: Path, console: Console) -> None:
        self._file = path.open("ab", buffering=0)
        self._console = console

    def add(self, record: Record) -> None:
        self._file.write(write_line(record))
        if isinstance(record, Struck):
            fault, lasted_s = record.fault, (record.healed_ms - record.at_ms) / 1000
            counts = f"{record.in_flight} in flight" if record.counted else "nothing in flight, does not count"
            self._console.print(f"{fault.number + 1:4} {fault.kind:9} {fault.target:10} {lasted_s:5.1f} s  {counts}")

    def close(self) -> None:
        self._file.close()


@dataclass
class _Run:
    """One run under way."""

    options: TortureOptions
    folders: Folders
    clock: SystemClock
    world: TortureWorld
    client: Client
    log: _Log


async def run_torture(options: TortureOptions, *, as_json: bool) -> int:
    """0: every fault wanted has struck and nothing is wrong. 1: something is."""
    console = Console(stderr=as_json)
    report = await _torture(options, console)
    _publish(report, options.out, console, as_json=as_json)
    return 0 if report.holds else 1


async def run_replay(folder: Path, *, again: bool, as_json: bool) -> int:
    """Check a kept history again; with `again`, run its schedule again, into `folder/again`. 0 when all of it holds."""
    console = Console(stderr=as_json)
    kept, report = recheck(folder)
    console.print(f"{folder}: the history as it was kept")
    _publish(report, folder, console, as_json=as_json and not again)
    if not again:
        return 0 if report.holds else 1
    options = TortureOptions(kept.faults, kept.seed, kept.kinds, folder / "again", kept.broken, Given())
    status = await run_torture(options, as_json=as_json)
    return status if report.holds else 1


def recheck(folder: Path) -> tuple[_Kept, TortureReport]:
    """The verdict over a kept history, without any engine. Raises ConfigError when there is none."""
    try:
        kept = msgspec.json.decode((folder / "options.json").read_bytes(), type=_Kept)
        ending = msgspec.json.decode((folder / "ending.json").read_bytes(), type=Ending)
        history = _read(folder)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{folder}: holds no history of a torture ({error}); give the folder of its --out") from error
    return kept, _judge(kept, history, ending)


async def _torture(options: TortureOptions, console: Console) -> TortureReport:
    folders = prepare_folders(options.out)
    clock = SystemClock()
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(folders.log("torture").open("a")))
    logging.basicConfig(filename=folders.log("torture"))  # of libraries, which tell of each connection they lost
    began_s = clock.monotonic_s()
    log = _Log(options.out / "history.jsonl", console)
    async with AsyncExitStack() as stack:
        stack.callback(log.close)
        stack.callback(release, folders.run)
        world = await start_world(stack, folders, clock, options)
        stack.callback(copy_logs, world)
        client = Client(world.where(), clock, SystemIds(), chance(options.seed + 1), log.add)
        stack.push_async_callback(client.close)
        run = _Run(options, folders, clock, world, client, log)
        await _strike_under_load(run)
        ending = await _rest(run)
    kept = _Kept(
        options.faults,
        options.seed,
        options.kinds,
        options.broken,
        dict(world.impossible),
        clock.monotonic_s() - began_s,
    )
    ending = msgspec.structs.replace(ending, processes_left=tuple(processes_of(folders)))
    (options.out / "options.json").write_bytes(msgspec.json.encode(kept))
    (options.out / "ending.json").write_bytes(msgspec.json.encode(ending))
    return _judge(kept, _read(options.out), ending)


async def _strike_under_load(run: _Run) -> None:
    """Buyers buy while faults strike; returns when all is healed and every buyer knows what he has."""
    options, world = run.options, run.world
    plan = faults(
        chance(options.seed),
        [kind for kind in options.kinds if kind not in world.impossible],
        world.groups(),
        disk_at=options.faults // 2,
    )
    merchant = Merchant(run.client, world.api_key, run.clock, chance(options.seed + 2))
    buying = asyncio.create_task(run.client.run(BUYERS))
    restocking = asyncio.create_task(merchant.run())
    try:
        await run.clock.sleep(WARM_S)
        await Striker(world, run.client, run.clock, run.log.add).run(plan, options.faults)
    finally:
        run.client.stop()
    await asyncio.gather(buying, restocking)


async def _rest(run: _Run) -> Ending:
    """Wait until orders have been paid or have expired and their stock is back; then look at both sides."""
    stores, sale = run.world.stores, run.world.sale.sale
    until_s = run.clock.monotonic_s() + SETTLE_S
    while run.clock.monotonic_s() < until_s:
        with contextlib.suppress(InventoryError, LedgerError):
            if not await _open_units(run) and not await _journal_entries(run):
                break
        await run.clock.sleep(POLL_S)
    report: AuditReport = await audit(stores.inventory, stores.ledger, sale, run.clock, AUDIT_S)
    if not report.holds:
        keep_inventory(run.world)
    given_up = [one.name for one in run.world.targets.values() if one.supervisor.given_up]
    return Ending(
        sale=run.world.sale,
        orders=tuple(await stores.ledger.orders(sale)),
        totals=tuple(one.totals for one in report.skus),
        stock={one.totals.sku: one.stock for one in report.skus},
        settled=report.settled and report.method == "still",
        open_returns=len(await stores.ledger.returns(1000)),
        journal_entries=await _journal_entries(run),
        given_up=tuple(given_up),
    )


async def _open_units(run: _Run) -> int:
    return sum(one.reserved + one.returning for one in await run.world.stores.ledger.totals(run.world.sale.sale))


async def _journal_entries(run: _Run) -> int:
    sale, inventory = run.world.sale, run.world.stores.inventory
    return sum([await inventory.journal_depth(sale.sale, bucket) for bucket in range(sale.buckets)])


def _read(folder: Path) -> History:
    with (folder / "history.jsonl").open("rb") as lines:
        return read_lines(lines)


def _judge(kept: _Kept, history: History, ending: Ending) -> TortureReport:
    findings = check(history, ending)
    options = (kept.seed, kept.faults, kept.impossible)
    return make_report(history, findings, len(ending.orders), options, kept.duration_s)


def _publish(report: TortureReport, out: Path, console: Console, *, as_json: bool) -> None:
    text = msgspec.json.format(msgspec.json.encode(report), indent=2)
    (out / "torture.json").write_bytes(text)
    if as_json:
        sys.stdout.write(text.decode() + "\n")
    else:
        show(report, out, console)
