"""A request as the counter sees it, and the short way to one: the usual case, line by line at C speed."""

import re
from collections.abc import Callable
from typing import Final, TypeAlias, TypeVar

import msgspec

from springtide.sale.problems import Problem

GLANCE_BYTES_MAX = 4096
"""Requests up to this size are glanced at."""

MISSES_MAX = 8
"""After so many requests of other shapes the next one's is the one that is tried first."""

LINES_MAX = 1024
"""Lines, and request lines, that are remembered to be harmless; then they are learnt anew."""

LINE_BYTES_MAX = 256
"""Longer lines are not remembered."""

_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_TOKEN = _LETTERS + b"!#$%&'*+-.^_`|~"
"""What a header's name may consist of (RFC 9110, 5.6.2)."""

_TARGET = _LETTERS + b"/-._~!$&'()*+,;=:@%?"
"""What a path with a query may consist of (RFC 3986, 3.3 and 3.4)."""

_VALUE = bytes(range(0x20, 0x7F))
"""What a header's value consists of here; what else RFC 9110 (5.5) permits is for the full parser."""

_METHODS: Final = frozenset((b"GET", b"HEAD", b"POST"))
_VERSION = b" HTTP/1.1"

_AUTHORIZATION, _KEY, _FORWARDED, _PASS, _SENT = range(5)
_FIELDS: Final = {
    spelling: field
    for field, name in enumerate(
        (b"Authorization", b"Idempotency-Key", b"X-Forwarded-For", b"Room-Pass", b"Purchase-Sent-Ms")
    )
    for spelling in (name, name.lower())
}
_STEADY: Final = frozenset(
    (
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"cache-control",
        b"content-type",
        b"origin",
        b"user-agent",
        b"x-envoy-expected-rq-timeout-ms",
        b"x-forwarded-proto",
    )
)
"""Headers, in lower case, that are of no interest, and come with the same values again and again."""

_FRAMING: Final = frozenset(
    (
        *(name.lower() for name in _FIELDS),
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Headers, in lower case, that say how a message is read, or that are read themselves."""

# What the lines of a head say is added up: how many Host and Content-Length lines there are, and the length. A glance
# takes too few bytes for a thousand of either, so the sums cannot run into one another.
_HOST = 1
_HAS_LENGTH = 1 << 10
_LENGTH_SHIFT = 20
_WITH_BODY = _HOST + _HAS_LENGTH
_LENGTH_DIGITS_MAX = 9
_AUTHORIZED: Final = re.compile(rb"\r\n(?:A|a)uthorization: (?=Bearer )")
_KEYED: Final = re.compile(rb"\r\n(?:Idempotency-Key|idempotency-key): ")
_VISIBLE: Final = rb"[!-~]+"

# How a whole request reads but for its token, key and body, and its method and target. The groups are the token with
# its "Bearer", the key and the body.
_Shape: TypeAlias = tuple[Callable[[bytes], re.Match[bytes] | None], tuple[bytes, bytes]]
_NEVER: Final = rb"(?!)"
_NO_SHAPE: Final[_Shape] = (re.compile(_NEVER).match, (b"", b""))
_PERSISTS: Final = (b"connection", b"keep-alive")
_Said = TypeVar("_Said", int, tuple[bytes, bytes])


class Request(msgspec.Struct, gc=False):
    """A whole request, or what made it unreadable. `persists`: HTTP/1.0 that asked to be kept alive.

    `forwarded`, `room_pass` and `sent_ms` are X-Forwarded-For, Room-Pass and Purchase-Sent-Ms as they came.
    """

    method: bytes
    url: bytes
    authorization: bytes | None
    key: bytes | None
    body: bytes | bytearray
    close: bool
    persists: bool = False
    problem: Problem | None = None
    forwarded: bytes | None = None
    room_pass: bytes | None = None
    sent_ms: bytes | None = None


def unreadable(problem: Problem) -> Request:
    """What stands in the place of a request that could not be read."""
    return Request(b"", b"", None, None, b"", close=True, problem=problem)


class Glance:
    """Reads the usual case: one whole plain request. It keeps nothing of it, so one serves all connections.

    It takes only what the full parser is known to read the same way: HTTP/1.1, each line of the head in its plainest
    form (`Name: value` of visible ASCII), exactly one Host, no header that changes how the message is read, and a body
    of exactly the length stated once. Anything else is None, and for the full parser. Most lines of a head are the same
    from one request to the next: those are looked up whole. And often the whole request is but for its token and key:
    that is tried first.
    """

    __slots__ = ("_body_bytes_max", "_lines", "_misses", "_shape", "_starts")

    def __init__(self, body_bytes_max: int) -> None:
        """A body may have this many bytes."""
        self._body_bytes_max = body_bytes_max
        self._lines: dict[bytes, int] = {}
        self._starts: dict[bytes, tuple[bytes, bytes]] = {}
        self._shape = _NO_SHAPE
        self._misses = MISSES_MAX

    def __len__(self) -> int:
        """Lines remembered; at most LINES_MAX of each of the two kinds."""
        return len(self._lines) + len(self._starts)

    def whole(self, data: bytes) -> Request | None:
        """The request that `data` is, no byte less or more; or None."""
        fits, begun = self._shape
        found = fits(data)
        if found is not None and len(data) <= GLANCE_BYTES_MAX:
            token, key, body = found.groups()
            method, url = begun
            return Request(method, url, token, key, body, False)  # noqa: FBT003 - by name it takes longer
        return self._by_lines(data)

    def _by_lines(self, data: bytes) -> Request | None:  # noqa: C901, PLR0911, PLR0912 - calls cost more than all of it
        lines = data.split(b"\r\n")
        if len(lines) < 4 or len(data) > GLANCE_BYTES_MAX:  # noqa: PLR2004 - start, one header, end of them, body
            return None
        body = lines.pop()
        start = lines.pop(0)
        begun = self._starts.get(start) or self._learn_start(start)
        if begun is None or lines.pop():
            return None
        known = self._lines
        authorization: bytes | None = None
        key: bytes | None = None
        more: dict[int, bytes] | None = None
        said = 0
        for line in lines:
            if line in known:
                said += known[line]
                continue
            name, _, value = line.partition(b": ")
            field = _FIELDS.get(name)
            if field is None:
                adds = self._learn(line, name, value)
                if adds is None:
                    return None
                said += adds
            elif not value or value.translate(None, _VALUE) or value.strip() != value:
                return None
            elif field == _AUTHORIZATION and authorization is None:
                authorization = value
            elif field == _KEY and key is None:
                key = value
            else:
                more = more or {}
                if field < _FORWARDED or field in more:
                    return None
                more[field] = value
        method, url = begun
        if said == (len(body) << _LENGTH_SHIFT) + _WITH_BODY:
            if len(body) > self._body_bytes_max:
                return None
        elif said != _HOST or body or method == b"POST":
            return None
        self._misses += 1
        if self._misses > MISSES_MAX and more is None:
            self._misses = 0
            self._shape = _shape_of(data, begun, key, len(body)) or self._shape
        request = Request(method, url, authorization, key, body, False)  # noqa: FBT003 - as above
        if more is not None:
            request.forwarded, request.room_pass, request.sent_ms = map(more.get, (_FORWARDED, _PASS, _SENT))
        return request

    def _learn_start(self, line: bytes) -> tuple[bytes, bytes] | None:
        """Method and target of a request line in its plainest form."""
        method, _, rest = line.partition(b" ")
        target = rest.removesuffix(_VERSION)
        if method not in _METHODS or target == rest or target[:1] != b"/" or target.translate(None, _TARGET):
            return None
        begun = (method, target)
        _remember(self._starts, line, begun)
        return begun

    def _learn(self, line: bytes, name: bytes, value: bytes) -> int | None:
        """What a line adds to what the head says; None when only the full parser can tell."""
        if not (name and value) or name.translate(None, _TOKEN):
            return None
        if value.translate(None, _VALUE) or value.strip() != value:
            return None
        lower = name.lower()
        adds = 0
        if lower == b"host":
            adds = _HOST
        elif lower == b"content-length":
            if not value.isdigit() or len(value) > _LENGTH_DIGITS_MAX:
                return None
            adds = _HAS_LENGTH + (int(value) << _LENGTH_SHIFT)
        elif lower in _FRAMING and (lower, value) != _PERSISTS:
            return None
        elif lower not in _STEADY:
            return adds
        _remember(self._lines, line, adds)
        return adds


def _shape_of(data: bytes, begun: tuple[bytes, bytes], key: bytes | None, body_size: int) -> _Shape | None:
    """The shape of a request that was read by its lines; None unless it has a token, with the key behind it if any."""
    head_size = len(data) - body_size
    found = _AUTHORIZED.search(data, 0, head_size)
    if found is None:
        return None
    at = found.end()
    stop = data.index(b"\r", at)
    token_to_key = _NEVER + b"()|"
    if key is not None:
        named = _KEYED.search(data, stop, head_size)
        if named is None:
            return None
        token_to_key = re.escape(data[stop : named.end()]) + b"(" + _VISIBLE + b")"
        stop = data.index(b"\r", named.end())
    text = b"%b(Bearer %b)(?:%b)%b(.{%d})" % (
        re.escape(data[:at]),
        _VISIBLE,
        token_to_key,
        re.escape(data[stop:head_size]),
        body_size,
    )
    return re.compile(text, re.DOTALL).fullmatch, begun


def _remember(lines: dict[bytes, _Said], line: bytes, said: _Said) -> None:
    if len(line) <= LINE_BYTES_MAX:
        if len(lines) >= LINES_MAX:
            lines.clear()
        lines[line] = said
