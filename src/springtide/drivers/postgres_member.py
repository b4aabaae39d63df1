"""One copy of a replicated PostgreSQL: what it says of itself, how it is made to follow, to stop, or to take over."""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import asyncpg

from springtide.drivers.embedded_postgres import PORT, SUPERUSER, EmbeddedPostgres, Programs
from springtide.drivers.netns import Namespace
from springtide.errors import EngineError
from springtide.ports import Clock

ASK_S = 1.0
"""A server that does not say how it is in this time counts as silent."""

FENCE_S = 3.0
PROMOTE_S = 10.0
COPY_S = 600.0
"""A fresh copy of the whole database; one that takes longer is better made by hand."""

_WAL_KEEP = "512MB"
_POLL_S = 0.05
_STILL = 3
"""So many looks in a row must find a fenced copy's log of the same length: until then it reads what it has."""

_CLIENT_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_STATUS = """
SELECT pg_is_in_recovery() AS standby,
    (CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
        ELSE pg_current_wal_flush_lsn() END - '0/0'::pg_lsn)::bigint AS log,
    (SELECT count(*) FROM pg_stat_wal_receiver) AS receivers,
    (SELECT extract(epoch FROM clock_timestamp() - last_msg_receipt_time)::float8 FROM pg_stat_wal_receiver
        WHERE status = 'streaming') AS heard_s
"""


class Status(NamedTuple):
    """What a copy said: whether it follows, how far its log reaches, and when it last heard of its primary.

    `heard_s` is None when nothing comes from a primary; `receiving` is whether it still tries to get something.
    """

    standby: bool
    log: int
    receiving: bool
    heard_s: float | None


class Member:
    """One of the copies. `name` is its zone's; the process may be dead, frozen or out of reach at any moment."""

    def __init__(
        self,
        name: str,
        clock: Clock,
        home: Path,
        programs: Programs,
        node: Namespace | None,
        names: Sequence[str],
    ) -> None:
        """`names` are those of all copies, this one's included."""
        self.name = name
        self.engine = EmbeddedPostgres(clock, home, programs, node, ours=False, settings=_settings(name, names))
        self._clock = clock

    @property
    def created(self) -> bool:
        """Whether it has data."""
        return (self.engine.data / "PG_VERSION").exists()

    @property
    def follows(self) -> bool:
        """Whether it starts, or has started, as one that follows another."""
        return (self.engine.data / "standby.signal").exists()

    @property
    def runs(self) -> bool:
        """Whether there is a process; a frozen one is one as well."""
        return bool(self.engine.processes())

    async def status(self) -> Status | None:
        """None when it does not answer within ASK_S."""
        try:
            rows = await self._ask(_STATUS)
        except EngineError:
            return None
        [row] = rows
        return Status(row["standby"], row["log"] or 0, row["receivers"] > 0, row["heard_s"])

    async def ready(self) -> bool:
        """As a primary: whether copies enough follow for a commit to be answered."""
        query = "SELECT count(*) > 0 AS ready FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')"
        return bool((await self._ask(query))[0]["ready"])

    async def fence(self) -> int:
        """Make it listen to no primary any more, also after a restart; how far its log reaches. Raises EngineError."""
        await self.follow(None)
        until_s = self._clock.monotonic_s() + FENCE_S
        seen: list[int] = []
        while len(seen) < _STILL or len(set(seen[-_STILL:])) > 1:
            if self._clock.monotonic_s() > until_s:
                raise EngineError(f"PostgreSQL {self.name} did not stop listening to its primary in {FENCE_S:g} s")
            status = await self.status()
            if status is None or not status.standby:
                raise EngineError(f"PostgreSQL {self.name} cannot be kept from its primary: it does not answer as one")
            if not status.receiving:
                seen.append(status.log)
            await self._clock.sleep(_POLL_S)
        return seen[-1]

    async def follow(self, primary: "Member | None") -> None:
        """While it runs as a standby: listen to this primary, or to none. Raises EngineError."""
        whom = self._conninfo(primary).replace("'", "''")
        await self._ask(f"ALTER SYSTEM SET primary_conninfo = '{whom}'")
        await self._ask("SELECT pg_reload_conf()")

    async def promote(self) -> None:
        """Take over. Raises EngineError."""
        await self._ask("SELECT pg_promote(false)")
        until_s = self._clock.monotonic_s() + PROMOTE_S
        while (status := await self.status()) is None or status.standby:
            if self._clock.monotonic_s() > until_s:
                raise EngineError(f"PostgreSQL {self.name} did not take over in {PROMOTE_S:g} s; see {self.engine.log}")
            await self._clock.sleep(_POLL_S)

    async def start_as_standby(self, primary: "Member") -> None:
        """Start on the data that is there. Raises EngineError."""
        settings = self.engine.data / "postgresql.auto.conf"
        whom = self._conninfo(primary).replace("'", "''")
        settings.write_text(f"primary_conninfo = '{whom}'\n")
        signal = self.engine.data / "standby.signal"
        signal.touch()
        for path in (settings, signal):
            self.engine.give(path)
        await self.engine.start()

    async def rewind(self, primary: "Member") -> None:
        """While it is ended: forget what only it has, since its log parted from the primary's. Raises EngineError."""
        with (self.engine.data / "postgresql.auto.conf").open("a") as settings:
            # The recovery that pg_rewind runs first would throw away the very log that pg_rewind then reads.
            settings.write(f"wal_keep_size = {_WAL_KEEP}\n")
        await self.engine.run(
            "pg_rewind",
            f"--target-pgdata={self.engine.data}",
            f"--source-server={self._conninfo(primary)} dbname=postgres",
            seconds=COPY_S,
        )

    async def copy(self, primary: "Member") -> None:
        """While it is ended: throw away what it has and take all of the primary's. Raises EngineError."""
        await asyncio.to_thread(shutil.rmtree, self.engine.data, ignore_errors=True)
        await self.engine.run(
            "pg_basebackup",
            f"--pgdata={self.engine.data}",
            f"--dbname={self._conninfo(primary)}",
            "--wal-method=stream",
            "--checkpoint=fast",
            seconds=COPY_S,
        )

    def _conninfo(self, primary: "Member | None") -> str:
        if primary is None:
            return ""
        return f"host={primary.engine.host} port={PORT} user={SUPERUSER} application_name={self.name} connect_timeout=2"

    async def _ask(self, statement: str) -> list[asyncpg.Record]:
        try:
            async with self._clock.timeout(ASK_S):
                connection = await asyncpg.connect(self.engine.dsn, timeout=ASK_S, statement_cache_size=0)
                try:
                    return list(await connection.fetch(statement))
                finally:
                    connection.terminate()
        except _CLIENT_ERRORS as error:
            raise EngineError(f"PostgreSQL {self.name} does not do as told ({error}); see {self.engine.log}") from error


def _settings(name: str, names: Sequence[str]) -> dict[str, str]:
    others = ", ".join(f'"{other}"' for other in names if other != name)
    return {
        # A commit is answered when one more copy has it on disk, whichever. Never changed while it runs: an old
        # primary that nobody follows any more can so acknowledge nothing.
        "synchronous_standby_names": f"ANY 1 ({others})",
        "wal_keep_size": _WAL_KEEP,
        "wal_log_hints": "on",
        "wal_receiver_status_interval": "1s",
        "wal_receiver_timeout": "4s",
        "wal_sender_timeout": "5s",
        "wal_retrieve_retry_interval": "200ms",
    }
