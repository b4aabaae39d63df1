"""A second opinion on a purchase plan: is it allowed, and how cheap could any plan be?

Shares no code with `springtide.decide.provision`, only the values of `springtide.model`. Everything is derived again
from the raw offers, in cores instead of replicas. The bound is that of the linear relaxation from below: its Lagrangian
dual, whose inner problem is a fractional knapsack, climbed by Polyak's subgradient steps, deflected as Camerini, Fratta
and Maffioli do (1975). Any multipliers give a valid bound (weak duality), so nothing rests on the steps or on a solver;
numpy only sorts and sums.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from springtide.model import Market, Offer, Provision, ProvisionNeed, Quota

MACHINES = {"WithStock": 1_000, "ClosedWithStock": 10, "WithoutStock": 0, "ClosedWithoutStock": 0}
"""What a level of stock stands for, where no figure is known; as the handbook says."""

STEPS = 1_500
SLACK = 1e-6

Figures = NDArray[np.float64]


def stock_of(offer: Offer) -> int:
    return max(0, offer.stock) if offer.stock is not None else MACHINES[offer.level.value]


def used_of(offer: Offer, need: ProvisionNeed) -> float:
    """Cores of a machine that whole replicas use; 0 where none fits or may run."""
    if offer.arch not in need.arch:
        return 0.0
    whole = math.floor(offer.cores / need.replica_cores + SLACK)
    if need.replica_memory_mb:
        whole = min(whole, offer.memory_mb // need.replica_memory_mb)
    return whole * need.replica_cores


def violations(need: ProvisionNeed, offers: Sequence[Offer], quotas: Sequence[Quota], plan: Provision) -> list[str]:
    """All that is wrong with a plan: limits that are exceeded, figures that do not add up."""
    wrong: list[str] = []
    by_key = {offer.key: offer for offer in offers}
    bought: dict[str, float] = defaultdict(float)
    cost = spot = 0.0
    whole: dict[tuple[Market, str], int] = defaultdict(int)
    keys = [purchase.offer_key for purchase in plan.purchases]
    if len(keys) != len(set(keys)):
        wrong.append("an offer is bought twice")
    for purchase in plan.purchases:
        offer = by_key.get(purchase.offer_key)
        if offer is None:
            wrong.append(f"{purchase.offer_key} is not on offer")
            continue
        if not 0 < purchase.count <= stock_of(offer):
            wrong.append(f"{offer.key}: {purchase.count} machines of {stock_of(offer)}")
        if purchase.price_fen_per_h != offer.price_fen_per_h:
            wrong.append(f"{offer.key}: another price")
        used = used_of(offer, need) * purchase.count
        if used <= 0:
            wrong.append(f"{offer.key}: no replica runs there")
        if abs(used - purchase.cores) >= 1 + SLACK:
            wrong.append(f"{offer.key}: {used} cores, and {purchase.cores} are said")
        bought[offer.zone] += used
        spot += used if offer.market is Market.SPOT else 0.0
        whole[offer.market, offer.zone] += offer.cores * purchase.count
        cost += offer.price_fen_per_h * purchase.count
    return (
        wrong + _shares(need, bought, spot) + _quotas(quotas, whole) + _figures(need, plan, sum(bought.values()), cost)
    )


def _shares(need: ProvisionNeed, bought: dict[str, float], spot: float) -> list[str]:
    everything = sum(need.held.values()) + sum(bought.values())
    wrong = [
        f"zone {zone}: {need.held.get(zone, 0) + cores} cores of {everything}"
        for zone, cores in bought.items()
        if need.zone_share_max < 1 and need.held.get(zone, 0) + cores > need.zone_share_max * everything + 1e-4
    ]
    of, held = (sum(bought.values()), 0) if need.held_spot is None else (everything, need.held_spot)
    if spot and need.spot_share_max < 1 and held + spot > need.spot_share_max * of + 1e-4:
        wrong.append(f"spot: {held + spot} cores of {of}")
    return wrong


def _quotas(quotas: Sequence[Quota], whole: dict[tuple[Market, str], int]) -> list[str]:
    wrong = []
    for quota in quotas:
        cores = sum(
            count for (market, zone), count in whole.items() if market is quota.market and quota.zone in {"", zone}
        )
        if cores > max(0, quota.limit_cores - quota.used_cores):
            wrong.append(f"quota {quota}: {cores} cores bought")
    return wrong


def _figures(need: ProvisionNeed, plan: Provision, cores: float, cost: float) -> list[str]:
    said = {
        "cores": (plan.cores, math.floor(cores + SLACK)),
        "cores of all purchases": (sum(purchase.cores for purchase in plan.purchases), plan.cores),
        "short": (plan.short_cores, max(0, need.cores - plan.cores)),
        "cost": (plan.cost_fen_per_h, cost),
        "gap": (plan.gap, (cost - plan.bound_fen_per_h) / cost if cost else 0.0),
    }
    wrong = [
        f"{name}: {figure} is said, and it is {true}"
        for name, (figure, true) in said.items()
        if not math.isclose(figure, true, rel_tol=SLACK, abs_tol=SLACK)
    ]
    if plan.bound_fen_per_h > plan.cost_fen_per_h:
        wrong.append(f"the bound {plan.bound_fen_per_h} is above the cost {plan.cost_fen_per_h}")
    if need.spend_max_fen_per_h and cost > need.spend_max_fen_per_h * (1 + SLACK):
        wrong.append(f"{cost} fen per hour of {need.spend_max_fen_per_h}")
    if bool(plan.limits) != bool(plan.short_cores):
        wrong.append("limits are named where nothing is short, or none where something is")
    return wrong


def lower_bound(need: ProvisionNeed, offers: Sequence[Offer], quotas: Sequence[Quota], known_cost: float) -> float:
    """Fen per hour that no plan for the whole need can cost less than; `known_cost` is of some plan that fills it."""
    usable = [offer for offer in offers if used_of(offer, need) > 0 and stock_of(offer) > 0]
    price = np.array([offer.price_fen_per_h for offer in usable])
    cores = np.array([used_of(offer, need) for offer in usable])
    stock = np.array([float(stock_of(offer)) for offer in usable])
    wanted = math.ceil(need.cores / need.replica_cores - SLACK) * need.replica_cores
    weights, bases = _rows(need, usable, quotas, wanted)
    if not len(bases):
        return _knapsack(price, cores, stock, wanted)[0]
    prices = best_prices = step = np.zeros(len(bases))
    best, stretch = 0.0, 1.0
    for _ in range(STEPS):
        value, machines = _knapsack(price + prices @ weights, cores, stock, wanted)
        value -= float(prices @ bases)
        if value < -known_cost:  # Thrown far off: back to the best, and shorter steps from there.
            prices, step, stretch = best_prices, np.zeros(len(bases)), stretch / 2
            continue
        if value > best:
            best, best_prices = value, prices
        slope = weights @ machines - bases
        slope[(prices <= 0) & (slope < 0)] = 0.0
        steep = float(slope @ slope)
        if steep <= SLACK**2 or best >= known_cost:
            break
        # The step before keeps its part where the new slope turns back against it.
        length = float(step @ step)
        step = slope - 1.5 * min(0.0, float(slope @ step)) / length * step if length else slope
        if (length := float(step @ step)) < steep / 100:
            step, length = slope, steep
        prices = np.maximum(0.0, prices + stretch * (known_cost - value) / length * step)
    return best * (1 - 1e-9)


def _knapsack(price: Figures, cores: Figures, stock: Figures, wanted: float) -> tuple[float, Figures]:
    """The least cost of so many cores or more in fractions of machines, and the machines; prices may be negative."""
    order = np.argsort(price / cores, kind="stable")
    free = price[order] < 0
    filled = np.cumsum(cores[order] * stock[order])
    before = filled - cores[order] * stock[order]
    part = np.clip((wanted - before) / cores[order], 0.0, stock[order])
    part[free] = stock[order][free]
    machines = np.zeros_like(price)
    machines[order] = part
    if wanted > SLACK and (not len(filled) or filled[-1] < wanted - SLACK):
        return math.inf, machines
    return float(price @ machines), machines


def _rows(
    need: ProvisionNeed, usable: Sequence[Offer], quotas: Sequence[Quota], wanted: float
) -> tuple[Figures, Figures]:
    """Weights and right sides of: quotas, spread, spot, spending. A zone that is full from the start has no row.

    (Such a zone gets nothing in a plan; without a row it is bought from freely here, which only lowers the bound.)
    """
    rows: list[list[float]] = []
    bases: list[float] = []

    def row(base: float, values: list[float]) -> None:
        rows.append(values)
        bases.append(base)

    held = float(sum(need.held.values()))
    for quota in quotas:
        taken = [offer.market is quota.market and quota.zone in {"", offer.zone} for offer in usable]
        left = max(0, quota.limit_cores - quota.used_cores)
        row(left, [float(offer.cores) if its else 0.0 for offer, its in zip(usable, taken, strict=True)])
    share = need.zone_share_max
    for zone in sorted({offer.zone for offer in usable}) if share < 1 else []:
        base = share * held - need.held.get(zone, 0)
        if base + share * wanted > 0:
            row(base, [used_of(offer, need) * ((offer.zone == zone) - share) for offer in usable])
    share = need.spot_share_max
    if share < 1:
        base = 0.0 if need.held_spot is None else share * held - need.held_spot
        if base + share * wanted >= 0:
            row(base, [used_of(offer, need) * ((offer.market is Market.SPOT) - share) for offer in usable])
    if need.spend_max_fen_per_h:
        # On the scale of cores, as all others are.
        scale = wanted / need.spend_max_fen_per_h
        row(wanted, [scale * offer.price_fen_per_h for offer in usable])
    weights: Any = np.array(rows, dtype=np.float64).reshape(len(rows), len(usable))
    return weights, np.array(bases, dtype=np.float64)
