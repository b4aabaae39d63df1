"""What the counter does with a request: queueing for a turn, routing, pages, orders, and what extensions serve."""

import zlib
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Final

from typing_extensions import override

from springtide.model import IDEMPOTENCY_KEY, HeldOrder
from springtide.sale import metrics, problems
from springtide.sale.extension import Extension
from springtide.sale.glance import Request
from springtide.sale.order_status import moment, order_json
from springtide.sale.page import Page
from springtide.sale.purchase import JSON, NO_STORE, OK, PurchaseConnection

PLACES_MAX = 256
"""Targets of purchases that are remembered with their sales."""

_METRICS_OK = b"HTTP/1.1 200 OK\r\nContent-Type: " + metrics.CONTENT_TYPE + b"\r\n"
_ACCEPTED = b"HTTP/1.1 202 Accepted\r\n" + JSON
_ALLOW_ORDERS = b"Allow: GET, HEAD, POST\r\n"
_ALLOW_GET = b"Allow: GET, HEAD\r\n"
_READING = (b"GET", b"HEAD")
_SALES = b"/v1/sales/"
_ORDERS = b"/orders"
_OPERATORS: Final = frozenset((b"/healthz", b"/readyz", b"/metrics"))


class BuyerConnection(PurchaseConnection):
    """One connection to the counter."""

    __slots__ = ()

    @override
    def handle(self, request: Request) -> None:
        """Let it wait for its turn, unless it comes from those who run the service, or from a line to be kept short."""
        self._looked_up = False
        counter = self.counter
        capacity = counter.capacity
        sale = _bought_in(request.url) if request.method == b"POST" else b""
        if not sale and request.url[:1] != b"/":
            request.url = _origin_form(request.url)
        if capacity is not None and not (request.url in _OPERATORS or _is_poll(request)):
            turn = capacity.enter(self, self.started_s)
            if not turn:
                if turn is False:
                    self._shed(metrics.CAPACITY, problems.NOT_ADMITTED, counter.retry_after())
                return
        if sale:
            self._purchase(request, sale)
        else:
            self._serve(request)

    @override
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
        if not url.startswith(_SALES):
            self._serve_other(request, url)
            return
        _, _, _, sale, *rest = url.split(b"/")
        if rest == [b"orders"] and request.method == b"POST":
            self._purchase(request, sale)
        elif not rest:
            if request.method in _READING:
                self._show(request, sale)
            else:
                self.refuse(problems.METHOD_NOT_ALLOWED, _ALLOW_GET)
        elif rest[0] == b"orders":
            self._serve_orders(request, sale, rest[1:])
        elif rest[0] in self.counter.sale_extensions:
            below = b"".join(b"/" + part for part in rest[1:])
            self._extend(self.counter.sale_extensions[rest[0]], request, sale, below)
        else:
            self.refuse(problems.NOT_FOUND)

    # --- the page -------------------------------------------------------------------------------------------

    def _show(self, request: Request, sale: bytes) -> None:
        if not self._address_may(request):
            return
        counter = self.counter
        page = counter.pages.get(sale)
        age_s = counter.clock.monotonic_s() - page.asked_s if page is not None else 0.0
        if page is None or age_s > counter.pages.age_s_max:
            self._look_up(sale)
            return
        page.used_s = self.started_s
        self.listener.figures.successes[metrics.PAGE] += 1
        self.reply(OK, page.body, counter.page_extra(age_s))

    # --- orders ---------------------------------------------------------------------------------------------

    def _serve_orders(self, request: Request, sale: bytes, below: list[bytes]) -> None:
        if not below:
            self._reading(request, _ALLOW_ORDERS, partial(self._orders, sale=sale))
        elif len(below) == 1 and below[0]:
            self._reading(request, _ALLOW_GET, partial(self._orders, sale=sale, order_id=below[0]))
        else:
            self.refuse(problems.NOT_FOUND)

    def _orders(self, request: Request, sale: bytes, order_id: bytes = b"") -> None:
        known = self._buyer(request, sale)
        if known is None:
            return
        buyer, page = known
        if order_id:
            tell = partial(self._tell_order, page, order_id.decode("latin-1"))
        elif request.key is None:
            tell = partial(self._tell_orders, page)
        else:
            text = request.key.decode("latin-1")
            sent_ms = moment(request.sent_ms) if request.sent_ms is not None else None
            if not IDEMPOTENCY_KEY.fullmatch(text):
                self.refuse(problems.BAD_KEY)
                return
            if request.sent_ms is not None and sent_ms is None:
                self.refuse(problems.BAD_SENT)
                return
            # Judged before the question is put: an order that is made later is not overlooked then.
            now_ms = self.listener.now_ms
            left_ms = self.counter.orders.decided_ms((page.sale, buyer, text), sent_ms, now_ms) - now_ms
            tell = partial(self._tell_purchase, page, text, left_ms)
        bucket = zlib.crc32(buyer.encode()) % page.buckets
        if not self.counter.orders.ask(page.sale, bucket, buyer, partial(self._told, tell)):
            self._shed(metrics.LOOKUPS, problems.OVERLOADED, self.counter.retry_after())

    def _told(self, tell: "partial[None]", orders: list[HeldOrder] | None) -> None:
        if orders is None:
            self.refuse(problems.UNAVAILABLE, self.counter.retry_after())
        else:
            self.proceed(lambda _: tell(orders))

    def _tell_order(self, page: Page, order_id: str, orders: list[HeldOrder]) -> None:
        found = next((one for one in orders if one.reservation.order_id == order_id), None)
        if found is None:
            self.refuse(problems.NO_ORDER)
        else:
            self._reply_orders(order_json(page, found))

    def _tell_orders(self, page: Page, orders: list[HeldOrder]) -> None:
        texts = ",".join(order_json(page, one) for one in orders)
        self._reply_orders(f'{{"sale":"{page.sale}","orders":[{texts}]}}')

    def _tell_purchase(self, page: Page, key: str, left_ms: int, orders: list[HeldOrder]) -> None:
        found = next((one for one in orders if one.reservation.key == key), None)
        if found is not None:
            self._reply_orders(order_json(page, found))
        elif left_ms >= 0:
            self.listener.figures.successes[metrics.UNDECIDED] += 1
            self.reply(_ACCEPTED, b'{"status":"undecided"}', NO_STORE + self.counter.retry_after(left_ms / 1000, 0.0))
        else:
            self.refuse(problems.NO_PURCHASE)

    def _reply_orders(self, text: str) -> None:
        self.listener.figures.successes[metrics.ORDERS] += 1
        self.reply(OK, text.encode(), NO_STORE)

    # --- everything else ------------------------------------------------------------------------------------

    def _serve_other(self, request: Request, url: bytes) -> None:
        if url in _OPERATORS:
            self._reading(request, _ALLOW_GET, self._operate)
            return
        for claim, extension in self.counter.path_extensions:
            if url.startswith(claim):
                sale, slash, rest = url[len(claim) :].partition(b"/")
                self._extend(extension, request, sale, slash + rest)
                return
        self.refuse(problems.NOT_FOUND)

    def _extend(self, extension: Extension, request: Request, sale: bytes, rest: bytes) -> None:
        if extension.for_buyers:
            known = self._buyer(request, sale)
            if known is not None:
                buyer, page = known
                extension.handle(self, request, page, buyer, rest)
        elif self._address_may(request):
            found = self.counter.pages.get(sale)
            if found is None:
                self._look_up(sale)
            else:
                found.used_s = self.started_s
                extension.handle(self, request, found, "", rest)

    def _operate(self, request: Request) -> None:
        counter = self.counter
        successes = self.listener.figures.successes
        url = request.url.partition(b"?")[0]
        if url == b"/metrics":
            successes[metrics.METRICS] += 1
            self.reply(_METRICS_OK, counter.metrics_page.text(), NO_STORE)
        elif url == b"/healthz":
            successes[metrics.HEALTHZ] += 1
            self.reply(OK, b'{"status":"alive"}', NO_STORE)
        elif counter.ready:
            successes[metrics.READYZ] += 1
            self.reply(OK, b'{"status":"ready"}', NO_STORE)
        else:
            self.refuse(problems.NOT_READY, NO_STORE + counter.retry_after())

    def _reading(self, request: Request, allow: bytes, serve: Callable[[Request], None]) -> None:
        if request.method in _READING:
            serve(request)
        else:
            self.refuse(problems.METHOD_NOT_ALLOWED, allow)


def places_known() -> int:
    """How many targets of purchases are remembered, of PLACES_MAX."""
    return _bought_in.cache_info().currsize


@lru_cache(PLACES_MAX)
def _bought_in(url: bytes) -> bytes:
    """The sale in which a POST to this target buys; empty when another look is needed to tell."""
    head, sale, tail = url[: len(_SALES)], url[len(_SALES) : -len(_ORDERS)], url[-len(_ORDERS) :]
    return sale if (head, tail) == (_SALES, _ORDERS) and not (b"/" in sale or b"?" in sale) else b""


def _is_poll(request: Request) -> bool:
    """Whether somebody in a waiting room asks how far the line is: answered from memory, so nothing to queue for."""
    return request.method == b"GET" and request.url.endswith(b"/room")


def _origin_form(url: bytes) -> bytes:
    """`/path` of `http://host/path`, which a server has to accept too (RFC 9112, 3.2.2)."""
    scheme, separator, rest = url.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        return url
    place, question, query = rest.partition(b"?")
    _, slash, path = place.partition(b"/")
    return (slash + path or b"/") + question + query
