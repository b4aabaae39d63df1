"""A loop that ends at any call of a port is followed by one that brings the fleet to the same end, once.

Between two writes only time passes, so the ends after each write stand for all ends; those before writes and at reads
are drawn by hypothesis.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from springtide.model import ReplicaState, RolloutState, ScaleOverride
from tests.twin.platform import POLICY, WRITES, Life, Platform, wish

END_S = 38.0
LAST_S = 15.0
"""What the last loop has at least."""

QUICK = msgspec.structs.replace(POLICY, rollout_surge=4)
CLOUD_S = 3.0
"""How long a purchase takes: longer than a lease, so that a leader who knew no better would make another one."""


class Story:
    """Services come, grow into the cloud, are released anew, shrink and go, whatever happens to their loop."""

    def __init__(self, folder: Path) -> None:
        self.platform = Platform(folder, {"web": lambda _: 150.0, "api": lambda _: 50.0}, policy=QUICK)
        self.platform.cloud.latency_s = CLOUD_S
        self.least_serving = 99

    async def tell(self, *lives: Life) -> None:
        """Each life is followed by the next one as soon as it is over; the last is a whole one."""
        platform, state = self.platform, self.platform.state
        await state.wish_service("web", wish("web"))
        await state.wish_service("api", wish("api"))
        rest = [*lives, Life()]
        platform.begin(rest.pop(0))
        second, until = 0.0, END_S
        while second < until:
            second += 0.5
            await platform.until(second)
            if platform.loops[-1][1].over and rest:
                platform.begin(rest.pop(0))
                until = max(END_S, second + LAST_S)
            if second == 5:
                await state.wish_scale("web", ScaleOverride(8, 100))
            if second == 13:
                await state.wish_service("web", wish("web", "v2"))
            if second == 25:
                await state.wish_scale("web", None)
                await state.wish_service("api", None)
            if second >= 12:  # a loop that ended at its first steps has been followed by then
                self.least_serving = min(self.least_serving, platform.serving("web"))

    async def check(self) -> None:
        platform = self.platform
        replicas = platform.replicas()
        assert {(one.service, one.revision, one.state) for one in replicas} == {("web", "v2", ReplicaState.READY)}
        assert Counter(one.zone for one in replicas) == {"idc-a": 1, "idc-b": 1}
        assert {one.replica_id for one in platform.balancers["web"].endpoints} == {one.replica_id for one in replicas}
        assert platform.balancers["api"].endpoints == ()
        assert await platform.cloud.nodes() == []
        assert await platform.state.open_intents() == []
        loop = platform.loops[-1][0]
        assert loop.leads
        assert set(loop.decided) == {"web"}
        rollout = loop.decided["web"][1].rollout
        assert rollout is None or (rollout.state, rollout.revision) == (RolloutState.DONE, "v2")
        assert self.least_serving >= 2


async def told(folder: Path, *lives: Life) -> Story:
    story = Story(folder)
    try:
        await story.tell(*lives)
        await story.check()
    finally:
        await story.platform.close()
    return story


def at(end: int, when: str) -> Callable[[int, str, str], bool]:
    return lambda number, _, moment: (number, moment) == (end, when)


def writes(calls: list[str]) -> list[int]:
    """Those that change more than a time: not the status, and of the lease its first taking only."""
    first = calls.index("lead")
    return [
        number
        for number, call in enumerate(calls)
        if call.split(" ")[0] in WRITES and call != "remember status" and (call != "lead" or number == first)
    ]


async def test_the_story_without_an_end(tmp_path: Path) -> None:
    life = Life()
    story = await told(tmp_path, life)
    assert set(WRITES) <= {call.split(" ")[0] for call in life.calls}
    assert story.platform.cloud.rented_total >= 2


@pytest.mark.parametrize("part", range(4))
async def test_it_may_end_after_any_write(tmp_path: Path, part: int) -> None:
    life = Life()
    whole = await told(tmp_path / "whole", life)
    ends = writes(life.calls)
    assert len(ends) > 100
    for end in ends[part::4]:
        story = await told(tmp_path / str(end), Life(at(end, "after")))
        assert len(story.platform.loops) == 2
        assert story.platform.cloud.rented_total <= whole.platform.cloud.rented_total, life.calls[end]


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ends=st.lists(st.tuples(st.integers(0, 900), st.sampled_from(["before", "after"])), min_size=1, max_size=6))
def test_it_may_end_anywhere_and_again(tmp_path_factory: pytest.TempPathFactory, ends: list[tuple[int, str]]) -> None:
    lives = [Life(at(*end)) for end in ends]
    asyncio.run(told(tmp_path_factory.mktemp("story"), *lives))


@pytest.fixture(autouse=True)
def _no_log_lines() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.reset_defaults()
