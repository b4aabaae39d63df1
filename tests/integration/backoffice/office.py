"""A back office on real engines, and clients with a key of each role."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
from fastapi import FastAPI

from springtide.drivers.system import SystemIds
from springtide.model import Role
from springtide.sale.api_keys import make_key
from springtide.sale.backoffice import create_app, merchant_api
from springtide.sale.payments import PaymentLimits, Payments
from tests.integration.order_path import CLOCK, World, now_ms

WEBHOOK_SECRET = b"a shared secret"
MASTER = b"m" * 32
LIMITS = PaymentLimits(grace_ms=0, expire_every_s=0.02, return_every_s=0.02, retry_first_s=0.01)


def office_app(world: World) -> FastAPI:
    payments = Payments(world.inventory, world.ledger, CLOCK, LIMITS)
    api = merchant_api(world.inventory, world.ledger, CLOCK, SystemIds(), MASTER)
    return create_app(payments, world.inventory, world.ledger, WEBHOOK_SECRET, api)


@dataclass(frozen=True)
class Clients:
    """One for each role, and one without a key."""

    app: FastAPI
    nobody: httpx.AsyncClient
    viewer: httpx.AsyncClient
    operator: httpx.AsyncClient
    owner: httpx.AsyncClient

    def of(self, role: Role) -> httpx.AsyncClient:
        client: httpx.AsyncClient = getattr(self, role.value)
        return client


@asynccontextmanager
async def clients_of(world: World) -> AsyncIterator[Clients]:
    app = office_app(world)
    async with AsyncExitStack() as stack:

        async def client(secret: str = "") -> httpx.AsyncClient:
            headers = {"Authorization": f"Bearer {secret}"} if secret else {}
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            return await stack.enter_async_context(
                httpx.AsyncClient(transport=transport, base_url="http://backoffice", headers=headers)
            )

        keyed = []
        for role in Role:
            new = make_key(SystemIds(), role.value, role, now_ms())
            await world.ledger.add_api_key(new.key)
            keyed.append(await client(new.secret))
        yield Clients(app, await client(), *keyed)


def problem(answer: httpx.Response, status: int) -> str:
    """The code of a problem answer of this status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    members = answer.json()
    assert members["status"] == status
    assert members["title"]
    assert members["detail"]
    return str(members["code"])
