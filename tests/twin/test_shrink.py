"""Shrinking: what is left breaks the same invariant, with less of everything, and no more runs than allowed."""

from collections.abc import Callable

import msgspec
import pytest

from springtide.twin.simulation import shrink as shrinking
from springtide.twin.simulation.fault_draw import draw
from springtide.twin.simulation.faults import Fault, FaultKind
from springtide.twin.simulation.outcome import Breach
from springtide.twin.simulation.reading import find_scenario
from springtide.twin.simulation.scenario import Scenario
from springtide.twin.simulation.seeds import Tried
from springtide.twin.simulation.shrink import AFTER_S, RUNS_MAX, shrink

SMALL = find_scenario("small")
NAME = "planted"


def breaking(when: Callable[[Scenario], float | None]) -> Callable[[Scenario], Tried]:
    """A stand-in for a simulation: it breaks at the moment that `when` says, if the scenario lasts until then."""

    def run(scenario: Scenario) -> Tried:
        at_s = when(scenario)
        if at_s is None or at_s > scenario.duration_s:
            return Tried(scenario.seed, (Breach(1.0, "another", ""),))
        return Tried(scenario.seed, (Breach(1.0, "another", ""), Breach(at_s, NAME, "planted")))

    return run


def faults(*kinds: FaultKind) -> tuple[Fault, ...]:
    targets = {FaultKind.ZONE_LOST: "cloud-b", FaultKind.LINE_CUT: "express-2", FaultKind.LINE_SLOW: "express-1"}
    return tuple(Fault(kind, 100.0 * number, 64.0, targets.get(kind, "")) for number, kind in enumerate(kinds))


ALL = faults(*FaultKind)


def test_of_many_faults_those_two_are_left_that_break_it_together() -> None:
    def when(scenario: Scenario) -> float | None:
        kinds = {fault.kind for fault in scenario.faults}
        return 900.0 if {FaultKind.LINE_CUT, FaultKind.REGISTRY_GONE} <= kinds else None

    found = shrink(msgspec.structs.replace(SMALL, faults=ALL), NAME, breaking(when))
    assert [fault.kind for fault in found.scenario.faults] == [FaultKind.LINE_CUT, FaultKind.REGISTRY_GONE]
    assert {fault.lasts_s for fault in found.scenario.faults} <= {0.0, 1.0}
    assert (found.breach.invariant, found.breach.at_s) == (NAME, 900.0)
    assert found.scenario.duration_s == 900 + AFTER_S
    assert found.runs <= RUNS_MAX


@pytest.mark.parametrize("wanted", list(FaultKind))
def test_any_single_fault_is_found(wanted: FaultKind) -> None:
    def when(scenario: Scenario) -> float | None:
        return 50.0 if any(fault.kind is wanted for fault in scenario.faults) else None

    early = tuple(msgspec.structs.replace(fault, at_s=fault.at_s / 100) for fault in ALL)
    found = shrink(msgspec.structs.replace(SMALL, faults=early), NAME, breaking(when))
    assert [fault.kind for fault in found.scenario.faults] == [wanted]


def test_what_needs_no_fault_has_none_and_next_to_no_world() -> None:
    found = shrink(draw(SMALL, 1), NAME, breaking(lambda _: 10.0))
    smaller = found.scenario
    assert smaller.faults == ()
    assert smaller.duration_s == 10 + AFTER_S
    assert smaller.demand.waves == ()
    assert not smaller.demand.noise
    assert len(smaller.zones) == 1
    assert smaller.lines == ()
    assert len(smaller.cloud.offers) == 1  # none at all would be those by default
    assert smaller.policy == type(smaller.policy)()
    assert smaller.path.stock == draw(SMALL, 1).path.stock


def test_a_world_that_does_not_fit_together_is_not_tried() -> None:
    """The lost zone stays, with a line to it."""

    def when(scenario: Scenario) -> float | None:
        lost = [fault for fault in scenario.faults if fault.kind is FaultKind.ZONE_LOST]
        return 500.0 if lost and any(zone.lines for zone in scenario.zones) else None

    found = shrink(msgspec.structs.replace(SMALL, faults=ALL), NAME, breaking(when))
    assert [zone.name for zone in found.scenario.zones] == ["cloud-b"]
    assert len(found.scenario.lines) == 1
    assert found.scenario.zones[0].lines == (found.scenario.lines[0].name,)


def test_what_shows_at_the_end_only_is_not_cut_short() -> None:
    """As when machines are left at the end, whenever that is."""
    found = shrink(
        draw(SMALL, 1), NAME, breaking(lambda scenario: 2_300.0 if scenario.duration_s == SMALL.duration_s else None)
    )
    assert found.scenario.duration_s == SMALL.duration_s


def test_it_gives_up_after_so_many_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(shrinking, "RUNS_MAX", 7)
    found = shrink(msgspec.structs.replace(SMALL, faults=ALL), NAME, breaking(lambda _: 900.0), seen.append)
    assert found.runs == 7
    assert seen == list(range(1, 8))


def test_what_does_not_break_cannot_be_shrunk() -> None:
    with pytest.raises(ValueError, match="small with seed 1 does not break: planted"):
        shrink(SMALL, NAME, breaking(lambda _: None))
