"""What people do after each answer."""

import random
from collections import Counter
from typing import Any

import msgspec
import pytest

from springtide.config import CrowdSettings
from springtide.model import Sale, Sku
from springtide.twin.crowd.buyers import ASKS_MAX, Again, Answer, Buyers, Outcome, Pay, Purchase
from springtide.twin.crowd.client import Response
from springtide.twin.crowd.wire import read_answer

SKUS = (Sku("tea", "Tea", 500, 100, per_buyer_max=3), Sku("cup", "Cup", 700, 50), Sku("pot", "Pot", 900, 9))
SALE = Sale("night", "Night", SKUS, 0, 60_000, 10_000)
HELD = Answer(Outcome.HELD, 201, "reserved", order_id="o1", pay_by_ms=9)
SOLD_OUT = Answer(Outcome.SOLD_OUT, 409, "sold_out")
LATER = Answer(Outcome.LATER, 503, "overloaded", retry_after_s=2.0)
UNKNOWN = Answer(Outcome.UNKNOWN, 0, "timeout")
ENDED = Answer(Outcome.ENDED, 409, "limit_reached")
EARLY = Answer(Outcome.NOT_OPEN, 425, "not_open")


def make_buyers(seed: int = 1, **changes: Any) -> Buyers:
    settings = msgspec.convert({"demand": "demand.csv", **changes}, CrowdSettings)
    return Buyers(settings, SALE, random.Random(seed), "r")


def make_purchase() -> Purchase:
    return Purchase("b1", "k1", "tea", 1)


def again(steps: tuple[Any, ...]) -> Again:
    assert len(steps) == 1
    assert isinstance(steps[0], Again)
    return steps[0]


def test_before_the_opening_most_people_look_and_a_few_press() -> None:
    buyers = make_buyers()
    came = [buyers.arrive(is_open=False) for _ in range(4000)]
    assert 0.03 < sum(one is not None for one in came) / 4000 < 0.07


def test_after_it_they_buy_by_the_zipf_law() -> None:
    buyers = make_buyers(page_share=0.2, zipf_exponent=1.0)
    came = [buyers.arrive(is_open=True) for _ in range(20_000)]
    bought = Counter(one.sku for one in came if one)
    assert abs(sum(bought.values()) / 20_000 - 0.8) < 0.02
    total = sum(bought.values())
    for rank, sku in enumerate(("tea", "cup", "pot"), 1):
        assert abs(bought[sku] / total - (1 / rank) / (1 + 1 / 2 + 1 / 3)) < 0.02


def test_keys_are_unique_and_quantities_are_allowed() -> None:
    buyers = make_buyers(page_share=0.0)
    came = [one for one in (buyers.arrive(is_open=True) for _ in range(3000)) if one]
    assert len({one.key for one in came}) == len({one.buyer for one in came}) == 3000
    limits = {sku.sku: sku.per_buyer_max for sku in SALE.skus}
    assert all(1 <= one.quantity <= limits[one.sku] for one in came)
    assert {one.quantity for one in came if one.sku == "tea"} == {1, 2, 3}


def test_some_customers_come_back_for_more_than_they_may_have() -> None:
    buyers = make_buyers(page_share=0.0)
    first = buyers.arrive(is_open=True)
    assert first is not None
    buyers.next_steps(first, HELD, -1.0)
    back = [one for one in (buyers.arrive(is_open=True) for _ in range(2000)) if one and one.buyer == first.buyer]
    assert 10 < len(back) < 100
    assert all(one.key != first.key for one in back)


def test_an_order_is_paid_by_the_stated_share() -> None:
    buyers = make_buyers(pay_share=0.7, pay_after_s=3.0)
    paid = [
        step
        for at in range(4000)
        for step in buyers.next_steps(Purchase(f"b{at}", f"k{at}", "tea", 1), HELD, -1.0)
        if isinstance(step, Pay)
    ]
    assert abs(len(paid) / 4000 - 0.7) < 0.03
    assert all(1.5 <= step.after_s <= 5.4 for step in paid)


def test_an_order_told_twice_is_paid_once_and_another_order_is_a_conflict() -> None:
    buyers, purchase = make_buyers(pay_share=1.0), make_purchase()
    assert any(isinstance(step, Pay) for step in buyers.next_steps(purchase, HELD, -1.0))
    assert buyers.next_steps(purchase, msgspec.structs.replace(HELD, status=200), -1.0) == ()
    conflicts = [purchase.conflicting]
    buyers.next_steps(purchase, msgspec.structs.replace(HELD, order_id="o2"), -1.0)
    assert [*conflicts, purchase.conflicting] == [False, True]


def test_an_order_that_has_expired_is_not_paid() -> None:
    buyers = make_buyers(pay_share=1.0)
    assert buyers.next_steps(make_purchase(), msgspec.structs.replace(HELD, status=200, code="expired"), -1.0) == ()


def test_sold_out_is_tried_again_as_a_new_purchase_up_to_the_limit() -> None:
    buyers, purchase = make_buyers(retry_share=1.0, retries_max=3), make_purchase()
    keys = {purchase.key}
    for _ in range(3):
        step = again(buyers.next_steps(purchase, SOLD_OUT, -1.0))
        assert 0.7 <= step.after_s <= 2.0
        purchase = step.purchase
        assert purchase.buyer == "b1"
        keys.add(purchase.key)
    assert buyers.next_steps(purchase, SOLD_OUT, -1.0) == ()
    assert len(keys) == 4


def test_few_insist_when_the_share_is_low() -> None:
    buyers = make_buyers(retry_share=0.25)
    insisted = sum(bool(buyers.next_steps(make_purchase(), SOLD_OUT, -1.0)) for _ in range(4000))
    assert abs(insisted / 4000 - 0.25) < 0.03


def test_later_means_later_with_the_same_key_and_patience_ends() -> None:
    buyers, purchase = make_buyers(retries_max=2), make_purchase()
    for _ in range(2):
        step = again(buyers.next_steps(purchase, LATER, -1.0))
        assert step.purchase is purchase
        assert 2.0 <= step.after_s <= 2.5
    assert buyers.next_steps(purchase, LATER, -1.0) == ()


def test_too_early_comes_back_with_the_same_key_just_after_the_opening() -> None:
    purchase = make_purchase()
    step = again(make_buyers().next_steps(purchase, EARLY, 4.0))
    assert step.purchase is purchase
    assert 4.0 < step.after_s <= 5.0


def test_an_unknown_outcome_is_asked_for_until_the_bound() -> None:
    buyers, purchase = make_buyers(retries_max=0), make_purchase()
    waits = []
    while steps := buyers.next_steps(purchase, UNKNOWN, -1.0):
        waits.append(again(steps).after_s)
        assert again(steps).purchase is purchase
    assert len(waits) == ASKS_MAX - 1
    assert waits[0] == 0.0
    assert max(waits) <= 1.2
    assert purchase.in_doubt


def test_later_does_not_end_a_doubt_and_impatience_does_not_either() -> None:
    buyers, purchase = make_buyers(retries_max=0), make_purchase()
    again(buyers.next_steps(purchase, UNKNOWN, -1.0))
    again(buyers.next_steps(purchase, LATER, -1.0))
    doubts = [purchase.in_doubt]
    buyers.next_steps(purchase, HELD, -1.0)
    assert [*doubts, purchase.in_doubt, purchase.was_in_doubt] == [True, False, True]


@pytest.mark.parametrize("answer", [ENDED, SOLD_OUT, EARLY])
def test_any_truthful_answer_ends_a_doubt(answer: Answer) -> None:
    buyers, purchase = make_buyers(), make_purchase()
    buyers.next_steps(purchase, UNKNOWN, -1.0)
    buyers.next_steps(purchase, answer, -1.0)
    assert not purchase.in_doubt


def test_a_final_answer_ends_it() -> None:
    assert make_buyers().next_steps(make_purchase(), ENDED, -1.0) == ()


@pytest.mark.parametrize(
    ("status", "body", "outcome", "code"),
    [
        (201, b'{"order_id":"o1","status":"reserved","pay_by_ms":5}', Outcome.HELD, "reserved"),
        (200, b'{"order_id":"o1","status":"expired","pay_by_ms":5}', Outcome.HELD, "expired"),
        (201, b"not json", Outcome.UNKNOWN, "unreadable"),
        (201, b'{"status":"reserved"}', Outcome.UNKNOWN, "unreadable"),
        (409, b'{"code":"sold_out"}', Outcome.SOLD_OUT, "sold_out"),
        (409, b'{"code":"limit_reached"}', Outcome.ENDED, "limit_reached"),
        (410, b'{"code":"closed"}', Outcome.ENDED, "closed"),
        (422, b'{"code":"key_reused"}', Outcome.ENDED, "key_reused"),
        (425, b'{"code":"not_open"}', Outcome.NOT_OPEN, "not_open"),
        (429, b'{"code":"rate_limited"}', Outcome.LATER, "rate_limited"),
        (429, b"", Outcome.LATER, ""),
        (503, b'{"code":"overloaded"}', Outcome.LATER, "overloaded"),
        (503, b'{"code":"unavailable"}', Outcome.LATER, "unavailable"),
        (503, b'{"code":"outcome_unknown"}', Outcome.UNKNOWN, "outcome_unknown"),
        (503, b"upstream connect error", Outcome.UNKNOWN, ""),
        (500, b"", Outcome.UNKNOWN, ""),
        (0, b"", Outcome.UNKNOWN, "timeout"),
    ],
)
def test_answers_are_understood(status: int, body: bytes, outcome: Outcome, code: str) -> None:
    answer = read_answer(Response(status, body, 1.5, "" if status else "timeout"))
    assert (answer.outcome, answer.code, answer.status) == (outcome, code, status)
