"""Promises of an event's plan, for any event, offers and odds."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from springtide.decide.readiness import Batch, probability
from springtide.decide.schedule import event_plan
from springtide.model import (
    ApiLimit,
    EventImage,
    EventNeed,
    ImageCopy,
    Line,
    LineNeed,
    Market,
    Odds,
    Offer,
    Quota,
)

AT_MS = 2_000_000_000_000
ZONES = ("z-a", "z-b", "z-c")
MARKETS = (Market.ON_DEMAND, Market.SPOT, Market.ECI)

shares = st.floats(0.0, 0.2)
odds = st.builds(
    Odds,
    boot_failed=st.floats(0.0, 0.05),
    stock_out_plenty=shares,
    stock_out_low=shares,
    zone_lost=st.floats(0.0, 0.01),
    spot_per_h=st.just(0.0),
    spill_ms=st.integers(0, 60_000),
)
boots = st.tuples(st.integers(5_000, 120_000), st.floats(1.0, 4.0)).map(lambda one: (one[0], round(one[0] * one[1])))
batches = st.lists(
    st.builds(
        Batch,
        zone=st.sampled_from(ZONES),
        machines=st.integers(1, 30),
        units=st.sampled_from([1, 2, 4, 6]),
        boot_ms=boots,
        ordered_ms=st.integers(0, 60_000),
        after_ms=st.integers(0, 20_000),
        not_before_ms=st.sampled_from([0, 50_000]),
        stock_out=shares,
        spill_ms=st.sampled_from([0, 15_000, None]),
    ),
    min_size=1,
    max_size=6,
)
TINY = 1e-9
"""What is left out of a probability as negligible may differ between two cases."""


@given(batches, odds, st.floats(0.5, 1.1), st.lists(st.integers(0, 600_000), min_size=2, max_size=6))
def test_more_time_never_makes_it_less_sure(some: list[Batch], what: Odds, share: float, moments: list[int]) -> None:
    wanted = round(share * sum(one.machines * one.units for one in some))
    found = [probability(some, wanted, at_ms, what) for at_ms in sorted(moments)]
    assert all(0.0 <= one <= 1.0 for one in found)
    assert all(later >= earlier - TINY for earlier, later in itertools.pairwise(found))


@given(batches, odds, st.floats(0.5, 1.0), st.integers(30_000, 600_000), st.data())
def test_more_machines_never_make_it_less_sure(
    some: list[Batch], what: Odds, share: float, at_ms: int, data: st.DataObject
) -> None:
    wanted = round(share * sum(one.machines * one.units for one in some))
    before = probability(some, wanted, at_ms, what)
    other = data.draw(batches)[0]
    assert probability([*some, other], wanted, at_ms, what) >= before - TINY
    assert probability(some, wanted + 1, at_ms, what) <= before + TINY


@given(st.integers(2, 6), st.integers(4, 20), st.floats(0.001, 0.01), st.integers(100_000, 900_000))
def test_a_spread_of_which_one_part_may_fail_is_surer_than_one_place(
    parts: int, each: int, lost: float, at_ms: int
) -> None:
    """With a zone's worth to spare, the loss of any one zone does no harm: spread over two or more it is surer."""
    what = Odds(boot_failed=0.0, stock_out_plenty=lost, stock_out_low=lost, zone_lost=lost, spot_per_h=0.0)
    boot = (10_000, 12_000)

    def chance(zones: int) -> float:
        machines = parts * each // zones
        spread = [Batch(f"z{at}", machines, 4, boot, 0, stock_out=lost, spill_ms=None) for at in range(zones)]
        return probability(spread, (parts - 1) * each * 4, at_ms, what)

    assert chance(parts) >= chance(1) - TINY


@st.composite
def events(draw: st.DrawFn) -> tuple[EventNeed, list[Offer], tuple[Quota, ...], int]:
    have = [
        Offer(
            zone=zone,
            instance_type=f"t{number}",
            market=market,
            cores=draw(st.sampled_from([4, 8, 32])),
            memory_mb=65_536,
            price_fen_per_h=draw(st.integers(50, 1_000)) * 1.0,
            stock=draw(st.integers(0, 80)),
            boot_ms=draw(boots),
            billing_ms=draw(st.sampled_from([1_000, 3_600_000])),
        )
        for number, zone in enumerate(draw(st.lists(st.sampled_from(ZONES), min_size=1, max_size=6)))
        for market in draw(st.sets(st.sampled_from(MARKETS), min_size=1, max_size=2).map(sorted))
    ]
    image = EventImage(draw(st.sampled_from([0, 300_000_000])), tuple(ImageCopy(zone, 1e9) for zone in ZONES))
    line = LineNeed((Line("one", 10e9), Line("two", 1e9)), draw(st.sampled_from([0.0, 1e8])), 200)
    need = EventNeed(
        name="any",
        at_ms=AT_MS,
        lasts_ms=draw(st.integers(60_000, 36_000_000)),
        cores=draw(st.integers(1, 2_500)),
        probability=draw(st.sampled_from([0.5, 0.9, 0.99])),
        free_cores=draw(st.integers(0, 500)),
        ready_ms=draw(st.sampled_from([0, 60_000])),
        requests_per_s=draw(st.sampled_from([0.0, 1e5])),
        replica_cores=draw(st.sampled_from([1.0, 1.5, 4.0])),
        image=image,
        line=line,
        apis=(
            ApiLimit("run", (Market.ON_DEMAND, Market.SPOT), 100, 50, draw(st.floats(0.5, 100))),
            ApiLimit("group", (Market.ECI,), 1, 10, 20.0),
        ),
        odds=draw(odds),
        zone_share_max=draw(st.sampled_from([0.5, 1.0])),
        spot_share_max=draw(st.sampled_from([0.0, 1.0])),
    )
    quotas = draw(st.sampled_from([(), (Quota(Market.ON_DEMAND, 1_000),)]))
    return need, have, quotas, draw(st.sampled_from([30_000, 300_000, 36_000_000]))


@given(events())
@settings(max_examples=60, deadline=None)
def test_a_plan_keeps_its_order_of_steps_and_is_in_time_or_refused(
    case: tuple[EventNeed, list[Offer], tuple[Quota, ...], int],
) -> None:
    need, have, quotas, lead_ms = case
    now_ms = AT_MS - lead_ms
    plan = event_plan(need, have, quotas, now_ms)
    in_time = plan.probability >= need.probability and plan.ready_ms <= need.wanted_ms
    assert in_time or plan.refused or not plan.cores
    bought = plan.provision
    assert bought.cores + bought.short_cores >= plan.cores
    for one in bought.purchases:
        assert one.order_ms >= now_ms
        assert one.ready_ms >= one.order_ms + need.start_ms
    for earlier, later in itertools.pairwise(plan.milestones):
        assert earlier.begin_ms <= earlier.done_ms
        if earlier.name != "traffic":  # a plan that is late begins the event before its traffic
            assert earlier.begin_ms <= later.begin_ms
    names = [one.name for one in plan.milestones]
    assert len(set(names)) == len(names)
    begins = {one.name: one.begin_ms for one in plan.milestones}
    if in_time and "warm caches" in begins:
        warmed = next(one.done_ms for one in plan.milestones if one.name == "warm caches")
        assert all(one.ready_ms >= warmed + need.start_ms for one in bought.purchases)


@given(events())
@settings(max_examples=60, deadline=None)
def test_what_is_bought_stays_within_stock_rates_and_money(
    case: tuple[EventNeed, list[Offer], tuple[Quota, ...], int],
) -> None:
    need, have, quotas, lead_ms = case
    plan = event_plan(need, have, quotas, AT_MS - lead_ms)
    least: dict[str, int] = {}
    for one in have:
        least[one.key] = min(least.get(one.key, one.stock or 0), one.stock or 0)
    bought = plan.provision
    assert all(0 < one.count <= least[one.offer_key] for one in bought.purchases)
    assert bought.bound_fen_per_h <= bought.cost_fen_per_h * (1 + 1e-9)
    until_ms = need.at_ms + need.lasts_ms + need.release_ms
    at_least = sum(one.count * one.price_fen_per_h * (until_ms - one.order_ms) / 3_600_000 for one in bought.purchases)
    assert plan.cost_fen >= at_least * (1 - 1e-9)
    for api in need.apis:
        mine = sorted((one.order_ms, one.count) for one in bought.purchases if one.market in api.markets)
        machines = sum(count for _, count in mine)
        if machines > api.burst:
            for (at_ms, count), (next_ms, _) in itertools.pairwise(mine):
                assert next_ms - at_ms >= count / api.per_s * 1000 - 1
    for risk in plan.breaks:
        assert risk.late_ms >= 0
        assert risk.short_cores >= 0
        assert risk.added_fen_per_h >= 0


@given(events())
@settings(max_examples=25, deadline=None)
def test_the_same_event_has_the_same_plan(case: tuple[EventNeed, list[Offer], tuple[Quota, ...], int]) -> None:
    need, have, quotas, lead_ms = case
    first = event_plan(need, have, quotas, AT_MS - lead_ms)
    assert event_plan(need, have, quotas, AT_MS - lead_ms) == first


@given(events())
@settings(max_examples=25, deadline=None)
def test_an_earlier_start_is_never_less_sure(case: tuple[EventNeed, list[Offer], tuple[Quota, ...], int]) -> None:
    need, have, quotas, lead_ms = case
    late = event_plan(need, have, quotas, AT_MS - lead_ms)
    early = event_plan(need, have, quotas, AT_MS - lead_ms - 3_600_000)
    assert min(early.probability, need.probability) >= min(late.probability, need.probability) - 1e-6
