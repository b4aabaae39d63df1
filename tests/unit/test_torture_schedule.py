"""The schedule of the loss test: all of it from the seed, and every kind on every target in turn."""

from collections import Counter
from itertools import islice

import pytest

from springtide.drivers.system import chance
from springtide.twin.torture.schedule import Fault, FaultKind, faults

GROUPS = (("counter-1", "counter-2", "counter-3"), ("recorder",), ("valkey",), ("postgres",), ("backoffice",))
ALL = tuple(FaultKind)


def first(count: int, seed: int, kinds: tuple[FaultKind, ...] = ALL, disk_at: int = 20) -> list[Fault]:
    return list(islice(faults(chance(seed), kinds, GROUPS, disk_at), count))


def test_a_seed_makes_one_schedule_and_another_seed_another() -> None:
    assert first(40, 1) == first(40, 1)
    assert first(40, 1) != first(40, 2)


@pytest.mark.parametrize("seed", range(5))
def test_forty_strike_everything_with_everything_and_the_disk_once(seed: int) -> None:
    plan = first(40, seed)
    assert [fault.number for fault in plan] == list(range(40))
    assert [fault.kind for fault in plan].count(FaultKind.DISK) == 1
    struck = Counter((fault.kind, fault.target.split("-")[0]) for fault in plan)
    for kind in (FaultKind.KILL, FaultKind.STOP, FaultKind.CUT):
        for group in GROUPS:
            assert struck[kind, group[0].split("-")[0]] >= 2


def test_two_hundred_have_twenty_of_each_kind() -> None:
    kinds = Counter(fault.kind for fault in first(200, 1, disk_at=100))
    assert min(kinds[kind] for kind in (FaultKind.KILL, FaultKind.STOP, FaultKind.CUT)) >= 60
    assert kinds[FaultKind.DISK] == 1


def test_forty_fit_into_two_minutes() -> None:
    assert sum(fault.gap_s for fault in first(40, 1)) < 110


def test_only_the_kinds_asked_for_strike() -> None:
    assert {fault.kind for fault in first(30, 1, (FaultKind.KILL,))} == {FaultKind.KILL}
    assert {fault.kind for fault in first(5, 1, (FaultKind.DISK,))} == {FaultKind.DISK}
