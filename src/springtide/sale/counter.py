"""The counter: the order path's HTTP front. Many replicas; none holds state that another would need.

`POST /v1/sales/{sale}/orders` buys, `GET` of the same tells what became of it, `GET /v1/sales/{sale}` is the sale's
page; `/healthz`, `/readyz` and `/metrics` are for those who run it. Extensions serve what else they claim.
"""

import asyncio
import contextlib
import gc
import zlib
from collections.abc import Callable, Sequence

from springtide.config import CounterSettings
from springtide.ports import Clock, Ids, Inventory
from springtide.sale import metrics
from springtide.sale.admission import CapacityQueue, Rates, RetrySpread
from springtide.sale.batcher import ANSWER_GRACE_MS, Batcher
from springtide.sale.buyer_connection import BuyerConnection
from springtide.sale.extension import Extension, RoomDoor
from springtide.sale.gauges import gauges
from springtide.sale.holderset import HolderSets
from springtide.sale.hotcache import HotCache
from springtide.sale.listener import Listener
from springtide.sale.order_ids import OrderIds
from springtide.sale.order_status import OrderStatus
from springtide.sale.pooled_stock import PooledStock
from springtide.sale.purchase import OrderBodies
from springtide.sale.refusals import Refusals
from springtide.sale.shedding import LoadMeter, WatchedReserver
from springtide.sale.token_ring import RingKeeper
from springtide.sale.tokens import TokenKeys

SETTINGS_RATE = -1.0
"""Stands for the `rate_max` of the settings."""

BACKLOG = 1024
READY_AGE_S = 2.0
"""How long ago the inventory may have answered last for this replica to call itself ready."""

RETRY_SPAN_S = 2.0
"""Those who are refused are spread over this time."""

_GC_ALLOCATIONS = 50_000


class CounterServer:
    """One replica of the counter. Its inventory is the caller's to close, after `stop`."""

    def __init__(  # noqa: PLR0913 - each is one thing of the world outside, given in by the composition root
        self,
        settings: CounterSettings,
        inventory: Inventory,
        clock: Clock,
        ids: Ids,
        token_keys: TokenKeys | bytes,
        replica_id: str,
        *,
        rate_max: float | None = SETTINGS_RATE,
        extensions: Sequence[Extension] = (),
        door: RoomDoor | None = None,
        more_gauges: metrics.Gauges | None = None,
    ) -> None:
        """`rate_max` (requests a second) overrides that of the settings; None is unthrottled.

        `token_keys` may be the master key: then the keys are those of the inventory's ring. Without a `door` nobody can
        buy in a sale with a waiting room. `more_gauges` are shown beside the counter's own; extensions are the caller's
        to start and close.
        """
        self.settings = settings
        self.clock = clock
        self.ring: RingKeeper | None = None
        if isinstance(token_keys, bytes):
            self.ring = RingKeeper(inventory, clock, token_keys, self._use_keys)
        else:
            self.keys = token_keys
        self.replica_id = replica_id
        self.door = door
        self.path_extensions = tuple((one.claim, one) for one in extensions if one.claim.startswith(b"/"))
        self.sale_extensions = {one.claim: one for one in extensions if not one.claim.startswith(b"/")}
        self.figures = metrics.Figures()
        self.order_ids = OrderIds(ids)
        self.bodies = OrderBodies()
        self.rates = Rates(settings.buyer_rate_max, settings.buyer_burst_max)
        self.addresses: Rates | None = None
        if settings.address_rate_max:
            self.addresses = Rates(settings.address_rate_max, settings.address_burst_max)
        self.retries = RetrySpread(zlib.crc32(replica_id.encode()) / 2**32)
        self.listener = Listener(clock, self.figures, settings.connections_max, settings.body_bytes_max)
        self.capacity: CapacityQueue | None = None
        rate = settings.rate_max if rate_max == SETTINGS_RATE else rate_max
        if rate is not None:
            self.capacity = CapacityQueue(clock, rate, settings.queue_wait_ms_max / 1000)
        self.load = LoadMeter(replica_id, self.figures, self.capacity, rate or 0.0).read
        self.patience_s = settings.purchase_timeout_ms / 1000
        self.purchases_in_flight_max = settings.batch_max * settings.batches_in_flight_max
        self.reserver = WatchedReserver(PooledStock(inventory, ids), clock)
        self._inventory = inventory
        self._more_gauges = more_gauges or {}
        self._server: asyncio.Server | None = None
        self._page_extra = b"Cache-Control: public, max-age=%d, must-revalidate\r\n" % (
            settings.page_age_ms_max // 1000
        )

    async def start(self, host: str, port: int) -> int:
        """Listen, on a free port when `port` is 0; the port. Raises OSError when the address is taken."""
        loop = asyncio.get_running_loop()
        settings = self.settings
        self.batcher = Batcher(self.reserver, self.clock, settings, self.figures)
        self.pages = HotCache(self._inventory, self.clock, settings.page_age_ms_max / 1000)
        self.holders = HolderSets(self._inventory, self.clock)
        self.refusals = Refusals(self.pages, self.holders, self.clock, settings.batch_max)
        self.orders = OrderStatus(self._inventory, self.clock, settings)
        self.metrics_page = metrics.MetricsPage(self.figures, {**gauges(self), **self._more_gauges})
        self._server = await loop.create_server(lambda: BuyerConnection(self), host, port, backlog=BACKLOG)
        self.listener.start()
        self.pages.start()
        if self.ring is not None:
            self.ring.start()
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def drain(self) -> None:
        """Refuse to be ready, let keep-alive end with the next answer, and wait for what is in flight.

        Requests that come nevertheless are served. Each ends by its deadline, so the wait has an end.
        """
        self.listener.draining = True
        with contextlib.suppress(TimeoutError):
            await self.listener.quiet(self._answered_within_s())

    async def stop(self) -> None:
        """Take no more connections, finish what is in flight, and close. Calling it twice does nothing."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        await self.drain()
        if self.ring is not None:
            await self.ring.close()
        await self.refusals.close()
        await self.pages.close()
        await self.holders.close()
        await self.orders.close()
        await self.batcher.close()
        self.listener.stop()
        await server.wait_closed()

    @property
    def ready(self) -> bool:
        """Whether the inventory answers and the replica is not draining."""
        age_s = self.clock.monotonic_s() - self.pages.answered_s
        return not self.listener.draining and age_s <= READY_AGE_S

    def page_extra(self, age_s: float) -> bytes:
        """The headers that tell how old a page is and may become."""
        return self._page_extra + b"Age: %d\r\n" % age_s

    def retry_after(self, at_least_s: float = 0.0, span_s: float = RETRY_SPAN_S) -> bytes:
        """A `Retry-After` header."""
        return b"Retry-After: %d\r\n" % self.retries.retry_after_s(at_least_s, span_s)

    def _use_keys(self, keys: TokenKeys) -> None:
        self.keys = keys

    def _answered_within_s(self) -> float:
        waits_ms = self.settings.purchase_timeout_ms + ANSWER_GRACE_MS + self.settings.queue_wait_ms_max
        return waits_ms / 1000 + 1.0


def tune_interpreter() -> None:
    """Call it once a replica has started: collect garbage less often, and not what has been there since.

    The order path makes no reference cycles: what the collector would look through, over and over, is in use.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_ALLOCATIONS, 20, 50)


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What `asyncio.Runner` takes as `loop_factory`: uvloop where it is installed, else None."""
    try:
        import uvloop  # noqa: PLC0415 - it may be missing, and then asyncio's loop serves
    except ImportError:
        return None
    return uvloop.new_event_loop
