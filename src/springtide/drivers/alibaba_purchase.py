"""An order carried out in batches: each with a token of its own, and remembered, so that a repetition sends the rest.

The first batch goes alone: when stock is short, one call finds out. After it, several are under way at once, until one
is not filled.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from springtide.errors import CloudError, CloudOutOfStock, CloudRefused, CloudUnavailable
from springtide.model import NodeOrder

ORDERS_MAX = 10_000
"""Orders that are remembered; the oldest are forgotten first, and their tokens are then the cloud's to know."""

SendBatch = Callable[[int, int], Awaitable[Sequence[str]]]
"""Sends a batch (its number, its size); the ids of the machines that came of it, fewer than its size or as many."""


class Purchase:
    """One order and what came of it so far."""

    def __init__(self, order: NodeOrder, sizes: Sequence[int]) -> None:
        """`sizes` is how many machines each batch asks for."""
        self.order = order
        self.is_over = False
        """Nothing more will be sent: it is filled, or the cloud has no more."""
        self.buying = asyncio.Lock()
        self._sizes = list(sizes)
        self._done: dict[int, tuple[str, ...]] = {}

    @property
    def node_ids(self) -> list[str]:
        """All machines that it has made."""
        return [node_id for batch in sorted(self._done) for node_id in self._done[batch]]

    async def carry_out(self, send: SendBatch, at_once: int) -> None:
        """Send what has not been answered. Raises CloudError; what was bought before that is in `node_ids`.

        When something was bought, stock, a quota or a refusal that ends it early is no error: the fill tells.
        """
        failures: list[CloudError] = []
        left = [number for number in range(len(self._sizes)) if number not in self._done]

        async def work() -> None:
            while left and not failures and not self.is_over:
                number = left.pop(0)
                try:
                    self._done[number] = tuple(await send(number, self._sizes[number]))
                except CloudError as error:
                    failures.append(error)
                else:
                    self.is_over |= len(self._done[number]) < self._sizes[number]

        if left and left[0] == 0:
            first, left = left, left[:1]
            await work()
            left = first[1:]
        await asyncio.gather(*(work() for _ in range(at_once)))
        self._conclude(failures)

    def _conclude(self, failures: Sequence[CloudError]) -> None:
        unanswered = next((error for error in failures if isinstance(error, CloudUnavailable)), None)
        if unanswered is not None:
            raise unanswered
        if failures and not self.node_ids:
            raise failures[0]
        self.is_over = True


class Purchases:
    """Orders by their client token."""

    def __init__(self) -> None:
        """None has been carried out here."""
        self._by_token: dict[str, Purchase] = {}

    def of(self, order: NodeOrder) -> Purchase | None:
        """What is known of an order. Raises CloudRefused for a token that was used for another one."""
        known = self._by_token.get(order.client_token)
        if known is not None and known.order != order:
            raise CloudRefused(f"token {order.client_token} is of another purchase; take a new one")
        return known

    def begin(self, order: NodeOrder, sizes: Sequence[int]) -> Purchase:
        """Remember an order before it is sent."""
        while len(self._by_token) >= ORDERS_MAX:
            del self._by_token[next(iter(self._by_token))]
        purchase = self._by_token[order.client_token] = Purchase(order, sizes)
        return purchase

    def forget(self, purchase: Purchase) -> None:
        """Nothing came of it: its token may be used again."""
        self._by_token.pop(purchase.order.client_token, None)


def too_few(order: NodeOrder, count: int) -> CloudOutOfStock:
    """The error for an order that got fewer than its least; what it got has to be given back."""
    return CloudOutOfStock(
        f"only {count} of at least {order.count_min} machines of {order.offer_key} could be had; "
        "ask for fewer, or another zone or type"
    )
