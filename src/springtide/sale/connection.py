"""One HTTP/1.1 connection: bytes in, whole requests out, answers in the order of the requests.

One request of a connection is under way at a time; those pipelined behind it wait here. What the parser
(llhttp, strict) refuses, a smuggled length for one, is answered with 400 after the answers before it, and the
connection is closed.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import httptools
import structlog
from typing_extensions import override

from springtide.sale.glance import Glance, Request, unreadable
from springtide.sale.listener import HEADER_BYTES_MAX, Listener
from springtide.sale.problems import (
    BAD_HTTP,
    EXPECTATION_FAILED,
    HEADERS_TOO_LARGE,
    INTERNAL,
    LENGTH_REQUIRED,
    NOT_IMPLEMENTED,
    TIMED_OUT,
    TOO_LARGE,
    TOO_MANY_CONNECTIONS,
    Problem,
)

PIPELINE_MAX = 64
"""Requests that may wait behind the one under way; the last of them is answered with `Connection: close`."""

REFUSED_MAX = 256
"""Connections over the limit that are kept for a moment so that they can read their 503; more are cut."""

RECEIVE_TIMEOUT_S = 10.0
"""From the first byte of a request to its last."""

IDLE_TIMEOUT_S = 75.0
SEND_TIMEOUT_S = 10.0
"""How long a client may take to read what it asked for once the kernel's buffer and ours are full."""

LINGER_S = 1.0
"""How long the refused may go on sending: closed at once, the refusal would be lost (RFC 9112, 9.6)."""

GLANCES_FAILED_MAX = 16
"""How often a connection may send else than one plain request at a time before that is no longer expected."""

_SLICE_BYTES = 4096
_NEVER = float("inf")

_AUTHORIZATION, _KEY, _HOST, _CONNECTION, _LENGTH, _CODING, _EXPECT = range(7)
_NONE: tuple[bytes | None, ...] = (None,) * 7
_SLOTS = {
    spelling: slot
    for slot, name in enumerate(
        (
            b"Authorization",
            b"Idempotency-Key",
            b"Host",
            b"Connection",
            b"Content-Length",
            b"Transfer-Encoding",
            b"Expect",
        )
    )
    for spelling in (name, name.lower())
}
_BETWEEN, _IN_HEAD, _IN_BODY = range(3)
_INTERIM = b"HTTP/1.1 1"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSE = b"Connection: close\r\n"
_KEEP_ALIVE = b"Connection: keep-alive\r\n"

_log = structlog.get_logger(__name__)


class _Refused(Exception):
    """The request cannot be answered as it was meant."""


class HttpConnection(asyncio.Protocol):
    """The protocol of one connection. A subclass implements `handle`, which leads to exactly one `reply`."""

    __slots__ = (
        "_body",
        "_closing",
        "_continue_due",
        "_eof",
        "_fault",
        "_fields",
        "_glance",
        "_glances_failed",
        "_linger",
        "_lingering",
        "_no_more",
        "_parser",
        "_pumping",
        "_received",
        "_state",
        "_url",
        "_waiting",
        "_write_paused",
        "busy",
        "deadline_s",
        "listener",
        "request",
        "started_s",
        "transport",
    )
    _UNREADABLE: ClassVar = Request(b"", b"", None, None, b"", close=True)

    def __init__(self, listener: Listener) -> None:
        """Nothing has been received."""
        self.listener = listener
        self.transport: asyncio.Transport | None = None
        self.deadline_s = _NEVER
        self.busy = False
        self.request = self._UNREADABLE
        self.started_s = 0.0
        self._glance: Glance | None = Glance()
        self._glances_failed = 0
        self._parser: httptools.HttpRequestParser | None = None
        self._state = _BETWEEN
        self._url = b""
        self._fields = list(_NONE)
        self._body: bytes | bytearray = b""
        self._received = 0
        self._fault: Problem | None = None
        self._continue_due = False
        self._waiting: deque[Request] = deque()
        self._no_more = False
        self._eof = False
        self._write_paused = False
        self._pumping = False
        self._closing = False
        self._linger = False
        self._lingering = False

    def handle(self, request: Request) -> None:
        """Answer it now or later, with one `reply` or `refuse`."""
        raise NotImplementedError

    def lost(self) -> None:
        """The connection has gone; `busy` tells whether a request was under way."""

    # --- what asyncio tells ---------------------------------------------------------------------------------

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        if TYPE_CHECKING:
            assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        listener = self.listener
        listener.connections.add(self)
        self.deadline_s = listener.now_s + RECEIVE_TIMEOUT_S
        over = len(listener.connections) - listener.connections_max
        if over > 0:
            listener.figures.connections_refused += 1
            if over > REFUSED_MAX:
                transport.abort()
            else:
                self._enqueue(unreadable(TOO_MANY_CONNECTIONS))

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """The client, or we, have closed it."""
        self.transport = None
        self._closing = True
        self._waiting.clear()
        self.listener.connections.discard(self)
        self.lost()

    @override
    def eof_received(self) -> bool:
        """The client sends no more; it still gets the answers it is waiting for."""
        self.listener.receive(self, b"")
        return True

    @override
    def pause_writing(self) -> None:
        """The client does not read: begin nothing more for it."""
        self._write_paused = True
        self.deadline_s = self.listener.now_s + SEND_TIMEOUT_S

    @override
    def resume_writing(self) -> None:
        """The client reads again."""
        self._write_paused = False
        if not self._closing:
            self.deadline_s = self._next_deadline_s()
            self._pump()

    @override
    def data_received(self, data: bytes) -> None:
        """Some bytes of some requests."""
        self.listener.receive(self, data)

    # --- what arrived ---------------------------------------------------------------------------------------

    def take(self, data: bytes) -> None:
        """Look at what arrived in this tick: mostly one request and nothing else."""
        if not data:
            self._ended()
        elif not self._no_more:
            request = None
            if self._state == _BETWEEN and self._glance is not None and len(data) <= _SLICE_BYTES:
                request = self._glance.whole(data, self.listener.body_bytes_max)
                if request is None:
                    self._glance_failed()
            if request is None:
                self._parse(data)
            elif self.busy or self._waiting or self._write_paused:
                self._enqueue(request)
            else:
                self._begin(request)

    def _ended(self) -> None:
        self._eof = True
        if self._lingering and self.transport is not None:
            self.transport.close()
        elif not (self._closing or self.busy or self._waiting):
            # Not at once: an answer of this tick may still have to be written.
            self._closing = self._no_more = True
            self.listener.send(self, b"", last=True)

    def _glance_failed(self) -> None:
        """It took in bytes that it cannot give back; after some failures it is not tried again."""
        self._glances_failed += 1
        self._glance = Glance() if self._glances_failed < GLANCES_FAILED_MAX else None

    def _parse(self, data: bytes) -> None:
        try:
            if len(data) <= _SLICE_BYTES:
                self._feed(data)
            else:
                for start in range(0, len(data), _SLICE_BYTES):
                    self._feed(data[start : start + _SLICE_BYTES])
        except httptools.HttpParserError:
            # Raised for what cannot be parsed, and when one of our callbacks has refused the request.
            if not self._no_more:
                self._enqueue(unreadable(self._fault or BAD_HTTP))

    def expire(self) -> None:
        """The deadline has passed."""
        if self._state != _BETWEEN and not (self._closing or self._write_paused or self._no_more):
            self._enqueue(unreadable(TIMED_OUT))
        else:
            self.cut()

    def cut(self) -> None:
        """Close at once; what the client has not read is lost."""
        if self.transport is not None:
            self.transport.abort()

    # --- what the parser tells ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if self._no_more:
            raise _Refused
        self._state = _IN_HEAD
        self._url = b""
        self._body = b""
        self._fields = list(_NONE)
        self._received = 0
        self._continue_due = False

    def on_url(self, url: bytes) -> None:
        """The target, or a piece of it."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers come here too and are ignored."""
        slot = _SLOTS.get(name)
        if slot is None:
            slot = _SLOTS.get(name.lower())
        if slot is None or self._state != _IN_HEAD:
            return
        fields = self._fields
        before = fields[slot]
        if before is None:
            fields[slot] = value
        elif slot == _HOST:
            self._refuse_parsing(BAD_HTTP)
        else:
            # A list, as RFC 9110 (5.3) reads a repeated header: no valid token or key, so a repetition is
            # refused later.
            fields[slot] = before + b", " + value

    def on_headers_complete(self) -> None:
        """All headers are there."""
        self._state = _IN_BODY
        fields = self._fields
        length = fields[_LENGTH]
        if length is not None:
            if len(length) > 9 or int(length) > self.listener.body_bytes_max:  # noqa: PLR2004 - digits of 2^20, and zeros
                self._refuse_parsing(TOO_LARGE)
        elif fields[_CODING] is None and self._parsing().get_method() in (b"POST", b"PUT", b"PATCH"):
            self._refuse_parsing(LENGTH_REQUIRED)
        if fields[_HOST] is None or fields[_CODING] is not None or fields[_CONNECTION] is not None:
            self._check_rare_headers()
        expectation = fields[_EXPECT]
        if expectation is not None:
            self._check_expectation(expectation)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        before = self._body
        if not before:
            self._body = body
        elif isinstance(before, bytearray):
            before += body
        else:
            self._body = bytearray(before + body)
        if len(self._body) > self.listener.body_bytes_max:
            self._refuse_parsing(TOO_LARGE)

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        self._state = _BETWEEN
        fields = self._fields
        parser = self._parsing()
        close = not parser.should_keep_alive()
        request = Request(
            parser.get_method(), self._url, fields[_AUTHORIZATION], fields[_KEY], self._body, close
        )
        if fields[_CONNECTION] is not None and not close:
            request.persists = parser.get_http_version() == "1.0"
        if close:
            self._no_more = True
        if self.busy or self._waiting or self._write_paused:
            self._enqueue(request)
        else:
            self._begin(request)

    # --- answers --------------------------------------------------------------------------------------------

    def reply(self, head: bytes, body: bytes, extra: bytes = b"") -> None:
        """Answer the request under way. `head`: status line and fixed headers, `extra`: more, each with CRLF.

        An answer to a connection that has gone is dropped.
        """
        listener = self.listener
        self.busy = False
        listener.finished()
        if self._closing:
            listener.figures.disconnected += 1
            return
        request = self.request
        close = request.close or ((listener.draining or self._eof) and not self._waiting)
        connection = _CLOSE if close else _KEEP_ALIVE if request.persists else b""
        listener.send(
            self,
            b"%b%bContent-Length: %d\r\n%b%b\r\n%b"
            % (
                head,
                listener.date_line,
                len(body),
                extra,
                connection,
                body if request.method != b"HEAD" else b"",
            ),
            last=close,
        )
        if close:
            self._closing = self._no_more = True
            self._linger = request.problem is not None or self._state != _BETWEEN
            self._waiting.clear()
            return
        self.deadline_s = self._next_deadline_s()
        if self._waiting:
            self._pump()
        elif self._continue_due:
            self._write_continue()

    def write(self, answer: bytes, *, last: bool) -> None:
        """Write what `reply` made, unless the client has gone meanwhile; after the last answer, close."""
        transport = self.transport
        if transport is None or transport.is_closing():
            if answer and not answer.startswith(_INTERIM):
                self.listener.figures.disconnected += 1
            return
        if answer:
            transport.write(answer)
        if last:
            self._close(transport)

    def refuse(self, problem: Problem, extra: bytes = b"", body: bytes = b"") -> None:
        """Answer with a problem; `body` when it says more than the problem's own."""
        self.listener.figures.problems[problem.index] += 1
        if problem.closes:
            self.request.close = True
            self.request.problem = problem
            self._no_more = True
        self.reply(problem.head, body or problem.body, extra)

    def proceed(self, step: Callable[[Request], None]) -> None:
        """Go on with the request under way, in a later tick than the one it came in."""
        self.listener.look_at_clock()
        self._do(step)

    def _do(self, step: Callable[[Request], None]) -> None:
        try:
            step(self.request)
        except Exception:  # noqa: BLE001 - one request's fault must not end the connection's or the server's work
            _log.exception("request_failed", method=self.request.method, url=self.request.url)
            if self.busy:
                self.refuse(INTERNAL)

    # --- within ---------------------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        if self._no_more:
            return
        if self._state != _BETWEEN:
            received = self._received
            if self._state == _IN_HEAD:
                if received > HEADER_BYTES_MAX + _SLICE_BYTES:
                    self._refuse_parsing(HEADERS_TOO_LARGE)
            elif received > self.listener.wire_bytes_max:
                self._refuse_parsing(TOO_LARGE)
        try:
            self._parsing().feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_after(upgrade, data)
        if self._state != _BETWEEN:
            if not self._received and not self.busy:
                self.deadline_s = self.listener.now_s + RECEIVE_TIMEOUT_S
            self._received += len(data)

    def _parsing(self) -> httptools.HttpRequestParser:
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        return self._parser

    def _go_on_after(self, upgrade: httptools.HttpParserUpgrade, data: bytes) -> None:
        """Another protocol was asked for and this one answered (RFC 9110, 7.8); read what follows."""
        self._parser = httptools.HttpRequestParser(self)
        offset: int = upgrade.args[0]
        if offset < len(data):
            self._feed(data[offset:])

    def _refuse_parsing(self, problem: Problem) -> None:
        if self._fault is None:
            self._fault = problem
        raise httptools.HttpParserCallbackError(problem.code)

    def _check_rare_headers(self) -> None:
        fields = self._fields
        version = self._parsing().get_http_version()
        coding = fields[_CODING]
        if version not in ("1.0", "1.1") or (fields[_HOST] is None and version == "1.1"):
            self._refuse_parsing(BAD_HTTP)
        if coding is not None:
            if version == "1.0" or fields[_LENGTH] is not None:
                self._refuse_parsing(BAD_HTTP)
            if coding.lower() != b"chunked":
                # Without chunks at the end, nobody knows where the body ends (RFC 9112, 6.3).
                chunked = coding.rpartition(b",")[2].strip().lower() == b"chunked"
                self._refuse_parsing(NOT_IMPLEMENTED if chunked else BAD_HTTP)
        if self._parsing().should_upgrade() and (coding is not None or fields[_LENGTH] not in (None, b"0")):
            # The parser takes what follows for the other protocol and would not find the end of the body.
            self._refuse_parsing(NOT_IMPLEMENTED)

    def _check_expectation(self, expectation: bytes) -> None:
        if expectation.lower() != b"100-continue":
            self._refuse_parsing(EXPECTATION_FAILED)
        if self._parsing().get_http_version() != "1.0":
            if self.busy or self._waiting:
                self._continue_due = True
            else:
                self._write_continue()

    def _write_continue(self) -> None:
        self._continue_due = False
        if self._state == _IN_BODY:
            self.listener.send(self, _CONTINUE, last=False)

    def _enqueue(self, request: Request) -> None:
        """Have it answered after those before it."""
        self._waiting.append(request)
        if len(self._waiting) >= PIPELINE_MAX:
            request.close = True
        if request.close:
            self._no_more = True
        elif self.transport is not None and len(self._waiting) == 1:
            self.transport.pause_reading()
        self._pump()

    def _pump(self) -> None:
        """Begin those that wait, one after the other; a loop, so that a long pipeline does not nest."""
        if self._pumping:
            return
        self._pumping = True
        self.listener.look_at_clock()
        while self._waiting and not (self.busy or self._write_paused or self._closing):
            self._begin(self._waiting.popleft())
        self._pumping = False
        if not self._waiting and not self._closing and self.transport is not None:
            self.transport.resume_reading()
            if self._continue_due and not self.busy:
                self._write_continue()

    def _begin(self, request: Request) -> None:
        listener = self.listener
        self.busy = True
        self.request = request
        self.deadline_s = _NEVER
        self.started_s = listener.now_s
        listener.in_flight += 1
        problem = request.problem
        if problem is not None:
            self.refuse(problem)
        else:
            self._do(self.handle)

    def _next_deadline_s(self) -> float:
        now_s = self.listener.now_s
        if self._write_paused:
            return now_s + SEND_TIMEOUT_S
        return now_s + (IDLE_TIMEOUT_S if self._state == _BETWEEN else RECEIVE_TIMEOUT_S)

    def _close(self, transport: asyncio.Transport) -> None:
        if self._linger and not self._eof:
            self._lingering = True
            transport.resume_reading()
            transport.write_eof()
            self.deadline_s = self.listener.now_s + LINGER_S
        else:
            self.deadline_s = self.listener.now_s + SEND_TIMEOUT_S
            transport.close()
