"""What the routes work with."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from springtide.ports import Clock, Inventory, Ledger
from springtide.sale.api_keys import KeyBook
from springtide.sale.backoffice.limits import Load
from springtide.sale.merchant import Merchant
from springtide.sale.payments import Payments
from springtide.sale.room_keeper import RoomKeeper
from springtide.sale.stock_keeper import StockKeeper
from springtide.sale.token_office import TokenOffice


@dataclass(frozen=True)
class Office:
    """One back office."""

    payments: Payments
    inventory: Inventory
    ledger: Ledger
    merchant: Merchant
    keys: KeyBook
    tokens: TokenOffice
    webhook_secret: bytes
    clock: Clock
    load: Load
    stock: StockKeeper | None
    rooms: RoomKeeper | None


def office_of(request: Request) -> Office:
    """The office that the application was made with."""
    office: Office = request.app.state.office
    return office


TheOffice = Annotated[Office, Depends(office_of)]
