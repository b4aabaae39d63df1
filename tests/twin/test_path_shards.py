"""Purchases/s against the number of inventory shards, with buyers hashed as the order path hashes them."""

import random

import pytest

from springtide.twin.simulation.flow import Capacity, PathSettings
from springtide.twin.simulation.path_events import EventPath
from springtide.twin.simulation.path_fluid import FluidPath
from springtide.twin.simulation.path_shards import batch_mean, even_per_s, shard_of, shard_shares, taken_per_s

START_MS = 1_700_000_000_000
BUCKETS = 512
SHARD_PER_S = 1_000.0
SALES = ("kuaishou-2023", "double-eleven", "live-room", *(f"sale-{number}" for number in range(40)))


@pytest.mark.parametrize("sale", ["kuaishou-2023", "sale-7"])
@pytest.mark.parametrize("kind", ["fluid", "events"])
def test_acknowledged_purchases_grow_with_the_shards(kind: str, sale: str) -> None:
    """Offered is what all shards could take together, so that whatever the fullest refuses is missing."""
    rates = {}
    for shards in (1, 2, 4, 8):
        settings = PathSettings(
            stock=10**9,
            shards=shards,
            shard_per_s=SHARD_PER_S,
            shard_shares=shard_shares(sale, BUCKETS, shards),
            deadline_ms=200,
            retry_share=0.0,
        )
        path = FluidPath(settings) if kind == "fluid" else EventPath(settings, random.Random(1))
        capacity = Capacity(10.0 * shards * SHARD_PER_S, shards_up=shards)
        flows = [path.step(START_MS + 1000 * at, 1.0, shards * SHARD_PER_S, capacity) for at in range(10)]
        rates[shards] = sum(flow.acknowledged for flow in flows) / 10
    assert all(rate >= 0.9 * shards * rates[1] for shards, rate in rates.items()), rates


def test_with_enough_buckets_any_sale_spreads_well_enough() -> None:
    for sale in SALES:
        shares = shard_shares(sale, BUCKETS, 8)
        assert taken_per_s(shares, SHARD_PER_S, 8 * SHARD_PER_S) >= 0.9 * 8 * SHARD_PER_S, sale
        assert even_per_s(shares, SHARD_PER_S) >= 0.85 * 8 * SHARD_PER_S, sale


def test_with_few_buckets_some_sales_do_not() -> None:
    assert min(taken_per_s(shard_shares(sale, 16, 8), 1.0, 8.0) for sale in SALES) < 0.9 * 8


def test_the_buyers_of_a_sale_spread_as_its_buckets_do() -> None:
    buyers = [f"buyer-{number}" for number in range(50_000)]
    by_buyer = shard_shares("live-room", BUCKETS, 8, buyers)
    by_bucket = shard_shares("live-room", BUCKETS, 8)
    assert by_buyer == pytest.approx(by_bucket, abs=0.01)


def test_each_shard_has_an_equal_range_of_the_slots() -> None:
    homes = [shard_of("live-room", bucket, 3) for bucket in range(BUCKETS)]
    assert set(homes) == {0, 1, 2}


def test_batches_shrink_with_buckets_and_counters_and_not_with_shards() -> None:
    one = batch_mean(100_000.0, counters=10, buckets=8, round_trip_ms=20.0)
    assert one == pytest.approx(12.5)
    assert batch_mean(100_000.0, counters=10, buckets=64, round_trip_ms=20.0) == pytest.approx(1.5625)
    assert batch_mean(100_000.0, counters=10, buckets=512, round_trip_ms=20.0) == 1.0
    assert batch_mean(800_000.0, counters=80, buckets=8, round_trip_ms=20.0) == pytest.approx(one)
