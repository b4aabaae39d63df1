"""The counter: the order path's HTTP front. Many replicas; none holds state that another would need.

`POST /v1/sales/{sale}/orders` buys, `GET /v1/sales/{sale}` is the sale's page; `/healthz`, `/readyz` and
`/metrics` are for those who run it.
"""

import asyncio
import contextlib
import gc
import zlib
from collections.abc import Callable
from typing import Annotated, Final

import msgspec
from typing_extensions import override

from springtide.config import CounterSettings
from springtide.model import (
    IDEMPOTENCY_KEY,
    IDENTIFIER,
    QUANTITY_MAX,
    ReserveRequest,
    ReserveResult,
    ReserveStatus,
)
from springtide.ports import Clock, Ids, Inventory
from springtide.sale import metrics, problems
from springtide.sale.admission import BuyerRates, CapacityQueue, RetrySpread
from springtide.sale.batcher import ANSWER_GRACE_MS, Batcher
from springtide.sale.connection import HttpConnection
from springtide.sale.glance import Request
from springtide.sale.hotcache import HotCache, Page
from springtide.sale.listener import Listener
from springtide.sale.problems import Problem
from springtide.sale.tokens import TokenError, TokenKeys

SETTINGS_RATE = -1.0
"""Stands for the `rate_max` of the settings."""

BACKLOG = 1024
READY_AGE_S = 2.0
"""How long ago the inventory may have answered last for this replica to call itself ready."""

RETRY_SPAN_S = 2.0
"""Those who are refused are spread over this time."""

_GC_ALLOCATIONS = 50_000
_JSON = b"Content-Type: application/json\r\n"
_CREATED = b"HTTP/1.1 201 Created\r\n" + _JSON
_OK = b"HTTP/1.1 200 OK\r\n" + _JSON
_METRICS_OK = b"HTTP/1.1 200 OK\r\nContent-Type: " + metrics.CONTENT_TYPE + b"\r\n"
_NO_STORE = b"Cache-Control: no-store\r\n"
_CHALLENGE = b"WWW-Authenticate: Bearer\r\n"
_ALLOW_POST = b"Allow: POST\r\n"
_ALLOW_GET = b"Allow: GET, HEAD\r\n"
_READING = (b"GET", b"HEAD")
_SALES = b"/v1/sales/"
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"
_PAIRS: Final = tuple(first + second for first in _BASE36 for second in _BASE36)

_REFUSALS: Final = {
    ReserveStatus.KEY_REUSED: problems.KEY_REUSED,
    ReserveStatus.SOLD_OUT: problems.SOLD_OUT,
    ReserveStatus.LIMIT_REACHED: problems.LIMIT_REACHED,
    ReserveStatus.UNKNOWN_SKU: problems.UNKNOWN_SKU,
    ReserveStatus.NOT_OPEN: problems.NOT_OPEN,
    ReserveStatus.CLOSED: problems.CLOSED,
    ReserveStatus.PAUSED: problems.UNAVAILABLE,
    ReserveStatus.LATE: problems.OVERLOADED,
    ReserveStatus.STALE_EPOCH: problems.UNAVAILABLE,
    ReserveStatus.JOURNAL_FULL: problems.OVERLOADED,
}


class OrderBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What a purchase asks for."""

    sku: str
    quantity: Annotated[int, msgspec.Meta(ge=1, le=QUANTITY_MAX)] = 1


_decode_order = msgspec.json.Decoder(OrderBody).decode


class OrderIds:
    """Order ids of one replica: a random prefix that no other replica has, and a count in base 36."""

    __slots__ = ("_head", "_low", "_prefix", "_stem")

    def __init__(self, ids: Ids) -> None:
        """The prefix is drawn once, so that an order costs no randomness."""
        self._prefix = ids.new("")
        self._low = len(_PAIRS)
        self._head = -1
        self._stem = ""

    def next(self) -> str:
        """An id that has not been given out."""
        low = self._low
        if low == len(_PAIRS):
            self._head += 1
            self._stem = f"{self._prefix}-{_base36(self._head)}"
            low = 0
        self._low = low + 1
        return self._stem + _PAIRS[low]


class CounterServer:
    """One replica of the counter. Its inventory is the caller's to close, after `stop`."""

    def __init__(  # noqa: PLR0913 - each is one thing of the world outside, given in by the composition root
        self,
        settings: CounterSettings,
        inventory: Inventory,
        clock: Clock,
        ids: Ids,
        token_keys: TokenKeys,
        replica_id: str,
        *,
        rate_max: float | None = SETTINGS_RATE,
    ) -> None:
        """`rate_max` (requests a second) overrides that of the settings; None is unthrottled."""
        self.settings = settings
        self.clock = clock
        self.keys = token_keys
        self.replica_id = replica_id
        self.figures = metrics.Figures()
        self.order_ids = OrderIds(ids)
        self.rates = BuyerRates(settings.buyer_rate_max, settings.buyer_burst_max)
        self.retries = RetrySpread(zlib.crc32(replica_id.encode()) / 2**32)
        self.listener = Listener(clock, self.figures, settings.connections_max, settings.body_bytes_max)
        self.capacity: CapacityQueue | None = None
        rate = settings.rate_max if rate_max == SETTINGS_RATE else rate_max
        if rate is not None:
            self.capacity = CapacityQueue(clock, rate, settings.queue_wait_ms_max / 1000)
        self._inventory = inventory
        self._server: asyncio.Server | None = None
        self._page_extra = b"Cache-Control: public, max-age=%d, must-revalidate\r\n" % (
            settings.page_age_ms_max // 1000
        )

    async def start(self, host: str, port: int) -> int:
        """Listen, on a free port when `port` is 0; the port. Raises OSError when the address is taken."""
        loop = asyncio.get_running_loop()
        self.batcher = Batcher(self._inventory, self.clock, self.settings, self.figures)
        self.pages = HotCache(self._inventory, self.clock, self.settings.page_age_ms_max / 1000)
        self.metrics_page = metrics.MetricsPage(self.figures, self._gauges())
        self._server = await loop.create_server(lambda: BuyerConnection(self), host, port, backlog=BACKLOG)
        self.listener.start()
        self.pages.start()
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
        await self.pages.close()
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

    def _answered_within_s(self) -> float:
        waits_ms = self.settings.purchase_timeout_ms + ANSWER_GRACE_MS + self.settings.queue_wait_ms_max
        return waits_ms / 1000 + 1.0

    def _gauges(self) -> metrics.Gauges:
        listener = self.listener
        capacity = self.capacity
        return {
            "in_flight": ("Requests begun and not answered", lambda: listener.in_flight),
            "connections": ("Open connections", lambda: len(listener.connections)),
            "connections_max": ("Limit of open connections", lambda: listener.connections_max),
            "queue_depth": (
                "Requests that wait to be admitted",
                lambda: capacity.depth if capacity is not None else 0,
            ),
            "queue_depth_max": (
                "Limit of the admission queue, 0 when there is none",
                lambda: capacity.depth_max if capacity is not None else 0,
            ),
            "batches_in_flight": ("Calls to the inventory under way", lambda: self.batcher.in_flight),
            "purchases_waiting": ("Purchases that wait for a batch", lambda: self.batcher.waiting),
            "sales_cached": ("Sales whose page is kept true", lambda: len(self.pages)),
            "buyers_tracked": ("Buyers whose rate is remembered", lambda: len(self.rates)),
            "draining": ("1 while the replica drains", lambda: int(listener.draining)),
        }


class BuyerConnection(HttpConnection):
    """What the counter does with a request, and how it words the answers."""

    __slots__ = ("_looked_up", "_page", "counter")

    def __init__(self, counter: CounterServer) -> None:
        """One for each connection."""
        super().__init__(counter.listener)
        self.counter = counter
        self._looked_up = False
        self._page: Page | None = None

    @override
    def handle(self, request: Request) -> None:
        """Let it wait for its turn, unless it comes from those who run the service."""
        self._looked_up = False
        capacity = self.counter.capacity
        if request.url.startswith(b"http"):
            request.url = _origin_form(request.url)
        if capacity is None or request.url in _OPERATORS:
            self._serve(request)
            return
        turn = capacity.enter(self, self.started_s)
        if turn:
            self._serve(request)
        elif turn is False:
            self.refuse(problems.NOT_ADMITTED, self.counter.retry_after())

    def admitted(self) -> None:
        """The turn has come."""
        self.proceed(self._serve)

    @override
    def lost(self) -> None:
        """Leave the queue; a purchase under way goes on, and its answer is dropped."""
        capacity = self.counter.capacity
        if capacity is not None and self.busy and capacity.leave(self):
            self.busy = False
            self.listener.finished()
            self.listener.figures.disconnected += 1

    def _serve(self, request: Request) -> None:
        url = request.url
        if b"?" in url:
            url = url.partition(b"?")[0]
        if url.startswith(_SALES):
            parts = url.split(b"/")
            if len(parts) == 5 and parts[4] == b"orders":  # noqa: PLR2004 - "", v1, sales, the sale, orders
                if request.method == b"POST":
                    self._purchase(request, parts[3])
                else:
                    self.refuse(problems.METHOD_NOT_ALLOWED, _ALLOW_POST)
                return
            if len(parts) == 4:  # noqa: PLR2004 - "", v1, sales, the sale
                if request.method in _READING:
                    self._show(parts[3])
                else:
                    self.refuse(problems.METHOD_NOT_ALLOWED, _ALLOW_GET)
                return
        self._operate(request, url)

    # --- buying ---------------------------------------------------------------------------------------------

    def _purchase(self, request: Request, sale: bytes) -> None:
        counter = self.counter
        authorization = request.authorization
        if authorization is None or authorization[:7].lower() != b"bearer ":
            self.refuse(problems.UNAUTHORIZED, _CHALLENGE)
            return
        now_ms = self.listener.now_ms
        try:
            buyer = counter.keys.verify(authorization[7:], sale, now_ms / 1000)
        except TokenError as error:
            self._refuse_saying(problems.UNAUTHORIZED, str(error), _CHALLENGE)
            return
        page = counter.pages.get(sale)
        if page is None:
            self._look_up(sale)
            return
        wait_s = counter.rates.wait_s(buyer, self.started_s)
        if wait_s:
            self.refuse(problems.RATE_LIMITED, counter.retry_after(wait_s, 0.0))
            return
        order = self._order(request, buyer, page, now_ms)
        if order is None:
            return
        page.used_s = self.started_s
        self._page = page
        bucket = zlib.crc32(buyer.encode()) % page.buckets if page.buckets > 1 else 0
        if not counter.batcher.add(page.sale, bucket, order, self, page.skew_ms):
            self.refuse(problems.OVERLOADED, counter.retry_after())

    def _order(self, request: Request, buyer: str, page: Page, now_ms: int) -> ReserveRequest | None:
        """The purchase as the inventory takes it; None when the request has been refused."""
        key = request.key
        text = key.decode("latin-1") if key is not None else ""
        if not IDEMPOTENCY_KEY.fullmatch(text):
            self.refuse(problems.BAD_KEY)
            return None
        try:
            body = _decode_order(request.body)
        except msgspec.DecodeError as error:
            self._refuse_saying(problems.BAD_BODY, f"{problems.BAD_BODY.detail} {error}.")
            return None
        if body.sku not in page.skus and not IDENTIFIER.fullmatch(body.sku):
            self._refuse_saying(problems.BAD_BODY, "A SKU is 1 to 64 letters, digits, '-' or '_'.")
            return None
        return ReserveRequest(
            buyer,
            text,
            body.sku,
            body.quantity,
            self.counter.order_ids.next(),
            page.epoch,
            now_ms + page.skew_ms + self.counter.settings.purchase_timeout_ms,
        )

    def purchased(self, request: ReserveRequest, result: ReserveResult, now_s: float) -> None:
        """The inventory has decided."""
        figures = self.listener.figures
        figures.latency(now_s - self.started_s)
        status = result.status
        if status is ReserveStatus.RESERVED:
            figures.successes[metrics.RESERVED] += 1
            self.reply(_CREATED, self._order_body(request, result, "reserved"))
        elif status is ReserveStatus.REPEATED:
            figures.successes[metrics.REPEATED] += 1
            self.reply(_OK, self._order_body(request, result, "reserved" if result.live else "ended"))
        else:
            self._refuse_purchase(result)

    def _order_body(self, request: ReserveRequest, result: ReserveResult, status: str) -> bytes:
        # Every text in it is an identifier, so nothing needs escaping.
        sale = self._page.sale if self._page is not None else ""
        return (
            f'{{"order_id":"{result.order_id}","sale":"{sale}","sku":"{request.sku}",'
            f'"quantity":{request.quantity},"status":"{status}","pay_by_ms":{result.pay_by_ms}}}'
        ).encode()

    def _refuse_purchase(self, result: ReserveResult) -> None:
        counter = self.counter
        status = result.status
        problem = _REFUSALS[status]
        body = b""
        extra = b""
        if status is ReserveStatus.LIMIT_REACHED:
            body = problem.body_of(problem.detail, result.order_id)
        elif status is ReserveStatus.NOT_OPEN and self._page is not None:
            opens_in_ms = self._page.opens_ms - counter.clock.now_ms() - self._page.skew_ms
            extra = counter.retry_after(opens_in_ms / 1000, 0.0)
        elif status is ReserveStatus.STALE_EPOCH and self._page is not None:
            counter.pages.look_up(self._page.sale.encode(), _nobody)
        if problem.status == 503:  # noqa: PLR2004 - Service Unavailable
            extra = counter.retry_after()
        self.refuse(problem, extra, body)

    def refused(self, problem: Problem) -> None:
        """There is no decision."""
        self.refuse(problem, self.counter.retry_after())

    # --- the page -------------------------------------------------------------------------------------------

    def _show(self, sale: bytes) -> None:
        counter = self.counter
        page = counter.pages.get(sale)
        if page is None:
            self._look_up(sale)
            return
        age_s = counter.clock.monotonic_s() - page.asked_s
        if age_s > counter.pages.age_s_max:
            self._look_up(sale)
            return
        page.used_s = self.started_s
        self.listener.figures.successes[metrics.PAGE] += 1
        self.reply(_OK, page.body, counter.page_extra(age_s))

    def _look_up(self, sale: bytes) -> None:
        """Ask for the sale, once, and serve the request again; not for what is known to be unknown."""
        pages = self.counter.pages
        if pages.known_unknown(sale, self.started_s):
            self.refuse(problems.UNKNOWN_SALE)
        elif self._looked_up:
            unknown = pages.known_unknown(sale, self.counter.clock.monotonic_s())
            if unknown:
                self.refuse(problems.UNKNOWN_SALE)
            else:
                self.refuse(problems.UNAVAILABLE, self.counter.retry_after())
        else:
            self._looked_up = True
            if not pages.look_up(sale, self.admitted):
                self.refuse(problems.OVERLOADED, self.counter.retry_after())

    # --- for those who run it -------------------------------------------------------------------------------

    def _operate(self, request: Request, url: bytes) -> None:
        if url not in _OPERATORS:
            self.refuse(problems.NOT_FOUND)
            return
        if request.method not in _READING:
            self.refuse(problems.METHOD_NOT_ALLOWED, _ALLOW_GET)
            return
        successes = self.listener.figures.successes
        if url == b"/metrics":
            successes[metrics.METRICS] += 1
            self.reply(_METRICS_OK, self.counter.metrics_page.text(), _NO_STORE)
        elif url == b"/healthz":
            successes[metrics.HEALTHZ] += 1
            self.reply(_OK, b'{"status":"alive"}', _NO_STORE)
        elif self.counter.ready:
            successes[metrics.READYZ] += 1
            self.reply(_OK, b'{"status":"ready"}', _NO_STORE)
        else:
            self.refuse(problems.NOT_READY, _NO_STORE + self.counter.retry_after())

    def _refuse_saying(self, problem: Problem, detail: str, extra: bytes = b"") -> None:
        self.refuse(problem, extra, problem.body_of(detail))


_OPERATORS: Final = frozenset((b"/healthz", b"/readyz", b"/metrics"))


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


def _origin_form(url: bytes) -> bytes:
    """`/path` of `http://host/path`, which a server has to accept too (RFC 9112, 3.2.2)."""
    scheme, separator, rest = url.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        return url
    _, slash, path = rest.partition(b"/")
    return slash + path or b"/"


def _base36(number: int) -> str:
    letters = ""
    while number:
        number, digit = divmod(number, 36)
        letters = _BASE36[digit] + letters
    return letters


def _nobody() -> None:
    """Nobody waits."""
