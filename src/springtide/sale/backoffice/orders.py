"""Orders over HTTP: search, export, cancellation by the merchant, and refunds that are due."""

import csv
import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from fastapi import Path, Query
from fastapi.responses import StreamingResponse

from springtide.model import IDEMPOTENCY_KEY, IDENTIFIER, Order, OrderQuery, OrderState, Role
from springtide.ports import Ledger
from springtide.sale.backoffice.auth import guarded_router, needs
from springtide.sale.backoffice.office import TheOffice
from springtide.sale.backoffice.problems import unknown_order
from springtide.sale.backoffice.sales import SaleName
from springtide.sale.backoffice.schemas import (
    Name,
    OrderOut,
    OrdersPage,
    OrderStateOut,
    PaymentId,
    RefundOut,
    RefundsPage,
)
from springtide.sale.merchant import MerchantError, Refusal

EXPORT_PAGE = 500
"""Orders that an export holds in memory at once."""

HEADER = (
    "order_id",
    "sale",
    "buyer",
    "sku",
    "title",
    "quantity",
    "price_cny",
    "amount_cny",
    "state",
    "reserved_at",
    "pay_by",
)
"""The first row of an export; moments are ISO 8601 in UTC."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")

Wanted = Annotated[str, Query(pattern=f"^({IDENTIFIER.pattern})?$")]
OrderId = Annotated[Name, Path(description="The order's id.")]
Limit = Annotated[int, Query(ge=1, le=500)]
State = Annotated[OrderState | None, Query()]

router = guarded_router("orders")


@router.get("/sales/{sale}/orders", openapi_extra=needs(Role.VIEWER))
async def search_orders(  # noqa: PLR0913, PLR0917 - FastAPI takes each part of a request as a parameter
    sale: SaleName,
    office: TheOffice,
    buyer: Wanted = "",
    sku: Wanted = "",
    state: State = None,
    order_id: Wanted = "",
    after: Wanted = "",
    limit: Limit = 100,
) -> OrdersPage:
    """Recorded orders by their ids, a page at a time."""
    await office.merchant.record(sale)
    found = await office.ledger.search_orders(OrderQuery(sale, buyer, sku, state, order_id, after, limit))
    follows = found[-1].reservation.order_id if len(found) == limit else None
    return OrdersPage(orders=[OrderOut.of(order) for order in found], next=follows)


@router.get(
    "/sales/{sale}/orders.csv",
    openapi_extra=needs(Role.VIEWER),
    response_class=StreamingResponse,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}, "description": "Orders by their ids."}},
)
async def export_orders(
    sale: SaleName, office: TheOffice, buyer: Wanted = "", sku: Wanted = "", state: State = None
) -> StreamingResponse:
    """All recorded orders as CSV. An answer that ends without its last chunk is not whole: ask again."""
    record = await office.merchant.record(sale)
    titles = {one.sku: one.title for one in record.sale.skus}
    query = OrderQuery(sale, buyer, sku, state, count=EXPORT_PAGE)
    # The first page before the answer begins, so that a ledger that is away is still a 503.
    first = await office.ledger.search_orders(query)
    return StreamingResponse(
        _rows(office.ledger, query, first, titles),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{sale}-orders.csv"'},
    )


@router.get("/sales/{sale}/orders/{order_id}", openapi_extra=needs(Role.VIEWER))
async def show_order(sale: SaleName, order_id: OrderId, office: TheOffice) -> OrderOut:
    """One recorded order."""
    return OrderOut.of(await _order(office.ledger, sale, order_id))


@router.post("/sales/{sale}/orders/{order_id}/cancel", openapi_extra=needs(Role.OPERATOR))
async def cancel_sold_order(sale: SaleName, order_id: OrderId, office: TheOffice) -> OrderStateOut:
    """Cancel a reserved order; its units are sold again. One that has ended, or is paid, stays what it is."""
    await _order(office.ledger, sale, order_id)
    state = await office.payments.cancel(order_id)
    if state is None:
        raise unknown_order(order_id)
    return OrderStateOut(order_id=order_id, state=state)


@router.get("/refunds", openapi_extra=needs(Role.VIEWER))
async def list_refunds(
    office: TheOffice,
    sale: Wanted = "",
    after: Annotated[str, Query(pattern=f"^({IDEMPOTENCY_KEY.pattern})?$")] = "",
    limit: Limit = 100,
) -> RefundsPage:
    """Money that is to be given back, of one sale or of all, a page at a time."""
    found = await office.ledger.refunds(sale, after, limit)
    follows = found[-1].payment_id if len(found) == limit else None
    return RefundsPage(refunds=[RefundOut.of(one) for one in found], next=follows)


@router.post("/refunds/{payment_id}/seen", status_code=204, openapi_extra=needs(Role.OPERATOR))
async def see_refund(payment_id: Annotated[PaymentId, Path()], office: TheOffice) -> None:
    """Note that the merchant knows of a refund."""
    if not await office.ledger.see_refund(payment_id):
        raise MerchantError(Refusal.UNKNOWN_REFUND, f"no refund is due for the payment {payment_id}")


async def _order(ledger: Ledger, sale: str, order_id: str) -> Order:
    order = await ledger.order(order_id)
    if order is None or order.reservation.sale != sale:
        raise MerchantError(
            Refusal.UNKNOWN_ORDER, f"{sale} has no order {order_id} on record; one from a moment ago may follow shortly"
        )
    return order


async def _rows(ledger: Ledger, query: OrderQuery, page: list[Order], titles: dict[str, str]) -> AsyncIterator[bytes]:
    """The file in pieces of a page each."""
    yield _csv([HEADER])
    while page:
        yield _csv([_row(order, titles) for order in page])
        after = page[-1].reservation.order_id
        full = len(page) == query.count
        page = await ledger.search_orders(msgspec.structs.replace(query, after=after)) if full else []


def _row(order: Order, titles: dict[str, str]) -> tuple[str, ...]:
    held = order.reservation
    return (
        held.order_id,
        held.sale,
        held.buyer,
        held.sku,
        titles.get(held.sku, ""),
        str(held.quantity),
        _yuan(order.price_fen),
        _yuan(order.price_fen * held.quantity),
        order.state.value,
        _moment(held.reserved_ms),
        _moment(held.pay_by_ms),
    )


def _yuan(fen: int) -> str:
    return f"{fen // 100}.{fen % 100:02}"


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _csv(rows: list[tuple[str, ...]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([_plain(cell) for cell in row] for row in rows)
    return text.getvalue().encode()


def _plain(cell: str) -> str:
    """A spreadsheet runs a cell that begins like a formula; behind an apostrophe it is text (CWE-1236)."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
