"""When to order what, worked backwards from the moment of an event: calls at their rates, boots, images, replicas."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import msgspec

from springtide.decide.provision_problem import replicas_per_machine
from springtide.decide.readiness import Batch, boot_quantile_ms, is_sure
from springtide.decide.schedule_line import WARM_SAFETY, pull_ms, warm_ms
from springtide.model import ApiLimit, EventNeed, Market, Offer, ProvisionNeed, Purchase

LATE_MIN = 1e-8
"""The smallest share of late boots that is planned for: waiting longer gains nothing that could be measured."""

LATE_MAX = 0.5

BISECTIONS = 12
"""Of a range of shares over eight powers of ten: to within half a percent of the share."""

HORIZON_MS = 24 * 3_600_000
"""What is not ready a day after it was wanted is never ready."""

SECOND_MS = 1000
_MS_PER_H = 3_600_000


class Dated(msgspec.Struct, frozen=True):
    """A purchase with its times, and the same for the probability; the image's share of what follows the boot."""

    purchase: Purchase
    batch: Batch
    pull_ms: float


class Timetable(msgspec.Struct, frozen=True):
    """When everything is ordered, so that all but the share `late` of the machines boot in time.

    The image is copied over the line from `warm_begin_ms` to `warm_done_ms` (both the first order's moment when there
    is nothing to copy).
    """

    dated: tuple[Dated, ...]
    late: float
    begin_ms: int
    ordered_ms: int
    warm_begin_ms: int
    warm_done_ms: int

    @property
    def batches(self) -> list[Batch]:
        """What the probability is computed from."""
        return [one.batch for one in self.dated]

    @property
    def purchases(self) -> tuple[Purchase, ...]:
        """What is ordered, the first order first."""
        return tuple(one.purchase for one in self.dated)


def provision_need(need: EventNeed, cores: int) -> ProvisionNeed:
    """So many cores, as the provisioning wants to be asked for them; what is spent is looked at afterwards."""
    return ProvisionNeed(
        cores=cores,
        hours=(need.lasts_ms + need.release_ms) / _MS_PER_H,
        replica_cores=need.replica_cores,
        replica_memory_mb=need.replica_memory_mb,
        zone_share_max=need.zone_share_max,
        spot_share_max=need.spot_share_max,
        arch=need.arch,
    )


def replicas_wanted(need: EventNeed) -> int:
    """The replicas that rented machines have to run."""
    return math.ceil(need.rented_cores / need.replica_cores - 1e-9)


class Moment(msgspec.Struct, frozen=True):
    """By when all has to be ready, before when nothing can be done, and what cannot be had elsewhere (offer keys)."""

    wanted_ms: int
    now_ms: int
    irreplaceable: frozenset[str] = frozenset()


def order_ms(api: ApiLimit, machines: int, in_all: int) -> float:
    """How long the calls for so many machines take, of `in_all` that the API makes: the calls, or its pace."""
    calls = math.ceil(math.ceil(machines / api.batch) / api.in_flight) * api.call_ms
    pace = 0.0 if in_all <= api.burst else machines / api.per_s * 1000
    return max(calls, pace)


def timetable(
    need: EventNeed, purchases: Sequence[Purchase], offers: Mapping[str, Offer], late: float, moment: Moment
) -> Timetable:
    """Order as late as possible, and not before now, the purchases of each API one after the other."""
    machines = Counter[str]()
    for one in purchases:
        machines[one.zone] += one.count
    pulls = {zone: pull_ms(need, zone, count) for zone, count in machines.items()}
    boots = [boot_quantile_ms(offers[one.offer_key].boot_ms, late) for one in purchases]
    due = [
        moment.wanted_ms - _bounded(boot + pulls[one.zone]) - need.start_ms
        for one, boot in zip(purchases, boots, strict=True)
    ]
    spans = _spans(need.apis, purchases, due, moment.now_ms)
    begin_ms = min((begin for begin, _ in spans), default=moment.now_ms)
    warm = _bounded(warm_ms(need, list(machines)) * WARM_SAFETY)
    warm_begin_ms = max(begin_ms - warm, min(moment.now_ms, begin_ms))
    rows = [
        _dated(need, one, offers[one.offer_key], span, (boot, pulls[one.zone], warm_begin_ms + warm), moment)
        for one, boot, span in zip(purchases, boots, spans, strict=True)
    ]
    return Timetable(
        dated=tuple(sorted(rows, key=lambda row: (row.purchase.order_ms, row.purchase.offer_key))),
        late=late,
        begin_ms=begin_ms,
        ordered_ms=max((end for _, end in spans), default=begin_ms),
        warm_begin_ms=warm_begin_ms,
        warm_done_ms=warm_begin_ms + warm,
    )


def arranged(need: EventNeed, purchases: Sequence[Purchase], offers: Mapping[str, Offer], moment: Moment) -> Timetable:
    """The latest timetable with the probability asked for; the earliest possible where none has it."""
    wanted = replicas_wanted(need)
    best = timetable(need, purchases, offers, LATE_MIN, moment)
    if not is_sure(best.batches, wanted, moment.wanted_ms, need.odds, need.probability):
        return best
    low, high = math.log(LATE_MIN), math.log(LATE_MAX)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        tried = timetable(need, purchases, offers, math.exp(middle), moment)
        if is_sure(tried.batches, wanted, moment.wanted_ms, need.odds, need.probability):
            low, best = middle, tried
        else:
            high = middle
    return best


def ready_ms(need: EventNeed, batches: Sequence[Batch], from_ms: int, within_ms: int = SECOND_MS) -> int | None:
    """When all is ready with the probability asked for, `from_ms` at the earliest, to within `within_ms` too late.

    None: never, that is not within a day.
    """
    wanted = replicas_wanted(need)

    def ready(at_ms: int) -> bool:
        return is_sure(batches, wanted, at_ms, need.odds, need.probability)

    if ready(from_ms):
        return from_ms
    if not any(ready(from_ms + later) for later in (HORIZON_MS // 24, HORIZON_MS)):
        return None
    low, step = from_ms, 32 * SECOND_MS
    while not ready(low + step):
        low, step = low + step, step * 2
        if low > from_ms + HORIZON_MS:
            return None
    high = low + step
    while high - low > within_ms:
        middle = (low + high) // 2
        low, high = (low, middle) if ready(middle) else (middle, high)
    return high


def paid_h(purchase: Purchase, offer: Offer, until_ms: int) -> float:
    """For how many hours a machine is paid, in whole units of its bill."""
    units = math.ceil(max(0, until_ms - purchase.order_ms) / offer.billing_ms)
    return units * offer.billing_ms / _MS_PER_H


def cost_fen(purchases: Sequence[Purchase], offers: Mapping[str, Offer], until_ms: int) -> float:
    """What all machines cost from their orders to `until_ms`."""
    return math.fsum(
        one.count * one.price_fen_per_h * paid_h(one, offers[one.offer_key], until_ms) for one in purchases
    )


def api_of(apis: Sequence[ApiLimit], market: Market) -> ApiLimit | None:
    """The API that machines of a market are ordered by; None has no limit."""
    return next((api for api in apis if market in api.markets), None)


def _spans(
    apis: Sequence[ApiLimit], purchases: Sequence[Purchase], due: Sequence[int], now_ms: int
) -> list[tuple[int, int]]:
    """From when to when each purchase is ordered: backwards from what is due last, then none before now."""
    spans = [(max(now_ms, at), max(now_ms, at)) for at in due]
    for api in apis:
        mine = [at for at, one in enumerate(purchases) if api_of(apis, one.market) is api]
        in_all = sum(purchases[at].count for at in mine)
        end = math.inf
        for at in sorted(mine, key=lambda at: (-due[at], at)):
            takes = math.ceil(order_ms(api, purchases[at].count, in_all))
            end = min(end, due[at])
            spans[at] = (int(end) - takes, int(end))
            end -= takes
        free_ms = now_ms
        for at in sorted(mine, key=lambda at: (spans[at], at)):
            takes = spans[at][1] - spans[at][0]
            begin = max(free_ms, spans[at][0])
            spans[at] = (begin, begin + takes)
            free_ms = begin + takes
    return spans


def _dated(
    need: EventNeed,
    one: Purchase,
    offer: Offer,
    span: tuple[int, int],
    waits: tuple[float, float, int],
    moment: Moment,
) -> Dated:
    boot, pull, warm_done_ms = waits
    after = _bounded(pull) + need.start_ms
    earliest = warm_done_ms + after if need.image.size_bytes else 0
    begin, end = span
    batch = Batch(
        zone=one.zone,
        machines=one.count,
        units=replicas_per_machine(offer, provision_need(need, 0)),
        boot_ms=offer.boot_ms,
        ordered_ms=end,
        after_ms=after,
        not_before_ms=earliest,
        stock_out=need.odds.stock_out(offer.level),
        spill_ms=None if offer.key in moment.irreplaceable else need.odds.spill_ms,
        spot=offer.market is Market.SPOT,
    )
    ready = max(end + _bounded(boot) + after, earliest)
    return Dated(msgspec.structs.replace(one, order_ms=begin, ready_ms=ready), batch, pull)


def _bounded(ms: float) -> int:
    """Whole milliseconds; what never ends ends beyond the horizon."""
    return math.ceil(min(ms, 2 * HORIZON_MS))


def keys_of(purchases: Collection[Purchase]) -> set[str]:
    """The offers that are taken."""
    return {one.offer_key for one in purchases}
