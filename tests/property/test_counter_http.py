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
from springtide.sale.glance import Glance, Request
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
        lambda: (get(f"/v1/sales/{SALE}/orders"), 405),
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


class Recorder(HttpConnection):
    """Keeps the requests of the full parser."""

    def __init__(self) -> None:
        super().__init__(Listener(CLOCK, Figures(), 10, BODY_MAX))
        self._glance = None
        self.requests: list[Request] = []

    def handle(self, request: Request) -> None:
        self.requests.append(request)
        self.busy = False


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


@settings(max_examples=600)
@given(
    base=st.sampled_from(
        [purchase("anna", "k"), get("/healthz"), purchase("anna", "k", headers={"X-Other": "1"}), b""]
    ),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9), FRAGMENTS), max_size=4),
    lines=st.lists(FRAGMENTS, max_size=2),
)
def test_a_glance_sees_what_the_full_parser_sees_or_nothing(
    base: bytes, edits: list[tuple[float, int, bytes]], lines: list[bytes]
) -> None:
    data = damaged(base.replace(b"\r\n", b"\r\n" + b"".join(lines), 1), edits)
    glance = Glance()
    seen = glance.whole(data, BODY_MAX)
    if seen is None:
        return
    full = Recorder()
    full.take(data)
    assert full.requests == [seen]
    assert full.state == BETWEEN
    # It has kept nothing back that could get into the next request.
    following = purchase("bert", "k2")
    other = Recorder()
    other.take(following)
    assert [glance.whole(following, BODY_MAX)] == other.requests


@pytest.mark.parametrize("at", range(0, 300, 7))
def test_a_glance_takes_no_half_request(at: int) -> None:
    request = purchase("anna", "k")
    assert Glance().whole(request, BODY_MAX) is not None
    for data in (
        request[: at % len(request)],
        request + request[: 1 + at % len(request)],
        request + b"\r",
        request + b"G",
    ):
        seen = Glance().whole(data, BODY_MAX)
        assert seen is None or data.rstrip(b"\r") == request
