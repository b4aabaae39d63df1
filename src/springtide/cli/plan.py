"""Plans an event, shows the plan, and hands it to a running platform or takes it back."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path

import msgspec
from rich.console import Console

from springtide.cli.plan_json import iso, plan_json
from springtide.cli.platform_link import linked
from springtide.cli.platform_options import Here
from springtide.cli.sale_show import say, say_json
from springtide.config import CalendarSettings
from springtide.config.events import CLOUD, EventFile, load_event
from springtide.console.plan_view import Effort, plan_view
from springtide.decide.provision import provision
from springtide.decide.schedule import Solvers, event_plan
from springtide.drivers.system import SystemClock
from springtide.errors import Refused, UserError
from springtide.model import (
    EventNeed,
    EventPlan,
    Market,
    Offer,
    Provision,
    ProvisionNeed,
    Purchase,
    Quota,
    ZoneKind,
)

SAME_MS = 60_000
"""Moments of an event's file and of a calendar that are no further apart mean the same event."""


@dataclass(frozen=True)
class PlanOptions:
    """What is planned, with whose offers, from when on ("": from now), and whether it is handed over."""

    file: Path
    config: Path | None
    now: str
    apply: bool


class _Timed:
    """`provision` with a clock beside it: how long all calls together took."""

    def __init__(self, clock: SystemClock) -> None:
        self._clock = clock
        self.ms = 0.0

    def __call__(self, need: ProvisionNeed, offers: Sequence[Offer], quotas: Sequence[Quota]) -> Provision:
        began_s = self._clock.monotonic_s()
        found = provision(need, offers, quotas)
        self.ms += (self._clock.monotonic_s() - began_s) * 1000
        return found


async def run_plan(options: PlanOptions, here: Here, environ: Mapping[str, str]) -> int:
    """Plan and show; raises Refused, after the plan was shown, when it must not be carried out."""
    if options.apply and options.now:
        raise UserError("--apply orders when it is time to: leave --now out")
    clock = SystemClock()
    now_ms = parse_moment_ms(options.now) if options.now else clock.now_ms()
    event = load_event(options.file)
    need = event.need()
    offers, quotas = await _for_rent(event, options, here, environ)
    timed, began_s = _Timed(clock), clock.monotonic_s()
    plan = event_plan(need, offers, quotas, now_ms, Solvers(solve=timed))
    effort = Effort(timed.ms, (clock.monotonic_s() - began_s) * 1000)
    zone = event.event.at.tzinfo
    plan = _with_moment(plan, need, zone)
    refusal = Refused(f"the plan of {need.name} is refused: {'; '.join(plan.refused)}") if plan.refused else None
    if options.apply and refusal is None:
        refusal = await _apply(event, plan, here, clock)
    applied = options.apply and refusal is None
    if here.json:
        say_json(plan_json(need, plan, effort, zone, now_ms) | {"applied": applied})
    else:
        Console(markup=False, highlight=False).print(plan_view(need, plan, effort, lambda at_ms: iso(at_ms, zone)))
        if applied:
            say(_applied(plan, here, zone))
    if refusal is not None:
        raise refusal
    return 0


async def run_withdraw(file: Path, here: Here) -> int:
    """Take the plan of an event back. Raises Refused when the platform has none."""
    event = load_event(file).on_calendar
    async with linked(here.data, SystemClock()) as link:
        planned = (await link.state.wishes()).purchases
        if event not in planned:
            known = ", ".join(sorted(planned)) or "none"
            raise Refused(f"no plan of {event} was handed over here; there are: {known}")
        await link.state.wish_purchases(event, None)
    if here.json:
        say_json({"event": event, "applied": False})
    else:
        say(f"{event}: its plan is withdrawn; what was ordered by it is given back when nothing needs it any more")
    return 0


def parse_moment_ms(text: str) -> int:
    """A moment with its offset from UTC. Raises UserError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise UserError(f"--now {text}: give a moment with its offset, such as 2027-11-11T19:30:00+08:00")
    return round(moment.timestamp() * 1000)


async def _for_rent(
    event: EventFile, options: PlanOptions, here: Here, environ: Mapping[str, str]
) -> tuple[list[Offer], tuple[Quota, ...]]:
    """What the file says is for rent, or what the cloud does; quotas in the file go before the cloud's."""
    if event.offers != CLOUD:
        return event.for_rent(), event.quotas()
    from springtide.cli.cloud_view import look  # noqa: PLC0415 - a file with its own offers asks no cloud

    view = await look(here.data, options.config, environ)
    zones = {zone.name for zone in event.zones}
    offers = [one for one in view.cloud.offers if one.market is not Market.IDC and (not zones or one.zone in zones)]
    if not offers:
        raise UserError(f'{options.file}: offers = "cloud", and {view.source} has none in these zones; see `offers`')
    return offers, event.quotas() or tuple(view.cloud.quotas)


async def _apply(event: EventFile, plan: EventPlan, here: Here, clock: SystemClock) -> Refused | None:
    """Hand it over; why that is refused."""
    try:
        async with linked(here.data, clock) as link:
            if said := _not_announced(event, link.settings.config.calendar):
                return Refused(said)
            known = {zone.name for zone in link.settings.config.zones if zone.kind is ZoneKind.CLOUD}
            unknown = sorted({one.zone for one in plan.provision.purchases} - known)
            if unknown:
                return Refused(
                    f"the platform has no cloud zone {unknown[0]}; it has: {', '.join(sorted(known)) or 'none'}. "
                    "Give the zones of the event and of the platform the same names"
                )
            await link.state.wish_purchases(event.on_calendar, needed(event.need(), plan.provision.purchases))
    except Refused as refusal:
        return refusal
    return None


def _not_announced(event: EventFile, calendar: Sequence[CalendarSettings]) -> str:
    """Why the platform does not know of the demand that the machines are for: it would order none of them."""
    name = event.on_calendar
    entries = [one for one in calendar if name in {one.sale, one.service}]
    if not entries:
        known = ", ".join(sorted({one.sale or one.service for one in calendar})) or "nothing"
        return (
            f"the platform's calendar has no {name} (it has: {known}) and would order nothing: add [[calendar]] with "
            f'service = "{name}" or sale = "{name}", or give event.calendar the name that it has'
        )
    dates = [one.at_ms() for one in entries if one.service]
    if dates and all(abs(at_ms - event.at_ms()) > SAME_MS for at_ms in dates):
        at = iso(dates[0], event.event.at.tzinfo)
        return f"the platform's calendar has {name} at {at}, the event's file at {event.event.at.isoformat()}"
    return ""


def needed(need: EventNeed, purchases: Sequence[Purchase]) -> tuple[Purchase, ...]:
    """The purchases with what they are for: from when on, and until when."""
    until_ms = need.at_ms + need.lasts_ms
    return tuple(msgspec.structs.replace(one, needed_ms=need.wanted_ms, needed_until_ms=until_ms) for one in purchases)


def _applied(plan: EventPlan, here: Here, zone: tzinfo | None) -> str:
    purchases = plan.provision.purchases
    if not purchases:
        return f"handed to the platform of {here.data}: nothing has to be ordered"
    orders = "order" if len(purchases) == 1 else "orders"
    first = iso(min(one.order_ms for one in purchases), zone)
    return f"handed to the platform of {here.data}: {len(purchases):,} {orders}, the first at {first}"


def _with_moment(plan: EventPlan, need: EventNeed, zone: tzinfo | None) -> EventPlan:
    """A plan that is late also says when it would be ready."""
    late = plan.probability < need.probability and plan.ready_ms > plan.wanted_ms and not plan.provision.short_cores
    if not late:
        return plan
    said = f"starting now, it is ready at {iso(math.ceil(plan.ready_ms / 1000) * 1000, zone)}"
    return msgspec.structs.replace(plan, refused=(*plan.refused, said))
