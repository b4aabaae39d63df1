"""One connection to whichever of several PostgreSQL servers takes writes now.

All are asked at once, so one that is frozen or cut off delays nobody. Of two that both say they take writes, one is an
old primary that does not know yet: the newer timeline wins (PostgreSQL, "Continuous archiving: timelines").
"""

import asyncio
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import asyncpg

from springtide.ports import Clock

SETTLE_S = 0.3
"""How long the other servers may still answer when one has said that it takes writes."""

SERVERS_MAX = 8
UNHEARD_MS = 5_000
"""What a server's machine does not acknowledge for so long (TCP_USER_TIMEOUT, tcp(7)) breaks the connection."""

_WHO = """
SELECT CASE WHEN pg_is_in_recovery() THEN 0
    ELSE (SELECT timeline_id FROM pg_split_walfile_name(pg_walfile_name(pg_current_wal_insert_lsn()))) END
"""


def each_server(dsn: str) -> list[str]:
    """The address of each server that an address with several hosts names; one of a single server is itself.

    Hosts stand in the place of the host, or, as folders of sockets have to, in the parameter `host`; with commas.
    """
    parts = urlsplit(dsn)
    query = dict(parse_qsl(parts.query))
    user, at, hosts = parts.netloc.rpartition("@")
    if hosts:
        return [parts._replace(netloc=f"{user}{at}{host}").geturl() for host in hosts.split(",")[:SERVERS_MAX]]
    return [
        parts._replace(query=urlencode(query | {"host": host})).geturl()
        for host in query.get("host", "").split(",")[:SERVERS_MAX]
    ]


async def connect(dsn: str, *, clock: Clock, timeout: float, **settings: Any) -> asyncpg.Connection:  # noqa: ANN401, ASYNC109 - the client's own parameters
    """As `asyncpg.connect`, on the server that takes writes. Raises its errors, of the last server that failed."""
    servers = each_server(dsn)
    if len(servers) == 1:
        return await asyncpg.connect(dsn, timeout=timeout, **settings)
    tries = [asyncio.ensure_future(_open(server, timeout, settings)) for server in servers]
    chosen: asyncpg.Connection | None = None
    try:
        chosen = await _first_writer(tries, clock)
    finally:
        await _let_go(tries, chosen)
    return chosen


async def _first_writer(
    tries: Sequence["asyncio.Task[tuple[int, asyncpg.Connection]]"], clock: Clock
) -> asyncpg.Connection:
    found: list[tuple[int, asyncpg.Connection]] = []
    waiting = set(tries)
    while waiting and not found:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        found += _writers(done)
    if waiting:
        with suppress(TimeoutError):
            async with clock.timeout(SETTLE_S):
                await asyncio.wait(waiting)
        found += _writers(one for one in waiting if one.done())
    if not found:
        raise _why(tries)
    return max(found, key=lambda one: one[0])[1]


def _writers(done: Iterable["asyncio.Task[tuple[int, asyncpg.Connection]]"]) -> list[tuple[int, asyncpg.Connection]]:
    return [one.result() for one in done if one.exception() is None and one.result()[0]]


async def _open(server: str, seconds: float, settings: dict[str, Any]) -> tuple[int, asyncpg.Connection]:
    """A connection and the timeline that the server writes; 0 when it takes no writes."""
    connection = await asyncpg.connect(server, timeout=seconds, **settings)
    try:
        line = connection._transport.get_extra_info("socket")  # noqa: SLF001 - the client offers no other way to it
        if line is not None and line.family != socket.AF_UNIX:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNHEARD_MS)
        return int(await connection.fetchval(_WHO, timeout=seconds)), connection
    except BaseException:
        connection.terminate()
        raise


async def _let_go(tries: Sequence["asyncio.Task[tuple[int, asyncpg.Connection]]"], keep: object) -> None:
    for one in tries:
        one.cancel()
    for answer in await asyncio.gather(*tries, return_exceptions=True):
        if not isinstance(answer, BaseException) and answer[1] is not keep:
            answer[1].terminate()


def _why(tries: Sequence["asyncio.Task[tuple[int, asyncpg.Connection]]"]) -> BaseException:
    errors = [error for one in tries if (error := one.exception()) is not None]
    if errors:
        return errors[-1]
    return ConnectionError("none of the servers takes writes now")
