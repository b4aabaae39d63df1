"""The zone with all primaries of Valkey, or with PostgreSQL's, is lost: orders lost, and until it sells again.

Three zones on this machine, each with one copy of every shard and one of PostgreSQL; buyers and payers who repeat
themselves with their key. It sells again when a purchase (for PostgreSQL: a payment too) that was begun after the loss
has been acknowledged in every bucket. Black-holed: the zone's network namespace is cut off, which takes both at once.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from bench.rows import Row, Skipped, median_row
from bench.zone_world import BOTH, CLOCK, ZONES, How, Part, until_all_buckets, zone_world
from springtide.drivers import netns

RUNS_MAX = 3
"""A run takes some 15 s; the median of three is asked for."""

CEILING_S = 15.0
GIVE_UP_S = 60.0

_LOSSES = [
    ("Valkey's primaries", How.KILL, frozenset({Part.VALKEY})),
    ("Valkey's primaries", How.FREEZE, frozenset({Part.VALKEY})),
    ("PostgreSQL's primary", How.KILL, frozenset({Part.POSTGRES})),
    ("PostgreSQL's primary", How.FREEZE, frozenset({Part.POSTGRES})),
    ("all primaries", How.CUT, BOTH),
]


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    """The rows of this bench: for each loss the orders lost, and the seconds until purchases and payments go on."""
    rows: list[Row] = []
    skipped: list[Skipped] = []
    for what, how, parts in _LOSSES:
        name = f"zone with {what} {how}"
        if how is How.CUT and (reason := netns.missing()):
            skipped.append(Skipped(name, reason))
            continue
        # Each in a thread of its own, since it may move into a private network.
        with ThreadPoolExecutor(1) as thread:
            found = [thread.submit(asyncio.run, _lose(how, parts)).result() for _ in range(min(runs, RUNS_MAX))]
        lost, sells_s, pays_s = zip(*found, strict=True)
        rows.append(median_row(f"{name}: orders and payments lost", "orders", lost, ceiling=0))
        rows.append(median_row(f"{name}: until it sells again", "s", sells_s, ceiling=CEILING_S))
        rows.append(median_row(f"{name}: until payments go through", "s", pays_s, ceiling=CEILING_S))
    return rows, skipped


async def _lose(how: How, parts: frozenset[Part]) -> tuple[float, float, float]:
    async with zone_world(cuttable=how is How.CUT) as world:
        stream = await world.stream()
        if Part.VALKEY in parts:
            await world.gather_primaries()
        if world.group.primary.name != ZONES[0]:
            raise RuntimeError("PostgreSQL's primary is not in the zone that is to be lost")
        world.lose(0, how, parts)
        lost_s = CLOCK.monotonic_s()
        sells_s, pays_s = await asyncio.gather(
            until_all_buckets(stream.orders, lost_s, GIVE_UP_S), until_all_buckets(stream.payments, lost_s, GIVE_UP_S)
        )
        await stream.stop()
        proof = await world.proof(stream)
        if not proof.report.holds:
            raise RuntimeError(f"the audit found differences: {proof.report}")
        return float(proof.lost), sells_s, pays_s
