"""How many machines to order beyond what is wanted, where waiting for the last ones costs more or does not suffice."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from springtide.decide.provision import cheapest
from springtide.decide.readiness import is_sure, probability
from springtide.decide.schedule_steps import (
    Moment,
    Timetable,
    arranged,
    cost_fen,
    provision_need,
    ready_ms,
    replicas_wanted,
)
from springtide.model import EventNeed, Market, Offer, Provision, ProvisionNeed, Purchase, Quota

SPARES = (0.0, 0.002, 0.004, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.12, 0.18, 0.25, 0.35, 0.5)
"""The shares that are tried, in this order; a service of few machines passes those that add none."""

WORSE_MAX = 2
"""So many shares in a row without a better plan, and no further ones are tried."""

SOLVED_MAX = 4
"""So many purchases with spare machines are looked for, at most."""

WORTH_MS = 10_000
"""More machines are worth it to a plan that is late if it is then ready sooner by at least this."""

Solve = Callable[[ProvisionNeed, Sequence[Offer], Sequence[Quota]], Provision]
"""What finds the purchases: `provision`, or it with a clock beside it."""

IN_TIME, LATE, NEVER = range(3)
"""What a plan can be, the better first."""

_Rank = tuple[int, float]


class Planned(msgspec.Struct, frozen=True):
    """A provision with its timetable, and how good the two are: the lower, the better."""

    provision: Provision
    table: Timetable
    probability: float
    rank: _Rank


class ForRent(msgspec.Struct, frozen=True):
    """What is for rent: the offers by key, and the account's limits."""

    offers: Mapping[str, Offer]
    quotas: tuple[Quota, ...] = ()

    def without(self, zone: str = "", instance_type: str = "") -> "ForRent":
        """The same without a zone, or without a type."""
        left = {
            key: offer
            for key, offer in self.offers.items()
            if offer.zone != zone and offer.instance_type != instance_type
        }
        return ForRent(left, self.quotas)


def with_spare(need: EventNeed, market: ForRent, moment: Moment, solve: Solve) -> Planned:
    """The cheapest plan that has the probability asked for in time; else the one that is ready first.

    Spare machines are paid from their orders to the end, like all others: some of them replace what fails meanwhile.
    The share is chosen on the purchases for none, enlarged; then the purchases are found anew with it.
    """
    base = solve(provision_need(need, need.rented_cores), list(market.offers.values()), market.quotas)
    moment = msgspec.structs.replace(moment, irreplaceable=irreplaceable(need, base.purchases, market))
    best = planned(need, base, market, moment)
    if base.short_cores or not base.purchases:
        return _begun_late(need, best, market, moment)
    most, solved = base.cores, 0
    for share in _promising(need, base, market, moment):
        cores = math.ceil(need.rented_cores * (1 + share) - 1e-6)
        if cores <= most:  # a plan in whole machines had as many already
            continue
        more = solve(provision_need(need, cores), list(market.offers.values()), market.quotas)
        if more.short_cores:
            break
        tried = planned(need, more, market, moment, best.rank)
        most, solved = max(most, more.cores), solved + 1
        if tried.rank[0] == IN_TIME or solved >= SOLVED_MAX or (best.rank[0] == LATE and tried.rank >= best.rank):
            best = min(best, tried, key=lambda one: one.rank)
            break
        best = min(best, tried, key=lambda one: one.rank)
    return _begun_late(need, best, market, moment)


def _begun_late(need: EventNeed, plan: Planned, market: ForRent, moment: Moment) -> Planned:
    """A plan that is late, dated by the moment when it is ready instead of when it was wanted."""
    if plan.rank[0] != LATE:
        return plan
    begun = msgspec.structs.replace(moment, wanted_ms=round(plan.rank[1]))
    return msgspec.structs.replace(plan, table=arranged(need, plan.provision.purchases, market.offers, begun))


def planned(
    need: EventNeed, provision: Provision, market: ForRent, moment: Moment, known: _Rank | None = None
) -> Planned:
    """Date the purchases of a provision and rank the result: in time by its cost, else by when it is ready.

    What is not ready `WORTH_MS` before a plan that is `known` is only known to be no better.
    """
    table = arranged(need, provision.purchases, market.offers, moment)
    wanted = replicas_wanted(need)
    chance = probability(table.batches, wanted, moment.wanted_ms, need.odds)
    if chance >= need.probability:
        cost = cost_fen(table.purchases, market.offers, need.released_ms)
        return Planned(provision, table, chance, (IN_TIME, cost))
    worth_ms = known[1] - WORTH_MS if known and known[0] == LATE else math.inf
    if worth_ms < math.inf and not is_sure(table.batches, wanted, worth_ms, need.odds, need.probability):
        return Planned(provision, table, chance, (LATE, math.inf))
    ready = ready_ms(need, table.batches, moment.wanted_ms)
    if ready is not None:
        return Planned(provision, table, chance, (LATE, float(ready)))
    return Planned(provision, table, chance, (NEVER, -chance))


def irreplaceable(need: EventNeed, purchases: Sequence[Purchase], market: ForRent) -> frozenset[str]:
    """The offers whose machines nothing could replace, were they out of stock when all others are taken."""
    return frozenset(
        one.offer_key
        for one in purchases
        if cheapest(
            _again(need, purchases, one),
            _left(purchases, market, one),
            _quotas_left(purchases, market, one),
        ).short_cores
    )


def _promising(need: EventNeed, base: Provision, market: ForRent, moment: Moment) -> list[float]:
    """The best share of spare machines, estimated, and those above it, should the purchases turn out differently."""
    best: tuple[_Rank, float] | None = None
    tried: set[int] = set()
    worse = 0
    for share in SPARES:
        enlarged = _enlarged(base, share)
        machines = sum(one.count for one in enlarged.purchases)
        if machines in tried:
            continue
        tried.add(machines)
        rank = planned(need, enlarged, market, moment, best[0] if best else None).rank
        if best is None or rank < best[0]:
            best, worse = (rank, share), 0
        else:
            worse += 1
        if worse >= WORSE_MAX and best[0][0] < NEVER:
            break
    chosen = best[1] if best else 0.0
    return [share for share in SPARES if share >= chosen and share > 0]


def _enlarged(provision: Provision, share: float) -> Provision:
    """More of each purchase, rounded to the nearest machine, and of the largest one as many as are then missing."""
    machines = sum(one.count for one in provision.purchases)
    extra = [round(one.count * share) for one in provision.purchases]
    largest = max(range(len(extra)), key=lambda at: (provision.purchases[at].count, -at))
    extra[largest] += max(0, math.ceil(machines * share - 1e-9) - sum(extra))
    purchases = tuple(
        msgspec.structs.replace(one, count=one.count + more, cores=one.cores * (one.count + more) // one.count)
        for one, more in zip(provision.purchases, extra, strict=True)
    )
    return msgspec.structs.replace(provision, purchases=purchases)


def _again(need: EventNeed, purchases: Collection[Purchase], without: Purchase) -> ProvisionNeed:
    """The cores of one purchase, all the others having been made."""
    held: dict[str, int] = {}
    others = [one for one in purchases if one.offer_key != without.offer_key]
    for one in others:
        held[one.zone] = held.get(one.zone, 0) + one.cores
    spot = sum(one.cores for one in others if one.market is Market.SPOT)
    return msgspec.structs.replace(provision_need(need, without.cores), held=held, held_spot=spot)


def _left(purchases: Collection[Purchase], market: ForRent, without: Purchase) -> list[Offer]:
    """What is for rent when all the other purchases have been made, but for this one's offer."""
    taken = {one.offer_key: one.count for one in purchases}
    return [
        offer
        if offer.stock is None
        else msgspec.structs.replace(offer, stock=max(0, offer.stock - taken.get(offer.key, 0)))
        for offer in market.offers.values()
        if offer.key != without.offer_key
    ]


def _quotas_left(purchases: Collection[Purchase], market: ForRent, without: Purchase) -> list[Quota]:
    found = []
    for quota in market.quotas:
        cores = sum(
            one.count * market.offers[one.offer_key].cores
            for one in purchases
            if one.offer_key != without.offer_key and one.market is quota.market and quota.zone in {"", one.zone}
        )
        found.append(msgspec.structs.replace(quota, used_cores=quota.used_cores + cores))
    return found
