"""What the order path does to people and stock, rule by rule, in fluid steps."""

import random

import pytest

from springtide.twin.simulation.flow import Capacity, PathSettings
from springtide.twin.simulation.path_events import EventPath
from springtide.twin.simulation.path_fluid import FluidPath
from springtide.twin.simulation.path_queue import mixed_p99_ms, wait_p99_s

START_MS = 1_700_000_000_000
ROOM = Capacity(1_000.0, round_trip_ms=0.0)


def at(second: float) -> int:
    return START_MS + round(1000 * second)


def test_who_would_wait_longer_than_the_deadline_is_shed_at_once() -> None:
    path = FluidPath(PathSettings(stock=10_000, deadline_ms=500))
    flow = path.step(at(0), 1.0, 2_000.0, ROOM)
    assert (flow.acknowledged, flow.waiting, flow.shed) == (1_000.0, 500.0, 500.0)


def test_the_shed_come_again_until_they_have_had_enough() -> None:
    path = FluidPath(PathSettings(stock=10_000, retry_share=0.5, retry_after_s=2.0, retries_max=1))
    nobody = Capacity(0.0)
    first = path.step(at(0), 1.0, 100.0, nobody)
    assert (first.shed, first.gave_up) == (100.0, 50.0)
    assert path.step(at(1), 1.0, 0.0, nobody).requests == 0.0
    again = path.step(at(2), 1.0, 0.0, nobody)
    assert (again.requests, again.retries, again.gave_up) == (50.0, 50.0, 50.0)
    assert path.step(at(3), 10.0, 0.0, nobody).requests == 0.0


def test_an_unpaid_order_gives_its_unit_back_and_it_sells_again() -> None:
    path = FluidPath(PathSettings(stock=100, pay_share=0.6, pay_after_s=1.0, hold_s=5.0))
    assert path.step(at(0), 1.0, 100.0, ROOM).stock == 0.0
    paid = path.step(at(1), 1.0, 100.0, ROOM)
    assert (paid.paid, paid.reserved, paid.sold_out) == (60.0, 40.0, 100.0)
    path.step(at(2), 3.0, 0.0, ROOM)
    flow = path.step(at(5), 1.0, 100.0, ROOM)
    assert (flow.expired, flow.acknowledged, flow.sold_out) == (40.0, 40.0, 60.0)


def test_a_lost_shard_fails_what_it_had_and_keeps_what_it_acknowledged() -> None:
    path = FluidPath(PathSettings(stock=10_000, shards=4, deadline_ms=1_000, retry_share=0.0))
    before = path.step(at(0), 1.0, 400.0, Capacity(1_000.0, shards_up=4))
    lost = path.step(at(1), 1.0, 400.0, Capacity(1_000.0, shards_up=3))
    after = path.step(at(2), 1.0, 400.0, Capacity(1_000.0, shards_up=3))
    back = path.step(at(3), 1.0, 400.0, Capacity(1_000.0, shards_up=4))
    assert (lost.failed, lost.acknowledged, lost.p99_ms) == (100.0, 300.0, 1_000.0)
    assert (after.failed, after.shed) == (0.0, 100.0)
    assert (back.acknowledged, back.failed, back.shed) == (400.0, 0.0, 0.0)
    assert back.reserved == before.reserved + 300.0 + 300.0 + 400.0


def test_a_full_journal_refuses_purchases_until_it_is_recorded() -> None:
    path = FluidPath(PathSettings(stock=10_000, recorder_per_s=100.0, journal_max=150, retry_share=0.0))
    flows = [path.step(at(second), 1.0, 400.0, ROOM) for second in range(4)]
    assert [flow.acknowledged for flow in flows] == [250.0, 100.0, 100.0, 100.0]
    assert flows[-1].journal == 150.0
    assert flows[-1].shed == 300.0


def test_before_the_opening_people_look_and_the_early_come_again() -> None:
    settings = PathSettings(stock=10_000, opens_ms=at(2), early_share=0.1)
    path = FluidPath(settings)
    looks = path.step(at(0), 2.0, 100.0, ROOM)
    assert (looks.pages, looks.acknowledged) == (200.0, 0.0)
    opened = path.step(at(2), 1.0, 100.0, ROOM)
    assert opened.retries == pytest.approx(20.0)
    assert opened.acknowledged == pytest.approx(120.0)


def test_after_the_end_nothing_sells() -> None:
    flow = FluidPath(PathSettings(stock=10, closes_ms=START_MS)).step(at(0), 1.0, 100.0, ROOM)
    assert (flow.sold_out, flow.stock) == (100.0, 10.0)


def test_bots_get_what_their_accounts_may_and_no_more() -> None:
    settings = PathSettings(
        stock=10_000, bots_share=0.5, bot_buyers=10, bot_addresses=1, buyer_rate_max=2.0, buyer_burst_max=3
    )
    path = FluidPath(settings)
    first = path.step(at(0), 1.0, 200.0, ROOM)
    assert (first.bots, first.bots_refused) == (100.0, 50.0)  # 10 x 3 at once and 10 x 2 within the second
    assert (first.acknowledged, first.sold_out) == (110.0, 40.0)  # one order for each account
    second = path.step(at(1), 1.0, 200.0, ROOM)
    assert (second.bots_refused, second.acknowledged, second.shed) == (80.0, 100.0, 80.0)


def test_a_refusal_may_cost_less_capacity_than_a_purchase() -> None:
    flows = [
        FluidPath(PathSettings(stock=0, sold_out_cost=cost, retry_share=0.0)).step(at(0), 10.0, 2_000.0, ROOM)
        for cost in (1.0, 0.5)
    ]
    assert [flow.sold_out for flow in flows] == [10_000.0, 20_000.0]


@pytest.mark.parametrize(
    "fields", [{"shards": 2, "shard_shares": (0.5, 0.4)}, {"bots_share": 0.5}, {"opens_ms": 5, "closes_ms": 5}]
)
def test_settings_that_contradict_themselves_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(reversed(fields))):
        PathSettings(stock=1, **fields)  # type: ignore[arg-type] # fields of several types


# --- waiting times ---


def test_the_wait_is_that_of_the_textbook_for_one_server() -> None:
    # M/M/1: P(W > t) = u·exp(-t(1-u)/s), so the 99th percentile is s/(1-u)·ln(100·u).
    assert wait_p99_s(0.5, 1.0, 1.0, 1.0) == pytest.approx(2.0 * 3.912, rel=1e-3)
    assert wait_p99_s(0.005, 1.0, 1.0, 1.0) == 0.0


@pytest.mark.parametrize(("replicas", "own", "per_s"), [(1, False, 80.0), (10, False, 900.0), (10, True, 700.0)])
def test_the_formula_tells_the_wait_of_single_requests(replicas: int, *, own: bool, per_s: float) -> None:
    capacity = Capacity(100.0 * replicas, round_trip_ms=0.0, replicas=replicas, own_queues=own)
    # Round robin makes arrivals at each of n lines regular: Erlang's, with a squared variation of 1/n.
    settings = PathSettings(
        stock=10**9, service_ms=0.001, service_scv=1.0, arrival_scv=1.0 / replicas if own else 1.0, deadline_ms=60_000
    )
    events = EventPath(settings, random.Random(11)).step(at(0), 200_000.0 / per_s, per_s, capacity)
    fluid = FluidPath(settings).step(at(0), 1.0, per_s, capacity)
    assert fluid.p99_ms == pytest.approx(events.p99_ms, rel=0.25)


def test_in_overload_the_queue_tells_the_wait() -> None:
    path = FluidPath(PathSettings(stock=10**6, deadline_ms=800, service_ms=5.0))
    path.step(at(0), 1.0, 5_000.0, ROOM)
    assert path.step(at(1), 1.0, 5_000.0, ROOM).p99_ms == pytest.approx(805.0)


def test_a_look_at_the_sale_is_seen_in_the_slowest_answers() -> None:
    assert mixed_p99_ms(4.0, 0.005, 20.0) == 4.0
    assert mixed_p99_ms(4.0, 1.0, 20.0) == pytest.approx(23.8)
