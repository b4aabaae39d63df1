"""The twin's prediction of the demo, calibrated on one demand, against the real demo on others; and its own figures.

The demo as it ships is run once for the stack's figures. Then come demands that the twin has not seen: a lower peak of
another shape, and a rush that no calendar announced. Each real run takes more than a minute and both cores: run it on a
machine with nothing else to do. A share of shed requests below 15% is compared in points, a larger one as a part.
"""

import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from bench.rows import Row, Skipped, median_row
from springtide.config import load_sale
from springtide.fleet.journal import Decision, read_journal
from springtide.model import ReplicaState, StartReplica
from springtide.twin.crowd.demand import load_demand
from springtide.twin.simulation.calibration import load_calibration
from springtide.twin.simulation.demo_model import (
    DemoFigures,
    StackFigures,
    measured_in,
    predict,
    read_report,
    stack_of,
)
from springtide.twin.simulation.flow import Capacity, PathSettings
from springtide.twin.simulation.path_events import EventPath
from springtide.twin.simulation.path_fluid import FluidPath
from springtide.twin.simulation.path_shards import even_per_s, shard_shares

EXAMPLES = Path(__file__).parents[1] / "examples"
EXAMPLE = EXAMPLES / "live-room.toml"
SEEDS = range(10)
ERROR_MAX = 0.15
DEMO_S_MAX = 180.0
TOO_SLOW = 3
OPENS_S = 25
START_MS = 1_700_000_000_000
BUCKETS = 512
RUSH = 480.0
LARGE_RUSH = 650.0  # with its retries more than two cores take: replicas then start two to three times as slowly


def lower(second: int) -> float:
    """A small crowd that comes in two waves."""
    if second < OPENS_S:
        return 8.0
    wave = 380.0 * 0.82 ** (second - OPENS_S)
    return max(6.0, wave + (240.0 if OPENS_S + 8 <= second < OPENS_S + 14 else 0.0))


def rush(second: int, people: float = RUSH) -> float:
    """Nobody said anything, and at once there are more people than the base takes."""
    if second < OPENS_S:
        return 12.0
    since = second - OPENS_S
    return people if since < 14 else max(6.0, people * 0.7 ** (since - 13))


def configured(folder: Path, demand: Callable[[int], float], announced: float | None) -> Path:
    """The example with another demand, and with what is announced of it."""
    text = EXAMPLE.read_text()
    text, opened = re.subn(r"opens_after_s = [\d.]+", f"opens_after_s = {OPENS_S}.0", text)
    text, closed = re.subn(r"closes_after_s = [\d.]+", f"closes_after_s = {OPENS_S + 25}.0", text)
    text, said = re.subn(r"peak_requests_per_s = \d+", f"peak_requests_per_s = {announced or 0:.0f}", text)
    if announced is None:
        text, said = re.subn(r"\[\[calendar\]\].*?(?=\n\[)", "", text, flags=re.DOTALL)
    if (opened, closed, said) != (1, 1, 1):
        raise RuntimeError(f"{EXAMPLE} is not as this bench knows it")
    rows = [f"{second},{demand(second):.1f}" for second in range(OPENS_S + 28)]
    (folder / "live-room-demand.csv").write_text("\n".join(["second,requests_per_second", *rows]) + "\n")
    path = folder / "live-room.toml"
    path.write_text(text)
    return path


class Case(msgspec.Struct, frozen=True):
    demand: Callable[[int], float]
    announced: float | None


CASES = {
    "lower, in two waves, announced": Case(lower, 500.0),
    "a rush nobody announced": Case(rush, None),
    "a rush too large for two cores": Case(partial(rush, people=LARGE_RUSH), None),
}


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    rows = [*path_rows(runs), *shard_rows()]
    folder = Path(tempfile.mkdtemp(prefix="bench-twin-demo-"))
    try:
        more, skipped = demo_rows(folder, runs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows + more, skipped


def demo_rows(folder: Path, runs: int) -> tuple[list[Row], list[Skipped]]:
    first = folder / "first"
    if not run_demo(EXAMPLE, first):
        return [], [Skipped("the twin against the demo", "this machine was too slow or too busy for a demo")]
    stack = stack_figures(first)
    rows = [Row("calibrated: an answer, 99 of 100", stack.p99_ms, "ms"), Row("a replica's start", stack.start_ms, "ms")]
    alone = calibrated_alone(folder)
    skipped: list[Skipped] = []
    for number, (name, case) in enumerate(CASES.items()):
        place = folder / f"case-{number}"
        place.mkdir()
        config_path = configured(place, case.demand, case.announced)
        config = load_sale(config_path, {})
        told = predict(config, load_demand(place / "live-room-demand.csv"), stack, [random.Random(n) for n in SEEDS])
        outs = [place / f"run-{run}" for run in range(runs)]
        real = [read_report(out / "report.json")[0] for out in outs if run_demo(config_path, out)]
        if not real:
            skipped.append(Skipped(name, "this machine was too slow or too busy for a demo"))
            continue
        rows += compared_rows(name, told, real)
        told = predict(config, load_demand(place / "live-room-demand.csv"), alone, [random.Random(n) for n in SEEDS])
        rows += compared_rows(f"{name}, by `springtide calibrate` alone", told, real)
    return rows, skipped


def calibrated_alone(folder: Path) -> StackFigures:
    out = folder / "calibration.json"
    command = [sys.executable, "-m", "springtide.cli", "calibrate", "--runs", "1", "--out", str(out)]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=DEMO_S_MAX, check=True)
    return stack_of(load_calibration(out))


def run_demo(config: Path, out: Path) -> bool:
    """Whether a real demo ran, whatever its verdict; False when the machine was too slow to tell."""
    command = [sys.executable, "-m", "springtide.cli", "demo", str(config), "--out", str(out)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, timeout=DEMO_S_MAX, check=False)
    return (out / "report.json").exists() and done.returncode != TOO_SLOW


def stack_figures(out: Path) -> StackFigures:
    return measured_in(read_report(out / "report.json")[1], start_times_ms(out / "journal.jsonl"))


def start_times_ms(journal: Path) -> list[float]:
    """From each decision to start a replica until it was ready, ms, as the control loop's journal tells."""
    began: dict[str, int] = {}
    took: dict[str, float] = {}
    for entry in read_journal(journal):
        if isinstance(entry, Decision):
            for replica in entry.snapshot.replicas:
                if replica.state is ReplicaState.READY and replica.replica_id in began:
                    took.setdefault(replica.replica_id, float(replica.since_ms - began[replica.replica_id]))
            for action in entry.plan.actions:
                if isinstance(action, StartReplica):
                    began.setdefault(action.spec.replica_id, entry.snapshot.now_ms)
    return list(took.values())


def compared_rows(name: str, told: DemoFigures, real: Sequence[DemoFigures]) -> list[Row]:
    rows = []
    for what, unit, field in (
        ("peak replicas", "replicas", "replicas_peak"),
        ("shed share of first attempts", "%", "shed_share"),
        ("p99", "ms", "p99_ms"),
    ):
        scale = 100.0 if unit == "%" else 1.0
        runs = tuple(getattr(one, field) * scale for one in real)
        found, foretold = statistics.median(runs), getattr(told, field) * scale
        rows.append(Row(f"{name}: {what}, foretold", foretold, unit))
        rows.append(Row(f"{name}: {what}, found", found, unit, runs=runs))
        small = unit == "%" and found < 100 * ERROR_MAX  # of a small share a part says nothing: points are compared
        error = abs(foretold - found) / (100.0 if small else max(found, 1e-9))
        words = "error, points of 100%" if small else "error, share"
        rows.append(Row(f"{name}: {what}, {words}", error, "", ceiling=ERROR_MAX))
    return rows


def path_rows(runs: int) -> list[Row]:
    """What a fluid step costs, in the shape of the largest scenario: two hours in steps of a second."""
    settings = PathSettings(stock=1_000_000, shards=8, shard_shares=shard_shares("kuaishou-2023", BUCKETS, 8))
    steps, costs = 7_200, []
    for _ in range(runs):
        path = FluidPath(settings)
        began_s = time.perf_counter()
        for second in range(steps):
            rate = 11_000.0 if second < 1_800 else 1_000_000.0
            path.step(START_MS + 1000 * second, 1.0, rate, Capacity(700_000.0, shards_up=8, replicas=2_000))
        costs.append((time.perf_counter() - began_s) / steps * 1e6)
    return [median_row("a fluid step", "µs", costs, ceiling=30.0)]


def shard_rows() -> list[Row]:
    """Acknowledged purchases/s against linear, when as much is offered as all shards together could take."""
    rows = []
    for kind in ("fluid", "events"):
        one = 0.0
        for shards in (1, 2, 4, 8):
            settings = PathSettings(
                stock=10**9,
                shards=shards,
                shard_per_s=5_000.0,
                shard_shares=shard_shares("kuaishou-2023", BUCKETS, shards),
                deadline_ms=200,
                retry_share=0.0,
            )
            path = FluidPath(settings) if kind == "fluid" else EventPath(settings, random.Random(1))
            capacity = Capacity(1e6, shards_up=shards)
            flows = [path.step(START_MS + 1000 * at, 1.0, shards * 5_000.0, capacity) for at in range(5)]
            rate = sum(flow.acknowledged for flow in flows) / 5
            one = one or rate
            rows.append(
                Row(f"{shards} shards, {kind}", rate, "purchases/s", "linear", rate / (shards * one), floor=0.9)
            )
    names = [f"sale-{number}" for number in range(100)]
    even = sorted(even_per_s(shard_shares(name, BUCKETS, 8), 1.0) / 8 for name in names)
    rows.append(
        Row(f"8 shards, {BUCKETS} buckets: the fullest just busy, of 100 sales the median", even[50], "of linear")
    )
    rows.append(Row(f"8 shards, {BUCKETS} buckets: the same, the worst of 100 sales", even[0], "of linear"))
    return rows
