"""PostgreSQL in three zones: what is committed survives any one of them, and nobody writes beside the primary."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import pytest

from springtide.drivers import postgres_servers
from springtide.drivers.embedded_postgres_group import EmbeddedPostgresGroup, start_postgres_group
from springtide.drivers.postgres import PostgresLedger, migrate
from springtide.drivers.postgres_keeper import Primacy, PrimacyFile
from springtide.drivers.postgres_member import Member
from springtide.drivers.system import SystemClock
from springtide.errors import EngineError, LedgerUnavailable
from springtide.model import JournalEntry, Payment, PaymentOutcome, Reservation, Sale, Sku

CLOCK = SystemClock()
SALE = Sale("live", "Live", (Sku("tea", "Tea", 500, 100),), 0, 2_000_000_000_000, 2_000_000_000_000)
FAR_MS = 2_000_000_000_000


def order(number: int) -> Reservation:
    return Reservation(f"o{number}", "live", 0, f"b{number}", "k", "tea", 1, 1, FAR_MS)


def entry(number: int) -> JournalEntry:
    return JournalEntry(f"{number}-0", (order(number),))


def strike(member: Member, number: signal.Signals) -> None:
    for pid in member.engine.processes():
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@asynccontextmanager
async def started(folder: Path | None = None, *, kills: bool = True) -> AsyncIterator[EmbeddedPostgresGroup]:
    group = await start_postgres_group(CLOCK, folder, kills=kills)
    try:
        yield group
    finally:
        for member in group.members.values():
            strike(member, signal.SIGCONT)
        await group.stop()
        assert not any(member.runs for member in group.members.values())


@asynccontextmanager
async def ledger_of(group: EmbeddedPostgresGroup, answer_s: float = 2.0) -> AsyncIterator[PostgresLedger]:
    await migrate(group.dsn)
    ledger = await PostgresLedger.connect(group.dsn, CLOCK, answer_s=answer_s)
    try:
        await ledger.publish(SALE)
        yield ledger
    finally:
        await ledger.close()


async def until_done(call: Callable[[], Awaitable[object]], seconds: float = 30.0) -> object:
    """Repeat a call of the ledger until it is answered, as its callers do."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            return await call()
        except LedgerUnavailable:
            assert time.monotonic() < give_up, "the ledger did not come back"
            await asyncio.sleep(0.1)


async def until(done: Callable[[], bool], seconds: float = 30.0) -> None:
    give_up = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < give_up, "it did not come to pass"
        await asyncio.sleep(0.05)


def test_of_the_zones_two_to_five_must_differ() -> None:
    for zones in (("a",), ("a", "a", "b"), tuple("abcdef")):
        with pytest.raises(EngineError, match="2 to 5 different zones"):
            asyncio.run(start_postgres_group(CLOCK, zones=zones))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_what_was_answered_is_there_when_the_primary_is_lost_and_work_goes_on(how: signal.Signals) -> None:
    async with started() as group, ledger_of(group) as ledger:
        lost = group.primary
        await ledger.record_entries("live", 0, [entry(1)])
        assert await ledger.pay(Payment("p1", "o1", "live", "b1", 500)) is PaymentOutcome.ACCEPTED

        strike(lost, how)
        await until_done(lambda: ledger.record_entries("live", 0, [entry(2)]))

        assert group.primary is not lost
        assert group.keeper.failovers == 1
        assert [one.reservation.order_id for one in await ledger.orders("live")] == ["o1", "o2"]
        # The same payment said again is answered the same, by the new primary.
        assert await ledger.pay(Payment("p1", "o1", "live", "b1", 500)) is PaymentOutcome.ACCEPTED
        await group.until_sound()
        status = await lost.status()
        assert status is not None
        assert status.standby
        await until(lambda: not group.keeper.alarm)


async def test_an_old_primary_that_wakes_up_answers_nothing_and_what_it_wrote_alone_goes() -> None:
    async with started(kills=False) as group, ledger_of(group) as ledger:
        old = group.primary
        await ledger.record([order(1)])
        group.keeper.away.add(old.name)
        strike(old, signal.SIGSTOP)
        await until_done(lambda: ledger.record([order(2)]))
        strike(old, signal.SIGCONT)

        connection = await asyncpg.connect(old.engine.dsn)
        assert not await connection.fetchval("SELECT pg_is_in_recovery()")
        with pytest.raises(TimeoutError):
            await connection.execute("UPDATE orders SET buyer = 'alone' WHERE order_id = 'o1'", timeout=1.5)
        # Written there, but never answered. (To be answered was cancelled, so it shows there now.)
        assert await connection.fetchval("SELECT buyer FROM orders WHERE order_id = 'o1'") == "alone"
        connection.terminate()
        # Whoever connects is led to the new one, although both say that they take writes.
        found = await postgres_servers.connect(group.dsn, clock=CLOCK, timeout=5.0)
        assert await found.fetchval("SELECT buyer FROM orders WHERE order_id = 'o1'") == "b1"
        await found.close()

        group.keeper.away.discard(old.name)
        await group.until_sound()
        again = await asyncpg.connect(old.engine.dsn)
        assert await again.fetchval("SELECT pg_is_in_recovery()")
        assert await again.fetchval("SELECT buyer FROM orders WHERE order_id = 'o1'") == "b1"
        await again.close()


async def test_a_hiccup_and_the_loss_of_a_standby_change_nothing_and_without_standbys_nothing_is_answered() -> None:
    async with started() as group, ledger_of(group) as ledger:
        primary = group.primary
        standbys = [member for member in group.members.values() if member is not primary]

        strike(primary, signal.SIGSTOP)
        await asyncio.sleep(1.0)
        strike(primary, signal.SIGCONT)
        await ledger.record_entries("live", 0, [entry(1)])
        for standby in standbys:
            group.keeper.away.add(standby.name)
        strike(standbys[0], signal.SIGKILL)
        await ledger.record_entries("live", 0, [entry(2)])
        assert (group.primary, group.keeper.failovers) == (primary, 0)

        strike(standbys[1], signal.SIGKILL)
        await until(lambda: not standbys[1].runs)
        # Also a repetition, which finds all of it there: what is answered is on two disks.
        for _ in range(2):
            with pytest.raises(LedgerUnavailable):
                await ledger.record_entries("live", 0, [entry(3)])
        await until(lambda: "commits nothing" in group.keeper.alarm)

        # Nor does anybody take over: the primary comes back where it was, with what it has.
        strike(primary, signal.SIGKILL)
        await until(lambda: primary.runs)
        assert (group.primary, group.keeper.failovers) == (primary, 0)
        group.keeper.away.clear()
        await until_done(lambda: ledger.record_entries("live", 0, [entry(3)]))
        assert [one.reservation.order_id for one in await ledger.orders("live")] == ["o1", "o2", "o3"]
        await group.until_sound()
        await until(lambda: not group.keeper.alarm)


async def test_copies_that_lost_their_power_find_their_places_again(short_dir: Path) -> None:
    async with started(short_dir / "pg") as group, ledger_of(group) as ledger:
        first = group.primary.name
        strike(group.primary, signal.SIGKILL)
        await until_done(lambda: ledger.record([order(1)]))
        second = group.primary.name
        await group.until_sound()
    assert second != first

    # A failover was written down, and everything ended before it was done.
    third = next(name for name in group.members if name not in {first, second})
    file = PrimacyFile(short_dir / "pg" / "primary.json")
    file.write(Primacy(third, 3))
    async with started(short_dir / "pg") as group, ledger_of(group) as ledger:
        assert group.primary.name == third
        assert await ledger.record([order(1), order(2)]) == 1
        await group.until_sound()


async def test_copies_without_their_file_are_left_alone(short_dir: Path) -> None:
    async with started(short_dir / "pg"):
        pass
    (short_dir / "pg" / "primary.json").unlink()
    with pytest.raises(EngineError, match=r"primary\.json is gone"):
        await start_postgres_group(CLOCK, short_dir / "pg")
