"""The payment provider's side of the back office, and what anybody may ask of it, on the real engines."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from springtide.sale.backoffice import BODY_BYTES_MAX
from springtide.sale.webhook import SIGNATURE_HEADER, sign
from tests.integration.backoffice.office import WEBHOOK_SECRET as SECRET
from tests.integration.backoffice.office import office_app, problem
from tests.integration.order_path import (
    CLOCK,
    PRICE_FEN,
    Engines,
    World,
    empty_world,
    small_sale,
)


@pytest.fixture
async def world(engines: Engines) -> AsyncIterator[World]:
    async with empty_world(engines) as world:
        sale = small_sale(hold_ms=1000)
        await world.inventory.publish(sale)
        await world.ledger.publish(sale)
        await world.buy(sale, ["b1", "b2"])
        yield world


@pytest.fixture
def app(world: World) -> FastAPI:
    return office_app(world)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://backoffice") as client:
        yield client


def payment(**changes: object) -> dict[str, object]:
    return {
        "payment_id": "p1",
        "order_id": "o-b1-tea",
        "sale": "live",
        "buyer": "b1",
        "amount_fen": PRICE_FEN,
        **changes,
    }


async def post(client: httpx.AsyncClient, path: str, content: object, secret: bytes = SECRET) -> httpx.Response:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return await client.post(path, content=body, headers={SIGNATURE_HEADER: sign(secret, body)})


async def test_payment_says_its_outcome_each_time(client: httpx.AsyncClient) -> None:
    for _ in range(2):
        answer = await post(client, "/v1/payments", payment())
        assert (answer.status_code, answer.json()) == (200, {"outcome": "accepted"})
    answer = await post(client, "/v1/payments", payment(payment_id="p2"))
    assert answer.json() == {"outcome": "refund_due"}
    answer = await post(client, "/v1/payments", payment(payment_id="p3", amount_fen=1))
    assert answer.json() == {"outcome": "amount_differs"}


async def test_payment_without_the_right_signature_is_not_even_read(client: httpx.AsyncClient) -> None:
    assert problem(await post(client, "/v1/payments", payment(), b"guess"), 401) == "bad_signature"
    assert problem(await client.post("/v1/payments", json=payment()), 401) == "bad_signature"
    assert problem(await post(client, "/v1/payments", b"not json", b"guess"), 401) == "bad_signature"


async def test_unknown_order_is_not_found(client: httpx.AsyncClient) -> None:
    for wrong in ({"order_id": "o-b7-tea"}, {"buyer": "b7"}, {"sale": "other"}):
        assert problem(await post(client, "/v1/payments", payment(**wrong)), 404) == "unknown_order"


NONSENSE: list[object] = [
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    {"payment_id": "p1"},
    payment(amount_fen="5"),
    payment(amount_fen=-1),
    payment(amount_fen=2**60),
    payment(payment_id=""),
    payment(payment_id="p\x00"),
    payment(order_id="o" * 65),
    payment(buyer="b 1"),
]


async def test_signed_nonsense_is_a_bad_request(client: httpx.AsyncClient) -> None:
    for wrong in NONSENSE:
        assert problem(await post(client, "/v1/payments", wrong), 400) == "bad_body", wrong


async def test_long_body_is_refused(client: httpx.AsyncClient) -> None:
    answer = await post(client, "/v1/payments", b"x" * (BODY_BYTES_MAX + 1))
    assert problem(answer, 413) == "content_too_large"


async def test_order_is_cancelled_by_its_own_signature_only(client: httpx.AsyncClient) -> None:
    path = "/v1/orders/o-b2-tea/cancel"
    body = {"order_id": "o-b2-tea", "sale": "live", "buyer": "b2"}
    assert problem(await post(client, path, body, b"guess"), 401) == "bad_signature"
    assert problem(await post(client, path, {**body, "order_id": "o-b1-tea"}), 400) == "bad_body"
    assert problem(await post(client, path, payment(order_id="o-b2-tea", buyer="b2")), 400) == "bad_body"
    answer = await post(client, path, body)
    assert (answer.status_code, answer.json()) == (200, {"order_id": "o-b2-tea", "state": "cancelled"})
    await post(client, "/v1/payments", payment())
    answer = await post(client, "/v1/orders/o-b1-tea/cancel", {"order_id": "o-b1-tea", "sale": "live", "buyer": "b1"})
    assert answer.json()["state"] == "paid"
    answer = await post(client, "/v1/orders/o-b9-tea/cancel", {"order_id": "o-b9-tea", "sale": "live", "buyer": "b9"})
    assert problem(answer, 404) == "unknown_order"


async def test_body_that_lies_about_its_length_is_refused_too(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(BODY_BYTES_MAX // 1024 + 2):
            yield b"x" * 1024

    assert problem(await client.post("/v1/payments", content=endless()), 413) == "content_too_large"


async def test_errors_of_the_framework_are_problems_too(client: httpx.AsyncClient) -> None:
    assert problem(await client.get("/nothing"), 404) == "not_found"
    answer = await client.get("/v1/payments")
    assert problem(answer, 405) == "method_not_allowed"
    assert answer.headers["allow"] == "POST"


async def test_engine_that_is_away_is_503_with_retry_after(world: World, client: httpx.AsyncClient) -> None:
    assert (await client.get("/readyz")).status_code == 200
    await world.ledger.close()
    assert (await client.get("/healthz")).status_code == 200
    for answer in (await post(client, "/v1/payments", payment()), await client.get("/readyz")):
        assert problem(answer, 503) == "unavailable"
        assert answer.headers["retry-after"] == "1"


async def test_orders_expire_while_the_application_is_up_and_it_says_so(
    app: FastAPI, world: World, client: httpx.AsyncClient
) -> None:
    await post(client, "/v1/payments", payment())
    found = await world.inventory.find("live", 0, "b2", "o-b2-tea") or await world.inventory.find(
        "live", 1, "b2", "o-b2-tea"
    )
    assert found is not None
    await world.ledger.record([found])
    text = ""
    async with app.router.lifespan_context(app):
        for _ in range(200):
            text = (await client.get("/metrics")).text
            if "springtide_stock_returns_total 1.0" in text:
                break
            await CLOCK.sleep(0.02)
    assert "springtide_expired_orders_total 1.0" in text
    assert "springtide_stock_returns_total 1.0" in text
    assert 'springtide_payments_total{outcome="accepted"} 1.0' in text
    assert "springtide_expiry_on_hold 0.0" in text
