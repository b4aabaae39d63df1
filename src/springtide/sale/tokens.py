"""Buyer tokens: who the buyer is and for which sale, signed so that a counter needs no look-up.

`v1.<buyer>.<sale>.<expires, Unix seconds>.<signature>`: HMAC-SHA256 of all before the last dot, in base64url
without padding.
"""

import binascii
import hashlib
from collections.abc import Sequence
from hmac import compare_digest, digest

from springtide.errors import SpringtideError
from springtide.model import TokenRing, require_identifier

TOKEN_BYTES_MAX = 256
"""Longer than any token: version, two identifiers of 64, a moment and a signature of 43 come to at most 195.
"""

KEY_BYTES_MIN = 32
KEYS_MAX = 4
_BLOCK_BYTES = 64
_SIGNATURE_LETTERS = 43
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_INNER_PAD = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD = bytes(byte ^ 0x5C for byte in range(256))


class TokenError(SpringtideError):
    """The token cannot be accepted; the message says why and what to do."""


class _Signer:
    """HMAC-SHA256 (RFC 2104) with both key blocks hashed beforehand: under half of `hmac.digest`'s time."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        if len(key) < KEY_BYTES_MIN:
            raise ValueError(f"a token key needs at least {KEY_BYTES_MIN} bytes, not {len(key)}")
        block = (key if len(key) <= _BLOCK_BYTES else hashlib.sha256(key).digest()).ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(block.translate(_INNER_PAD))
        self._outer = hashlib.sha256(block.translate(_OUTER_PAD))

    def signature(self, text: bytes) -> bytes:
        inner = self._inner.copy()
        inner.update(text)
        outer = self._outer.copy()
        outer.update(inner.digest())
        letters = binascii.b2a_base64(outer.digest(), newline=False)
        return letters.translate(_URL_SAFE)[:_SIGNATURE_LETTERS]


def sign_token(key: bytes, buyer: str, sale: str, expires_s: int) -> str:
    """A token, good until `expires_s` (Unix seconds). Raises ValueError for a bad name or key."""
    return TokenKeys((key,)).sign(buyer, sale, expires_s)


def keys_of(master: bytes, ring: TokenRing) -> "TokenKeys":
    """The keys of the generations in the ring, the newest first, so that it signs.

    Each is HMAC-SHA256 of the generation's name under the master key: who learns one cannot tell the others. Raises
    ValueError for a master key under 32 bytes, or a ring that is empty or has more than 4 generations.
    """
    if len(master) < KEY_BYTES_MIN:
        raise ValueError(f"a master key needs at least {KEY_BYTES_MIN} bytes, not {len(master)}")
    if not 0 <= ring.newest - ring.oldest < KEYS_MAX:
        raise ValueError(
            f"a token ring holds 1 to {KEYS_MAX} generations, oldest to newest, not {ring.oldest} to {ring.newest}"
        )
    return TokenKeys([key_of(master, generation) for generation in range(ring.newest, ring.oldest - 1, -1)])


def key_of(master: bytes, generation: int = 1) -> bytes:
    """The key of one generation; the first is in use until somebody rotates."""
    return digest(master, f"springtide buyer token {generation}".encode(), "sha256")


class TokenKeys:
    """The keys in use, at least 32 bytes each: the first signs, all verify, so that keys can change."""

    __slots__ = ("_signers",)

    def __init__(self, keys: Sequence[bytes]) -> None:
        """Take 1 to 4 keys. Raises ValueError when there are more or fewer, or when one is too short."""
        if not 1 <= len(keys) <= KEYS_MAX:
            raise ValueError(f"give 1 to {KEYS_MAX} token keys, not {len(keys)}")
        self._signers = tuple(_Signer(key) for key in keys)

    def sign(self, buyer: str, sale: str, expires_s: int) -> str:
        """A token for this buyer and sale, good until `expires_s` (Unix seconds)."""
        require_identifier("buyer", buyer)
        require_identifier("sale", sale)
        text = f"v1.{buyer}.{sale}.{expires_s}".encode()
        return (text + b"." + self._signers[0].signature(text)).decode()

    def verify(self, token: bytes, sale: bytes, now_s: float) -> str:
        """The buyer the token names. Raises TokenError: it is not ours, for another sale, or has expired.

        Nothing in the token is read before its signature has been found good.
        """
        if len(token) > TOKEN_BYTES_MAX:
            raise TokenError("The buyer token is too long to be one of ours; sign in again.")
        text, _, signature = token.rpartition(b".")
        for signer in self._signers:
            if compare_digest(signer.signature(text), signature):
                break
        else:
            text = b""
        if not text.startswith(b"v1."):
            raise TokenError("The buyer token is not signed by this shop; sign in again.")
        _, buyer, for_sale, expires_s = text.split(b".")
        if for_sale != sale:
            raise TokenError("The buyer token is for another sale; fetch one for this sale.")
        if int(expires_s) <= now_s:
            raise TokenError("The buyer token has expired; fetch a new one.")
        return buyer.decode()
