"""Where copies go, and when one may take over."""

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.decide.copies import enough_fenced, handover, heir, spread_copies


@given(st.integers(1, 9), st.integers(1, 30), st.data())
def test_no_zone_has_two_copies_of_a_shard_and_primaries_are_spread(
    zones: int, shards: int, data: st.DataObject
) -> None:
    copies = data.draw(st.integers(1, zones))

    places = spread_copies(zones, shards, copies)

    assert len(places) == shards
    assert all(len(set(shard)) == len(shard) == copies and set(shard) <= set(range(zones)) for shard in places)
    primaries = Counter(dict.fromkeys(range(zones), 0)) + Counter(shard[0] for shard in places)
    held = [primaries[zone] for zone in range(zones)]
    assert max(held) - min(held) <= 1


def test_more_copies_than_zones_are_refused() -> None:
    with pytest.raises(ValueError, match="3 copies need as many zones"):
        spread_copies(2, 3, 3)


@given(st.integers(1, 5), st.data())
def test_enough_are_fenced_just_when_every_write_is_on_one_of_them_and_no_other_can_come(
    replicas: int, data: st.DataObject
) -> None:
    acked = data.draw(st.integers(1, replicas))
    fenced = set(data.draw(st.sets(st.integers(0, replicas - 1))))

    every_write_is_seen = all(fenced & set(holders) for holders in combinations(range(replicas), acked))

    assert enough_fenced(len(fenced), replicas, acked) == every_write_is_seen
    if every_write_is_seen:
        assert replicas - len(fenced) < acked  # the others are too few to acknowledge anything


def test_without_replicas_asked_nothing_is_ever_sure() -> None:
    assert not enough_fenced(2, 2, 0)


def test_the_longest_log_takes_over() -> None:
    assert heir({"a": 10, "b": 12, "c": 11}) == "b"
    assert heir({"a": 12, "b": 12}) == "b"


@given(st.lists(st.integers(0, 2), min_size=1, max_size=9))
def test_handovers_end_with_primaries_spread(primaries: list[int]) -> None:
    where = dict(enumerate(primaries))
    copies = {shard: range(3) for shard in where}

    moves = 0
    while (move := handover(where, copies)) is not None:
        shard, zone = move
        assert where[shard] != zone
        where[shard] = zone
        moves += 1
        assert moves <= len(primaries)

    held = [list(where.values()).count(zone) for zone in range(3)]
    assert max(held) - min(held) <= 1


def test_a_primary_moves_only_to_a_zone_that_has_a_copy() -> None:
    assert handover({0: 0, 1: 0}, {0: [0, 1], 1: [0, 1]}) == (0, 1)
    assert handover({0: 0, 1: 0}, {0: [0], 1: [0]}) is None
    assert handover({0: 0, 1: 1, 2: 2}, {shard: [0, 1, 2] for shard in range(3)}) is None
