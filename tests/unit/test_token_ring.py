"""The counter's keys follow the ring, and stay when nobody tells it."""

from springtide.drivers.memory.clock import VirtualClock
from springtide.errors import InventoryUnavailable
from springtide.model import TokenRing
from springtide.sale.token_ring import ASK_EVERY_S, RingKeeper
from springtide.sale.tokens import TokenKeys, keys_of

MASTER = b"m" * 32


class Rings:
    def __init__(self) -> None:
        self.ring = TokenRing(1, 1)
        self.failure: Exception | None = None

    async def token_ring(self) -> TokenRing:
        if self.failure is not None:
            raise self.failure
        return self.ring


async def test_keys_change_with_the_ring_and_stay_while_it_cannot_be_asked() -> None:
    clock, rings, used = VirtualClock(), Rings(), list[TokenKeys]()
    keeper = RingKeeper(rings, clock, MASTER, used.append)
    assert len(used) == 1
    keeper.start()
    await clock.advance(0.0)
    assert len(used) == 1
    old = keys_of(MASTER, TokenRing(1, 1)).sign("anna", "evening", 9_999_999_999).encode()
    rings.ring = TokenRing(1, 2)
    await clock.advance(ASK_EVERY_S)
    new = keys_of(MASTER, TokenRing(2, 2)).sign("anna", "evening", 9_999_999_999).encode()
    assert [used[-1].verify(token, b"evening", 0.0) for token in (old, new)] == ["anna", "anna"]
    for failure in (InventoryUnavailable("away"), RuntimeError("a fault")):
        rings.failure = failure
        await clock.advance(3 * ASK_EVERY_S)
    assert len(used) == 2
    rings.failure, rings.ring = None, TokenRing(9, 2)
    await clock.advance(ASK_EVERY_S)
    assert len(used) == 2, "a ring that cannot be is not used"
    rings.ring = TokenRing(2, 3)
    await clock.advance(ASK_EVERY_S)
    assert len(used) == 3
    await keeper.close()
