"""Buyer tokens for the shop to hand out, and the change of the keys they are signed with.

Keys have generations, from `oldest` to `newest` of the ring; the ledger keeps the ring and the counters learn it from
the inventory. A rotation adds a generation, and tokens of those before it stay good until they are retired.
"""

from collections.abc import Sequence

import msgspec
import structlog

from springtide.errors import InventoryError, SpringtideError
from springtide.model import TokenRing
from springtide.ports import Clock, Inventory, Ledger
from springtide.sale.backoff import Backoff
from springtide.sale.merchant import MerchantError, Refusal
from springtide.sale.tokens import KEYS_MAX, keys_of

KNOWN_AFTER_S = 5.0
"""Within this time of a rotation every counter takes the new generation; until then tokens are signed with the last."""

SETTLE_MAX = 5
EVERY_S = 2.0
RETRY_S_MAX = 10.0

_log = structlog.get_logger(__name__)


class IssuedTokens(msgspec.Struct, frozen=True):
    """Tokens in the order of their buyers, good until `expires_s` (Unix seconds)."""

    tokens: tuple[str, ...]
    expires_s: int
    generation: int


class TokenOffice:
    """Signs tokens with keys derived from the master key, over the ports."""

    def __init__(self, inventory: Inventory, ledger: Ledger, clock: Clock, master: bytes) -> None:
        """Raises ValueError for a master key under 32 bytes."""
        keys_of(master, TokenRing(1, 1))
        self._inventory = inventory
        self._ledger = ledger
        self._clock = clock
        self._master = master
        self._newest = (0, 0.0)
        self.issued = 0

    async def issue(self, sale: str, buyers: Sequence[str], ttl_s: int) -> IssuedTokens:
        """Tokens of this sale for these buyers. Raises LedgerUnavailable."""
        ring = self._signing(await self._ledger.token_ring())
        keys = keys_of(self._master, ring)
        expires_s = self._clock.now_ms() // 1000 + ttl_s
        self.issued += len(buyers)
        return IssuedTokens(tuple(keys.sign(buyer, sale, expires_s) for buyer in buyers), expires_s, ring.newest)

    async def ring(self) -> TokenRing:
        """The generations in use."""
        return await self._ledger.token_ring()

    async def rotate(self) -> TokenRing:
        """Add a generation. Raises MerchantError when there are as many as there may be."""
        ring = await self._ledger.token_ring()
        if ring.newest + 1 - ring.oldest >= KEYS_MAX:
            raise MerchantError(
                Refusal.RING_IS_FULL, f"{KEYS_MAX} generations are in use, the most there may be: retire {ring.oldest}"
            )
        await self._ledger.set_token_ring(TokenRing(ring.oldest, ring.newest + 1))
        return await self.settle()

    async def retire(self, generation: int) -> TokenRing:
        """Drop the oldest generation, which must be this one: its tokens are good for nothing. Again has no effect.

        Raises MerchantError when it is not the oldest, or is the only one.
        """
        ring = await self._ledger.token_ring()
        if not 1 <= generation <= ring.oldest:
            raise MerchantError(Refusal.CHANGED_MEANWHILE, f"generation: {ring.oldest} is the one to be retired next")
        if generation == ring.oldest:
            if ring.oldest >= ring.newest:
                raise MerchantError(
                    Refusal.RING_IS_SINGLE, f"only generation {ring.newest} is in use: rotate, and retire it later"
                )
            await self._ledger.set_token_ring(TokenRing(ring.oldest + 1, ring.newest))
        return await self.settle()

    async def settle(self) -> TokenRing:
        """Bring the inventory to the ledger's ring, until that has not changed meanwhile."""
        ring = await self._ledger.token_ring()
        for _ in range(SETTLE_MAX):
            if await self._inventory.token_ring() != ring:
                await self._inventory.set_token_ring(ring)
            before, ring = ring, await self._ledger.token_ring()
            if ring == before:
                return ring
        raise InventoryError("the token ring is being changed by others; try again")

    async def run(self) -> None:
        """Bring the inventory to the ledger's ring now and then, where a crash came between, until cancelled."""
        backoff = Backoff(EVERY_S, RETRY_S_MAX)
        while True:
            try:
                await self.settle()
                backoff.reset()
                wait_s = EVERY_S
            except SpringtideError as error:
                _log.warning("token_ring_not_settled", error=str(error))
                wait_s = backoff.next_s()
            await self._clock.sleep(wait_s)

    def _signing(self, ring: TokenRing) -> TokenRing:
        """The ring to sign by: without its newest generation as long as a counter may not know it."""
        now_s = self._clock.monotonic_s()
        if self._newest[0] != ring.newest:
            self._newest = (ring.newest, now_s)
        is_known = now_s - self._newest[1] >= KNOWN_AFTER_S
        return ring if is_known or ring.oldest == ring.newest else TokenRing(ring.oldest, ring.newest - 1)
