"""Orders and refunds over HTTP, on the real engines."""

import csv
from collections.abc import Sequence

import httpx
import msgspec
import pytest

from springtide.model import Payment, Reservation
from springtide.sale.backoffice import orders as order_routes
from springtide.sale.backoffice.orders import HEADER
from tests.integration.backoffice.office import Clients, problem
from tests.integration.order_path import PRICE_FEN, World, now_ms, small_sale


async def record(world: World, orders: Sequence[tuple[str, str, str]], title: str = "Tea") -> None:
    """Orders as (id, buyer, SKU) of the sale `live`, journalled by nobody."""
    sale = small_sale()
    skus = (msgspec.structs.replace(sale.skus[0], title=title), *sale.skus[1:])
    await world.ledger.publish(msgspec.structs.replace(sale, skus=skus))
    at_ms = now_ms()
    await world.ledger.record(
        [
            Reservation(order_id, "live", 0, buyer, f"k-{order_id}", sku, 2, at_ms, at_ms + 60_000)
            for order_id, buyer, sku in orders
        ]
    )


async def ids(client: httpx.AsyncClient, **query: str | int) -> list[str]:
    answer = await client.get("/v1/sales/live/orders", params=query)
    assert answer.status_code == 200, answer.text
    return [order["order_id"] for order in answer.json()["orders"]]


async def test_orders_are_found_by_what_is_known_of_them(world: World, clients: Clients) -> None:
    await record(world, [("o1", "b1", "tea"), ("o2", "b2", "tea"), ("o3", "b1", "cup")])
    await world.ledger.pay(Payment("p1", "o2", "live", "b2", 2 * PRICE_FEN))
    client = clients.viewer
    assert await ids(client) == ["o1", "o2", "o3"]
    assert await ids(client, buyer="b1") == ["o1", "o3"]
    assert await ids(client, sku="tea") == ["o1", "o2"]
    assert await ids(client, state="paid") == ["o2"]
    assert await ids(client, order_id="o3") == ["o3"]
    assert await ids(client, buyer="b1", sku="cup", state="reserved") == ["o3"]
    assert await ids(client, buyer="nobody") == []
    one = (await client.get("/v1/sales/live/orders/o2")).json()
    assert (one["state"], one["price_fen"], one["amount_fen"]) == ("paid", PRICE_FEN, 2 * PRICE_FEN)
    assert problem(await client.get("/v1/sales/live/orders/o9"), 404) == "unknown_order"
    assert problem(await client.get("/v1/sales/live/orders", params={"state": "lost"}), 422) == "invalid"


async def test_pages_hold_every_order_once(world: World, clients: Clients) -> None:
    names = [f"o{number:03}" for number in range(25)]
    await record(world, [(name, f"b-{name}", "tea") for name in names])
    found: list[str] = []
    after = ""
    while True:
        page = (await clients.viewer.get("/v1/sales/live/orders", params={"limit": 10, "after": after})).json()
        found += [order["order_id"] for order in page["orders"]]
        if page["next"] is None:
            break
        after = page["next"]
    assert found == names


async def test_an_export_holds_every_order_and_runs_no_formula(
    world: World, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_routes, "EXPORT_PAGE", 10)
    names = [f"o{number:03}" for number in range(25)]
    await record(world, [(name, f"b-{name}", "tea") for name in names], title='=HYPERLINK("http://x","Tea")')
    answer = await clients.viewer.get("/v1/sales/live/orders.csv")
    assert answer.headers["content-type"].startswith("text/csv")
    head, *rows = csv.reader(answer.text.splitlines())
    assert tuple(head) == HEADER
    assert [row[0] for row in rows] == names
    assert {row[4] for row in rows} == {'\'=HYPERLINK("http://x","Tea")'}
    assert {row[7] for row in rows} == {"10.00"}
    only = await clients.viewer.get("/v1/sales/live/orders.csv", params={"state": "paid"})
    assert only.text.splitlines() == [",".join(HEADER)]


async def test_a_merchant_cancels_what_is_not_paid(world: World, clients: Clients) -> None:
    await record(world, [("o1", "b1", "tea"), ("o2", "b2", "tea")])
    await world.ledger.pay(Payment("p1", "o2", "live", "b2", 2 * PRICE_FEN))
    for name, state in (("o1", "cancelled"), ("o1", "cancelled"), ("o2", "paid")):
        answer = await clients.operator.post(f"/v1/sales/live/orders/{name}/cancel")
        assert (answer.status_code, answer.json()) == (200, {"order_id": name, "state": state})
    for path in ("live/orders/o9", "other/orders/o1"):
        assert problem(await clients.operator.post(f"/v1/sales/{path}/cancel"), 404) == "unknown_order"
    assert [row.order_id for row in await world.ledger.returns(10)] == ["o1"]


async def test_refunds_are_listed_until_all_are_seen(world: World, clients: Clients) -> None:
    await record(world, [("o1", "b1", "tea"), ("o2", "b2", "tea")])
    await world.ledger.cancel("o1")
    await world.ledger.pay(Payment("p1", "o1", "live", "b1", 2 * PRICE_FEN))
    await world.ledger.pay(Payment("p2", "o2", "live", "b2", 1))
    first = (await clients.viewer.get("/v1/refunds", params={"limit": 1})).json()
    assert [one["payment_id"] for one in first["refunds"]] == ["p1"]
    rest = (await clients.viewer.get("/v1/refunds", params={"sale": "live", "after": first["next"]})).json()
    assert [(one["payment_id"], one["amount_fen"], one["seen_ms"]) for one in rest["refunds"]] == [("p2", 1, None)]
    assert (await clients.viewer.get("/v1/refunds", params={"sale": "other"})).json()["refunds"] == []
    for _ in range(2):
        assert (await clients.operator.post("/v1/refunds/p2/seen")).status_code == 204
    seen = {one["payment_id"]: one["seen_ms"] for one in (await clients.viewer.get("/v1/refunds")).json()["refunds"]}
    assert seen["p1"] is None
    assert seen["p2"] is not None
    assert problem(await clients.operator.post("/v1/refunds/p9/seen"), 404) == "unknown_refund"
