"""The counter's answers beyond a plain purchase: refused from memory, asked about, limited, let in, handed over."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from springtide.config import CounterSettings
from springtide.drivers.embedded_valkey import start_valkey
from springtide.drivers.memory.inventory import MemoryInventory
from springtide.drivers.system import SystemIds
from springtide.drivers.valkey import ValkeyInventory
from springtide.model import Sku, StockReturn, TokenRing
from springtide.ports import Inventory
from springtide.sale import order_status
from springtide.sale.counter import CounterServer
from springtide.sale.extension import Exchange
from springtide.sale.glance import Request
from springtide.sale.page import Page
from springtide.sale.tokens import keys_of
from tests.integration.counter_client import (
    CLOCK,
    KEY,
    KEYS,
    ROOMY,
    SALE,
    Answer,
    Client,
    Shop,
    get,
    make_sale,
    open_shop,
    purchase,
    token,
)
from tests.integration.wayward import Wayward

ORDERS = f"/v1/sales/{SALE}/orders"


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


def asking(path: str, buyer: str, **headers: str) -> bytes:
    lines = {"Authorization": f"Bearer {token(buyer)}", **{name.replace("_", "-"): headers[name] for name in headers}}
    return get(path, headers="".join(f"{name}: {value}\r\n" for name, value in lines.items()))


async def from_memory(shop: Shop, request: bytes) -> Answer:
    """Ask until the answer comes from memory: the holders are read in the background at first."""
    async with asyncio.timeout(5):
        while True:
            before = shop.server.figures.from_memory
            answer = await shop.ask(request)
            if shop.server.figures.from_memory > before:
                return answer
            await asyncio.sleep(0.02)


# --- refused from memory --------------------------------------------------------------------------------------


async def test_sold_out_from_memory_knows_its_exceptions(inventory: Inventory) -> None:
    sale = make_sale(skus=(Sku("tea", "Tea", 1, 2, per_buyer_max=2), Sku("cup", "Cup", 1, 9)), pay_url="")
    async with open_shop(inventory, sale=sale) as shop:
        mine = purchase("anna", "k1", {"sku": "tea", "quantity": 2})
        order = (await shop.ask(mine)).json
        gone = await from_memory(shop, purchase())
        assert (gone.status, gone.code) == (409, "sold_out")
        sent = shop.server.figures.batched
        clients = [await shop.connect() for _ in range(40)]
        crowd = await asyncio.gather(*(client.ask(purchase()) for client in clients))
        assert {answer.code for answer in crowd} == {"sold_out"}
        assert shop.server.figures.batched == sent
        again = await shop.ask(mine)
        assert (again.status, again.json) == (200, order)
        assert (await shop.ask(purchase("anna", "k1"))).code == "key_reused"
        limit = await shop.ask(purchase("anna", "k2"))
        assert (limit.code, limit.json["order_id"]) == ("limit_reached", order["order_id"])
        assert (await shop.ask(purchase(body={"sku": "cup"}))).status == 201
        assert (await shop.ask(purchase(headers={"Authorization": "Bearer x"}))).status == 401
        await inventory.give_back(StockReturn(order["order_id"], SALE, 0, "anna", "tea", 2))
        await asyncio.sleep(0.2)
        assert (await shop.ask(purchase())).status == 201


async def test_before_and_after_the_sale_its_orders_are_told(inventory: Inventory) -> None:
    async with open_shop(inventory) as shop:
        mine = purchase("anna", "k1")
        order = (await shop.ask(mine)).json
        for opens_in_ms, status in ((60_000, 425), (-60_000, 410)):
            now_ms = CLOCK.now_ms()
            await inventory.redefine(make_sale(opens_ms=now_ms + opens_in_ms, closes_ms=now_ms + opens_in_ms + 30_000))
            await asyncio.sleep(0.2)
            answer = await from_memory(shop, purchase())
            assert answer.status == status
            if status == 425:
                assert 58 <= int(answer.headers["retry-after"]) <= 61
            again = await shop.ask(mine)
            assert (again.status, again.json["order_id"]) == (200, order["order_id"])


# --- asked about ----------------------------------------------------------------------------------------------


async def test_a_buyer_sees_his_orders_and_nobody_elses(inventory: Inventory) -> None:
    sale = make_sale(pay_url="https://pay.example/{sale}?order={order_id}")
    async with open_shop(inventory, sale=sale) as shop:
        made = (await shop.ask(purchase("anna", "k1"))).json
        cup = (await shop.ask(purchase("anna", "k2", {"sku": "cup"}))).json
        other = (await shop.ask(purchase("bert", "k1"))).json
        order_id = made["order_id"]
        assert made["pay_url"] == f"https://pay.example/{SALE}?order={order_id}"
        one = await shop.ask(asking(f"{ORDERS}/{order_id}", "anna"))
        assert (one.status, one.json) == (200, made)
        assert one.headers["cache-control"] == "no-store"
        assert (await shop.ask(asking(ORDERS, "anna"))).json == {"sale": SALE, "orders": [made, cup]}
        assert (await shop.ask(asking(ORDERS, "cora"))).json == {"sale": SALE, "orders": []}
        assert (await shop.ask(asking(f"{ORDERS}/{other['order_id']}", "anna"))).code == "no_order"
        assert (await shop.ask(asking(ORDERS, "anna", Idempotency_Key="k2"))).json == cup
        await inventory.settle(SALE, 0, "anna", order_id)
        await inventory.give_back(StockReturn(cup["order_id"], SALE, 0, "anna", "cup", 1))
        states = (await shop.ask(asking(ORDERS, "anna"))).json["orders"]
        assert [(order["status"], "pay_url" in order) for order in states] == [("paid", False), ("ended", False)]
        assert (await shop.ask(get(ORDERS))).status == 401
        assert (await shop.ask(asking(ORDERS, "anna", Idempotency_Key="a b"))).code == "bad_idempotency_key"
        assert (await shop.ask(asking(ORDERS, "anna", Idempotency_Key="k", Purchase_Sent_Ms="soon"))).code == (
            "bad_purchase_sent"
        )


async def test_an_unknown_purchase_is_undecided_until_its_deadline() -> None:
    settings = msgspec.structs.replace(ROOMY, purchase_timeout_ms=100, queue_wait_ms_max=1)
    async with open_shop(settings=settings) as shop:
        for key, told in (("k1", False), ("k2", True)):
            sent = {"Purchase_Sent_Ms": str(CLOCK.now_ms())} if told else {}
            question = asking(ORDERS, "anna", Idempotency_Key=key, **sent)
            answer = await shop.ask(question)
            assert (answer.status, answer.json) == (202, {"status": "undecided"})
            assert int(answer.headers["retry-after"]) >= 1
            await asyncio.sleep(0.4)
            answer = await shop.ask(question)
            assert (answer.status, answer.code) == (404, "no_purchase")
        long_ago = asking(ORDERS, "anna", Idempotency_Key="k9", Purchase_Sent_Ms="1000")
        assert (await shop.ask(long_ago)).code == "no_purchase"


async def test_a_purchase_that_says_when_it_was_sent_cannot_be_made_late(inventory: Inventory) -> None:
    async with open_shop(inventory) as shop:
        late = purchase("anna", "k1", headers={"Purchase-Sent-Ms": str(CLOCK.now_ms() - 2100)})
        answer = await shop.ask(late)
        assert (answer.status, answer.code) == (503, "overloaded")
        assert (await shop.ask(asking(ORDERS, "anna"))).json["orders"] == []
        in_time = purchase("anna", "k1", headers={"purchase-sent-ms": str(CLOCK.now_ms() - 100)})
        assert (await shop.ask(in_time)).status == 201
        assert (await shop.ask(purchase(headers={"Purchase-Sent-Ms": "-1"}))).code == "bad_purchase_sent"


async def test_questions_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_status, "LOOKUPS_MAX", 0)
    async with open_shop() as shop:
        assert (await shop.ask(asking(ORDERS, "anna"))).code == "overloaded"


# --- limits ---------------------------------------------------------------------------------------------------


async def test_an_address_is_limited_by_whom_trusted_proxies_saw() -> None:
    settings = msgspec.structs.replace(ROOMY, address_rate_max=0.5, address_burst_max=2, forwarded_hops=1)
    async with open_shop(settings=settings) as shop:
        client = await shop.connect()

        async def status(forwarded: str) -> int:
            return (await client.ask(purchase(headers={"X-Forwarded-For": forwarded}))).status

        assert [await status(f"{number}.0.0.9, 1.1.1.1") for number in range(4)] == [201, 201, 429, 429]
        assert await status("1.1.1.1, 2.2.2.2") == 201
        refused = await client.ask(purchase(headers={"x-forwarded-for": "1.1.1.1"}))
        assert refused.code == "address_rate_limited"
        assert int(refused.headers["retry-after"]) >= 1
        assert [(await client.ask(get(f"/v1/sales/{SALE}"))).status for _ in range(3)] == [200, 200, 429]
        assert (await client.ask(get("/healthz"))).status == 200


async def test_a_header_that_nobody_vouches_for_is_not_looked_at() -> None:
    settings = msgspec.structs.replace(ROOMY, address_rate_max=0.5, address_burst_max=2)
    async with open_shop(settings=settings) as shop:
        answers = [await shop.ask(purchase(headers={"X-Forwarded-For": f"{number}.1.1.1"})) for number in range(3)]
        assert [answer.status for answer in answers] == [201, 201, 429]


async def test_what_cannot_be_answered_in_time_is_refused_at_once() -> None:
    inventory = Wayward()
    settings = msgspec.structs.replace(ROOMY, batch_max=4, batches_in_flight_max=1, purchase_timeout_ms=800)
    async with open_shop(inventory, settings) as shop:
        inventory.gate.clear()
        clients = [await shop.connect() for _ in range(12)]
        for client in clients:
            client.send(purchase())
        await shop.until(lambda: shop.server.listener.in_flight == 12)
        await asyncio.sleep(0.3)
        begun_s = CLOCK.monotonic_s()
        answer = await shop.ask(purchase())
        assert (answer.status, answer.code) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert CLOCK.monotonic_s() - begun_s < 0.4, "at once, not at its deadline"
        inventory.gate.set()
        assert {(await client.answer()).status for client in clients} == {201}
        assert (await shop.ask(purchase())).status == 201
        assert await shed(shop, "slow_inventory") == 1


async def shed(shop: Shop, reason: str) -> float:
    text = (await shop.ask(get("/metrics"))).body.decode()
    start = f'springtide_counter_shed_total{{reason="{reason}"}} '
    return next(float(line.removeprefix(start)) for line in text.splitlines() if line.startswith(start))


async def test_every_limit_is_shown_beside_what_is_used_of_it() -> None:
    async with open_shop(rate_max=1000.0) as shop:
        await shop.ask(purchase())
        text = (await shop.ask(get("/metrics"))).body.decode()
    figures = {
        line.split()[0].removeprefix("springtide_counter_"): float(line.split()[1])
        for line in text.splitlines()
        if line.startswith("springtide_counter_") and "{" not in line
    }
    limits = {name.removesuffix("_max") for name in figures if name.endswith("_max")} - {"journal_lag"}
    assert limits >= {
        "connections",
        "queue_depth",
        "batches_in_flight",
        "purchases_waiting",
        "purchases_in_doubt",
        "buyers_tracked",
        "addresses_tracked",
        "sales_cached",
        "lookups",
        "holder_sets",
        "order_queries",
        "inventory_answer_seconds",
    }
    for name in limits:
        assert 0 <= figures[name] <= figures[f"{name}_max"], name
    assert figures["buyers_tracked"] == figures["addresses_tracked"] == 1
    assert figures["queue_depth_max"] == 250


# --- keys, rooms and extensions -------------------------------------------------------------------------------


async def test_token_keys_follow_the_ring() -> None:
    inventory = MemoryInventory(CLOCK)
    await inventory.publish(make_sale())
    server = CounterServer(ROOMY, inventory, CLOCK, SystemIds(), KEY, "r1", rate_max=None)
    shop = Shop(server, await server.start("127.0.0.1", 0))
    try:
        expires_s = CLOCK.now_ms() // 1000 + 60

        async def status(generation: int) -> int:
            signed = keys_of(KEY, TokenRing(generation, generation)).sign("anna", SALE, expires_s)
            return (await shop.ask(purchase("anna", "k", headers={"Authorization": f"Bearer {signed}"}))).status

        assert [await status(1), await status(2)] == [201, 401]
        await inventory.set_token_ring(TokenRing(2, 3))
        assert server.ring is not None
        await server.ring.ask()
        assert [await status(1), await status(2), await status(3)] == [401, 200, 200]
    finally:
        for client in shop.clients:
            await client.close()
        await server.stop()


class Door:
    """Lets in whoever says friend and his name."""

    def __init__(self) -> None:
        self.served: list[tuple[str, str, int]] = []

    def admits(self, sale: str, buyer: str, pass_: bytes, now_ms: int) -> bool:
        assert sale == SALE
        assert now_ms > 0
        return pass_ == f"friend {buyer}".encode()

    def bought(self, sale: str, buyer: str, quantity: int) -> None:
        self.served.append((sale, buyer, quantity))


class Room:
    claim: ClassVar = b"room"
    for_buyers: ClassVar = True

    def handle(self, exchange: Exchange, request: Request, page: Page, buyer: str, rest: bytes) -> None:
        text = f"{page.sale} {buyer} {rest.decode()} {request.method.decode()}"
        # Later, as a room would that has to ask somebody first.
        asyncio.get_running_loop().call_soon(exchange.reply, b"HTTP/1.1 200 OK\r\n", text.encode())


class Shopwindow:
    claim: ClassVar = b"/s/"
    for_buyers: ClassVar = False

    def handle(self, exchange: Exchange, request: Request, page: Page, buyer: str, rest: bytes) -> None:
        exchange.reply(b"HTTP/1.1 200 OK\r\n", f"{page.sale}|{buyer}|{rest.decode()}|{request.url.decode()}".encode())


@contextlib.asynccontextmanager
async def open_extended(inventory: Inventory, door: Door | None) -> AsyncIterator[Shop]:
    await inventory.publish(make_sale(waiting_room=True))
    server = CounterServer(
        ROOMY, inventory, CLOCK, SystemIds(), KEYS, "r1", rate_max=None, extensions=(Room(), Shopwindow()), door=door
    )
    shop = Shop(server, await server.start("127.0.0.1", 0))
    try:
        yield shop
    finally:
        for client in shop.clients:
            await client.close()
        await server.stop()


async def test_a_sale_with_a_waiting_room_lets_in_by_pass_and_tells_orders_without(inventory: Inventory) -> None:
    door = Door()
    async with open_extended(inventory, door) as shop:
        without = await shop.ask(purchase("anna", "k1"))
        assert (without.status, without.code) == (429, "not_admitted")
        assert f"/v1/sales/{SALE}/room" in without.json["detail"]
        assert int(without.headers["retry-after"]) >= 1
        forged = await shop.ask(purchase("anna", "k1", headers={"Room-Pass": "friend bert"}))
        assert forged.code == "not_admitted"
        made = await shop.ask(purchase("anna", "k1", headers={"Room-Pass": "friend anna"}))
        assert made.status == 201
        for _ in range(2):
            again = await shop.ask(purchase("anna", "k1"))
            assert (again.status, again.json) == (200, made.json)
            assert (await shop.ask(purchase("anna", "k1", {"sku": "cup"}))).code == "key_reused"
            assert (await shop.ask(purchase("anna", "k2"))).code == "not_admitted"
            crowd = [await shop.ask(purchase()) for _ in range(5)]
            assert {answer.code for answer in crowd} == {"not_admitted"}
            await asyncio.sleep(0.1)
        page = await shop.ask(get(f"/v1/sales/{SALE}"))
        assert page.json["waiting_room"] is True
    assert door.served == [(SALE, "anna", 1)]


async def test_without_a_door_a_waiting_room_lets_nobody_in() -> None:
    async with open_extended(MemoryInventory(CLOCK), None) as shop:
        answer = await shop.ask(purchase("anna", "k1", headers={"Room-Pass": "friend anna"}))
        assert answer.code == "not_admitted"


async def test_extensions_get_what_they_claim() -> None:
    async with open_extended(MemoryInventory(CLOCK), None) as shop:
        client = await shop.connect()

        async def text(request: bytes) -> str:
            return (await client.ask(request)).body.decode()

        assert await text(asking(f"/v1/sales/{SALE}/room", "anna")) == f"{SALE} anna  GET"
        assert await text(asking(f"/v1/sales/{SALE}/room/tickets/7?x=1", "anna")) == f"{SALE} anna /tickets/7 GET"
        assert (await client.ask(get(f"/v1/sales/{SALE}/room"))).status == 401
        assert (await client.ask(get(f"/v1/sales/{SALE}/other"))).status == 404
        assert await text(get(f"/s/{SALE}?from=live")) == f"{SALE}|||/s/{SALE}?from=live"
        assert await text(get(f"/s/{SALE}/more")) == f"{SALE}||/more|/s/{SALE}/more"
        assert (await client.ask(get("/s/nothing"))).code == "unknown_sale"
        piped = asking(f"/v1/sales/{SALE}/room", "bert") + get(f"/s/{SALE}") + get("/healthz")
        client.send(piped)
        bodies = [(await client.answer()).body.decode() for _ in range(3)]
        assert bodies == [f"{SALE} bert  GET", f"{SALE}|||/s/{SALE}", '{"status":"alive"}']


def reset(client: Client) -> None:
    client.writer.transport.abort()


async def test_a_client_that_leaves_while_its_orders_are_read_harms_nobody() -> None:
    async with open_shop(settings=CounterSettings()) as shop:
        client = await shop.connect()
        client.send(asking(ORDERS, "anna"))
        reset(client)
        assert (await shop.ask(asking(ORDERS, "anna"))).status == 200
        await shop.until(lambda: shop.server.listener.in_flight == 0)
