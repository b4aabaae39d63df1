"""What every balancer engine says of its traffic."""

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest

from springtide.model import Endpoint, TrafficSample, ZoneTraffic
from tests.contract.balancing import KINDS, Kind, Stage, staged, until
from tests.integration.http_load import send


@pytest.fixture(params=KINDS)
async def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    kind: Kind = request.param
    async with staged(kind, tmp_path_factory.mktemp("b")) as stage:
        yield stage


class Counted:
    """Samples since the last look, as numbers of requests."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.since_s = 0.0

    async def take(self) -> tuple[TrafficSample, float]:
        """The sample, and the seconds since the one before; a figure times those is a number of requests."""
        sample = await self.stage.balancer.sample(1)
        now_s = asyncio.get_running_loop().time()
        elapsed_s, self.since_s = now_s - self.since_s, now_s
        return sample, elapsed_s


def zones(sample: TrafficSample) -> dict[str, ZoneTraffic]:
    return {zone.zone: zone for zone in sample.zones}


async def test_requests_are_counted_as_they_were_sent(stage: Stage) -> None:
    await stage.begin_inside("a1 b1")
    await stage.route(a1=30, b1=10)
    counted = Counted(stage)
    await counted.take()
    await stage.send(400)
    sample, elapsed_s = await counted.take()
    by_zone = zones(sample)
    assert sample.requests_per_s * elapsed_s == pytest.approx(400, rel=0.05)
    assert by_zone["a"].requests_per_s * elapsed_s == pytest.approx(300, rel=0.05)
    assert by_zone["b"].requests_per_s + by_zone["a"].requests_per_s == pytest.approx(sample.requests_per_s)
    assert (sample.failed_per_s, by_zone["a"].failed_per_s, by_zone["b"].failed_per_s) == (0, 0, 0)
    assert (sample.in_flight, sample.queued, by_zone["a"].in_flight, by_zone["a"].healthy) == (0, 0, 0, 1)


async def test_the_first_sample_of_a_balancer_sets_the_mark(stage: Stage) -> None:
    await stage.begin_inside("a1")
    await stage.route(a1=10)
    await stage.balancer.sample(1)
    await stage.send(50)
    assert (await stage.balancer.sample(2)).requests_per_s > 0
    assert (await stage.balancer.sample(3)).requests_per_s == 0


async def test_errors_that_clients_see_are_failures_of_the_service_and_the_zone(stage: Stage) -> None:
    (ill, _) = await stage.begin_inside("a1 b1")
    await stage.route(a1=10, b1=10)
    await stage.balancer.sample(0)
    ill.status = 500
    assert (await stage.send(6, connections=1))["failed 500"] == 3
    sample = await stage.balancer.sample(1)
    assert sample.failed_per_s == pytest.approx(sample.requests_per_s / 2)
    assert zones(sample)["a"].failed_per_s == pytest.approx(sample.failed_per_s)
    assert zones(sample)["b"].failed_per_s == 0


async def test_a_try_that_was_repeated_is_a_failure_of_its_zone_alone(stage: Stage) -> None:
    (broken, _) = await stage.begin_inside("a1 b1")
    await stage.route(a1=10, b1=10)
    await stage.balancer.sample(0)
    broken.breaks = True
    assert await stage.send(2, connections=1) == {"b1": 2}
    sample = await stage.balancer.sample(1)
    assert sample.failed_per_s == 0
    assert zones(sample)["a"].failed_per_s > 0
    assert zones(sample)["b"].failed_per_s == 0


async def test_a_killed_replica_shows_as_failures_of_its_zone(stage: Stage) -> None:
    await stage.begin("a1 b1")
    await stage.route(a1=10, b1=10)
    await stage.balancer.sample(0)
    stage.signal("a1", signal.SIGKILL)
    assert await stage.send(40) == {"b1": 40}
    sample = await stage.balancer.sample(1)
    assert sample.failed_per_s == 0
    assert zones(sample)["a"].failed_per_s > 0
    await until(lambda: _healthy_in(stage, "a", 0))


async def test_requests_that_no_replica_can_take_are_counted_as_failed(stage: Stage) -> None:
    await stage.balancer.sample(0)
    assert await stage.send(20) == {"failed 503": 20}
    sample = await stage.balancer.sample(1)
    assert sample.failed_per_s == sample.requests_per_s > 0
    assert sample.zones == ()


async def test_what_is_open_is_in_flight(stage: Stage) -> None:
    (one, two) = await stage.begin_inside("a1 b1")
    one.delay_s = two.delay_s = 0.6
    await stage.route(a1=10, b1=20)
    requests = [asyncio.create_task(stage.request()) for _ in range(3)]
    await until(lambda: _in_flight(stage, 3))
    sample = await stage.balancer.sample(1)
    assert {zone.zone: zone.in_flight for zone in sample.zones} == {"a": 1, "b": 2}
    await asyncio.gather(*requests)
    assert (await stage.balancer.sample(2)).in_flight == 0


async def test_figures_of_a_removed_replica_are_not_lost(stage: Stage) -> None:
    await stage.begin_inside("a1 c1")
    await stage.route(a1=10, c1=10)
    await stage.balancer.sample(0)
    await stage.send(100)
    await stage.route(a1=10)
    sample = await stage.balancer.sample(1)
    by_zone = zones(sample)
    assert by_zone["c"].requests_per_s == by_zone["a"].requests_per_s == sample.requests_per_s / 2 > 0
    assert (by_zone["c"].healthy, by_zone["a"].healthy) == (0, 1)
    assert [zone.zone for zone in (await stage.balancer.sample(2)).zones] == ["a"]


async def test_figures_add_up_while_they_are_read_and_the_list_changes(stage: Stage) -> None:
    await stage.begin_inside("a1 b1")
    await stage.route(a1=10, b1=10)
    counted = Counted(stage)
    await counted.take()
    seen = {"all": 0.0, "zones": 0.0}

    async def take() -> None:
        sample, elapsed_s = await counted.take()
        seen["all"] += sample.requests_per_s * elapsed_s
        seen["zones"] += sum(zone.requests_per_s for zone in sample.zones) * elapsed_s

    async with stage.load(4) as load:
        for weight in range(1, 16):
            await asyncio.gather(stage.route(a1=weight, b1=20), take(), load.answered(30))
    await take()
    assert seen == {name: pytest.approx(load.answers.total(), rel=0.15) for name in seen}


async def test_an_address_may_go_to_another_replica(stage: Stage) -> None:
    (one,) = await stage.begin_inside("a1")
    await stage.route(a1=10)
    await stage.send(30)
    await stage.balancer.sample(0)
    await stage.balancer.set_endpoints([Endpoint("b7", "b", "127.0.0.1", one.port, 10)])
    assert await stage.balancer.healthy() == {"b7"}
    await stage.send(30)
    sample = await stage.balancer.sample(1)
    assert zones(sample)["b"].requests_per_s == pytest.approx(sample.requests_per_s) != 0
    assert one.served == 60


async def test_the_99th_percentile_is_of_what_clients_waited(stage: Stage) -> None:
    (one,) = await stage.begin_inside("a1")
    await stage.route(a1=10)
    assert (await stage.balancer.sample(0)).p99_ms is None
    one.delay_s = 0.05
    seen: list[float] = []
    async with stage.load(8) as load:
        while not seen:
            await load.answered(80)
            await asyncio.sleep(0.2)
            p99_ms = (await stage.balancer.sample(1)).p99_ms
            seen += [p99_ms] if p99_ms else []
        await load.answered(80)
    assert 40 <= seen[0] <= 500


async def test_zones_with_large_and_small_weights(stage: Stage) -> None:
    await stage.begin_inside("a1 b1 c1")
    await stage.route(a1=70_000, b1=20_000, c1=10_000)
    answers = await send(stage.port, 500)
    shares = {name: answers[name] / 5 for name in ("a1", "b1", "c1")}
    assert shares == {name: pytest.approx(share, abs=2) for name, share in (("a1", 70), ("b1", 20), ("c1", 10))}


async def _healthy_in(stage: Stage, zone: str, count: int) -> bool:
    return zones(await stage.balancer.sample(1))[zone].healthy == count


async def _in_flight(stage: Stage, count: int) -> bool:
    return (await stage.balancer.sample(1)).in_flight == count
