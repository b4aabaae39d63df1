"""The loop's own promises: what it does when a port fails, and what it never does."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.fleet import MemoryBalancer, MemoryCloud, MemoryRuntime
from springtide.errors import SensorError
from springtide.fleet.act import IN_FLIGHT_MAX
from springtide.fleet.journal import Decision, Fault, Journal, Outcome, read_journal
from springtide.fleet.loop import ControlLoop, LoopSettings
from springtide.fleet.observe import TRAFFIC_SAMPLES_MAX
from springtide.fleet.ports import one_service
from springtide.model import DrainReplica, NodeState, ReplicaSpec, StartReplica
from tests.unit.fleets import POLICY, A, B, H


class Stage:
    """A loop that is ticked by hand."""

    def __init__(self, path: Path, policy: Any = POLICY) -> None:
        self.clock = VirtualClock()
        self.rate = 50.0
        self.runtime = MemoryRuntime(self.clock, start_s=3.0)
        self.balancer = MemoryBalancer(lambda _: self.rate, lambda _: True)
        self.cloud = MemoryCloud(self.clock, (A, B, H))
        self.journal = Journal(path)
        ports = one_service(self.balancer, self.runtime, self.cloud, (A, B, H))
        settings = LoopSettings("r1", (A, B, H), policy, (), tick_ms=500)
        self.loop = ControlLoop(self.clock, ports, settings, self.journal)

    async def ticks(self, count: int) -> None:
        for _ in range(count):
            await self.loop.tick()
            await self.clock.advance(0.5)

    def entries(self, kind: type[Any]) -> list[Any]:
        return [entry for entry in read_journal(self.journal.path) if isinstance(entry, kind)]

    def actions(self, kind: type[Any]) -> list[Any]:
        return [entry.action for entry in self.entries(Outcome) if isinstance(entry.action, kind)]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    built = Stage(tmp_path / "fleet.jsonl")
    yield built
    built.journal.close()
    structlog.reset_defaults()


async def test_the_pool_of_the_idc_is_there_from_the_beginning(stage: Stage) -> None:
    await stage.ticks(1)
    assert stage.loop.latest is not None
    nodes = stage.loop.latest[0].nodes
    assert [(n.node_id, n.state, n.cores) for n in nodes] == [
        ("idc-a-0", NodeState.READY, 4),
        ("idc-b-0", NodeState.READY, 4),
    ]


async def test_the_base_comes_up_and_settles(stage: Stage) -> None:
    await stage.ticks(10)
    assert {e.zone: e.weight for e in stage.balancer.endpoints} == {"idc-a": 100, "idc-b": 100}
    assert await stage.loop.settle(0.0)
    assert len(stage.actions(StartReplica)) == 2


async def test_nothing_is_started_before_the_runtime_was_heard(stage: Stage) -> None:
    listing = stage.runtime.list

    async def fail() -> Any:
        raise OSError("reset")

    stage.runtime.list = fail  # type: ignore[method-assign] # a fault in its place
    await stage.ticks(4)
    assert stage.actions(StartReplica) == []
    stage.runtime.list = listing  # type: ignore[method-assign] # the fault is over
    await stage.ticks(1)
    assert len(stage.actions(StartReplica)) == 2


async def test_a_port_that_fails_leaves_its_last_word_with_its_age(stage: Stage) -> None:
    await stage.ticks(10)
    stage.runtime.failing = stage.cloud.failing = True
    await stage.ticks(3)
    assert stage.loop.latest is not None
    seen = stage.loop.latest[0]
    assert len(seen.replicas) == 2
    by_zone = dict.fromkeys(("replicas/idc-a", "replicas/idc-b", "replicas/cloud-h"), 1500)
    assert seen.ages_ms == {"replicas": 1500, "nodes": 1500, **by_zone}
    assert {f.source for f in stage.entries(Fault)} == {"replicas", "nodes"}


async def test_a_port_that_never_answers_costs_one_tick(stage: Stage) -> None:
    await stage.ticks(10)

    async def never() -> Any:
        await stage.clock.sleep(1e9)

    stage.cloud.nodes = never  # type: ignore[method-assign] # a fault in its place
    before = stage.clock.monotonic_s()
    ticking = stage.loop.tick()
    task = asyncio.ensure_future(ticking)
    await stage.clock.advance(0.6)
    await task
    assert stage.clock.monotonic_s() - before == pytest.approx(0.6)
    assert stage.entries(Fault)[-1].error == "no answer within 0.5 s"


@pytest.mark.parametrize("error", [OSError("reset"), KeyError("a bug"), ZeroDivisionError()], ids=["os", "key", "zero"])
async def test_no_fault_of_a_port_ends_the_loop(stage: Stage, error: Exception) -> None:
    async def fail(*_: object) -> Any:
        raise error

    for port, names in (
        (stage.runtime, ("list", "start", "drain", "stop")),
        (stage.balancer, ("sample", "healthy", "set_endpoints")),
        (stage.cloud, ("nodes", "rent", "release")),
    ):
        for name in names:
            setattr(port, name, fail)
            await stage.ticks(2)
            delattr(port, name)
    stage.rate = 800.0
    await stage.ticks(60)
    assert len(stage.balancer.endpoints) == 10
    assert stage.entries(Fault)


async def test_no_replica_drains_while_the_balancer_may_still_send_to_it(stage: Stage) -> None:
    stage.rate = 800.0
    await stage.ticks(60)
    assert len(stage.runtime.replicas()) == 10
    writes: list[Any] = []
    write = stage.balancer.set_endpoints

    async def refuse(endpoints: Any) -> None:
        writes.append(endpoints)
        raise OSError("no space left")

    stage.balancer.set_endpoints = refuse  # type: ignore[method-assign] # a fault in its place
    stage.rate = 50.0
    await stage.ticks(40)
    assert writes
    assert stage.actions(DrainReplica) == []
    stage.balancer.set_endpoints = write  # type: ignore[method-assign] # the fault is over
    await stage.ticks(60)
    assert len(stage.runtime.replicas()) == 2
    assert await stage.cloud.nodes() == []


async def test_a_list_that_may_have_been_taken_is_written_again(stage: Stage) -> None:
    await stage.ticks(10)
    base = stage.balancer.endpoints
    write = stage.balancer.set_endpoints

    async def take_without_a_word(endpoints: Any) -> None:
        await write(endpoints)
        raise OSError("reset")

    stage.balancer.set_endpoints = take_without_a_word  # type: ignore[method-assign] # a fault in its place
    stage.rate = 170.0
    while stage.balancer.endpoints == base:
        await stage.ticks(1)
    more = {e.replica_id for e in stage.balancer.endpoints} - {e.replica_id for e in base}
    assert more
    stage.balancer.set_endpoints = write  # type: ignore[method-assign] # the fault is over
    for name in more:
        await stage.runtime.stop(name)
    await stage.ticks(1)
    # The plan's list is again the one that was confirmed last, and yet not the one that the balancer has.
    assert stage.balancer.endpoints == base


async def test_what_is_under_way_is_bounded_and_not_begun_twice(tmp_path: Path) -> None:
    wide = msgspec.structs.replace(POLICY, base_replicas=4, starting_max=200, actions_max=200)
    stage = Stage(tmp_path / "fleet.jsonl", wide)
    begun: list[str] = []

    async def slow(spec: ReplicaSpec) -> None:
        begun.append(spec.replica_id)
        await stage.clock.sleep(20)

    stage.runtime.start = slow  # type: ignore[method-assign] # slower than a runtime may be
    await stage.ticks(5)
    assert len(begun) == len(set(begun)) == 8
    under_way = len(stage.loop.in_flight)
    assert under_way == 8 <= IN_FLIGHT_MAX
    ending = asyncio.ensure_future(stage.loop.shutdown(1.0))
    await stage.clock.advance(3)
    assert not await ending
    assert not stage.loop.in_flight
    stage.journal.close()


async def test_a_journal_that_cannot_be_written_does_not_end_the_loop(stage: Stage) -> None:
    stage.journal.close()
    await stage.ticks(10)
    assert len(stage.balancer.endpoints) == 2


async def test_the_history_is_bounded(stage: Stage) -> None:
    for tick in range(200):
        stage.rate = 1000.0 - tick
        await stage.loop.tick()
        await stage.clock.advance(0.05)
    assert stage.loop.latest is not None
    seen = stage.loop.latest[0]
    assert len(seen.traffic) <= TRAFFIC_SAMPLES_MAX
    assert len(seen.wanted_before) <= 14
    counts = [count for _, count in seen.wanted_before]
    assert counts == sorted(counts, reverse=True)


async def test_lines_are_read_and_one_that_fails_is_not_named(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "fleet.jsonl")

    class Load:
        value: float | None = 0.5

        async def read(self) -> float:
            if self.value is None:
                raise SensorError("the line is down")
            return self.value

    east, west = Load(), Load()
    ports = one_service(stage.balancer, stage.runtime, stage.cloud, (A, B, H))
    ports = msgspec.structs.replace(ports, lines={"east": east, "west": west})
    settings = LoopSettings("r1", (A, B, H), POLICY, (), tick_ms=500)
    stage.loop = ControlLoop(stage.clock, ports, settings, stage.journal)
    await stage.ticks(2)
    assert stage.loop.latest is not None
    assert stage.loop.latest[0].line_load == {"east": 0.5, "west": 0.5}
    west.value, east.value = None, 1.0
    await stage.ticks(1)
    snapshot, plan = stage.loop.latest
    assert snapshot.line_load == {"east": 1.0}
    assert plan.line_limit.share == 0.8
    await stage.ticks(1)
    assert stage.loop.latest[0].line_limit == plan.line_limit
    stage.journal.close()


async def test_decisions_are_in_the_journal_before_their_outcomes(stage: Stage) -> None:
    stage.rate = 800.0
    await stage.ticks(30)
    decided: list[Any] = []
    for entry in read_journal(stage.journal.path):
        if isinstance(entry, Decision):
            decided.extend(entry.plan.actions)
        elif isinstance(entry, Outcome):
            assert entry.action in decided
