"""Health to weights, case by case."""

from collections.abc import Collection
from typing import Any

from springtide.decide.observed import Observed
from springtide.decide.route import endpoints, zone_weights
from springtide.model import ReplicaState, Snapshot, StopReplica
from tests.unit.fleets import BASE, IDC_NODES, POLICY, endpoint, node, replica, snapshot

NODE = node("h1")
CLOUD = tuple(replica(f"h{n}", NODE) for n in range(3))


def observed(**changes: Any) -> Observed:
    return Observed(snapshot(**{"nodes": (*IDC_NODES, NODE), **changes}), POLICY)


def weights_of(seen: Snapshot, *, leaving: Collection[str] = (), frozen: bool = False) -> dict[str, int]:
    return {e.replica_id: e.weight for e in endpoints(Observed(seen, POLICY), leaving, frozen=frozen)}


def test_a_zone_has_the_weight_of_what_serves_in_it() -> None:
    everyone = frozenset(r.replica_id for r in (*BASE, *CLOUD))
    seen = observed(replicas=(*BASE, *CLOUD), healthy=everyone - {"h0"})
    assert zone_weights(seen, {"h1"}) == {"idc-a": 100, "idc-b": 100, "cloud-h": 100}


def test_a_replica_that_became_ready_gets_traffic() -> None:
    assert weights_of(snapshot(replicas=(*BASE, CLOUD[0]), endpoints=())) == {"a1": 100, "b1": 100, "h0": 100}


def test_what_starts_is_not_listed() -> None:
    starting = replica("h0", NODE, ReplicaState.STARTING)
    assert weights_of(snapshot(replicas=(*BASE, starting))) == {"a1": 100, "b1": 100}


def test_what_leaves_has_no_weight_and_stays_until_its_runtime_forgets_it() -> None:
    seen = snapshot(replicas=(*BASE, CLOUD[0]))
    assert weights_of(seen, leaving={"h0"}) == {"a1": 100, "b1": 100, "h0": 0}
    draining = replica("h0", NODE, ReplicaState.DRAINING)
    seen = snapshot(replicas=(*BASE, draining), endpoints=(*map(endpoint, BASE), endpoint(draining, 0)))
    assert weights_of(seen) == {"a1": 100, "b1": 100, "h0": 0}
    stopping = (StopReplica("h0", "cloud-h", ""),)
    assert weights_of(snapshot(replicas=(*BASE, CLOUD[0]), in_flight=stopping))["h0"] == 0
    assert weights_of(snapshot(endpoints=(*map(endpoint, BASE), endpoint(draining, 0)))) == {
        "a1": 100,
        "b1": 100,
    }


def test_a_failed_replica_gets_no_traffic() -> None:
    failed = replica("h0", NODE, ReplicaState.FAILED)
    assert weights_of(snapshot(replicas=(*BASE, failed), endpoints=(endpoint(failed),)))["h0"] == 0


def test_an_address_that_a_new_replica_has_taken_over_is_listed_once() -> None:
    failed = replica("h0", NODE, ReplicaState.FAILED, port=9000)
    fresh = replica("h1", NODE, port=9000)
    listed = endpoints(observed(replicas=(*BASE, failed, fresh), endpoints=(endpoint(failed),)), set(), frozen=False)
    assert [e.replica_id for e in listed if e.port == 9000] == ["h1"]


def test_a_sick_replica_keeps_its_weight_so_that_it_can_come_back() -> None:
    seen = snapshot(replicas=(*BASE, CLOUD[0]), healthy=frozenset({"a1", "b1"}))
    assert weights_of(seen)["h0"] == 100


def test_weights_given_stay_while_the_observer_is_suspect() -> None:
    failed = replica("h0", NODE, ReplicaState.FAILED)
    before = (*map(endpoint, BASE), endpoint(failed, 100), endpoint(CLOUD[1], 0))
    seen = snapshot(replicas=(*BASE, failed, CLOUD[1], CLOUD[2]), endpoints=before)
    assert weights_of(seen, frozen=True) == {"a1": 100, "b1": 100, "h0": 100, "h1": 0, "h2": 100}


def test_a_zone_that_is_down_stays_listed_without_weight_and_one_that_returns_has_a_share() -> None:
    seen = observed(replicas=(*BASE, *CLOUD))
    listed = endpoints(seen, set(), {"cloud-h": 0.0, "idc-a": 0.25}, frozen=False)
    assert {e.replica_id: e.weight for e in listed} == {"a1": 25, "b1": 100, "h0": 0, "h1": 0, "h2": 0}
    assert zone_weights(seen, set(), {"cloud-h": 0.0, "idc-a": 0.25}) == {"idc-a": 25, "idc-b": 100, "cloud-h": 0}


def test_a_zone_that_is_rescued_gets_its_weight_though_the_rest_is_frozen() -> None:
    before = tuple(endpoint(r, 0) for r in (*BASE, *CLOUD))
    seen = observed(replicas=(*BASE, *CLOUD), endpoints=before)
    listed = endpoints(seen, set(), frozen=True, thawed={"cloud-h"})
    assert {e.replica_id: e.weight for e in listed} == {"a1": 0, "b1": 0, "h0": 100, "h1": 100, "h2": 100}


def test_without_a_fresh_list_of_replicas_the_list_stays() -> None:
    seen = snapshot(replicas=(), endpoints=tuple(map(endpoint, BASE)), ages_ms={"replicas": 1_501})
    assert weights_of(seen) == {"a1": 100, "b1": 100}
