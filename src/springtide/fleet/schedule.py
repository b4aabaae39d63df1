"""The purchases that plans of events have scheduled: for the service whose event it is, each under its own token."""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from springtide.decide.names import scheduled_token
from springtide.fleet.split import tag_of
from springtide.model import COUNTER, CalendarEvent, Purchase

UNKNOWN_MS = 2 * 3_600_000
"""An event that is on no calendar is taken to end so long after its last machine is ready."""

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

    An event that is on no calendar is the counter's.
    """
    events = {event.name: (name, event) for name, calendar in calendars.items() for event in calendar}
    found: list[Purchase] = []
    for name, purchases in sorted(planned.items()):
        owner, event = events.get(name, (COUNTER, None))
        if owner != service or not purchases:
            continue
        if event is None:
            begins_ms = ends_ms = max(one.ready_ms for one in purchases) + UNKNOWN_MS
        else:
            begins_ms, ends_ms = event.opens_ms - event.ready_ms, event.opens_ms + event.lasts_ms
        if now_ms >= ends_ms:
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
