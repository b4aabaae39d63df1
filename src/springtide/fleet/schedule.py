"""The purchases that plans of events have scheduled: for the service whose event it is, each under its own token."""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from springtide.decide.names import scheduled_token
from springtide.fleet.split import tag_of
from springtide.model import COUNTER, CalendarEvent, Purchase

UNKNOWN_MS = 2 * 3_600_000
"""An event of which nothing else is known is taken to end so long after its last machine is ready."""

MOVED_MS = 6 * 3_600_000
"""An event of the calendar that is further than this from the plan's is another one of the same name."""

PURCHASES_MAX = 2_000
"""Scheduled purchases that a decision looks at; later ones of a longer plan wait until earlier ones are over."""


def purchases_of(
    service: str,
    planned: Mapping[str, Sequence[Purchase]],
    calendars: Mapping[str, Sequence[CalendarEvent]],
    ordered: Collection[str],
    now_ms: int,
) -> tuple[Purchase, ...]:
    """Those for the service's events that are not over. `ordered` are the tokens of those that were ordered.

    An event's times are those of the calendar, or else the plan's own; one that is on no calendar is the counter's.
    """
    found: list[Purchase] = []
    for name, purchases in sorted(planned.items()):
        if not purchases:
            continue
        owner, begins_ms, ends_ms = _event(name, purchases, calendars)
        if owner != service or now_ms >= ends_ms:
            continue
        for number, purchase in enumerate(purchases):
            token = scheduled_token(tag_of(service), name, number, purchase)
            named = msgspec.structs.replace(
                purchase,
                client_token=token,
                ordered=token in ordered,
                needed_ms=begins_ms,
                needed_until_ms=ends_ms,
            )
            found.append(named)
    found.sort(key=lambda one: (one.order_ms, one.client_token))
    return tuple(found[:PURCHASES_MAX])


def _event(
    name: str, purchases: Sequence[Purchase], calendars: Mapping[str, Sequence[CalendarEvent]]
) -> tuple[str, int, int]:
    """Whose event it is, from when on its capacity is wanted, and when it ends."""
    wanted_ms = max(one.needed_ms or one.ready_ms for one in purchases)
    named = [(service, event) for service, events in calendars.items() for event in events if event.name == name]
    owner = named[0][0] if named else COUNTER
    near = [
        (abs(event.opens_ms - event.ready_ms - wanted_ms), number)
        for number, (_, event) in enumerate(named)
        if abs(event.opens_ms - event.ready_ms - wanted_ms) <= MOVED_MS
    ]
    if near:
        owner, event = named[min(near)[1]]
        return owner, event.opens_ms - event.ready_ms, event.opens_ms + event.lasts_ms
    until_ms = max(one.needed_until_ms for one in purchases) or wanted_ms + UNKNOWN_MS
    # No demand of a calendar will ask for it: it is wanted until its end.
    return owner, until_ms, until_ms
