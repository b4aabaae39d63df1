"""Elasticity on the twin: the production decisions against HPA v2 and KEDA, on one clock with the same start delays.

Series: generated flash sales, and files of `timestamp,value` bins (requests in five minutes) that
SPRINGTIDE_BENCH_SERIES names, separated by the system's path separator. Each file is scaled so that its mean needs 20
replicas. The last third of each series was used for no tuning: it is the held-out part, and the sales in it come from a
seed of their own. All of Springtide runs with the one setting OURS. Of the settings of HPA and KEDA in the grid, three
are shown: what the documentation gives, the one with the fewest violation seconds on the part for tuning that costs at
most a tenth more than Springtide there ("comparable"), and the one with the fewest at any cost ("any cost").

The world: two replicas in the owner's zones; beyond them rented nodes of four replicas, 75 s from order to ready; a
replica takes 10 s to start and 100 requests/s, all of them the same. Cost is what is paid, in replica-hours: nodes from
their order to their release.
"""

import itertools
import os
import random
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from bench.rows import Row, Skipped
from springtide.model import FleetPolicy, Zone, ZoneKind
from springtide.twin.elasticity import Elasticity, Need, measure_steps
from springtide.twin.kernel_run import run_counting, run_plan
from springtide.twin.kernel_world import Step, WorldSettings
from springtide.twin.policies import DEFAULT_UP, FAST_UP, Hpa, HpaSettings, Keda, Rate, cron_windows
from springtide.twin.series import Series, from_bins, generated, load_bins, normal_noise

FILES = "SPRINGTIDE_BENCH_SERIES"
SEED, SEED_HELD_OUT = 1, 3
START_MS = 1_699_920_000_000  # a midnight
CAPACITY = 100.0
MEAN_PER_S = 20 * CAPACITY
FLASH_NORMAL_PER_S = 3 * CAPACITY
TICK_MS = 5_000
DRAIN_MS = 5_000

WORLD = WorldSettings(
    zones=(
        Zone("own-a", ZoneKind.IDC, nodes_max=1, cores_per_node=1),
        Zone("own-b", ZoneKind.IDC, nodes_max=1, cores_per_node=1),
        Zone("cloud", ZoneKind.CLOUD, nodes_max=5_000, cores_per_node=4, lead_ms=75_000, price_fen_per_node_h=100),
    ),
    start_ms=10_000,
)

OURS = FleetPolicy(
    replica_requests_per_s=CAPACITY,
    replica_cores=1,
    headroom=0.2,
    base_replicas=1,
    patience_ms=60_000,
    drain_ms=DRAIN_MS,
    start_ms=10_000,
    actions_max=5_000,
    starting_max=5_000,
    stale_ms=3 * TICK_MS,
    season_ms=86_400_000,
    event_doubt=0.8,
)
"""The one setting for all series, frozen before the held-out parts were run."""


class Setting(msgspec.Struct, frozen=True):
    """One setting of HPA and KEDA; `ahead_s` is how long before an event KEDA's cron window begins."""

    target: float
    up: tuple[Rate, ...]
    stabilization_s: int
    window_s: int
    ahead_s: int

    def hpa(self) -> HpaSettings:
        return HpaSettings(
            target=self.target * CAPACITY,
            replicas_min=2,
            window_ms=1000 * self.window_s,
            up=self.up,
            down_stabilization_ms=1000 * self.stabilization_s,
        )

    def __str__(self) -> str:
        up = "900%" if self.up == FAST_UP else "default"
        return f"target {self.target:.0%}, up {up}, down after {self.stabilization_s} s, mean of {self.window_s} s"


DOCUMENTED = Setting(0.8, DEFAULT_UP, 300, 120, 300)
GRID = (
    DOCUMENTED,
    *(
        Setting(target, up, stabilization_s, 30, ahead_s)
        for target, (up, ahead_s), stabilization_s in itertools.product(
            (0.5, 0.6, 0.7, 0.8), ((DEFAULT_UP, 300), (FAST_UP, 150)), (300, 60)
        )
    ),
)
COMPARABLE = 1.1
PARTS = ("tuning", "held out", "whole")
OURS_NAME = "Springtide"

# By (policy, part, series).
Results = dict[tuple[str, str, str], Elasticity]


class Job(msgspec.Struct, frozen=True):
    """One policy on one series; `setting` is None for Springtide."""

    series: str
    policy: str
    setting: Setting | None


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    """The rows of this bench. A run is reproduced by its seed, so one is enough, whatever `runs` says."""
    del runs
    named = os.environ.get(FILES, "")
    skipped = [] if named else [Skipped("files of bins", f"set {FILES}=FILE.csv{os.pathsep}FILE.csv to measure them")]
    files = [path for path in named.split(os.pathsep) if path]
    names = [series.name for series in load(files)]
    with ProcessPoolExecutor(initializer=_keep, initargs=(files,)) as pool:
        results: Results = {}
        for found in pool.map(_run, _jobs(names)):
            results |= found
    chosen = {kind: _chosen(results, names, kind) for kind in ("HPA", "KEDA")}
    for part in PARTS:
        _show(results, names, chosen, part)
    return list(_rows(results, names, chosen)), skipped


def load(files: Sequence[str]) -> list[Series]:
    """All series."""
    noise = normal_noise(random.Random(SEED))
    found = [from_bins(Path(file).stem, load_bins(Path(file)), MEAN_PER_S, noise, START_MS) for file in files]
    return found + generated(random.Random(SEED), random.Random(SEED_HELD_OUT), FLASH_NORMAL_PER_S, START_MS)


_kept: dict[str, Series] = {}
_needs: dict[str, Need] = {}


def _keep(files: Sequence[str]) -> None:
    _kept.update({series.name: series for series in load(files)})


def _jobs(names: Sequence[str]) -> list[Job]:
    """The longest first."""
    ours = [Job(name, OURS_NAME, None) for name in reversed(names)]
    ours.sort(key=lambda job: job.series.startswith("flash"))
    others = [Job(name, kind, setting) for name in names for kind in ("HPA", "KEDA") for setting in GRID]
    # Without a calendar KEDA has no cron window, and is HPA.
    return ours + [job for job in others if job.policy == "HPA" or job.series.startswith("flash")]


def _run(job: Job) -> Results:
    series = _kept[job.series]
    if job.setting is None:
        steps = run_plan(series, WORLD, OURS, TICK_MS).steps
        return _measured(series, steps, [job.policy])
    hpa = job.setting.hpa()
    windows = cron_windows(series.calendar, hpa.target, 1000 * job.setting.ahead_s)
    policy = Keda(hpa, windows) if job.policy == "KEDA" else Hpa(hpa)
    steps = run_counting(series, WORLD, policy, DRAIN_MS).steps
    kinds = [job.policy] if job.series.startswith("flash") else ["HPA", "KEDA"]
    return _measured(series, steps, [f"{kind}: {job.setting}" for kind in kinds])


def _measured(series: Series, steps: Sequence[Step], policies: Sequence[str]) -> Results:
    need = _needs.setdefault(series.name, Need.of(series, CAPACITY))
    found: Results = {}
    for part, (first, last) in zip(
        PARTS, ((0, series.tuned_s), (series.tuned_s, series.seconds), (0, series.seconds)), strict=True
    ):
        if last > first:
            measured = measure_steps(need, steps, first, last)
            found |= {(policy, part, series.name): measured for policy in policies}
    return found


def _chosen(results: Results, names: Sequence[str], kind: str) -> dict[str, str]:
    """The settings that are shown, by why."""
    totals = {f"{kind}: {setting}": _total(results, names, f"{kind}: {setting}", "tuning") for setting in GRID}
    bound = COMPARABLE * _total(results, names, OURS_NAME, "tuning")[1]
    comparable = [name for name, (_, cost) in totals.items() if cost <= bound]
    return {
        "documented": f"{kind}: {DOCUMENTED}",
        "comparable": min(comparable or totals, key=lambda name: totals[name]),
        "any cost": min(totals, key=lambda name: totals[name]),
    }


def _total(results: Results, names: Iterable[str], policy: str, part: str) -> tuple[int, float]:
    found = [results[policy, part, name] for name in names if (policy, part, name) in results]
    return sum(each.violation_s for each in found), sum(each.cost for each in found)


def _show(results: Results, names: Sequence[str], chosen: dict[str, dict[str, str]], part: str) -> None:
    table = Table(title=f"elasticity, {part}")
    for heading in (
        "series",
        "policy",
        "violation s",
        "cost",
        "under %",
        "over %",
        "t under %",
        "t over %",
        "unstable %",
    ):
        table.add_column(heading, justify="left" if heading in {"series", "policy"} else "right")
    policies = [(OURS_NAME, OURS_NAME)]
    policies += [(f"{kind}, {why}", name) for kind, found in chosen.items() for why, name in found.items()]
    for name in names:
        for label, policy in policies:
            one = results.get((policy, part, name))
            if one is not None:
                table.add_row(name if policy == OURS_NAME else "", label, *_cells(one))
        table.add_section()
    for label, policy in policies:
        violation_s, cost = _total(results, names, policy, part)
        table.add_row("all" if policy == OURS_NAME else "", label, f"{violation_s:,}", f"{cost:,.0f}")
    console = Console(width=None if Console().is_terminal else 150)
    console.print(table)
    if part == PARTS[-1]:
        for label, policy in policies[1:]:
            console.print(f"{label}: {policy.partition(': ')[2]}")


def _cells(one: Elasticity) -> list[str]:
    shares = (one.under_accuracy, one.over_accuracy, one.under_share, one.over_share, one.instability)
    return [f"{one.violation_s:,}", f"{one.cost:,.0f}", *(f"{share:.2f}" for share in shares)]


def _rows(results: Results, names: Sequence[str], chosen: dict[str, dict[str, str]]) -> Iterable[Row]:
    """For each part: ours beside the better of the two, for the settings that are comparable and those at any cost."""
    for part, why in itertools.product(PARTS, ("comparable", "any cost")):
        others = [found[why] for found in chosen.values()]
        worse = 0
        for name in names:
            if (OURS_NAME, part, name) not in results:
                continue
            ours = results[OURS_NAME, part, name]
            rivals = [results[other, part, name] for other in others]
            least = min(rival.violation_s for rival in rivals)
            yield Row(
                f"{part}: {name}: violations", ours.violation_s, "s", f"better of HPA and KEDA, {why}", ceiling=least
            )
            yield Row(
                f"{part}: {name}: cost", ours.cost, "replica-hours", why, ceiling=min(rival.cost for rival in rivals)
            )
            worse += ours.violation_s > least
        violation_s, cost = _total(results, names, OURS_NAME, part)
        totals = [_total(results, names, other, part) for other in others]
        yield Row(f"{part}: all: violations", violation_s, "s", why, ceiling=min(total[0] for total in totals))
        yield Row(f"{part}: all: cost", cost, "replica-hours", why, ceiling=min(total[1] for total in totals))
        yield Row(f"{part}: series with more violations", worse, "series", why, ceiling=0)
    for part in PARTS:
        ours_s, ours_cost = _total(results, names, OURS_NAME, part)
        grid = [_total(results, names, f"{kind}: {setting}", part) for kind in chosen for setting in GRID]
        cheaper = [violation_s for violation_s, cost in grid if cost <= ours_cost]
        fewer = sum(violation_s <= ours_s for violation_s, _ in grid)
        yield Row(f"{part}: settings of {len(grid)} with as few violations", fewer, "settings", "any cost", ceiling=0)
        yield Row(
            f"{part}: least violations at our cost", min(cheaper, default=0), "s", "of all settings that cost no more"
        )
