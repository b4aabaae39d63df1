"""The state table of orders, and the small pure functions beside it."""

import pytest

from springtide.model import OrderState, PaymentOutcome
from springtide.sale.backoff import Backoff
from springtide.sale.orders import MAY_FOLLOW, after_payment, bucket_of, entry_place, frees_stock
from springtide.sale.webhook import sign, verify


def test_only_a_reserved_order_changes() -> None:
    edges = {(now, then) for now, after in MAY_FOLLOW.items() for then in after}
    assert edges == {
        (OrderState.RESERVED, OrderState.PAID),
        (OrderState.RESERVED, OrderState.CANCELLED),
        (OrderState.RESERVED, OrderState.EXPIRED),
    }


def test_every_state_is_in_the_table() -> None:
    assert set(MAY_FOLLOW) == set(OrderState)


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        (OrderState.RESERVED, (OrderState.PAID, PaymentOutcome.ACCEPTED)),
        (OrderState.PAID, (OrderState.PAID, PaymentOutcome.REFUND_DUE)),
        (OrderState.CANCELLED, (OrderState.CANCELLED, PaymentOutcome.REFUND_DUE)),
        (OrderState.EXPIRED, (OrderState.EXPIRED, PaymentOutcome.REFUND_DUE)),
    ],
)
def test_payment_is_accepted_only_while_reserved(state: OrderState, wanted: tuple[OrderState, PaymentOutcome]) -> None:
    assert after_payment(state) == wanted


def test_states_that_free_stock() -> None:
    assert [state for state in OrderState if frees_stock(state)] == [OrderState.CANCELLED, OrderState.EXPIRED]


def test_bucket_does_not_depend_on_the_process() -> None:
    # A change of this function would strand every buyer of a running sale: these figures are for ever.
    assert [bucket_of(buyer, 8) for buyer in ("b1", "buyer-42", "x")] == [0, 4, 3]


def test_entries_are_ordered_as_numbers() -> None:
    ids = ["10-10", "9-0", "10-9", "0-0"]
    assert sorted(ids, key=entry_place) == ["0-0", "9-0", "10-9", "10-10"]


def test_waits_double_up_to_the_limit_and_begin_again() -> None:
    backoff = Backoff(0.1, 0.5)
    assert [backoff.next_s() for _ in range(4)] == [0.1, 0.2, 0.4, 0.5]
    backoff.reset()
    assert backoff.next_s() == 0.1


def test_signature_of_a_known_message() -> None:
    # RFC 4231, test case 2.
    signature = sign(b"Jefe", b"what do ya want for nothing?")
    assert signature == "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert verify(b"Jefe", b"what do ya want for nothing?", signature)


@pytest.mark.parametrize("wrong", ["", "5bdc", "é" * 64, "\udcff", "0" * 64])
def test_wrong_signatures_are_refused(wrong: str) -> None:
    assert not verify(b"Jefe", b"what do ya want for nothing?", wrong)
