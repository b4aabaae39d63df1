"""The ledger on PostgreSQL. Queries are in `sql/queries.sql`, the schema in the numbered files there."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from importlib.resources import files
from typing import Self

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from springtide.errors import LedgerError, LedgerUnavailable
from springtide.model import (
    JournalEntry,
    Order,
    OrderState,
    Payment,
    PaymentOutcome,
    Reservation,
    Sale,
    SkuTotals,
    StockReturn,
)
from springtide.ports import Clock

CONNECTIONS_MAX = 8
"""Queries in flight at once; a call that finds all connections busy waits within its time limit."""

ANSWER_S = 15.0
"""How long a call may take, the wait for a connection included, before the ledger counts as unavailable."""

_ROWS_MAX = 100_000
"""The most rows that one call records or closes."""

_UNAVAILABLE = (
    OSError,  # refused, reset, no such socket; TimeoutError is one of them
    asyncpg.InterfaceError,  # the connection or the pool was closed under the call
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,  # starting up or shutting down
    asyncpg.OperatorInterventionError,  # shut down, cancelled by an administrator, or a crash
    asyncpg.InsufficientResourcesError,  # too many connections, disk full, out of memory
    asyncpg.TransactionRollbackError,  # deadlock or serialization: repeat it
    asyncpg.InternalClientError,  # the connection broke in the middle of an answer
)


@cache
def _queries() -> dict[str, str]:
    text = (files("springtide.drivers") / "sql" / "queries.sql").read_text(encoding="utf-8")
    blocks = (block.split("\n", 1) for block in text.split("-- name: ")[1:])
    return {name.strip(): query.strip() for name, query in blocks}


def _query(name: str) -> str:
    return _queries()[name]


def _migrations() -> dict[str, str]:
    folder = files("springtide.drivers") / "sql"
    found = {item.name: item for item in folder.iterdir() if item.name[:4].isdigit() and item.name.endswith(".sql")}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found)}


@contextmanager
def _translated() -> Iterator[None]:
    """The one place where the client's errors become ours."""
    try:
        yield
    except _UNAVAILABLE as error:
        raise LedgerUnavailable(f"the ledger cannot be reached ({_first_line(error)}); repeat the call") from error
    except asyncpg.NotNullViolationError as error:
        raise LedgerError("an order names a sale or SKU that the ledger does not have; publish it first") from error
    except asyncpg.UndefinedTableError as error:
        raise LedgerError(f"the ledger has no schema ({_first_line(error)}); run the migrations first") from error
    except asyncpg.PostgresError as error:
        raise LedgerError(f"the ledger refused the call: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0]


async def migrate(dsn: str) -> list[str]:
    """Bring the schema up to date, once however many call it; the names of the migrations applied now.

    Raises LedgerUnavailable, and LedgerError when a newer version has migrated the database.
    """
    with _translated():
        connection = await asyncpg.connect(dsn, timeout=ANSWER_S)
        try:
            async with connection.transaction():
                return await _apply(connection)
        finally:
            await connection.close(timeout=ANSWER_S)


async def _apply(connection: asyncpg.Connection) -> list[str]:
    await connection.execute(_query("migrations_lock"))
    await connection.execute(_query("migrations_table"))
    known = _migrations()
    applied = {row["name"] for row in await connection.fetch(_query("migrations_applied"))}
    if unknown := sorted(applied - known.keys()):
        raise LedgerError(f"the ledger was migrated by a newer version ({', '.join(unknown)}); use that version")
    new = [name for name in known if name not in applied]
    for name in new:
        await connection.execute(known[name])
        await connection.execute(_query("migration_done"), name)
    return new


class PostgresLedger:
    """`ports.Ledger` on PostgreSQL 16 or newer. Pooled connections are renewed after a failure."""

    def __init__(self, pool: asyncpg.Pool, clock: Clock, answer_s: float) -> None:
        """Use `connect`."""
        self._pool = pool
        self._clock = clock
        self._answer_s = answer_s

    @classmethod
    async def connect(
        cls, dsn: str, clock: Clock, connections_max: int = CONNECTIONS_MAX, answer_s: float = ANSWER_S
    ) -> Self:
        """Connect to a database that `migrate` has prepared. Raises LedgerUnavailable."""
        with _translated():
            pool = await asyncpg.create_pool(
                dsn, min_size=1, max_size=connections_max, timeout=answer_s, reset=_nothing_to_reset
            )
        return cls(pool, clock, answer_s)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[PoolConnectionProxy]:
        """A connection for one call, which has `answer_s` in all."""
        with _translated():
            async with (
                self._clock.timeout(self._answer_s),
                # The limit is for giving it back as well, which would wait for a frozen server.
                self._pool.acquire(timeout=self._answer_s) as connection,
            ):
                yield connection

    async def publish(self, sale: Sale) -> None:
        values = (
            sale.sale,
            sale.title,
            sale.opens_ms,
            sale.closes_ms,
            sale.hold_ms,
            sale.epoch,
            sale.buckets,
        )
        columns = (
            [sku.sku for sku in sale.skus],
            [sku.title for sku in sale.skus],
            [sku.price_fen for sku in sale.skus],
            [sku.stock for sku in sale.skus],
            [sku.per_buyer_max for sku in sale.skus],
        )
        async with self._session() as connection, connection.transaction():
            if await connection.fetchval(_query("publish_sale"), *values) is not None:
                await connection.execute(_query("publish_skus"), sale.sale, *columns)

    async def record(self, reservations: Sequence[Reservation]) -> int:
        _require_few(reservations)
        columns = (
            [one.order_id for one in reservations],
            [one.sale for one in reservations],
            [one.bucket for one in reservations],
            [one.buyer for one in reservations],
            [one.key for one in reservations],
            [one.sku for one in reservations],
            [one.quantity for one in reservations],
            [one.reserved_ms for one in reservations],
            [one.pay_by_ms for one in reservations],
        )
        async with self._session() as connection:
            status: str = await connection.execute(_query("record_orders"), *columns)
        return _rows(status)

    async def record_entries(self, sale: str, bucket: int, entries: Sequence[JournalEntry]) -> int:
        if not entries:
            return 0
        reservations = [one for entry in entries for one in entry.reservations]
        _require_few(reservations)
        columns = (
            [one.order_id for one in reservations],
            [one.buyer for one in reservations],
            [one.key for one in reservations],
            [one.sku for one in reservations],
            [one.quantity for one in reservations],
            [one.reserved_ms for one in reservations],
            [one.pay_by_ms for one in reservations],
        )
        values = (sale, bucket, *columns, entries[-1].entry_id)
        async with self._session() as connection:
            try:
                return int(await connection.fetchval(_query("record_new_entries"), *values))
            except asyncpg.UniqueViolationError:  # some are there already
                return int(await connection.fetchval(_query("record_entries"), *values))

    async def pay(self, payment: Payment) -> PaymentOutcome:
        async with self._session() as connection, connection.transaction():
            order = await connection.fetchrow(_query("lock_order"), payment.order_id, payment.sale, payment.buyer)
            # Looked up behind the lock: the same payment said twice at once finds its first outcome here.
            known = await connection.fetchval(_query("payment_outcome"), payment.payment_id)
            if known is not None:
                return PaymentOutcome(known)
            if order is None:
                return PaymentOutcome.UNKNOWN_ORDER
            outcome = _outcome(OrderState(order["state"]), order["due_fen"], payment.amount_fen)
            values = (payment.payment_id, payment.order_id, payment.amount_fen, outcome.value)
            if await connection.fetchval(_query("add_payment"), *values) is None:
                raise LedgerUnavailable(f"payment {payment.payment_id} names two orders at once; repeat the call")
            if outcome is PaymentOutcome.ACCEPTED:
                await connection.execute(_query("mark_paid"), payment.order_id)
            return outcome

    async def cancel(self, order_id: str) -> OrderState | None:
        async with self._session() as connection:
            await connection.execute(_query("cancel_order"), order_id)
            state = await connection.fetchval(_query("order_state"), order_id)
        return None if state is None else OrderState(state)

    async def expire_due(self, grace_ms: int, count: int) -> int:
        async with self._session() as connection:
            return int(await connection.fetchval(_query("expire_due"), grace_ms, count))

    async def returns(self, count: int) -> list[StockReturn]:
        async with self._session() as connection:
            return [StockReturn(**row) for row in await connection.fetch(_query("open_returns"), count)]

    async def close_returns(self, order_ids: Sequence[str]) -> None:
        _require_few(order_ids)
        async with self._session() as connection:
            await connection.execute(_query("close_returns"), list(order_ids))

    async def order(self, order_id: str) -> Order | None:
        async with self._session() as connection:
            row = await connection.fetchrow(_query("one_order"), order_id)
        return None if row is None else _order(row)

    async def orders(self, sale: str) -> list[Order]:
        async with self._session() as connection:
            return [_order(row) for row in await connection.fetch(_query("orders_of_sale"), sale)]

    async def totals(self, sale: str) -> list[SkuTotals]:
        async with self._session() as connection:
            return [SkuTotals(**row) for row in await connection.fetch(_query("totals"), sale)]

    async def positions(self, sale: str) -> dict[int, str]:
        async with self._session() as connection:
            rows = await connection.fetch(_query("positions"), sale)
        return {row["bucket"]: row["entry_id"] for row in rows}

    async def close(self) -> None:
        """Let go of the connections: those in use get a moment to finish."""
        try:
            async with self._clock.timeout(self._answer_s):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()


async def _nothing_to_reset(_: asyncpg.Connection) -> None:
    """No call leaves anything in its session, and resetting one costs a round trip for each call."""


def _outcome(state: OrderState, due_fen: int, amount_fen: int) -> PaymentOutcome:
    if amount_fen != due_fen:
        return PaymentOutcome.AMOUNT_DIFFERS
    return PaymentOutcome.ACCEPTED if state is OrderState.RESERVED else PaymentOutcome.REFUND_DUE


def _order(row: asyncpg.Record) -> Order:
    values = dict(row)
    state, price_fen = OrderState(values.pop("state")), values.pop("price_fen")
    return Order(Reservation(**values), state, price_fen)


def _rows(status: str) -> int:
    """The count in a command tag such as `INSERT 0 500`."""
    return int(status.rsplit(" ", 1)[-1])


def _require_few(rows: Sequence[object]) -> None:
    if len(rows) > _ROWS_MAX:
        raise LedgerError(f"{len(rows)} rows are too many for one call; give at most {_ROWS_MAX} at a time")
