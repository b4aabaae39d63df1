"""Purchases for a need: the cheapest, within every limit, or the most that can be had and why not more."""

import subprocess
import sys

import msgspec
import pytest

from bench.provision_check import lower_bound, violations
from springtide.decide.provision import cheapest, first_fit, provision, repair
from springtide.decide.provision_problem import LOW_MACHINES, PLENTY_MACHINES
from springtide.model import Market, Offer, Provision, ProvisionNeed, Quota, StockLevel

WAYS = {"provision": provision, "first_fit": first_fit, "cheapest": cheapest}


def offer(  # noqa: PLR0913 - a row of a price list has many columns
    zone: str,
    cores: int,
    price: float,
    stock: int | None = 100,
    *,
    market: Market = Market.ON_DEMAND,
    memory_mb: int = 1 << 20,
    level: StockLevel = StockLevel.PLENTY,
    arch: str = "amd64",
) -> Offer:
    name = f"c{cores}-{arch}"
    return Offer(zone, name, market, cores, memory_mb, price, level=level, stock=stock, arch=arch)


def bought(plan: Provision) -> dict[str, int]:
    return {purchase.offer_key: purchase.count for purchase in plan.purchases}


@pytest.mark.parametrize("way", WAYS)
def test_the_cheaper_offer_is_bought_until_its_stock_ends(way: str) -> None:
    offers = [offer("a", 4, 100, stock=2), offer("b", 4, 90, stock=3)]
    plan = WAYS[way](ProvisionNeed(16), offers, ())
    assert bought(plan) == {"b/c4-amd64/on_demand": 3, "a/c4-amd64/on_demand": 1}
    assert (plan.cores, plan.short_cores, plan.cost_fen_per_h) == (16, 0, 370)
    assert plan.bound_fen_per_h == pytest.approx(370)
    assert plan.limits == ()


@pytest.mark.parametrize("way", WAYS)
def test_only_whole_replicas_count(way: str) -> None:
    need = ProvisionNeed(8, replica_cores=4, replica_memory_mb=1000)
    offers = [offer("a", 7, 10), offer("b", 64, 10, memory_mb=999), offer("c", 8, 30, memory_mb=1999)]
    plan = WAYS[way](need, offers, ())
    assert bought(plan) == {"a/c7-amd64/on_demand": 2}
    assert plan.cores == 8


def test_replicas_of_part_of_a_core_add_up() -> None:
    plan = provision(ProvisionNeed(10, replica_cores=0.7), [offer("a", 1, 10), offer("b", 2, 15, stock=3)])
    # Two replicas on two cores, one on one; 15 replicas are 10.5 cores.
    assert plan.cores == 10
    assert sum(purchase.cores for purchase in plan.purchases) == plan.cores
    assert plan.cost_fen_per_h == pytest.approx(3 * 15 + 9 * 10)


@pytest.mark.parametrize(
    ("level", "machines"),
    [
        (StockLevel.PLENTY, PLENTY_MACHINES),
        (StockLevel.LOW, LOW_MACHINES),
        (StockLevel.NONE, 0),
        (StockLevel.GONE, 0),
    ],
)
def test_an_unknown_stock_is_what_its_level_stands_for(level: StockLevel, machines: int) -> None:
    plan = provision(ProvisionNeed(10_000), [offer("a", 1, 10, stock=None, level=level)])
    assert plan.cores == machines
    assert plan.short_cores == 10_000 - machines
    assert any(limit.startswith("stock: ") for limit in plan.limits)


@pytest.mark.parametrize("way", WAYS)
def test_a_known_stock_counts_more_than_its_level(way: str) -> None:
    plan = WAYS[way](ProvisionNeed(10), [offer("a", 1, 10, stock=4, level=StockLevel.NONE)], ())
    assert plan.cores == 4


@pytest.mark.parametrize("way", WAYS)
def test_a_quota_counts_all_cores_of_a_machine(way: str) -> None:
    quotas = [Quota(Market.ON_DEMAND, 100, used_cores=79), Quota(Market.SPOT, 0)]
    offers = [offer("a", 7, 10), offer("a", 7, 1, market=Market.SPOT)]
    plan = WAYS[way](ProvisionNeed(16, replica_cores=4), offers, quotas)
    assert bought(plan) == {"a/c7-amd64/on_demand": 3}
    assert plan.short_cores == 4
    assert any("quota of on_demand in all zones" in limit for limit in plan.limits)
    assert any("raised by 4 cores" in limit for limit in plan.limits)


@pytest.mark.parametrize("way", WAYS)
def test_no_zone_has_more_than_its_share(way: str) -> None:
    offers = [offer("a", 4, 10), offer("b", 4, 20), offer("c", 4, 30)]
    plan = WAYS[way](ProvisionNeed(40, zone_share_max=0.4), offers, ())
    assert bought(plan) == {"a/c4-amd64/on_demand": 4, "b/c4-amd64/on_demand": 4, "c/c4-amd64/on_demand": 2}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_held_counts_for_the_spread(way: str) -> None:
    offers = [offer("a", 4, 10), offer("b", 4, 20), offer("c", 4, 30)]
    need = ProvisionNeed(20, zone_share_max=0.5, held={"a": 60, "b": 20})
    plan = WAYS[way](need, offers, ())
    assert bought(plan) == {"b/c4-amd64/on_demand": 5}, "a has its share, and must not stop b from getting more"


@pytest.mark.parametrize("way", WAYS)
def test_more_is_bought_where_machines_are_too_large_to_spread_the_need(way: str) -> None:
    plan = WAYS[way](ProvisionNeed(1, zone_share_max=0.5), [offer("a", 64, 10), offer("b", 64, 20)], ())
    assert bought(plan) == {"a/c64-amd64/on_demand": 1, "b/c64-amd64/on_demand": 1}


@pytest.mark.parametrize("way", WAYS)
def test_one_zone_alone_cannot_be_spread(way: str) -> None:
    plan = WAYS[way](ProvisionNeed(8, zone_share_max=0.5), [offer("a", 4, 10)], ())
    assert plan.purchases == ()
    assert plan.short_cores == 8
    assert plan.limits == (
        "spread: zone a may have at most 50% of all cores: offer more in other zones, or raise zone_share_max",
    )


def test_the_scarcer_zone_sets_how_much_can_be_spread() -> None:
    plan = provision(ProvisionNeed(100, zone_share_max=0.5), [offer("a", 1, 10), offer("b", 1, 20, stock=10)])
    assert (plan.cores, plan.short_cores) == (20, 80)
    assert plan.cost_fen_per_h == 300
    assert plan.bound_fen_per_h == pytest.approx(300, rel=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_spot_has_its_share(way: str) -> None:
    offers = [offer("a", 4, 2, market=Market.SPOT), offer("a", 4, 10)]
    need = ProvisionNeed(40, spot_share_max=0.25)
    assert bought(WAYS[way](need, offers, ())) == {"a/c4-amd64/spot": 2, "a/c4-amd64/on_demand": 8}
    of_all = msgspec.structs.replace(need, held={"a": 80}, held_spot=10)
    assert bought(WAYS[way](of_all, offers, ())) == {"a/c4-amd64/spot": 5, "a/c4-amd64/on_demand": 5}
    full = msgspec.structs.replace(need, held={"a": 80}, held_spot=80)
    assert bought(WAYS[way](full, offers, ())) == {"a/c4-amd64/on_demand": 10}


@pytest.mark.parametrize("way", WAYS)
def test_no_more_is_spent_than_may_be(way: str) -> None:
    need = ProvisionNeed(40, spend_max_fen_per_h=55)
    plan = WAYS[way](need, [offer("a", 4, 10)], ())
    assert (plan.cores, plan.short_cores, plan.cost_fen_per_h) == (20, 20, 50)
    assert plan.limits == (
        "spend: 0.50 of 0.55 CNY per hour are spent, and nothing more fits: raise the spending limit",
    )


def test_cores_come_before_cost_where_the_need_cannot_be_met() -> None:
    offers = [offer("a", 4, 10, stock=10), offer("a", 5, 30, stock=10), offer("b", 4, 11, stock=10)]
    quotas = [Quota(Market.ON_DEMAND, 20, zone="a"), Quota(Market.ON_DEMAND, 39)]
    plan = provision(ProvisionNeed(100), offers, quotas)
    # By price it would be 20 cores in a, which leave 16 of b's in the quota of all zones.
    assert bought(plan) == {"a/c4-amd64/on_demand": 1, "a/c5-amd64/on_demand": 3, "b/c4-amd64/on_demand": 5}
    assert (plan.cores, plan.short_cores, plan.cost_fen_per_h) == (39, 61, 155)
    assert cheapest(ProvisionNeed(100), offers, quotas).cores == 36
    assert violations(ProvisionNeed(100), offers, quotas, plan) == []


def test_own_machines_come_first() -> None:
    offers = [offer("a", 4, 10), offer("idc", 16, 0, stock=2, market=Market.IDC)]
    for way in WAYS.values():
        assert bought(way(ProvisionNeed(36), offers, ())) == {"idc/c16-amd64/idc": 2, "a/c4-amd64/on_demand": 1}


def test_free_machines_are_not_taken_without_need() -> None:
    plan = provision(ProvisionNeed(10), [offer("idc", 4, 0, market=Market.IDC)])
    assert bought(plan) == {"idc/c4-amd64/idc": 3}
    assert (plan.cost_fen_per_h, plan.bound_fen_per_h, plan.gap) == (0, 0, 0)


@pytest.mark.parametrize("way", ["provision", "cheapest"])
def test_the_last_machine_may_be_a_large_one(way: str) -> None:
    offers = [offer("a", 4, 4), offer("b", 1, 2), offer("c", 8, 6.5)]
    assert bought(WAYS[way](ProvisionNeed(7), offers, ())) == {"c/c8-amd64/on_demand": 1}


def test_the_plan_finds_what_no_order_of_prices_does() -> None:
    offers = [offer("a", 4, 4), offer("b", 3, 3.1)]
    plan = provision(ProvisionNeed(6), offers)
    assert bought(plan) == {"b/c3-amd64/on_demand": 2}
    assert plan.cost_fen_per_h < cheapest(ProvisionNeed(6), offers).cost_fen_per_h
    assert plan.gap <= 0.005


def test_first_fit_packs_the_largest_nodes_and_takes_the_cheapest_for_the_rest() -> None:
    offers = [offer("a", 2, 1), offer("a", 4, 3), offer("b", 16, 20), offer("c", 16, 19, stock=1)]
    packed = first_fit(ProvisionNeed(35), offers)
    assert bought(packed) == {
        "c/c16-amd64/on_demand": 1,
        "b/c16-amd64/on_demand": 1,
        "a/c4-amd64/on_demand": 1,
    }
    plan = provision(ProvisionNeed(35), offers)
    assert plan.greedy_fen_per_h == packed.cost_fen_per_h == 42
    assert plan.cost_fen_per_h == 18


def test_larger_machines_are_taken_at_the_same_price() -> None:
    offers = [offer("a", cores, 10 * cores) for cores in (2, 4, 8, 16, 32)]
    for way in (provision, cheapest):
        assert bought(way(ProvisionNeed(640), offers)) == {"a/c32-amd64/on_demand": 20}


def test_an_offer_that_is_named_twice_counts_once() -> None:
    twice = [offer("a", 4, 10, stock=5), offer("a", 4, 10, stock=3)]
    assert provision(ProvisionNeed(100), twice).cores == 12
    assert provision(ProvisionNeed(100), twice[::-1]).cores == 12


def test_nothing_is_bought_for_no_need() -> None:
    for way in WAYS.values():
        assert way(ProvisionNeed(0), [offer("a", 4, 10)], ()) == Provision((), 0, 0.0, 0.0, 0.0, _greedy(way))


def _greedy(way: object) -> float | None:
    return None if way is cheapest else 0.0


def test_what_cannot_be_rented_at_all_is_said() -> None:
    need = ProvisionNeed(8, replica_cores=4)
    nothing = provision(need, [])
    assert nothing.limits == ("offers: there is nothing to rent: name types and zones that can be had",)
    unfit = provision(need, [offer("a", 64, 10, arch="arm64"), offer("a", 2, 10)])
    assert (unfit.short_cores, unfit.cores, unfit.cost_fen_per_h, unfit.gap) == (8, 0, 0, 0)
    assert [limit.partition(":")[0] for limit in unfit.limits] == ["arch", "size"]
    assert provision(msgspec.structs.replace(need, arch=("arm64",)), [offer("a", 64, 10, arch="arm64")]).cores == 64


def test_a_replica_has_a_size() -> None:
    with pytest.raises(ValueError, match="more than 0 cores"):
        cheapest(ProvisionNeed(1, replica_cores=0), [])


def test_a_repair_keeps_what_can_still_be_had() -> None:
    offers = [offer("a", 4, 10, stock=10), offer("b", 4, 11, stock=10), offer("c", 4, 12, stock=10)]
    need = ProvisionNeed(60)
    before = provision(need, offers)
    assert bought(before) == {"a/c4-amd64/on_demand": 10, "b/c4-amd64/on_demand": 5}
    gone = [msgspec.structs.replace(each, stock=2) if each.zone == "a" else each for each in offers]
    mended = repair(before, need, gone)
    assert bought(mended) == {"a/c4-amd64/on_demand": 2, "b/c4-amd64/on_demand": 10, "c/c4-amd64/on_demand": 3}
    # A cheaper offer that comes up later moves nothing that was bought.
    better = [*gone, offer("d", 4, 1)]
    assert bought(repair(mended, need, better)) == bought(mended)
    assert repair(mended, need, better).bound_fen_per_h <= provision(need, better).cost_fen_per_h


def test_a_repair_gives_up_what_it_has_where_limits_ask_for_it() -> None:
    offers = [offer("a", 4, 10), offer("b", 4, 11), offer("c", 4, 12)]
    before = provision(ProvisionNeed(40), offers)
    need = ProvisionNeed(40, zone_share_max=0.4)
    mended = repair(before, need, offers)
    assert violations(need, offers, (), mended) == []
    assert mended.short_cores == 0


def test_a_repair_says_what_is_missing() -> None:
    before = provision(ProvisionNeed(40), [offer("a", 4, 10)])
    mended = repair(before, ProvisionNeed(40), [offer("a", 4, 10, stock=3)])
    assert (mended.cores, mended.short_cores) == (12, 28)
    assert mended.limits


def test_the_checker_sees_what_is_wrong() -> None:
    offers = [offer("a", 4, 10, stock=5), offer("b", 4, 20)]
    need = ProvisionNeed(40, zone_share_max=0.5, spend_max_fen_per_h=160)
    quotas = [Quota(Market.ON_DEMAND, 40)]
    plan = provision(need, offers, quotas)
    assert violations(need, offers, quotas, plan) == []
    assert lower_bound(need, offers, quotas, plan.cost_fen_per_h) == pytest.approx(150, rel=1e-3)
    worse = {
        "stock": (need, [offer("a", 4, 10, stock=4), offers[1]], quotas),
        "spread": (msgspec.structs.replace(need, zone_share_max=0.4), offers, quotas),
        "quota": (need, offers, [Quota(Market.ON_DEMAND, 39)]),
        "spending": (msgspec.structs.replace(need, spend_max_fen_per_h=149), offers, quotas),
        "price": (need, [offer("a", 4, 11, stock=5), offers[1]], quotas),
    }
    for what, (other_need, other_offers, other_quotas) in worse.items():
        assert violations(other_need, other_offers, other_quotas, plan), what
    too_high = msgspec.structs.replace(plan, bound_fen_per_h=151)
    assert any("above the cost" in wrong for wrong in violations(need, offers, quotas, too_high))


IN_A_PROCESS = (
    "import sys; from springtide.decide.provision import *; from springtide.model import *;"
    "offers = [Offer('a', 't', Market.SPOT, 4, 4096, 4.0), Offer('b', 't', Market.SPOT, 3, 4096, 3.1)];"
    "{way}(ProvisionNeed(6), offers);"
    "sys.exit('highspy' in sys.modules or 'numpy' in sys.modules)"
)


@pytest.mark.parametrize(("way", "solver"), [("cheapest", 0), ("first_fit", 0), ("provision", 1)])
def test_only_a_plan_loads_the_solver_and_nothing_is_printed(way: str, solver: int) -> None:
    code = IN_A_PROCESS.format(way=way)
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (solver, b"", b"")


def test_a_small_need_takes_spot_where_one_machine_more_makes_its_share_large_enough() -> None:
    prices = (
        ("c7", Market.ON_DEMAND, 81.5),
        ("c7", Market.SPOT, 24.4),
        ("u1", Market.ON_DEMAND, 70.2),
        ("u1", Market.SPOT, 21.0),
    )
    offers = [Offer("cloud-h", kind, market, 4, 8192, price) for kind, market, price in prices]
    bought = cheapest(ProvisionNeed(7, spot_share_max=0.5), offers)
    assert {(one.instance_type, one.market, one.count) for one in bought.purchases} == {
        ("u1", Market.ON_DEMAND, 1),
        ("u1", Market.SPOT, 1),
    }
