"""The order path in fluid steps and request by request: the same totals, and each keeps its books at every step."""

import random
from collections import Counter
from collections.abc import Callable

import msgspec
import pytest

from springtide.twin.simulation.flow import Capacity, Flow, OrderPath, PathSettings
from springtide.twin.simulation.path_events import EventPath
from springtide.twin.simulation.path_fluid import FluidPath

START_MS = 1_700_000_000_000
COUNTS = (
    "requests",
    "acknowledged",
    "sold_out",
    "shed",
    "failed",
    "pages",
    "gave_up",
    "recorded",
    "expired",
    "shed_first",
)

Rate = Callable[[float], float]
Stands = Callable[[float], Capacity]


class Case(msgspec.Struct):
    """One world: `seconds` of it, with people a second and a capacity that may change over time."""

    settings: PathSettings
    seconds: int
    rate: Rate
    capacity: Stands


def rush(second: float) -> float:
    """Ten quiet seconds, twenty of a rush that is more than the capacity, then it fades."""
    return 300.0 if second < 10 else 4_000.0 if second < 30 else 1_000.0


CASES = {
    "room for all": Case(PathSettings(stock=1_000_000), 60, lambda _: 1_000.0, lambda _: Capacity(1_500.0)),
    "overload": Case(PathSettings(stock=1_000_000), 60, lambda _: 3_000.0, lambda _: Capacity(2_000.0)),
    "a rush, and sold out": Case(
        PathSettings(stock=20_000, purchase_share=0.8, hold_s=15.0, pay_after_s=4.0, sold_out_again_share=0.25),
        60,
        rush,
        lambda _: Capacity(2_500.0),
    ),
    "half of the replicas lost, and back": Case(
        PathSettings(stock=1_000_000, retry_share=0.9),
        60,
        lambda _: 1_500.0,
        lambda second: Capacity(1_000.0 if 20 <= second < 35 else 2_000.0, replicas=20),
    ),
    "none left for a while": Case(
        PathSettings(stock=1_000_000),
        40,
        lambda _: 800.0,
        lambda second: Capacity(0.0 if 10 <= second < 20 else 1_000.0),
    ),
    "a shard lost, and back": Case(
        PathSettings(stock=1_000_000, shards=4),
        60,
        lambda _: 1_000.0,
        lambda second: Capacity(2_000.0, shards_up=3 if 20 <= second < 24 else 4),
    ),
    "shards at their limit, unevenly": Case(
        PathSettings(stock=1_000_000, shards=4, shard_per_s=300.0, shard_shares=(0.4, 0.3, 0.2, 0.1)),
        120,
        lambda _: 1_000.0,
        lambda _: Capacity(3_000.0, shards_up=4),
    ),
    "a recorder that cannot follow": Case(
        PathSettings(stock=1_000_000, recorder_per_s=500.0, journal_max=5_000, retries_max=0),
        60,
        lambda _: 1_000.0,
        lambda _: Capacity(2_000.0),
    ),
    "an opening": Case(
        PathSettings(stock=10_000, opens_ms=START_MS + 20_000, closes_ms=START_MS + 50_000, purchase_share=0.85),
        60,
        lambda second: 200.0 if second < 20 else 900.0,
        lambda _: Capacity(1_200.0),
    ),
    "bots": Case(
        PathSettings(
            stock=8_000, bots_share=0.6, bot_buyers=100, bot_addresses=3, buyer_rate_max=5.0, refused_cost=0.5
        ),
        60,
        lambda _: 2_500.0,
        lambda _: Capacity(1_700.0),
    ),
    "other costs": Case(
        PathSettings(stock=30_000, purchase_share=0.5, page_cost=0.25, sold_out_cost=0.5),
        60,
        lambda _: 3_000.0,
        lambda _: Capacity(1_500.0),
    ),
}


def run(path: OrderPath, case: Case, dt_s: float) -> list[Flow]:
    return [
        path.step(START_MS + round(1000 * at * dt_s), dt_s, case.rate(at * dt_s), case.capacity(at * dt_s))
        for at in range(round(case.seconds / dt_s))
    ]


def totals(flows: list[Flow]) -> Counter[str]:
    total: Counter[str] = Counter()
    for flow in flows:
        total.update({name: getattr(flow, name) for name in (*COUNTS, "retries", "bots", "bots_refused")})
    return total


@pytest.mark.parametrize("name", CASES)
def test_both_come_to_the_same_totals(name: str) -> None:
    case = CASES[name]
    fluid = totals(run(FluidPath(case.settings), case, 1.0))
    events = totals(run(EventPath(case.settings, random.Random(7)), case, 1.0))
    for count in COUNTS:
        # A few per cent of the figure, or a little of all requests where a figure is small beside them.
        allowed = max(0.06 * events[count], 0.005 * events["requests"])
        assert abs(fluid[count] - events[count]) <= allowed, (count, dict(fluid), dict(events))


@pytest.mark.parametrize("kind", ["fluid", "events"])
@pytest.mark.parametrize("name", CASES)
def test_every_request_and_every_unit_is_somewhere(name: str, kind: str) -> None:
    case = CASES[name]
    settings = case.settings
    path: OrderPath = FluidPath(settings) if kind == "fluid" else EventPath(settings, random.Random(3))
    waited = recorded = acknowledged = 0.0
    for flow in run(path, case, 0.5):
        answered = flow.acknowledged + flow.sold_out + flow.shed + flow.failed + flow.pages
        assert flow.requests == pytest.approx(answered + flow.waiting - waited, abs=1e-6)
        assert flow.stock + flow.reserved + flow.paid == pytest.approx(settings.stock, abs=1e-6)
        recorded += flow.recorded
        acknowledged += flow.acknowledged
        assert flow.journal == pytest.approx(acknowledged - recorded, abs=1e-6)
        assert min(getattr(flow, field) for field in flow.__struct_fields__) >= -1e-6
        waited = flow.waiting


@pytest.mark.parametrize("name", ["overload", "a rush, and sold out", "an opening", "a shard lost, and back"])
def test_the_size_of_a_step_hardly_matters(name: str) -> None:
    case = CASES[name]
    fine, coarse = (totals(run(FluidPath(case.settings), case, dt_s)) for dt_s in (0.05, 5.0))
    for count in COUNTS:
        allowed = max(0.05 * fine[count], 0.02 * fine["requests"])
        assert abs(fine[count] - coarse[count]) <= allowed, (count, dict(fine), dict(coarse))


def test_one_seed_gives_one_run() -> None:
    case = CASES["a rush, and sold out"]
    runs = [run(EventPath(case.settings, random.Random(5)), case, 1.0) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0] != run(EventPath(case.settings, random.Random(6)), case, 1.0)


def test_too_many_requests_for_single_ones_are_refused() -> None:
    path = EventPath(PathSettings(stock=1), random.Random(1))
    with pytest.raises(OverflowError, match="take FluidPath"):
        path.step(START_MS, 60.0, 1_000_000.0, Capacity(1.0))
