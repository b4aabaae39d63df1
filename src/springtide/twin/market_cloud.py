"""The twin's cloud behind the Cloud port, for code that waits: its world is brought up to the clock at each call."""

from collections.abc import Sequence

from springtide.errors import CloudUnavailable
from springtide.model import Node, NodeOrder, Offer, Quota
from springtide.ports import Clock
from springtide.twin.market import Market


class MarketCloud:
    """`ports.Cloud` over a market whose kernel began at this clock's moment, or before it."""

    def __init__(self, market: Market, clock: Clock, latency_s: float = 0.0) -> None:
        """Each call takes `latency_s`, and has its effect at the end of that time."""
        self._market = market
        self._clock = clock
        self._latency_s = latency_s
        self.failing = False
        """Set it to make every call fail without an effect."""
        self.lost_answers = 0
        """So many of the next purchases are made, and their answers lost."""

    async def rent(self, order: NodeOrder) -> list[Node]:
        """See the port."""
        await self._arrive()
        nodes = self._market.rent(order)
        if self.lost_answers > 0:
            self.lost_answers -= 1
            raise CloudUnavailable("the answer was lost; repeat with the same token")
        return nodes

    async def nodes(self) -> list[Node]:
        """See the port."""
        await self._arrive()
        return list(self._market.nodes())

    async def release(self, node_ids: Sequence[str]) -> None:
        """See the port."""
        await self._arrive()
        self._market.release(node_ids)

    async def keep_until(self, node_ids: Sequence[str], release_at_ms: int) -> None:
        """See the port."""
        await self._arrive()
        self._market.keep_until(node_ids, release_at_ms)

    async def offers(self) -> list[Offer]:
        """See the port."""
        await self._arrive()
        return list(self._market.offers())

    async def quotas(self) -> list[Quota]:
        """See the port."""
        await self._arrive()
        return list(self._market.quotas())

    async def cost_fen(self, now_ms: int) -> float:
        """See the port."""
        self.catch_up()
        return self._market.cost_fen(now_ms)

    async def close(self) -> None:
        """See the port."""

    def catch_up(self) -> None:
        """Let everything happen in the market that is due by the clock."""
        self._market.kernel.run(self._clock.now_ms())

    async def _arrive(self) -> None:
        if self._latency_s:
            await self._clock.sleep(self._latency_s)
        self.catch_up()
        if self.failing:
            raise CloudUnavailable("the cloud does not answer; repeat with the same token")
