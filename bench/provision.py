"""A plan for 100,000 cores over 6 zones × 199 types × 2 markets and an IDC base: time, gap, repair, saving.

The types and their prices come from the CSV file that SPRINGTIDE_BENCH_OFFERS names (columns: instance_type, arch,
vcpu, memory_gib, cny_per_hour, zones); without it from a generated list of the same shape. Stock and spot prices are
drawn from a seed, another one in each run. Every plan is checked by `bench.provision_check`, which shares no code with
the planner; the bench raises if a plan breaks a limit, costs less than the checker's bound, or claims a bound above a
cost that is known.
"""

import csv
import gc
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.provision_check import lower_bound, violations
from bench.rows import Row, Skipped, median_row
from springtide.decide.provision import cheapest, first_fit, provision, repair
from springtide.model import Market, Offer, Provision, ProvisionNeed, Quota, StockLevel

FILE = "SPRINGTIDE_BENCH_OFFERS"
CORES = 100_000
ZONES, TYPES = 6, 199
PLAN_MS_MAX, REPAIR_MS_MAX, GAP_PERCENT_MAX = 1_000.0, 200.0, 0.5
SPOT_SHARE_OF_PRICE = (0.12, 0.6)
NEED = ProvisionNeed(
    CORES,
    replica_cores=4,
    replica_memory_mb=8 * 1024,
    held={"idc-1": 1_000, "idc-2": 1_000, "a": 2_000},
    zone_share_max=0.2,
    spot_share_max=0.3,
    held_spot=0,
)
QUOTAS = (
    Quota(Market.ON_DEMAND, 85_000, used_cores=2_000),
    Quota(Market.ON_DEMAND, 16_000, zone="b"),
    Quota(Market.SPOT, 30_000),
    *(Quota(Market.SPOT, 8_000, zone=zone) for zone in "abcdef"),
)


class Type(msgspec.Struct, frozen=True):
    name: str
    arch: str
    cores: int
    memory_mb: int
    price_fen_per_h: float


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    """The rows of this bench; each run has another draw of stock and spot prices."""
    begun = time.perf_counter()
    provision(ProvisionNeed(4), [Offer("a", "t", Market.ON_DEMAND, 4, 4096, 100.0)])
    loading_ms = (time.perf_counter() - begun) * 1000
    figures: dict[str, list[float]] = defaultdict(list)
    for seed in range(runs):
        for name, value in _one_run(seed).items():
            figures[name].append(value)
    what = f"{CORES:,} cores, {ZONES} zones × {TYPES} types × 2 markets + IDC"
    rows = [
        median_row(f"plan: {what}", "ms", figures["plan_ms"], ceiling=PLAN_MS_MAX),
        median_row("its gap to the bound it proves", "%", figures["gap"], ceiling=GAP_PERCENT_MAX),
        median_row("its gap to the checker's own bound", "%", figures["checked_gap"], ceiling=GAP_PERCENT_MAX),
        median_row("repair after its main type is out of stock", "ms", figures["repair_ms"], ceiling=REPAIR_MS_MAX),
        median_row("what the repaired plan costs above a new one", "%", figures["repair_loss"]),
        median_row("saving against first fit (Karpenter's way)", "%", figures["saving"]),
        median_row("saving against the order of price per replica", "%", figures["saving_by_price"]),
        median_row("cheapest: the same without the solver", "ms", figures["cheapest_ms"]),
        median_row("cheapest: 16 cores more", "ms", figures["small_ms"]),
        median_row("plan: 400 cores more", "ms", figures["medium_ms"]),
        Row("loading the solver, once in a process", loading_ms, "ms"),
    ]
    skipped = [] if os.environ.get(FILE) else [Skipped("a provider's price list", f"{FILE} names no file")]
    return rows, skipped


def _one_run(seed: int) -> dict[str, float]:
    offers = bench_offers(seed)
    plan, plan_ms = _timed(lambda: provision(NEED, offers, QUOTAS))
    by_karpenter, _ = _timed(lambda: first_fit(NEED, offers, QUOTAS))
    by_price, cheapest_ms = _timed(lambda: cheapest(NEED, offers, QUOTAS))
    own_bound = _checked("plan", NEED, offers, plan, (by_karpenter, by_price))
    after = _out_of_stock(offers, _main_type(plan))
    mended, repair_ms = _timed(lambda: repair(plan, NEED, after, QUOTAS))
    anew = provision(NEED, after, QUOTAS)
    _checked("repaired plan", NEED, after, mended, (anew,))
    small, medium = (msgspec.structs.replace(NEED, cores=cores) for cores in (16, 400))
    few, small_ms = _timed(lambda: cheapest(small, offers, QUOTAS))
    some, medium_ms = _timed(lambda: provision(medium, offers, QUOTAS))
    _checked("16 cores", small, offers, few, ())
    _checked("400 cores", medium, offers, some, ())
    return {
        "plan_ms": plan_ms,
        "gap": 100 * plan.gap,
        "checked_gap": 100 * (1 - own_bound / plan.cost_fen_per_h),
        "repair_ms": repair_ms,
        "repair_loss": 100 * (mended.cost_fen_per_h / anew.cost_fen_per_h - 1),
        "saving": 100 * (1 - plan.cost_fen_per_h / by_karpenter.cost_fen_per_h),
        "saving_by_price": 100 * (1 - plan.cost_fen_per_h / by_price.cost_fen_per_h),
        "cheapest_ms": cheapest_ms,
        "small_ms": small_ms,
        "medium_ms": medium_ms,
    }


def _checked(
    what: str, need: ProvisionNeed, offers: list[Offer], plan: Provision, others: tuple[Provision, ...]
) -> float:
    """The checker's own bound; raises if it and the plan, or the plan and what others cost, do not agree."""
    for each in (plan, *others):
        wrong = violations(need, offers, QUOTAS, each)
        if wrong or each.short_cores:
            raise RuntimeError(f"{what}: {'; '.join(wrong) or each.limits}")
        if plan.bound_fen_per_h > each.cost_fen_per_h:
            raise RuntimeError(f"{what}: the bound {plan.bound_fen_per_h} is above a cost of {each.cost_fen_per_h}")
    cost = plan.cost_fen_per_h
    bound = lower_bound(need, offers, QUOTAS, cost)
    if cost < bound:
        raise RuntimeError(f"{what}: it costs {cost}, and no plan can cost less than {bound}")
    if plan.greedy_fen_per_h is not None and cost > plan.greedy_fen_per_h:
        raise RuntimeError(f"{what}: it costs {cost}, and first fit {plan.greedy_fen_per_h}")
    return bound


def bench_offers(seed: int) -> list[Offer]:
    """All types in all zones, on demand and spot, with a stock drawn for each; and two IDC zones of owned machines."""
    chance = random.Random(seed)
    offers = [Offer(f"idc-{n}", "own-64", Market.IDC, 64, 256 * 1024, 0.0, stock=90) for n in (1, 2)]
    for each in _types():
        for zone in "abcdef"[:ZONES]:
            for market in (Market.ON_DEMAND, Market.SPOT):
                factor = chance.uniform(*SPOT_SHARE_OF_PRICE) if market is Market.SPOT else 1.0
                level, stock = _stock(chance)
                price = round(each.price_fen_per_h * factor, 4)
                offers.append(
                    Offer(zone, each.name, market, each.cores, each.memory_mb, price, level, stock, arch=each.arch)
                )
    return offers


def _stock(chance: random.Random) -> tuple[StockLevel, int | None]:
    """A tenth has none, a fifth says "low" and no figure, the rest has 1 to 120 machines, few more often than many."""
    draw = chance.random()
    if draw < 0.1:
        return StockLevel.NONE, None
    if draw < 0.3:
        return StockLevel.LOW, None
    return StockLevel.PLENTY, round(120 ** chance.random())


def _types() -> list[Type]:
    path = os.environ.get(FILE)
    if not path:
        return _generated_types()
    with Path(path).open(newline="", encoding="utf-8") as file:
        return [
            Type(
                line["instance_type"],
                # c8y, g8y, r8y …: the letter names Alibaba's ARM processor, whatever the list says.
                "arm64" if line["instance_type"].split(".")[1].endswith("y") else line["arch"],
                int(line["vcpu"]),
                round(float(line["memory_gib"]) * 1024),
                100 * float(line["cny_per_hour"]),
            )
            for line in csv.DictReader(file)
        ]


def _generated_types() -> list[Type]:
    """29 families of up to 7 sizes, their prices per core around 20 to 35 fen by memory."""
    chance = random.Random(199)
    types: list[Type] = []
    while len(types) < TYPES:
        family = len(types) // 7
        memory_per_core = (1, 2, 4, 8)[family % 4]
        per_core = (15 + 2.5 * memory_per_core) * chance.uniform(0.9, 1.2)
        for cores in (2, 4, 8, 16, 32, 64, 128):
            if len(types) < TYPES:
                price = round(per_core * cores, 4)
                types.append(Type(f"gen.f{family}.{cores}", "amd64", cores, memory_per_core * cores * 1024, price))
    return types


def _main_type(plan: Provision) -> str:
    """The type that most of the rented cores come from."""
    cores: dict[str, int] = defaultdict(int)
    for purchase in plan.purchases:
        if purchase.market is not Market.IDC:
            cores[purchase.instance_type] += purchase.cores
    return max(cores, key=lambda name: (cores[name], name))


def _out_of_stock(offers: list[Offer], instance_type: str) -> list[Offer]:
    return [
        msgspec.structs.replace(offer, stock=0) if offer.instance_type == instance_type else offer for offer in offers
    ]


def _timed(plan: Callable[[], Provision]) -> tuple[Provision, float]:
    gc.collect()
    begun = time.perf_counter()
    answer = plan()
    return answer, (time.perf_counter() - begun) * 1000
