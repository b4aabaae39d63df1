"""One HTTP/1.1 connection: bytes in, whole requests out, answers in the order of the requests.

One request of a connection is under way at a time; those pipelined behind it wait here. What the parser
(llhttp, strict) refuses, a smuggled length for one, is answered with 400 after the answers before it, and the
connection is closed.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final

import structlog
from typing_extensions import override

from springtide.sale.glance import Request, unreadable
from springtide.sale.listener import Listener
from springtide.sale.problems import INTERNAL, TIMED_OUT, TOO_MANY_CONNECTIONS, Problem
from springtide.sale.reader import BETWEEN, IN_BODY, RequestReader

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

_NEVER = float("inf")
_INTERIM = b"HTTP/1.1 1"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LENGTHS_MAX = 1024
_LENGTHS: Final = tuple(b"Content-Length: %d\r\n" % size for size in range(_LENGTHS_MAX))
_CLOSE = b"Connection: close\r\n"
_KEEP_ALIVE = b"Connection: keep-alive\r\n"

_log = structlog.get_logger(__name__)


class HttpConnection(RequestReader, asyncio.Protocol):
    """The protocol of one connection. A subclass implements `handle`, which leads to exactly one `reply`."""

    __slots__ = (
        "_closing",
        "_continue_due",
        "_eof",
        "_linger",
        "_lingering",
        "_pumping",
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
        super().__init__(listener.body_bytes_max)
        self.listener = listener
        self.transport: asyncio.Transport | None = None
        self.deadline_s = _NEVER
        self.busy = False
        self.request = self._UNREADABLE
        self.started_s = 0.0
        self._continue_due = False
        self._waiting: deque[Request] = deque()
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
        arrived = self.listener.arrived
        if arrived:
            arrived.append((self, data))
        else:
            self.listener.receive(self, data)

    # --- what arrived ---------------------------------------------------------------------------------------

    def take(self, data: bytes) -> None:
        """Look at what arrived in this tick: mostly one plain request, while nothing else is under way."""
        if self.state == BETWEEN and not self.no_more:
            listener = self.listener
            request = listener.glance(data)
            if request is not None:
                if self.busy or self._waiting or self._write_paused:
                    self._enqueue(request)
                    return
                # As `_begin`, without its call; what was glanced at is readable.
                self.busy = True
                self.request = request
                self.deadline_s = _NEVER
                self.started_s = listener.now_s
                listener.in_flight += 1
                try:
                    self.handle(request)
                except Exception:  # noqa: BLE001 - as there
                    self._failed()
                return
        if not data:
            self._ended()
        elif not self.no_more:
            self.read(data)

    @override
    def arrived(self, request: Request) -> None:
        """Begin it, or have it wait for those before it."""
        if self.busy or self._waiting or self._write_paused:
            self._enqueue(request)
        else:
            self._begin(request)

    @override
    def asked_first(self) -> None:
        """Tell the client to go on, once all before it are answered."""
        if self.busy or self._waiting:
            self._continue_due = True
        else:
            self._write_continue()

    @override
    def incomplete(self) -> None:
        """From now on the client has limited time; not while it waits for an answer itself."""
        if not self.busy:
            self.deadline_s = self.listener.now_s + RECEIVE_TIMEOUT_S

    def _ended(self) -> None:
        self._eof = True
        if self._lingering and self.transport is not None:
            self.transport.close()
        elif not (self._closing or self.busy or self._waiting):
            # Not at once: an answer of this tick may still have to be written.
            self._closing = self.no_more = True
            self.listener.send(self, b"", True)  # noqa: FBT003 - as in `write`

    def expire(self) -> None:
        """The deadline has passed."""
        if self.state != BETWEEN and not (self._closing or self._write_paused or self.no_more):
            self._enqueue(unreadable(TIMED_OUT))
        else:
            self.cut()

    def cut(self) -> None:
        """Close at once; what the client has not read is lost."""
        if self.transport is not None:
            self.transport.abort()

    # --- answers --------------------------------------------------------------------------------------------

    def reply(self, head: bytes, body: bytes, extra: bytes = b"", same: int = -1) -> None:
        """Answer the request under way. `head`: status line and fixed headers, `extra`: more, each with CRLF.

        Answers with the same number in `same` are the same but for their date, so that one serves until that changes.
        An answer to a connection that has gone is dropped.
        """
        listener = self.listener
        self.busy = False
        listener.in_flight -= 1
        if listener.watchers:
            listener.notice()
        if self._closing:
            listener.figures.disconnected += 1
            return
        request = self.request
        waiting = self._waiting
        close = request.close or ((listener.draining or self._eof) and not waiting)
        plain = same >= 0 and not (close or request.persists) and request.method != b"HEAD"
        answer = listener.made.get(same) if plain else None
        if answer is None:
            size = len(body)
            answer = b"".join(
                (
                    head,
                    listener.date_line,
                    _LENGTHS[size] if size < _LENGTHS_MAX else b"Content-Length: %d\r\n" % size,
                    extra,
                    _CLOSE if close else _KEEP_ALIVE if request.persists else b"",
                    b"\r\n",
                    body if request.method != b"HEAD" else b"",
                )
            )
            if plain:
                listener.made[same] = answer
        outgoing = listener.outgoing
        if outgoing:
            outgoing.append((self, answer, close))
        else:
            listener.send(self, answer, close)
        if close:
            self._closing = self.no_more = True
            self._linger = request.problem is not None or self.state != BETWEEN
            waiting.clear()
            return
        if self.state == BETWEEN and not self._write_paused:
            self.deadline_s = listener.now_s + IDLE_TIMEOUT_S
        else:
            self.deadline_s = self._next_deadline_s()
        if waiting:
            self._pump()
        elif self._continue_due:
            self._write_continue()

    def write(self, answer: bytes, last: bool) -> None:  # noqa: FBT001 - a call by name takes longer
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
            self.no_more = True
        self.reply(problem.head, body or problem.body, extra, -1 if extra or body else problem.index)

    def proceed(self, step: Callable[[Request], None]) -> None:
        """Go on with the request under way, in a later tick than the one it came in."""
        self.listener.look_at_clock()
        try:
            step(self.request)
        except Exception:  # noqa: BLE001 - as in `_begin`
            self._failed()

    # --- within ---------------------------------------------------------------------------------------------

    def _write_continue(self) -> None:
        self._continue_due = False
        if self.state == IN_BODY:
            self.listener.send(self, _CONTINUE, False)  # noqa: FBT003 - as in `write`

    def _enqueue(self, request: Request) -> None:
        """Have it answered after those before it."""
        self._waiting.append(request)
        if len(self._waiting) >= PIPELINE_MAX:
            request.close = True
        if request.close:
            self.no_more = True
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
        if request.problem is not None:
            self.refuse(request.problem)
            return
        try:
            self.handle(request)
        except Exception:  # noqa: BLE001 - one request's fault must not end the connection's or the server's work
            self._failed()

    def _failed(self) -> None:
        _log.exception("request_failed", method=self.request.method, url=self.request.url)
        if self.busy:
            self.refuse(INTERNAL)

    def _next_deadline_s(self) -> float:
        now_s = self.listener.now_s
        if self._write_paused:
            return now_s + SEND_TIMEOUT_S
        return now_s + (IDLE_TIMEOUT_S if self.state == BETWEEN else RECEIVE_TIMEOUT_S)

    def _close(self, transport: asyncio.Transport) -> None:
        if self._linger and not self._eof:
            self._lingering = True
            transport.resume_reading()
            transport.write_eof()
            self.deadline_s = self.listener.now_s + LINGER_S
        else:
            self.deadline_s = self.listener.now_s + SEND_TIMEOUT_S
            transport.close()
