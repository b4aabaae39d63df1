"""The crowd against a small HTTP server on this machine: what it sends, counts and writes down."""

import asyncio
import json
import random
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import httptools
import msgspec
import pytest
import uvloop

from springtide.config import CrowdSettings
from springtide.drivers.private_file import write_private
from springtide.drivers.system import SystemClock, SystemIds, chance
from springtide.errors import ConfigError
from springtide.model import Sale, Sku
from springtide.sale import webhook
from springtide.sale.tokens import TokenKeys
from springtide.twin.crowd.client import Pool, Request, Response
from springtide.twin.crowd.generator import run_crowd
from springtide.twin.crowd.spec import (
    ACKNOWLEDGEMENTS,
    SECONDS,
    CrowdSpec,
    CrowdSummary,
    OrderAcknowledged,
    PaymentAcknowledged,
    read_acknowledgements,
    read_seconds,
    read_spec,
)

KEY = b"k" * 32
SECRET = b"s" * 32
CLOCK = SystemClock()


class Shop:
    """A counter and a back office in one: it sells `stock`, and misbehaves as told."""

    def __init__(self, stock: int) -> None:
        self.stock = stock
        self.orders: dict[tuple[str, str], str] = {}
        self.payments: dict[str, dict[str, object]] = {}
        self.requests = 0
        self.drop: Callable[[int], bool] = lambda _number: False
        self.shed: Callable[[int], bool] = lambda _number: False
        self.opens_ms = 0
        self.keys_early: set[str] = set()
        self.open_connections = 0

    def answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, object]] | None:
        """Status and body; None cuts the connection after the work was done."""
        if method == "GET":
            return 200, {"sale": "night"}
        if path == "/v1/payments":
            assert headers[webhook.SIGNATURE_HEADER.lower()] == webhook.sign(SECRET, body)
            payment = json.loads(body)
            self.payments[payment["payment_id"]] = payment
            return 200, {"outcome": "accepted"}
        self.requests += 1
        buyer = TokenKeys((KEY,)).verify(headers["authorization"].removeprefix("Bearer ").encode(), b"night", 0)
        status, answer = self._order(buyer, headers["idempotency-key"], json.loads(body))
        return None if self.drop(self.requests) else (status, answer)

    def _order(self, buyer: str, key: str, wanted: dict[str, object]) -> tuple[int, dict[str, object]]:
        if self.shed(self.requests):
            return 503, {"code": "overloaded"}
        if CLOCK.now_ms() < self.opens_ms:
            self.keys_early.add(key)
            return 425, {"code": "not_open"}
        quantity = wanted["quantity"]
        assert isinstance(quantity, int)
        order, status = self.orders.get((buyer, key)), 200
        if order is None:
            if quantity > self.stock:
                return 409, {"code": "sold_out"}
            self.stock -= quantity
            order, status = f"o{len(self.orders)}", 201
            self.orders[buyer, key] = order
        return status, {"order_id": order, "sale": "night", "status": "reserved", "pay_by_ms": 5, **wanted}


class Handler(asyncio.Protocol):
    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.parser = httptools.HttpRequestParser(self)
        self.headers: dict[str, str] = {}
        self.body = b""
        self.path = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.shop.open_connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.shop.open_connections -= 1

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.headers, self.body = {}, b""

    def on_url(self, url: bytes) -> None:
        self.path = url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        answer = self.shop.answer(self.parser.get_method().decode(), self.path, self.headers, self.body)
        if answer is None:
            self.transport.abort()
            return
        status, document = answer
        body = msgspec.json.encode(document)
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nRetry-After: 0\r\n\r\n"
        self.transport.write(head.encode() + body)


@pytest.fixture
async def shop() -> AsyncIterator[tuple[Shop, str]]:
    shop = Shop(stock=60)
    server = await asyncio.get_running_loop().create_server(lambda: Handler(shop), "127.0.0.1", 0)
    yield shop, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


def make_spec(
    folder: Path, url: str, rates: list[float], *, opens_after_s: float = 0.0, **changes: object
) -> CrowdSpec:
    demand = folder / "demand.csv"
    demand.write_text("second,requests_per_second\n" + "".join(f"{s},{rate}\n" for s, rate in enumerate(rates)))
    start_ms = CLOCK.now_ms() + 200
    opens_ms = start_ms + round(opens_after_s * 1000)
    skus = (Sku("tea", "Tea", 500, 40, per_buyer_max=2), Sku("cup", "Cup", 700, 20))
    fixed: dict[str, object] = {
        "pay_after_s": 0.1,
        "connections": 8,
        "answer_timeout_s": 1.0,
        "seed": 3,
        "retries_max": 1,
    }
    settings = msgspec.convert({"demand": str(demand), **fixed, **changes}, CrowdSettings)
    return CrowdSpec(
        url=url,
        backoffice_url=url,
        sale=Sale("night", "Night", skus, opens_ms, opens_ms + 60_000, 10_000),
        demand=str(demand),
        settings=settings,
        token_key_hex=KEY.hex(),
        webhook_secret_hex=SECRET.hex(),
        start_ms=start_ms,
        out=str(folder / "out"),
    )


async def run(spec: CrowdSpec) -> CrowdSummary:
    return await run_crowd(spec, CLOCK, SystemIds(), chance)


def acknowledged(spec: CrowdSpec) -> tuple[list[OrderAcknowledged], list[PaymentAcknowledged]]:
    lines = read_acknowledgements(Path(spec.out) / ACKNOWLEDGEMENTS)
    orders = [line for line in lines if isinstance(line, OrderAcknowledged)]
    return orders, [line for line in lines if isinstance(line, PaymentAcknowledged)]


async def test_every_acknowledgement_is_in_the_log_and_paid_for_once(tmp_path: Path, shop: tuple[Shop, str]) -> None:
    server, url = shop
    spec = make_spec(tmp_path, url, [150, 150], pay_share=1.0)
    summary = await run(spec)
    orders, payments = acknowledged(spec)
    assert {line.order_id for line in orders} == set(server.orders.values())
    assert summary.acknowledged == len(server.orders) == len(payments) == len(server.payments)
    assert {line.order_id for line in payments} == {line.order_id for line in orders}
    assert {line.outcome for line in payments} == {"accepted"}
    assert all(line.amount_fen in {500, 1000, 700, 1400} for line in payments)
    assert summary.availability == 1.0
    assert (summary.unanswered, summary.conflicting, summary.shed_share) == (0, 0, 0.0)
    assert summary.answers["409 sold_out"] > 0
    assert summary.requests > summary.first_attempts
    assert sum(summary.answers.values()) == summary.requests
    assert json.loads((tmp_path / "out" / "summary.json").read_bytes())["requests"] == summary.requests


def test_it_runs_on_uvloop(tmp_path: Path) -> None:
    async def serve_and_run() -> tuple[CrowdSummary, Shop]:
        shop = Shop(stock=60)
        server = await asyncio.get_running_loop().create_server(lambda: Handler(shop), "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        summary = await run(make_spec(tmp_path, url, [100]))
        server.close()
        return summary, shop

    summary, shop = uvloop.run(serve_and_run())
    assert summary.acknowledged == len(shop.orders) > 20
    assert summary.availability == 1.0


async def test_the_seconds_add_up_to_the_summary(tmp_path: Path, shop: tuple[Shop, str]) -> None:
    _, url = shop
    spec = make_spec(tmp_path, url, [20, 100, 20])
    summary = await run(spec)
    seconds = read_seconds(Path(spec.out) / SECONDS)
    assert [line.second for line in seconds[:3]] == [0, 1, 2]
    assert [line.planned for line in seconds[:3]] == [20, 100, 20]
    assert sum(line.sent for line in seconds) == summary.requests
    assert sum(line.first_attempts for line in seconds) == summary.first_attempts
    assert sum(sum(line.answers.values()) for line in seconds) == summary.requests
    assert max(line.max_ms for line in seconds) == summary.max_ms


async def test_a_lost_answer_is_asked_for_again_with_the_same_key(tmp_path: Path, shop: tuple[Shop, str]) -> None:
    server, url = shop
    random_stream = random.Random(5)
    server.drop = lambda _number: random_stream.random() < 0.3
    spec = make_spec(tmp_path, url, [80, 80], page_share=0.0)
    summary = await run(spec)
    orders, _ = acknowledged(spec)
    assert summary.answers["0 connection"] > 10
    assert summary.availability == pytest.approx(1 - summary.answers["0 connection"] / summary.requests)
    assert summary.resolved > 10
    assert summary.unanswered == 0
    assert {line.order_id for line in orders} == set(server.orders.values())
    assert len({line.key for line in orders}) == len(server.orders)


async def test_a_doubt_that_never_ends_is_reported(
    tmp_path: Path, shop: tuple[Shop, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("springtide.twin.crowd.buyers.ASKS_MAX", 3)
    server, url = shop
    server.drop = lambda _number: True
    summary = await run(make_spec(tmp_path, url, [40], page_share=0.0))
    assert summary.unanswered > 10
    assert summary.resolved == 0
    assert summary.availability == 0.0


async def test_shed_first_attempts_are_counted_and_come_back(tmp_path: Path, shop: tuple[Shop, str]) -> None:
    server, url = shop
    server.shed = lambda number: number % 2 == 0
    summary = await run(make_spec(tmp_path, url, [100], page_share=0.0, retries_max=3))
    assert 0.2 < summary.shed_share < 0.8
    assert summary.shed_share_at_peak == summary.shed_share
    assert summary.failed == summary.answers["503 overloaded"]
    assert summary.acknowledged > 0


async def test_people_who_were_too_early_come_back_at_the_opening_with_their_key(
    tmp_path: Path, shop: tuple[Shop, str]
) -> None:
    server, url = shop
    spec = make_spec(tmp_path, url, [400, 5, 5], opens_after_s=1.0)
    server.opens_ms = spec.sale.opens_ms
    await run(spec)
    assert len(server.keys_early) > 5
    assert len(server.keys_early & {key for _, key in server.orders}) > 5


async def test_a_conflicting_answer_is_noticed(
    tmp_path: Path, shop: tuple[Shop, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("springtide.twin.crowd.buyers.DOUBLE_PRESS_SHARE", 1.0)
    server, url = shop
    server.stock = 10_000
    honest = server._order

    def forgetful(buyer: str, key: str, wanted: dict[str, object]) -> tuple[int, dict[str, object]]:
        server.orders.pop((buyer, key), None)
        status, body = honest(buyer, key, wanted)
        return status, {**body, "order_id": f"x{server.requests}"} if status < 300 else body

    server._order = forgetful  # type: ignore[method-assign] # a shop that forgets keys
    summary = await run(make_spec(tmp_path, url, [50], page_share=0.0))
    assert summary.conflicting == summary.acknowledged > 10


async def test_nothing_listens_is_an_unavailable_shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("springtide.twin.crowd.buyers.ASKS_MAX", 2)
    spec = make_spec(tmp_path, "http://127.0.0.1:9", [30])
    patient = msgspec.structs.replace(spec.settings, answer_timeout_s=20.0)  # a busy machine refuses late
    summary = await run(msgspec.structs.replace(spec, settings=patient))
    assert summary.availability == 0.0
    assert summary.answers == {"0 connection": summary.requests}


async def test_the_pool_opens_no_more_connections_than_it_may(shop: tuple[Shop, str]) -> None:
    server, url = shop
    pool = Pool(url, CLOCK, 2.0, 2, 4)
    await pool.open()
    assert server.open_connections == 2
    answers: list[Response] = []
    for _ in range(50):
        pool.send(Request(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", answers.append, lambda _now: None))
    while len(answers) < 50:
        await asyncio.sleep(0.01)
    assert server.open_connections <= 4
    assert {answer.status for answer in answers} == {200}
    await pool.close()


async def test_a_request_without_an_answer_times_out() -> None:
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    pool = Pool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", CLOCK, 0.1, 1, 1)
    await pool.open()
    answers: asyncio.Queue[Response] = asyncio.Queue()
    for _ in range(2):
        pool.send(Request(b"GET / HTTP/1.1\r\n\r\n", answers.put_nowait, lambda _now: None))
    assert {(await answers.get()).failure for _ in range(2)} == {"timeout"}
    assert answers.empty()
    await pool.close()
    server.close()
    await asyncio.sleep(0.05)


def test_the_specification_survives_its_file_and_is_private(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "http://127.0.0.1:1", [1])
    path = tmp_path / "crowd.json"
    path.write_text("old")
    write_private(path, spec)
    assert read_spec(path) == spec
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"crowd.json: not a crowd specification"):
        read_spec(path)


def test_an_unusable_url_is_refused() -> None:
    with pytest.raises(ConfigError, match="http://host:port"):
        Pool("https://example.org", CLOCK, 1.0, 1, 1)
