"""Load is shed when an answer in time is not to be expected, and not for longer than that."""

import asyncio
from collections.abc import Sequence

from springtide.drivers.memory.clock import VirtualClock
from springtide.model import ReserveRequest, ReserveResult
from springtide.sale import metrics, shedding
from springtide.sale.admission import CapacityQueue
from springtide.sale.shedding import LoadMeter, WatchedReserver


class Slow:
    """Takes as long as it is told."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.lasts_s = 0.01

    async def reserve(self, sale: str, bucket: int, batch: Sequence[ReserveRequest]) -> list[ReserveResult]:
        assert (sale, bucket, batch) == ("evening", 0, [])
        await self.clock.sleep(self.lasts_s)
        return []


async def test_what_is_expected_follows_the_answers_and_the_queue() -> None:
    clock = VirtualClock()
    slow = Slow(clock)
    watched = WatchedReserver(slow, clock)
    lane = watched.lane("evening", 0)
    assert lane.expected_s(0.0, 100) == 0.0
    slow.lasts_s = 1.0
    first = asyncio.create_task(watched.reserve("evening", 0, []))
    await clock.advance(0.5)
    lane.outstanding = 100
    assert lane.expected_s(clock.monotonic_s(), 100) == 1.0  # silent for 0.5 s, and one round before it
    await clock.advance(0.5)
    await first
    assert lane.expected_s(clock.monotonic_s(), 100) == 0.0, "with nothing under way somebody has to try"
    second = asyncio.create_task(watched.reserve("evening", 0, []))
    await clock.advance(0.0)
    lane.outstanding = 0
    assert lane.expected_s(clock.monotonic_s(), 100) == 0.5
    await clock.advance(1.0)
    await second
    assert watched.answer_s_max() == 0.75


async def test_a_lane_that_recovers_is_trusted_after_a_few_answers() -> None:
    clock = VirtualClock()
    slow = Slow(clock)
    watched = WatchedReserver(slow, clock)
    watched.lane("evening", 0).answer_s = 2.0
    for _ in range(5):
        await asyncio.gather(watched.reserve("evening", 0, []), clock.advance(0.01))
    assert watched.answer_s_max() < 0.1


def test_lanes_are_bounded_and_those_in_use_are_kept() -> None:
    watched = WatchedReserver(Slow(VirtualClock()), VirtualClock())
    used = watched.lane("evening", 0)
    used.outstanding = 1
    for bucket in range(1, shedding.LANES_MAX + 10):
        watched.lane("evening", bucket)
    assert len(watched._lanes) <= shedding.LANES_MAX
    assert watched.lane("evening", 0) is used


class Patient:
    """Waits for a turn."""

    def admitted(self) -> None:
        raise AssertionError("its turn does not come in this test")


def test_a_load_is_read_from_one_second_to_the_next() -> None:
    clock = VirtualClock()
    figures = metrics.Figures()
    capacity = CapacityQueue(clock, 10.0, 1.0)
    meter = LoadMeter("r1", figures, capacity, 10.0)
    assert (meter.read().rate_max, meter.read().refused_share) == (10.0, 0.0)
    for _ in range(30):
        figures.latency(0.001)
    figures.sheds[metrics.CAPACITY] += 9
    figures.sheds[metrics.LATE] += 1
    figures.sheds[metrics.BUYER_RATE] += 99
    while len(capacity._waiting) < 5:
        capacity.enter(Patient(), clock.monotonic_s())
    load = meter.read()
    assert (load.replica_id, load.queue_share, load.refused_share) == ("r1", 0.5, 0.25)
    assert meter.read().refused_share == 0.0
