"""Rows of the ledger's tables as values, and values as the columns that its queries take."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import asyncpg

from springtide.model import ApiKey, Order, OrderState, Reservation, Role, Sale, SaleRecord, SaleStage, Sku


def sale_values(sale: Sale) -> tuple[Any, ...]:
    """The parameters of `publish_sale`, `create_sale` and `change_sale`."""
    return (
        sale.sale,
        sale.title,
        sale.opens_ms,
        sale.closes_ms,
        sale.hold_ms,
        sale.epoch,
        sale.buckets,
        sale.waiting_room,
        sale.pay_url,
    )


def sku_columns(skus: Sequence[Sku]) -> tuple[list[Any], ...]:
    """The columns of `put_skus`."""
    return (
        [sku.sku for sku in skus],
        [sku.title for sku in skus],
        [sku.price_fen for sku in skus],
        [sku.stock for sku in skus],
        [sku.per_buyer_max for sku in skus],
        [sku.spread for sku in skus],
    )


def order_columns(reservations: Sequence[Reservation]) -> tuple[list[Any], ...]:
    """The columns of `record_orders` and `record_conflicts`."""
    order_id, buyer, key, *others = entry_columns(reservations)
    sales, buckets = [one.sale for one in reservations], [one.bucket for one in reservations]
    return (order_id, sales, buckets, buyer, key, *others)


def entry_columns(reservations: Sequence[Reservation]) -> tuple[list[Any], ...]:
    """The columns of `record_entries`: those of one bucket of one sale."""
    return (
        [one.order_id for one in reservations],
        [one.buyer for one in reservations],
        [one.key for one in reservations],
        [one.sku for one in reservations],
        [one.quantity for one in reservations],
        [one.reserved_ms for one in reservations],
        [one.pay_by_ms for one in reservations],
    )


def entry_record(one: Reservation) -> tuple[Any, ...]:
    """A row of `staged_orders`."""
    return (one.order_id, one.buyer, one.key, one.sku, one.quantity, one.reserved_ms, one.pay_by_ms)


def order_of(row: asyncpg.Record) -> Order:
    """An order from a row with all its columns."""
    values = dict(row)
    state, price_fen = OrderState(values.pop("state")), values.pop("price_fen")
    return Order(Reservation(**values), state, price_fen)


def api_key_of(row: asyncpg.Record) -> ApiKey:
    """A key of the merchant's API."""
    return ApiKey(**{**row, "role": Role(row["role"])})


def sale_records_of(sales: Iterable[asyncpg.Record], skus: Iterable[asyncpg.Record]) -> list[SaleRecord]:
    """Sales with their SKUs, in the order of the rows."""
    by_sale: defaultdict[str, list[Sku]] = defaultdict(list)
    for row in skus:
        values = dict(row)
        by_sale[values.pop("sale")].append(Sku(**values))
    records = []
    for row in sales:
        values = dict(row)
        stage, revision, changed_ms = (values.pop(name) for name in ("stage", "revision", "changed_ms"))
        sale = Sale(skus=tuple(by_sale[values["sale"]]), **values)
        records.append(SaleRecord(sale, SaleStage(stage), revision, changed_ms))
    return records


def rows_in(status: str) -> int:
    """The count in a command tag such as `INSERT 0 500`."""
    return int(status.rsplit(" ", 1)[-1])
