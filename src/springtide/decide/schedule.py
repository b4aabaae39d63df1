"""The contract of an event: what to rent, when, at what cost, how surely it stands in time, and what would break it.

All is worked backwards from the moment of the event. The steps of the way are `schedule_steps`, the spare machines
`schedule_spare`, the losses `schedule_risks`, the probability `readiness`, and the purchases `provision`.
"""

import math
from collections.abc import Iterator, Sequence

import msgspec

from springtide.decide.provision import provision, repair
from springtide.decide.readiness import boot_quantile_ms, boot_share
from springtide.decide.schedule_line import peak_share, pull_ms, warm_ms
from springtide.decide.schedule_risks import Mend, Planning, breaks
from springtide.decide.schedule_spare import ForRent, Planned, Solve, with_spare
from springtide.decide.schedule_steps import Moment, cost_fen, ready_ms
from springtide.model import EventNeed, EventPlan, Milestone, Offer, Provision, Purchase, Quota

SHOWN_MIN = 1e-4
"""A smaller share of machines is not spoken of."""

_MS_PER_MIN = 60_000


class Solvers(msgspec.Struct, frozen=True):
    """What finds purchases, and what mends them when something is lost."""

    solve: Solve = provision
    mend: Mend = repair


def event_plan(
    need: EventNeed, offers: Sequence[Offer], quotas: Sequence[Quota], now_ms: int, solvers: Solvers | None = None
) -> EventPlan:
    """The plan for an event, with the reasons why it must not be carried out, if there are any.

    Where the quotas are too small, it is the plan that larger ones would allow; where stock is, it falls short by
    `provision.short_cores`, and its probability is 0.
    """
    solvers = solvers or Solvers()
    market = ForRent({offer.key: offer for offer in offers}, tuple(quotas))
    moment = Moment(need.wanted_ms, now_ms)
    plan = with_spare(need, market, moment, solvers.solve)
    missing: list[str] = []
    if plan.provision.short_cores and quotas:
        free = with_spare(need, ForRent(market.offers), moment, solvers.solve)
        if free.provision.short_cores < plan.provision.short_cores:
            plan, missing = free, _missing_quotas(free.provision, market)
    cost = cost_fen(plan.table.purchases, market.offers, need.released_ms)
    ready = ready_ms(need, plan.table.batches, max(now_ms, plan.table.begin_ms))
    if ready is not None and plan.probability >= need.probability:
        ready = min(ready, need.wanted_ms)  # it is found to the second
    found = breaks(Planning(need, plan, market, now_ms, solvers.mend)) if plan.provision.purchases else ()
    result = EventPlan(
        event=need.name,
        cores=need.rented_cores,
        wanted_ms=need.wanted_ms,
        ready_ms=_ready_at_best(plan) if ready is None else ready,
        probability=plan.probability,
        hours=cost / plan.provision.cost_fen_per_h if plan.provision.cost_fen_per_h else 0.0,
        provision=msgspec.structs.replace(plan.provision, purchases=plan.table.purchases),
        milestones=tuple(_milestones(need, plan, market, missing)),
        risks=tuple(risk.text for risk in found if risk.missing_cores or risk.kind == "line"),
        cost_fen=cost,
        spare_cores=max(0, plan.provision.cores - need.rented_cores),
        breaks=found,
        line_share=peak_share(need),
    )
    refused = tuple(_refusals(need, result, plan, missing, never=ready is None))
    return msgspec.structs.replace(result, refused=refused)


def _ready_at_best(plan: Planned) -> int:
    """When the last machine should be ready, where there is no moment with the probability asked for."""
    return max((one.ready_ms for one in plan.table.purchases), default=plan.table.begin_ms)


def _missing_quotas(found: Provision, market: ForRent) -> list[str]:
    words = []
    for quota in market.quotas:
        cores = sum(
            one.count * market.offers[one.offer_key].cores
            for one in found.purchases
            if one.market is quota.market and quota.zone in {"", one.zone}
        )
        left = quota.limit_cores - quota.used_cores
        if cores > left:
            where = f"in {quota.zone}" if quota.zone else "in all zones"
            words.append(f"{quota.market} {where}: {cores:,} cores, {max(0, left):,} are left of {quota.limit_cores:,}")
    return words


def _refusals(
    need: EventNeed, plan: EventPlan, found: Planned, missing: Sequence[str], *, never: bool
) -> Iterator[str]:
    per_h = plan.provision.cost_fen_per_h
    if plan.provision.short_cores:
        why = "; ".join(plan.provision.limits) or "there are no more offers"
        yield f"{plan.provision.short_cores:,} of {plan.cores:,} cores cannot be had: {why}"
    if missing:
        yield f"the quota is too small ({'; '.join(missing)}): have it raised, then plan again"
    if need.spend_max_fen_per_h and per_h > need.spend_max_fen_per_h:
        yield (
            f"it costs {_cny(per_h)} CNY/h, and {_cny(need.spend_max_fen_per_h)} may be spent: "
            "raise limits.spend_cny_per_h, or ask for less"
        )
    if need.spend_max_fen and plan.cost_fen > need.spend_max_fen:
        yield (
            f"it costs {_cny(plan.cost_fen)} CNY, and {_cny(need.spend_max_fen)} may be spent: "
            "raise limits.spend_cny, or ask for less"
        )
    yield from _line_refusals(need, found.table.purchases)
    if plan.provision.short_cores or plan.probability >= need.probability:
        return
    if never:
        yield (
            f"at best it is ready in time with probability {plan.probability:.9g}, and {need.probability:.9g} is asked "
            "for: allow more zones and types, a smaller spot share, or more cores than are for rent here"
        )
    else:
        yield (
            f"too late: begun now, it is ready with probability {need.probability:g} "
            f"{(plan.ready_ms - plan.wanted_ms) / _MS_PER_MIN:.1f} min after it is wanted"
        )


def _line_refusals(need: EventNeed, purchases: Sequence[Purchase]) -> Iterator[str]:
    if not purchases:
        return
    zones = sorted({one.zone for one in purchases})
    if math.isinf(warm_ms(need, zones)) or any(math.isinf(pull_ms(need, zone, 1)) for zone in zones):
        yield "the image finds no room on the line: add a line, raise share_max, or bake the image into the machine's"
    usable = min((line.share_max for line in need.line.lines), default=1.0)
    share = peak_share(need)
    if share > usable:
        of = "there is no line" if math.isinf(share) else f"the line would be used to {share:.0%}, {usable:.0%} may be"
        yield f"{of}: add a line, or serve less in the cloud"


def _milestones(need: EventNeed, plan: Planned, market: ForRent, missing: Sequence[str]) -> Iterator[Milestone]:
    """The way to the event, step by step: none begins before what it needs has begun, nor ends before it."""
    table = plan.table
    if not table.dated:
        return
    asked = f"probability {need.probability:g}"
    if missing:
        by_ms = table.warm_begin_ms
        yield Milestone("quota", by_ms - need.quota_ms, by_ms, f"raise the quota: {'; '.join(missing)}")
    if table.warm_done_ms > table.warm_begin_ms:
        size = need.image.size_bytes / 1e6
        reason = f"{size:,.0f} MB once over the line into each cache, before anything boots"
        yield Milestone("warm caches", table.warm_begin_ms, table.warm_done_ms, reason)
    machines = sum(one.batch.machines for one in table.dated)
    yield Milestone("rent", table.begin_ms, table.ordered_ms, f"{machines:,} machines, in batches at the API's rates")
    first = min(one.purchase.order_ms for one in table.dated)
    booted = max(one.batch.ordered_ms + _boot_ms(one.purchase, market, table.late) for one in table.dated)
    late = max(_late_share(one.purchase, market, table.late) for one in table.dated)
    share = f"all but {late:.2%} of the machines" if late >= SHOWN_MIN else "all machines"
    yield Milestone("boot", first, booted, f"{share} are up, for {asked} with {_spare(need, plan)}")
    done = booted
    if any(one.pull_ms for one in table.dated):
        begin = max(table.warm_done_ms, first)
        done = max(booted, *(one.purchase.ready_ms - need.start_ms for one in table.dated))
        yield Milestone("pull images", begin, done, "from the caches of each zone, as its machines come up")
    ready = max(done + need.start_ms, *(one.purchase.ready_ms for one in table.dated))
    yield Milestone("start replicas", done, ready, f"{need.start_ms / 1000:g} s each")
    yield Milestone("traffic", ready, max(ready, need.at_ms), "the balancers give the new replicas their share")
    until_ms = need.at_ms + need.lasts_ms
    yield Milestone("event", need.at_ms, until_ms, f"{need.cores:,} cores, {need.rented_cores:,} of them rented")
    yield Milestone("release", until_ms, need.released_ms, "cloud first: drained, stopped, given back")


def _boot_ms(purchase: Purchase, market: ForRent, late: float) -> int:
    return math.ceil(boot_quantile_ms(market.offers[purchase.offer_key].boot_ms, late))


def _late_share(purchase: Purchase, market: ForRent, late: float) -> float:
    """The share of machines that are still booting then: none where all take equally long."""
    boot_ms = market.offers[purchase.offer_key].boot_ms
    return 1.0 - boot_share(boot_ms, boot_quantile_ms(boot_ms, late) + 1)


def _spare(need: EventNeed, plan: Planned) -> str:
    spare = plan.provision.cores - need.rented_cores
    return f"{spare:,} cores to spare ({spare / need.rented_cores:.1%})" if spare > 0 else "none to spare"


def _cny(fen: float) -> str:
    return f"{fen / 100:,.2f}"
