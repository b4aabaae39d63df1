"""`springtide calibrate`: what this machine's building blocks do, measured with the real engines, for simulations."""

import os
import platform
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self, TypeVar

import msgspec
import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from springtide.cli.calibrate_measures import BATCH, Bench, CounterRun, FleetRun, counter_once, fleet_once, stores_once
from springtide.cli.stores import Given, Places, start_stores
from springtide.cli.world import Folders, make_settings, prepare_folders
from springtide.config import CounterSettings, InventorySettings
from springtide.drivers.run_folder import release
from springtide.drivers.system import SystemClock, SystemIds
from springtide.twin.simulation.calibration import Calibration, Figure, figure, write_calibration

_SLOWEST = 0.99
_WHOLE = 100  # from here on figures are shown without decimals

_T = TypeVar("_T")

_MEASURES = (
    ("purchases_per_cpu_s", "purchases for each CPU second of a counter"),
    ("sold_out_per_cpu_s", "sold-out answers for each"),
    ("pages_per_cpu_s", "pages for each"),
    ("purchases_per_s", "purchases/s of a counter, everything on this machine"),
    ("purchase_ms", "a purchase at ease"),
    ("purchase_p99_ms", "99 of 100 of them"),
    ("stack_ms", "a purchase through the balancer, four replicas"),
    ("stack_p99_ms", "99 of 100 of them"),
    ("inventory_single_per_s", "inventory, in batches of one"),
    ("inventory_batch_per_s", f"inventory, in batches of {BATCH}"),
    ("recorder_per_s", "recorder, journal to ledger"),
    ("replica_start_ms", "start of a replica, decision to ready"),
)


async def run_calibrate(out: Path, runs: int, *, as_json: bool) -> int:
    """Measure, write the file, and show it. Raises EngineError, and ConfigError when `out` cannot be written."""
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="springtide-calibrate-")))
        folders = prepare_folders(logs)
        stack.callback(release, folders.run)
        structlog.configure(logger_factory=structlog.WriteLoggerFactory(folders.log("calibrate").open("a")))
        with _Steps(3 * runs + 1) as steps:
            bench = await steps.take("starting the engines", lambda: _bench(stack, folders, clock))
            stores = [await steps.take("inventory and recorder", lambda: stores_once(bench)) for _ in range(runs)]
            counters = [await steps.take("a counter", lambda: counter_once(bench)) for _ in range(runs)]
            fleets = [await steps.take("replicas behind the balancer", lambda: fleet_once(bench)) for _ in range(runs)]
        calibration = put_together(stores, counters, fleets, clock.now_ms())
    write_calibration(out, calibration)
    if as_json:
        sys.stdout.write(msgspec.json.encode(calibration).decode() + "\n")
    else:
        _show(calibration, out)
    return 0


async def _bench(stack: AsyncExitStack, folders: Folders, clock: SystemClock) -> Bench:
    folder = folders.run / "valkey"
    folder.mkdir()
    stores = await start_stores(stack, clock, Given(), Places(folder), InventorySettings())
    settings = make_settings(CounterSettings(), None, stores, SystemIds())
    return Bench(folders, stores, settings, clock)


def put_together(
    stores: Sequence[tuple[float, float, float]],
    counters: Sequence[CounterRun],
    fleets: Sequence[FleetRun],
    at_ms: int,
) -> Calibration:
    """The figures of all runs; at least one of each."""
    return Calibration(
        machine=f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        at_ms=at_ms,
        batch=BATCH,
        purchases_per_cpu_s=figure("1/CPU s", [run.purchases_per_cpu_s for run in counters]),
        sold_out_per_cpu_s=figure("1/CPU s", [run.sold_out_per_cpu_s for run in counters]),
        pages_per_cpu_s=figure("1/CPU s", [run.pages_per_cpu_s for run in counters]),
        purchases_per_s=figure("1/s", [run.purchases_per_s for run in counters]),
        purchase_ms=figure("ms", [_quantile_ms(run.took_s, 0.5) for run in counters]),
        purchase_p99_ms=figure("ms", [_quantile_ms(run.took_s, _SLOWEST) for run in counters]),
        stack_ms=figure("ms", [_quantile_ms(run.took_s, 0.5) for run in fleets]),
        stack_p99_ms=figure("ms", [_quantile_ms(run.took_s, _SLOWEST) for run in fleets]),
        inventory_single_per_s=figure("1/s", [single for single, _, _ in stores]),
        inventory_batch_per_s=figure("1/s", [many for _, many, _ in stores]),
        recorder_per_s=figure("1/s", [recorded for _, _, recorded in stores]),
        replica_start_ms=figure("ms", [start_ms for run in fleets for start_ms in run.start_ms]),
    )


def _quantile_ms(took_s: Sequence[float], share: float) -> float:
    ordered = sorted(took_s)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000


class _Steps:
    """The progress bar, on standard error: a line for each step where that is no terminal."""

    def __init__(self, steps: int) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=self._console
        )
        self._task: TaskID = self._progress.add_task("", total=steps)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    async def take(self, what: str, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do one step."""
        self._progress.update(self._task, description=what)
        if not self._console.is_terminal:
            done = self._progress.tasks[0]
            self._console.print(f"{done.completed + 1:.0f}/{done.total:.0f} {what}", highlight=False)
        result = await work()
        self._progress.advance(self._task)
        return result


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= _WHOLE else f"{value:.2f}"


def _show(calibration: Calibration, out: Path) -> None:
    table = Table(title=calibration.machine)
    for heading in ("what", "median", "least", "most", "unit"):
        table.add_column(heading, justify="right" if heading in {"median", "least", "most"} else "left")
    for name, words in _MEASURES:
        found: Figure = getattr(calibration, name)
        table.add_row(words, *(_rounded(value) for value in (found.median, found.low, found.high)), found.unit)
    console = Console()
    console.print(table)
    console.print(f"written to {out}; `springtide simulate --calibration {out}` reads it", highlight=False)
