"""One counter's refusals without HTTP, on an inventory that counts its calls and a clock that is told to move."""

import asyncio
import itertools
from collections.abc import Sequence

from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.inventory import MemoryInventory
from springtide.model import Holders, ReserveRequest, ReserveResult, ReserveStatus, SaleView
from springtide.sale.holderset import HolderSets
from springtide.sale.hotcache import HotCache
from springtide.sale.orders import bucket_of
from springtide.sale.page import Page
from springtide.sale.problems import Problem
from springtide.sale.refusals import Refusals

TIMEOUT_MS = 2000
_numbers = itertools.count()


class Counted(MemoryInventory):
    """Counts what is asked; `lasts_s` is how long a view takes."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock)
        self.clock = clock
        self.reserves = 0
        self.views = 0
        self.holder_calls = 0
        self.lasts_s = 0.0
        self.failure: Exception | None = None

    async def reserve(self, sale: str, bucket: int, batch: Sequence[ReserveRequest]) -> list[ReserveResult]:
        self.reserves += len(batch)
        return await super().reserve(sale, bucket, batch)

    async def view(self, sale: str) -> SaleView | None:
        self.views += 1
        if self.lasts_s:
            await self.clock.sleep(self.lasts_s)
        if self.failure is not None:
            raise self.failure
        return await super().view(sale)

    async def holders(self, sale: str, bucket: int, after: str) -> Holders:
        self.holder_calls += 1
        return await super().holders(sale, bucket, after)


class Purchase:
    """One purchase; `answer` is what it was told, `from_memory` whether without a call of its own."""

    def __init__(self, replica: "Replica", order: ReserveRequest) -> None:
        self.replica = replica
        self.order = order
        self.answer: ReserveResult | Problem | None = None
        self.from_memory = False
        self.told = 0

    def refused_surely(self, status: ReserveStatus, page: Page) -> None:
        assert page.sale == self.replica.sale
        self.from_memory = True
        self._tell(ReserveResult(status))

    def refused_without_pass(self) -> None:
        self.from_memory = True
        self._tell(ReserveResult(ReserveStatus.UNKNOWN))

    def go_on(self, order: ReserveRequest, page: Page) -> bool:
        if not self.replica.accepting:
            return False
        self.replica.sent.append(asyncio.ensure_future(self._reserve(order, page.buckets)))
        return True

    def find_made(self, order: ReserveRequest, page: Page) -> None:
        self.replica.found.append(order.buyer)
        self.told += 1

    def refused(self, problem: Problem) -> None:
        self._tell(problem)

    async def _reserve(self, order: ReserveRequest, buckets: int) -> None:
        inventory = self.replica.inventory
        [result] = await inventory.reserve(self.replica.sale, bucket_of(order.buyer, buckets), [order])
        self._tell(result)

    def _tell(self, answer: ReserveResult | Problem) -> None:
        self.answer = answer
        self.told += 1

    @property
    def status(self) -> ReserveStatus | None:
        return self.answer.status if isinstance(self.answer, ReserveResult) else None


class Replica:
    """Pages, holders and refusals of one counter."""

    def __init__(self, inventory: Counted, clock: VirtualClock, sale: str = "evening", age_s: float = 0.2) -> None:
        self.inventory = inventory
        self.clock = clock
        self.sale = sale
        self.pages = HotCache(inventory, clock, age_s)
        self.holders = HolderSets(inventory, clock)
        self.refusals = Refusals(self.pages, self.holders, clock, 128)
        self.accepting = True
        self.sent: list[asyncio.Future[None]] = []
        self.found: list[str] = []

    async def start(self) -> None:
        """Know the sale and its holders."""
        self.pages.start()
        await self.clock.advance(0.0)
        page = self.page()
        self.holders.known(page, self.clock.monotonic_s())
        await self.clock.advance(0.0)

    def page(self) -> Page:
        page = self.pages.get(self.sale.encode())
        assert page is not None
        return page

    def buy(self, buyer: str, key: str, sku: str = "tea", *, quantity: int = 1, admitted: bool = True) -> Purchase:
        """What the counter does with a purchase."""
        page = self.page()
        now_ms = self.clock.now_ms()
        order = ReserveRequest(
            buyer, key, sku, quantity, f"o{next(_numbers)}", page.epoch, now_ms + page.skew_ms + TIMEOUT_MS
        )
        purchase = Purchase(self, order)
        doubtful = sku in page.hinted or not page.opened_ms <= now_ms < page.ends_ms
        if (doubtful or not admitted) and self.refusals.doubt(
            page, order, purchase, self.clock.monotonic_s(), admitted=admitted
        ):
            return purchase
        if admitted:
            purchase.go_on(order, page)
        return purchase

    async def close(self) -> None:
        await self.refusals.close()
        await self.pages.close()
        await self.holders.close()
        await asyncio.gather(*self.sent)
