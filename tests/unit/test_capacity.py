"""What a replica takes is learnt only where it shows, and the engine that is the limit gets named."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.decide.capacity import BELIEVED, MEMORY_MS, SAMPLES, learn
from springtide.decide.observed import Observed
from springtide.model import CapacityEstimate, Replica, TrafficSample, ZoneTraffic
from tests.unit.fleets import IDC_NODES, NOW, POLICY, A, replica, snapshot

CALIBRATED = POLICY.replica_requests_per_s


def fleet(count: int, age_ms: int = 60_000) -> tuple[Replica, ...]:
    return tuple(replica(f"r{number}", IDC_NODES[0], age_ms=age_ms) for number in range(count))


def traffic(served_per_s: float, queued: int, *, failed_per_s: float = 0.0) -> tuple[TrafficSample, ...]:
    zone = ZoneTraffic(A.name, served_per_s + failed_per_s, failed_per_s, in_flight=10, healthy=4)
    return tuple(
        TrafficSample(NOW - 500 * number, served_per_s + 50, (zone,), queued=queued)
        for number in range(SAMPLES - 1, -1, -1)
    )


def learnt(
    replicas: tuple[Replica, ...],
    samples: tuple[TrafficSample, ...],
    known: CapacityEstimate | None = None,
    engines: dict[str, float] | None = None,
) -> CapacityEstimate:
    seen = snapshot(replicas=replicas, traffic=samples, capacity=known, engines=engines or {})
    return learn(Observed(seen, POLICY), POLICY)


def test_it_begins_with_the_calibrated_figure() -> None:
    assert learnt(fleet(4), traffic(480, queued=0)) == CapacityEstimate(CALIBRATED)


def test_a_standing_queue_shows_what_a_replica_takes() -> None:
    found = learnt(fleet(4), traffic(480, queued=20, failed_per_s=30))
    assert CALIBRATED < found.requests_per_s < 120
    assert (found.samples, found.at_ms) == (1, NOW)
    for number in range(40):
        later = tuple(msgspec.structs.replace(s, at_ms=s.at_ms + 500 * (number + 1)) for s in traffic(480, queued=20))
        seen = snapshot(replicas=fleet(4), traffic=later, capacity=found, now_ms=NOW + 500 * (number + 1))
        found = learn(Observed(seen, POLICY), POLICY)
    assert found.requests_per_s == pytest.approx(120, rel=0.01)


def test_the_same_sample_counts_once() -> None:
    once = learnt(fleet(4), traffic(480, queued=20))
    assert learnt(fleet(4), traffic(480, queued=20), once) == once


@pytest.mark.parametrize(
    ("replicas", "samples", "engines"),
    [
        (fleet(4), traffic(480, queued=3), {}),
        (fleet(4, age_ms=700), traffic(480, queued=20), {}),
        (fleet(4), traffic(480, queued=20)[1:], {}),
        (fleet(4), traffic(480, queued=20), {"valkey": 0.9}),
        (fleet(4), traffic(4 * CALIBRATED * 1.6, queued=20), {}),
        (fleet(4), traffic(4 * CALIBRATED * 0.4, queued=20), {}),
        ((), traffic(480, queued=20), {}),
    ],
    ids=["no queue", "fresh replicas", "short", "store saturated", "too good", "too bad", "none serves"],
)
def test_nothing_is_learnt_where_it_does_not_show(
    replicas: tuple[Replica, ...], samples: tuple[TrafficSample, ...], engines: dict[str, float]
) -> None:
    found = learnt(replicas, samples, engines=engines)
    assert (found.requests_per_s, found.samples) == (CALIBRATED, 0)


@pytest.mark.parametrize(
    ("engines", "limit"),
    [({"valkey": 0.97, "postgres": 0.2}, "valkey"), ({"valkey": 0.5}, "an engine behind the service"), ({}, None)],
)
def test_replicas_that_bring_nothing_name_the_limit(engines: dict[str, float], limit: str | None) -> None:
    before = msgspec.structs.replace(learnt(fleet(4), traffic(400, queued=20)), at_ms=NOW - 5_000)
    found = learnt(fleet(8), traffic(420, queued=20), before, engines)
    assert found.limit == (limit or "an engine behind the service")
    assert found.requests_per_s == before.requests_per_s, "a limited replica does not show what it could do"


def test_replicas_that_bring_something_are_no_limit() -> None:
    before = msgspec.structs.replace(learnt(fleet(4), traffic(400, queued=20)), at_ms=NOW - 5_000)
    found = learnt(fleet(8), traffic(700, queued=20), before)
    assert found.limit == ""
    assert (found.best_per_s, found.best_replicas) == (700, 8)


def test_a_limit_is_forgotten_and_adding_is_tried_again() -> None:
    named = CapacityEstimate(CALIBRATED, 3, NOW - MEMORY_MS - 1, 400.0, 4, "valkey")
    assert learnt(fleet(8), traffic(400, queued=0), named).limit == ""
    fresh = msgspec.structs.replace(named, at_ms=NOW - MEMORY_MS + 1)
    assert learnt(fleet(8), traffic(400, queued=0), fresh).limit == "valkey"


def test_a_limit_ends_when_the_throughput_grows() -> None:
    named = CapacityEstimate(CALIBRATED, 3, NOW - 5_000, 400.0, 4, "valkey")
    assert learnt(fleet(8), traffic(790, queued=20), named).limit == ""


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.floats(0, 5_000), st.integers(0, 100), st.floats(0, 1)),
        min_size=1,
        max_size=30,
    )
)
def test_the_estimate_stays_within_its_bounds(steps: list[tuple[int, float, int, float]]) -> None:
    known: CapacityEstimate | None = None
    for number, (count, served, queued, busy) in enumerate(steps):
        shift = 2_000 * number
        samples = tuple(msgspec.structs.replace(s, at_ms=s.at_ms + shift) for s in traffic(served, queued))
        seen = snapshot(
            replicas=fleet(count), traffic=samples, capacity=known, engines={"valkey": busy}, now_ms=NOW + shift
        )
        known = learn(Observed(seen, POLICY), POLICY)
        assert BELIEVED[0] * CALIBRATED <= known.requests_per_s <= BELIEVED[1] * CALIBRATED
