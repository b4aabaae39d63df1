"""The contract of an event: steps backwards from its moment, its cost, its limits, and what would break it."""

import math
import random

import msgspec
import pytest

from springtide.decide.provision import provision
from springtide.decide.readiness import boot_quantile_ms, probability
from springtide.decide.schedule import Solvers, event_plan
from springtide.decide.schedule_line import peak_share, pull_ms, warm_ms
from springtide.decide.schedule_risks import _added
from springtide.decide.schedule_spare import ForRent, irreplaceable
from springtide.decide.schedule_steps import LATE_MIN, Moment, api_of, order_ms, paid_h, timetable
from springtide.model import (
    EventImage,
    EventPlan,
    ImageCopy,
    Line,
    LineNeed,
    Market,
    Odds,
    Offer,
    Provision,
    ProvisionNeed,
    Purchase,
    Quota,
)
from tests.unit.events import APIS, AT_MS, CALM, HOUR_MS, ZONES, need, offer, offers, planned, with_image

SOON = Moment(AT_MS, 0)


def step(plan: EventPlan, name: str) -> tuple[int, int]:
    (found,) = [one for one in plan.milestones if one.name == name]
    return found.begin_ms, found.done_ms


def test_cores_stand_in_time_with_the_probability_asked_for() -> None:
    plan = planned(need())
    assert plan.refused == ()
    assert plan.probability >= 0.99
    assert plan.ready_ms <= plan.wanted_ms == AT_MS
    assert plan.provision.cores >= plan.cores == 6_400
    assert sum(one.cores for one in plan.provision.purchases) == plan.provision.cores
    assert all(AT_MS - HOUR_MS < one.order_ms < one.ready_ms <= AT_MS for one in plan.provision.purchases)


def test_what_stands_in_the_data_centre_is_not_rented() -> None:
    plan = planned(need(cores=7_000, free_cores=6_000, rooms={"room": 6_500}))
    assert plan.cores == 1_000
    assert plan.provision.cores < 1_200
    nothing = planned(need(cores=500, free_cores=600))
    assert (nothing.cores, nothing.cost_fen, nothing.provision.purchases, nothing.refused) == (0, 0.0, (), ())
    assert nothing.probability == 1.0


def test_steps_follow_each_other_and_end_before_the_event() -> None:
    plan = planned(with_image(ready_ms=60_000))
    assert [one.name for one in plan.milestones] == [
        "warm caches",
        "rent",
        "boot",
        "pull images",
        "start replicas",
        "traffic",
        "event",
        "release",
    ]
    warm, rent, boot, pull, start, traffic, event = (step(plan, one.name) for one in plan.milestones[:-1])
    assert warm[1] - warm[0] == math.ceil(
        1.5 * warm_ms(with_image(), sorted({one.zone for one in plan.provision.purchases}))
    )
    assert warm[1] <= rent[0] == boot[0] <= rent[1] <= boot[1] <= pull[1] <= start[1] <= plan.wanted_ms
    assert (start[1], traffic[1]) == (traffic[0], event[0])
    assert event == (AT_MS, AT_MS + 2 * HOUR_MS)


def test_orders_keep_to_the_rate_of_their_api() -> None:
    run, eci = APIS
    assert order_ms(run, 3_125, 3_125) == math.ceil(32 / 4) * 1_000  # within the burst: the calls alone
    assert order_ms(run, 6_000, 6_000) == pytest.approx(72_000)  # 5,000 a minute
    assert order_ms(eci, 25_000, 25_000) == pytest.approx(1_250_000)  # 20 a second, some 21 minutes
    assert order_ms(eci, 100, 100) == 5 * 300
    assert api_of(APIS, Market.IDC) is None
    have = [offer("z-a", "group", market=Market.ECI, cores=4, stock=3_000, boot_ms=(15_000, 45_000))]
    plan = planned(need(cores=8_000, zone_share_max=1.0), 6 * HOUR_MS, have)
    begin, done = step(plan, "rent")
    machines = sum(one.count for one in plan.provision.purchases)
    assert machines >= 2_000
    assert done - begin >= machines / 20 * 1000 - 1


def test_purchases_of_one_api_do_not_overlap_and_what_boots_quickly_is_ordered_late() -> None:
    quick = offer("z-a", "quick", boot_ms=(10_000, 20_000))
    slow = offer("z-a", "slow", boot_ms=(60_000, 300_000))
    buy = [Purchase("z-a", one.instance_type, one.market, 150, 4_800, 640.0) for one in (quick, slow)]
    table = timetable(need(), buy, {one.key: one for one in (quick, slow)}, 0.001, Moment(AT_MS, 0))
    first, second = table.dated
    assert (first.purchase.instance_type, second.purchase.instance_type) == ("slow", "quick")
    assert first.batch.ordered_ms <= second.purchase.order_ms
    assert second.purchase.order_ms - first.purchase.order_ms > 100_000
    for one, boots in ((first, slow), (second, quick)):
        assert one.purchase.ready_ms == pytest.approx(AT_MS, abs=2)
        waited = one.purchase.ready_ms - one.batch.ordered_ms - need().start_ms
        assert waited == pytest.approx(boot_quantile_ms(boots.boot_ms, 0.001), abs=2)


def test_some_machines_more_are_cheaper_than_waiting_for_the_last_one() -> None:
    plan = planned(need(odds=CALM))
    assert 0 < plan.spare_cores < 0.1 * plan.cores
    alone = provision(ProvisionNeed(6_400, replica_cores=4.0), offers())
    have = {one.key: one for one in offers()}
    without = timetable(need(odds=CALM), alone.purchases, have, LATE_MIN, Moment(AT_MS, 0))
    wait_ms = AT_MS - without.begin_ms
    assert wait_ms > AT_MS - min(one.order_ms for one in plan.provision.purchases)
    until = AT_MS + 2 * HOUR_MS + 600_000
    patient = sum(one.count * one.price_fen_per_h * (until - one.order_ms) / HOUR_MS for one in without.purchases)
    assert plan.cost_fen < patient


def test_a_longer_event_makes_spare_machines_dearer_than_waiting() -> None:
    short = planned(need(odds=CALM, lasts_ms=HOUR_MS // 6))
    long = planned(need(odds=CALM, lasts_ms=100 * HOUR_MS))
    assert long.spare_cores < short.spare_cores
    assert long.milestones[0].begin_ms < short.milestones[0].begin_ms


def test_machines_that_never_come_up_are_ordered_on_top() -> None:
    plan = planned(need(odds=Odds(boot_failed=0.05)))
    assert plan.spare_cores >= 0.05 * plan.cores
    assert plan.probability >= 0.99


def test_the_cost_is_paid_from_each_order_to_the_end_in_units_of_the_bill() -> None:
    have = offers()
    plan = planned(need(), 6 * HOUR_MS, have)
    until = AT_MS + 2 * HOUR_MS + 600_000
    by_hand = sum(
        one.count * one.price_fen_per_h * math.ceil((until - one.order_ms) / 1000) / 3600
        for one in plan.provision.purchases
    )
    assert plan.cost_fen == pytest.approx(by_hand)
    assert plan.cost_fen == pytest.approx(plan.provision.cost_fen_per_h * plan.hours)
    assert 2.1 < plan.hours < 3
    hourly = offer(billing_ms=HOUR_MS)
    assert paid_h(Purchase("z-a", "big", Market.ON_DEMAND, 1, 32, 640.0, order_ms=AT_MS), hourly, AT_MS + 1) == 1.0


def test_bound_gap_and_first_fit_are_the_provisionings() -> None:
    plan = planned(need(zone_share_max=0.4))
    found = plan.provision
    assert found.bound_fen_per_h <= found.cost_fen_per_h
    assert found.gap <= 0.005
    assert found.greedy_fen_per_h is not None
    assert found.cost_fen_per_h <= found.greedy_fen_per_h


def test_images_cross_the_line_once_and_then_go_from_the_caches() -> None:
    what = with_image(size_mb=1_000, gbit=10, lines=2)
    room = 2 * 10e9 / 8 * 0.8 - 1e8
    assert warm_ms(what, ZONES) == pytest.approx(3 * 1e9 / room * 1000)
    assert pull_ms(what, "z-a", 500) == pytest.approx((500 * 1e9 / (25e9 / 8) + 10) * 1000)  # and 10 s of unpacking
    assert pull_ms(what, "z-a", 0) == 0.0
    twice = msgspec.structs.replace(what.image, caches=tuple(ImageCopy(zone, 50e9 / 8, 2) for zone in ZONES))
    assert warm_ms(msgspec.structs.replace(what, image=twice), ZONES) == pytest.approx(6 * 1e9 / room * 1000)
    assert warm_ms(need(), ZONES) == pull_ms(need(), "z-a", 500) == 0.0


def test_42_minutes_for_3125_machines_over_10_gbit() -> None:
    """The figure of the design: one cache at 10 Gbit/s gives each of 3,125 machines 1 GB in 42 minutes."""
    what = need(image=EventImage(1_000_000_000, (ImageCopy("z-a", 10e9 / 8),), unpack_bytes_per_s=1e15))
    assert pull_ms(what, "z-a", 3_125) / 60_000 == pytest.approx(41.7, abs=0.1)


def test_a_zone_without_a_cache_pulls_over_the_line() -> None:
    lines = LineNeed((Line("one", 10e9, share_max=0.8),))
    what = need(image=EventImage(1_000_000_000), line=lines)
    assert pull_ms(what, "z-a", 100) == pytest.approx((100 * 1e9 / 1e9 + 10) * 1000)


def test_lines_lead_to_their_zones_alone() -> None:
    lines = LineNeed((Line("wide", 100e9, zones=("z-a",)), Line("thin", 1e9, share_max=0.8, zones=("z-b",))))
    caches = tuple(ImageCopy(zone, 1e9) for zone in ("z-a", "z-b"))
    what = need(image=EventImage(1_000_000_000, caches), line=lines)
    assert warm_ms(what, ["z-b"]) == pytest.approx(10_000)
    assert warm_ms(what, ["z-a", "z-b"]) == pytest.approx(10_000)
    assert warm_ms(what, ["z-a"]) == pytest.approx(100)
    assert math.isinf(warm_ms(msgspec.structs.replace(what, line=LineNeed()), ["z-a"]))


def test_the_peak_takes_its_share_of_the_line() -> None:
    what = with_image(cores=8_000, free_cores=2_000, gbit=10, lines=1)
    carried = 1e8 + 1_000_000 * 0.75 * 500
    assert peak_share(what) == pytest.approx(carried * 8 / 10e9)
    narrow = planned(with_image(cores=8_000, free_cores=2_000, gbit=4, lines=1))
    assert [reason for reason in narrow.refused if "line would be used to 95%, 80% may be" in reason]


def test_too_late_a_start_is_refused_and_says_when_it_would_be_ready() -> None:
    plan = planned(need(), 50_000)
    assert plan.probability < 0.99
    assert plan.ready_ms > plan.wanted_ms
    (reason,) = plan.refused
    assert reason.startswith("too late: begun now, it is ready with probability 0.99")
    assert f"{(plan.ready_ms - plan.wanted_ms) / 60_000:.1f} min after" in reason
    assert all(one.order_ms >= AT_MS - 50_000 for one in plan.provision.purchases)
    again = planned(need(at_ms=plan.ready_ms + 2_000), plan.ready_ms + 2_000 - (AT_MS - 50_000))
    assert again.refused == (), "begun at that moment for that moment, it is in time"


def test_a_probability_out_of_reach_is_refused_with_what_can_be_had() -> None:
    plan = planned(need(probability=0.999, odds=Odds(zone_lost=0.01)))
    assert plan.refused
    assert "at best it is ready in time with probability 0." in plan.refused[0]
    assert plan.provision.purchases, "the plan is still there"


@pytest.mark.parametrize(
    ("limit", "word"),
    [
        ({"spend_max_fen": 100_000.0}, "limits.spend_cny,"),
        ({"spend_max_fen_per_h": 100_000.0}, "limits.spend_cny_per_h"),
    ],
)
def test_over_the_spending_limit_is_refused(limit: dict[str, float], word: str) -> None:
    plan = planned(need(**limit))
    (reason,) = plan.refused
    assert word in reason
    assert "1,000.00 may be spent" in reason
    assert plan.provision.purchases
    assert planned(need(**dict.fromkeys(limit, 10 * plan.cost_fen))).refused == ()


def test_over_the_quota_is_refused_with_what_to_ask_for_and_until_when() -> None:
    quota = Quota(Market.ON_DEMAND, 2_000, used_cores=500)
    eci = Quota(Market.ECI, 1_000)
    plan = planned(need(), 6 * HOUR_MS, None, quota, eci)
    (reason,) = plan.refused
    assert reason.startswith("the quota is too small (on_demand in all zones: ")
    assert "1,500 are left of 2,000" in reason
    begin, done = step(plan, "quota")
    assert done - begin == need().quota_ms
    assert done <= min(one.order_ms for one in plan.provision.purchases)
    assert plan.provision.cores >= 6_400, "the plan that a larger quota allows"
    assert planned(need(), 6 * HOUR_MS, None, Quota(Market.ON_DEMAND, 20_000)).refused == ()


def test_too_little_stock_is_refused_and_not_hidden() -> None:
    plan = planned(need(), 6 * HOUR_MS, offers(stock=10))
    assert plan.provision.short_cores == 6_400 - 9 * 10 * 32
    assert plan.probability == 0.0
    assert "3,520 of 6,400 cores cannot be had" in plan.refused[0]


def purchase(zone: str = "z-a", name: str = "big", count: int = 10, market: Market = Market.ON_DEMAND) -> Purchase:
    return Purchase(zone, name, market, count, 32 * count, 640.0)


def for_rent(have: list[Offer], *quotas: Quota) -> ForRent:
    return ForRent({one.key: one for one in have}, quotas)


def test_what_nothing_replaces_is_known_by_planning_without_it() -> None:
    buy = [purchase("z-a"), purchase("z-b")]
    roomy = [offer("z-a", stock=20), offer("z-b", stock=20)]
    assert irreplaceable(need(), buy, for_rent(roomy)) == frozenset()
    scarce = [offer("z-a", stock=15), offer("z-b", stock=20)]  # z-a has 5 left when 10 of it are taken
    assert irreplaceable(need(), buy, for_rent(scarce)) == {"z-b/big/on_demand"}
    uneven = [purchase("z-a", count=12), purchase("z-b", count=8), purchase("z-c", count=1)]
    tight = for_rent([offer("z-a", stock=20), offer("z-b", stock=8), offer("z-c", stock=1)])
    assert "z-c/big/on_demand" not in irreplaceable(need(zone_share_max=0.65), uneven, tight), "13 of 21 is 62%"
    assert "z-c/big/on_demand" in irreplaceable(need(zone_share_max=0.6), uneven, tight)
    spread = need(zone_share_max=0.5)  # all of it in one zone is not allowed
    assert irreplaceable(spread, buy, for_rent(roomy)) == {"z-a/big/on_demand", "z-b/big/on_demand"}


def test_a_quota_that_others_have_taken_replaces_nothing() -> None:
    buy = [purchase("z-a"), purchase("z-b", count=4)]
    roomy = [offer("z-a", stock=20), offer("z-b", stock=20)]
    quota = Quota(Market.ON_DEMAND, 14 * 32, zone="z-a")  # of it 4 machines' worth is left
    assert irreplaceable(need(), buy, for_rent(roomy, quota)) == frozenset()
    quota = Quota(Market.ON_DEMAND, 13 * 32, zone="z-a")
    assert irreplaceable(need(), buy, for_rent(roomy, quota)) == {"z-b/big/on_demand"}


def test_what_nothing_replaces_is_lost_when_it_is_out_of_stock() -> None:
    have = {one.key: one for one in (offer("z-a"), offer("z-b", market=Market.SPOT))}
    buy = [purchase("z-a"), purchase("z-b", market=Market.SPOT)]
    table = timetable(need(), buy, have, 0.01, Moment(AT_MS, 0, frozenset({"z-a/big/on_demand"})))
    spills = {one.batch.zone: (one.batch.spill_ms, one.batch.spot) for one in table.dated}
    assert spills == {"z-a": (None, False), "z-b": (need().odds.spill_ms, True)}


def test_an_offer_that_must_deliver_bounds_the_probability() -> None:
    what = need(cores=3_200, odds=Odds(stock_out_plenty=0.05, boot_failed=0.0, zone_lost=0.0))
    scarce = planned(what, 6 * HOUR_MS, [offer(zone, stock=34) for zone in ZONES])
    assert scarce.probability == pytest.approx(0.95**3, abs=1e-3), "each of the three has to deliver"
    assert "at best" in scarce.refused[0]
    assert planned(what, 6 * HOUR_MS, [offer(zone, stock=200) for zone in ZONES]).probability >= 0.99


def test_nothing_is_ready_before_its_image_has_crossed_a_slow_line() -> None:
    what = with_image(size_mb=10_000, gbit=1.2, lines=1)
    plan = planned(what, 300_000)
    warm = step(plan, "warm caches")
    assert warm[0] == AT_MS - 300_000, "it is begun at once"
    pulled = max(pull_ms(what, zone, 1) for zone in ZONES)
    assert plan.ready_ms >= warm[1] + pulled + what.start_ms > AT_MS
    assert plan.probability == 0.0
    assert plan.refused[-1].startswith("too late")


def test_losses_are_planned_again_one_by_one() -> None:
    plan = planned(with_image(cores=8_000, free_cores=1_600, rooms={"room": 4_000}, zone_share_max=0.5))
    kinds = {(risk.kind, risk.name) for risk in plan.breaks}
    rented = {one.zone for one in plan.provision.purchases}
    assert kinds >= {("zone", zone) for zone in rented} | {("zone", "room"), ("line", "line-0"), ("line", "line-1")}
    assert {name for kind, name in kinds if kind == "type"} == {one.instance_type for one in plan.provision.purchases}
    room = next(risk for risk in plan.breaks if risk.name == "room")
    assert room.missing_cores == 4_000 - (plan.provision.cores - plan.cores)
    assert room.added_fen_per_h >= 4_000 / 32 * 600, "its cores are bought on top"
    assert plan.risks == tuple(risk.text for risk in plan.breaks if risk.missing_cores or risk.kind == "line")
    for risk in plan.breaks:
        if risk.kind == "zone" and risk.name in rented:
            gone = sum(one.cores for one in plan.provision.purchases if one.zone == risk.name)
            assert risk.missing_cores == max(0, plan.cores - (plan.provision.cores - gone))
            assert risk.late_ms > 60_000, "no machine boots sooner"
        if risk.kind == "type":
            assert risk.late_ms < 60_000, "it is noticed at the order, minutes before"


def test_only_what_is_missing_is_ordered_again() -> None:
    kept = timetable(
        need(), [purchase("z-a"), purchase("z-b")], {one.key: one for one in offers_big()}, 0.01, SOON
    ).dated
    mended = Provision(
        (purchase("z-a", count=14), purchase("z-b", count=9), purchase("z-c", count=3)), 832, 1.0, 1.0, 0.0
    )
    assert [(one.zone, one.count, one.cores) for one in _added(kept, mended)] == [("z-a", 4, 128), ("z-c", 3, 96)]


def offers_big() -> list[Offer]:
    return [offer(zone) for zone in ZONES]


def test_a_zone_whose_loss_nothing_makes_up_for_is_named() -> None:
    plan = planned(need(cores=3_200), 6 * HOUR_MS, [offer(zone, stock=40) for zone in ZONES])
    short = {risk.name: risk.short_cores for risk in plan.breaks if risk.kind == "zone"}
    assert short == dict.fromkeys(ZONES, 3_200 - 2 * 40 * 32)
    assert all("cannot be replaced" in risk.text for risk in plan.breaks if risk.kind == "zone")


def test_the_only_line_down_takes_the_cloud_along() -> None:
    plan = planned(with_image(lines=1, gbit=40))
    (risk,) = [one for one in plan.breaks if one.kind == "line"]
    assert risk.short_cores == plan.cores
    assert "nothing reaches the cloud" in risk.text
    narrow = planned(with_image(lines=2, gbit=5))
    risks = [one for one in narrow.breaks if one.kind == "line"]
    room, carried = 5e9 / 8 * 0.8, 1e8 + 5e8
    assert all(f"{one.short_cores:,} rented cores cannot be used" in one.text for one in risks)
    assert {one.short_cores for one in risks} == {math.ceil(6_400 * (1 - (room - 1e8) / (carried - 1e8)))}


def test_solvers_may_be_given_and_get_what_is_needed() -> None:
    asked: list[int] = []

    def solve(what: ProvisionNeed, have: object, quotas: object) -> Provision:
        asked.append(what.cores)
        return provision(what, offers())

    plan = event_plan(need(), offers(), (), AT_MS - 6 * HOUR_MS, Solvers(solve=solve))
    assert asked[0] == 6_400
    assert plan.provision.cores >= max(asked) or plan.provision.cores >= 6_400


def test_replicas_of_part_of_a_core_are_counted_whole() -> None:
    plan = planned(need(cores=1_000, replica_cores=1.5, replica_memory_mb=4_000))
    assert plan.refused == ()
    replicas = math.ceil(1_000 / 1.5)
    assert sum(one.count * min(21, 65_536 // 4_000) for one in plan.provision.purchases) >= replicas


def test_the_probability_is_that_of_the_purchases_as_they_are_dated() -> None:
    what = with_image(ready_ms=60_000)
    have = {one.key: one for one in offers()}
    plan = planned(what)
    dated: list[Offer] = [have[one.offer_key] for one in plan.provision.purchases]
    assert all(
        one.order_ms <= one.ready_ms - min(boot.boot_ms[0] for boot in dated) for one in plan.provision.purchases
    )
    table = timetable(what, plan.provision.purchases, have, LATE_MIN, Moment(what.wanted_ms, 0))
    earlier = probability(table.batches, 1_600, what.wanted_ms, what.odds)
    assert earlier >= plan.probability


def test_played_out_by_chance_the_plan_stands_in_time_as_often_as_it_says() -> None:
    """Machines are made at the API's pace from the orders on, boot by chance, fail, or are ordered again elsewhere."""
    odds = Odds(boot_failed=0.01, stock_out_plenty=0.05, zone_lost=0.02, spill_ms=15_000)
    what = need(probability=0.9, odds=odds)
    have = {one.key: one for one in offers()}
    plan = planned(what)
    chance, runs, met = random.Random(3), 3_000, 0
    for _ in range(runs):
        lost = {zone for zone in ZONES if chance.random() < odds.zone_lost}
        replicas = 0
        for one in plan.provision.purchases:
            median, p99 = have[one.offer_key].boot_ms
            sigma = math.log(p99 / median) / 2.3263478740408408
            delay = odds.spill_ms if chance.random() < odds.stock_out_plenty else 0
            api = api_of(APIS, one.market)
            assert api is not None
            made = order_ms(api, one.count, 0)
            for number in range(one.count):
                up = one.order_ms + made * (number + 1) / one.count + delay
                up += chance.lognormvariate(math.log(median), sigma)
                ready = up + what.start_ms <= what.wanted_ms and chance.random() >= odds.boot_failed
                replicas += 8 if ready and one.zone not in lost else 0
        met += replicas * 4 >= what.cores
    found = met / runs
    noise = 4 * math.sqrt(plan.probability * (1 - plan.probability) / runs)
    assert found >= plan.probability - noise
    assert found <= plan.probability + 0.05, "it is not far too careful either"
