"""A request as the counter sees it, and the short way to one: the usual case, parsed at C speed."""

from functools import partial
from types import SimpleNamespace

import httptools
import msgspec

from springtide.sale.problems import Problem

_PLAIN = frozenset(
    spelling
    for name in (
        b"Accept",
        b"Accept-Encoding",
        b"Accept-Language",
        b"Authorization",
        b"Content-Length",
        b"Content-Type",
        b"Host",
        b"Idempotency-Key",
        b"User-Agent",
        b"X-Envoy-Expected-Rq-Timeout-Ms",
        b"X-Forwarded-For",
        b"X-Forwarded-Proto",
        b"X-Request-Id",
    )
    for spelling in (name, name.lower())
)
"""Headers, in the two usual spellings, that do not change how a message is read."""

_SPECIAL = frozenset(
    (
        *(name.lower() for name in _PLAIN),
        b"connection",
        b"expect",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Headers, in lower case, that must not be met in any other spelling, or at all: they are for the full
parser."""

_BODILESS = frozenset((b"GET", b"HEAD"))
_ONE_WHOLE = ["begin", "end"]


class Request(msgspec.Struct, gc=False):
    """A whole request, or what made it unreadable. `persists`: HTTP/1.0 that asked to be kept alive."""

    method: bytes
    url: bytes
    authorization: bytes | None
    key: bytes | None
    body: bytes | bytearray
    close: bool
    persists: bool = False
    problem: Problem | None = None


def unreadable(problem: Problem) -> Request:
    """What stands in the place of a request that could not be read."""
    return Request(b"", b"", None, None, b"", close=True, problem=problem)


class Glance:
    """A parser for the usual case: one whole plain request, and no Python run while it parses.

    Its callbacks are methods of containers. It vouches only for what it has seen completely: one begin and
    one end, each line of the head a header of a different name, none that changes how the message is read.
    Anything else is None: the full parser then starts anew on the same bytes, and this object has to be
    thrown away.
    """

    __slots__ = ("_bodies", "_feed", "_headers", "_marks", "_parser", "_urls")

    def __init__(self) -> None:
        """Nothing has been parsed."""
        self._urls: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._bodies: list[bytes] = []
        self._marks: list[str] = []
        callbacks = SimpleNamespace(
            on_message_begin=partial(self._marks.append, "begin"),
            on_url=self._urls.append,
            on_header=self._headers.setdefault,
            on_body=self._bodies.append,
            on_message_complete=partial(self._marks.append, "end"),
        )
        self._parser = httptools.HttpRequestParser(callbacks)
        self._feed = self._parser.feed_data

    def whole(self, data: bytes, body_bytes_max: int) -> Request | None:
        """The request that `data` is, no byte less or more; or None."""
        headers = self._headers
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return None
        if self._marks != _ONE_WHOLE or data.count(b"\r\n") != len(headers) + 2:
            return None
        if not _PLAIN.issuperset(headers) and any(name.lower() in _SPECIAL for name in headers.keys() - _PLAIN):
            return None
        bodies = self._bodies
        body = bodies[0] if bodies else b""
        parser = self._parser
        method = parser.get_method()
        if len(body) > body_bytes_max or not (bodies or method in _BODILESS) or not parser.should_keep_alive():
            return None
        get = headers.get
        host, host_lower = get(b"Host"), get(b"host")
        authorization, authorization_lower = get(b"Authorization"), get(b"authorization")
        key, key_lower = get(b"Idempotency-Key"), get(b"idempotency-key")
        if (host is None) is (host_lower is None) or (authorization and authorization_lower) or (key and key_lower):
            return None
        request = Request(
            method, self._urls[0], authorization or authorization_lower, key or key_lower, body, close=False
        )
        self._urls.clear()
        headers.clear()
        bodies.clear()
        self._marks.clear()
        return request
