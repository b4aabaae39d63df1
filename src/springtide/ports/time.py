"""Time, ids and chance: what makes a run what it is, given in from outside."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol


class Timer(Protocol):
    """A callback that is due; cancelling it twice does nothing."""

    def cancel(self) -> None:
        """Do not call it any more."""


class Clock(Protocol):
    """Time. The only place that the product takes it from, so that a twin can run faster than it."""

    def now_ms(self) -> int:
        """The moment, Unix milliseconds UTC."""

    def monotonic_s(self) -> float:
        """Seconds since some start; never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """Raise TimeoutError inside the block when it takes longer."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call back once, after this many seconds."""


class Ids(Protocol):
    """Fresh identifiers."""

    def new(self, prefix: str) -> str:
        """`prefix` and at least 64 random bits in letters and digits: unique, and not to be guessed."""


class Chance(Protocol):
    """A stream of pseudo-random numbers that a seed reproduces (`random.Random` is one)."""

    def random(self) -> float:
        """The next number in [0, 1)."""

    def uniform(self, a: float, b: float) -> float:
        """The next number in [a, b]."""

    def expovariate(self, lambd: float) -> float:
        """The next exponential number; mean 1/lambd."""
