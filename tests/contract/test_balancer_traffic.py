"""What every balancer engine does with requests while replicas come, go and fall ill."""

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest

from springtide.errors import BalancerError
from springtide.model import Endpoint
from tests.contract.balancing import KINDS, Kind, Stage, constant, staged, until, without_haproxy


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return kind


@pytest.fixture
async def stage(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(kind, tmp_path_factory.mktemp("b")) as stage:
        yield stage


async def test_changes_under_load_cost_no_request(stage: Stage) -> None:
    await stage.begin("a1 b1 c1 c2", "delay_s=0.002")
    await stage.route(a1=10)
    async with stage.load() as load:
        for _ in range(3):
            await stage.route(a1=10, b1=10)
            await load.answered(80)
            await stage.route(a1=10, b1=5, c1=30, c2=30)
            await load.answered(80)
            await stage.route(a1=10, b1=5, c1=0, c2=0)
            await load.answered(80)
            await stage.route(a1=10)
            await load.answered(80)
            await stage.route(b1=10)  # all at once: those before leave only when those after can serve
            await load.answered(80)
            await stage.route(a1=10)
            await load.answered(80)
        await stage.route(b1=10)
        stage.signal("a1", signal.SIGTERM)
        await load.answered(80)
    assert load.failed == {}
    assert load.answers.keys() == {"a1", "b1", "c1", "c2"}


async def test_a_killed_zone_costs_no_request_and_gets_none(stage: Stage) -> None:
    await stage.begin("a1 a2 a3 b1 b2 b3", "delay_s=0.002")
    await stage.route(a1=10, a2=10, a3=10, b1=10, b2=10, b3=10)
    async with stage.load() as load:
        await load.answered(300)
        for name in ("b1", "b2", "b3"):
            stage.signal(name, signal.SIGKILL)
        await until(lambda: _healthy(stage, "a1 a2 a3"))
        await load.answered(50)
        before = {name: load.answers[name] for name in ("b1", "b2", "b3")}
        await load.answered(500)
    assert load.failed == {}
    assert {name: load.answers[name] for name in before} == before


async def test_a_killed_replica_that_returns_gets_its_share_again(stage: Stage) -> None:
    (one, _) = await stage.begin_inside("a1 b1")
    await stage.route(a1=10, b1=10)
    await one.close()
    await until(lambda: _healthy(stage, "b1"))
    assert await stage.send(50) == {"b1": 50}
    await one.listen(port=one.port)
    await until(lambda: _healthy(stage, "a1 b1"))
    assert (await stage.send(200))["a1"] == pytest.approx(100, abs=4)


async def test_a_frozen_zone_costs_time_but_no_request(stage: Stage) -> None:
    await stage.begin("a1 a2 b1 b2")
    await stage.route(a1=10, a2=10, b1=10, b2=10)
    stage.signal("b1", signal.SIGSTOP)
    stage.signal("b2", signal.SIGSTOP)
    try:
        answers = await stage.send(60, connections=20)
        await until(lambda: _healthy(stage, "a1 a2"))
    finally:
        stage.signal("b1", signal.SIGCONT)
        stage.signal("b2", signal.SIGCONT)
    assert answers.keys() == {"a1", "a2"}
    await until(lambda: _healthy(stage, "a1 a2 b1 b2"))
    assert (await stage.send(40)).keys() == {"a1", "a2", "b1", "b2"}


async def test_a_replica_that_answers_errors_is_ejected_until_it_is_well(stage: Stage) -> None:
    (ill, _) = await stage.begin_inside("a1 b1")
    await stage.route(a1=10, b1=10)
    ill.status = 500
    while "a1" in await stage.balancer.healthy():
        await stage.send(4)
    assert await stage.send(20) == {"b1": 20}
    ill.status = 200
    await until(lambda: _healthy(stage, "a1 b1"))
    assert (await stage.send(100))["a1"] == pytest.approx(50, abs=4)


async def test_refusals_do_not_eject_where_503_is_one(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> None:
    async with staged(kind, tmp_path_factory.mktemp("b"), eject_on_errors=False) as stage:
        (one,) = await stage.begin_inside("a1")
        one.status = 503
        await stage.route(a1=10)
        assert await stage.send(200) == {"failed 503": 200}
        assert await stage.balancer.healthy() == {"a1"}
        assert one.served == 200


async def test_a_replica_gets_nothing_before_it_is_ready(stage: Stage) -> None:
    (new, _) = await stage.begin_inside("a1 b1")
    new.check_status = 503
    async with stage.load(4) as load:
        await stage.route(a1=10, b1=10)
        await until(lambda: _answered(stage))
        await load.answered(100)
        assert new.served == 0
        new.check_status = 200
        await until(lambda: _healthy(stage, "a1 b1"))
        await load.answered(100)
    assert new.served > 0


async def test_a_replica_that_is_not_ready_any_more_gets_nothing(stage: Stage) -> None:
    (one, two) = await stage.begin_inside("a1 a2")
    await stage.route(a1=10, a2=10)
    two.check_status = 503
    await until(lambda: _healthy(stage, "a1"))
    assert await stage.send(50) == {"a1": 50}
    assert one.served == 50


async def test_a_drained_replica_and_a_removed_one_finish_what_they_have(stage: Stage) -> None:
    (one, two, _) = await stage.begin_inside("a1 a2 b1")
    one.delay_s = two.delay_s = 0.7
    await stage.route(a1=10, a2=10)
    slow = [asyncio.create_task(stage.request()) for _ in range(2)]
    await until(lambda: _in_flight(stage, 2))
    await stage.route(a1=0, b1=10)
    assert await stage.send(50) == {"b1": 50}
    assert not any(task.done() for task in slow)
    answers = [await task for task in slow]
    assert {(each.status, each.headers["x-replica"]) for each in answers} == {(200, "a1"), (200, "a2")}


async def test_connections_to_replicas_are_kept(stage: Stage) -> None:
    (one,) = await stage.begin_inside("a1")
    await stage.route(a1=10)
    one.connections = 0
    await stage.send(300, connections=4)
    assert one.connections < 20


async def test_a_request_is_repeated_only_where_it_may_be(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> None:
    for idempotent, statuses in ((True, {200}), (False, {200, 502, 503})):
        async with staged(kind, tmp_path_factory.mktemp("b"), idempotent=idempotent, eject_on_errors=False) as stage:
            (broken, well) = await stage.begin_inside("a1 b1")
            broken.breaks = True
            await stage.route(a1=10, b1=10)
            answers = [await stage.request() for _ in range(4)]
            assert {each.status for each in answers} <= statuses
            assert broken.served > 0
            asked = broken.served + well.served
            assert (asked > 4) if idempotent else (asked == 4)


async def test_a_replica_that_cannot_be_reached_costs_nothing_even_where_nothing_is_repeated(
    kind: Kind, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with staged(kind, tmp_path_factory.mktemp("b"), idempotent=False) as stage:
        (gone, _) = await stage.begin_inside("a1 b1")
        await stage.route(a1=10, b1=10)
        await gone.close()
        assert await stage.send(40) == {"b1": 40}


async def test_a_full_service_lets_some_wait_and_refuses_the_rest_at_once(
    kind: Kind, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with staged(kind, tmp_path_factory.mktemp("b"), in_flight_max=1, queue_max=2, queue_ms=5000) as stage:
        (one,) = await stage.begin_inside("a1")
        await stage.route(a1=10)
        one.delay_s = 0.6
        first = asyncio.create_task(stage.request())
        await until(lambda: _in_flight(stage, 1))
        waiting = [asyncio.create_task(stage.request()) for _ in range(2)]
        await until(lambda: _queued(stage, 2))
        refused = await asyncio.gather(*(stage.request() for _ in range(5)))
        assert not first.done()
        assert {(each.status, each.headers["retry-after"]) for each in refused} == {(503, "1")}
        assert {each.headers["content-type"] for each in refused} == {"application/problem+json"}
        assert [each.status for each in [await first, *[await task for task in waiting]]] == [200, 200, 200]
        assert one.served == 3


async def test_a_new_replica_gets_its_share_gradually(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> None:
    async with staged(kind, tmp_path_factory.mktemp("b"), slow_start_ms=6000) as stage:
        await stage.begin_inside("a1 a2")
        await stage.route(a1=100)
        await asyncio.sleep(6.2)  # the first one is through with it
        await stage.route(a1=100, a2=100)
        assert (await stage.send(60)).get("a2", 0) < 20
        await until(lambda: _half(stage))


async def _half(stage: Stage) -> bool:
    return (await stage.send(60)).get("a2", 0) >= 28


async def test_a_new_replica_that_is_ill_does_not_hold_up_the_rest(stage: Stage) -> None:
    (_, _, gone) = await stage.begin_inside("a1 b1 b2")
    await stage.route(a1=10)
    await gone.close()
    async with stage.load() as load:
        await stage.route(b1=10, b2=10)
    assert load.failed == {}
    assert await stage.send(50) == {"b1": 50}


async def test_without_a_replica_clients_are_told_to_come_back(stage: Stage) -> None:
    answer = await stage.request()
    assert answer.status == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "1"
    assert b'"status":503' in answer.body


@pytest.mark.parametrize(
    ("endpoints", "said"),
    [
        ((Endpoint("a", "z", "127.0.0.1", 9, -1),), "weight of a"),
        ((Endpoint("a", "z", "127.0.0.1", 9, 100_001),), "weight of a"),
        ((Endpoint("a", "z", "127.0.0.1", 9, 1), Endpoint("b", "y", "127.0.0.1", 9, 1)), "two endpoints"),
        ((Endpoint("a", "z", "not-an-address", 9, 1),), "refused"),
        (tuple(Endpoint(f"a{n}", "z", "127.0.0.1", n + 1, 1) for n in range(10_001)), "more than"),
    ],
    ids=["weight", "heavy", "twice", "name", "many"],
)
async def test_a_list_that_cannot_be_used_changes_nothing(
    stage: Stage, endpoints: tuple[Endpoint, ...], said: str
) -> None:
    await stage.begin_inside("a1")
    await stage.route(a1=10)
    with pytest.raises(BalancerError, match=said):
        await stage.balancer.set_endpoints(endpoints)
    assert await stage.send(20) == {"a1": 20}
    await stage.route(a1=5)


@pytest.mark.skipif(bool(without_haproxy()), reason=without_haproxy() or "is there")
async def test_a_thousand_replicas_at_once(stage: Stage) -> None:
    with constant() as port:
        many = [Endpoint(f"r{n}", f"z{n % 4}", f"127.1.{n // 250}.{n % 250 + 1}", port, 100 + n) for n in range(1000)]
        await stage.balancer.set_endpoints(many)
        await until(lambda: _count(stage, 1000))
        await stage.balancer.sample(0)
        assert await stage.send(300) == {"constant": 300}
        assert {zone.healthy for zone in (await stage.balancer.sample(1)).zones} == {250}
        await stage.balancer.set_endpoints(many[:10])
        await until(lambda: _count(stage, 10))
        assert await stage.send(50) == {"constant": 50}


async def _healthy(stage: Stage, names: str) -> bool:
    return await stage.balancer.healthy() == set(names.split())


async def _count(stage: Stage, count: int) -> bool:
    return len(await stage.balancer.healthy()) == count


async def _answered(stage: Stage) -> bool:
    return (await stage.request()).status == 200


async def _in_flight(stage: Stage, count: int) -> bool:
    return (await stage.balancer.sample(1)).in_flight == count


async def _queued(stage: Stage, count: int) -> bool:
    return (await stage.balancer.sample(1)).queued == count
