"""Buyer tokens: ours are accepted, and nothing else is."""

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.model import TokenRing
from springtide.sale.tokens import TOKEN_BYTES_MAX, TokenError, TokenKeys, keys_of, sign_token

OLD, NEW = b"o" * 32, b"n" * 32
NOW_S = 1_800_000_000
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True)


@given(buyer=NAMES, sale=NAMES, key=st.binary(min_size=32, max_size=200), ends_s=st.integers(1, 10**10))
def test_a_signed_token_names_its_buyer_until_it_expires(buyer: str, sale: str, key: bytes, ends_s: int) -> None:
    token = sign_token(key, buyer, sale, ends_s).encode()
    assert len(token) <= TOKEN_BYTES_MAX
    keys = TokenKeys((key,))
    assert keys.verify(token, sale.encode(), ends_s - 1) == buyer
    with pytest.raises(TokenError, match="expired"):
        keys.verify(token, sale.encode(), ends_s)


def test_the_signature_is_hmac_sha256_of_what_is_before_it() -> None:
    for key in (OLD, b"k" * 64, b"k" * 65):
        text, _, signature = sign_token(key, "anna", "evening", NOW_S).rpartition(".")
        assert text == f"v1.anna.evening.{NOW_S}"
        expected = hmac.digest(key, text.encode(), hashlib.sha256)
        assert signature == base64.urlsafe_b64encode(expected).decode().rstrip("=")


@given(at=st.integers(0, 200), byte=st.integers(0, 255), drop=st.integers(0, 3))
def test_a_changed_token_is_not_ours(at: int, byte: int, drop: int) -> None:
    token = sign_token(OLD, "anna", "evening", NOW_S).encode()
    at %= len(token) + 1
    changed = token[:at] + bytes([byte]) + token[at + drop :]
    if changed != token:
        with pytest.raises(TokenError):
            TokenKeys((OLD,)).verify(changed, b"evening", 0)


@pytest.mark.parametrize("token", [b"", b".", b"....", b"v1.a.b.c", b"x" * 300, b"\xff\x00.\xfe"])
def test_junk_is_not_ours(token: bytes) -> None:
    with pytest.raises(TokenError):
        TokenKeys((OLD,)).verify(token, b"evening", 0)


def test_another_version_is_not_ours_though_signed() -> None:
    keys = TokenKeys((OLD,))
    signature = keys._signers[0].signature(b"v2.anna.evening.1.more")
    with pytest.raises(TokenError):
        keys.verify(b"v2.anna.evening.1.more." + signature, b"evening", 0)


def test_a_token_is_for_one_sale() -> None:
    token = sign_token(OLD, "anna", "evening", NOW_S).encode()
    with pytest.raises(TokenError, match="another sale"):
        TokenKeys((OLD,)).verify(token, b"morning", 0)


def test_while_a_key_is_replaced_both_verify_and_the_first_signs() -> None:
    keys = TokenKeys((NEW, OLD))
    assert keys.verify(sign_token(OLD, "anna", "evening", NOW_S).encode(), b"evening", 0) == "anna"
    token = keys.sign("bert", "evening", NOW_S).encode()
    assert TokenKeys((NEW,)).verify(token, b"evening", 0) == "bert"
    with pytest.raises(TokenError):
        TokenKeys((OLD,)).verify(token, b"evening", 0)


@pytest.mark.parametrize("keys", [(), (b"short",), (OLD,) * 5])
def test_keys_must_be_long_and_few(keys: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match="key"):
        TokenKeys(keys)


@pytest.mark.parametrize("name", ["", "a.b", "a b", "-a", "x" * 65])
def test_only_identifiers_are_signed(name: str) -> None:
    with pytest.raises(ValueError, match="must be 1 to 64"):
        sign_token(OLD, name, "evening", NOW_S)
    with pytest.raises(ValueError, match="must be 1 to 64"):
        sign_token(OLD, "anna", name, NOW_S)


MASTER = b"m" * 32


def test_the_newest_generation_signs_and_all_of_the_ring_verify() -> None:
    keys = keys_of(MASTER, TokenRing(3, 5))
    token = keys.sign("anna", "evening", NOW_S).encode()
    newest = hmac.digest(MASTER, b"springtide buyer token 5", hashlib.sha256)
    assert TokenKeys((newest,)).verify(token, b"evening", 0) == "anna"
    for generation in (3, 4, 5):
        older = keys_of(MASTER, TokenRing(generation, generation)).sign("bert", "evening", NOW_S).encode()
        assert keys.verify(older, b"evening", 0) == "bert"
    for generation in (2, 6):
        other = keys_of(MASTER, TokenRing(generation, generation)).sign("bert", "evening", NOW_S).encode()
        with pytest.raises(TokenError):
            keys.verify(other, b"evening", 0)


@pytest.mark.parametrize(("master", "ring"), [(b"short", (1, 1)), (MASTER, (2, 1)), (MASTER, (1, 5))])
def test_a_ring_is_of_one_to_four_generations_under_a_long_master_key(master: bytes, ring: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"master key|token ring"):
        keys_of(master, TokenRing(*ring))
