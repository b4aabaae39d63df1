"""What would break the plan of an event: each loss that it may meet, by planning again without what is lost."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import msgspec

from springtide.decide.schedule_line import peak_bytes_per_s, usable_bytes_per_s, warm_ms, without_line
from springtide.decide.schedule_spare import ForRent, Planned
from springtide.decide.schedule_steps import LATE_MIN, Dated, Moment, provision_need, ready_ms, timetable
from springtide.model import EventNeed, EventRisk, Offer, Provision, ProvisionNeed, Purchase, Quota

TYPES_MAX = 5
"""So many types, those with the most cores, are taken away one by one; the others matter less."""

Mend = Callable[[Provision, ProvisionNeed, Sequence[Offer], Sequence[Quota]], Provision]
"""What plans again, keeping what can be kept: `repair`."""

WITHIN_MS = 6_000
"""How exactly a delay is found: to a tenth of a minute, as it is told."""

OWN_TYPE = "the machine that each zone has"
"""How a type without a name is called."""

_MS_PER_MIN = 60_000


class Planning(msgspec.Struct, frozen=True):
    """The plan that is looked at, and what it was made of."""

    need: EventNeed
    plan: Planned
    market: ForRent
    now_ms: int
    mend: Mend

    def again(self, market: ForRent, more_cores: int = 0) -> Provision:
        """The purchases without what is lost, for the same cores, the spare ones included."""
        cores = max(self.need.rented_cores, self.plan.provision.cores) + more_cores
        asked = provision_need(self.need, cores)
        return self.mend(self.plan.provision, asked, list(market.offers.values()), self.market.quotas)


def breaks(planning: Planning) -> tuple[EventRisk, ...]:
    """Each zone, each of the largest types and each line taken away, the worst first."""
    found = [*_rooms(planning), *_zones(planning), *_types(planning), *_lines(planning)]
    return tuple(sorted(found, key=lambda risk: (-risk.missing_cores * max(1, risk.late_ms), risk.kind, risk.name)))


def _rooms(planning: Planning) -> Iterator[EventRisk]:
    """A room of the data centre, gone when it is needed: its share has to be rented on top."""
    need = planning.need
    for name, cores in sorted(need.rooms.items()):
        more = msgspec.structs.replace(need, cores=need.cores + cores)
        mended = planning.again(planning.market, cores)
        yield _lost(msgspec.structs.replace(planning, need=more), mended, name, ())


def _zones(planning: Planning) -> Iterator[EventRisk]:
    """A zone of the cloud, gone when it is needed."""
    for zone in sorted({one.zone for one in planning.plan.provision.purchases}):
        mended = planning.again(planning.market.without(zone=zone))
        gone = [one for one in planning.plan.table.dated if one.purchase.zone == zone]
        yield _lost(planning, mended, zone, gone)


def _lost(planning: Planning, mended: Provision, zone: str, gone: Sequence[Dated]) -> EventRisk:
    """It is lost at the moment when it was wanted, and replaced at once."""
    need = planning.need
    kept = [one for one in planning.plan.table.dated if one not in gone]
    missing = max(0, need.rented_cores - sum(one.purchase.cores for one in kept))
    short = max(0, need.rented_cores - mended.cores)
    late_ms = _late_ms(planning, kept, mended, need.wanted_ms + need.odds.spill_ms, short)
    words = [f"zone {zone} lost when it is needed: {missing:,} cores missing"]
    if missing > short:
        words.append(f"replaced {late_ms / _MS_PER_MIN:.1f} min later")
    return _risk(planning, mended, EventRisk("zone", zone, missing, late_ms, short, 0.0, "; ".join(words)))


def _types(planning: Planning) -> Iterator[EventRisk]:
    """A type that no zone has when it is ordered: what is missing is ordered elsewhere at once."""
    cores = Counter[str]()
    for one in planning.plan.provision.purchases:
        cores[one.instance_type] += one.cores
    for name, missing in sorted(cores.items(), key=lambda item: (-item[1], item[0]))[:TYPES_MAX]:
        mended = planning.again(planning.market.without(instance_type=name))
        gone = [one for one in planning.plan.table.dated if one.purchase.instance_type == name]
        kept = [one for one in planning.plan.table.dated if one not in gone]
        asked_ms = max(planning.now_ms, min(one.purchase.order_ms for one in gone)) + planning.need.odds.spill_ms
        short = max(0, planning.need.rented_cores - mended.cores)
        late_ms = _late_ms(planning, kept, mended, asked_ms, short)
        words = [f"{name or OWN_TYPE} out of stock in all zones: {missing:,} cores missing when they are ordered"]
        if missing > short:
            when = f"ready {late_ms / _MS_PER_MIN:.1f} min late" if late_ms else "still ready in time"
            words.append(f"ordered elsewhere, {when}")
        text = "; ".join(words)
        yield _risk(planning, mended, EventRisk("type", name, missing, late_ms, short, 0.0, text))


def _late_ms(planning: Planning, kept: Sequence[Dated], mended: Provision, since_ms: int, short: int) -> int:
    """How long after it was wanted all is ready that can be, what is missing being ordered from `since_ms` on."""
    need = msgspec.structs.replace(planning.need, cores=planning.need.cores - short)
    added = _added(kept, mended)
    table = timetable(need, added, planning.market.offers, LATE_MIN, Moment(need.wanted_ms, since_ms))
    ready = ready_ms(need, [*(one.batch for one in kept), *table.batches], need.wanted_ms, WITHIN_MS)
    if ready is None:  # not with the probability asked for: when all that was ordered should be there
        ready = max((one.ready_ms for one in table.purchases), default=need.wanted_ms)
    return max(0, ready - need.wanted_ms)


def _added(kept: Sequence[Dated], mended: Provision) -> list[Purchase]:
    """What the mended plan buys beyond what is kept."""
    have = {one.purchase.offer_key: one.purchase.count for one in kept}
    more = ((one, one.count - have.get(one.offer_key, 0)) for one in mended.purchases)
    return [
        msgspec.structs.replace(one, count=count, cores=one.cores * count // one.count)
        for one, count in more
        if count > 0
    ]


def _risk(planning: Planning, mended: Provision, risk: EventRisk) -> EventRisk:
    """The risk with what its replacement costs, and what has none."""
    added = max(0.0, mended.cost_fen_per_h - planning.plan.provision.cost_fen_per_h)
    text = risk.text
    if added and risk.missing_cores > risk.short_cores:
        text += f", for {added / 100:,.0f} CNY/h more"
    if risk.short_cores:
        text += f"; {risk.short_cores:,} cores cannot be replaced ({'; '.join(mended.limits) or 'no offer is left'})"
    return msgspec.structs.replace(risk, added_fen_per_h=added, text=text)


def _lines(planning: Planning) -> Iterator[EventRisk]:
    """A line that is down from the first step on: images take longer, and less of the cloud can be used."""
    need = planning.need
    zones = sorted({one.zone for one in planning.plan.provision.purchases})
    for line in need.line.lines:
        left = without_line(need, line.name)
        room, carried = usable_bytes_per_s(left.line.lines), peak_bytes_per_s(need)
        short = _unusable_cores(need, room, carried)
        warm, late_ms = warm_ms(left, zones), 0
        if not left.line.lines or math.isinf(warm):
            short = need.rented_cores
        else:
            late_ms = _late_image_ms(planning, left, planning.plan.table.warm_begin_ms + math.ceil(warm))
        late = f"images are ready {late_ms / _MS_PER_MIN:.1f} min late" if late_ms else "images are still in time"
        words = [
            f"line {line.name} down: {late if short < need.rented_cores else 'nothing reaches the cloud'}",
            f"the peak takes {carried * 8 / 1e9:.1f} of the {room * 8 / 1e9:.1f} Gbit/s that may then be used",
        ]
        if short:
            words.append(f"{short:,} rented cores cannot be used")
        yield EventRisk("line", line.name, short, late_ms, short, 0.0, "; ".join(words))


def _unusable_cores(need: EventNeed, room: float, carried: float) -> int:
    """The rented cores whose requests find no room on the lines that are left."""
    requests = carried - need.line.base_bytes_per_s
    if carried <= room or requests <= 0:
        return 0
    share = max(0.0, room - need.line.base_bytes_per_s) / requests
    return math.ceil(need.rented_cores * (1 - share))


def _late_image_ms(planning: Planning, left: EventNeed, warm_done_ms: int) -> int:
    """How late all is ready, with the image in the caches only then; `left` are the lines that are left."""
    batches = []
    for one in planning.plan.table.dated:
        earliest = warm_done_ms + one.batch.after_ms if left.image.size_bytes else 0
        batches.append(msgspec.structs.replace(one.batch, not_before_ms=max(one.batch.not_before_ms, earliest)))
    ready = ready_ms(left, batches, left.wanted_ms, WITHIN_MS)
    return 0 if ready is None else ready - left.wanted_ms
