"""Sales over HTTP: drafted, edited, published, opened early, paused, restocked, closed."""

import hashlib
from typing import Annotated

from fastapi import Header, Path, Query, Response

from springtide.errors import InventoryError
from springtide.model import Restock, Role, Sale, SaleRecord, SaleStage, SaleView
from springtide.sale.backoffice.auth import guarded_router, needs
from springtide.sale.backoffice.office import Office, TheOffice
from springtide.sale.backoffice.problems import ProblemError
from springtide.sale.backoffice.schemas import (
    LiveOut,
    Name,
    NewSaleBody,
    PaymentId,
    RestockBody,
    RestockOut,
    SaleBody,
    SaleOut,
    SalesPage,
    SaleSummary,
    SkuBody,
)

SaleName = Annotated[Name, Path(description="The sale's id.")]
Cursor = Annotated[str, Query(max_length=64, description="`next` of the page before.", pattern="^[!-~]*$")]
Limit = Annotated[int, Query(ge=1, le=200)]

router = guarded_router("sales")


@router.post(
    "/sales",
    status_code=201,
    openapi_extra=needs(Role.OPERATOR),
    responses={200: {"model": SaleOut, "description": "It was drafted before."}},
)
async def create_sale(body: NewSaleBody, office: TheOffice, response: Response) -> SaleOut:
    """Draft a sale. The same draft again answers 200 and changes nothing."""
    record, new = await office.merchant.create(_sale(body, body.sale, body.buckets))
    response.status_code = 201 if new else 200
    return await _out(office, record, response)


@router.get("/sales", openapi_extra=needs(Role.VIEWER))
async def list_sales(office: TheOffice, after: Cursor = "", limit: Limit = 50) -> SalesPage:
    """All sales by their ids, a page at a time."""
    records = await office.ledger.sale_records(after, limit)
    follows = records[-1].sale.sale if len(records) == limit else None
    return SalesPage(sales=[SaleSummary.of(record) for record in records], next=follows)


@router.get("/sales/{sale}", openapi_extra=needs(Role.VIEWER))
async def show_sale(sale: SaleName, office: TheOffice, response: Response) -> SaleOut:
    """One sale, and how it sells now. The ETag is its revision, for an edit."""
    return await _out(office, await office.merchant.record(sale), response)


@router.put("/sales/{sale}", openapi_extra=needs(Role.OPERATOR))
async def edit_sale(
    sale: SaleName,
    body: SaleBody,
    office: TheOffice,
    response: Response,
    if_match: Annotated[str | None, Header(description="The ETag of what was edited, or *.")] = None,
) -> SaleOut:
    """Replace a sale's definition. Of a published sale the stock stays, and the prices once it has opened."""
    revision = _revision(if_match)
    record = await office.merchant.record(sale)
    return await _out(office, await office.merchant.edit(_sale(body, sale, record.sale.buckets), revision), response)


@router.post("/sales/{sale}/publish", openapi_extra=needs(Role.OPERATOR))
async def publish_sale(sale: SaleName, office: TheOffice, response: Response) -> SaleOut:
    """Sell a draft from its opening on; a sale that opens later is scheduled."""
    return await _out(office, await office.merchant.publish(sale), response)


@router.post("/sales/{sale}/open", openapi_extra=needs(Role.OPERATOR))
async def open_sale(sale: SaleName, office: TheOffice, response: Response) -> SaleOut:
    """Open a published sale now, ahead of its time."""
    return await _out(office, await office.merchant.open_now(sale), response)


@router.post("/sales/{sale}/pause", openapi_extra=needs(Role.OPERATOR))
async def pause_sale(sale: SaleName, office: TheOffice, response: Response) -> SaleOut:
    """Stop selling until it is resumed; orders that are open can still be paid."""
    return await _out(office, await office.merchant.pause(sale, paused=True), response)


@router.post("/sales/{sale}/resume", openapi_extra=needs(Role.OPERATOR))
async def resume_sale(sale: SaleName, office: TheOffice, response: Response) -> SaleOut:
    """Sell on after a pause."""
    return await _out(office, await office.merchant.pause(sale, paused=False), response)


@router.post("/sales/{sale}/close", openapi_extra=needs(Role.OPERATOR))
async def close_sale(sale: SaleName, office: TheOffice, response: Response) -> SaleOut:
    """End a sale for good; orders that are open can still be paid."""
    return await _out(office, await office.merchant.close(sale), response)


@router.post(
    "/sales/{sale}/skus/{sku}/restocks",
    status_code=201,
    openapi_extra=needs(Role.OPERATOR),
    responses={200: {"model": RestockOut, "description": "It was done before."}},
)
async def restock_sku(
    sale: SaleName,
    sku: Annotated[Name, Path(description="The SKU's id.")],
    body: RestockBody,
    office: TheOffice,
    response: Response,
    idempotency_key: Annotated[PaymentId, Header(description="New for each restock; the same again adds nothing.")],
) -> RestockOut:
    """Add units while the sale runs, exactly once for each Idempotency-Key. Repeated, it answers 200."""
    wanted = Restock(_restock_id(sale, idempotency_key), sale, sku, body.quantity)
    done = await office.merchant.restock(wanted)
    response.status_code = 200 if done.repeated else 201
    view = await _view(office, sale)
    return RestockOut(
        restock_id=wanted.restock_id,
        sale=sale,
        sku=sku,
        quantity=wanted.quantity,
        repeated=done.repeated,
        stock=view.stock.get(sku) if view else None,
    )


def _restock_id(sale: str, key: str) -> str:
    """Keys are the merchant's and may come again in another sale; restock ids are the ledger's, and unique."""
    return "r" + hashlib.sha256(f"{sale} {key}".encode()).hexdigest()[:40]


def _sale(body: SaleBody, name: str, buckets: int) -> Sale:
    try:
        return body.value(name, buckets)
    except ValueError as error:
        raise ProblemError(422, "bad_sale", "Not a sale that can be held", str(error)) from error


def _revision(if_match: str | None) -> int | None:
    if if_match is None:
        detail = "send If-Match with the ETag of what was edited, so that nobody else's change is lost"
        raise ProblemError(428, "precondition_required", "If-Match is required", detail)
    tag = if_match.strip()
    if tag == "*":
        return None
    digits = tag.removeprefix('"').removesuffix('"')
    # A tag that is not ours matches no revision: -1 is none.
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else -1  # noqa: PLR2004 - an int4


async def _view(office: Office, sale: str) -> SaleView | None:
    """None also while the inventory is away: what was asked is done, or is in the ledger."""
    try:
        return await office.inventory.view(sale)
    except InventoryError:
        return None


async def _out(office: Office, record: SaleRecord, response: Response) -> SaleOut:
    view = None if record.stage is SaleStage.DRAFT else await _view(office, record.sale.sale)
    response.headers["ETag"] = f'"{record.revision}"'
    sale = record.sale
    return SaleOut(
        **SaleSummary.of(record).model_dump(),
        skus=tuple(
            SkuBody.model_construct(
                sku=sku.sku,
                title=sku.title,
                price_fen=sku.price_fen,
                stock=sku.stock,
                per_buyer_max=sku.per_buyer_max,
                spread=sku.spread,
            )
            for sku in sale.skus
        ),
        hold_ms=sale.hold_ms,
        epoch=sale.epoch,
        buckets=sale.buckets,
        waiting_room=sale.waiting_room,
        pay_url=sale.pay_url,
        state=state_of(record, view, office.clock.now_ms()),
        live=_live(view) if view else None,
    )


def _live(view: SaleView) -> LiveOut:
    return LiveOut(stock=view.stock, moving=view.moving, paused=view.paused, at_ms=view.at_ms)


def state_of(record: SaleRecord, view: SaleView | None, now_ms: int) -> str:
    """A sale's state in one word, as `SaleOut` lists them."""
    if record.stage is not SaleStage.PUBLISHED:
        return record.stage.value
    if view is None:
        return "missing"
    if record.sale.closes_ms <= now_ms:
        return "over"
    if view.paused:
        return "paused"
    return "open" if record.sale.opens_ms <= now_ms else "scheduled"
