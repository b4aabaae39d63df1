"""Bodies of purchases: what was good is remembered, within limits, and nothing else is."""

import msgspec
import pytest

from springtide.sale.purchase import BODIES_MAX, BODY_BYTES_MAX, OrderBodies, OrderBody


def test_a_body_is_read_the_same_when_it_is_known() -> None:
    bodies = OrderBodies()
    for body in (b'{"sku":"tea","quantity":2}', b'{"sku":"tea"}', bytearray(b'{"sku":"tea"}')):
        first, second = bodies.decode(body), bodies.decode(body)
        assert first == second == msgspec.json.decode(body, type=OrderBody)
    assert len(bodies) == 2  # what came in pieces is not remembered


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"sku":"tea","quantity":0}', b'{"sku":"tea","colour":1}', b'{"sku":"t a"}', b'{"sku":""}', b"\xff"],
)
def test_what_is_bad_is_bad_each_time(body: bytes) -> None:
    bodies = OrderBodies()
    for _ in range(2):
        with pytest.raises((msgspec.DecodeError, ValueError)):
            bodies.decode(body)
    assert len(bodies) == 0


def test_only_so_many_short_bodies_are_remembered() -> None:
    bodies = OrderBodies()
    for number in range(3 * BODIES_MAX):
        assert bodies.decode(b'{"sku":"s%d"}' % number).sku == f"s{number}"
        assert len(bodies) <= BODIES_MAX
    long = b'{"sku":"tea"%b}' % (b" " * BODY_BYTES_MAX)
    count = len(bodies)
    assert bodies.decode(long).sku == "tea"
    assert len(bodies) == count
