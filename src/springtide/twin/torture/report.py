"""The figures of a run and what the checker found, as one value."""

from collections import Counter
from collections.abc import Mapping

import msgspec

from springtide.twin.torture.checker import ACKNOWLEDGED, Findings
from springtide.twin.torture.history import Attempt, History
from springtide.twin.torture.schedule import FaultKind


class Tally(msgspec.Struct, frozen=True):
    """Faults of one kind on one target."""

    counted: int
    not_counted: int


class TortureReport(msgspec.Struct, frozen=True):
    """The verdict. `holds`: all faults that were wanted counted, and nothing was wrong.

    `answers` counts attempts by status and code; `acknowledged` counts orders. `impossible` tells why a kind of fault
    was not had.
    """

    seed: int
    faults_wanted: int
    faults_counted: int
    faults: dict[str, dict[str, Tally]]
    impossible: dict[str, str]
    attempts: int
    acknowledged: int
    orders: int
    answers: dict[str, int]
    actions: dict[str, int]
    restocks: dict[str, int]
    findings: Findings
    duration_s: float
    holds: bool


def make_report(
    history: History,
    findings: Findings,
    orders: int,
    options: tuple[int, int, Mapping[FaultKind, str]],
    duration_s: float,
) -> TortureReport:
    """`options` are the seed, the faults wanted, and the kinds that could not be had."""
    seed, wanted, impossible = options
    counted = sum(one.counted for one in history.faults)
    return TortureReport(
        seed=seed,
        faults_wanted=wanted,
        faults_counted=counted,
        faults=_tallies(history),
        impossible={kind.value: reason for kind, reason in impossible.items()},
        attempts=len(history.attempts),
        acknowledged=len({one.order_id for one in history.attempts if one.status in ACKNOWLEDGED}),
        orders=orders,
        answers=dict(sorted(Counter(_name(one) for one in history.attempts).items())),
        actions=dict(sorted(Counter(f"{one.what} {one.outcome or one.status}" for one in history.actions).items())),
        restocks=dict(sorted(Counter(str(one.status) for one in history.restocks).items())),
        findings=findings,
        duration_s=round(duration_s, 1),
        holds=findings.holds and counted >= wanted,
    )


def _name(attempt: Attempt) -> str:
    return f"{attempt.status} {attempt.code or attempt.state}".strip()


def _tallies(history: History) -> dict[str, dict[str, Tally]]:
    found: dict[str, dict[str, Tally]] = {}
    for one in history.faults:
        of_kind = found.setdefault(one.fault.kind.value, {})
        before = of_kind.get(one.fault.target, Tally(0, 0))
        of_kind[one.fault.target] = Tally(before.counted + one.counted, before.not_counted + (not one.counted))
    return found
