"""Every operation of the OpenAPI document is closed to those who may not use it."""

import asyncio
import re
from typing import Any

import httpx

from springtide.model import Role
from tests.integration.backoffice.office import Clients, problem

OPEN = {"/healthz", "/readyz", "/metrics"}
ROLES = list(Role)


async def operations(client: httpx.AsyncClient) -> list[tuple[str, str, dict[str, Any]]]:
    """Method, a path that could be, and the description of everything the document has."""
    document = (await client.get("/openapi.json")).json()
    found = []
    for path, described in document["paths"].items():
        real = re.sub(r"\{\w+\}", "x1", path)
        found += [(method.upper(), real, one) for method, one in described.items()]
    assert len(found) > 25
    return found


async def test_every_operation_is_open_signed_or_has_a_role(clients: Clients) -> None:
    for method, path, described in await operations(clients.nobody):
        marks = [path in OPEN, described.get("x-signed") is True, "x-role" in described]
        assert marks.count(True) == 1, (method, path)
        security = described.get("security", [])
        assert security == ([{"ApiKey": [described["x-role"]]}] if "x-role" in described else [])


async def test_every_operation_refuses_no_key_and_a_bad_key(clients: Clients) -> None:
    secret = clients.owner.headers["authorization"].removeprefix("Bearer ")
    bad: list[list[tuple[str, str]]] = [
        [],
        [("Authorization", "Bearer sk_x_y")],
        [("Authorization", f"Bearer {secret}x")],
        [("Authorization", f"Bearer {secret[:-1]}")],
        [("Authorization", f"Basic {secret}")],
        [("Authorization", f"Bearer {secret}"), ("Authorization", f"Bearer {secret}")],
        [("X-Springtide-Signature", "0" * 64)],
    ]
    for method, path, _ in await operations(clients.nobody):
        if path in OPEN:
            assert (await clients.nobody.request(method, path)).status_code == 200
            continue
        for headers in bad:
            # A body that cannot be read as well: nothing of it may be looked at first.
            answer = await clients.nobody.request(method, path, content=b"{", headers=httpx.Headers(headers))
            assert problem(answer, 401) in {"unauthorized", "bad_signature"}, (method, path, headers)


async def test_every_operation_refuses_a_lower_role_and_knows_its_own(clients: Clients) -> None:
    for method, path, described in await operations(clients.nobody):
        if "x-role" not in described:
            continue
        needed = ROLES.index(Role(described["x-role"]))
        for rank, role in enumerate(ROLES):
            answer = await clients.of(role).request(method, path, content=b"{")
            if rank < needed:
                assert problem(answer, 403) == "role_too_low", (method, path, role)
            else:
                assert answer.status_code not in {401, 403}, (method, path, role)


async def test_a_revoked_key_is_good_for_nothing_within_a_second_or_two(clients: Clients) -> None:
    made = (await clients.owner.post("/v1/keys", json={"name": "till", "role": "viewer"})).json()
    assert made["secret"].startswith(f"sk_{made['key_id']}_")
    headers = {"Authorization": f"Bearer {made['secret']}"}
    assert (await clients.nobody.get("/v1/sales", headers=headers)).status_code == 200
    listed = await clients.owner.get("/v1/keys")
    assert made["key_id"] in {key["key_id"] for key in listed.json()["keys"]}
    assert made["secret"] not in listed.text
    # Revoked by another back office: this one is not told.
    await clients.app.state.office.ledger.revoke_api_key(made["key_id"])
    for _ in range(200):
        if (await clients.nobody.get("/v1/sales", headers=headers)).status_code == 401:
            break
        await asyncio.sleep(0.02)
    assert problem(await clients.nobody.get("/v1/sales", headers=headers), 401) == "unauthorized"
    assert (await clients.owner.delete(f"/v1/keys/{made['key_id']}")).json()["revoked_ms"] is not None


async def test_the_last_owner_stays(clients: Clients) -> None:
    keys = (await clients.owner.get("/v1/keys")).json()["keys"]
    own = next(key["key_id"] for key in keys if key["role"] == "owner")
    assert problem(await clients.owner.delete(f"/v1/keys/{own}"), 409) == "last_owner"
    assert problem(await clients.owner.delete("/v1/keys/nosuch"), 404) == "unknown_key"
    other = (await clients.owner.post("/v1/keys", json={"name": "second", "role": "owner"})).json()
    assert (await clients.owner.delete(f"/v1/keys/{own}")).status_code == 200
    assert problem(await clients.owner.get("/v1/keys"), 401) == "unauthorized"
    headers = {"Authorization": f"Bearer {other['secret']}"}
    assert (await clients.nobody.get("/v1/keys", headers=headers)).status_code == 200


async def test_the_ledger_has_no_secret(clients: Clients) -> None:
    secret = clients.owner.headers["authorization"].removeprefix("Bearer ")
    kept = await clients.app.state.office.ledger.api_keys()
    assert all(secret not in repr(key) and secret.rpartition("_")[2] not in repr(key) for key in kept)
