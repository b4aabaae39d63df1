"""`python -m bench [NAME…] [--runs N] [--out FOLDER]`."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from bench import (
    balancer,
    cloud_rent,
    cluster,
    counter,
    docker_start,
    elasticity,
    fleet_change,
    idle,
    images,
    inventory,
    open_loop,
    polls,
    provision,
    recorder,
    simulation,
    sold_out,
    tick,
    twin_demo,
    zone_failover,
    zone_loss,
)
from bench.rows import Row, Skipped, show, write

BENCHES: dict[str, Callable[[int], tuple[list[Row], list[Skipped]]]] = {
    "counter": counter.measure,
    "sold_out": sold_out.measure,
    "polls": polls.measure,
    "idle": idle.measure,
    "open_loop": open_loop.measure,
    "recorder": recorder.measure,
    "inventory": inventory.measure,
    "cluster": cluster.measure,
    "balancer": balancer.measure,
    "fleet_change": fleet_change.measure,
    "images": images.measure,
    "docker_start": docker_start.measure,
    "elasticity": elasticity.measure,
    "tick": tick.measure,
    "twin_demo": twin_demo.measure,
    "provision": provision.measure,
    "simulation": simulation.measure,
    "cloud_rent": cloud_rent.measure,
    "zone_failover": zone_failover.measure,
    "zone_loss": zone_loss.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(BENCHES)}; default: all")
    parser.add_argument("--runs", type=int, default=5, help="how often each server is measured; the median counts")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="where the JSON goes")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHES]
    if unknown or options.runs < 1:
        parser.error(f"no such bench: {', '.join(unknown)}" if unknown else "--runs must be at least 1")
    for name in options.names or BENCHES:
        rows, skipped = BENCHES[name](options.runs)
        show(name, rows, skipped)
        print(f"written to {write(options.out, name, rows, skipped)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
