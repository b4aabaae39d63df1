"""HTTP/1.1 as no client should write it: strategies of requests with a defect, and of streams that have one in them."""

import re
from collections.abc import Iterator

from hypothesis import strategies as st

from tests.property.http_grammar import (
    CRLF,
    GOOD_BODIES,
    SALE,
    SPELL,
    Message,
    chunks_of,
    good_messages,
    purchases,
    spelt,
)

TRANSFER_CODINGS = (
    b"chunked, identity",
    b"identity",
    b"chunked, chunked",
    b"gzip, chunked",
    b"chunked;q=1",
    b"xchunked",
    b"chunkedx",
    b'"chunked"',
    b"chunked,",
    b",chunked",
    b"\x0bchunked",
    b"chunked\x00",
    b"chu nked",
    b"identity, chunked",
    b"",
    b"\tchunked",
    b"chunked\t",
    b"chunked \t",
    b"CHUNKED ",
    b"trailers",
)
LENGTHS = (
    b"+%d",
    b"-%d",
    b"%d, %d",
    b"%d,%d",
    b"0x%x",
    b"%d.0",
    b"%d e",
    b" %d ",
    b"\t%d",
    b"%d\t",
    b"\x0b%d",
    b"%d\x00",
    b"'%d'",
    b"",
    b"%d;",
    b"1e1",
    b"\xd9\xa1",
    b"1_3",
    b"000000000000000%d",
    b"99999999999999999999",
    b"18446744073709551629",
)
EXTRA_LINES = (
    b"X-Odd : 1",
    b" X-Odd: 1",
    b"X-Odd",
    b": 1",
    b"X Odd: 1",
    b"X-Odd\0: 1",
    b"X-Odd\t: 1",
    b"X-Odd: a\0b",
    b"X-Odd: a\x01b",
    b"X-Odd: a\x7fb",
    b"X-Odd: a\rb",
    b"X-Odd: a\nb",
    b"X-Odd: a\r\n folded",
    b"X-Odd: a\r\n\tfolded",
    b"X-\xc3\xa4: 1",
    b"(X): 1",
    b"\r",
    b"\n",
    b"Host: other",
    b"host:",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding : chunked",
    b"Transfer_Encoding: chunked",
    b"Transfer-Encoding:\r\n chunked",
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"content-length : 5",
    b"Content-Length\0: 5",
    b"Authorization: Bearer <token-1>",
    b"AUTHORIZATION: x",
    b"Idempotency-Key: k9",
    b"Expect: cake",
    b"Expect: 100-continue, 100-continue",
    b"Connection: Upgrade\r\nUpgrade: h2c",
    b"Connection: close, Upgrade\r\nUpgrade: h2c",
    b"Upgrade: h2c\r\nConnection: upgrade\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    b"GET /healthz HTTP/1.1",
)
BAD_CHUNKS = (
    b"zz\r\nabc\r\n0\r\n\r\n",
    b"-1\r\n\r\n0\r\n\r\n",
    b"+1\r\na\r\n0\r\n\r\n",
    b" 1\r\na\r\n0\r\n\r\n",
    b"1 \r\na\r\n0\r\n\r\n",
    b"0x1\r\na\r\n0\r\n\r\n",
    b"1\r\nab\r\n0\r\n\r\n",
    b"2\r\na\r\n0\r\n\r\n",
    b"1\na\n0\n\n",
    b"1\r\na0\r\n\r\n",
    b"1\r\na\r\n0\r\nX Odd: 1\r\n\r\n",
    b"1\r\na\r\n0\r\n folded\r\n\r\n",
    b"1\r\na\r\n0\n\r\n",
    b"1;\r\na\r\n0\r\n\r\n",
    b"1;a=\x00\r\na\r\n0\r\n\r\n",
    b"1;a\nb\r\na\r\n0\r\n\r\n",
    b"1;" + b"e" * 50_000 + b"\r\na\r\n0\r\n\r\n",
    b"ffffffffffffffff\r\na\r\n0\r\n\r\n",
    b"10000000000000001\r\na\r\n0\r\n\r\n",
    b"100000\r\n" + b"a" * 6000,
    b"1\r\na\r\n" * 5000 + b"0\r\n\r\n",
    b"1\r\na\r\n0\r\nContent-Length: 1\r\n\r\n",
    b"1\r\na\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"0\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    b"\r\n0\r\n\r\n",
    b"0",
    b"",
)
START_LINES = (
    b"GET  /healthz HTTP/1.1",
    b"GET\t/healthz HTTP/1.1",
    b" GET /healthz HTTP/1.1",
    b"GET /healthz  HTTP/1.1",
    b"GET /healthz HTTP/1.1 ",
    b"GET /healthz",
    b"GET /healthz HTTP/1.2",
    b"GET /healthz HTTP/2.0",
    b"GET /healthz HTTP/0.9",
    b"GET /healthz HTTP/11",
    b"GET /healthz HTTP/1.10",
    b"GET /healthz http/1.1",
    b"GET /healthz ICY/1.1",
    b"GET /healthz RTSP/1.0",
    b"get /healthz HTTP/1.1",
    b"Get /healthz HTTP/1.1",
    b"G\0T /healthz HTTP/1.1",
    b"GETX /healthz HTTP/1.1",
    b"SUBSCRIBE /healthz HTTP/1.1",
    b"QUERY /healthz HTTP/1.1",
    b"CONNECT shop:80 HTTP/1.1",
    b"CONNECT /healthz HTTP/1.1",
    b"PRI * HTTP/2.0",
    b"GET * HTTP/1.1",
    b"GET healthz HTTP/1.1",
    b"GET httpx/healthz HTTP/1.1",
    b"GET shop:80 HTTP/1.1",
    b"GET /heal\0thz HTTP/1.1",
    b"GET /heal\rthz HTTP/1.1",
    b"GET /v1/sales/" + SALE.encode() + b"?\xff\xfe HTTP/1.1",
    b"GET /v1/sales/\xc3\xa4 HTTP/1.1",
    b"GET /healthz#there HTTP/1.1",
    b"GET /healthz?a#there HTTP/1.1",
    b"GET http:///healthz HTTP/1.1",
    b"GET http://a b/healthz HTTP/1.1",
    b"GET ftp://shop/healthz HTTP/1.1",
    b"GET /" + b"u" * 7000 + b" HTTP/1.1",
    b"GET /" + b"u" * 40_000 + b" HTTP/1.1",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"HTTP/1.1 200 OK",
    b"",
)


@st.composite
def badly_framed(draw: st.DrawFn) -> bytes:
    """A purchase whose length is stated twice, oddly, or not at all."""
    message = draw(purchases(GOOD_BODIES))
    headers = [one for one in message.headers if one[0].lower() not in (b"content-length", b"transfer-encoding")]
    body = draw(GOOD_BODIES)
    length = draw(st.sampled_from([len(body), len(body) + 3, 3, 0]))
    stated = draw(st.sampled_from((b"%d", *LENGTHS)))
    codings = draw(st.lists(st.one_of(st.just(b"chunked"), st.sampled_from(TRANSFER_CODINGS)), max_size=2))
    lengths = draw(st.lists(st.just(stated), max_size=2)) if codings else [stated]
    headers += [(draw(st.sampled_from(SPELL))(b"Content-Length"), _number(one, length)) for one in lengths]
    headers += [(draw(st.sampled_from(SPELL))(b"Transfer-Encoding"), one) for one in codings]
    wire = draw(st.one_of(chunks_of(body), st.sampled_from(BAD_CHUNKS), st.just(body))) if codings else body
    return Message(message.method, message.target, draw(spelt(headers)), wire).wire()


def _number(spelling: bytes, value: int) -> bytes:
    count = spelling.count(b"%d") + spelling.count(b"%x")
    return spelling % ((value,) * count)


@st.composite
def badly_headed(draw: st.DrawFn) -> bytes:
    """A request with a line too many, too long, or spelt as none should be."""
    message = draw(good_messages())
    lines = message.wire().split(CRLF)
    end = lines.index(b"")
    extra = draw(st.lists(st.sampled_from(EXTRA_LINES), min_size=1, max_size=2))
    if not draw(st.integers(0, 5)):
        extra.append(
            draw(st.sampled_from([b"X-Long: " + b"l" * 9000, b"X-Long: " + b"l" * 40_000, b"X" * 30_000 + b": 1"]))
        )
    if not draw(st.integers(0, 9)):
        extra += [b"X-%d: y" % number for number in range(draw(st.sampled_from([100, 1000, 4000])))]
    at = draw(st.integers(1, end))
    lines[at:at] = extra
    return CRLF.join(lines)


@st.composite
def badly_started(draw: st.DrawFn) -> bytes:
    """A request line that is none."""
    message = draw(good_messages())
    return message.wire().replace(message.wire().split(CRLF)[0], draw(st.sampled_from(START_LINES)), 1)


@st.composite
def other_line_ends(draw: st.DrawFn) -> bytes:
    """A request whose lines end otherwise: all of them, or one."""
    wire = draw(good_messages()).wire()
    end = draw(st.sampled_from([b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r", b"\r\n\n", b"\0"]))
    if draw(st.booleans()):
        return wire.replace(CRLF, end)
    places = [found.start() for found in re.finditer(CRLF, wire)]
    at = draw(st.sampled_from(places))
    return wire[:at] + end + wire[at + 2 :]


@st.composite
def asked_for_nothing(draw: st.DrawFn) -> bytes:
    """CONNECT, with what would be its body: behind it begins either nothing or another protocol."""
    body = draw(st.sampled_from([b"", b"GET /healthz HTTP/1.1\r\nHost: shop\r\n\r\n", b"abc"]))
    headers = [(b"Host", b" shop")]
    if draw(st.booleans()):
        headers.append((b"Content-Length", b" %d" % len(body)))
    else:
        headers.append((b"Transfer-Encoding", b" chunked"))
        body = draw(chunks_of(body))
    if draw(st.booleans()):
        headers.append((b"Connection", draw(st.sampled_from([b" Upgrade", b" close", b" keep-alive"]))))
        headers.append((b"Upgrade", b" x"))
    method, target = draw(st.sampled_from([(b"CONNECT", b"shop:80"), (b"GET", b"/healthz"), (b"POST", b"/healthz")]))
    return Message(method, target, tuple(headers), body).wire()


def named_defects(message: Message) -> Iterator[bytes]:
    """The message, with each of the defects above in turn; it has a body and states its length."""
    lines = message.wire().split(CRLF)
    end = lines.index(b"")
    body = message.body
    for start in START_LINES:
        yield CRLF.join([start, *lines[1:]])
    for extra in EXTRA_LINES:
        yield CRLF.join([*lines[:1], extra, *lines[1:]])
        yield CRLF.join([*lines[:end], extra, *lines[end:]])
    unframed = tuple(one for one in message.headers if one[0] != b"Content-Length")
    for length in LENGTHS:
        header = (b"Content-Length", b" " + _number(length, len(body)))
        yield Message(message.method, message.target, (*unframed, header), body).wire()
    for coding in TRANSFER_CODINGS:
        header = (b"Transfer-Encoding", b" " + coding)
        chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        for framing in ((header,), (header, (b"Content-Length", b" %d" % len(chunk)))):
            yield Message(message.method, message.target, (*unframed, *framing), chunk).wire()
    for chunks in BAD_CHUNKS:
        header = (b"Transfer-Encoding", b" chunked")
        yield Message(message.method, message.target, (*unframed, header), chunks).wire()


MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["cut", "put", "swap", "again"]), st.floats(0, 1), st.floats(0, 1), st.binary(max_size=8)
    ),
    min_size=1,
    max_size=4,
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """One to three requests, then parts of them taken out, replaced, repeated or exchanged."""
    data = b"".join(one.wire() for one in draw(st.lists(good_messages(), min_size=1, max_size=3)))
    for kind, place, share, put in draw(MUTATIONS):
        at = round(place * len(data))
        size = round(share**4 * (len(data) - at))
        piece, rest = data[at : at + size], data[at + size :]
        if kind == "cut":
            data = data[:at] + rest
        elif kind == "put":
            data = data[:at] + put + rest
        elif kind == "swap":
            data = data[:at] + rest[:size] + piece + rest[size:]
        else:
            data = data[:at] + piece + piece + rest
    return data


DEFECTIVE = st.one_of(
    badly_framed(), badly_framed(), badly_headed(), badly_started(), other_line_ends(), mutated(), asked_for_nothing()
)


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """What one client sends: good requests, something defective between or behind them, more behind that."""
    before = draw(st.lists(good_messages(), max_size=2))
    behind = draw(st.lists(good_messages(), max_size=2))
    return [*(one.wire() for one in before), draw(DEFECTIVE), *(one.wire() for one in behind)]
