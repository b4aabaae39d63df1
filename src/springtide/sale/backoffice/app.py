"""The back office's application. While it is up, orders expire, stock is given back, and the inventory is repaired."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from springtide import __version__
from springtide.ports import Clock, Ids, Inventory, Ledger
from springtide.sale.api_keys import KeyBook
from springtide.sale.backoffice import health, keys, orders, payments, sales
from springtide.sale.backoffice.description import describe, operation_id
from springtide.sale.backoffice.figures import Figures
from springtide.sale.backoffice.limits import Limits, Load
from springtide.sale.backoffice.office import Office
from springtide.sale.backoffice.problems import answer_with_problems
from springtide.sale.merchant import Merchant
from springtide.sale.payments import Payments
from springtide.sale.room_keeper import RoomKeeper
from springtide.sale.stock_keeper import StockKeeper
from springtide.sale.token_office import TokenOffice

DESCRIPTION = (
    "The merchant's side of Springtide. Every operation under `/v1` needs `Authorization: Bearer sk_…` with a key of "
    "the role in `x-role` (viewer < operator < owner), but those marked `x-signed` need the webhook's signature. "
    "Refusals are `application/problem+json`; a change that was answered 503 may be asked for again."
)


@dataclass(frozen=True)
class MerchantApi:
    """The logic behind the routes that need a key, and what goes on beside them."""

    merchant: Merchant
    keys: KeyBook
    tokens: TokenOffice
    clock: Clock
    stock: StockKeeper | None = None
    rooms: RoomKeeper | None = None


def merchant_api(inventory: Inventory, ledger: Ledger, clock: Clock, ids: Ids, token_master: bytes) -> MerchantApi:
    """Built over the ports; buyer tokens are signed with keys derived from `token_master`, at least 32 bytes."""
    return MerchantApi(
        merchant=Merchant(inventory, ledger, clock),
        keys=KeyBook(ledger, clock, ids),
        tokens=TokenOffice(inventory, ledger, clock, token_master),
        clock=clock,
        stock=StockKeeper(inventory, clock, ids),
    )


def create_app(
    paying: Payments, inventory: Inventory, ledger: Ledger, webhook_secret: bytes, api: MerchantApi
) -> FastAPI:
    """The application."""
    office = Office(
        payments=paying,
        inventory=inventory,
        ledger=ledger,
        merchant=api.merchant,
        keys=api.keys,
        tokens=api.tokens,
        webhook_secret=webhook_secret,
        clock=api.clock,
        load=Load(),
        stock=api.stock,
        rooms=api.rooms,
    )
    app = FastAPI(
        title="Springtide back office",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lambda _: _working(office),
        # The pages that show the document load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=operation_id,
    )
    app.state.office = office
    app.state.registry = CollectorRegistry()
    app.state.registry.register(Figures(office))
    for part in (payments, sales, orders, keys, health):
        app.include_router(part.router)
    app.add_middleware(Limits, clock=office.clock, load=office.load)
    answer_with_problems(app)
    document = describe(app)
    app.openapi = lambda: document  # type: ignore[method-assign]  # as FastAPI documents it
    return app


@contextlib.asynccontextmanager
async def _working(office: Office) -> AsyncIterator[None]:
    """What goes on beside the requests."""
    workers = (office.payments, office.merchant, office.tokens, office.stock, office.rooms)
    running = [asyncio.create_task(worker.run()) for worker in workers if worker is not None]
    try:
        yield
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
