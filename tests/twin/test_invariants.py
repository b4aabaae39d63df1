"""Each invariant finds the defect that it is there for, says it once, and is silent about a world that is well."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from springtide.decide import line, place, reconcile, supply
from springtide.model import (
    DemandRange,
    DrainReplica,
    LineLimit,
    Market,
    Node,
    NodeOrder,
    NodeState,
    Offer,
    Plan,
    Quota,
    ReleaseNode,
    RentNodes,
    Replica,
    ReplicaSpec,
    ReplicaState,
    Snapshot,
    StartReplica,
    StopReplica,
    TrafficSample,
)
from springtide.twin.market import Market as TwinMarket
from springtide.twin.simulation.calm import Calm
from springtide.twin.simulation.faults import Fault, FaultKind
from springtide.twin.simulation.flow import Flow
from springtide.twin.simulation.invariants import LINE_TICKS, Checker, View, checks
from springtide.twin.simulation.path_fluid import FluidPath
from springtide.twin.simulation.path_stock import StockBook
from springtide.twin.simulation.promises import PROMISES
from springtide.twin.simulation.reading import find_scenario
from springtide.twin.simulation.run import simulate
from springtide.twin.simulation.scenario import Scenario, SimQuota
from tests.twin.simulations import small

STOCK = 200_000
NOW = 1_700_000_000_000


def flow(**changes: float) -> Flow:
    """A step in which 100 came: 50 bought, 48 looked, 1 was shed and 1 failed; 40 orders were recorded."""
    figures: dict[str, float] = {
        "requests": 100,
        "acknowledged": 50,
        "pages": 48,
        "shed": 1,
        "failed": 1,
        "recorded": 40,
        "journal": 10,
        "stock": STOCK - 50,
        "reserved": 50,
    }
    return Flow(**{**figures, **changes})


def node(number: int = 1, token: str = "t-1", **changes: Any) -> Node:
    base = Node(f"i-{number}", "cloud-a", NodeState.READY, 16, token, NOW, release_at_ms=NOW + 9_000_000)
    return msgspec.structs.replace(base, **changes)


def view(at_s: float = 1.0, **changes: Any) -> View:
    base = View(
        at_s,
        NOW + round(at_s * 1000),
        flow(),
        nodes=(node(1), node(2)),
        ordered={"t-1": NodeOrder("cloud-a", 2, "t-1")},
        line_load={"line": 0.5},
    )
    return msgspec.structs.replace(base, **changes)


def scenario(**changes: Any) -> Scenario:
    tight = small(**changes)
    policy = msgspec.structs.replace(tight.policy, release_after_s=3_600, spend_max_cny_per_h=100)
    quotas = (SimQuota(Market.ON_DEMAND, 64), SimQuota(Market.SPOT, 16, "cloud-a"))
    return msgspec.structs.replace(
        tight, policy=policy, cloud=msgspec.structs.replace(tight.cloud, quotas=quotas), calendar=True
    )


def broken(*views: View, of: Scenario | None = None) -> list[str]:
    """The names of the invariants that break with each view, in order."""
    checker = Checker(of or scenario())
    return [name for one in views for name in sorted({breach.invariant for breach in checker.look(one)})]


def test_a_world_that_is_well_breaks_nothing() -> None:
    second = flow(acknowledged=0, pages=98, recorded=10, journal=0, reserved=10, paid=40)
    assert broken(view(), view(2.0, flow=second)) == []


@pytest.mark.parametrize(
    ("changes", "invariant"),
    [
        ({"stock": STOCK, "reserved": 50}, "nothing oversold"),  # sold, and still there
        ({"stock": STOCK - 50, "reserved": 20}, "nothing oversold"),  # thirty have vanished
        ({"expired": 10}, "nothing oversold"),  # given back, and not for sale again
        ({"recorded": 39}, "no order lost"),
        ({"journal": 9}, "no order lost"),
        ({"recorded": 60, "journal": -10}, "no order lost"),
        ({"requests": 101}, "every request answered once"),
        ({"shed": 2}, "every request answered once"),
        ({"waiting": 1}, "every request answered once"),
        ({"shed": -1, "failed": 3}, "every request answered once"),
    ],
)
def test_a_step_that_does_not_add_up_is_found(changes: dict[str, float], invariant: str) -> None:
    assert broken(view(flow=flow(**changes))) == [invariant]


def test_more_sold_than_there_is_is_found_even_if_every_step_adds_up() -> None:
    scarce = small()
    scarce = msgspec.structs.replace(scarce, path=msgspec.structs.replace(scarce.path, stock=80))
    first = view(flow=flow(stock=30))
    over = view(2.0, flow=flow(stock=-20, reserved=100, journal=20))
    checker = Checker(scarce)
    assert checker.look(first) == []
    (breach,) = checker.look(over)
    assert (breach.at_s, breach.invariant) == (2.0, "nothing oversold")
    assert breach.detail == "100.000 sold of 80, -20.000 left"


def test_a_journal_beyond_its_limit_is_found() -> None:
    tight = scenario()
    tight = msgspec.structs.replace(tight, path=msgspec.structs.replace(tight.path, journal_max=9))
    assert broken(view(), of=tight) == ["no order lost"]


@pytest.mark.parametrize(
    ("nodes", "invariant", "detail"),
    [
        ([node(n) for n in range(5)], "capacity within quota", "on_demand: 80 cores of 64"),
        ([node(n, market=Market.SPOT) for n in range(2)], "capacity within quota", "spot cloud-a: 32 cores of 16"),
        ([node(n, cores=1) for n in range(41)], "capacity within quota", "cloud-a: 41 machines of 40"),
        ([node(1, zone="idc-a")], "capacity within quota", "idc-a: 1 machines of 0"),
        ([node(1, price_fen_per_h=10_001.0)], "capacity within quota", "spending: 100.01 CNY/h of 100.00"),
        ([node(1, token="t-2")], "no node leaked", "t-2: 1 machines of an order that nobody sent"),
        ([node(1, token="")], "no node leaked", "1 machines of an order that nobody sent"),
        ([node(1, release_at_ms=0)], "no node leaked", "i-1: the cloud would never take it back by itself"),
        (
            [node(1, release_at_ms=NOW - 4_000)],
            "no node leaked",
            "i-1: is there 5 s after it should have been taken back",
        ),
    ],
)
def test_machines_that_should_not_be_there_are_found(nodes: list[Node], invariant: str, detail: str) -> None:
    many = {"t-1": NodeOrder("cloud-a", 100, "t-1")}
    found = Checker(scenario()).look(view(nodes=tuple(nodes), ordered=many))
    assert [(breach.invariant, breach.detail) for breach in found] == [(invariant, detail)]


def test_more_machines_than_were_ordered_are_found() -> None:
    found = Checker(scenario()).look(view(nodes=(node(1), node(2), node(3))))
    assert [breach.detail for breach in found] == ["t-1: 3 machines came of an order for 2"]


def test_a_breach_is_told_when_it_begins_and_again_after_it_has_held() -> None:
    well = view(nodes=(), flow=Flow(stock=STOCK))
    ill, worse = (
        msgspec.structs.replace(well, nodes=nodes) for nodes in ((node(1, "x"),), (node(1, "x"), node(2, "y")))
    )
    assert broken(ill, ill) == ["no node leaked"]
    assert broken(ill, worse, worse) == ["no node leaked"] * 2  # of another order
    assert broken(ill, well, ill) == ["no node leaked"] * 2


def quiet(at_s: float, wanted: int = 8, high: float = 200.0, nodes: tuple[Node, ...] = (node(1),)) -> View:
    """Nobody comes any more; the last plan wants so many."""
    plan = Plan(1, DemandRange(0, high, high, ""), wanted, {}, {}, (), ())
    nobody = Flow(stock=STOCK)
    return view(at_s, flow=nobody, nodes=nodes, count=plan)


def after_the_event() -> float:
    """A moment after which nothing is announced."""
    return 900.0


def steps(begin_s: float, end_s: float) -> Iterator[float]:
    at_s = begin_s
    while at_s <= end_s:
        yield at_s
        at_s += 10.0


def test_a_machine_that_nobody_needs_any_more_is_found_after_a_while() -> None:
    tight = scenario()
    enough_s = Calm(tight).enough_s
    assert 180 < enough_s < 600
    begin_s = after_the_event()
    short = [quiet(at_s) for at_s in steps(begin_s, begin_s + enough_s - 10)]
    assert broken(*short, of=tight) == []
    long = [quiet(at_s) for at_s in steps(begin_s, begin_s + enough_s + 50)]
    assert broken(*long, of=tight) == ["cloud empty after the event"]
    none = [quiet(at_s, nodes=()) for at_s in steps(begin_s, begin_s + enough_s + 50)]
    assert broken(*none, of=tight) == []


@pytest.mark.parametrize(
    "reason",
    [
        {"high": 500.0},  # as much is expected as the base takes with its headroom, and more
        {"at_s": -600.0},  # the event is announced
    ],
)
def test_a_cloud_that_is_asked_for_need_not_be_empty(reason: dict[str, float]) -> None:
    begin_s = after_the_event() + reason.pop("at_s", 0.0)
    views = [quiet(at_s, **reason) for at_s in steps(begin_s, begin_s + 580)]  # type: ignore[arg-type] # one float
    assert broken(*views) == []


def test_while_a_fault_is_under_way_the_cloud_need_not_be_empty() -> None:
    begin_s = after_the_event()
    throttled = scenario(faults=(Fault(FaultKind.API_THROTTLED, begin_s + 100, 400),))
    enough_s = Calm(throttled).enough_s
    assert broken(*[quiet(s) for s in steps(begin_s, begin_s + enough_s + 400)], of=throttled) == []
    assert broken(*[quiet(s) for s in steps(begin_s, begin_s + enough_s + 540)], of=throttled) == [
        "cloud empty after the event"
    ]


def test_people_who_are_shed_though_all_is_calm_are_found() -> None:
    tight = scenario()
    begin_s = after_the_event()
    enough_s = Calm(tight).enough_s
    times = list(steps(begin_s, begin_s + enough_s + 40))

    def answering(**figures: float) -> list[str]:
        """What breaks when this is what each of the last steps answers, or all of them but one."""
        views = [quiet(at_s, nodes=()) for at_s in times]
        ends = [msgspec.structs.replace(one, flow=Flow(stock=STOCK, **figures)) for one in views[-4:]]
        assert broken(*views[:-4], *ends[:2], views[-2], ends[3], of=tight) == []
        return broken(*views[:-4], *ends, of=tight)

    assert answering(requests=1_000, shed=2, pages=998) == ["service restored after the event"]
    assert answering(requests=1_000, failed=2, pages=998) == ["service restored after the event"]
    assert answering(requests=1_000, shed=1, pages=999) == []
    assert answering(requests=1_000, shed=500, bots_refused=500, pages=500) == []


def test_a_line_that_stays_above_its_share_is_found_and_one_that_cannot_be_relieved_is_not() -> None:
    full = {"line": 0.81}
    tick_s = scenario().fleet.tick_ms / 1000
    times = [number * tick_s for number in range(LINE_TICKS + 3)]
    views = [view(at_s, line_load=full, flow=Flow(stock=STOCK)) for at_s in times]
    assert broken(*views[:LINE_TICKS]) == []
    assert broken(*views) == ["line share kept"]
    least = Plan(1, DemandRange(0, 0, 0, ""), 1, {}, {}, (), (), line_limit=LineLimit(0.05))
    assert broken(*[msgspec.structs.replace(one, count=least) for one in views]) == []
    pause = msgspec.structs.replace(views[3], line_load={"line": 0.8})
    assert broken(*views[:3], pause, *views[4:LINE_TICKS]) == []


# What a single decision promises.


def replica(number: int, zone: str = "idc-a", node_id: str = "n", state: ReplicaState = ReplicaState.READY) -> Replica:
    return Replica(f"r-{number}", zone, node_id, state, "h", 1, NOW)


def snapshot(**changes: Any) -> Snapshot:
    zones = tuple(zone.model() for zone in scenario().zones)
    base = Snapshot(
        run="twin",
        tick=1,
        now_ms=NOW,
        zones=zones,
        nodes=(node(1), node(2)),
        replicas=tuple(replica(number) for number in range(6)),
        endpoints=(),
        traffic=(TrafficSample(NOW, 100.0),),
        calendar=(),
    )
    return msgspec.structs.replace(base, **changes)


def against(*actions: Any, seen: Snapshot | None = None, **policy: Any) -> list[str]:
    """The promises that these actions break."""
    seen = seen or snapshot()
    decided = Plan(1, DemandRange(0, 0, 0, ""), 8, {"idc-a": 4, "idc-b": 4}, {}, actions, ())
    told = msgspec.structs.replace(scenario().fleet_policy(), **policy)
    return [name for name, promise in PROMISES.items() if list(promise(seen, decided, told))]


def rent(count: int, market: Market = Market.ON_DEMAND) -> RentNodes:
    return RentNodes("cloud-a", count, "t-9", "test", "ecs.a", market, cores=16)


OLD = {"replicas/idc-a": 60_000}


def test_what_a_decision_may_do_breaks_no_promise() -> None:
    assert against(DrainReplica("r-0", "idc-a", ""), DrainReplica("r-1", "idc-a", ""), rent(3)) == []
    assert against(ReleaseNode("i-1", "cloud-a", ""), StopReplica("r-0", "idc-a", "")) == []
    assert against(StartReplica(ReplicaSpec("r-9", "cloud-a", "i-1"), ""), seen=snapshot(ages_ms=OLD)) == []
    going = snapshot(nodes=(node(1, reclaim_ms=NOW + 1_000),), ages_ms={"nodes": 60_000})
    assert against(ReleaseNode("i-1", "cloud-a", ""), seen=going) == []


@pytest.mark.parametrize(
    ("actions", "seen", "promise"),
    [
        ([DrainReplica("r-0", "idc-a", "")], {"ages_ms": OLD}, "nothing taken away on stale figures"),
        ([ReleaseNode("i-1", "cloud-a", "")], {"ages_ms": {"nodes": 60_000}}, "nothing taken away on stale figures"),
        ([DrainReplica("r-0", "idc-a", "")], {"traffic": ()}, "nothing taken away on stale figures"),
        (
            [DrainReplica("r-0", "idc-a", "")],
            {"traffic": (TrafficSample(NOW - 60_000, 1.0),)},
            "nothing taken away on stale figures",
        ),
        ([DrainReplica(f"r-{n}", "idc-a", "") for n in range(3)], {}, "cloud first out"),
        ([rent(39)], {}, "purchases within limits"),  # two are there, and forty may be
        ([rent(1)] * 201, {"zones": ()}, "actions bounded"),
        ([ReleaseNode("n", "cloud-a", "")], {}, "nothing done twice"),
        (
            [StartReplica(ReplicaSpec("x", "cloud-a", "i-1"), ""), ReleaseNode("i-1", "cloud-a", "")],
            {},
            "nothing done twice",
        ),
        ([StartReplica(ReplicaSpec("r-0", "idc-a", "n"), "")], {}, "nothing done twice"),
        ([DrainReplica("r-0", "idc-a", ""), StopReplica("r-0", "idc-a", "")], {}, "nothing done twice"),
    ],
)
def test_a_decision_that_breaks_its_promise_is_found(actions: list[Any], seen: dict[str, Any], promise: str) -> None:
    zones = seen.pop("zones", None)
    if zones is not None:  # room for all of them
        seen["zones"] = tuple(msgspec.structs.replace(zone, nodes_max=1_000) for zone in snapshot().zones)
    assert against(*actions, seen=snapshot(**seen)) == [promise]


def test_orders_under_way_count_for_quota_room_and_spending() -> None:
    offer = Offer("cloud-a", "ecs.a", Market.ON_DEMAND, 16, 32_768, 300.0)
    under_way = rent(3)
    quotas = (Quota(Market.ON_DEMAND, 96, used_cores=32),)
    seen = snapshot(offers=(offer,), quotas=quotas, in_flight=(msgspec.structs.replace(under_way, client_token="t-8"),))
    assert against(rent(1), seen=seen) == []
    assert against(rent(2), seen=seen) == ["purchases within limits"]  # 32 + 48 + 32 of 96
    assert against(rent(1), seen=seen, spend_max_fen_per_h=1_200.0) == []
    assert against(rent(1), seen=seen, spend_max_fen_per_h=1_199.0) == ["purchases within limits"]


# Defects planted in the twin and in the decisions, and whole simulations.


def breaks(scenario: Scenario) -> set[str]:
    outcome = simulate(scenario, watches=(checks(scenario),))
    return {breach.invariant for breach in outcome.breaches}


def test_a_simulation_that_is_well_breaks_nothing() -> None:
    assert breaks(find_scenario("small")) == set()


def test_a_stock_that_is_sold_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def settle(self: StockBook, until_s: float) -> float:
        expired = genuine(self, until_s)
        self.left += expired
        return expired

    genuine = StockBook.settle
    monkeypatch.setattr(StockBook, "settle", settle)
    assert breaks(find_scenario("small")) == {"nothing oversold"}


def test_an_order_that_the_recorder_drops_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(self: StockBook, seconds: float) -> float:
        return genuine(self, seconds) * 0.999

    genuine = StockBook.record
    monkeypatch.setattr(StockBook, "record", record)
    assert breaks(find_scenario("small")) == {"no order lost"}


def test_people_who_are_turned_away_and_not_counted_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: FluidPath, *args: Any) -> Flow:
        found = genuine(self, *args)
        return msgspec.structs.replace(found, pages=found.pages * 0.99)

    genuine = FluidPath.step
    monkeypatch.setattr(FluidPath, "step", step)
    assert breaks(find_scenario("small")) == {"every request answered once"}


def test_a_cloud_that_ignores_a_quota_is_found_by_what_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    tight = find_scenario("small")
    quotas = tuple(msgspec.structs.replace(quota, cores=quota.cores // 4) for quota in tight.cloud.quotas)
    tight = msgspec.structs.replace(tight, cloud=msgspec.structs.replace(tight.cloud, quotas=quotas))
    assert breaks(tight) == set()
    monkeypatch.setattr(TwinMarket, "_check_quotas", lambda *_: None)
    monkeypatch.setattr(supply.Supply, "_quotas", lambda *_: [])
    assert breaks(tight) == {"capacity within quota", "promises of a decision"}


def test_machines_that_are_never_given_back_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile.Reconciler, "_releases", lambda *_: iter(()))
    assert breaks(find_scenario("small")) == {"cloud empty after the event"}


def test_a_line_that_is_not_relieved_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = msgspec.structs.replace(
        find_scenario("small"), faults=(Fault(FaultKind.LINE_SLOW, 300, 600, "express-1", 0.01),)
    )
    cut = msgspec.structs.replace(cut, lines=cut.lines[:1], zones=tuple(one_line(zone) for zone in cut.zones))
    assert breaks(cut) == set()
    monkeypatch.setattr(line, "limit", lambda *_: LineLimit())
    assert breaks(cut) == {"line share kept"}


def one_line(zone: Any) -> Any:
    return msgspec.structs.replace(zone, lines=zone.lines[:1])


def test_an_idc_that_is_emptied_before_the_cloud_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(wanted: int, total: int, _: int, *rest: Any) -> Any:
        return genuine(wanted, total, wanted, *rest)

    genuine = place._fill
    monkeypatch.setattr(place, "_fill", fill)
    assert breaks(find_scenario("small")) >= {"cloud empty after the event"}


def test_figures_that_are_too_old_to_take_anything_away_are_minded(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = tuple(Fault(FaultKind.LINE_CUT, 1_000, 300, name) for name in ("express-1", "express-2"))
    lost = msgspec.structs.replace(find_scenario("small"), faults=cuts)
    assert breaks(lost) == set()
    genuine = reconcile.Reconciler.__init__

    def deaf(self: reconcile.Reconciler, *args: Any, **options: Any) -> None:
        genuine(self, *args, **options)
        self._hold, self._silent, self._kept = False, set(), set()

    monkeypatch.setattr(reconcile.Reconciler, "__init__", deaf)
    assert "promises of a decision" in breaks(lost)
