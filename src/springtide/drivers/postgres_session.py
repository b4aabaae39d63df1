"""A pool of connections to PostgreSQL, the named queries and the migrations: what the parts of the ledger stand on.

Queries are in `sql/queries.sql`, the schema in the numbered files there. An address may name several servers that hold
copies of one database (`host=/a,/b` or `a:5432,b:5432`): connections then go to the one that takes writes.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cache, partial
from importlib.resources import files
from typing import Self

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from springtide.drivers import postgres_servers
from springtide.drivers.system import SystemClock
from springtide.errors import LedgerError, LedgerUnavailable
from springtide.ports import Clock

CONNECTIONS_MAX = 8
"""Queries in flight at once; a call that finds all connections busy waits within its time limit."""

ANSWER_S = 15.0
"""How long a call may take, the wait for a connection included, before the ledger counts as unavailable."""

ROWS_MAX = 100_000
"""The most rows that one call records or closes."""

_WHEN_WE_VANISH = {
    "idle_in_transaction_session_timeout": "30s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
# The machine of a client that is lost inside a transaction would hold its row locks for hours by the defaults.

_UNAVAILABLE = (
    OSError,  # refused, reset, no such socket; TimeoutError is one of them
    asyncpg.InterfaceError,  # the connection or the pool was closed under the call
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,  # starting up or shutting down
    asyncpg.OperatorInterventionError,  # shut down, cancelled by an administrator, or a crash
    asyncpg.InsufficientResourcesError,  # too many connections, disk full, out of memory
    asyncpg.TransactionRollbackError,  # deadlock or serialization: repeat it
    asyncpg.InternalClientError,  # the connection broke in the middle of an answer
    asyncpg.ReadOnlySQLTransactionError,  # this server follows another one now
)


@cache
def queries() -> dict[str, str]:
    """The text of each named query."""
    text = (files("springtide.drivers") / "sql" / "queries.sql").read_text(encoding="utf-8")
    blocks = (block.split("\n", 1) for block in text.split("-- name: ")[1:])
    return {name.strip(): query.strip() for name, query in blocks}


def query(name: str) -> str:
    """The text of one of them."""
    return queries()[name]


def migrations() -> dict[str, str]:
    """The text of each migration by its name, in their order."""
    folder = files("springtide.drivers") / "sql"
    found = {item.name: item for item in folder.iterdir() if item.name[:4].isdigit() and item.name.endswith(".sql")}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found)}


@contextmanager
def translated() -> Iterator[None]:
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


async def migrate(dsn: str, clock: Clock | None = None) -> list[str]:
    """Bring the schema up to date, once however many call it; the names of the migrations applied now.

    Without a clock the system's is used.

    Raises LedgerUnavailable, and LedgerError when a newer version has migrated the database.
    """
    with translated():
        connection = await postgres_servers.connect(dsn, clock=clock or SystemClock(), timeout=ANSWER_S)
        try:
            async with connection.transaction():
                return await _apply(connection)
        finally:
            await connection.close(timeout=ANSWER_S)


async def _apply(connection: asyncpg.Connection) -> list[str]:
    await connection.execute(query("migrations_lock"))
    await connection.execute(query("migrations_table"))
    known = migrations()
    applied = {row["name"] for row in await connection.fetch(query("migrations_applied"))}
    if unknown := sorted(applied - known.keys()):
        raise LedgerError(f"the ledger was migrated by a newer version ({', '.join(unknown)}); use that version")
    new = [name for name in known if name not in applied]
    for name in new:
        await connection.execute(known[name])
        await connection.execute(query("migration_done"), name)
    return new


class PostgresSession:
    """The pool, and one connection of it for each call. Pooled connections are renewed after a failure."""

    def __init__(self, pool: asyncpg.Pool, clock: Clock, answer_s: float, *, several: bool = False) -> None:
        """Use `connect`. `several`: another server may take writes next time."""
        self._pool = pool
        self._several = several
        self._clock = clock
        self._answer_s = answer_s

    @classmethod
    async def connect(
        cls, dsn: str, clock: Clock, connections_max: int = CONNECTIONS_MAX, answer_s: float = ANSWER_S
    ) -> Self:
        """Connect to a database that `migrate` has prepared. Raises LedgerUnavailable."""
        with translated():
            pool = await asyncpg.create_pool(
                dsn,
                connect=partial(postgres_servers.connect, clock=clock),
                min_size=1,
                max_size=connections_max,
                timeout=answer_s,
                init=_prepared,
                reset=_nothing_to_reset,
                server_settings=_WHEN_WE_VANISH,
            )
        return cls(pool, clock, answer_s, several=len(postgres_servers.each_server(dsn)) > 1)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[PoolConnectionProxy]:
        """A connection for one call, which has `answer_s` in all."""
        with translated():
            try:
                async with (
                    self._clock.timeout(self._answer_s),
                    # The limit is for giving it back as well, which would wait for a frozen server.
                    self._pool.acquire(timeout=self._answer_s) as connection,
                ):
                    yield connection
            except (TimeoutError, asyncpg.ReadOnlySQLTransactionError):
                if self._several:  # the other connections may well be to the same server: look again for who writes
                    await self._pool.expire_connections()
                raise

    async def close(self) -> None:
        """Let go of the connections: those in use get a moment to finish."""
        try:
            async with self._clock.timeout(self._answer_s):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()


async def _prepared(connection: asyncpg.Connection) -> None:
    """Give a new connection the table that `record_new_entries` reads.

    It is nobody else's and goes with the connection, so its commit waits for no disk and no standby.
    """
    try:
        await connection.execute(f"BEGIN; SET LOCAL synchronous_commit = off; {query('staging_table')} COMMIT")
    except BaseException:
        connection.terminate()  # the pool would wait for it to say goodbye
        raise


async def _nothing_to_reset(_: asyncpg.Connection) -> None:
    """No call leaves anything in its session, and resetting one costs a round trip for each call."""


def require_few(rows: Sequence[object]) -> None:
    """Raise LedgerError for more rows than one call may have."""
    if len(rows) > ROWS_MAX:
        raise LedgerError(f"{len(rows)} rows are too many for one call; give at most {ROWS_MAX} at a time")
