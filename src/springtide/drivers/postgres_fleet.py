"""The fleet's state on PostgreSQL: one leader by a lease, what was begun, and what operators want.

Each write of a leader checks its term in the statement that writes: there is no moment between the two.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files

import msgspec
from asyncpg.pool import PoolConnectionProxy

from springtide.drivers.memory.fleet_state import changed, require_memory, wishes_of
from springtide.drivers.postgres_session import PostgresSession
from springtide.errors import Deposed, FleetStateError, LedgerError
from springtide.model import Intent, Leadership, Purchase, ScaleOverride, ServiceWish, Wishes, ZoneMode

CONNECTIONS_MAX = 4
"""Queries in flight at once: a loop asks for little, and one after the other."""

ANSWER_S = 5.0
"""How long a call may take; a loop gives its calls less."""


@cache
def _queries() -> dict[str, str]:
    text = (files("springtide.drivers") / "sql" / "fleet.sql").read_text(encoding="utf-8")
    blocks = (block.split("\n", 1) for block in text.split("-- name: ")[1:])
    return {name.strip(): query.strip() for name, query in blocks}


class PostgresFleetState(PostgresSession):
    """`ports.FleetState` on PostgreSQL 16 or newer, in a database that `migrate` has prepared. `connect` makes one."""

    async def lead(self, holder: str, lease_ms: int) -> Leadership:
        """See the port."""
        async with self._asked() as connection:
            taken = await connection.fetchrow(_queries()["lead"], holder, lease_ms)
            row = taken or await connection.fetchrow(_queries()["leader"])
        if row is None:
            raise FleetStateError("nobody leads and nobody took the lead; repeat the call")
        return Leadership(**row)

    async def resign(self, holder: str, term: int) -> None:
        """See the port."""
        async with self._asked() as connection:
            await connection.execute(_queries()["resign"], holder, term)

    async def begin(self, term: int, intents: Sequence[Intent]) -> None:
        """See the port."""
        columns = (
            [one.intent_id for one in intents],
            [one.service for one in intents],
            [one.action for one in intents],
            [one.at_ms for one in intents],
        )
        await self._written("begin", term, *columns)

    async def end(self, term: int, intent_ids: Sequence[str]) -> None:
        """See the port."""
        await self._written("end", term, list(intent_ids))

    async def open_intents(self) -> list[Intent]:
        """See the port."""
        async with self._asked() as connection:
            return [Intent(**row) for row in await connection.fetch(_queries()["open_intents"])]

    async def wishes(self) -> Wishes:
        """See the port."""
        async with self._asked() as connection:
            rows = await connection.fetch(_queries()["wishes"])
        return wishes_of((row["kind"], row["name"], row["value"]) for row in rows)

    async def wish_service(self, name: str, wish: ServiceWish | None) -> None:
        """See the port."""
        async with self._asked() as connection, connection.transaction():
            await connection.execute(_queries()["wish_version"])
            # Read behind the lock of the version's row: what another wished a moment ago is what is changed.
            before = await connection.fetchval(_queries()["wish"], "service", name)
            await _put(connection, "service", name, changed(before, wish))

    async def wish_mode(self, zone: str, mode: ZoneMode) -> None:
        """See the port."""
        async with self._asked() as connection, connection.transaction():
            await connection.execute(_queries()["wish_version"])
            await _put(connection, "mode", zone, msgspec.json.encode(mode).decode())

    async def wish_node(self, node_id: str, *, cordoned: bool) -> None:
        """See the port."""
        async with self._asked() as connection, connection.transaction():
            await connection.execute(_queries()["wish_version"])
            await _put(connection, "node", node_id, "true" if cordoned else None)

    async def wish_purchases(self, event: str, purchases: Sequence[Purchase] | None) -> None:
        """See the port."""
        value = None if purchases is None else msgspec.json.encode(purchases).decode()
        async with self._asked() as connection, connection.transaction():
            await connection.execute(_queries()["wish_version"])
            await _put(connection, "plan", event, value)

    async def wish_scale(self, service: str, scale: ScaleOverride | None) -> None:
        """See the port."""
        async with self._asked() as connection, connection.transaction():
            await connection.execute(_queries()["wish_version"])
            await _put(connection, "scale", service, msgspec.json.encode(scale).decode() if scale else None)

    async def remember(self, term: int, name: str, value: bytes) -> None:
        """See the port."""
        require_memory(name, value)
        await self._written("remember", term, name, value)

    async def recall(self, name: str) -> bytes | None:
        """See the port."""
        async with self._asked() as connection:
            value = await connection.fetchval(_queries()["recall"], name)
        return None if value is None else bytes(value)

    async def _written(self, query: str, term: int, *values: object) -> None:
        async with self._asked() as connection:
            leaders = await connection.fetchval(_queries()[query], term, *values)
        if not leaders:
            raise Deposed(f"term {term} is over: another control loop leads; stop acting, nothing was written")

    @asynccontextmanager
    async def _asked(self) -> AsyncIterator[PoolConnectionProxy]:
        """A connection for one call, with the errors of this port."""
        try:
            async with self._session() as connection:
                yield connection
        except LedgerError as error:
            cause = str(error.__cause__ or error).split("\n", 1)[0] or type(error.__cause__).__name__
            raise FleetStateError(f"the fleet's state does not answer ({cause}); repeat the call") from error


async def _put(connection: PoolConnectionProxy, kind: str, name: str, value: str | None) -> None:
    if value is None:
        await connection.execute(_queries()["remove_wish"], kind, name)
    else:
        await connection.execute(_queries()["put_wish"], kind, name, value)
