"""What a merchant keeps in the ledger: sales and their stages, restocks, refunds, API keys, token generations."""

from collections.abc import Sequence
from typing import Final

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

from springtide.drivers.postgres_rows import api_key_of, order_of, rows_in, sale_records_of, sale_values, sku_columns
from springtide.drivers.postgres_session import ROWS_MAX, PostgresSession, query, require_few
from springtide.errors import LedgerError
from springtide.model import ApiKey, Order, OrderQuery, RefundDue, Restock, Sale, SaleRecord, SaleStage, Sku, TokenRing

API_KEYS_MAX: Final = 1000
"""The most keys of the merchant's API that may exist, the revoked ones included."""


class MerchantTables(PostgresSession):
    """The part of `ports.Ledger` that the merchant's API stands on."""

    async def publish(self, sale: Sale) -> None:
        async with self._session() as connection, connection.transaction():
            if await connection.fetchval(query("publish_sale"), *sale_values(sale)) is not None:
                await _replace_skus(connection, sale)

    async def create_sale(self, sale: Sale) -> bool:
        async with self._session() as connection, connection.transaction():
            created = await connection.fetchval(query("create_sale"), *sale_values(sale)) is not None
            if created:
                await _replace_skus(connection, sale)
            return created

    async def change_sale(self, sale: Sale, revision: int) -> bool:
        async with self._session() as connection, connection.transaction():
            now = await connection.fetchrow(query("lock_sale"), sale.sale)
            if now is None:
                raise LedgerError(f"there is no sale {sale.sale} to change; create it first")
            if now["revision"] != revision:
                return False
            await _change(connection, sale, now)
            return True

    async def close_sale(self, sale: str) -> None:
        async with self._session() as connection:
            await connection.execute(query("close_sale"), sale)

    async def sale_record(self, sale: str) -> SaleRecord | None:
        records = await self._sale_records("sale_record", sale)
        return records[0] if records else None

    async def sale_records(self, after: str, count: int) -> list[SaleRecord]:
        return await self._sale_records("sale_records", after, count)

    async def _sale_records(self, name: str, *values: str | int) -> list[SaleRecord]:
        # One snapshot: a sale that changes between the two queries would be read with SKUs of another revision.
        async with self._session() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
            sales = await connection.fetch(query(name), *values)
            skus = await connection.fetch(query("skus_of_sales"), [row["sale"] for row in sales])
        return sale_records_of(sales, skus)

    async def add_restock(self, restock: Restock) -> bool:
        async with self._session() as connection, connection.transaction():
            sale = await connection.fetchrow(query("lock_sale"), restock.sale)
            known = await connection.fetchrow(query("restock"), restock.restock_id)
            if known is not None:
                if Restock(**known) != restock:
                    raise LedgerError(f"restock {restock.restock_id} is another one; give this one an id of its own")
                return False
            if sale is None or sale["stage"] != SaleStage.PUBLISHED:
                stage = "unknown" if sale is None else f"a {sale['stage']} one"
                raise LedgerError(f"sale {restock.sale} is {stage}; only a published sale is restocked")
            if restock.sku not in await _sku_names(connection, restock.sale):
                raise LedgerError(f"sale {restock.sale} has no SKU {restock.sku}; add it to the sale first")
            values = (restock.restock_id, restock.sale, restock.sku, restock.quantity)
            return await connection.fetchval(query("add_restock"), *values) is not None

    async def open_restocks(self, count: int) -> list[Restock]:
        async with self._session() as connection:
            return [Restock(**row) for row in await connection.fetch(query("open_restocks"), count)]

    async def close_restocks(self, restock_ids: Sequence[str]) -> None:
        require_few(restock_ids)
        async with self._session() as connection:
            await connection.execute(query("close_restocks"), list(restock_ids))

    async def search_orders(self, wanted: OrderQuery) -> list[Order]:
        state = "" if wanted.state is None else wanted.state.value
        values = [wanted.sale, wanted.after, wanted.sku, state, min(wanted.count, ROWS_MAX)]
        name = "search_orders"
        if wanted.order_id:
            name = "search_one_order"
            values.append(wanted.order_id)
        elif wanted.buyer:
            name = "search_orders_of_buyer"
            values.append(wanted.buyer)
        async with self._session() as connection:
            found = [order_of(row) for row in await connection.fetch(query(name), *values)]
        return [one for one in found if wanted.buyer in {"", one.reservation.buyer}]

    async def refunds(self, sale: str, after: str, count: int) -> list[RefundDue]:
        async with self._session() as connection:
            return [RefundDue(**row) for row in await connection.fetch(query("refunds"), sale, after, count)]

    async def see_refund(self, payment_id: str) -> bool:
        async with self._session() as connection:
            return await connection.fetchval(query("see_refund"), payment_id) is not None

    async def add_api_key(self, key: ApiKey) -> None:
        values = (key.key_id, key.name, key.role.value, key.secret_sha256, key.created_ms, key.revoked_ms)
        async with self._session() as connection, connection.transaction():
            await connection.execute(query("api_keys_lock"))
            if rows_in(await connection.execute(query("add_api_key"), *values, API_KEYS_MAX)):
                return
            known = await connection.fetchrow(query("api_key"), key.key_id)
        if known is None:
            raise LedgerError(f"there are {API_KEYS_MAX} keys already, which is the most; revoked ones count too")
        if api_key_of(known) != key:
            raise LedgerError(f"the key id {key.key_id} is taken; make another")

    async def api_keys(self) -> list[ApiKey]:
        async with self._session() as connection:
            return [api_key_of(row) for row in await connection.fetch(query("api_keys"))]

    async def revoke_api_key(self, key_id: str) -> bool:
        async with self._session() as connection:
            return await connection.fetchval(query("revoke_api_key"), key_id) is not None

    async def token_ring(self) -> TokenRing:
        async with self._session() as connection:
            row = await connection.fetchrow(query("token_ring"))
        return TokenRing(1, 1) if row is None else TokenRing(**row)

    async def set_token_ring(self, ring: TokenRing) -> None:
        async with self._session() as connection:
            await connection.execute(query("set_token_ring"), ring.oldest, ring.newest)


async def _change(connection: PoolConnectionProxy, sale: Sale, now: asyncpg.Record) -> None:
    """Replace a definition, as far as its stage lets it be."""
    stage = SaleStage(now["stage"])
    if stage is SaleStage.CLOSED:
        if sale.epoch <= now["epoch"]:
            raise LedgerError(f"sale {sale.sale} is closed for good; create another one")
        await connection.execute(query("change_epoch"), sale.sale, sale.epoch)
    elif stage is SaleStage.DRAFT:
        await connection.execute(query("change_sale"), *sale_values(sale))
        await _replace_skus(connection, sale)
    else:
        skus = await _kept_skus(connection, sale)
        kept = msgspec.structs.replace(sale, epoch=max(sale.epoch, now["epoch"]), buckets=now["buckets"])
        await connection.execute(query("change_sale"), *sale_values(kept))
        await connection.execute(query("put_skus"), sale.sale, *sku_columns(skus))


async def _replace_skus(connection: PoolConnectionProxy, sale: Sale) -> None:
    await connection.execute(query("remove_skus"), sale.sale)
    await connection.execute(query("put_skus"), sale.sale, *sku_columns(sale.skus))


async def _sku_names(connection: PoolConnectionProxy, sale: str) -> set[str]:
    return {row["sku"] for row in await connection.fetch(query("sku_names"), sale)}


async def _kept_skus(connection: PoolConnectionProxy, sale: Sale) -> list[Sku]:
    """The SKUs that a published sale is to have. The new ones begin with nothing: stock comes by restocks."""
    before = await _sku_names(connection, sale.sale)
    if gone := sorted(before - {sku.sku for sku in sale.skus}):
        raise LedgerError(f"sale {sale.sale} would lose {', '.join(gone)}; a SKU that is published stays")
    return [sku if sku.sku in before else msgspec.structs.replace(sku, stock=0) for sku in sale.skus]
