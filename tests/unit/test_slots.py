"""The slot of a hash tag, against the values that the cluster specification and its servers give."""

import pytest

from springtide.drivers.valkey_cluster import SLOTS, slot_of


@pytest.mark.parametrize(("tag", "slot"), [("123456789", 0x31C3), ("foo", 12182), ("bar", 5061), ("somekey", 11058)])
def test_slot_is_the_one_of_the_specification(tag: str, slot: int) -> None:
    assert slot_of(tag) == slot


def test_buckets_of_a_sale_spread_over_the_shards() -> None:
    shards = [slot_of(f"live:{bucket}") * 3 // SLOTS for bucket in range(48)]

    assert {shards.count(shard) > 8 for shard in range(3)} == {True}
