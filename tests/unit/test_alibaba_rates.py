"""Calls wait for their turn, an API that was throttled rests until the next minute, and its neighbours go on."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.drivers.api_rates import WINDOW_MS, ApiRates, Rate
from springtide.drivers.memory.clock import VirtualClock
from springtide.errors import CloudThrottled

USUAL = Rate(burst=3, per_s=2)


def rates(clock: VirtualClock, wait_s_max: float = 10.0) -> ApiRates:
    return ApiRates(clock, {"machines": Rate(burst=100, per_s=10)}, USUAL, wait_s_max)


async def test_a_burst_goes_at_once_and_the_rest_in_turn() -> None:
    clock, went = VirtualClock(), []
    limits = rates(clock)

    async def call() -> None:
        await limits.take("Run")
        went.append(clock.monotonic_s())

    calls = [asyncio.create_task(call()) for _ in range(7)]
    await clock.advance(5)
    await asyncio.gather(*calls)
    assert went == [0, 0, 0, 0.5, 1.0, 1.5, 2.0]


async def test_units_count() -> None:
    clock = VirtualClock()
    limits = rates(clock, wait_s_max=1.0)
    await limits.take("machines", 95)
    with pytest.raises(CloudThrottled) as throttled:
        await limits.take("machines", 50)
    assert throttled.value.retry_after_s == pytest.approx(4.5)
    await limits.take("machines", 5)
    await clock.advance(5)
    await limits.take("machines", 50)


async def test_who_would_wait_too_long_takes_nothing() -> None:
    clock = VirtualClock()
    limits = rates(clock, wait_s_max=0.0)
    for _ in range(3):
        await limits.take("Run")
    for _ in range(5):
        with pytest.raises(CloudThrottled):
            await limits.take("Run")
    await clock.advance(0.5)
    await limits.take("Run")


async def test_a_throttled_api_rests_until_the_next_minute_and_its_neighbours_do_not() -> None:
    clock = VirtualClock()
    limits = rates(clock)
    await clock.advance(13)
    to_next_s = (WINDOW_MS - clock.now_ms() % WINDOW_MS) / 1000
    assert limits.close("Run") == pytest.approx(to_next_s)
    with pytest.raises(CloudThrottled) as throttled:
        await limits.take("Run")
    assert throttled.value.retry_after_s == pytest.approx(to_next_s)
    await limits.take("Describe")
    await clock.advance(to_next_s)
    await limits.take("Run")


async def test_the_cloud_may_ask_for_longer() -> None:
    clock = VirtualClock()
    limits = rates(clock)
    assert limits.close("Run", retry_after_s=90) == pytest.approx(90)
    assert limits.close("Run", retry_after_s=1) == pytest.approx(90), "an earlier word is kept"


async def test_those_who_wait_are_not_sent_to_a_closed_api() -> None:
    clock = VirtualClock()
    limits = rates(clock)
    for _ in range(3):
        await limits.take("Run")
    waiting = [asyncio.create_task(limits.take("Run")) for _ in range(4)]
    await clock.advance(0.1)
    limits.close("Run")
    await clock.advance(5)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, CloudThrottled) for outcome in outcomes)


@given(gaps=st.lists(st.floats(0, 20), min_size=1, max_size=60), burst=st.integers(1, 20), per_s=st.floats(0.1, 5))
def test_no_minute_has_more_calls_than_its_rate(gaps: list[float], burst: int, per_s: float) -> None:
    async def run() -> list[float]:
        clock, went = VirtualClock(), []
        limits = ApiRates(clock, {}, Rate(burst, per_s), wait_s_max=1e9)

        async def call() -> None:
            await limits.take("Run")
            went.append(clock.monotonic_s())

        calls = []
        for gap in gaps:
            calls.append(asyncio.create_task(call()))
            await clock.advance(gap)
        await clock.advance(len(gaps) / per_s + 1)
        await asyncio.gather(*calls)
        return went

    went = asyncio.run(run())
    assert len(went) == len(gaps)
    for at in went:
        assert sum(at <= other < at + 60 for other in went) <= burst + 60 * per_s + 1
