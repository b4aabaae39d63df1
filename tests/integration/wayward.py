"""A memory inventory that fails, or waits, on demand."""

import asyncio
from collections.abc import Sequence

from springtide.drivers.memory.inventory import MemoryInventory
from springtide.model import ReserveRequest, ReserveResult, SaleView
from tests.integration.counter_client import CLOCK


class Wayward(MemoryInventory):
    """A memory inventory that fails, or waits, on demand."""

    def __init__(self) -> None:
        super().__init__(CLOCK)
        self.failure: Exception | None = None
        self.views_fail: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.batches: list[int] = []
        self.views = 0

    async def reserve(self, sale: str, bucket: int, batch: Sequence[ReserveRequest]) -> list[ReserveResult]:
        self.batches.append(len(batch))
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return await super().reserve(sale, bucket, batch)

    async def view(self, sale: str) -> SaleView | None:
        self.views += 1
        if self.views_fail is not None:
            raise self.views_fail
        return await super().view(sale)

    async def sales(self) -> list[str]:
        if self.views_fail is not None:
            raise self.views_fail
        return await super().sales()
