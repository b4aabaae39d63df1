"""What to rent for the cores that are wanted: the cheapest purchases within all limits, with a proven bound.

`provision` asks the solver (HiGHS) and is for plans; `repair` mends such a plan when stock has changed; `cheapest` does
without the solver and is for a tick; `first_fit` is how others do it, to compare with. All four keep every limit, have
the same answer for the same input in whatever order, and buy the most that can be had when the need cannot be met:
first as many cores as possible, then at the least cost.

Cores are counted as used: whole replicas only. Spread and spot share are of cores used, held and bought together (a
zone that holds its share of them already gets nothing); quotas count all cores of a machine. Where the stock of an
offer is not known, its level stands for a figure (`STOCK_OF_LEVEL`).
"""

import math
from collections.abc import Iterable, Sequence

from springtide.decide.provision_greedy import (
    by_fit,
    by_price,
    by_price_fill,
    fill,
    karpenter_fill,
    reached,
    trimmed,
)
from springtide.decide.provision_limits import limits
from springtide.decide.provision_problem import EPSILON, ROUNDING, Problem, build
from springtide.decide.provision_solve import GAP, closed_at, most, most_whole, relax, search
from springtide.model import Offer, Provision, ProvisionNeed, Purchase, Quota

SMALL_COLUMNS = 200
"""With so many offers at most, `cheapest` also looks at what a little more than the need would be made of."""

SMALL_TRIES = 5
"""How many such looks: at 1, 2, 4, 8 and 16 replicas more."""


def provision(need: ProvisionNeed, offers: Sequence[Offer], quotas: Sequence[Quota] = ()) -> Provision:
    """The cheapest purchases for a need, never dearer than `first_fit`. Raises ValueError (a replica without a size).

    The relaxation in fractions of machines proves the bound and is rounded; where the two are more than `GAP` apart,
    as with small needs, a search in whole machines follows, limited in nodes.
    """
    problem = build(need, offers, quotas)
    greedy = reached(problem, karpenter_fill)
    candidates = [greedy, _by_price(problem)]
    counts, bound = _planned(problem, candidates)
    return _result(problem, counts, bound, greedy)


def first_fit(need: ProvisionNeed, offers: Sequence[Offer], quotas: Sequence[Quota] = ()) -> Provision:
    """First-fit-decreasing with prices, as Karpenter does it: what `provision` is compared with.

    Karpenter sorts pods by size, packs them first-fit onto a node that is still open to every type, until no type that
    can be had takes one more, and launches the cheapest type that takes all of them; a type that is out of stock is not
    tried again (`pkg/controllers/provisioning/scheduling` of sigs.k8s.io/karpenter; designs/bin-packing.md). Replicas
    are equal here, so each node is of the largest size to be had, at the lowest price for that size, and the last one
    is the cheapest that takes what is left. Own machines are filled first, as a scheduler fills the nodes that exist.
    """
    problem = build(need, offers, quotas)
    greedy = reached(problem, karpenter_fill)
    return _result(problem, greedy, _bound_by_price(problem, problem.replicas(greedy)), greedy)


def cheapest(need: ProvisionNeed, offers: Sequence[Offer], quotas: Sequence[Quota] = ()) -> Provision:
    """By price of a replica, with the best last machine, in a few ms: what a tick calls when replicas lack nodes.

    The bound is that of stock and price alone, so the gap says little where quotas or spread bind.
    """
    problem = build(need, offers, quotas)
    counts = _by_price(problem)
    return _result(problem, counts, _bound_by_price(problem, problem.replicas(counts)), None)


def repair(before: Provision, need: ProvisionNeed, offers: Sequence[Offer], quotas: Sequence[Quota] = ()) -> Provision:
    """The whole plan for a need as things are now, which keeps what of `before` can still be had.

    Only what is missing is bought elsewhere, as cheaply as the relaxation finds; there is no search in whole machines,
    so it is quick. The plan is made anew only where more cores can be had without what was kept.
    """
    problem = build(need, offers, quotas)
    kept = _kept(problem, before)
    target = problem.target
    filled = fill(problem, target, by_price(problem), start=kept)
    free = relax(problem, target)
    if free is not None:
        plans = [kept, filled]
        if problem.replicas(kept) < target and (around := relax(problem, target, kept)) is not None:
            plans += _rounded(problem, target, around.machines)
        mended = _best(problem, target, plans)
        if mended is None:
            plans = [reached(problem, by_price_fill), *_rounded(problem, target, free.machines)]
            mended = _best(problem, target, plans)
        if mended is not None:
            return _result(problem, mended, free.bound, None)
    counts, bound = _planned(problem, [reached(problem, by_price_fill), kept, filled])
    cores = problem.cores(problem.replicas(counts))
    for plan in (kept, filled):
        if problem.feasible(plan) and problem.cores(problem.replicas(plan)) >= cores:
            return _result(problem, trimmed(problem, problem.needed(cores), plan), bound, None)
    return _result(problem, counts, bound, None)


def _by_price(problem: Problem) -> Sequence[int]:
    """The fill by price; among few offers that of a little more than the need, where it is cheaper."""
    counts = reached(problem, by_price_fill)
    if len(problem.columns) > SMALL_COLUMNS or problem.replicas(counts) < problem.target:
        return counts
    # One machine more may be what lets a share hold a cheaper one.
    beyond = [by_price_fill(problem, problem.target + 2**doubling) for doubling in range(SMALL_TRIES)]
    return _best(problem, problem.target, [counts, *beyond]) or counts


def _planned(problem: Problem, candidates: Iterable[Sequence[int]]) -> tuple[Sequence[int], float]:
    """The best plan for the need, or for the most of it that can be had, and the bound of its cost."""
    candidates = list(candidates)
    planned = _optimal(problem, problem.target, candidates)
    if planned is not None:
        return planned
    best = _largest(problem, candidates)
    for relaxed in most(problem):
        if problem.replicas(best) >= math.floor(relaxed.replicas):
            break
        plans = [*_rounded(problem, math.floor(relaxed.replicas), relaxed.machines), best]
        best = _largest(problem, plans)
        if problem.replicas(best) < math.floor(relaxed.replicas):
            found = most_whole(problem, relaxed, best)
            best = _largest(problem, [best, *([found] if found else [])])
            if not found:
                continue
        break
    replicas = problem.replicas(best)
    fewest = problem.needed(problem.cores(replicas))
    if closed_at(problem, fewest) == closed_at(problem, replicas):
        replicas = fewest  # as many whole cores, where a replica takes part of one
    planned = _optimal(problem, replicas, [*candidates, best])
    return planned if planned is not None else (best, 0.0)


def _optimal(problem: Problem, target: int, candidates: Sequence[Sequence[int]]) -> tuple[Sequence[int], float] | None:
    """The cheapest plan for so many replicas, given some, and the bound of its cost; None: none was found."""
    if target <= 0:
        return [0] * len(problem.columns), 0.0
    relaxed = relax(problem, target)
    if relaxed is None:
        return None
    best = _best(problem, target, [*candidates, *_rounded(problem, target, relaxed.machines)])
    if best is not None and problem.cost(best) - relaxed.bound <= GAP * problem.cost(best):
        return best, relaxed.bound
    searched = search(problem, target, relaxed, best)
    plans = [plan for plan in (best, searched.machines) if plan is not None]
    best = _best(problem, target, plans)
    return None if best is None else (best, searched.bound)


def _rounded(problem: Problem, target: int, machines: Sequence[float]) -> list[Sequence[int]]:
    """A plan in fractions, rounded down and filled up by price; where a quota leaves too little for that, by fit."""
    start = [
        min(column.stock, math.floor(count + EPSILON)) for column, count in zip(problem.columns, machines, strict=True)
    ]
    by_price_filled = fill(problem, target, by_price(problem), start=start)
    if problem.replicas(by_price_filled) >= target:
        return [by_price_filled]
    return [by_price_filled, fill(problem, target, by_fit(problem), start=start)]


def _kept(problem: Problem, before: Provision) -> Sequence[int]:
    """What of a plan can still be had within all limits and is needed; where not all can, the cheapest first."""
    planned = {purchase.offer_key: purchase.count for purchase in before.purchases}
    limit = [min(column.stock, planned.get(column.offer.key, 0)) for column in problem.columns]
    if problem.feasible(limit):
        return trimmed(problem, problem.target, limit)
    return fill(problem, problem.target, by_price(problem), limit=limit)


def _best(problem: Problem, target: int, plans: Iterable[Sequence[int]]) -> Sequence[int] | None:
    """The cheapest plan that has so many replicas and keeps the limits; of equal ones that with the fewest machines."""
    meeting = [
        trimmed(problem, target, plan) for plan in plans if problem.replicas(plan) >= target and problem.feasible(plan)
    ]
    return min(meeting, key=lambda plan: (round(problem.cost(plan), 3), sum(plan), plan), default=None)


def _largest(problem: Problem, plans: Iterable[Sequence[int]]) -> Sequence[int]:
    feasible = [plan for plan in plans if problem.feasible(plan)]
    return max(feasible, key=problem.replicas, default=[0] * len(problem.columns))


def _bound_by_price(problem: Problem, target: int) -> float:
    """What so many replicas cost at least, by stock and price alone: the cheapest first, in fractions of machines."""
    left, cost = target, 0.0
    for column in sorted(problem.columns, key=lambda column: column.price / column.replicas):
        if left <= 0:
            break
        replicas = min(left, column.stock * column.replicas)
        cost += replicas * column.price / column.replicas
        left -= replicas
    return cost * (1 - ROUNDING)


def _result(problem: Problem, counts: Sequence[int], bound: float, greedy: Sequence[int] | None) -> Provision:
    """`greedy` counts if it has as many replicas as the plan."""
    purchases: list[Purchase] = []
    replicas = 0
    for column, count in zip(problem.columns, counts, strict=True):
        if not count:
            continue
        offer = column.offer
        before, replicas = replicas, replicas + count * column.replicas
        # Differences of running sums: where a replica takes part of a core, the purchases still add up to the whole.
        cores = problem.cores(replicas) - problem.cores(before)
        purchases.append(Purchase(offer.zone, offer.instance_type, offer.market, count, cores, offer.price_fen_per_h))
    cost = problem.cost(counts)
    bound = min(bound, cost)
    target = min(problem.target, replicas)
    greedy_cost = None
    if greedy is not None and problem.replicas(greedy) >= target:
        greedy_cost = problem.cost(greedy)
    cores = problem.cores(replicas)
    short = max(0, problem.need.cores - cores)
    return Provision(
        tuple(purchases),
        cores,
        cost,
        bound,
        (cost - bound) / cost if cost > 0 else 0.0,
        greedy_cost,
        short,
        limits(problem, counts) if short else (),
    )
