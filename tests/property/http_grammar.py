"""HTTP/1.1 as clients write it: strategies of well-formed requests, and of ways to send them.

Requests hold `<token-N>` in place of the token of the example's Nth buyer, so that an example can be repeated on a
server that has seen the first buyers already; `with_tokens` puts the tokens in.
"""

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from hypothesis import strategies as st

SALE = "evening"
BUYERS = 8
ORDERS = f"/v1/sales/{SALE}/orders".encode()
CRLF = b"\r\n"

Header = tuple[bytes, bytes]


@dataclass(frozen=True)
class Message:
    """One request in its parts; the headers' values come with the white space around them."""

    method: bytes
    target: bytes
    headers: tuple[Header, ...]
    body: bytes = b""
    version: bytes = b"HTTP/1.1"

    def wire(self) -> bytes:
        """The bytes of it."""
        lines = [b" ".join((self.method, self.target, self.version)), *(n + b":" + v for n, v in self.headers)]
        return CRLF.join([*lines, b"", b""]) + self.body


# --- bodies -------------------------------------------------------------------------------------------------

QUANTITIES = st.sampled_from(
    [
        "1",
        "2",
        "1000000",
        "0",
        "-1",
        "1000001",
        "18446744073709551617",
        "-9223372036854775809",
        "9" * 400,
        "1.0",
        "1.5",
        "1e0",
        "1e400",
        "-0",
        "01",
        "+1",
        "0x1",
        "true",
        "null",
        '"1"',
        "[1]",
        "{}",
        "NaN",
        "Infinity",
    ]
)
SKUS = st.sampled_from(
    [
        '"tea"',
        '"cup"',
        '"hat"',
        '"t\\u0065a"',
        '""',
        '"' + "x" * 64 + '"',
        '"' + "x" * 65 + '"',
        '"a b"',
        '"tea\\u0000"',
        '"\\ud800"',
        '"\\ude00\\ud83d"',
        '"\\ud83d\\ude00"',
        '"té"',
        '"tea\t"',
        '"\\x41"',
        "1",
        "null",
        "[]",
        "tea",
        '"tea',
    ]
)
NAMES = st.sampled_from(['"sku"', '"quantity"', '"\\u0073ku"', '"Sku"', '"colour"', '""', '"\\ud800"', "sku", "1"])
ODD_JSON = st.sampled_from(
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b'"tea"',
        b"{}",
        b"{",
        b'{"sku":"tea"',
        b'{"sku":"tea"}}',
        b'{"sku":"tea",}',
        b'{"sku":"tea"}\0',
        b"{'sku':'tea'}",
        b'{"sku":"tea"} {"sku":"tea"}',
        b'\xef\xbb\xbf{"sku":"tea"}',
        b'\xff\xfe{\0"\0s\0k\0u\0"\0',
        b'{"sku":"\xff"}',
        b'{"sku":"te\xc3"}',
        b'{"sku":"\xed\xa0\x80"}',
        b'{"sku":"\xc0\xae"}',
        b'{"\xff":"tea"}',
        b'{"sku":"tea","\xf5":1}',
        b'{"sku":"tea","sku":"cup"}',
        b'{"sku":"hat","sku":"tea"}',
        b'{"sku":"tea","quantity":1,"quantity":2}',
        b'{"sku":"tea","quantity":' + b"[" * 3000,
        b'{"sku":' + b"[" * 1500 + b"]" * 1500 + b"}",
        b'{"a":' * 700 + b"1" + b"}" * 700,
        b'{"sku":"tea","deep":' + b"[" * 1900 + b"]" * 1900 + b"}",
        b'{"sku":"' + b"tea" * 1300 + b'"}',
        b'{"sku":"tea"/**/}',
        b'{"sku":"' + b"t" * 4086 + b'"}',
        b'{"sku":"' + b"t" * 4087 + b'"}',
        b'{"sku":"' + b"t" * 20_000 + b'"}',
        b'\r\n{"sku":\r\n"tea"}\r\n',
        b"GET /healthz HTTP/1.1\r\nHost: shop\r\n\r\n",
    ]
)


@st.composite
def json_bodies(draw: st.DrawFn) -> bytes:
    """An object that may be an order, its members in any order, present or not, of any type."""
    members = []
    if draw(st.integers(0, 9)):
        members.append(f'"sku":{draw(st.one_of(st.just(chr(34) + "tea" + chr(34)), SKUS))}')
    if draw(st.booleans()):
        members.append(f'"quantity":{draw(st.one_of(st.integers(1, 3).map(str), QUANTITIES))}')
    if not draw(st.integers(0, 5)):
        members.append(f"{draw(NAMES)}:{draw(st.one_of(SKUS, QUANTITIES))}")
    space = draw(st.sampled_from(["", " ", "\r\n", "\t"]))
    text = "{" + ",".join(space + one for one in draw(st.permutations(members))) + space + "}"
    return text.encode()


GOOD_BODIES = st.sampled_from([(sku, units) for sku in ("tea", "cup") for units in (None, 1, 2, 7)]).map(
    lambda order: json.dumps({"sku": order[0]} | ({"quantity": order[1]} if order[1] else {})).encode()
)
BODIES = st.one_of(GOOD_BODIES, GOOD_BODIES, json_bodies(), ODD_JSON)


@st.composite
def chunks_of(draw: st.DrawFn, body: bytes) -> bytes:
    """The body in chunks of random sizes, spelt in every way that RFC 9112 (7.1) permits."""
    places = sorted({0, len(body), *draw(st.lists(st.integers(0, len(body)), max_size=4))})
    wire = b""
    for start, end in itertools.pairwise(places):
        size = draw(st.sampled_from([b"%x", b"%X", b"0%x", b"00000%x"])) % (end - start)
        extension = draw(st.sampled_from([b"", b"", b";a", b";a=b", b';a="b c"', b";a=b;c=d"]))
        wire += size + extension + CRLF + body[start:end] + CRLF
    trailers = draw(st.sampled_from([b"", b"", b"X-Sum: 1\r\nX-More: 2\r\n", b"Authorization: Bearer x\r\n"]))
    return wire + draw(st.sampled_from([b"0", b"000"])) + CRLF + trailers + CRLF


# --- whole requests, well formed ----------------------------------------------------------------------------

READ_TARGETS = st.sampled_from(
    [
        b"/healthz",
        b"/healthz?full",
        b"/metrics",
        b"/readyz",
        b"/",
        b"/nowhere",
        b"//healthz",
        b"/v1/sales",
        b"/v1/sales/",
        b"/v1/sales/" + SALE.encode(),
        b"/v1/sales/" + SALE.encode() + b"?a=1&b=%20",
        b"/v1/sales/" + SALE.encode() + b"/",
        b"/v1/sales/" + SALE.encode() + b"/room",
        b"/v1/sales/morning",
        b"/v1/sales/%65vening",
        b"/v1/sales/%ff%00%zz",
        b"/v1/sales/../healthz",
        b"/v1/sales/" + b"x" * 300,
        ORDERS,
        ORDERS + b"/x",
        ORDERS + b"/" + b"y" * 100,
        b"http://shop/healthz",
        b"HTTP://shop/healthz",
        b"http://shop",
        b"http://shop?to=/healthz",
        b"https://shop:8443/v1/sales/" + SALE.encode(),
    ]
)
PURCHASE_TARGETS = st.sampled_from(
    [ORDERS] * 6
    + [
        ORDERS + b"?a=b",
        b"http://shop" + ORDERS,
        ORDERS + b"/",
        b"/v1/sales/morning/orders",
        b"/healthz",
        b"/V1" + ORDERS[3:],
    ]
)
AUTHORIZATIONS = st.sampled_from(
    [b"Bearer <token-%d>"] * 12
    + [
        b"bearer <token-%d>",
        b"Bearer  <token-%d>",
        b"<token-%d>",
        b"Bearer <token-%d>x",
        b"Bearer x.y.%d",
        b"Basic Og==",
    ]
)
KEYS = st.sampled_from(
    [b"k1", b"k2", b"k3", b"k4", b"k5", b"k6", b"a.b_c:d-e", b"x" * 64, b"x" * 65, b"", b"a b", b"\xc3\xa4"]
)
OTHER_HEADERS = st.sampled_from(
    [
        (b"User-Agent", b"fuzz/1.0 (x; y)"),
        (b"Accept", b"*/*"),
        (b"Content-Type", b"application/json"),
        (b"Content-Type", b"text/plain; charset=utf-16"),
        (b"Content-Encoding", b"gzip"),
        (b"X-Empty", b""),
        (b"X-Text", b"\xc3\xa4\xff\x80"),
        (b"X-Tab", b"a\tb"),
        (b"X-Forwarded-For", b"10.0.0.1, ::1, x"),
        (b"X-Forwarded-For", b"\xff" * 60),
        (b"Room-Pass", b"p.q"),
        (b"Purchase-Sent-Ms", b"1"),
        (b"Purchase-Sent-Ms", b"99999999999999999999"),
        (b"Purchase-Sent-Ms", b"-1"),
        (b"Purchase-Sent-Ms", b"1_0"),
        (b"Connection", b"keep-alive"),
        (b"Connection", b"x-text, te"),
        (b"Trailer", b"X-Sum"),
        (b"TE", b"trailers"),
        (b"Upgrade", b"h2c"),
        (b"!#$%&'*+-.^_`|~1aZ", b"all letters of a token"),
        (b"X-Long", b"l" * 3000),
        (b"Cookie", b"a=b; " * 30),
    ]
)
SPELL: tuple[Callable[[bytes], bytes], ...] = (lambda n: n, lambda n: n, bytes.lower, bytes.upper, bytes.swapcase)
PADS = st.sampled_from([(b" ", b"")] * 6 + [(b"", b""), (b"  ", b""), (b"\t", b""), (b" ", b" "), (b" ", b"\t ")])


@st.composite
def spelt(draw: st.DrawFn, headers: list[Header]) -> tuple[Header, ...]:
    """The headers in any order, case and padding."""
    made = []
    for name, value in draw(st.permutations(headers)) if draw(st.booleans()) else headers:
        before, behind = draw(PADS)
        if name == b"Transfer-Encoding":
            # The parser knows no coding with a tab behind it; refusing what no client sends is safe.
            behind = behind.replace(b"\t", b"")
        made.append((draw(st.sampled_from(SPELL))(name), before + value + behind))
    return tuple(made)


@st.composite
def framed(draw: st.DrawFn, message: Message, body: bytes) -> Message:
    """The message with the body, by length or in chunks, the client asking first or not."""
    headers = list(message.headers)
    wire = body
    if draw(st.integers(0, 3)):
        headers.append((b"Content-Length", b"%d" % len(body)))
    else:
        headers.append((b"Transfer-Encoding", draw(st.sampled_from([b"chunked", b"Chunked", b"CHUNKED"]))))
        wire = draw(chunks_of(body))
    if not draw(st.integers(0, 5)):
        headers.append((b"Expect", b"100-continue"))
    return Message(message.method, message.target, draw(spelt(headers)), wire, message.version)


@st.composite
def purchases(draw: st.DrawFn, bodies: st.SearchStrategy[bytes] = BODIES) -> Message:
    """A purchase by one of the buyers, mostly a good one."""
    buyer = draw(st.integers(0, BUYERS - 1))
    authorization = draw(AUTHORIZATIONS)
    headers = [(b"Host", b"shop")]
    if draw(st.integers(0, 19)):
        headers.append((b"Authorization", authorization % buyer if b"%d" in authorization else authorization))
    if draw(st.integers(0, 19)):
        headers.append((b"Idempotency-Key", draw(KEYS)))
    headers += draw(st.lists(OTHER_HEADERS, max_size=2))
    return draw(framed(Message(b"POST", draw(PURCHASE_TARGETS), tuple(headers)), draw(bodies)))


@st.composite
def readings(draw: st.DrawFn) -> Message:
    """A request that buys nothing: pages, a buyer's orders, things that are not there, methods that do not fit."""
    method = draw(st.sampled_from([b"GET"] * 5 + [b"HEAD", b"OPTIONS", b"DELETE", b"PUT", b"PATCH", b"TRACE"]))
    target = draw(st.sampled_from([b"*", b"/healthz"]) if method == b"OPTIONS" else READ_TARGETS)
    headers = [(b"Host", draw(st.sampled_from([b"shop", b"shop:80", b"[::1]:80"])))]
    if draw(st.booleans()):
        headers.append((b"Authorization", b"Bearer <token-%d>" % draw(st.integers(0, BUYERS - 1))))
    if not draw(st.integers(0, 4)):
        headers.append((b"Idempotency-Key", draw(KEYS)))
    headers += draw(st.lists(OTHER_HEADERS, max_size=2))
    message = Message(method, target, tuple(headers))
    if method in (b"PUT", b"PATCH") or not draw(st.integers(0, 9)):
        return draw(framed(message, draw(BODIES)))
    return Message(method, target, draw(spelt(headers)))


@st.composite
def good_messages(draw: st.DrawFn) -> Message:
    """Any well-formed request after which the connection stays open."""
    return draw(st.one_of(purchases(), readings()))


@st.composite
def last_messages(draw: st.DrawFn) -> Message:
    """A well-formed request that may end the connection, or keep it in the way of HTTP/1.0."""
    message = draw(good_messages())
    version, connection = draw(
        st.sampled_from(
            [
                (b"HTTP/1.1", b"close"),
                (b"HTTP/1.1", b"Close"),
                (b"HTTP/1.1", b"x, close"),
                (b"HTTP/1.0", b"keep-alive"),
                (b"HTTP/1.0", b""),
                (b"HTTP/1.0", b"close"),
                (b"HTTP/1.0", b"Keep-Alive"),
            ]
        )
    )
    own = {b"connection", b"upgrade"} | ({b"expect"} if version == b"HTTP/1.0" else set())
    headers = tuple(one for one in message.headers if one[0].lower() not in own)
    if connection:
        before, behind = draw(PADS)
        headers += ((draw(st.sampled_from(SPELL))(b"Connection"), before + connection + behind),)
    if version == b"HTTP/1.0" and any(name.lower() == b"transfer-encoding" for name, _ in headers):
        version = b"HTTP/1.1"
    return Message(message.method, message.target, headers, message.body, version)


@st.composite
def good_streams(draw: st.DrawFn) -> list[bytes]:
    """A pipeline of well-formed requests, at times with an empty line behind one; the last may end the connection."""
    wires = [one.wire() for one in draw(st.lists(good_messages(), min_size=1, max_size=8))]
    if draw(st.booleans()):
        wires.append(draw(last_messages()).wire())
    behind = draw(st.sampled_from([b"", b"", CRLF]))
    return [*(wire + behind for wire in wires[:-1]), wires[-1]]


# --- ways to send -------------------------------------------------------------------------------------------


class End(Enum):
    """What the client does once it has sent everything, or a part."""

    HALF_CLOSE = "says that it sends no more, and reads to the end"
    CLOSE = "goes away without reading"
    RESET = "resets the connection"


@dataclass(frozen=True)
class Delivery:
    """Where a stream is cut, between which pieces the client waits a moment, and how it ends.

    `apart`: cut between requests, and between the head of each and its body, so that each may arrive alone.
    """

    cuts: tuple[float, ...] = ()
    pauses: tuple[bool, ...] = ()
    apart: bool = False
    end: End = End.HALF_CLOSE
    sent_share: float = 1.0

    def pieces(self, stream: Sequence[bytes]) -> list[bytes]:
        """The stream in pieces; what the client does not send is left out."""
        whole = b"".join(stream)
        size = round(self.sent_share * len(whole))
        places = {0, size, *(round(cut * size) for cut in self.cuts)}
        if self.apart:
            ends = (found.end() for found in re.finditer(b"\r\n\r\n", whole))
            places.update(at for at in (*ends, *itertools.accumulate(map(len, stream))) if at < size)
        return [whole[start:end] for start, end in itertools.pairwise(sorted(places))]


CUTS = st.lists(st.floats(0, 1), max_size=8).map(tuple)
PAUSES = st.lists(st.booleans(), max_size=3).map(tuple)
WHOLE_DELIVERIES = st.builds(Delivery, CUTS, PAUSES, st.booleans())
BROKEN_DELIVERIES = st.builds(Delivery, CUTS, PAUSES, st.booleans(), st.sampled_from(End), st.floats(0, 1))


def with_tokens(stream: Sequence[bytes], tokens: Mapping[int, bytes]) -> list[bytes]:
    """The stream with the tokens of these buyers in their places."""
    made = list(stream)
    for buyer, token in tokens.items():
        made = [part.replace(b"<token-%d>" % buyer, token) for part in made]
    return made
