"""The twin's cloud: what it sells, when it refuses, how long it takes, and what it costs."""

import random
import statistics
from collections.abc import Callable

import pytest

from springtide.errors import CloudOutOfStock, CloudQuotaExceeded, CloudRefused, CloudThrottled
from springtide.model import Market as Channel
from springtide.model import NodeOrder, NodeState, Offer, Quota, StockLevel
from springtide.twin.kernel import Kernel
from springtide.twin.market import Market, MarketSettings
from springtide.twin.market_settings import ApiLimits, default_offers
from springtide.twin.market_state import restore, save

H, I = "cn-beijing-h", "cn-beijing-i"  # noqa: E741 - a zone's name
BIG = "ecs.c7.8xlarge"
OFFERS = (
    Offer(H, BIG, Channel.ON_DEMAND, 32, 65_536, 652.0, stock=50, boot_ms=(60_000, 180_000)),
    Offer(H, BIG, Channel.SPOT, 32, 65_536, 163.0, stock=20),
    Offer(I, BIG, Channel.ON_DEMAND, 32, 65_536, 652.0, stock=200),
    Offer(H, "eci-8c16g", Channel.ECI, 8, 16_384, 176.0, stock=500, boot_ms=(20_000, 60_000)),
)
START_MS = 1_700_000_040_000  # a full minute


def market_of(seed: int = 1, **changes: object) -> Market:
    settings = MarketSettings(offers=OFFERS, refill_share_per_h=0.0, **changes)  # type: ignore[arg-type] # as the test says
    return Market(Kernel(START_MS), random.Random(seed), settings)


def order(count: int, token: str, **changes: object) -> NodeOrder:
    given: dict[str, object] = {"zone": H, "instance_type": BIG, "count": count, "client_token": token}
    return NodeOrder(**{**given, **changes})  # type: ignore[arg-type] # as the test says


def pass_s(market: Market, seconds: float) -> None:
    market.kernel.run(market.kernel.now_ms + round(seconds * 1000))


def test_a_machine_is_paid_from_its_order_and_runs_when_it_has_booted() -> None:
    market = market_of()
    (node,) = market.rent(order(1, "t"))
    assert (node.zone, node.instance_type, node.cores, node.client_token) == (H, BIG, 32, "t")
    assert (node.state, node.rented_ms, node.price_fen_per_h) == (NodeState.BOOTING, START_MS, 652.0)
    pass_s(market, 3600)
    (ready,) = market.nodes()
    assert ready.state is NodeState.READY
    assert START_MS < ready.since_ms < START_MS + 3_600_000
    assert ready.rented_ms == START_MS
    assert market.cost_fen() == pytest.approx(652.0)


def test_boots_are_lognormal_with_the_median_and_p99_of_the_offer() -> None:
    boots = []
    for seed in range(40):
        market = market_of(seed)
        market.rent(order(50, "t"))
        pass_s(market, 3600)
        boots += [(node.since_ms - node.rented_ms) / 1000 for node in market.nodes()]
    assert len(boots) == 2_000
    assert statistics.median(boots) == pytest.approx(60, rel=0.05)
    assert statistics.quantiles(boots, n=100)[98] == pytest.approx(180, rel=0.15)


def test_the_same_order_again_returns_the_same_nodes_and_buys_nothing() -> None:
    market = market_of()
    first = market.rent(order(5, "t"))
    stock = market.pools[OFFERS[0].key].state.stock
    assert market.rent(order(5, "t")) == first
    market.release([first[0].node_id])
    assert market.rent(order(5, "t")) == first[1:]
    assert market.created == 5
    assert market.pools[OFFERS[0].key].state.stock == stock + 1


@pytest.mark.parametrize(
    "changed",
    [{"count": 6}, {"count_min": 2}, {"zone": I}, {"release_at_ms": START_MS + 10**7}, {"market": Channel.SPOT}],
    ids=str,
)
def test_a_token_of_another_order_is_refused(changed: dict[str, object]) -> None:
    market = market_of()
    market.rent(order(5, "t"))
    with pytest.raises(CloudRefused, match="other parameters"):
        market.rent(order(**{"count": 5, "token": "t", **changed}))  # type: ignore[arg-type] # as the case says
    assert market.created == 5


def test_a_deleted_nodes_token_is_still_known() -> None:
    market = market_of()
    nodes = market.rent(order(3, "t"))
    market.release([node.node_id for node in nodes])
    assert market.rent(order(3, "t")) == []
    assert market.created == 3


def test_a_stock_between_least_and_most_is_a_success_with_fewer() -> None:
    market = market_of()
    assert len(market.rent(order(80, "t1", count_min=1))) == 50
    with pytest.raises(CloudOutOfStock, match=BIG):
        market.rent(order(1, "t2"))


def test_without_a_least_number_it_is_all_or_nothing_and_the_token_may_be_used_again() -> None:
    market = market_of()
    with pytest.raises(CloudOutOfStock):
        market.rent(order(51, "t", count_min=51))
    assert market.nodes() == ()
    assert len(market.rent(order(50, "t", count_min=50))) == 50


def test_levels_are_all_that_is_told_of_the_stock() -> None:
    market = market_of()

    def shown() -> tuple[StockLevel, int | None]:
        offer = next(each for each in market.offers() if each.key == OFFERS[0].key)
        return offer.level, offer.stock

    assert shown() == (StockLevel.PLENTY, None)
    market.rent(order(47, "t1"))
    assert shown() == (StockLevel.LOW, None)
    market.rent(order(3, "t2"))
    assert shown() == (StockLevel.NONE, None)


@pytest.mark.parametrize(
    ("quota", "code"),
    [
        (Quota(Channel.ON_DEMAND, 100), "QuotaExceed.ElasticQuota"),
        (Quota(Channel.ON_DEMAND, 100, zone=H), "QuotaExceeded.ElasticQuota"),
        (Quota(Channel.SPOT, 100), "QuotaExceed.Spot"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "quota",
)
def test_a_quota_refuses_the_whole_order(quota: Quota, code: str) -> None:
    market = market_of(quotas=(quota,))
    assert len(market.rent(order(3, "t1", market=quota.market))) == 3
    with pytest.raises(CloudQuotaExceeded) as refused:
        market.rent(order(2, "t2", market=quota.market))
    assert getattr(refused.value, "code", "") == code
    (used,) = market.quotas()
    assert used.used_cores == 96
    market.release([market.nodes()[0].node_id])
    assert market.quotas()[0].used_cores == 64


def test_a_quota_of_another_zone_or_market_does_not_count() -> None:
    market = market_of(quotas=(Quota(Channel.ON_DEMAND, 32, zone=I), Quota(Channel.SPOT, 0)))
    assert len(market.rent(order(10, "t"))) == 10


def test_an_account_that_cannot_pay_is_refused() -> None:
    market = market_of(balance_fen=2_000.0)
    market.rent(order(3, "t1"))
    with pytest.raises(CloudRefused, match="balance"):
        market.rent(order(1, "t2"))


@pytest.mark.parametrize(
    "changes", [{"instance_type": "ecs.none"}, {"zone": "cn-nowhere"}, {"count": 0}, {"client_token": ""}], ids=str
)
def test_an_order_that_nobody_could_fill_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(CloudRefused):
        market_of().rent(NodeOrder(**{"zone": H, "count": 1, "client_token": "t", "instance_type": BIG, **changes}))  # type: ignore[arg-type] # as the case says


def test_without_a_type_the_zones_first_machine_of_the_market_is_meant() -> None:
    (node,) = market_of().rent(NodeOrder(H, 1, "t"))
    assert node.instance_type == BIG


def test_calls_are_throttled_in_one_minute_and_allowed_in_the_next() -> None:
    market = market_of(limits=ApiLimits(calls_per_min={"RunInstances": 2}))
    market.rent(order(1, "t1"))
    pass_s(market, 20)
    market.rent(order(1, "t2"))
    with pytest.raises(CloudThrottled) as refused:
        market.rent(order(1, "t3"))
    assert refused.value.retry_after_s == pytest.approx(40, abs=1)
    market.release([market.nodes()[0].node_id])  # another API is not throttled with it
    pass_s(market, refused.value.retry_after_s)
    assert len(market.rent(order(1, "t3"))) == 1
    assert market.meter.throttled == {"RunInstances": 1}
    assert market.meter.calls == {"RunInstances": 4, "DeleteInstances": 1}


def test_creations_a_minute_are_limited() -> None:
    market = market_of(limits=ApiLimits(creations_per_min=60))
    market.rent(order(50, "t1"))
    with pytest.raises(CloudThrottled):
        market.rent(order(50, "t2", zone=I, count_min=50))
    pass_s(market, 60)
    assert len(market.rent(order(50, "t2", zone=I, count_min=50))) == 50


def test_container_groups_come_and_go_through_buckets() -> None:
    market = market_of()
    group = {"instance_type": "eci-8c16g", "market": Channel.ECI}
    assert len(market.rent(order(300, "t1", **group))) == 100  # the burst
    with pytest.raises(CloudThrottled) as refused:
        market.rent(order(10, "t2", count_min=10, **group))
    assert refused.value.retry_after_s == pytest.approx(0.5)
    pass_s(market, 2)
    nodes = market.rent(order(300, "t2", **group))
    assert len(nodes) == 40
    with pytest.raises(CloudThrottled):
        market.release([node.node_id for node in market.nodes()])
    assert len(market.nodes()) == 40
    pass_s(market, 2)
    market.release([node.node_id for node in market.nodes()])
    assert market.nodes() == ()


def test_the_cloud_releases_machines_by_itself_and_the_moment_can_be_moved() -> None:
    market = market_of()
    first, second, third = market.rent(order(3, "t", release_at_ms=START_MS + 600_000))
    market.keep_until([second.node_id, "unknown"], START_MS + 900_000)
    market.keep_until([third.node_id], 0)
    pass_s(market, 599)
    assert len(market.nodes()) == 3
    pass_s(market, 2)
    assert [node.node_id for node in market.nodes()] == [second.node_id, third.node_id]
    pass_s(market, 300)
    assert [node.node_id for node in market.nodes()] == [third.node_id]
    assert first.release_at_ms == START_MS + 600_000
    assert market.cost_fen() == pytest.approx(652 / 3600 * (600 + 900 + 901))


def test_a_started_second_is_paid_and_released_machines_cost_no_more() -> None:
    market = market_of()
    (node,) = market.rent(order(1, "t"))
    pass_s(market, 1.001)
    assert market.cost_fen() == pytest.approx(2 * 652 / 3600)
    market.release([node.node_id, "unknown"])
    pass_s(market, 3600)
    assert market.cost_fen() == pytest.approx(2 * 652 / 3600)


def test_reclaimed_spot_machines_get_their_notice_and_are_gone_after_it() -> None:
    market = market_of()
    market.rent(order(10, "spot", market=Channel.SPOT))
    market.rent(order(10, "kept"))
    assert market.reclaim(0.5, zone=I) == 0
    assert market.reclaim(0.5) == 5
    announced = [node for node in market.nodes() if node.reclaim_ms]
    assert {node.market for node in announced} == {Channel.SPOT}
    assert {node.reclaim_ms for node in announced} == {START_MS + 300_000}
    pass_s(market, 299)
    assert len(market.nodes()) == 20
    pass_s(market, 2)
    assert {node.node_id for node in market.nodes()}.isdisjoint(node.node_id for node in announced)
    assert market.interrupted == 5
    assert len(market.rent(order(20, "more", market=Channel.SPOT))) == 10  # what was reclaimed is not to be had again


def test_spot_prices_move_below_those_on_demand_and_a_bid_below_them_is_refused() -> None:
    market = market_of(price_move=0.5, price_every_ms=60_000)
    seen = set()
    for _ in range(200):
        pass_s(market, 60)
        spot = next(offer for offer in market.offers() if offer.market is Channel.SPOT)
        assert 0 < spot.price_fen_per_h < 652
        seen.add(spot.price_fen_per_h)
    assert len(seen) > 50
    now = next(offer for offer in market.offers() if offer.market is Channel.SPOT).price_fen_per_h
    with pytest.raises(CloudOutOfStock, match="below the spot price"):
        market.rent(order(1, "t", market=Channel.SPOT, price_limit_fen_per_h=now * 0.9))


def test_a_spot_machine_is_taken_away_when_the_price_rises_above_its_bid() -> None:
    market = market_of(price_move=0.5, price_every_ms=60_000)
    market.rent(order(1, "t", market=Channel.SPOT, price_limit_fen_per_h=163.0))
    pass_s(market, 3600)
    assert len(market.nodes()) == 1  # the first hour is safe
    pass_s(market, 3600)
    assert market.nodes() == ()
    assert market.interrupted == 1


def test_a_forced_stock_holds_until_it_is_lifted() -> None:
    market = market_of()
    nodes = market.rent(order(10, "t1"))
    market.set_stock(f"{H}/", 0)
    market.release([node.node_id for node in nodes])
    with pytest.raises(CloudOutOfStock):
        market.rent(order(1, "t2"))
    assert len(market.rent(order(1, "t3", zone=I))) == 1
    market.set_stock(f"{H}/", None)
    assert len(market.rent(order(100, "t4"))) == 50


def test_stock_comes_back_over_time_and_never_beyond_the_beginning() -> None:
    settings = MarketSettings(offers=OFFERS, refill_share_per_h=0.5)
    market = Market(Kernel(START_MS), random.Random(1), settings)
    market.rent(order(50, "t"))
    pass_s(market, 3600)
    assert 10 <= market.pools[OFFERS[0].key].state.stock <= 40
    pass_s(market, 8 * 3600)
    assert market.pools[OFFERS[0].key].state.stock == 50


def test_a_lost_zone_loses_its_machines_and_sells_nothing_until_it_is_back() -> None:
    market = market_of()
    market.rent(order(5, "t1"))
    market.rent(order(5, "t2", zone=I))
    market.lose_zone(H, START_MS + 600_000)
    assert {node.zone for node in market.nodes()} == {I}
    assert {offer.level for offer in market.offers() if offer.zone == H} == {StockLevel.GONE}
    with pytest.raises(CloudOutOfStock, match="nothing is sold"):
        market.rent(order(1, "t3"))
    pass_s(market, 601)
    assert len(market.rent(order(1, "t3"))) == 1
    assert StockLevel.GONE not in {offer.level for offer in market.offers()}


def test_slow_boots_hold_for_what_is_ordered_meanwhile() -> None:
    def mean_boot_s(slow: Callable[[Market], None]) -> float:
        market = market_of()
        slow(market)
        market.rent(order(50, "t"))
        pass_s(market, 36_000)
        return statistics.mean(node.since_ms - node.rented_ms for node in market.nodes()) / 1000

    usual = mean_boot_s(lambda _: None)
    assert mean_boot_s(lambda market: market.slow_boots(4.0, START_MS + 1)) == pytest.approx(4 * usual, rel=0.01)
    assert mean_boot_s(lambda market: market.slow_boots(4.0, START_MS)) == pytest.approx(usual)


def test_a_throttled_api_leaves_the_others_alone() -> None:
    market = market_of()
    (node,) = market.rent(order(1, "t1"))
    market.throttle("RunInstances", START_MS + 5_000)
    with pytest.raises(CloudThrottled) as refused:
        market.rent(order(1, "t2"))
    assert refused.value.retry_after_s == pytest.approx(5)
    market.release([node.node_id])
    pass_s(market, 5)
    assert len(market.rent(order(1, "t2"))) == 1


def test_of_the_spot_machines_about_so_many_an_hour_are_taken_after_the_safe_time() -> None:
    market = market_of(reclaims_per_h=0.5, spot_safe_ms=1_800_000)
    market.rent(order(20, "t", market=Channel.SPOT))
    pass_s(market, 1_800)
    assert not [node for node in market.nodes() if node.reclaim_ms]
    pass_s(market, 7_200)
    assert 8 <= market.interrupted <= 18  # 1 - e^-1 of 20 on average


def test_some_machines_never_boot() -> None:
    market = market_of(boot_failed_share=0.5)
    market.rent(order(50, "t"))
    pass_s(market, 86_400)
    assert 10 < sum(node.state is NodeState.BOOTING for node in market.nodes()) < 40


def test_what_each_token_made_is_known() -> None:
    market = market_of()
    market.release([market.rent(order(3, "t1"))[0].node_id])
    market.rent(order(100, "t2"))
    assert market.created_by_token() == {"t1": 3, "t2": 48}


def test_every_change_is_told() -> None:
    market = market_of()
    told: list[int] = []
    market.on_change = lambda: told.append(market.kernel.now_ms)
    nodes = market.rent(order(2, "t"))
    pass_s(market, 3600)
    assert len(told) == 3  # the order, two boots
    market.release([nodes[0].node_id])
    assert len(told) == 4


def test_the_list_of_nodes_is_the_same_object_until_something_changes() -> None:
    market = market_of()
    market.rent(order(2, "t"))
    assert market.nodes() is market.nodes()
    before = market.nodes()
    pass_s(market, 3600)
    assert market.nodes() is not before


def test_tokens_are_kept_within_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("springtide.twin.market.TOKENS_MAX", 3)
    market = market_of()
    kept = market.rent(order(1, "kept"))
    for number in range(6):
        market.release([node.node_id for node in market.rent(order(1, f"t{number}"))])
    assert market.rent(order(1, "kept")) == kept
    assert market.rent(order(1, "t5")) == []
    assert set(market.sold) == {"kept", "t4", "t5"}


def test_the_same_seed_gives_the_same_cloud() -> None:
    def story(seed: int) -> list[object]:
        market = Market(Kernel(START_MS), random.Random(seed), MarketSettings())
        market.rent(order(100, "t1", count_min=100))
        market.rent(order(50, "t2", market=Channel.SPOT))
        pass_s(market, 1_200)
        market.reclaim(0.3)
        pass_s(market, 1_200)
        return [market.nodes(), market.offers(), market.cost_fen()]

    assert story(7) == story(7)
    assert story(7) != story(8)


def test_a_market_goes_on_where_another_stopped() -> None:
    before = market_of()
    nodes = before.rent(order(5, "t1", release_at_ms=START_MS + 600_000))
    before.rent(order(3, "t2", market=Channel.SPOT, price_limit_fen_per_h=300.0))
    before.release([nodes[0].node_id])
    pass_s(before, 30)
    before.reclaim(0.3)
    after = Market(Kernel(before.kernel.now_ms), random.Random(1), before.settings)
    restore(after, save(before))
    assert after.nodes() == before.nodes()
    assert after.cost_fen() == before.cost_fen()
    assert after.quotas() == before.quotas()
    assert after.rent(order(5, "t1", release_at_ms=START_MS + 600_000)) == list(before.nodes()[:4])
    pass_s(after, 400)
    assert [node.state for node in after.nodes()] == [NodeState.READY] * 6  # one reclaimed
    pass_s(after, 400)
    assert len(after.nodes()) == 2  # four released by themselves


def test_the_offers_that_come_along_are_dear_in_the_order_they_are() -> None:
    offers = default_offers()
    assert len({offer.key for offer in offers}) == len(offers)
    on_demand = {(o.zone, o.instance_type): o.price_fen_per_h for o in offers if o.market is Channel.ON_DEMAND}
    assert len({name for _, name in on_demand}) == 14
    for offer in offers:
        if offer.market is Channel.SPOT:
            assert 0.1 < offer.price_fen_per_h / on_demand[offer.zone, offer.instance_type] < 0.95
        if offer.market is Channel.ECI:
            assert offer.cores <= 64
            assert offer.price_fen_per_h == pytest.approx(offer.cores * 17.64 + offer.memory_mb / 1024 * 2.21)
