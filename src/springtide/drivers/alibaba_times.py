"""Times as Alibaba Cloud writes them, and client tokens as it takes them."""

import hashlib
from datetime import UTC, datetime, timedelta
from functools import lru_cache

TOKEN_MAX = 64
"""A client token is at most so many ASCII characters (docs of RunInstances)."""

_MINUTE_MS = 60_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def release_time(release_at_ms: int) -> str:
    """`AutoReleaseTime` of a moment. The cloud rounds seconds down; a machine must not go too early: here it is up."""
    minutes = -(-release_at_ms // _MINUTE_MS)
    return (_EPOCH + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:00Z")


@lru_cache(maxsize=4_096)  # a page has a hundred times, most of them the same minute
def moment_ms(text: str) -> int:
    """Unix milliseconds of a time in UTC, with seconds or (as in DescribeInstances) without; 0 for an empty text."""
    if not text:
        return 0
    form = "%Y-%m-%dT%H:%M:%SZ" if text.count(":") > 1 else "%Y-%m-%dT%H:%MZ"
    parsed = datetime.strptime(text, form).replace(tzinfo=UTC)
    return (parsed - _EPOCH) // timedelta(milliseconds=1)


def batch_token(order_token: str, batch: int) -> str:
    """The client token of one batch of an order, always the same; hashed when it would be too long or not ASCII."""
    token = f"{order_token}-{batch}"
    if len(token) <= TOKEN_MAX and token.isascii():
        return token
    return hashlib.sha256(token.encode()).hexdigest()
