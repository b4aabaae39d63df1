"""Laying stock out over buckets: nothing is lost, nothing moves without need."""

from hypothesis import given
from hypothesis import strategies as st

from springtide.decide.spread import BucketDemand, SpreadPolicy, is_hot, moves

POLICY = SpreadPolicy()
buckets_of_stock = st.lists(
    st.builds(BucketDemand, stock=st.integers(0, 100_000), sold_per_s=st.floats(0, 100_000)), min_size=1, max_size=64
)


def after(buckets: list[BucketDemand], home: int, *, hot: bool) -> list[int]:
    stock = [bucket.stock for bucket in buckets]
    for move in moves(buckets, home, POLICY, hot=hot):
        assert 0 < move.quantity <= stock[move.source], "a move takes only what is there"
        assert move.source != move.target
        stock[move.source] -= move.quantity
        stock[move.target] += move.quantity
    return stock


@given(buckets_of_stock, st.data())
def test_moves_keep_every_unit(buckets: list[BucketDemand], data: st.DataObject) -> None:
    hot = data.draw(st.booleans())
    home = data.draw(st.integers(0, len(buckets) - 1))
    assert sum(after(buckets, home, hot=hot)) == sum(bucket.stock for bucket in buckets)
    assert len(moves(buckets, home, POLICY, hot=hot)) <= len(buckets)


@given(buckets_of_stock, st.data())
def test_what_is_not_hot_is_gathered_at_home(buckets: list[BucketDemand], data: st.DataObject) -> None:
    home = data.draw(st.integers(0, len(buckets) - 1))
    stock = after(buckets, home, hot=False)
    assert stock[home] == sum(stock)


NEGLIGIBLE_PER_S = 1e-6
"""A unit in eleven days: below it no bucket is preferred to another."""


@given(buckets_of_stock, st.data())
def test_a_hot_sku_leaves_no_bucket_short_of_half_its_share(buckets: list[BucketDemand], data: st.DataObject) -> None:
    home = data.draw(st.integers(0, len(buckets) - 1))
    stock = after(buckets, home, hot=True)
    total = sum(stock)
    if total < POLICY.units_min * len(buckets):
        assert stock[home] == total
        return
    rate = sum(bucket.sold_per_s for bucket in buckets)
    if rate >= NEGLIGIBLE_PER_S:
        floor = rate / len(buckets) / 4
        weights = [max(bucket.sold_per_s, floor) for bucket in buckets]
        for units, weight in zip(stock, weights, strict=True):
            assert units * 2 >= int(total * weight / sum(weights))


@given(buckets_of_stock, st.data())
def test_a_good_layout_is_left_alone(buckets: list[BucketDemand], data: st.DataObject) -> None:
    home = data.draw(st.integers(0, len(buckets) - 1))
    hot = data.draw(st.booleans())
    settled = [
        BucketDemand(units, bucket.sold_per_s)
        for units, bucket in zip(after(buckets, home, hot=hot), buckets, strict=True)
    ]
    assert moves(settled, home, POLICY, hot=hot) == []


def test_a_sku_cools_later_than_it_heats() -> None:
    assert not is_hot(POLICY.hot_per_s * 0.9, POLICY, was_hot=False)
    assert is_hot(POLICY.hot_per_s * 0.9, POLICY, was_hot=True)
    assert not is_hot(POLICY.hot_per_s * 0.2, POLICY, was_hot=True)
