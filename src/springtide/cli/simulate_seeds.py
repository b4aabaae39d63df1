"""`springtide simulate SCENARIO --seeds N` and `--shrink`: random faults by seed, and a smaller world that shows one.

Exit status: 0 nothing broke, 1 an invariant was broken, 2 bad input, 130 Ctrl-C (what was computed until then is told).
"""

import multiprocessing
import os
import shlex
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from springtide.cli.running import EXIT_INTERRUPTED
from springtide.drivers.system import SystemClock
from springtide.errors import ConfigError, UserError
from springtide.twin.simulation.fault_draw import draw
from springtide.twin.simulation.outcome import Breach
from springtide.twin.simulation.scenario import Scenario
from springtide.twin.simulation.seeds import Tried, try_scenario, try_seed
from springtide.twin.simulation.shrink import RUNS_MAX, Shrunk, shrink
from springtide.twin.simulation.writing import write_scenario

SEEDS_MAX = 1_000_000
PROCESSES_MAX = 64
CHUNK = 5
"""Seeds that a process takes at once."""

LINES_MAX = 20
"""Broken seeds that are shown; all of them are in the JSON."""


class SeedOptions(msgspec.Struct, frozen=True):
    """What to run: `count` seeds from `first` on (0: none, the scenario by itself), and what to do with a breach.

    `words` are the words of the command line that give the scenario, for the command that shows a seed again.
    """

    count: int = 0
    first: int = 1
    processes: int = 1
    shrinks: bool = False
    out: Path = Path("out/simulate")
    words: tuple[str, ...] = ()
    as_json: bool = False


class SeedReport(msgspec.Struct, frozen=True):
    """What came of many seeds. `commands` show each broken seed again; `shrunk` is the file of the smaller scenario."""

    scenario: str
    first_seed: int
    seeds: int
    wanted: int
    broken: tuple[Tried, ...]
    commands: tuple[str, ...]
    faults: dict[str, int]
    requests: float
    nodes_rented: int
    shrunk: str = ""
    wall_s: float = 0.0


def run_seeds(scenario: Scenario, counts: Sequence[float] | None, options: SeedOptions) -> int:
    """Try the seeds, shrink the first breach if that is asked for, and tell."""
    if not 0 <= options.count <= SEEDS_MAX or options.first < 0:
        raise ConfigError(f"--seeds must be 1 to {SEEDS_MAX:,}, and --first-seed not negative")
    if not 1 <= options.processes <= PROCESSES_MAX:
        raise ConfigError(f"--processes must be 1 to {PROCESSES_MAX}")
    clock = SystemClock()
    began_s = clock.monotonic_s()
    tried: list[Tried] = []
    interrupted, shrunk = False, ""
    try:
        _try_all(scenario, counts, options, tried)
        broken = sorted((one for one in tried if one.breaches), key=lambda one: one.seed)
        if options.shrinks and broken:
            shrunk = _shrink(scenario, counts, broken[0], options)
    except KeyboardInterrupt:
        interrupted = True
    report = _report(scenario, options, tried, shrunk)
    report = msgspec.structs.replace(report, wall_s=round(clock.monotonic_s() - began_s, 1))
    if options.as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        _show(report, Console())
    return EXIT_INTERRUPTED if interrupted else int(bool(report.broken))


def _report(scenario: Scenario, options: SeedOptions, tried: Sequence[Tried], shrunk: str) -> SeedReport:
    broken = tuple(sorted((one for one in tried if one.breaches), key=lambda one: one.seed))
    return SeedReport(
        scenario=scenario.name,
        first_seed=options.first if options.count else scenario.seed,
        seeds=len(tried),
        wanted=max(1, options.count),
        broken=broken,
        commands=tuple(_command(options, one.seed) for one in broken),
        faults=dict(sorted(Counter(kind for one in tried for kind in one.faults).items())),
        requests=sum(one.requests for one in tried),
        nodes_rented=sum(one.nodes_rented for one in tried),
        shrunk=shrunk,
    )


def _command(options: SeedOptions, seed: int) -> str:
    words = ["springtide", "simulate", *options.words]
    return shlex.join([*words, "--seeds", "1", "--first-seed", str(seed)] if options.count else words)


def _try_all(scenario: Scenario, counts: Sequence[float] | None, options: SeedOptions, tried: list[Tried]) -> None:
    """Add what comes of each seed to `tried`, in whatever order they end."""
    with _bar(scenario.name, max(1, options.count)) as bar:
        for one in _each(scenario, counts, options):
            tried.append(one)
            broken = sum(1 for other in tried if other.breaches)
            bar.update(bar.task_ids[0], completed=len(tried), now=f"{broken} broken" if broken else "nothing broken")


def _each(scenario: Scenario, counts: Sequence[float] | None, options: SeedOptions) -> Iterator[Tried]:
    seeds = range(options.first, options.first + options.count)
    if not options.count:
        yield try_scenario(scenario, counts)
    elif options.processes == 1 or len(seeds) == 1:
        for seed in seeds:
            yield try_seed(scenario, seed, counts)
    else:
        chunks = [seeds[begin : begin + CHUNK] for begin in range(0, len(seeds), CHUNK)]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.processes, context, _work_on) as pool:
            try:
                for work in as_completed([pool.submit(_try_chunk, scenario, chunk, counts) for chunk in chunks]):
                    yield from work.result()
            except (KeyboardInterrupt, GeneratorExit):
                for child in multiprocessing.active_children():
                    child.terminate()  # a seed of a large scenario takes its time
                pool.shutdown(cancel_futures=True)
                raise


def _work_on() -> None:
    """Ctrl-C ends the command, which then lets its processes end; they end by themselves when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_command, daemon=True).start()


def _end_with_the_command() -> None:
    command = multiprocessing.parent_process()
    if command is not None:
        command.join()
        os._exit(1)


def _try_chunk(scenario: Scenario, seeds: Sequence[int], counts: Sequence[float] | None) -> list[Tried]:
    return [try_seed(scenario, seed, counts) for seed in seeds]


def _shrink(scenario: Scenario, counts: Sequence[float] | None, tried: Tried, options: SeedOptions) -> str:
    """Write the smallest scenario that breaks what the seed broke first; the path of its file."""
    breach = tried.breaches[0]
    whole = draw(scenario, tried.seed) if options.count else scenario
    with _bar(f"shrinking seed {tried.seed}", RUNS_MAX) as bar:
        found = shrink(
            whole,
            breach.invariant,
            lambda smaller: try_scenario(smaller, counts),
            lambda runs: bar.update(bar.task_ids[0], completed=runs, now="simulations"),
        )
    path = options.out / f"{scenario.name}-seed-{tried.seed}.toml"
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(write_scenario(found.scenario, _comment(whole, breach, found, path)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; give another folder with --out") from error
    return str(path)


def _comment(whole: Scenario, breach: Breach, found: Shrunk, path: Path) -> str:
    smaller = found.scenario
    return (
        f"{breach.invariant}: {found.breach.detail}\n"
        f"at {found.breach.at_s:g} s. To see it: springtide simulate {shlex.quote(str(path))}\n"
        f"Found in {whole.name}, seed {whole.seed}: {len(whole.faults)} faults in {whole.duration_s} s; "
        f"{len(smaller.faults)} in {smaller.duration_s} s are left after {found.runs} simulations."
    )


def _bar(what: str, total: int) -> Progress:
    """A bar on standard error, if a person sees it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}"))
    shown = Console(stderr=True)
    bar = Progress(*columns, TimeRemainingColumn(), console=shown, transient=True, disable=not sys.stderr.isatty())
    bar.add_task(what, total=total, now="")
    return bar


def _show(report: SeedReport, console: Console) -> None:
    """What broke, and how to see it again; else what was tried."""
    for one, again in list(zip(report.broken, report.commands, strict=True))[:LINES_MAX]:
        breach = one.breaches[0]
        text = f"[red]✗[/] seed {one.seed}, {breach.at_s:,.0f} s: {breach.invariant}: {breach.detail}"
        console.print(text, highlight=False, soft_wrap=True)
        console.print(f"  {again}", highlight=False, soft_wrap=True, markup=False)
    if len(report.broken) > LINES_MAX:
        console.print(f"… and {len(report.broken) - LINES_MAX} more: --json has them all", highlight=False)
    if report.shrunk:
        console.print(f"a smaller scenario that shows the first: {report.shrunk}", highlight=False, soft_wrap=True)
    kinds = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in report.faults.items())
    console.print(f"{sum(report.faults.values()):,} faults: {kinds or 'none'}", highlight=False)
    verdict = f"[red]{len(report.broken)} broke an invariant[/]" if report.broken else "[green]no invariant broken[/]"
    console.print(
        f"{report.scenario}: {report.seeds:,} of {report.wanted:,} seeds from {report.first_seed}, "
        f"{report.requests:,.0f} requests, {report.nodes_rented:,} machines rented, {report.wall_s:.1f} s: {verdict}",
        highlight=False,
        soft_wrap=True,
    )
