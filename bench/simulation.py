"""A hundred thousand cores on the twin: how soon they serve, what they cost, how long the simulation takes.

Scenario `kuaishou-2023`, as it comes along: with the calendar, and without. Time is CPU time of this process, which is
wall time on a core of one's own. Shards are the order path's, with buyers hashed as it hashes them: what is offered is
what all shards could take together, so whatever the fullest one refuses is missing. The reference is one shard, times
their number.
"""

import time

import msgspec

from bench.rows import Row, Skipped, median_row
from springtide.twin.simulation.flow import Capacity, PathSettings
from springtide.twin.simulation.outcome import Outcome
from springtide.twin.simulation.path_fluid import FluidPath
from springtide.twin.simulation.path_shards import shard_shares
from springtide.twin.simulation.reading import find_scenario
from springtide.twin.simulation.run import simulate

SHARDS = (1, 2, 4, 8)
BUCKETS = 512
START_MS = 1_700_000_000_000
SECONDS = 20
RUNS_MAX = 3
NEVER_S = 86_400.0


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    rows = []
    for calendar in (True, False):
        outcome, seconds = _simulated(min(runs, RUNS_MAX), calendar=calendar)
        name = "with the calendar" if calendar else "without the calendar"
        ready_s = NEVER_S if outcome.ready_s is None else outcome.ready_s
        unserved = 100 * (1 - outcome.availability)
        rows += [
            Row(
                f"{outcome.cores_wanted:,} cores serve, {name}",
                ready_s,
                "s after the opening",
                ceiling=0.0 if calendar else 600.0,
            ),
            Row(f"requests not served, {name}", unserved, "%", ceiling=0.0 if calendar else None),
            Row(f"cost against the clairvoyant's, {name}", outcome.cost_ratio or 0.0, "times", ceiling=1.15),
            Row(f"nodes left, {name}", outcome.nodes_left, "nodes", ceiling=0.0),
            median_row(f"two hours simulated, {name}", "s", seconds, ceiling=20.0),
        ]
    return [*rows, *_shards()], []


def _simulated(runs: int, *, calendar: bool) -> tuple[Outcome, list[float]]:
    scenario = msgspec.structs.replace(find_scenario("kuaishou-2023"), calendar=calendar)
    seconds: list[float] = []
    while True:
        began = time.process_time()
        outcome = simulate(scenario)
        seconds.append(time.process_time() - began)
        if len(seconds) >= runs:
            return outcome, seconds


def _shards() -> list[Row]:
    found: list[Row] = []
    for shards in SHARDS:
        settings = PathSettings(
            stock=10**9,
            shards=shards,
            shard_shares=shard_shares("sale", BUCKETS, shards),
            recorder_per_s=1e9,
            journal_max=10**12,
            retries_max=0,
        )
        path = FluidPath(settings)
        offered = shards * settings.shard_per_s
        sold = sum(
            path.step(START_MS + 1_000 * second, 1.0, offered, Capacity(2 * offered, shards)).acknowledged
            for second in range(SECONDS)
        )
        row = Row(f"purchases, {shards} shards", sold / SECONDS, "per s")
        if found:
            row = msgspec.structs.replace(
                row, reference="linear", ratio=row.value / (shards * found[0].value), floor=0.9
            )
        found.append(row)
    return found
