"""The batcher: one call for each tick and bucket, group commit under load, one answer for each purchase."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from springtide.config import CounterSettings
from springtide.drivers.memory.clock import VirtualClock
from springtide.errors import InventoryUnavailable, OutcomeUnknown
from springtide.model import ReserveRequest, ReserveResult, ReserveStatus
from springtide.sale.batcher import ANSWER_GRACE_MS, WAITING_BATCHES_MAX, Batcher
from springtide.sale.metrics import Figures
from springtide.sale.problems import OUTCOME_UNKNOWN, OVERLOADED, UNAVAILABLE, Problem

TIMEOUT_MS = 1000


class Store:
    """An inventory that answers when it is let to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, list[str]]] = []
        self.gates: list[asyncio.Future[None]] = []
        self.short = False

    async def reserve(self, sale: str, bucket: int, batch: Sequence[ReserveRequest]) -> list[ReserveResult]:
        self.calls.append((sale, bucket, [request.order_id for request in batch]))
        gate = asyncio.get_running_loop().create_future()
        self.gates.append(gate)
        await gate
        results = [ReserveResult(ReserveStatus.RESERVED, request.order_id) for request in batch]
        return results[:-1] if self.short else results

    def let_go(self, error: Exception | None = None) -> None:
        gate = next(gate for gate in self.gates if not gate.done())
        if error is None:
            gate.set_result(None)
        else:
            gate.set_exception(error)


class Waiter:
    def __init__(self) -> None:
        self.answers: list[str | Problem] = []

    def purchased(self, request: ReserveRequest, result: ReserveResult, now_s: float) -> None:
        assert request.order_id == result.order_id
        self.answers.append(result.order_id)

    def refused(self, problem: Problem) -> None:
        self.answers.append(problem)


class Broken(Waiter):
    def purchased(self, request: ReserveRequest, result: ReserveResult, now_s: float) -> None:
        raise RuntimeError("the connection is broken")

    def refused(self, problem: Problem) -> None:
        raise RuntimeError("the connection is broken")


class Bench:
    """A batcher of at most four in a batch and two batches in flight."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.store = Store()
        self.figures = Figures()
        settings = CounterSettings(batch_max=4, batches_in_flight_max=2)
        self.batcher = Batcher(self.store, self.clock, settings, self.figures)
        self.count = 0

    def add(self, waiter: Waiter, bucket: int = 0, sale: str = "evening") -> bool:
        self.count += 1
        deadline_ms = self.clock.now_ms() + TIMEOUT_MS
        request = ReserveRequest("anna", "k", "tea", 1, f"o{self.count}", 1, deadline_ms)
        return self.batcher.add(sale, bucket, request, waiter, 0)

    async def settle(self) -> None:
        await self.clock.advance(0.0)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.clock.advance(60.0)
    assert not bench.batcher._tasks
    assert not bench.batcher._lanes


async def test_purchases_of_one_tick_are_one_call_for_each_bucket(bench: Bench) -> None:
    waiters = [Waiter() for _ in range(5)]
    for waiter, bucket in zip(waiters, (0, 1, 0, 1, 0), strict=True):
        assert bench.add(waiter, bucket)
    assert bench.store.calls == []
    await bench.settle()
    assert bench.store.calls == [("evening", 0, ["o1", "o3", "o5"]), ("evening", 1, ["o2", "o4"])]
    bench.store.let_go()
    bench.store.let_go()
    await bench.settle()
    assert [waiter.answers for waiter in waiters] == [["o1"], ["o2"], ["o3"], ["o4"], ["o5"]]
    assert bench.figures.batched == 5


async def test_a_full_batch_does_not_wait_for_the_tick_to_end(bench: Bench) -> None:
    for _ in range(4):
        bench.add(Waiter())
    assert bench.batcher.in_flight == 1
    assert bench.batcher.waiting == 0
    await bench.settle()
    assert len(bench.store.calls) == 1


async def test_while_the_limit_is_in_flight_the_next_batch_grows(bench: Bench) -> None:
    for _ in range(2):
        bench.add(Waiter())
        await bench.settle()
    assert bench.batcher.in_flight == 2
    for _ in range(3):
        bench.add(Waiter())
        await bench.settle()
    assert bench.batcher.in_flight == 2
    bench.store.let_go()
    await bench.settle()
    assert bench.store.calls[2][2] == ["o3", "o4", "o5"]


async def test_buckets_and_sales_do_not_hold_each_other_up(bench: Bench) -> None:
    for bucket in (0, 1, 2):
        for _ in range(2):
            bench.add(Waiter(), bucket)
            await bench.settle()
    bench.add(Waiter(), 0, "morning")
    await bench.settle()
    assert bench.batcher.in_flight == 7


async def test_beyond_the_bound_purchases_are_not_taken(bench: Bench) -> None:
    waiters = [Waiter() for _ in range(4 * (2 + WAITING_BATCHES_MAX) + 3)]
    taken = [bench.add(waiter) for waiter in waiters]
    assert taken == [True] * (4 * (2 + WAITING_BATCHES_MAX)) + [False] * 3
    await bench.settle()
    for _ in range(2 + WAITING_BATCHES_MAX):
        bench.store.let_go()
        await bench.settle()
    assert [len(waiter.answers) for waiter in waiters] == [1] * 40 + [0] * 3
    assert all(len(call[2]) == 4 for call in bench.store.calls)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (InventoryUnavailable("away"), UNAVAILABLE),
        (OutcomeUnknown("sent"), OUTCOME_UNKNOWN),
        (RuntimeError("a fault"), OUTCOME_UNKNOWN),
    ],
    ids=["unavailable", "unknown", "fault"],
)
async def test_a_failure_is_told_to_each_and_the_lane_goes_on(bench: Bench, error: Exception, problem: Problem) -> None:
    first, second = Waiter(), Waiter()
    bench.add(first)
    bench.add(second)
    await bench.settle()
    bench.store.let_go(error)
    await bench.settle()
    assert first.answers == second.answers == [problem]
    later = Waiter()
    bench.add(later)
    await bench.settle()
    bench.store.let_go()
    await bench.settle()
    assert later.answers == ["o3"]


async def test_a_short_answer_is_an_unknown_outcome(bench: Bench) -> None:
    waiters = [Waiter(), Waiter()]
    for waiter in waiters:
        bench.add(waiter)
    bench.store.short = True
    await bench.settle()
    bench.store.let_go()
    await bench.settle()
    assert [waiter.answers for waiter in waiters] == [[OUTCOME_UNKNOWN], [OUTCOME_UNKNOWN]]


async def test_silence_ends_shortly_after_the_deadline(bench: Bench) -> None:
    waiter = Waiter()
    bench.add(waiter)
    await bench.clock.advance((TIMEOUT_MS + ANSWER_GRACE_MS) / 1000 - 0.01)
    assert waiter.answers == []
    await bench.clock.advance(0.02)
    assert waiter.answers == [OUTCOME_UNKNOWN]


async def test_a_purchase_that_waited_past_its_deadline_is_not_sent(bench: Bench) -> None:
    for _ in range(2):
        bench.add(Waiter())
        await bench.settle()
    late = Waiter()
    bench.add(late)
    await bench.clock.advance(0.5)
    fresh = Waiter()
    bench.add(fresh)
    await bench.clock.advance(0.76)
    assert late.answers == [OVERLOADED]
    assert bench.store.calls[2][2] == ["o4"]
    bench.store.let_go()
    await bench.settle()
    assert fresh.answers == ["o4"]


@pytest.mark.parametrize("error", [None, InventoryUnavailable("away")], ids=["decided", "failed"])
async def test_a_broken_connection_keeps_nobody_else_from_the_answer(bench: Bench, error: Exception | None) -> None:
    waiters = [Broken(), Waiter(), Broken(), Waiter()]
    for waiter in waiters:
        bench.add(waiter)
    await bench.settle()
    bench.store.let_go(error)
    await bench.settle()
    assert [len(waiter.answers) for waiter in waiters] == [0, 1, 0, 1]
    assert bench.batcher.in_flight == 0


async def test_closing_waits_for_what_is_under_way(bench: Bench) -> None:
    waiter = Waiter()
    bench.add(waiter)
    closing = asyncio.create_task(bench.batcher.close())
    await bench.settle()
    assert not closing.done()
    bench.store.let_go()
    await bench.settle()
    assert closing.done()
    assert waiter.answers == ["o1"]
