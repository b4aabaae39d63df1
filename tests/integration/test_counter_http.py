"""The counter's HTTP over real sockets: what is split, pipelined, chunked, smuggled, slow, or too much."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import msgspec
import pytest

from springtide.sale import connection
from tests.integration.counter_client import (
    ROOMY,
    SALE,
    Shop,
    get,
    open_shop,
    purchase,
)
from tests.integration.wayward import Wayward


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    async with open_shop() as running:
        yield running


@pytest.mark.parametrize(
    ("request_", "status", "allow"),
    [
        (get(f"/v1/sales/{SALE}/orders"), 401, None),
        (get(f"/v1/sales/{SALE}/orders", "DELETE"), 405, "GET, HEAD, POST"),
        (get(f"/v1/sales/{SALE}", "PUT", "Content-Length: 0\r\n"), 405, "GET, HEAD"),
        (get("/healthz", "POST", "Content-Length: 0\r\n"), 405, "GET, HEAD"),
        (get("/"), 404, None),
        (get("/v1/sales"), 404, None),
        (get("*", "OPTIONS"), 404, None),
        (get(f"/v1/sales/{SALE}/orders/1"), 401, None),
        (get(f"/v1/sales/{SALE}/orders/1/2"), 404, None),
        (get("http://shop/healthz"), 200, None),
        (get(f"http://shop/v1/sales/{SALE}"), 200, None),
    ],
    ids=range(11),
)
async def test_methods_and_targets(shop: Shop, request_: bytes, status: int, allow: str | None) -> None:
    client = await shop.connect()
    answer = await client.ask(request_)
    assert (answer.status, answer.headers.get("allow")) == (status, allow)
    assert (await client.ask(get("/healthz"))).status == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHOST: a\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\ncontent-length: 2\r\n\r\na", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1x\r\n\r\na", 400),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded: yes\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4097\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: cake\r\n\r\n", 417),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\nContent-Length: 1\r\n\r\na",
            501,
        ),
    ],
    ids=range(28),
)
async def test_what_cannot_be_read_is_refused_and_the_connection_ends(shop: Shop, sent: bytes, status: int) -> None:
    for splits in (1, 2, 7):
        client = await shop.connect()
        size = -(-len(sent) // splits)
        for start in range(0, len(sent), size):
            client.send(sent[start : start + size])
            await asyncio.sleep(0.005)
        client.send(get("/healthz"))
        answer = await client.answer()
        assert answer.status == status
        assert answer.headers["connection"] == "close"
        assert answer.code
        assert await client.ended() == b""
    assert (await shop.ask(get("/healthz"))).status == 200


async def test_bodies_in_chunks_are_read(shop: Shop) -> None:
    client = await shop.connect()
    head = purchase("anna", headers={"Content-Length": None, "Transfer-Encoding": "chunked"}, body=b" ")[:-1]
    body = b'4;x=y\r\n{"sk\r\n3\r\nu":\r\n6\r\n"tea"}\r\n0\r\nAuthorization: Bearer forged\r\n\r\n'
    for splits in (1, len(body)):
        client.send(head)
        for start in range(0, len(body), len(body) // splits):
            client.send(body[start : start + len(body) // splits])
            await asyncio.sleep(0)
        assert (await client.answer()).status in {200, 201}
    endless = head + b"1\r\n \r\n" * 4097
    assert (await client.ask(endless)).code == "content_too_large"


async def test_chunk_extensions_are_not_endless(shop: Shop) -> None:
    client = await shop.connect()
    client.send(purchase(headers={"Content-Length": None, "Transfer-Encoding": "chunked"}, body=b" ")[:-1])
    client.send(b"1;x=" + b"y" * 100_000)
    assert (await client.answer()).code == "content_too_large"


async def test_a_client_that_asks_first_is_told_to_go_on(shop: Shop) -> None:
    client = await shop.connect()
    request = purchase(headers={"Expect": "100-continue"})
    head, body = request[:-13], request[-13:]
    client.send(head)
    assert (await client.answer()).status == 100
    assert (await client.ask(body)).status == 201
    client.send(purchase() + head)
    assert (await client.answer()).status == 201
    assert (await client.answer()).status == 100
    assert (await client.ask(body)).status == 200
    refused = await client.ask(purchase(headers={"Expect": "100-continue", "Content-Length": "5000"}))
    assert refused.status == 413


async def test_pipelined_requests_are_answered_in_order() -> None:
    inventory = Wayward()
    async with open_shop(inventory) as shop:
        client = await shop.connect()
        inventory.gate.clear()
        keys = [f"k{number}" for number in range(10)]
        wanted: list[int] = []
        for key in keys:
            client.send(purchase("anna", key, {"sku": "tea", "quantity": 2}) + get("/healthz") + get("/nowhere"))
            wanted += [409 if wanted else 201, 200, 404]
        await shop.until(lambda: inventory.batches)
        inventory.gate.set()
        assert [(await client.answer()).status for _ in wanted] == wanted


async def test_a_pipeline_has_an_end() -> None:
    inventory = Wayward()
    async with open_shop(inventory) as shop:
        inventory.gate.clear()
        client = await shop.connect()
        client.send(purchase() + get("/healthz") * 500)
        await shop.until(lambda: inventory.batches)
        inventory.gate.set()
        answers = [await client.answer() for _ in range(1 + connection.PIPELINE_MAX)]
        assert [answer.status for answer in answers] == [201] + [200] * connection.PIPELINE_MAX
        assert [answer.headers.get("connection") for answer in answers] == [None] * (len(answers) - 1) + ["close"]
        assert await client.ended() == b""


async def test_a_long_pipeline_of_quick_requests_is_served(shop: Shop) -> None:
    client = await shop.connect()
    client.send(get("/healthz") * 500)
    assert [(await client.answer()).status for _ in range(500)] == [200] * 500


@pytest.mark.parametrize(
    ("version", "header", "kept"),
    [
        ("1.1", "", True),
        ("1.1", "Connection: close\r\n", False),
        ("1.1", "Connection: keep-alive\r\n", True),
        ("1.0", "", False),
        ("1.0", "Connection: keep-alive\r\n", True),
    ],
    ids=range(5),
)
async def test_keep_alive_by_version(shop: Shop, version: str, header: str, *, kept: bool) -> None:
    client = await shop.connect()
    request = f"GET /healthz HTTP/{version}\r\nHost: a\r\n{header}\r\n".encode()
    answer = await client.ask(request)
    assert answer.status == 200
    if not kept:
        assert answer.headers["connection"] == "close"
        assert await client.ended() == b""
        return
    assert answer.headers.get("connection") == ("keep-alive" if version == "1.0" else None)
    assert (await client.ask(request)).status == 200


async def test_an_upgrade_is_not_taken(shop: Shop) -> None:
    client = await shop.connect()
    upgrade = get("/healthz", headers="Connection: Upgrade\r\nUpgrade: h2c\r\n")
    client.send(upgrade + get("/nowhere"))
    assert [(await client.answer()).status for _ in range(2)] == [200, 404]
    assert (await client.ask(purchase())).status == 201


async def test_a_half_closed_client_still_gets_its_answer() -> None:
    inventory = Wayward()
    async with open_shop(inventory) as shop:
        inventory.gate.clear()
        client = await shop.connect()
        client.send(purchase() + get("/healthz"))
        client.writer.write_eof()
        await shop.until(lambda: inventory.batches)
        inventory.gate.set()
        assert [(await client.answer()).status for _ in range(2)] == [201, 200]
        assert await client.ended() == b""


async def test_who_sends_slowly_or_nothing_is_closed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RECEIVE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(connection, "IDLE_TIMEOUT_S", 0.2)
    slow, body, silent, idle = [await shop.connect() for _ in range(4)]
    slow.send(b"GET /healthz HT")
    body.send(purchase()[:-2])
    assert (await idle.ask(get("/healthz"))).status == 200
    assert (await slow.answer()).code == "request_timeout"
    assert (await body.answer()).code == "request_timeout"
    for client in (slow, body, silent, idle):
        with contextlib.suppress(ConnectionResetError):
            assert await client.ended() == b""


async def test_connections_beyond_the_limit_are_refused() -> None:
    settings = msgspec.structs.replace(ROOMY, connections_max=3)
    async with open_shop(settings=settings) as shop:
        kept = [await shop.connect() for _ in range(3)]
        for client in kept:
            assert (await client.ask(get("/healthz"))).status == 200
        refused = await shop.connect()
        assert (await refused.answer()).code == "too_many_connections"
        assert await refused.ended() == b""
        await refused.close()
        await kept[0].close()
        await shop.until(lambda: len(shop.server.listener.connections) < 3)
        assert (await shop.ask(get("/healthz"))).status == 200


async def test_who_does_not_read_is_not_served_further_and_is_cut(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SEND_TIMEOUT_S", 0.3)
    client = await shop.connect()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # the stream reader's transport reads
    served = shop.server.figures.successes
    await shop.until(lambda: len(shop.server.listener.connections) == 1)
    for _ in range(3000):
        client.send(get("/metrics"))
        if not shop.server.listener.connections:
            break
        await asyncio.sleep(0.001)
    await shop.until(lambda: not shop.server.listener.connections)
    assert sum(served) < 3000
    assert (await shop.ask(get("/healthz"))).status == 200


async def test_answers_carry_a_date_and_no_cookies(shop: Shop) -> None:
    answer = await shop.ask(get("/healthz"))
    assert answer.headers["date"].endswith(" GMT")
    assert json.loads(answer.body) == {"status": "alive"}
