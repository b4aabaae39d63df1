"""Whatever is sent, however it is cut: a right answer or a clean end, and the counter still serves."""

import asyncio
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from springtide.drivers.memory.inventory import MemoryInventory
from springtide.model import Sku
from springtide.sale.connection import HttpConnection
from springtide.sale.counter import event_loop_factory
from springtide.sale.glance import GLANCE_BYTES_MAX, LINES_MAX, Glance, Request
from springtide.sale.listener import Listener
from springtide.sale.metrics import Figures
from springtide.sale.reader import BETWEEN
from tests.integration.counter_client import CLOCK, SALE, get, make_sale, new_buyer, open_shop, purchase

STATUSES = {200, 201, 400, 401, 404, 405, 408, 409, 411, 413, 417, 422, 431, 501}
BODY_MAX = 4096


@dataclass
class Served:
    """A counter in a thread of its own, so that the test may block."""

    port: int
    in_flight: "list[int]"

    def talk(self, pieces: list[bytes]) -> bytes:
        """Send the pieces, say that there are no more, and read until the counter closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=15) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            received = b""
            try:
                for piece in pieces:
                    client.sendall(piece)
                client.shutdown(socket.SHUT_WR)
                while chunk := client.recv(65_536):
                    received += chunk
            except (ConnectionResetError, BrokenPipeError):
                # The counter had already refused and closed; what it said before may be lost with the rest.
                pass
            return received


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    started: list[Served] = []
    ready = threading.Event()
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        stopping = asyncio.Event()
        stop.append((asyncio.get_running_loop(), stopping))
        sale = make_sale(skus=(Sku("tea", "Tea", 1, 10**9, per_buyer_max=10**6),))
        async with open_shop(MemoryInventory(CLOCK), sale=sale) as shop:
            started.append(Served(shop.port, [0]))
            ready.set()
            await stopping.wait()
            assert shop.server.listener.in_flight == 0

    def run() -> None:
        with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(20)
    yield started[0]
    stop[0][0].call_soon_threadsafe(stop[0][1].set)
    thread.join(20)
    assert not thread.is_alive()


def answers(received: bytes, heads: "Iterator[bool] | None" = None) -> list[int]:
    """The statuses of a row of whole answers. Fails when it is anything else."""
    statuses = []
    while received:
        head, separator, received = received.partition(b"\r\n\r\n")
        assert separator, f"half an answer: {head!r}"
        lines = head.split(b"\r\n")
        version, status, _ = lines[0].split(b" ", 2)
        assert version == b"HTTP/1.1"
        if status == b"100":
            continue
        fields = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines[1:])}
        length = 0 if heads is not None and next(heads) else int(fields[b"content-length"])
        assert len(received) >= length, "half a body"
        received = received[length:]
        statuses.append(int(status))
    return statuses


def cut_up(data: bytes, cuts: list[float]) -> list[bytes]:
    places = sorted({round(cut * len(data)) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def chunked(request: bytes) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
    chunks = b"".join(
        b"%x;note=1\r\n%b\r\n" % (len(body[at : at + 5]), body[at : at + 5]) for at in range(0, len(body), 5)
    )
    return b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", b""]) + chunks + b"0\r\nX-Late: 1\r\n\r\n"


def asked_first(request: bytes) -> bytes:
    return request.replace(b"\r\n", b"\r\nExpect: 100-continue\r\n", 1)


Call = Callable[[], tuple[bytes, int]]
CALLS: st.SearchStrategy[Call] = st.sampled_from(
    [
        lambda: (purchase(), 201),
        lambda: (chunked(purchase()), 201),
        lambda: (asked_first(purchase()), 201),
        lambda: (purchase(new_buyer(), body={"sku": "hat"}), 404),
        lambda: (purchase(body=b"[]"), 400),
        lambda: (purchase(headers={"Authorization": "Bearer x.y"}), 401),
        lambda: (purchase(headers={"Idempotency-Key": None}), 400),
        lambda: (get(f"/v1/sales/{SALE}"), 200),
        lambda: (get(f"/v1/sales/{SALE}", "HEAD"), 200),
        lambda: (get(f"/v1/sales/{SALE}/orders"), 401),
        lambda: (get("/healthz", headers="X-Odd: " + "o" * 3000 + "\r\n"), 200),
        lambda: (get("/nowhere"), 404),
        lambda: (get("/healthz", headers="Connection: Upgrade\r\nUpgrade: h2c\r\n"), 200),
    ]
)
CUTS = st.lists(st.floats(0, 1), max_size=12)


@settings(max_examples=60)
@given(calls=st.lists(CALLS, min_size=1, max_size=12), cuts=CUTS)
def test_each_request_of_a_pipeline_gets_its_own_answer_however_it_is_cut(
    served: Served, calls: list[Call], cuts: list[float]
) -> None:
    pairs = [call() for call in calls]
    heads = iter([request.startswith(b"HEAD") for request, _ in pairs])
    received = served.talk(cut_up(b"".join(request for request, _ in pairs), cuts))
    assert answers(received, heads) == [status for _, status in pairs]


@settings(max_examples=120)
@given(
    calls=st.lists(CALLS, max_size=4),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=12)), min_size=1, max_size=6),
    cuts=CUTS,
)
def test_damaged_requests_get_answers_or_a_clean_end(
    served: Served, calls: list[Call], edits: list[tuple[float, int, bytes]], cuts: list[float]
) -> None:
    data = b"".join(request for request, _ in (call() for call in calls) if not request.startswith(b"HEAD"))
    received = served.talk(cut_up(damaged(data, edits), cuts))
    assert set(answers(received)) <= STATUSES
    assert answers(served.talk([get("/healthz")])) == [200]


@settings(max_examples=60)
@given(data=st.binary(max_size=2000), cuts=CUTS)
def test_noise_gets_an_answer_or_a_clean_end(served: Served, data: bytes, cuts: list[float]) -> None:
    assert set(answers(served.talk(cut_up(data, cuts)))) <= STATUSES
    assert answers(served.talk([purchase()])) == [201]


def damaged(data: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """Cut out up to `drop` bytes and put others in, here and there."""
    for place, drop, put in edits:
        at = round(place * len(data))
        data = data[:at] + put + data[at + drop :]
    return data


def _blind(data: bytes) -> Request | None:
    return None


class Recorder(HttpConnection):
    """Keeps the requests that one of the two ways sees: the glance, or only the full parser."""

    def __init__(self, *, glances: bool) -> None:
        listener = Listener(CLOCK, Figures(), 10, BODY_MAX)
        if not glances:
            listener.glance = _blind
        super().__init__(listener)
        self.requests: list[Request] = []

    def handle(self, request: Request) -> None:
        self.reply(b"", b"")

    def reply(self, head: bytes, body: bytes, extra: bytes = b"", same: int = -1) -> None:
        self.requests.append(self.request)
        self.busy = False

    def asked_first(self) -> None:
        pass


FRAGMENTS = st.sampled_from(
    [
        b"\r\n",
        b"\n",
        b"\r\n ",
        b" ",
        b":",
        b"Host: b\r\n",
        b"HOST: b\r\n",
        b"host: b\r\n",
        b"Content-Length: 0\r\n",
        b"content-LENGTH: 1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\n",
        b"TRANSFER-encoding: gzip\r\n",
        b"Connection: close\r\n",
        b"cONNECTION: keep-alive\r\n",
        b"Upgrade: x\r\n",
        b"Expect: 100-continue\r\n",
        b"X-Other: 1\r\n",
        b"Authorization: Bearer b\r\n",
        b"idempotency-key: b\r\n",
        b"HTTP/1.0",
        b"G",
        b"GET / HTTP/1.1\r\nHost: b\r\n\r\n",
        b"0\r\n\r\n",
        b"\0",
    ]
)


BASES = (
    purchase("anna", "k"),
    get("/healthz"),
    get(f"/v1/sales/{SALE}?a=1", "HEAD"),
    purchase("anna", "k", headers={"X-Other": "1", "X-Forwarded-For": "10.0.0.1, 10.0.0.2", "Room-Pass": "p.q"}),
    b"",
)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9), FRAGMENTS), max_size=4)
LINES = st.lists(FRAGMENTS, max_size=2)


def edited(base: bytes, edits: list[tuple[float, int, bytes]], lines: list[bytes]) -> bytes:
    """Lines put in behind the first one, then the edits."""
    return damaged(base.replace(b"\r\n", b"\r\n" + b"".join(lines), 1), edits)


@settings(max_examples=600)
@given(rows=st.lists(st.tuples(st.sampled_from(BASES), EDITS, LINES), min_size=1, max_size=6))
def test_a_glance_sees_what_the_full_parser_sees_or_nothing(
    rows: list[tuple[bytes, list[tuple[float, int, bytes]], list[bytes]]],
) -> None:
    # One glance reads them all, as in a server: what it remembers of one must not change how it reads the next. It has
    # the shape of the first already, so that the others are tried against that.
    glance = Glance(BODY_MAX)
    glance.whole(rows[0][0])
    for data in (edited(*row) for row in rows):
        seen = glance.whole(data)
        if seen is None:
            continue
        full = Recorder(glances=False)
        full.take(data)
        assert full.requests == [seen]
        assert full.state == BETWEEN
        assert not full.no_more


@settings(max_examples=300)
@given(
    rows=st.lists(st.tuples(st.sampled_from(BASES), EDITS, LINES), min_size=1, max_size=4),
    cuts=CUTS,
)
def test_a_connection_reads_the_same_with_and_without_glances(
    rows: list[tuple[bytes, list[tuple[float, int, bytes]], list[bytes]]], cuts: list[float]
) -> None:
    pieces = cut_up(b"".join(edited(*row) for row in rows), cuts)
    usual, full = Recorder(glances=True), Recorder(glances=False)
    for piece in pieces:
        usual.take(piece)
        full.take(piece)
    assert usual.requests == full.requests
    assert usual.state == full.state
    assert usual.no_more == full.no_more


@pytest.mark.parametrize("base", BASES[:-1])
def test_a_glance_takes_the_usual_case_and_no_half_request(base: bytes) -> None:
    glance = Glance(BODY_MAX)
    assert glance.whole(base) is not None
    for at in range(len(base)):
        assert glance.whole(base[:at]) is None
    for more in (b"\r", b"\r\n", b"G", base):
        assert glance.whole(base + more) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Host: ", b"Host:"),
        (b"Host: ", b"Host : "),
        (b"Host: ", b"Host:  "),
        (b"Host: ", b"HOST: b\r\nHost: "),
        (b"Host: ", b"X-Host: "),
        (b"Host: ", b"Transfer-Encoding: chunked\r\nHost: "),
        (b"Host: ", b"transfer-encoding: x\r\nHost: "),
        (b"Host: ", b"Expect: 100-continue\r\nHost: "),
        (b"Host: ", b"Connection: close\r\nHost: "),
        (b"Host: ", b"Upgrade: h2c\r\nHost: "),
        (b"Host: ", b"Content-Length: 1\r\nHost: "),
        (b"Host: ", b"CONTENT-LENGTH: 0\r\nHost: "),
        (b"Host: ", b"Idempotency-Key: k\r\nHost: "),
        (b"Host: ", b"IDEMPOTENCY-KEY: k\r\nHost: "),
        (b"Host: ", b"X-Odd: \xc3\xa4\r\nHost: "),
        (b"Host: ", b"X-Odd: a\0b\r\nHost: "),
        (b"Host: ", b"X-Odd: a\nb\r\nHost: "),
        (b"Host: ", b"X Odd: a\r\nHost: "),
        (b"Host: ", b": a\r\nHost: "),
        (b"Content-Length: ", b"Content-Length: +"),
        (b"Content-Length: ", b"Content-Length: -"),
        (b"Content-Length: ", b"Content-Length: 0000000000"),
        (b"Content-Length: ", b"Content-Language: "),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"HTTP/1.1", b"HTTP/2.0"),
        (b"POST ", b"PUT "),
        (b"POST ", b"POST  "),
        (b"POST /", b"POST http://host/"),
        (b"POST /", b"POST /#"),
    ],
)
def test_what_only_the_full_parser_can_judge_is_left_to_it(old: bytes, new: bytes) -> None:
    request = purchase("anna", "k")
    assert old in request
    glance = Glance(BODY_MAX)
    for _ in range(2):
        assert glance.whole(request) is not None
        assert glance.whole(request.replace(old, new, 1)) is None


SPANS = st.lists(
    st.sampled_from([b"", b" ", b"x", b"\t", b"\0", b"\r", b"\r\n", b"\xff", b"Bearer ", b"k: v"]), max_size=4
)


USUAL = (
    b"POST /v1/sales/evening/orders HTTP/1.1\r\nHost: shop\r\nAuthorization: Bearer %b\r\nIdempotency-Key: %b\r\n"
    b"Content-Length: %d\r\n\r\n%b"
)


@settings(max_examples=600)
@given(token=SPANS, key=SPANS, body=SPANS, longer=st.integers(-1, 1))
def test_a_request_of_the_usual_shape_is_read_as_the_full_parser_reads_it(
    token: list[bytes], key: list[bytes], body: list[bytes], longer: int
) -> None:
    content = b"".join(body)
    size = max(0, len(content) + longer)
    glance = Glance(BODY_MAX)
    assert glance.whole(USUAL % (b"t", b"k", size, b"b" * size)) is not None
    data = USUAL % (b"".join(token), b"".join(key), size, content)
    seen = glance.whole(data)
    full = Recorder(glances=False)
    full.take(data)
    assert seen is None or (full.requests == [seen] and full.state == BETWEEN)


def test_a_glance_learns_another_shape_when_requests_have_changed() -> None:
    glance = Glance(BODY_MAX)
    polls = [get("/v1/sales/evening/room", headers=f"Authorization: Bearer t{number}\r\n") for number in range(40)]
    for request in (*(purchase() for _ in range(20)), *polls, *(purchase() for _ in range(20))):
        seen = glance.whole(request)
        full = Recorder(glances=False)
        full.take(request)
        assert full.requests == [seen]


def test_a_token_that_is_too_long_for_a_glance_is_left_to_the_full_parser() -> None:
    glance = Glance(BODY_MAX)
    assert glance.whole(purchase()) is not None
    assert glance.whole(purchase(headers={"Authorization": "Bearer " + "x" * GLANCE_BYTES_MAX})) is None


def test_a_glance_leaves_long_requests_and_remembers_a_limited_number_of_lines() -> None:
    glance = Glance(10 * GLANCE_BYTES_MAX)
    assert glance.whole(purchase("anna", "k", body=b"x" * GLANCE_BYTES_MAX)) is None
    for number in range(3 * LINES_MAX):
        request = get(f"/{number}", headers=f"User-Agent: {number}\r\n")
        seen = glance.whole(request)
        assert seen is not None
        assert seen.url == b"/%d" % number
        assert len(glance) <= 2 * LINES_MAX
