"""From the bytes of one connection to whole requests, by way of a glance or of the full parser (llhttp, strict)."""

import httptools

from springtide.sale.glance import Request, unreadable
from springtide.sale.problems import (
    BAD_HTTP,
    EXPECTATION_FAILED,
    HEADERS_TOO_LARGE,
    LENGTH_REQUIRED,
    NOT_IMPLEMENTED,
    TOO_LARGE,
    Problem,
)

HEADER_BYTES_MAX = 16_384
"""Request line and headers up to this size are read; how far beyond depends on how they arrive (8 KiB at most)."""

_LENGTH_DIGITS_MAX = 9
_SLICE_BYTES = 4096

_AUTHORIZATION, _KEY, _HOST, _CONNECTION, _LENGTH, _CODING, _EXPECT, _FORWARDED, _PASS, _SENT = range(10)
_NONE: tuple[bytes | None, ...] = (None,) * 10
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
            b"X-Forwarded-For",
            b"Room-Pass",
            b"Purchase-Sent-Ms",
        )
    )
    for spelling in (name, name.lower())
}
BETWEEN, IN_HEAD, IN_BODY = range(3)
"""Where the reader is: between two requests, in the head of one, in its body."""


class _Refused(Exception):
    """The request cannot be answered as it was meant."""


class RequestReader:
    """A subclass implements `arrived`, `asked_first` and `incomplete`; it sets `no_more` to read no further."""

    __slots__ = (
        "_body",
        "_fault",
        "_fields",
        "_parser",
        "_received",
        "_url",
        "_wire_bytes_max",
        "body_bytes_max",
        "no_more",
        "state",
    )

    def __init__(self, body_bytes_max: int) -> None:
        """A body may have this many bytes."""
        self.body_bytes_max = body_bytes_max
        # A chunk of one byte takes six on the wire; what takes more than that is not a body but an attack.
        self._wire_bytes_max = HEADER_BYTES_MAX + 8 * body_bytes_max
        self.no_more = False
        self.state = BETWEEN
        self._parser: httptools.HttpRequestParser | None = None
        self._url = b""
        self._fields = list(_NONE)
        self._body: bytes | bytearray = b""
        self._received = 0
        self._fault: Problem | None = None

    def arrived(self, request: Request) -> None:
        """A whole request, or what made it unreadable: then it is the last."""
        raise NotImplementedError

    def asked_first(self) -> None:
        """The client waits for `100 Continue` before it sends the body."""
        raise NotImplementedError

    def incomplete(self) -> None:
        """A request has begun to arrive and is not whole yet."""
        raise NotImplementedError

    def read(self, data: bytes) -> None:
        """Take what arrived, whatever it is."""
        try:
            if len(data) <= _SLICE_BYTES:
                self._feed(data)
            else:
                for start in range(0, len(data), _SLICE_BYTES):
                    self._feed(data[start : start + _SLICE_BYTES])
        except httptools.HttpParserError:
            # Raised for what cannot be parsed, and when one of our callbacks has refused the request.
            if not self.no_more:
                self.no_more = True
                refused = unreadable(self._fault or BAD_HTTP)
                if self.state == IN_BODY:
                    # The head was read: an answer to HEAD has no body, a refusal neither (RFC 9110, 9.3.2).
                    refused.method = self._parsing().get_method()
                self.arrived(refused)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if self.no_more:
            raise _Refused
        self.state = IN_HEAD
        self._url = b""
        self._body = b""
        self._fields = list(_NONE)
        self._received = 0

    def on_url(self, url: bytes) -> None:
        """The target, or a piece of it."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers come here too and are ignored."""
        slot = _SLOTS.get(name)
        if slot is None:
            slot = _SLOTS.get(name.lower())
        if slot is None or self.state != IN_HEAD:
            return
        # The parser leaves white space behind the value in it, which is not part of it (RFC 9110, 5.5).
        value = value.rstrip(b" \t")
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
        self.state = IN_BODY
        fields = self._fields
        length = fields[_LENGTH]
        if length is not None:
            if len(length) > _LENGTH_DIGITS_MAX or int(length) > self.body_bytes_max:
                self._refuse_parsing(TOO_LARGE)
        elif fields[_CODING] is None and self._parsing().get_method() in (b"POST", b"PUT", b"PATCH"):
            self._refuse_parsing(LENGTH_REQUIRED)
        rare = fields[_HOST] is None or fields[_CODING] is not None or fields[_CONNECTION] is not None
        # Two more that no header tells: CONNECT, and a version of which the parser knows more than we serve.
        if rare or self._parsing().should_upgrade() or self._parsing().get_http_version() != "1.1":
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
        if len(self._body) > self.body_bytes_max:
            self._refuse_parsing(TOO_LARGE)

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        self.state = BETWEEN
        fields = self._fields
        parser = self._parsing()
        close = not parser.should_keep_alive()
        request = Request(parser.get_method(), self._url, fields[_AUTHORIZATION], fields[_KEY], self._body, close)
        request.forwarded, request.room_pass, request.sent_ms = fields[_FORWARDED], fields[_PASS], fields[_SENT]
        if fields[_CONNECTION] is not None and not close:
            request.persists = parser.get_http_version() == "1.0"
        if close:
            self.no_more = True
        self.arrived(request)

    def _feed(self, data: bytes) -> None:
        if self.no_more:
            return
        if self.state != BETWEEN:
            received = self._received
            if self.state == IN_HEAD:
                if received > HEADER_BYTES_MAX + _SLICE_BYTES:
                    self._refuse_parsing(HEADERS_TOO_LARGE)
            elif received > self._wire_bytes_max:
                self._refuse_parsing(TOO_LARGE)
        try:
            self._parsing().feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_after(upgrade, data)
        if self.state != BETWEEN:
            if not self._received:
                self.incomplete()
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
            self.asked_first()
