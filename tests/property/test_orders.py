"""What holds for every history of an order."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from springtide.model import OrderState, PaymentOutcome
from springtide.sale.orders import MAY_FOLLOW, after_payment, bucket_of, frees_stock, may

STATES = st.sampled_from(list(OrderState))
BUYERS = st.text("abcXYZ019_-", min_size=1, max_size=64)


@given(st.lists(STATES | st.none(), max_size=30))
def test_units_are_sold_or_returned_once_whatever_is_tried(attempts: Sequence[OrderState | None]) -> None:
    """None stands for a payment; a state for a transition that somebody attempts."""
    state, accepted, returned = OrderState.RESERVED, 0, 0
    for attempt in attempts:
        if attempt is None:
            state, outcome = after_payment(state)
            accepted += outcome is PaymentOutcome.ACCEPTED
        elif may(state, attempt) and attempt is not OrderState.PAID:
            state = attempt
            returned += frees_stock(state)
    assert accepted + returned <= 1
    assert (accepted == 1) is (state is OrderState.PAID)
    assert (returned == 1) is frees_stock(state)


@given(STATES, STATES)
def test_no_state_is_left_and_entered_again(now: OrderState, then: OrderState) -> None:
    assert not (may(now, then) and may(then, now))
    assert not may(now, now)


@given(STATES)
def test_payment_follows_the_table(state: OrderState) -> None:
    after, outcome = after_payment(state)
    assert after == state or after in MAY_FOLLOW[state]
    assert (outcome is PaymentOutcome.ACCEPTED) is (after != state)


@given(BUYERS, st.integers(1, 4096))
def test_every_buyer_has_one_bucket_of_those_there_are(buyer: str, buckets: int) -> None:
    assert 0 <= bucket_of(buyer, buckets) < buckets
    assert bucket_of(buyer, 1) == 0
