"""The counter over real sockets: every answer of the order path's front, on memory and on a real Valkey."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from springtide.config import CounterSettings
from springtide.drivers.embedded_valkey import start_valkey
from springtide.drivers.memory.inventory import MemoryInventory
from springtide.drivers.system import SystemIds
from springtide.drivers.valkey import ValkeyInventory
from springtide.errors import InventoryUnavailable, OutcomeUnknown
from springtide.model import Sku, StockReturn
from springtide.ports import Inventory
from springtide.sale.counter import CounterServer
from tests.integration.counter_client import (
    CLOCK,
    KEYS,
    ROOMY,
    SALE,
    Client,
    Shop,
    get,
    make_sale,
    open_shop,
    purchase,
    token,
)
from tests.integration.wayward import Wayward


@pytest.fixture(params=["memory", "valkey"])
async def inventory(request: pytest.FixtureRequest, short_dir: Path) -> AsyncIterator[Inventory]:
    if request.param == "memory":
        yield MemoryInventory(CLOCK)
        return
    engine = await start_valkey(short_dir, CLOCK)
    store = await ValkeyInventory.connect("127.0.0.1", engine.port, CLOCK)
    yield store
    await store.close()
    await engine.stop()


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    async with open_shop() as running:
        yield running


# --- purchases --------------------------------------------------------------------------------------------


async def test_a_purchase_is_acknowledged_and_its_repetition_is_the_same_order(inventory: Inventory) -> None:
    async with open_shop(inventory) as shop:
        client = await shop.connect()
        request = purchase("anna", "first")
        made = await client.ask(request)
        assert made.status == 201
        order = made.json
        assert order == {
            "order_id": order["order_id"],
            "sale": SALE,
            "sku": "tea",
            "quantity": 1,
            "status": "reserved",
            "pay_by_ms": order["pay_by_ms"],
        }
        assert 55_000 < order["pay_by_ms"] - CLOCK.now_ms() <= 61_000
        again = await client.ask(request)
        assert (again.status, again.json) == (200, order)
        held = await inventory.find(SALE, 0, "anna", order["order_id"])
        assert held is not None
        assert held.key == "first"


async def test_every_refusal_of_a_purchase(inventory: Inventory) -> None:
    async with open_shop(inventory) as shop:
        client = await shop.connect()
        order_id = (await client.ask(purchase("anna", "k1", {"sku": "tea", "quantity": 2}))).json["order_id"]
        limit = await client.ask(purchase("anna", "k2"))
        assert (limit.status, limit.code, limit.json["order_id"]) == (409, "limit_reached", order_id)
        reused = await client.ask(purchase("anna", "k1", {"sku": "cup"}))
        assert (reused.status, reused.code) == (422, "key_reused")
        assert (await client.ask(purchase("bert", body={"sku": "cup"}))).status == 201
        gone = await client.ask(purchase("cora", body={"sku": "cup"}))
        assert (gone.status, gone.code) == (409, "sold_out")
        unknown = await client.ask(purchase("cora", body={"sku": "hat"}))
        assert (unknown.status, unknown.code) == (404, "unknown_sku")


async def test_an_order_that_ended_is_reported_as_ended(inventory: Inventory) -> None:
    async with open_shop(inventory) as shop:
        request = purchase("anna", "k1")
        order_id = (await shop.ask(request)).json["order_id"]
        await inventory.give_back(StockReturn(order_id, SALE, 0, "anna", "tea", 1))
        again = await shop.ask(request)
        assert (again.status, again.json["status"], again.json["order_id"]) == (200, "ended", order_id)


async def test_a_sale_that_is_not_open_says_when_to_come_back(inventory: Inventory) -> None:
    sale = make_sale(opens_ms=CLOCK.now_ms() + 30_000)
    async with open_shop(inventory, sale=sale) as shop:
        answer = await shop.ask(purchase())
        assert (answer.status, answer.code) == (425, "not_open")
        assert 28 <= int(answer.headers["retry-after"]) <= 31


async def test_a_closed_sale_is_gone_but_its_orders_are_still_told(inventory: Inventory) -> None:
    sale = make_sale(closes_ms=CLOCK.now_ms() + 700)
    async with open_shop(inventory, sale=sale) as shop:
        request = purchase("anna", "k1")
        assert (await shop.ask(request)).status == 201
        await asyncio.sleep(0.8)
        late = await shop.ask(purchase())
        assert (late.status, late.code) == (410, "closed")
        assert (await shop.ask(request)).status == 200


async def test_nothing_is_oversold_when_everybody_wants_the_last_units(inventory: Inventory) -> None:
    sale = make_sale(skus=(Sku("tea", "Tea", 1, 20),), buckets=1)
    async with open_shop(inventory, sale=sale) as shop:
        clients = [await shop.connect() for _ in range(60)]
        answers = await asyncio.gather(*(client.ask(purchase()) for client in clients))
        assert sorted(answer.status for answer in answers) == [201] * 20 + [409] * 40
        orders = {answer.json["order_id"] for answer in answers if answer.status == 201}
        assert len(orders) == 20


async def test_buckets_share_a_sale_and_keep_their_buyers(inventory: Inventory) -> None:
    sale = make_sale(buckets=4)
    async with open_shop(inventory, sale=sale) as shop:
        requests = [purchase() for _ in range(16)]
        clients = [await shop.connect() for _ in requests]
        made = await asyncio.gather(*(c.ask(r) for c, r in zip(clients, requests, strict=True)))
        again = await asyncio.gather(*(c.ask(r) for c, r in zip(clients, requests, strict=True)))
        assert [answer.status for answer in made] == [201] * 16
        assert [answer.json for answer in again] == [answer.json for answer in made]
        cuts = [await inventory.cut(SALE, bucket) for bucket in range(4)]
        assert sum(cut.stock["tea"] for cut in cuts) == 100 - 16
        assert sum(cut.stock["tea"] < 25 for cut in cuts) > 1


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Basic abc",
        "Bearer",
        "Bearer x",
        "Bearer " + "x" * 500,
        f"Bearer {token('anna', 'other')}",
        f"Bearer {token('anna', ends_in_s=-1)}",
        f"Bearer {token('anna')}x",
        f"Bearer {token('anna').replace('anna', 'bert')}",
        f"Bearer {token('anna')}, Bearer {token('anna')}",
        "Bearer ÿÿ.þ",
    ],
    ids=[
        "none",
        "empty",
        "basic",
        "bare",
        "junk",
        "long",
        "other-sale",
        "expired",
        "longer",
        "forged",
        "twice",
        "bytes",
    ],
)
async def test_without_a_good_token_nothing_is_sold(shop: Shop, authorization: str | None) -> None:
    request = purchase(headers={"Authorization": authorization})
    answer = await shop.ask(request.decode().encode("latin-1"))
    assert (answer.status, answer.code) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_replaced_key_still_verifies(shop: Shop) -> None:
    lower = purchase(headers={"Authorization": f"bearer {token('anna')}"})
    assert (await shop.ask(lower)).status == 201
    assert KEYS.verify(token("anna").encode(), SALE.encode(), 0.0) == "anna"


@pytest.mark.parametrize("key", [None, "", "a b", "ä", "x" * 65, "a,b", "a/b"])
async def test_a_purchase_needs_a_good_idempotency_key(shop: Shop, key: str | None) -> None:
    answer = await shop.ask(purchase(headers={"Idempotency-Key": key}))
    assert (answer.status, answer.code) == (400, "bad_idempotency_key")


async def test_two_idempotency_keys_are_none(shop: Shop) -> None:
    for second in ("Idempotency-Key: b", "idempotency-key: b", "IDEMPOTENCY-KEY: b"):
        request = purchase(key="a").replace(b"Host: shop", b"Host: shop\r\n" + second.encode())
        assert (await shop.ask(request)).code == "bad_idempotency_key"


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b"null",
        b'"tea"',
        b"{",
        b"\xff",
        b'{"sku": 1}',
        b'{"sku": "a b"}',
        b'{"sku": ""}',
        b'{"sku": "tea", "quantity": 0}',
        b'{"sku": "tea", "quantity": -1}',
        b'{"sku": "tea", "quantity": 1.5}',
        b'{"sku": "tea", "quantity": "2"}',
        b'{"sku": "tea", "quantity": 1000001}',
        b'{"sku": "tea", "colour": "green"}',
        b'{"sku": "' + b"x" * 65 + b'"}',
        b"[" * 4000,
    ],
    ids=range(17),
)
async def test_a_bad_body_is_explained(shop: Shop, body: bytes) -> None:
    client = await shop.connect()
    answer = await client.ask(purchase(body=body))
    assert (answer.status, answer.code) == (400, "bad_body")
    assert len(answer.json["detail"]) > 20
    assert (await client.ask(purchase())).status == 201


async def test_an_unknown_sale_is_asked_for_once_in_a_while(shop: Shop) -> None:
    answer = await shop.ask(purchase(sale="morning"))
    assert (answer.status, answer.code) == (404, "unknown_sale")
    assert (await shop.ask(get("/v1/sales/morning"))).code == "unknown_sale"
    assert (await shop.ask(get("/v1/sales/a%20b"))).code == "unknown_sale"
    assert (await shop.ask(get("/v1/sales/"))).status == 404


async def test_many_unknown_names_ask_the_inventory_for_each_only_once() -> None:
    inventory = Wayward()
    async with open_shop(inventory, CounterSettings(page_age_ms_max=60_000)) as shop:
        client = await shop.connect()
        before = inventory.views
        for _ in range(20):
            assert (await client.ask(get("/v1/sales/morning"))).status == 404
        assert inventory.views - before <= 2


# --- limits and overload ------------------------------------------------------------------------------------


async def test_a_buyer_who_hurries_is_told_when_to_come_back() -> None:
    async with open_shop(settings=CounterSettings(buyer_rate_max=0.5, buyer_burst_max=3)) as shop:
        client = await shop.connect()
        answers = [await client.ask(purchase("anna", "k")) for _ in range(5)]
        assert [answer.status for answer in answers] == [201, 200, 200, 429, 429]
        assert answers[-1].code == "rate_limited"
        assert int(answers[-1].headers["retry-after"]) in {1, 2}
        assert (await client.ask(purchase("bert"))).status == 201


async def test_who_would_wait_too_long_is_not_admitted() -> None:
    settings = msgspec.structs.replace(ROOMY, queue_wait_ms_max=200)
    async with open_shop(settings=settings, rate_max=50.0) as shop:
        clients = [await shop.connect() for _ in range(40)]
        answers = await asyncio.gather(*(client.ask(get(f"/v1/sales/{SALE}")) for client in clients))
        statuses = [answer.status for answer in answers]
        assert set(statuses) == {200, 429}
        assert 10 <= statuses.count(200) <= 16
        refused = next(answer for answer in answers if answer.status == 429)
        assert refused.code == "not_admitted"
        assert 1 <= int(refused.headers["retry-after"]) <= 3
        assert (await shop.ask(get("/healthz"))).status == 200
        assert (await shop.ask(get("/metrics"))).status == 200


async def test_who_leaves_the_queue_makes_room() -> None:
    settings = msgspec.structs.replace(ROOMY, queue_wait_ms_max=2000)
    async with open_shop(settings=settings, rate_max=4.0) as shop:
        capacity = shop.server.capacity
        assert capacity is not None
        clients = [await shop.connect() for _ in range(8)]
        for client in clients:
            client.send(get(f"/v1/sales/{SALE}"))
        await shop.until(lambda: capacity.depth >= 6)
        for client in clients:
            await client.close()
        await shop.until(lambda: capacity.depth == 0)
        assert shop.server.listener.in_flight == 0


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (InventoryUnavailable("away"), "unavailable"),
        (OutcomeUnknown("no answer"), "outcome_unknown"),
        (RuntimeError("a fault"), "outcome_unknown"),
    ],
    ids=["unavailable", "unknown", "fault"],
)
async def test_a_failing_inventory_is_admitted_and_a_repetition_succeeds(failure: Exception, code: str) -> None:
    inventory = Wayward()
    async with open_shop(inventory) as shop:
        inventory.failure = failure
        client = await shop.connect()
        request = purchase("anna", "k")
        answer = await client.ask(request)
        assert (answer.status, answer.code) == (503, code)
        assert int(answer.headers["retry-after"]) >= 1
        assert "Repeating the request with the same Idempotency-Key is safe" in answer.json["detail"]
        inventory.failure = None
        assert (await client.ask(request)).status == 201


async def test_a_silent_inventory_is_not_waited_for_for_ever() -> None:
    inventory = Wayward()
    settings = msgspec.structs.replace(ROOMY, purchase_timeout_ms=100)
    async with open_shop(inventory, settings) as shop:
        inventory.gate.clear()
        client = await shop.connect()
        request = purchase("anna", "k")
        assert (await client.ask(request)).code == "outcome_unknown"
        inventory.gate.set()
        assert (await client.ask(request)).status == 201


async def test_purchases_that_arrive_together_go_as_one_call() -> None:
    inventory = Wayward()
    async with open_shop(inventory) as shop:
        client = await shop.connect()
        inventory.gate.clear()
        others = [await shop.connect() for _ in range(30)]
        client.send(purchase())
        await shop.until(lambda: inventory.batches)
        for other in others:
            other.send(purchase())
        await shop.until(lambda: shop.server.listener.in_flight == 31)
        inventory.gate.set()
        answers = [await each.answer() for each in (client, *others)]
        assert {answer.status for answer in answers} == {201}
        assert len(inventory.batches) < 6
        assert sum(inventory.batches) == 31


async def test_more_purchases_than_may_wait_are_overload() -> None:
    inventory = Wayward()
    settings = msgspec.structs.replace(ROOMY, batch_max=1, batches_in_flight_max=1)
    async with open_shop(inventory, settings) as shop:
        inventory.gate.clear()
        clients = [await shop.connect() for _ in range(20)]
        for client in clients:
            client.send(purchase())
        await shop.until(lambda: shop.server.listener.in_flight == 9)
        inventory.gate.set()
        answers = [await client.answer() for client in clients]
        assert sorted(answer.status for answer in answers) == [201] * 9 + [503] * 11
        assert {answer.code for answer in answers if answer.status == 503} == {"overloaded"}


async def test_a_paused_sale_cannot_be_bought_and_says_so(inventory: Inventory) -> None:
    async with open_shop(inventory) as shop:
        await inventory.pause(SALE, paused=True)
        answer = await shop.ask(purchase())
        assert (answer.status, answer.code) == (503, "unavailable")
        await asyncio.sleep(0.25)
        assert (await shop.ask(get(f"/v1/sales/{SALE}"))).json["state"] == "paused"


async def test_a_client_that_leaves_while_its_batch_is_under_way_harms_nobody() -> None:
    inventory = Wayward()
    async with open_shop(inventory) as shop:
        inventory.gate.clear()
        leaving = [await shop.connect() for _ in range(5)]
        staying = [await shop.connect() for _ in range(5)]
        requests = [purchase() for _ in leaving]
        for client, request in zip(leaving, requests, strict=True):
            client.send(request)
        for client in staying:
            client.send(purchase())
        await shop.until(lambda: shop.server.listener.in_flight == 10)
        for client in leaving:
            _reset(client)
        await shop.until(lambda: len(shop.server.listener.connections) == 5)
        inventory.gate.set()
        assert [(await client.answer()).status for client in staying] == [201] * 5
        await shop.until(lambda: shop.server.listener.in_flight == 0)
        assert shop.server.figures.disconnected == 5
        assert (await shop.ask(requests[0])).status == 200


def _reset(client: Client) -> None:
    """Close so that the server gets a reset, not a polite end."""
    raw: socket.socket = client.writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()


# --- the page and those who run it --------------------------------------------------------------------------


async def test_the_page_tells_what_is_left(inventory: Inventory) -> None:
    async with open_shop(inventory) as shop:
        client = await shop.connect()
        page = await client.ask(get(f"/v1/sales/{SALE}?from=live"))
        assert page.status == 200
        assert page.headers["cache-control"] == "public, max-age=0, must-revalidate"
        assert page.headers["age"] == "0"
        assert set(page.json) == {
            "sale",
            "title",
            "state",
            "opens_ms",
            "closes_ms",
            "now_ms",
            "hold_ms",
            "waiting_room",
            "skus",
        }
        assert page.json["state"] == "open"
        assert page.json["skus"][0] == {
            "sku": "tea",
            "title": "Tea",
            "price_fen": 1990,
            "per_buyer_max": 2,
            "stock": 100,
        }
        assert (await client.ask(purchase())).status == 201
        await asyncio.sleep(0.3)
        assert (await client.ask(get(f"/v1/sales/{SALE}"))).json["skus"][0]["stock"] == 99


async def test_a_page_too_old_is_refused_and_comes_back() -> None:
    inventory = Wayward()
    async with open_shop(inventory) as shop:
        client = await shop.connect()
        assert (await client.ask(get(f"/v1/sales/{SALE}"))).status == 200
        inventory.views_fail = InventoryUnavailable("away")
        await asyncio.sleep(0.3)
        answer = await client.ask(get(f"/v1/sales/{SALE}"))
        assert (answer.status, answer.code) == (503, "unavailable")
        assert (await client.ask(purchase())).status == 201
        inventory.views_fail = None
        assert (await client.ask(get(f"/v1/sales/{SALE}"))).status == 200


async def test_states_of_the_page() -> None:
    inventory = MemoryInventory(CLOCK)
    now_ms = CLOCK.now_ms()
    await inventory.publish(make_sale("past", opens_ms=now_ms - 2000, closes_ms=now_ms - 1000))
    await inventory.publish(make_sale("future", opens_ms=now_ms + 100_000))
    async with open_shop(inventory) as shop:
        states = [(await shop.ask(get(f"/v1/sales/{sale}"))).json["state"] for sale in ("past", "future", SALE)]
        assert states == ["closed", "upcoming", "open"]


async def test_head_is_get_without_the_body(shop: Shop) -> None:
    client = await shop.connect()
    page = await client.ask(get(f"/v1/sales/{SALE}"))
    head = await client.ask(get(f"/v1/sales/{SALE}", "HEAD"), head=True)
    assert head.status == 200
    assert head.headers["content-length"] == page.headers["content-length"]
    for path in ("/healthz", "/metrics", "/readyz", "/nowhere"):
        head = await client.ask(get(path, "HEAD"), head=True)
        assert int(head.headers["content-length"]) > 0
    assert (await client.ask(get("/healthz"))).json == {"status": "alive"}


async def test_readiness_follows_the_inventory_and_draining() -> None:
    inventory = Wayward()
    inventory.views_fail = InventoryUnavailable("away")
    async with open_shop(inventory) as shop:
        assert (await shop.ask(get("/readyz"))).code == "not_ready"
        assert (await shop.ask(get("/healthz"))).status == 200
        inventory.views_fail = None
        await shop.until(lambda: shop.server.ready)
        assert (await shop.ask(get("/readyz"))).status == 200
        await shop.server.drain()
        assert (await shop.ask(get("/readyz"))).code == "not_ready"


async def test_metrics_count_answers_and_show_limits(shop: Shop) -> None:
    client = await shop.connect()
    await client.ask(purchase("anna", "k"))
    await client.ask(purchase("anna", "k"))
    await client.ask(get("/nowhere"))
    answer = await client.ask(get("/metrics"))
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.body.decode()
    for line in (
        'springtide_counter_requests_total{answer="reserved"} 1.0',
        'springtide_counter_requests_total{answer="repeated"} 1.0',
        'springtide_counter_requests_total{answer="not_found"} 1.0',
        "springtide_counter_purchase_seconds_count 2.0",
        "springtide_counter_batch_size_sum 2.0",
        "springtide_counter_connections 1.0",
        "springtide_counter_connections_max 10000.0",
        "springtide_counter_in_flight 1.0",
        "springtide_counter_draining 0.0",
    ):
        assert line in text


async def test_draining_finishes_what_is_under_way_and_ends_keep_alive() -> None:
    inventory = Wayward()
    async with open_shop(inventory) as shop:
        inventory.gate.clear()
        busy, idle = await shop.connect(), await shop.connect()
        assert "connection" not in (await idle.ask(get("/healthz"))).headers
        busy.send(purchase())
        await shop.until(lambda: inventory.batches)
        draining = asyncio.create_task(shop.server.drain())
        await asyncio.sleep(0.05)
        assert not draining.done()
        assert (await idle.ask(get("/healthz"))).headers["connection"] == "close"
        assert await idle.ended() == b""
        inventory.gate.set()
        answer = await busy.answer()
        assert (answer.status, answer.headers["connection"]) == (201, "close")
        await draining
        served = await shop.ask(purchase())
        assert (served.status, served.headers["connection"]) == (201, "close")


async def test_stopping_answers_what_is_under_way() -> None:
    inventory = Wayward()
    async with open_shop(inventory) as shop:
        inventory.gate.clear()
        client = await shop.connect()
        client.send(purchase())
        await shop.until(lambda: inventory.batches)
        stopping = asyncio.create_task(shop.server.stop())
        await asyncio.sleep(0.05)
        inventory.gate.set()
        assert (await client.answer()).status == 201
        await stopping
        with pytest.raises(OSError, match=r"refused|failed"):
            await shop.connect()


async def test_a_port_in_use_is_an_error(shop: Shop) -> None:
    second = CounterServer(ROOMY, MemoryInventory(CLOCK), CLOCK, SystemIds(), KEYS, "r2")
    with pytest.raises(OSError, match="in use"):
        await second.start("127.0.0.1", shop.port)
    await second.stop()
    assert (await shop.ask(get("/healthz"))).status == 200
