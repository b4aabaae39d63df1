"""Purchases of one loop tick go to the inventory as one call for each (sale, bucket): group commit."""

import asyncio
from typing import Protocol

import structlog

from springtide.config import CounterSettings
from springtide.errors import InventoryUnavailable
from springtide.model import ReserveRequest, ReserveResult
from springtide.ports import Clock
from springtide.sale.metrics import Figures
from springtide.sale.pooled_stock import Reserver
from springtide.sale.problems import OUTCOME_UNKNOWN, OVERLOADED, UNAVAILABLE, Problem

WAITING_BATCHES_MAX = 8
"""Full batches that may wait in one lane behind those in flight; beyond, purchases are refused as overloaded.
"""

ANSWER_GRACE_MS = 250
"""How long after its oldest deadline a batch's answer is still awaited: the way back, and a pause of the
machine."""

_log = structlog.get_logger(__name__)


class Waiter(Protocol):
    """Whoever wants to know what became of a purchase; told exactly once, by one of the two."""

    def purchased(self, request: ReserveRequest, result: ReserveResult, now_s: float) -> None:
        """The inventory has decided."""

    def refused(self, problem: Problem) -> None:
        """There is no decision."""


class _Lane:
    """The purchases of one bucket that have not been sent yet. It lives only while it has something to do."""

    __slots__ = ("bucket", "in_flight", "requests", "sale", "scheduled", "skew_ms", "waiters")

    def __init__(self, sale: str, bucket: int) -> None:
        self.sale = sale
        self.bucket = bucket
        self.requests: list[ReserveRequest] = []
        self.waiters: list[Waiter] = []
        self.in_flight = 0
        self.scheduled = False
        self.skew_ms = 0


class Batcher:
    """Sends batches of up to `batch_max`; while `batches_in_flight_max` are under way, the next one grows."""

    __slots__ = (
        "_batch_max",
        "_clock",
        "_figures",
        "_in_flight_max",
        "_inventory",
        "_lanes",
        "_loop",
        "_tasks",
        "_waiting_max",
    )

    def __init__(self, inventory: Reserver, clock: Clock, settings: CounterSettings, figures: Figures) -> None:
        """Call it with the event loop running."""
        self._inventory = inventory
        self._clock = clock
        self._figures = figures
        self._batch_max = settings.batch_max
        self._in_flight_max = settings.batches_in_flight_max
        self._waiting_max = settings.batch_max * WAITING_BATCHES_MAX
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, sale: str, bucket: int, request: ReserveRequest, waiter: Waiter, skew_ms: int) -> bool:
        """Take a purchase; False when too many wait already, and then the waiter hears nothing.

        `skew_ms` is how far the engine's clock, which `deadline_ms` is by, is ahead of ours.
        """
        lane = self._lanes.get((sale, bucket))
        if lane is None:
            lane = self._lanes[sale, bucket] = _Lane(sale, bucket)
        requests = lane.requests
        if len(requests) >= self._waiting_max:
            return False
        requests.append(request)
        lane.waiters.append(waiter)
        if lane.in_flight < self._in_flight_max:
            if len(requests) >= self._batch_max:
                self._send(lane)
            elif not lane.scheduled:
                lane.scheduled = True
                lane.skew_ms = skew_ms
                self._loop.call_soon(self._tick_ended, lane)
        return True

    @property
    def waiting(self) -> int:
        """Purchases that have not been sent."""
        return sum(len(lane.requests) for lane in self._lanes.values())

    @property
    def in_flight(self) -> int:
        """Batches that have been sent and not been answered."""
        return len(self._tasks)

    async def close(self) -> None:
        """Wait for the batches that are under way; each ends by its deadline."""
        while self._tasks or self._lanes:
            if self._tasks:
                await asyncio.wait(self._tasks)
            else:
                await self._clock.sleep(0)

    def _tick_ended(self, lane: _Lane) -> None:
        lane.scheduled = False
        self._send(lane)

    def _send(self, lane: _Lane) -> None:
        """Send what the limit of batches in flight allows, leaving out what came too late to be sent."""
        while lane.requests and lane.in_flight < self._in_flight_max:
            requests = lane.requests[: self._batch_max]
            waiters = lane.waiters[: self._batch_max]
            del lane.requests[: self._batch_max], lane.waiters[: self._batch_max]
            now_ms = self._clock.now_ms() + lane.skew_ms
            if requests[0].deadline_ms <= now_ms:
                requests, waiters = self._drop_late(requests, waiters, now_ms)
            if requests:
                lane.in_flight += 1
                task = self._loop.create_task(self._decide(lane, requests, waiters, now_ms))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        if not lane.requests and not lane.in_flight and not lane.scheduled:
            self._lanes.pop((lane.sale, lane.bucket), None)

    def _drop_late(
        self, requests: list[ReserveRequest], waiters: list[Waiter], now_ms: int
    ) -> tuple[list[ReserveRequest], list[Waiter]]:
        in_time = [request.deadline_ms > now_ms for request in requests]
        late = [waiter for waiter, kept in zip(waiters, in_time, strict=True) if not kept]
        _refuse(late, OVERLOADED)
        return (
            [request for request, kept in zip(requests, in_time, strict=True) if kept],
            [waiter for waiter, kept in zip(waiters, in_time, strict=True) if kept],
        )

    async def _decide(self, lane: _Lane, requests: list[ReserveRequest], waiters: list[Waiter], now_ms: int) -> None:
        self._figures.batch(len(requests))
        wait_s = (requests[0].deadline_ms - now_ms + ANSWER_GRACE_MS) / 1000
        try:
            async with self._clock.timeout(wait_s):
                results = await self._inventory.reserve(lane.sale, lane.bucket, requests)
            self._tell(requests, waiters, results)
        except InventoryUnavailable:
            _refuse(waiters, UNAVAILABLE)
        except Exception as error:  # noqa: BLE001 - whatever went wrong, each buyer gets an answer and the lane goes on
            _log.warning("batch_outcome_unknown", sale=lane.sale, bucket=lane.bucket, error=repr(error))
            _refuse(waiters, OUTCOME_UNKNOWN)
        except asyncio.CancelledError:
            _refuse(waiters, OUTCOME_UNKNOWN)
            raise
        finally:
            lane.in_flight -= 1
            self._send(lane)

    def _tell(self, requests: list[ReserveRequest], waiters: list[Waiter], results: list[ReserveResult]) -> None:
        if len(results) != len(requests):
            raise RuntimeError(f"{len(results)} results for {len(requests)} purchases")
        now_s = self._clock.monotonic_s()
        for request, waiter, result in zip(requests, waiters, results, strict=True):
            try:
                waiter.purchased(request, result, now_s)
            except Exception:  # noqa: BLE001 - one buyer's connection must not keep the others from their answers
                _log.exception("answer_failed", order_id=request.order_id)


def _refuse(waiters: list[Waiter], problem: Problem) -> None:
    for waiter in waiters:
        try:
            waiter.refused(problem)
        except Exception:  # noqa: BLE001 - as above
            _log.exception("answer_failed", code=problem.code)
