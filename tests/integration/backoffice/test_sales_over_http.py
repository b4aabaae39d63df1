"""Sales over HTTP, on the real engines: from the draft to the close, and what is refused on the way."""

import json
from typing import Any

import httpx
import pytest
import valkey

from springtide.model import ReserveRequest, ReserveStatus, TokenRing
from springtide.sale.orders import bucket_of
from springtide.sale.tokens import keys_of
from tests.integration.backoffice.office import MASTER, Clients, problem
from tests.integration.order_path import World, now_ms

HOUR_MS = 3_600_000


@pytest.fixture
def client(clients: Clients) -> httpx.AsyncClient:
    return clients.operator


def definition(**changes: object) -> dict[str, Any]:
    return {
        "title": "Live room",
        "skus": [{"sku": "tea", "title": "Tea", "price_fen": 500, "stock": 10, "per_buyer_max": 3}],
        "opens_ms": now_ms() + HOUR_MS,
        "closes_ms": now_ms() + 2 * HOUR_MS,
        "hold_ms": 60_000,
        **changes,
    }


def sku(**changes: object) -> dict[str, object]:
    return {"sku": "tea", "title": "Tea", "price_fen": 500, "stock": 10, "per_buyer_max": 3, **changes}


async def draft(client: httpx.AsyncClient, **changes: object) -> dict[str, Any]:
    answer = await client.post("/v1/sales", json={"sale": "live", "buckets": 2, **definition(**changes)})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def step(client: httpx.AsyncClient, name: str) -> dict[str, Any]:
    answer = await client.post(f"/v1/sales/live/{name}")
    assert answer.status_code == 200, answer.text
    done: dict[str, Any] = answer.json()
    return done


async def put(client: httpx.AsyncClient, body: dict[str, Any], if_match: str | None) -> httpx.Response:
    return await client.put("/v1/sales/live", json=body, headers={} if if_match is None else {"If-Match": if_match})


async def buys(world: World, buyer: str, number: int = 1) -> ReserveStatus:
    wanted = ReserveRequest(buyer, f"k{number}", "tea", 1, f"o-{buyer}-{number}", 1, now_ms() + 10_000)
    view = await world.inventory.view("live")
    assert view is not None
    sale = view.sale
    (result,) = await world.inventory.reserve("live", bucket_of(buyer, sale.buckets), [wanted])
    return result.status


async def test_a_sale_from_its_draft_to_its_close(world: World, client: httpx.AsyncClient) -> None:
    made = await draft(client)
    assert (made["state"], made["live"]) == ("draft", None)
    assert await world.inventory.view("live") is None
    published = await step(client, "publish")
    assert (published["state"], published["live"]["stock"]) == ("scheduled", {"tea": 10})
    assert await buys(world, "b1") is ReserveStatus.NOT_OPEN
    assert (await step(client, "publish"))["revision"] == published["revision"]
    assert (await step(client, "open"))["state"] == "open"
    bought = {await buys(world, f"b{number}") for number in range(2, 5)}
    assert bought <= {ReserveStatus.RESERVED, ReserveStatus.SOLD_OUT}
    assert ReserveStatus.RESERVED in bought
    assert (await step(client, "pause"))["state"] == "paused"
    assert await buys(world, "b9") is ReserveStatus.PAUSED
    assert (await step(client, "resume"))["state"] == "open"
    closed = await step(client, "close")
    assert (closed["state"], closed["stage"]) == ("closed", "closed")
    assert await buys(world, "b9") is ReserveStatus.CLOSED
    assert await step(client, "close") == {
        **closed,
        "live": {**closed["live"], "at_ms": pytest.approx(now_ms(), abs=60_000)},
    }
    for wish in ("publish", "open", "pause", "resume"):
        assert problem(await client.post(f"/v1/sales/live/{wish}"), 409) == "wrong_stage"
    assert problem(await put(client, definition(), "*"), 409) == "wrong_stage"


async def test_a_draft_is_made_once_and_lists_have_pages(client: httpx.AsyncClient) -> None:
    body = {"sale": "live", **definition()}
    assert [(await client.post("/v1/sales", json=body)).status_code for _ in range(2)] == [201, 200]
    assert problem(await client.post("/v1/sales", json={**body, "title": "Other"}), 409) == "sale_exists"
    for name in ("a", "b"):
        await client.post("/v1/sales", json={**body, "sale": name})
    first = (await client.get("/v1/sales", params={"limit": 2})).json()
    assert [one["sale"] for one in first["sales"]] == ["a", "b"]
    second = (await client.get("/v1/sales", params={"limit": 2, "after": first["next"]})).json()
    assert ([one["sale"] for one in second["sales"]], second["next"]) == (["live"], None)


async def test_two_editors_do_not_overwrite_each_other(client: httpx.AsyncClient) -> None:
    await draft(client)
    tag = (await client.get("/v1/sales/live")).headers["etag"]
    assert problem(await put(client, definition(), None), 428) == "precondition_required"
    done = await put(client, definition(title="First"), tag)
    assert (done.status_code, done.json()["title"]) == (200, "First")
    for stale in (tag, '"x"', "W/" + done.headers["etag"], '"99999999999999999999"'):
        assert problem(await put(client, definition(title="Second"), stale), 412) == "revision_differs"
    assert (await put(client, definition(title="Second"), done.headers["etag"])).json()["title"] == "Second"
    assert (await put(client, definition(title="Third"), "*")).json()["title"] == "Third"


async def test_an_edit_reaches_the_inventory_and_leaves_stock_and_buyers(
    world: World, client: httpx.AsyncClient
) -> None:
    await draft(client)
    await step(client, "publish")
    opened = await step(client, "open")
    assert ReserveStatus.RESERVED in {await buys(world, f"b{number}") for number in range(4)}
    before = await world.inventory.view("live")
    assert before is not None
    window = {"opens_ms": opened["opens_ms"], "closes_ms": opened["closes_ms"] + HOUR_MS}
    skus = [sku(title="Green tea", per_buyer_max=1), sku(sku="cup", stock=0, price_fen=900)]
    done = await put(client, definition(title="New", hold_ms=5000, skus=skus, **window), "*")
    assert done.status_code == 200, done.text
    after = await world.inventory.view("live")
    record = await world.ledger.sale_record("live")
    assert after is not None
    assert record is not None
    assert after.sale == record.sale
    assert (after.sale.title, after.sale.closes_ms, after.sale.hold_ms) == ("New", window["closes_ms"], 5000)
    assert after.stock == {**before.stock, "cup": 0}


PROMISED: list[tuple[list[dict[str, object]], str, str]] = [
    ([sku(stock=11)], "stock_is_fixed", "skus.tea.stock"),
    ([sku(price_fen=1)], "price_is_fixed", "skus.tea.price_fen"),
    ([sku(spread=True)], "spread_is_fixed", "skus.tea.spread"),
    ([sku(sku="cup", stock=0)], "sku_is_needed", "skus"),
    ([sku(), sku(sku="cup", stock=5)], "stock_is_fixed", "skus.cup.stock"),
]


async def test_what_an_open_sale_has_promised_stays(client: httpx.AsyncClient) -> None:
    await draft(client)
    await step(client, "publish")
    opened = await step(client, "open")
    for skus, code, field in PROMISED:
        answer = await put(client, definition(skus=skus, opens_ms=opened["opens_ms"]), "*")
        assert problem(answer, 409) == code
        assert field in answer.json()["detail"]


MISTAKES: list[tuple[dict[str, object], str]] = [
    ({"hold_ms": 10}, "hold_ms"),
    ({"hold_ms": "60000"}, "hold_ms"),
    ({"title": ""}, "title"),
    ({"title": "a\x00b"}, "title"),
    ({"skus": []}, "skus"),
    ({"skus": [sku(stock=-1)]}, "skus.0.stock"),
    ({"skus": [sku(price_fen=1.5)]}, "skus.0.price_fen"),
    ({"skus": [sku(), sku()]}, "SKU twice"),
    ({"opens_ms": 10, "closes_ms": 10}, "window is empty"),
    ({"sale": "a b"}, "sale"),
    ({"buckets": 0}, "buckets"),
    ({"pay_url": "javascript:alert(1)"}, "pay_url"),
    ({"colour": "red"}, "colour"),
]


async def test_a_sale_that_cannot_be_held_names_the_field(client: httpx.AsyncClient) -> None:
    for changes, field in MISTAKES:
        answer = await client.post("/v1/sales", json={"sale": "live", **definition(**changes)})
        assert problem(answer, 422) in {"invalid", "bad_sale"}, changes
        assert field in answer.json()["detail"], changes


async def test_half_a_character_is_no_text(client: httpx.AsyncClient) -> None:
    body = json.dumps({"sale": "live", **definition(title="\ud800")})
    answer = await client.post("/v1/sales", content=body, headers={"Content-Type": "application/json"})
    assert problem(answer, 422) == "invalid"


async def test_json_that_cannot_be_read_is_a_bad_request(client: httpx.AsyncClient) -> None:
    for body in (b"{", b"\xff", b'{"sale": '):
        answer = await client.post("/v1/sales", content=body, headers={"Content-Type": "application/json"})
        assert problem(answer, 400)


async def test_a_fault_of_ours_is_a_problem_that_tells_nothing(
    world: World, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> None:
        raise RuntimeError("the secret of it")

    monkeypatch.setattr(world.ledger, "sale_records", fails)
    answer = await client.get("/v1/sales")
    assert problem(answer, 500) == "internal"
    assert "secret" not in answer.text


async def test_a_draft_whose_time_is_past_is_not_published(client: httpx.AsyncClient) -> None:
    await draft(client, opens_ms=1000, closes_ms=2000)
    assert problem(await client.post("/v1/sales/live/publish"), 422) == "bad_sale"


async def test_what_is_not_there_is_not_found(client: httpx.AsyncClient) -> None:
    for path in ("publish", "open", "pause", "resume", "close", "skus/tea/restocks", "tokens"):
        body = {"quantity": 1} if "restocks" in path else {"buyers": ["b1"]}
        answer = await client.post(f"/v1/sales/none/{path}", json=body, headers={"Idempotency-Key": "r"})
        assert problem(answer, 404) == "unknown_sale"
    for path in ("", "/orders", "/orders.csv"):
        assert problem(await client.get(f"/v1/sales/none{path}"), 404) == "unknown_sale"


async def test_a_restock_adds_its_units_once(world: World, client: httpx.AsyncClient) -> None:
    await draft(client)
    path = "/v1/sales/live/skus/tea/restocks"
    headers = {"Idempotency-Key": "second-batch"}
    assert problem(await client.post(path, json={"quantity": 5}, headers=headers), 409) == "wrong_stage"
    await step(client, "publish")
    assert problem(await client.post(path, json={"quantity": 5}), 422) == "invalid"
    answers = [await client.post(path, json={"quantity": 5}, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 200, 200]
    assert [answer.json()["repeated"] for answer in answers] == [False, True, True]
    assert {answer.json()["stock"] for answer in answers} == {15}
    assert problem(await client.post(path, json={"quantity": 6}, headers=headers), 422) == "key_reused"
    unknown = await client.post("/v1/sales/live/skus/cup/restocks", json={"quantity": 5}, headers=headers)
    assert problem(unknown, 404) == "unknown_sku"
    (totals,) = await world.ledger.totals("live")
    assert (totals.initial, totals.restocked, totals.returning) == (10, 5, 0)
    await step(client, "close")
    assert (await client.post(path, json={"quantity": 5}, headers=headers)).json()["repeated"] is True
    late = await client.post(path, json={"quantity": 5}, headers={"Idempotency-Key": "late"})
    assert problem(late, 409) == "wrong_stage"


async def test_a_sale_that_the_inventory_lost_after_it_sold_is_not_sold_again(
    world: World, client: httpx.AsyncClient
) -> None:
    await draft(client, opens_ms=now_ms() - 1000)
    await step(client, "publish")
    record = await world.ledger.sale_record("live")
    assert record is not None
    bought = await world.buy(record.sale, ["b1", "b2", "b3"])
    assert ReserveStatus.RESERVED in {one.status for one in bought}
    for bucket in range(2):
        entries = await world.inventory.read_journal("live", bucket, "c", 10)
        await world.ledger.record_entries("live", bucket, entries)
    with valkey.Valkey(port=world.engines.valkey.port) as store:
        store.flushall()
    for wish in ("publish", "pause", "resume", "open"):
        assert problem(await client.post(f"/v1/sales/live/{wish}"), 409) == "sale_is_lost"
    assert (await client.get("/v1/sales/live")).json()["state"] == "missing"
    assert await world.inventory.view("live") is None


async def test_tokens_are_signed_by_a_generation_that_counters_know(clients: Clients, world: World) -> None:
    await draft(clients.operator)
    body = {"buyers": ["b1", "b2"], "ttl_s": 60}
    issued = (await clients.operator.post("/v1/sales/live/tokens", json=body)).json()
    keys = keys_of(MASTER, TokenRing(1, 1))
    for one in issued["tokens"]:
        assert keys.verify(one["token"].encode(), b"live", now_ms() / 1000) == one["buyer"]
    assert (await clients.owner.post("/v1/token-keys/rotate")).json() == {"oldest": 1, "newest": 2}
    assert await world.inventory.token_ring() == await world.ledger.token_ring() == TokenRing(1, 2)
    # Counters may not have asked since: still the generation that they know.
    assert (await clients.operator.post("/v1/sales/live/tokens", json=body)).json()["generation"] == 1
    clients.app.state.office.tokens._newest = (2, -100.0)
    issued = (await clients.operator.post("/v1/sales/live/tokens", json=body)).json()
    assert issued["generation"] == 2
    keys_of(MASTER, TokenRing(2, 2)).verify(issued["tokens"][0]["token"].encode(), b"live", now_ms() / 1000)
    for _ in range(2):
        retired = await clients.owner.post("/v1/token-keys/retire", json={"generation": 1})
        assert retired.json() == {"oldest": 2, "newest": 2}
    assert await world.inventory.token_ring() == TokenRing(2, 2)
    assert problem(await clients.owner.post("/v1/token-keys/retire", json={"generation": 2}), 409) == "ring_is_single"
    for _ in range(3):
        await clients.owner.post("/v1/token-keys/rotate")
    assert problem(await clients.owner.post("/v1/token-keys/rotate"), 409) == "ring_is_full"
    many = {"buyers": [f"b{number}" for number in range(1001)]}
    assert problem(await clients.operator.post("/v1/sales/live/tokens", json=many), 422) == "invalid"
