"""`springtide simulate`: a sale rehearsed at any size, on a virtual clock, by the production decisions.

Exit status: 0 done, 1 an invariant was broken or a figure is not as expected, 2 bad input, 130 Ctrl-C (what was
computed until then is told).
"""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.console import Console

from springtide.cli.running import EXIT_INTERRUPTED
from springtide.cli.simulate_compare import CompareOptions, run_compare, write_report
from springtide.cli.simulate_seeds import SeedOptions, run_seeds
from springtide.cli.simulate_show import Progress, show
from springtide.drivers.system import SystemClock
from springtide.errors import ConfigError
from springtide.twin.simulation.approaches import APPROACHES, OURS, approach
from springtide.twin.simulation.calibration import calibrated, load_calibration
from springtide.twin.simulation.expectations import Expectation, load_expectation, unmet
from springtide.twin.simulation.invariants import checks
from springtide.twin.simulation.outcome import Outcome
from springtide.twin.simulation.reading import counts_of, find_scenario, shipped, with_demand
from springtide.twin.simulation.run import simulate as run
from springtide.twin.simulation.scenario import Scenario


def simulate(  # noqa: PLR0913 - each is an option of the command line
    scenario: Annotated[str, Parameter(help="A TOML file, or the name of a scenario that comes along.")] = "",
    *,
    seed: Annotated[int | None, Parameter(help="The same seed, the same outcome; without it, the scenario's.")] = None,
    calendar: Annotated[bool, Parameter(help="--no-calendar: the fleet does not know what was announced.")] = True,
    policy: Annotated[str, Parameter(help=f"Who decides: {', '.join(APPROACHES)}.")] = "springtide",
    compare: Annotated[
        bool, Parameter(negative=(), help="Run it under our policy and others; report in --out.")
    ] = False,
    report: Annotated[Path | None, Parameter(help="Write a page with charts of the run to this file.")] = None,
    demand: Annotated[
        Path | None, Parameter(help="A CSV file of counts for each step of time, which drive demand.")
    ] = None,
    scale: Annotated[float, Parameter(help="How many people each count of that file stands for.")] = 1.0,
    calibration: Annotated[
        Path | None, Parameter(help="What `springtide calibrate` has measured, in place of the scenario's rates.")
    ] = None,
    seeds: Annotated[int, Parameter(help="Try so many seeds of random faults, and tell what breaks.")] = 0,
    first_seed: Annotated[int, Parameter(help="The first of them.")] = 1,
    processes: Annotated[int, Parameter(help="So many at once.")] = 1,
    shrink: Annotated[bool, Parameter(negative=(), help="Find a smaller scenario that breaks the same.")] = False,
    expect: Annotated[
        Path | None, Parameter(help="A TOML file of bounds (`availability = [0.99, 1]`) to keep.")
    ] = None,
    out: Annotated[Path, Parameter(help="The folder of what --compare and --shrink write.")] = Path("out/simulate"),
    json: Annotated[bool, Parameter(help="The outcome as JSON on standard output.")] = False,
) -> int:
    """Rehearse a sale on a virtual clock, by the decisions that run in production. Without a name: list them."""
    if not scenario:
        _list_scenarios(as_json=json)
        return 0
    words = _words(scenario, seed, calendar=calendar, demand=demand, scale=scale)
    wanted = _with_options(find_scenario(scenario), calendar=calendar, demand=demand, scale=scale)
    if calibration is not None:
        wanted = msgspec.structs.replace(wanted, path=calibrated(wanted.path, load_calibration(calibration)))
    bounds = {} if expect is None else load_expectation(expect)
    if compare and (seeds or shrink or report or policy != OURS):
        raise ConfigError("--compare runs all policies once; leave out --policy, --report, --seeds and --shrink")
    if compare:
        return run_compare(wanted, counts_of(wanted), CompareOptions(seed, out, json))
    if seeds or shrink:
        if seed is not None:
            wanted = msgspec.structs.replace(wanted, seed=seed)
        options = SeedOptions(seeds, first_seed, processes, shrink, out, words, json)
        return run_seeds(wanted, counts_of(wanted), options)
    return _run_once(wanted, seed, policy, bounds, report, as_json=json)


def _run_once(
    wanted: Scenario,
    seed: int | None,
    policy: str,
    bounds: Expectation,
    report: Path | None,
    *,
    as_json: bool,
) -> int:
    counts = counts_of(wanted)
    who = approach(policy, wanted, counts)
    clock = SystemClock()
    began_s = clock.monotonic_s()
    with Progress(wanted) if sys.stderr.isatty() else nullcontext() as progress:
        outcome = run(
            wanted,
            seed,
            policy=who,
            counts=counts,
            on_sample=progress.sample if progress is not None else None,
            watches=(checks(wanted),) if policy == OURS else (),  # the others have promised nothing
        )
    outcome = msgspec.structs.replace(outcome, wall_s=round(clock.monotonic_s() - began_s, 3))
    _tell(wanted, outcome, as_json=as_json)
    if report is not None:
        write_report(report, wanted, outcome, counts)
    if outcome.interrupted:
        return EXIT_INTERRUPTED
    wrong = unmet(outcome, bounds)
    for line in wrong:
        sys.stderr.write(f"springtide: not as expected: {line}\n")
    return int(bool(outcome.breaches or wrong))


def _with_options(scenario: Scenario, *, calendar: bool, demand: Path | None, scale: float) -> Scenario:
    if scale <= 0:
        raise ConfigError(f"--scale {scale} must be more than 0")
    if demand is not None:
        scenario = with_demand(scenario, demand, scale)
    return msgspec.structs.replace(scenario, calendar=scenario.calendar and calendar)


def _words(scenario: str, seed: int | None, *, calendar: bool, demand: Path | None, scale: float) -> tuple[str, ...]:
    """The words of the command line that give the same scenario again."""
    words = [scenario]
    words += [] if calendar else ["--no-calendar"]
    words += [] if demand is None else ["--demand", str(demand), "--scale", f"{scale:g}"]
    return tuple(words if seed is None else [*words, "--seed", str(seed)])


def _tell(scenario: Scenario, outcome: Outcome, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    else:
        show(scenario, outcome, Console())
    if outcome.interrupted:
        sys.stderr.write(f"springtide: stopped after {outcome.until_s:,.0f} of {scenario.duration_s:,} s simulated\n")


def _list_scenarios(*, as_json: bool) -> None:
    scenarios = [find_scenario(name) for name in shipped()]
    if as_json:
        sys.stdout.write(msgspec.json.encode({one.name: one.about for one in scenarios}).decode() + "\n")
        return
    for one in scenarios:
        sys.stdout.write(f"{one.name:22} {one.about}\n")
