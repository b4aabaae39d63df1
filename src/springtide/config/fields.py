"""The kinds of numbers that settings are made of, with the bounds that hold for each."""

from typing import Annotated

from msgspec import Meta

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1, le=100_000)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Milliseconds = Annotated[int, Meta(ge=1, le=3_600_000)]
Port = Annotated[int, Meta(ge=1, le=65_535)]


def to_ms(seconds: float) -> int:
    """Whole milliseconds."""
    return round(seconds * 1000)
