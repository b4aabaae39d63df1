"""The ledger on PostgreSQL: orders, payments, the outbox, and how far each journal has been recorded."""

from collections.abc import Sequence

import asyncpg

from springtide.drivers.postgres_merchant import MerchantTables
from springtide.drivers.postgres_rows import entry_columns, entry_record, order_columns, order_of, rows_in
from springtide.drivers.postgres_session import ANSWER_S, CONNECTIONS_MAX, migrate, query, require_few
from springtide.model import (
    JournalEntry,
    Order,
    OrderState,
    Payment,
    PaymentOutcome,
    Reservation,
    SkuTotals,
    StockReturn,
)

__all__ = ["ANSWER_S", "CONNECTIONS_MAX", "PostgresLedger", "migrate"]


class PostgresLedger(MerchantTables):
    """`ports.Ledger` on PostgreSQL 16 or newer. `connect` makes one."""

    async def record(self, reservations: Sequence[Reservation]) -> int:
        require_few(reservations)
        columns = order_columns(reservations)
        async with self._session() as connection:
            new = rows_in(await connection.execute(query("record_orders"), *columns))
            if new < len(reservations):
                await connection.execute(query("record_conflicts"), *columns)
        return new

    async def record_entries(self, sale: str, bucket: int, entries: Sequence[JournalEntry]) -> int:
        if not entries:
            return 0
        reservations = [one for entry in entries for one in entry.reservations]
        require_few(reservations)
        last = entries[-1].entry_id
        async with self._session() as connection:
            try:
                async with connection.transaction():
                    await connection.copy_records_to_table("staged_orders", records=map(entry_record, reservations))
                    return int(await connection.fetchval(query("record_new_entries"), sale, bucket, last))
            except asyncpg.UniqueViolationError:  # some are there already
                pass
            async with connection.transaction():
                columns = entry_columns(reservations)
                new = int(await connection.fetchval(query("record_entries"), sale, bucket, *columns, last))
                await connection.execute(query("record_conflicts"), *order_columns(reservations))
                return new

    async def conflicts(self, sale: str, count: int) -> list[Reservation]:
        async with self._session() as connection:
            return [Reservation(**row) for row in await connection.fetch(query("conflicts"), sale, count)]

    async def pay(self, payment: Payment) -> PaymentOutcome:
        values = (payment.payment_id, payment.order_id, payment.sale, payment.buyer, payment.amount_fen)
        async with self._session() as connection:
            return PaymentOutcome(await connection.fetchval(query("pay_order"), *values))

    async def cancel(self, order_id: str) -> OrderState | None:
        async with self._session() as connection:
            state = await connection.fetchval(query("cancel_order"), order_id)
        return None if state is None else OrderState(state)

    async def expire_due(self, grace_ms: int, count: int) -> int:
        async with self._session() as connection:
            return int(await connection.fetchval(query("expire_due"), grace_ms, count))

    async def returns(self, count: int, skip: Sequence[tuple[str, int]] = ()) -> list[StockReturn]:
        sales, buckets = [sale for sale, _ in skip], [bucket for _, bucket in skip]
        async with self._session() as connection:
            rows = await connection.fetch(query("open_returns"), count, sales, buckets)
        return [StockReturn(**row) for row in rows]

    async def close_returns(self, order_ids: Sequence[str]) -> None:
        require_few(order_ids)
        async with self._session() as connection:
            await connection.execute(query("close_returns"), list(order_ids))

    async def order(self, order_id: str) -> Order | None:
        async with self._session() as connection:
            row = await connection.fetchrow(query("one_order"), order_id)
        return None if row is None else order_of(row)

    async def orders(self, sale: str) -> list[Order]:
        async with self._session() as connection:
            return [order_of(row) for row in await connection.fetch(query("orders_of_sale"), sale)]

    async def totals(self, sale: str) -> list[SkuTotals]:
        async with self._session() as connection:
            return [SkuTotals(**row) for row in await connection.fetch(query("totals"), sale)]

    async def positions(self, sale: str) -> dict[int, str]:
        async with self._session() as connection:
            rows = await connection.fetch(query("positions"), sale)
        return {row["bucket"]: row["entry_id"] for row in rows}
