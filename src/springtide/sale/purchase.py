"""A purchase over HTTP: who asks, whether he may, what he wants; then the inventory's answer, in HTTP's words."""

import asyncio
import zlib
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from typing_extensions import override

from springtide.model import (
    IDENTIFIER,
    QUANTITY_MAX,
    HeldOrder,
    ReserveRequest,
    ReserveResult,
    ReserveStatus,
)
from springtide.sale import metrics, problems
from springtide.sale.addresses import client_address, network
from springtide.sale.connection import HttpConnection
from springtide.sale.glance import Request
from springtide.sale.order_status import moment, order_json
from springtide.sale.page import Page
from springtide.sale.problems import Problem
from springtide.sale.shedding import LaneLoad
from springtide.sale.tokens import TokenError

if TYPE_CHECKING:
    from springtide.sale.counter import CounterServer

BODIES_MAX = 256
"""Different bodies that are remembered; then they are learnt anew."""

BODY_BYTES_MAX = 256
"""Longer bodies are not remembered."""

NOT_OPEN_SPAN_S = 1.0
"""Those who come before the opening are spread over this time after it."""

QUEUE_FIRST = "This sale has a waiting room: queue at /v1/sales/{sale}/room and send the pass in a Room-Pass header."

JSON = b"Content-Type: application/json\r\n"
OK = b"HTTP/1.1 200 OK\r\n" + JSON
NO_STORE = b"Cache-Control: no-store\r\n"
_CREATED = b"HTTP/1.1 201 Created\r\n" + JSON
KEY_BYTES_MAX = 64
_KEY_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:-"
_BEARER = b"Bearer "
_BEARER_IN_LOWER_CASE = b"bearer "
_CHALLENGE = b"WWW-Authenticate: Bearer\r\n"
_SERVICE_UNAVAILABLE = 503

# Looked up once: an enum does that in Python.
_RESERVED: Final = ReserveStatus.RESERVED
_LIMIT_REACHED: Final = ReserveStatus.LIMIT_REACHED
_NOT_OPEN: Final = ReserveStatus.NOT_OPEN
_SOLD_OUT: Final = ReserveStatus.SOLD_OUT

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
    ReserveStatus.UNKNOWN: problems.OUTCOME_UNKNOWN,
}


class OrderBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What a purchase asks for."""

    sku: str
    quantity: Annotated[int, msgspec.Meta(ge=1, le=QUANTITY_MAX)] = 1


_decode_order = msgspec.json.Decoder(OrderBody).decode


class OrderBodies:
    """Bodies of purchases, decoded. Most buyers send the same few, so those that were good are remembered."""

    __slots__ = ("known",)

    def __init__(self) -> None:
        """None is known."""
        self.known: dict[bytes, OrderBody] = {}

    def __len__(self) -> int:
        """How many are remembered; at most BODIES_MAX."""
        return len(self.known)

    def decode(self, body: bytes | bytearray) -> OrderBody:
        """What a purchase asks for. Raises msgspec.DecodeError, or ValueError with what is wrong with the SKU."""
        # Only an object of bytes can be remembered, and what came in pieces is no usual body.
        order = self.known.get(body) if isinstance(body, bytes) else None
        if order is None:
            order = _decode_order(body)
            if not IDENTIFIER.fullmatch(order.sku):
                raise ValueError("A SKU is 1 to 64 letters, digits, '-' or '_'.")
            if isinstance(body, bytes) and len(body) <= BODY_BYTES_MAX:
                if len(self.known) >= BODIES_MAX:
                    self.known.clear()
                self.known[body] = order
        return order


class PurchaseConnection(HttpConnection):
    """A connection that can buy. `Waiter` to the batcher, `Doubtful` to the refusals."""

    __slots__ = ("_lane", "_looked_up", "_page", "counter", "peer")

    def __init__(self, counter: "CounterServer") -> None:
        """One for each connection."""
        super().__init__(counter.listener)
        self.counter = counter
        self.peer = ""
        self._looked_up = False
        self._page: Page | None = None
        self._lane: LaneLoad | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        peer = transport.get_extra_info("peername")
        self.peer = network(peer[0]) if isinstance(peer, tuple) else ""
        super().connection_made(transport)

    def admitted(self) -> None:
        """The turn has come, or a look-up has ended."""
        raise NotImplementedError

    def retry_after(self, at_least_s: float = 0.0, span_s: float = 0.0) -> bytes:
        """A `Retry-After` header, ended: spread over `span_s` seconds, so that the refused do not return together."""
        return self.counter.retry_after(at_least_s, span_s)

    # --- who asks -------------------------------------------------------------------------------------------

    def _address_may(self, request: Request) -> bool:
        """Whether the address is within its rate; False when the request has been refused."""
        counter = self.counter
        addresses = counter.addresses
        if addresses is None or self._looked_up:
            return True
        hops = counter.settings.forwarded_hops
        address = client_address(self.peer, request.forwarded, hops) if hops else self.peer
        wait_s = addresses.wait_s(address, self.started_s)
        if wait_s:
            self._shed(metrics.ADDRESS_RATE, problems.ADDRESS_LIMITED, counter.retry_after(wait_s, 0.0))
        return not wait_s

    def _buyer(self, request: Request, sale: bytes) -> tuple[str, Page] | None:
        """The buyer whom the token names, if he and his address are within their rates, and the sale.

        None when the request has been refused, or waits for the sale to be looked up.
        """
        if not self._address_may(request):
            return None
        authorization = request.authorization
        if authorization is None or not (
            authorization.startswith(_BEARER) or authorization[:7].lower() == _BEARER_IN_LOWER_CASE
        ):
            self.refuse(problems.UNAUTHORIZED, _CHALLENGE)
            return None
        counter = self.counter
        try:
            buyer = counter.keys.verify(authorization[7:], sale, self.listener.now_ms / 1000)
        except TokenError as error:
            self._refuse_saying(problems.UNAUTHORIZED, str(error), _CHALLENGE)
            return None
        page = counter.pages.get(sale)
        if page is None:
            self._look_up(sale)
            return None
        now_s = self.started_s
        wait_s = counter.rates.wait_s(buyer, now_s)
        if wait_s:
            self._shed(metrics.BUYER_RATE, problems.RATE_LIMITED, counter.retry_after(wait_s, 0.0))
            return None
        page.used_s = now_s
        return buyer, page

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
                self._shed(metrics.LOOKUPS, problems.OVERLOADED, self.counter.retry_after())

    # --- buying ---------------------------------------------------------------------------------------------

    def _purchase(self, request: Request, sale: bytes) -> None:
        known = self._buyer(request, sale)
        if known is None:
            return
        buyer, page = known
        now_ms = self.listener.now_ms
        order = self._order(request, buyer, page, now_ms)
        if order is None:
            return
        self._page = page
        doubtful = order.sku in page.hinted or not page.opened_ms <= now_ms < page.ends_ms
        if (doubtful or page.waiting_room) and self._held_back(request, order, page, doubtful=doubtful):
            return
        if not self.go_on(order, page):
            self.refuse(problems.OVERLOADED, self.counter.retry_after())

    def _order(self, request: Request, buyer: str, page: Page, now_ms: int) -> ReserveRequest | None:
        """The purchase as the inventory takes it; None when the request has been refused."""
        key = request.key
        # As IDEMPOTENCY_KEY says, in a third of the time.
        if not key or len(key) > KEY_BYTES_MAX or key.translate(None, _KEY_BYTES):
            self.refuse(problems.BAD_KEY)
            return None
        counter = self.counter
        raw = request.body
        # Only an object of bytes can be remembered, and what came in pieces is no usual body.
        body = counter.bodies.known.get(raw) if isinstance(raw, bytes) else None
        if body is None:
            try:
                body = counter.bodies.decode(raw)
            except msgspec.DecodeError as error:
                self._refuse_saying(problems.BAD_BODY, f"{problems.BAD_BODY.detail} {error}.")
                return None
            except ValueError as error:
                self._refuse_saying(problems.BAD_BODY, str(error))
                return None
        sent_ms = now_ms
        if request.sent_ms is not None:
            said_ms = moment(request.sent_ms)
            if said_ms is None:
                self.refuse(problems.BAD_SENT)
                return None
            sent_ms = min(now_ms, said_ms)
        return ReserveRequest(
            buyer,
            key.decode(),
            body.sku,
            body.quantity,
            counter.order_ids.next(),
            page.epoch,
            sent_ms + page.skew_ms + counter.settings.purchase_timeout_ms,
        )

    def _held_back(self, request: Request, order: ReserveRequest, page: Page, *, doubtful: bool) -> bool:
        """Whether the purchase waits for a look at the sale, or for its buyer's orders; both answer it.

        Without a pass only what the key has already made is told, and for that no pass is needed.
        """
        counter = self.counter
        door = counter.door
        admitted = not page.waiting_room or (
            door is not None and door.admits(page.sale, order.buyer, request.room_pass or b"", self.listener.now_ms)
        )
        if admitted and not doubtful:
            return False
        if counter.refusals.doubt(page, order, self, self.started_s, admitted=admitted):
            return True
        if not admitted:
            self.find_made(order, page)
        return not admitted

    def go_on(self, order: ReserveRequest, page: Page) -> bool:
        """Give it to the batcher; False when it could not be answered in time, and then nothing has been said."""
        counter = self.counter
        sale = page.sale
        bucket = zlib.crc32(order.buyer.encode()) % page.buckets if page.buckets > 1 else 0
        lane = counter.reserver.lane(sale, bucket)
        if lane.batches and lane.expected_s(self.listener.now_s, counter.purchases_in_flight_max) > counter.patience_s:
            self.listener.figures.sheds[metrics.SLOW_INVENTORY] += 1
            return False
        if not counter.batcher.add(sale, bucket, order, self, page.skew_ms):
            self.listener.figures.sheds[metrics.BACKLOG] += 1
            return False
        lane.outstanding += 1
        self._lane = lane
        return True

    # --- what became of it ----------------------------------------------------------------------------------

    def purchased(self, request: ReserveRequest, result: ReserveResult, now_s: float) -> None:
        """The inventory has decided."""
        lane = self._lane
        if lane is not None:
            lane.outstanding -= 1
            self._lane = None
        figures = self.listener.figures
        figures.latency(now_s - self.started_s)
        status = result.status
        page = self._page
        if status is _RESERVED and page is not None:
            figures.successes[metrics.RESERVED] += 1
            order_id = result.order_id
            pay = page.pay_member(order_id) if page.pay_json else ""
            # Every text in it is an identifier, so nothing needs escaping.
            self.reply(
                _CREATED,
                f'{{"order_id":"{order_id}","sale":"{page.sale}","sku":"{request.sku}","quantity":{request.quantity},'
                f'"status":"reserved","pay_by_ms":{result.pay_by_ms}{pay}}}'.encode(),
            )
            if page.waiting_room and self.counter.door is not None:
                self.counter.door.bought(page.sale, request.buyer, request.quantity)
        elif status is ReserveStatus.REPEATED:
            figures.successes[metrics.REPEATED] += 1
            self.reply(OK, self._order_body(request, result, "reserved" if result.live else "ended"))
        else:
            if self._page is not None:
                self._learn(request, status, self._page)
            self._refuse_purchase(result)

    def refused(self, problem: Problem) -> None:
        """There is no decision."""
        self._left_lane()
        if problem is problems.OVERLOADED:
            self.listener.figures.sheds[metrics.LATE] += 1
        self.refuse(problem, self.counter.retry_after())

    def refused_surely(self, status: ReserveStatus, page: Page) -> None:
        """The inventory would have refused it at the page's moment, and the buyer holds no order."""
        self.listener.figures.from_memory += 1
        if status is _SOLD_OUT:
            self.refuse(problems.SOLD_OUT)
        else:
            self._page = page
            self._refuse_purchase(ReserveResult(status))

    def refused_without_pass(self) -> None:
        """The buyer holds no order and has no pass of the waiting room."""
        sale = self._page.sale if self._page is not None else ""
        body = problems.NOT_ADMITTED.body_of(QUEUE_FIRST.replace("{sale}", sale))
        self._shed(metrics.NO_PASS, problems.NOT_ADMITTED, self.counter.retry_after(), body)

    def find_made(self, order: ReserveRequest, page: Page) -> None:
        """Without a pass, and perhaps a holder: whether this key has made an order is looked up."""
        bucket = zlib.crc32(order.buyer.encode()) % page.buckets
        if not self.counter.orders.ask(page.sale, bucket, order.buyer, partial(self._tell_made, order, page)):
            self._shed(metrics.LOOKUPS, problems.OVERLOADED, self.counter.retry_after())

    def _tell_made(self, order: ReserveRequest, page: Page, orders: list[HeldOrder] | None) -> None:
        if orders is None:
            self.refuse(problems.UNAVAILABLE, self.counter.retry_after())
            return
        made = next((one for one in orders if one.reservation.key == order.key), None)
        if made is None:
            self.refused_without_pass()
        elif (made.reservation.sku, made.reservation.quantity) != (order.sku, order.quantity):
            self.refuse(problems.KEY_REUSED)
        else:
            self.listener.figures.successes[metrics.REPEATED] += 1
            self.reply(OK, order_json(page, made).encode())

    def _left_lane(self) -> None:
        lane = self._lane
        if lane is not None:
            lane.outstanding -= 1
            self._lane = None

    def _learn(self, request: ReserveRequest, status: ReserveStatus, page: Page) -> None:
        """Let the next one benefit: what is only a hint leads to a look at the sale, not to an answer."""
        if status is ReserveStatus.SOLD_OUT and request.quantity == 1:
            page.hinted.add(request.sku)
        elif status is ReserveStatus.STALE_EPOCH or (status is ReserveStatus.PAUSED and page.state == "open"):
            self.counter.pages.look_up(page.sale.encode(), _nobody)

    def _order_body(self, request: ReserveRequest, result: ReserveResult, status: str) -> bytes:
        # Every text in it is an identifier, so nothing needs escaping.
        page = self._page
        sale, pay = "", ""
        if page is not None:
            sale = page.sale
            if page.pay_json and status == "reserved":
                pay = page.pay_member(result.order_id)
        return (
            f'{{"order_id":"{result.order_id}","sale":"{sale}","sku":"{request.sku}",'
            f'"quantity":{request.quantity},"status":"{status}","pay_by_ms":{result.pay_by_ms}{pay}}}'
        ).encode()

    def _refuse_purchase(self, result: ReserveResult) -> None:
        counter = self.counter
        status = result.status
        problem = _REFUSALS[status]
        body = b""
        extra = b""
        if status is _LIMIT_REACHED and result.order_id:
            body = problem.body_of(problem.detail, result.order_id)
        elif status is _NOT_OPEN and self._page is not None:
            opens_in_ms = self._page.opens_ms - counter.clock.now_ms() - self._page.skew_ms
            extra = counter.retry_after(max(0.0, opens_in_ms / 1000), NOT_OPEN_SPAN_S)
        if problem.status == _SERVICE_UNAVAILABLE:
            extra = counter.retry_after()
        self.refuse(problem, extra, body)

    def _refuse_saying(self, problem: Problem, detail: str, extra: bytes = b"") -> None:
        self.refuse(problem, extra, problem.body_of(detail))

    def _shed(self, reason: int, problem: Problem, extra: bytes, body: bytes = b"") -> None:
        self.listener.figures.sheds[reason] += 1
        self.refuse(problem, extra, body)


def _nobody() -> None:
    """Nobody waits."""
