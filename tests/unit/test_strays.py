"""Which rented nodes are strays: never one that a running leader has, never one of a sale whose loop is dead."""

import msgspec
import pytest

from springtide.decide.strays import ROUNDED_MS, Claims, Leaders, SweepPolicy, judge
from springtide.model import Node, NodeState

H = 3_600_000
NOW = 1_800_000_000_000
GRACE = 600_000
POLICY = SweepPolicy(grace_ms=GRACE, release_after_ms=12 * H)


def node(name: str = "n1", *, age_ms: int = H, release_at_ms: int = 0) -> Node:
    return Node(
        name,
        "h",
        NodeState.READY,
        32,
        f"t-{name}",
        NOW - age_ms + 60_000,
        rented_ms=NOW - age_ms,
        release_at_ms=release_at_ms,
    )


def is_stray(one: Node, claims: Claims, policy: SweepPolicy = POLICY) -> bool:
    (found,) = judge([one], claims, policy, NOW)
    assert found.reason
    return found.stray


def test_machines_of_the_data_centre_are_no_affair_of_a_sweep() -> None:
    owned = msgspec.structs.replace(node(age_ms=900 * H), client_token="")
    assert judge([owned], Claims(Leaders.GONE, gone_ms=1), POLICY, NOW) == []


@pytest.mark.parametrize("age_ms", [0, GRACE + 1, 400 * H])
def test_what_a_running_leader_lists_or_buys_stays_however_old_it_is(age_ms: int) -> None:
    over = msgspec.structs.replace(POLICY, older_than_ms=1)
    one = node(age_ms=age_ms, release_at_ms=NOW - age_ms // 2)
    assert not is_stray(one, Claims(Leaders.RUNNING, node_ids=frozenset({"n1"}), heard_ms=NOW), over)
    assert not is_stray(one, Claims(Leaders.RUNNING, tokens=frozenset({"t-n1"}), heard_ms=NOW), over)


def test_what_a_running_leader_does_not_know_goes_once_it_has_had_the_time_to_list_it() -> None:
    known_ms = GRACE + ROUNDED_MS  # the moment of an order is known to the minute
    assert not is_stray(node(age_ms=known_ms), Claims(Leaders.RUNNING, heard_ms=NOW))
    assert is_stray(node(age_ms=known_ms + 2), Claims(Leaders.RUNNING, heard_ms=NOW))
    # Its list is older than the node: it says nothing of it.
    assert not is_stray(node(age_ms=known_ms + 2), Claims(Leaders.RUNNING, heard_ms=NOW - 3))
    assert not is_stray(node(age_ms=400 * H), Claims(Leaders.RUNNING, heard_ms=0))


def test_a_dead_loop_does_not_shorten_a_sale() -> None:
    dead = Claims(Leaders.DEAD)
    assert not is_stray(node(age_ms=11 * H), dead)
    assert not is_stray(node(age_ms=12 * H + GRACE), dead)
    assert is_stray(node(age_ms=12 * H + GRACE + 1), dead)
    # The moment that the cloud was told counts more than the usual life: it is the event's own.
    assert not is_stray(node(age_ms=50 * H, release_at_ms=NOW + H), dead)
    assert not is_stray(node(age_ms=50 * H, release_at_ms=NOW - GRACE), dead)
    assert is_stray(node(age_ms=H, release_at_ms=NOW - GRACE - 1), dead)
    # An announced event lets nodes without an end of their own live until after it.
    announced = msgspec.structs.replace(POLICY, events_end_ms=NOW - 11 * H)
    assert not is_stray(node(age_ms=50 * H), dead, announced)


def test_after_a_platform_was_taken_down_what_is_left_goes_after_the_grace() -> None:
    assert not is_stray(node(), Claims(Leaders.GONE, gone_ms=NOW - GRACE))
    assert is_stray(node(), Claims(Leaders.GONE, gone_ms=NOW - GRACE - 1))
    assert not is_stray(node(age_ms=1), Claims(Leaders.GONE, gone_ms=NOW - GRACE - 1))
    assert not is_stray(node(), Claims(Leaders.GONE))


@pytest.mark.parametrize(("leaders", "goes"), [(Leaders.DEAD, True), (Leaders.GONE, True), (Leaders.UNKNOWN, False)])
def test_an_operators_age_holds_where_no_leader_runs(leaders: Leaders, goes: bool) -> None:  # noqa: FBT001 - a case's value
    policy = msgspec.structs.replace(POLICY, older_than_ms=2 * H)
    assert is_stray(node(age_ms=2 * H + 1), Claims(leaders), policy) is goes
    assert not is_stray(node(age_ms=2 * H), Claims(leaders), policy)


def test_when_nothing_is_known_nothing_goes() -> None:
    assert not is_stray(node(age_ms=900 * H, release_at_ms=1), Claims(Leaders.UNKNOWN, gone_ms=1))
