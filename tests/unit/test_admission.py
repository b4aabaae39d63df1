"""Admission: the pace is kept, in order, nobody waits too long, and all of it is bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.drivers.memory.clock import VirtualClock
from springtide.sale.admission import BURST_S, CapacityQueue, Rates, RetrySpread


class Guest:
    def __init__(self, log: list["Guest"]) -> None:
        self.log = log

    def admitted(self) -> None:
        self.log.append(self)


async def test_with_tokens_there_nobody_queues_and_no_timer_is_set() -> None:
    clock = VirtualClock()
    queue = CapacityQueue(clock, 1000.0, 0.1)
    log: list[Guest] = []
    assert [queue.enter(Guest(log), clock.monotonic_s()) for _ in range(20)] == [True] * 20
    assert queue.depth == 0
    assert not clock._timers
    assert queue.enter(Guest(log), clock.monotonic_s()) is None
    assert len(clock._timers) == 1


async def test_who_waits_is_served_in_order_and_in_time() -> None:
    clock = VirtualClock()
    queue = CapacityQueue(clock, 100.0, 0.25)
    log: list[Guest] = []
    guests = [Guest(log) for _ in range(40)]
    turns = [queue.enter(guest, clock.monotonic_s()) for guest in guests]
    assert turns.count(True) == 2
    assert turns.count(None) == queue.depth_max == 25
    assert turns.count(False) == 13
    await clock.advance(0.26)
    assert log == guests[2:27]
    assert queue.depth == 0


@given(
    rate=st.floats(1, 5000),
    gaps=st.lists(st.one_of(st.just(0.0), st.floats(0, 0.5)), min_size=1, max_size=60),
)
async def test_no_window_of_time_admits_more_than_the_rate_and_the_burst(rate: float, gaps: list[float]) -> None:
    clock = VirtualClock()
    queue = CapacityQueue(clock, rate, 0.3)
    admitted: list[float] = []
    waits: list[float] = []

    class Timed:
        def __init__(self) -> None:
            self.came_s = clock.monotonic_s()

        def admitted(self) -> None:
            admitted.append(clock.monotonic_s())
            waits.append(clock.monotonic_s() - self.came_s)

    for gap in gaps:
        if gap:
            await clock.advance(gap)
        if queue.enter(Timed(), clock.monotonic_s()):
            admitted.append(clock.monotonic_s())
    await clock.advance(1.0)
    assert queue.depth == 0
    assert max(waits, default=0.0) <= 0.3 + 1e-6
    burst = max(1.0, rate * BURST_S)
    for first, start in enumerate(admitted):
        for count, end in enumerate(admitted[first:], 1):
            assert count <= burst + (end - start) * rate + 1e-3


async def test_a_guest_who_leaves_is_not_called_and_frees_the_place() -> None:
    clock = VirtualClock()
    queue = CapacityQueue(clock, 10.0, 0.25)
    log: list[Guest] = []
    guests = [Guest(log) for _ in range(4)]
    assert [queue.enter(guest, clock.monotonic_s()) for guest in guests] == [True, None, None, False]
    assert queue.leave(guests[1])
    assert not queue.leave(guests[1])
    assert not queue.leave(guests[0])
    assert queue.enter(guests[3], clock.monotonic_s()) is None
    await clock.advance(0.35)
    assert log == guests[2:]


async def test_a_guest_may_come_again_while_being_served() -> None:
    clock = VirtualClock()
    queue = CapacityQueue(clock, 10.0, 1.0)
    served: list[int] = []

    class Keen:
        def admitted(self) -> None:
            served.append(1)
            if len(served) < 5 and queue.enter(self, clock.monotonic_s()):
                self.admitted()

    keen = Keen()
    assert queue.enter(keen, clock.monotonic_s()) is True
    assert queue.enter(keen, clock.monotonic_s()) is None
    await clock.advance(2.0)
    assert len(served) == 5


def test_a_buyer_has_a_burst_and_then_the_rate() -> None:
    rates = Rates(10.0, 3)
    assert [rates.wait_s("anna", 5.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert rates.wait_s("anna", 5.0) == pytest.approx(0.1)
    assert rates.wait_s("bert", 5.0) == 0.0
    assert rates.wait_s("anna", 5.1) == 0.0
    assert rates.wait_s("anna", 5.1) == pytest.approx(0.1)
    assert [rates.wait_s("anna", 9.0) for _ in range(4)][:3] == [0.0, 0.0, 0.0]


@given(rate=st.floats(0.1, 1000), burst=st.integers(1, 50), gaps=st.lists(st.floats(0, 2), max_size=80))
def test_a_buyer_never_gets_more_than_burst_and_rate(rate: float, burst: int, gaps: list[float]) -> None:
    rates = Rates(rate, burst)
    now_s = 0.0
    let_in: list[float] = []
    for gap in gaps:
        now_s += gap
        wait_s = rates.wait_s("anna", now_s)
        if not wait_s:
            let_in.append(now_s)
        else:
            assert wait_s <= 1 / rate + 1e-6
    for first, start in enumerate(let_in):
        for count, end in enumerate(let_in[first:], 1):
            assert count <= burst + (end - start) * rate + 1e-6


def test_buyers_are_remembered_until_their_allowance_is_full_and_no_longer_than_twice_that() -> None:
    rates = Rates(10.0, 3)
    rates.wait_s("early", 5.0)
    for _ in range(3):
        assert rates.wait_s("anna", 5.29) == 0.0
    assert rates.wait_s("bert", 5.31) == 0.0, "a new generation begins"
    assert rates.wait_s("anna", 5.31) > 0, "an allowance that is not full is remembered"
    assert rates.wait_s("bert", 5.7) == 0.0
    assert rates.wait_s("bert", 6.1) == 0.0
    assert len(rates) == 2, "only one buyer, in both generations"


def test_buyers_are_forgotten_in_generations_and_bounded() -> None:
    rates = Rates(0.001, 1, callers_max=10)
    assert rates.wait_s("anna", 0.0) == 0.0
    for number in range(14):
        assert rates.wait_s(f"b{number}", 0.0) == 0.0
    assert rates.wait_s("anna", 0.0) > 0
    for number in range(100):
        rates.wait_s(f"c{number}", 0.0)
        assert len(rates) <= 20
    assert rates.wait_s("anna", 0.0) == 0.0


def test_those_sent_away_together_do_not_come_back_together() -> None:
    spread = RetrySpread(0.3)
    counts = [0] * 4
    for _ in range(1000):
        counts[spread.retry_after_s(0.0, 4.0) - 1] += 1
    assert all(240 <= count <= 260 for count in counts)
    assert spread.retry_after_s(0.2, 0.0) == 1
    assert spread.retry_after_s(7.2, 0.0) == 8
