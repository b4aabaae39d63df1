"""Names and bounds that every value keeps."""

import re

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Sales, SKUs, buyers, zones: at most 64 characters that need no quoting in a URL, a key or a journal record."""

IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
"""What an `Idempotency-Key` header may hold."""

QUANTITY_MAX = 1_000_000
"""The most units that one order may ask for."""

STOCK_MAX = 1_000_000_000_000
"""The most units of a SKU that a sale may hold: far below 2^53, so exact in every engine."""

BUCKETS_MAX = 1024
"""The most buckets of a sale: each costs a few keys, and a view of the sale reads them all."""


def require_identifier(what: str, value: str) -> None:
    """Raise ValueError unless `value` is an identifier; `what` names it in the message."""
    if not IDENTIFIER.fullmatch(value):
        msg = f"{what} {value!r} must be 1 to 64 letters, digits, '-' or '_' and start with a letter or digit"
        raise ValueError(msg)
