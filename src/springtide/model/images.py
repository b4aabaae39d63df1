"""Container images: what a zone's cache holds, and what moving one cost."""

import msgspec


class CachedImage(msgspec.Struct, frozen=True):
    """An image that a zone's registry can deliver without the line: its reference there, its digest, and its bytes."""

    reference: str
    digest: str
    size_bytes: int
    used_ms: int = 0


class ImageTransfer(msgspec.Struct, frozen=True):
    """What one warm-up did. `copied_bytes` crossed the line: layers that were there already did not."""

    reference: str
    digest: str
    copied_bytes: int
    seconds: float
