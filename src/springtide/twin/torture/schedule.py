"""Which fault strikes what, when, and for how long: all of it from a seed."""

import itertools
from collections.abc import Iterator, Sequence
from enum import StrEnum

import msgspec

from springtide.ports import Chance

GAP_S = (1.6, 3.0)
"""Seconds from one fault to the next; a fault may outlast the gap, so that some overlap."""

SHORT_S = (0.3, 1.5)
LONG_S = (2.5, 5.0)
LONG_SHARE = 0.3
"""Seconds that a stop or a cut lasts. The long ones outlast every deadline of a purchase."""

DISK_S = (2.0, 3.0)


class FaultKind(StrEnum):
    """What is done to a process: SIGKILL, SIGSTOP, no network; or what is done to the disk: it is full."""

    KILL = "kill"
    STOP = "stop"
    CUT = "cut"
    DISK = "disk_full"


class Fault(msgspec.Struct, frozen=True):
    """One fault: `gap_s` after the one before, `lasts_s` long (a kill lasts until its target is started again)."""

    number: int
    kind: FaultKind
    target: str
    gap_s: float
    lasts_s: float


def faults(
    chance: Chance, kinds: Sequence[FaultKind], groups: Sequence[Sequence[str]], disk_at: int
) -> Iterator[Fault]:
    """Endless: in rounds, each with every kind on one target of every group, in an order of its own.

    `groups` are targets that stand for each other, such as the counters. Number `disk_at` (from 0) is a full disk, when
    FaultKind.DISK is among the kinds; when it is the only one, all are.
    """
    processes = [kind for kind in kinds if kind is not FaultKind.DISK]
    numbers = itertools.count()
    pairs = list(itertools.product(processes, groups))
    while not pairs:
        yield _disk(chance, next(numbers))
    while True:
        for kind, group in shuffled(chance, pairs):
            number = next(numbers)
            if number == disk_at and FaultKind.DISK in kinds:
                yield _disk(chance, number)
                number = next(numbers)
            target = group[int(chance.random() * len(group))]
            yield Fault(number, kind, target, _between(chance, GAP_S), _duration(chance, kind))


def shuffled(
    chance: Chance, values: Sequence[tuple[FaultKind, Sequence[str]]]
) -> list[tuple[FaultKind, Sequence[str]]]:
    """The values in an order that chance decides."""
    keys = [chance.random() for _ in values]
    return [values[at] for at in sorted(range(len(values)), key=keys.__getitem__)]


def _disk(chance: Chance, number: int) -> Fault:
    return Fault(number, FaultKind.DISK, "disk", _between(chance, GAP_S), _between(chance, DISK_S))


def _duration(chance: Chance, kind: FaultKind) -> float:
    if kind is FaultKind.KILL:
        return 0.0
    return _between(chance, LONG_S if chance.random() < LONG_SHARE else SHORT_S)


def _between(chance: Chance, bounds: tuple[float, float]) -> float:
    return round(chance.uniform(*bounds), 3)
