"""The waiting room's decisions, tickets and mirror, one by one."""

import itertools

import pytest

from springtide.config import RoomSettings
from springtide.decide.room import (
    TABLE_MAX,
    Move,
    RoomPolicy,
    Shuffle,
    Supply,
    admission_rate,
    allowance,
    credit_now,
    line_state,
    next_move,
    pace_now,
    policy_of,
    servable,
    shuffle_bytes,
)
from springtide.model import CALLED_MAX, CounterLoad, LineState, RoomCall, RoomView, SkuTotals
from springtide.sale import room_answers
from springtide.sale.room_keeper import units_unpaid
from springtide.sale.room_mirror import NOT_CALLED, PASSED, RoomMirror, shuffle_of
from springtide.sale.room_tickets import RoomKeys, TicketError
from springtide.sale.tokens import sign_token

KEY = b"k" * 32
NOW_MS = 1_700_000_000_000
POLICY = RoomPolicy(requests_per_buyer=5.0, rate_default=50.0, rate_max=1000.0)
OPEN = Supply(units=100, unpaid=None, selling=True, closes_ms=NOW_MS + 1000)


def a_view(**fields: object) -> RoomView:
    return RoomView(**{"room_id": "room", "at_ms": NOW_MS, "joined": 100, "drawn": 50, "seed": "s", **fields})  # type: ignore[arg-type]  # a test's choice of fields


# --- the order ----------------------------------------------------------------------------------------------


def test_a_seed_gives_one_order_and_another_seed_another() -> None:
    first = [shuffle_of("a", 500).number(place) for place in range(500)]
    assert first == [shuffle_of("a", 500).number(place) for place in range(500)]
    assert first != [shuffle_of("b", 500).number(place) for place in range(500)]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_every_order_of_a_small_line_is_about_as_likely(n: int) -> None:
    orders = list(itertools.permutations(range(n)))
    counts = dict.fromkeys(orders, 0)
    draws = 40 * len(orders)
    for draw in range(draws):
        shuffle = shuffle_of(f"seed-{draw}", n)
        counts[tuple(shuffle.number(place) for place in range(n))] += 1
    # The sum over all orders is chi-squared with len - 1 degrees of freedom; five standard deviations above its mean.
    chi = sum((count - 40) ** 2 / 40 for count in counts.values())
    assert chi < len(orders) - 1 + 5 * (2 * (len(orders) - 1)) ** 0.5


def test_a_long_line_is_mixed_evenly() -> None:
    n = 2 * TABLE_MAX
    shuffle = shuffle_of("seed", n)
    halves = [0, 0]
    for place in range(n // 2):
        halves[shuffle.number(place) * 2 // n] += 1
    assert abs(halves[0] - n // 4) < 5 * (n / 8) ** 0.5
    assert abs(sum(abs(shuffle.number(place) - place) for place in range(n)) / n / (n / 3) - 1) < 0.05


def test_randomness_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="80 bytes"):
        Shuffle(10, b"short")
    with pytest.raises(ValueError, match="shuffled"):
        shuffle_bytes(-1)


# --- how many, and who --------------------------------------------------------------------------------------


def test_the_settings_and_the_policy_begin_with_the_same_figures() -> None:
    assert policy_of(RoomSettings()) == RoomPolicy()
    assert policy_of(RoomSettings(pass_s=7.5, rate_max=3.0)) == RoomPolicy(pass_ms=7500, rate_max=3.0)


def test_the_rate_is_what_the_counters_can_take() -> None:
    assert admission_rate([], POLICY) == 0.0
    assert admission_rate([CounterLoad("a", 300.0), CounterLoad("b", 200.0)], POLICY) == 100.0
    assert admission_rate([CounterLoad("a", 300.0), CounterLoad("b", 200.0, refused_share=0.25)], POLICY) == 80.0
    assert admission_rate([CounterLoad("a", 300.0, refused_share=0.5)], POLICY) == 0.0
    assert admission_rate([CounterLoad("a", 300.0, queue_share=1.0)], POLICY) == pytest.approx(12.0)
    assert admission_rate([CounterLoad("a", 0.0), CounterLoad("b", 0.0)], POLICY) == 50.0
    assert admission_rate([CounterLoad("a", 1e9)], POLICY) == 1000.0


@pytest.mark.parametrize(
    ("supply", "state"),
    [
        (OPEN, LineState.OPEN),
        (Supply(1, 0, selling=False, closes_ms=NOW_MS + 1), LineState.PAUSED),
        (Supply(0, None, selling=True, closes_ms=NOW_MS + 1), LineState.HELD),
        (Supply(0, 3, selling=True, closes_ms=NOW_MS + 1), LineState.HELD),
        (Supply(0, 0, selling=True, closes_ms=NOW_MS + 1), LineState.SOLD_OUT),
        (Supply(0, 0, selling=False, closes_ms=NOW_MS + 1), LineState.SOLD_OUT),
        (Supply(5, 0, selling=True, closes_ms=NOW_MS), LineState.CLOSED),
    ],
)
def test_a_line_ends_only_when_nothing_can_come_back(supply: Supply, state: LineState) -> None:
    assert line_state(supply, NOW_MS) is state


def test_people_are_served_by_what_one_takes_on_average() -> None:
    assert servable(10, 0, 0) == 10
    assert servable(10, 4, 8) == 5
    assert servable(10, 4, 2) == 10
    assert servable(1, 4, 12) == 1
    assert servable(0, 4, 12) == 0


def test_unused_rate_is_kept_for_a_second() -> None:
    assert credit_now(a_view(credit=0.5, stepped_ms=NOW_MS - 200), 10.0) == pytest.approx(2.5)
    assert credit_now(a_view(credit=0.5, stepped_ms=NOW_MS - 60_000), 10.0) == 10.0
    assert credit_now(a_view(credit=0.5, stepped_ms=NOW_MS - 60_000), 0.1) == 1.0
    assert credit_now(a_view(), 10.0) == 0.0


def test_no_more_are_let_in_than_rate_and_stock_allow() -> None:
    view = a_view(credit=20.0, outstanding=95)
    assert allowance(view, OPEN, 100.0) == 5
    assert allowance(a_view(credit=3.9), OPEN, 100.0) == 3
    assert allowance(a_view(credit=3.9, outstanding=200), OPEN, 100.0) == 0
    assert allowance(a_view(credit=3.9), Supply(9, None, selling=False, closes_ms=NOW_MS + 9), 100.0) == 0
    assert allowance(a_view(credit=3.9), Supply(9, None, selling=True, closes_ms=NOW_MS), 100.0) == 0


@pytest.mark.parametrize(
    ("allowed", "present", "move"),
    [
        (2, [True, True, True], Move(12, ())),
        (2, [True, False, True, True], Move(13, (11,))),
        (5, [True, False, False], Move(11, ())),
        (0, [True, True], Move(10, ())),
        (3, [], Move(10, ())),
        (3, [False, False], Move(10, ())),
        (1, [False] * CALLED_MAX, Move(10 + CALLED_MAX, tuple(range(10, 10 + CALLED_MAX)))),
    ],
)
def test_who_is_absent_is_passed_over_only_for_somebody_behind_him(
    allowed: int, present: list[bool], move: Move
) -> None:
    assert next_move(10, allowed, present) == move


def test_the_pace_follows_the_line() -> None:
    view = a_view(serving=10, pace=0.0, stepped_ms=NOW_MS - 1000)
    first = pace_now(view, 30)
    assert 0 < first < 20
    assert pace_now(a_view(serving=10, pace=20.0, stepped_ms=NOW_MS - 1000), 30) == pytest.approx(20.0)
    assert pace_now(a_view(serving=10, pace=20.0, stepped_ms=NOW_MS - 600_000), 10) < 0.001


def test_units_that_are_not_paid_for_may_come_back() -> None:
    assert units_unpaid([]) is None
    assert units_unpaid([SkuTotals("a", 10, 5, 3, 12, 0), SkuTotals("b", 1, 0, 0, 1, 0)]) == 3
    assert units_unpaid([SkuTotals("a", 10, 5, 0, 15, 0)]) == 0


# --- tickets ------------------------------------------------------------------------------------------------

KEYS = RoomKeys(KEY)
TICKET = KEYS.ticket("ann", "tea", "room", 7).encode()
PASS = KEYS.pass_("ann", "tea", "room", 7, NOW_MS // 1000).encode()


def test_a_ticket_says_what_was_signed() -> None:
    assert KEYS.read_ticket(TICKET, b"tea") == (b"ann", b"room", 7)
    longest = KEYS.ticket("b" * 64, "s" * 64, "r" * 16, 1_999_999).encode()
    assert KEYS.read_ticket(longest, b"s" * 64)[2] == 1_999_999


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b".",
        TICKET[:-1],
        TICKET + b"0",
        TICKET.upper(),
        TICKET.replace(b".7.", b".6."),
        TICKET.replace(b"ann", b"bob"),
        TICKET.rpartition(b".")[0],
        PASS,
        sign_token(KEY, "ann", "tea", 2_000_000_000).encode(),
        RoomKeys(b"o" * 32).ticket("ann", "tea", "room", 7).encode(),
        b"t1." + b"x" * 400,
        "t1.ünn.tea.room.7.ä".encode(),
    ],
)
def test_a_forged_ticket_is_refused(bad: bytes) -> None:
    with pytest.raises(TicketError, match="join"):
        KEYS.read_ticket(bad, b"tea")


def test_a_ticket_is_worth_nothing_for_another_sale() -> None:
    with pytest.raises(TicketError, match="another sale"):
        KEYS.read_ticket(TICKET, b"cup")


def test_a_pass_is_good_for_its_buyer_and_sale_until_it_ends() -> None:
    before_s = NOW_MS / 1000 - 1
    assert KEYS.read_pass(PASS, "tea", "ann", before_s) == ("room", 7)
    assert KEYS.read_pass(PASS, "tea", "ann", NOW_MS / 1000) is None
    assert KEYS.read_pass(PASS, "tea", "an", before_s) is None
    assert KEYS.read_pass(PASS, "tea", "bob", before_s) is None
    assert KEYS.read_pass(PASS, "cup", "ann", before_s) is None
    assert KEYS.read_pass(TICKET, "tea", "ann", before_s) is None
    assert KEYS.read_pass(PASS.replace(b".7.", b".8."), "tea", "ann", before_s) is None
    assert KEYS.read_pass(b"", "tea", "ann", before_s) is None


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        RoomKeys(b"k" * 31)


# --- the mirror ---------------------------------------------------------------------------------------------


def a_mirror(*calls: RoomCall, serving: int, at_ms: int = NOW_MS) -> RoomMirror:
    mirror = RoomMirror(pass_ms=10_000)
    assert mirror.apply(a_view(serving=serving, calls=calls, at_ms=at_ms), 0.0, 0)
    return mirror


def test_a_number_is_in_from_its_call_until_its_pass_ends() -> None:
    mirror = a_mirror(RoomCall(0, 3, NOW_MS, (1,)), RoomCall(3, 6, NOW_MS + 500), serving=6)
    assert mirror.called(0, NOW_MS) == NOW_MS + 10_000
    assert mirror.called(1, NOW_MS) == PASSED
    assert mirror.called(2, NOW_MS + 9999) == NOW_MS + 10_000
    assert mirror.called(2, NOW_MS + 10_000) == PASSED
    assert mirror.called(3, NOW_MS) == NOW_MS + 10_500
    assert mirror.called(6, NOW_MS) == NOT_CALLED


def test_old_calls_are_forgotten_and_passed() -> None:
    mirror = a_mirror(RoomCall(0, 3, NOW_MS), serving=3)
    mirror.apply(a_view(serving=5, calls=(RoomCall(3, 5, NOW_MS + 20_000),), at_ms=NOW_MS + 20_000), 0.0, 0)
    assert mirror.called(0, NOW_MS + 20_000) == PASSED
    assert mirror.called(4, NOW_MS + 20_000) == NOW_MS + 30_000


def test_the_engines_clock_decides() -> None:
    mirror = RoomMirror(pass_ms=10_000)
    mirror.apply(a_view(serving=3, calls=(RoomCall(0, 3, NOW_MS),), at_ms=NOW_MS), 0.0, 5000)
    assert mirror.called(0, NOW_MS + 4999) == NOW_MS + 10_000
    assert mirror.called(0, NOW_MS + 5000) == PASSED


def test_another_room_is_not_taken_over() -> None:
    mirror = a_mirror(serving=0)
    assert not mirror.apply(a_view(room_id="other"), 0.0, 0)
    assert mirror.room_id == b"room"


# --- answers ------------------------------------------------------------------------------------------------


def seconds(header: bytes) -> int:
    assert header.startswith(b"Retry-After: ")
    assert header.endswith(b"\r\n")
    return int(header[13:-2])


@pytest.mark.parametrize(
    ("pace", "position", "least", "most"), [(10.0, 1, 2, 3), (1.0, 90, 9, 14), (1.0, 9000, 20, 30)]
)
def test_who_is_further_back_is_asked_to_ask_later(pace: float, position: int, least: int, most: int) -> None:
    mirror = a_mirror(serving=0)
    mirror.pace = pace
    for spread in (0.0, 0.5, 0.99):
        body, extra = room_answers.waiting(mirror, position - 1, spread, pressed=False)
        assert b'"position":%d' % position in body
        assert least <= seconds(extra) <= most
    mirror.pace = 0.1
    assert seconds(room_answers.waiting(mirror, 5, 0.0, pressed=True)[1]) == room_answers.POLL_S_MAX


def test_the_pre_queue_is_asked_back_right_after_the_opening() -> None:
    assert seconds(room_answers.before_opening(5, 4000.0, 0.0)[1]) == room_answers.POLL_S_MAX
    assert seconds(room_answers.before_opening(5, 30.0, 0.0)[1]) == 3
    assert seconds(room_answers.before_opening(5, 0.2, 0.0)[1]) == 2
    assert seconds(room_answers.before_opening(5, -3.0, 0.0)[1]) == 1
