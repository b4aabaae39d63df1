"""Whose address it is: only what trusted proxies have noted is believed."""

import pytest

from springtide.sale.addresses import NAME_LENGTH_MAX, client_address, network


@pytest.mark.parametrize(
    ("forwarded", "hops", "address"),
    [
        (None, 0, "10.0.0.1"),
        (b"1.1.1.1", 0, "10.0.0.1"),
        (None, 2, "10.0.0.1"),
        (b"", 1, "10.0.0.1"),
        (b"1.1.1.1", 1, "1.1.1.1"),
        (b"6.6.6.6, 1.1.1.1", 1, "1.1.1.1"),
        (b"6.6.6.6, 1.1.1.1, 10.0.0.2", 2, "1.1.1.1"),
        (b"6.6.6.6,1.1.1.1,10.0.0.2", 2, "1.1.1.1"),
        (b"1.1.1.1", 3, "1.1.1.1"),
        (b"1.1.1.1:4711", 1, "1.1.1.1"),
        (b"[2001:db8:1:2:3:4:5:6]:80", 1, "2001:db8:1:2::/64"),
    ],
    ids=range(11),
)
def test_the_client_is_whom_the_outermost_trusted_proxy_saw(forwarded: bytes | None, hops: int, address: str) -> None:
    assert client_address("10.0.0.1", forwarded, hops) == address


def test_an_ipv6_customer_is_one_however_many_addresses_he_uses() -> None:
    assert network("2001:db8::1") == network("2001:db8::ffff:1") != network("2001:db8:0:1::1")
    assert network("::ffff:1.2.3.4") == "1.2.3.4"


def test_what_is_no_address_is_short_and_harms_nothing() -> None:
    assert network("unknown") == "unknown"
    assert len(network("x" * 10_000)) == NAME_LENGTH_MAX
