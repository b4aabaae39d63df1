"""Several services under one loop: wishes, releases, shared nodes, and one leader."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import structlog

from springtide.decide.plan import plan as decide
from springtide.drivers.memory.fleet import MemoryBalancer
from springtide.errors import BalancerError
from springtide.fleet.journal import Decision, Outcome
from springtide.fleet.replay import replay
from springtide.fleet.status import read_status
from springtide.model import (
    FleetPolicy,
    Plan,
    ReplicaState,
    RolloutState,
    ScaleOverride,
    ServiceSpec,
    ServiceWish,
    SetEndpoints,
    Signal,
    SignalKind,
    Snapshot,
    ZoneMode,
)
from tests.twin.platform import Platform, wish

Build = Callable[..., Platform]


@pytest.fixture
async def build(tmp_path: Path) -> AsyncIterator[Build]:
    made: list[Platform] = []

    def platform(**demands: Callable[[float], float] | float) -> Platform:
        functions = {
            name: demand if callable(demand) else (lambda _, rate=demand: rate) for name, demand in demands.items()
        }
        made.append(Platform(tmp_path / str(len(made)), functions))
        return made[-1]

    yield platform
    for each in made:
        await each.close()


@pytest.fixture(autouse=True)
def _no_log_lines() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.reset_defaults()


def revisions(platform: Platform, service: str) -> set[str]:
    return {one.revision for one in platform.replicas(service)}


async def test_services_come_up_beside_each_other(build: Build) -> None:
    platform = build(web=150.0, api=50.0)
    await platform.state.wish_service("web", wish("web"))
    await platform.state.wish_service("api", wish("api", cores=2.0))
    platform.begin()
    await platform.until(10)
    assert (platform.serving("web"), platform.serving("api")) == (2, 2)
    cores: dict[str, float] = {}
    for replica in platform.replicas():
        cores[replica.node_id] = cores.get(replica.node_id, 0) + (2.0 if replica.service == "api" else 1.0)
    assert max(cores.values()) <= 4
    assert await platform.state.open_intents() == []


async def test_what_one_service_takes_of_the_idc_another_finds_in_the_cloud(build: Build) -> None:
    platform = build(web=50.0, api=50.0)
    await platform.state.wish_service("api", wish("api", cores=2.0, replicas_min=4))
    await platform.state.wish_service("web", wish("web", replicas_min=3))
    platform.begin()
    await platform.until(20)
    assert (platform.serving("web"), platform.serving("api")) == (3, 4)
    cores: dict[str, float] = {}
    for replica in platform.replicas():
        cores[replica.node_id] = cores.get(replica.node_id, 0) + (2.0 if replica.service == "api" else 1.0)
    assert max(cores.values()) <= 4
    nodes = await platform.cloud.nodes()
    assert {node.client_token.split("-")[1] for node in nodes} <= {"web", "api"}


async def test_a_wish_that_is_taken_back_leaves_nothing(build: Build) -> None:
    platform = build(web=900.0, api=50.0)
    await platform.state.wish_service("web", wish("web"))
    await platform.state.wish_service("api", wish("api"))
    loop = platform.begin()
    await platform.until(20)
    assert platform.serving("web") >= 10
    assert await platform.cloud.nodes()
    weights = {one.weight for one in platform.balancers["web"].endpoints}
    assert weights == {100}
    await platform.state.wish_service("web", None)
    await platform.until(40)
    assert platform.replicas("web") == []
    assert platform.balancers["web"].endpoints == ()
    assert await platform.cloud.nodes() == []
    assert set(loop.decided) == {"api"}
    assert platform.serving("api") == 2


async def test_before_anything_was_wished_nothing_retires(build: Build) -> None:
    platform = build(web=50.0)
    await platform.state.wish_service("web", wish("web"))
    platform.begin()
    await platform.until(10)
    ids = {one.replica_id for one in platform.replicas()}
    await platform.close()
    again = Platform(platform.folder / "again", {})
    again.clock, again.runtimes, again.cloud = platform.clock, platform.runtimes, platform.cloud
    again.state._clock = platform.clock
    again.begin()
    await again.until(30)
    assert {one.replica_id for one in platform.replicas()} == ids
    await again.close()


async def test_another_revision_is_rolled_out_and_a_bad_one_back(build: Build) -> None:
    platform = build(web=150.0)
    await platform.state.wish_service("web", wish("web", replicas_min=4))
    loop = platform.begin()
    await platform.until(10)
    assert revisions(platform, "web") == {"v1"}
    await platform.state.wish_service("web", wish("web", "v2", replicas_min=4))
    for second in range(11, 50):
        await platform.until(second)
        assert platform.serving("web") >= 4
    assert revisions(platform, "web") == {"v2"}
    release = loop.decided["web"][1].rollout
    assert release is not None
    assert (release.state, release.previous) == (RolloutState.DONE, "v1")
    for runtime in platform.runtimes.values():
        runtime.broken_revisions.add(("web", "v3"))
    await platform.state.wish_service("web", wish("web", "v3", replicas_min=4))
    await platform.until(120)
    assert revisions(platform, "web") == {"v2"}
    release = loop.decided["web"][1].rollout
    assert release is not None
    assert (release.state, release.revision) == (RolloutState.ROLLED_BACK, "v3")
    assert platform.serving("web") == 4
    platform.loops[0][1].over = True
    again = platform.begin()
    await platform.until(150)
    assert again.leads
    assert again.decided["web"][1].rollout == release
    begun = [entry.action for entry in platform.entries(1) if isinstance(entry, Outcome)]
    assert [action for action in begun if not isinstance(action, SetEndpoints)] == []


async def test_a_change_during_a_rollout_goes_to_the_last_wish(build: Build) -> None:
    platform = build(web=150.0)
    await platform.state.wish_service("web", wish("web", replicas_min=4))
    loop = platform.begin()
    await platform.until(10)
    await platform.state.wish_service("web", wish("web", "v2", replicas_min=4))
    await platform.until(13)
    assert revisions(platform, "web") == {"v1", "v2"}
    await platform.state.wish_service("web", wish("web", "v3", replicas_min=4))
    await platform.until(14)
    release = loop.decided["web"][1].rollout
    assert release is not None
    assert (release.revision, release.previous) == ("v3", "v1")
    await platform.until(60)
    assert revisions(platform, "web") == {"v3"}
    await platform.state.wish_service("web", wish("web", "v4", replicas_min=4))
    await platform.until(63)
    await platform.state.wish_service("web", wish("web", "v3", replicas_min=4))
    await platform.until(100)
    assert revisions(platform, "web") == {"v3"}
    assert platform.serving("web") == 4


async def test_bounds_of_operators_hold_until_they_end(build: Build) -> None:
    platform = build(web=50.0)
    await platform.state.wish_service("web", wish("web"))
    platform.begin()
    await platform.until(10)
    until_ms = platform.clock.now_ms() + 20_000
    await platform.state.wish_scale("web", ScaleOverride(5, 6, until_ms))
    await platform.until(20)
    assert platform.serving("web") == 5
    await platform.until(60)
    assert platform.serving("web") == 2


async def test_a_drained_zone_is_emptied_and_used_again(build: Build) -> None:
    platform = build(web=50.0)
    await platform.state.wish_service("web", wish("web"))
    platform.begin()
    await platform.until(10)
    (zone,) = {one.zone for one in platform.replicas("web")[:1]}
    await platform.state.wish_mode(zone, ZoneMode.DRAINED)
    await platform.until(30)
    assert platform.replicas("web", zone) == []
    assert platform.serving("web") == 2


async def test_one_leads_and_another_takes_over(build: Build) -> None:
    platform = build(web=150.0)
    await platform.state.wish_service("web", wish("web"))
    first = platform.begin()
    await platform.until(1)
    second = platform.begin()
    await platform.until(8)
    assert (first.leads, second.leads) == (True, False)
    assert platform.serving("web") == 2
    assert not any(isinstance(entry, Decision) for entry in platform.entries(1))
    ids = {one.replica_id for one in platform.replicas()}
    platform.loops[0][1].over = True
    await platform.until(11)
    assert (first.leads, second.leads) == (False, True)
    await platform.until(20)
    assert {one.replica_id for one in platform.replicas()} == ids
    assert platform.serving("web") == 2
    status = await read_status(platform.state)
    assert status is not None
    assert (status.leader, status.term) == ("r1", 2)
    assert status.services["web"].replicas == {"idc-a": {"ready": 1}, "idc-b": {"ready": 1}}


async def test_who_resigns_is_followed_at_once(build: Build) -> None:
    platform = build(web=150.0)
    await platform.state.wish_service("web", wish("web"))
    first = platform.begin()
    await platform.until(5)
    second = platform.begin()
    ending = asyncio.create_task(first.shutdown(1.0))
    await platform.until(6.6)
    assert ending.done()
    assert second.leads


async def test_a_state_that_does_not_answer_stops_purchases_at_once_and_all_else_with_the_lease(build: Build) -> None:
    platform = build(web=lambda second: 150.0 if second < 12 else 900.0)
    await platform.state.wish_service("web", wish("web"))
    platform.begin()
    await platform.until(10)
    platform.state.failing = True
    (first, *_) = platform.replicas("web")
    platform.runtimes[first.zone].fail([first.replica_id])
    await platform.until(11.1)
    assert first.replica_id not in {one.replica_id for one in platform.replicas("web")}
    await platform.until(13.2)
    calls = len(platform.loops[0][1].calls)
    before = platform.balancers["web"].endpoints
    await platform.until(30)
    after = platform.loops[0][1].calls[calls:]
    assert not set(after) & {"set_endpoints", "start", "stop", "drain", "rent", "release"}
    assert platform.balancers["web"].endpoints == before
    assert platform.cloud.rented_total == 0
    platform.state.failing = False
    await platform.until(50)
    assert platform.serving("web") >= 10
    assert await platform.state.open_intents() == []


async def test_a_runtime_that_is_silent_ages_alone(build: Build) -> None:
    platform = build(web=50.0)
    await platform.state.wish_service("web", wish("web"))
    loop = platform.begin()
    await platform.until(10)
    platform.runtimes["idc-a"].failing = True
    await platform.until(12.1)
    seen = loop.decided["web"][0]
    assert set(seen.ages_ms) == {"replicas/idc-a"}
    assert seen.ages_ms["replicas/idc-a"] >= 2000
    assert {one.zone for one in seen.replicas} == {"idc-a", "idc-b"}


async def test_a_fresh_loop_keeps_what_serves_where_a_runtime_is_silent(build: Build) -> None:
    platform = build(web=50.0)
    await platform.state.wish_service("web", wish("web"))
    platform.begin()
    await platform.until(10)
    before = platform.balancers["web"].endpoints
    assert {one.zone for one in before} == {"idc-a", "idc-b"}
    platform.loops[0][1].over = True
    platform.runtimes["idc-a"].failing = True
    platform.begin()
    for second in range(11, 40):
        await platform.until(second)
        assert set(before) <= set(platform.balancers["web"].endpoints)
    platform.runtimes["idc-a"].failing = False
    await platform.until(60)
    assert len(platform.replicas("web")) == 2
    assert platform.serving("web") == 2


async def test_a_zone_that_is_lost_while_no_loop_runs_is_replaced(build: Build) -> None:
    platform = build(web=50.0)
    await platform.state.wish_service("web", wish("web", replicas_min=4))
    platform.begin()
    await platform.until(10)
    lost = [one.replica_id for one in platform.replicas("web", "idc-a")]
    assert len(lost) == 2
    platform.loops[0][1].over = True
    platform.runtimes["idc-a"].failing = True
    platform.cut_off.update(lost)
    loop = platform.begin()
    await platform.until(25)
    assert platform.serving("web") == 4
    assert loop.decided["web"][1].weights["idc-a"] == 0
    platform.runtimes["idc-a"].failing = False
    platform.cut_off.clear()
    await platform.until(70)
    assert platform.serving("web") == 4
    assert len(platform.replicas("web")) == 4


async def test_signals_are_measured(build: Build) -> None:
    signals = tuple(
        Signal(kind.value, kind, 1000.0) for kind in (SignalKind.CPU, SignalKind.IN_FLIGHT, SignalKind.P99_MS)
    )
    platform = build(web=200.0)
    await platform.state.wish_service("web", wish("web", signals=(*signals, Signal("q", SignalKind.PROMETHEUS, 9.0))))

    class Failing:
        answers = True

        async def read(self) -> float:
            if not self.answers:
                raise OSError("refused")
            return 7.0

    sensor = Failing()
    loop = platform.begin(sensors=lambda *_: sensor)
    await platform.until(15.2)
    found = {sample.name: sample for sample in loop.decided["web"][0].signals}
    ready = sum(one.state is ReplicaState.READY for one in platform.replicas("web"))
    assert found["cpu"].value == pytest.approx(0.25 * ready, rel=0.05)
    assert found["in_flight"].value == 2
    assert found["p99_ms"].value == 10
    assert found["q"].value == 7
    sensor.answers = False
    await platform.until(20.2)
    now = {sample.name: sample for sample in loop.decided["web"][0].signals}
    assert now["q"] == found["q"] or now["q"].at_ms - found["q"].at_ms <= 500
    assert now["cpu"].at_ms - found["cpu"].at_ms >= 4500


async def test_replay_of_several_services_differs_nowhere(build: Build) -> None:
    platform = build(web=lambda second: 150.0 if second < 10 else 600.0, api=50.0)
    await platform.state.wish_service("web", wish("web"))
    await platform.state.wish_service("api", wish("api"))
    platform.begin()
    await platform.until(30)
    await platform.state.wish_service("api", None)
    await platform.until(45)
    decisions = [entry for entry in platform.entries() if isinstance(entry, Decision)]
    assert {entry.snapshot.service for entry in decisions} == {"web", "api"}
    assert list(replay(platform.folder / "r0.jsonl")) == []


async def test_an_intent_that_was_written_late_is_struck(build: Build) -> None:
    platform = build(web=50.0)
    await platform.state.wish_service("web", wish("web"))
    begin = platform.state.begin
    late: list[object] = []

    async def slow(term: int, intents: object) -> None:
        if not late:
            late.append(intents)
            await platform.clock.sleep(0.6)  # longer than a tick waits
        await begin(term, intents)  # type: ignore[arg-type] # passed on

    platform.state.begin = slow  # type: ignore[method-assign] # a fault in its place

    async def lands_late() -> None:
        await platform.clock.sleep(3.0)
        await begin(1, late[0])  # type: ignore[arg-type] # passed on

    platform.begin()
    landing = asyncio.create_task(lands_late())
    await platform.until(10)
    assert landing.done()
    assert platform.serving("web") == 2
    assert await platform.state.open_intents()
    await platform.until(40)
    assert await platform.state.open_intents() == []
    assert platform.serving("web") == 2


async def test_who_cannot_take_over_leaves_the_lead_to_another(build: Build) -> None:
    platform = build(web=50.0)
    await platform.state.wish_service("web", wish("web"))
    platform.state._memory["services"] = b'["web"]'
    platform.state._memory["service/web"] = b'{"service": 7}'
    first = platform.begin()
    await platform.until(2)
    assert not first.leads
    leaders: set[str] = set()
    for tenth in range(20, 120):
        await platform.until(tenth / 10)
        leaders.add((await platform.state.lead("nobody", 0)).holder)
    assert "nobody" in leaders
    assert platform.replicas() == []


async def test_a_revision_that_a_runtime_refuses_is_started_elsewhere_and_later_there(build: Build) -> None:
    platform = build(web=50.0)
    await platform.state.wish_service("web", wish("web"))
    runtime = platform.runtimes["idc-a"]
    define = runtime.define

    async def refuse(service: ServiceSpec) -> None:
        raise OSError(f"no space left on device for {service.name}")

    runtime.define = refuse  # type: ignore[method-assign] # a fault in its place
    platform.begin()
    await platform.until(10)
    assert platform.replicas("web", "idc-a") == []
    assert platform.replicas("web", "idc-b")
    assert any("not known in idc-a yet" in getattr(entry, "error", "") for entry in platform.entries())
    runtime.define = define  # type: ignore[method-assign] # the fault is over
    await platform.until(20)
    assert platform.replicas("web", "idc-a")


async def test_what_breaks_one_decision_leaves_the_other_services(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = build(web=50.0, api=50.0)
    await platform.state.wish_service("web", wish("web"))
    await platform.state.wish_service("api", wish("api"))

    def broken(snapshot: Snapshot, policy: FleetPolicy) -> Plan:
        if snapshot.service == "api":
            raise ZeroDivisionError
        return decide(snapshot, policy)

    monkeypatch.setattr("springtide.fleet.loop.decide", broken)
    platform.begin()
    await platform.until(10)
    assert (platform.serving("web"), platform.serving("api")) == (2, 0)


class Made:
    """`Balancers` that take a moment, and fail the first time."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.asked: list[tuple[str, int]] = []
        self.dismissed: list[str] = []

    async def of(self, service: str, wish: ServiceWish | None) -> MemoryBalancer | None:
        self.asked.append((service, wish.port if wish else 0))
        first = len(self.asked) == 1
        await self.platform.clock.sleep(0.7)
        if first:
            raise BalancerError("the port is taken; give another")
        return self.platform.balancers.get(service)

    async def dismiss(self, service: str) -> None:
        self.dismissed.append(service)


async def test_balancers_come_and_go_with_their_services(build: Build) -> None:
    platform = build(web=50.0)
    made = Made(platform)
    await platform.state.wish_service("web", wish("web", port=8080))
    await platform.state.wish_service("job", wish("job"))
    platform.begin(balancers=made)
    await platform.until(10)
    assert platform.serving("web") == 2
    assert len(platform.replicas("job")) == 2
    assert made.asked == [("job", 0), ("web", 8080), ("job", 0)]
    await platform.state.wish_service("web", wish("web", port=8081))
    await platform.until(12)
    assert made.asked[3:] == [("web", 8081)]
    assert len({one.replica_id for one in platform.replicas("web")}) == 2
    await platform.state.wish_service("web", None)
    await platform.state.wish_service("job", None)
    await platform.until(30)
    assert platform.replicas() == []
    assert sorted(made.dismissed) == ["job", "web"]


async def test_alerts_are_logged_when_they_appear_and_when_they_end(build: Build) -> None:
    platform = build(web=50.0)
    await platform.state.wish_service("web", wish("web", replicas_min=4))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(0))
    with structlog.testing.capture_logs() as logs:
        platform.begin()
        await platform.until(10)
        platform.cut_off.update(one.replica_id for one in platform.replicas("web"))
        await platform.until(20)
        status = await read_status(platform.state)
        assert status is not None
        assert status.alerts
        platform.cut_off.clear()
        await platform.until(30)
    alerts = [(entry["event"], entry["alert"]) for entry in logs if "alert" in entry]
    assert len(alerts) == len(set(alerts))
    began = {alert for event, alert in alerts if event == "alert"}
    assert any("does not see more than half" in alert for alert in began)
    assert began == {alert for event, alert in alerts if event == "alert is over"}
