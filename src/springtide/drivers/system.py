"""The real clock, real randomness and real ids: the only module that may read them."""

import asyncio
import random
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from springtide.ports import Chance, Timer

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_ID_LETTERS = 16  # log2(36^16) = 82 random bits


class SystemClock:
    """`ports.Clock` on the machine's clock and the running event loop."""

    def now_ms(self) -> int:
        """The moment, Unix milliseconds UTC."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Seconds since some start; never goes back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """Raise TimeoutError inside the block when it takes longer."""
        return asyncio.timeout(seconds)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call back once, after this many seconds."""
        return asyncio.get_running_loop().call_later(seconds, callback)


class SystemIds:
    """`ports.Ids` from the operating system's randomness."""

    def new(self, prefix: str) -> str:
        """`prefix` and 16 random letters and digits (82 bits)."""
        return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LETTERS))

    def secret(self) -> bytes:
        """A fresh 32-byte key."""
        return secrets.token_bytes(32)


def chance(seed: int) -> Chance:
    """The pseudo-random stream of this seed."""
    return random.Random(seed)  # noqa: S311 - a reproducible stream is wanted, not a secret
