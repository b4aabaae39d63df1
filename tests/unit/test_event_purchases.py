"""What plans of events have scheduled, as a decision on a service sees it."""

from collections.abc import Collection

import msgspec

from springtide.decide.names import LETTERS_MAX, client_token, is_scheduled, scheduled_token
from springtide.fleet.desk import Desk, ListMemory
from springtide.fleet.schedule import UNKNOWN_MS, purchases_of
from springtide.fleet.split import owners
from springtide.model import COUNTER, CalendarEvent, Market, Node, NodeState, Purchase, RentNodes
from tests.unit.fleets import NOW, POLICY, A, B, H, snapshot

LIVE = CalendarEvent("live", NOW + 3_600_000, 600_000, 1_000.0, 60_000)
CALENDARS = {"web": (LIVE,)}
FIRST = Purchase("cloud-h", "c.large", Market.ON_DEMAND, 3, 24, 80.0, NOW + 10, NOW + 60_000)
SECOND = msgspec.structs.replace(FIRST, market=Market.SPOT, order_ms=NOW)
PLANS = {"live": (FIRST, SECOND), "elsewhere": (FIRST,)}


def of(service: str, ordered: Collection[str] = (), now_ms: int = NOW) -> tuple[Purchase, ...]:
    return purchases_of(service, PLANS, CALENDARS, ordered, now_ms)


def test_they_are_the_services_whose_event_it_is_by_the_time_of_their_orders() -> None:
    found = of("web")
    assert [(one.market, one.ordered) for one in found] == [(Market.SPOT, False), (Market.ON_DEMAND, False)]
    assert {(one.needed_ms, one.needed_until_ms) for one in found} == {(NOW + 3_540_000, NOW + 4_200_000)}
    assert of("api") == ()


def test_an_event_on_no_calendar_is_the_counters_for_some_hours() -> None:
    (one,) = of(COUNTER)
    assert one.needed_until_ms == FIRST.ready_ms + UNKNOWN_MS
    assert of(COUNTER, now_ms=one.needed_until_ms) == ()


def test_the_plans_own_times_count_where_the_calendar_has_another_day_only() -> None:
    until_ms = NOW + 5_000_000
    own = tuple(msgspec.structs.replace(one, needed_ms=NOW + 90_000, needed_until_ms=until_ms) for one in PLANS["live"])
    tomorrow = msgspec.structs.replace(LIVE, opens_ms=NOW + 86_400_000)
    found = purchases_of("web", {"live": own}, {"web": (tomorrow,)}, (), NOW)
    assert {one.needed_until_ms for one in found} == {until_ms}
    assert purchases_of("web", {"live": own}, {"web": (tomorrow,)}, (), until_ms) == ()
    both = purchases_of("web", {"live": own}, {"web": (tomorrow, LIVE)}, (), NOW)
    assert {one.needed_until_ms for one in both} == {NOW + 4_200_000}


def test_an_event_that_is_over_buys_nothing() -> None:
    assert of("web", now_ms=NOW + 4_200_000) == ()


def test_tokens_are_the_same_for_ever_and_say_whose_the_machines_are() -> None:
    tokens = [one.client_token for one in of("web")]
    assert tokens == [one.client_token for one in of("web", now_ms=NOW + 99)]
    assert len(set(tokens)) == 2
    moved = purchases_of("web", PLANS, {"web": (msgspec.structs.replace(LIVE, opens_ms=NOW + 7_200_000),)}, set(), NOW)
    assert [one.client_token for one in moved] == tokens, "an event that is moved is not bought for again"
    nodes = [Node(f"n{n}", "cloud-h", NodeState.READY, 8, token, NOW) for n, token in enumerate(tokens)]
    assert set(owners(nodes, {"web", "api"}).values()) == {"web"}
    long = scheduled_token("web", "x" * 90, 0, msgspec.structs.replace(FIRST, zone="cn-" + "z" * 90))
    assert len(long) <= LETTERS_MAX
    assert is_scheduled(long)
    assert not is_scheduled(client_token(snapshot(), "cloud-h", 3))


def test_what_was_ordered_is_marked_and_remembered() -> None:
    token = of("web")[0].client_token
    assert [one.ordered for one in of("web", {token})] == [True, False]
    desk = Desk("web", "r1-web", POLICY, (A, B, H))
    desk.begun(RentNodes("cloud-h", 3, token, ""))
    desk.begun(RentNodes("cloud-h", 3, token, ""))
    desk.begun(RentNodes("cloud-h", 3, "r1-web-7-cloud-h", ""))
    assert list(desk.ordered) == [token]
    other = Desk("web", "r2-web", POLICY, (A, B, H))
    other.restore(desk.memory(), ListMemory(), ())
    assert list(other.ordered) == [token]
