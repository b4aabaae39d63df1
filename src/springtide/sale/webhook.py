"""The signature of the payment provider's calls: HMAC-SHA256 (RFC 2104) of the body, in hexadecimal."""

import hashlib
import hmac

SIGNATURE_HEADER = "X-Springtide-Signature"


def sign(secret: bytes, body: bytes) -> str:
    """64 hexadecimal digits."""
    return hmac.new(secret, body, hashlib.sha256).hexdigest()


def verify(secret: bytes, body: bytes, signature: str) -> bool:
    """Whether the signature is that of this body. Takes the same time wherever the two differ."""
    # As bytes: compare_digest refuses strings that are not ASCII, and the header is the caller's.
    return hmac.compare_digest(sign(secret, body).encode(), signature.encode(errors="replace"))
