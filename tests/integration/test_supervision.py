"""Engines that die are started again on their data, and clients find them; a full disk stops the selling first."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from springtide.cli import supervisor as supervision
from springtide.cli.stores import Given, Places, Stores, start_stores
from springtide.cli.supervisor import Supervisor, starts
from springtide.config import InventorySettings
from springtide.drivers import small_disk
from springtide.drivers.child import Child, spawn
from springtide.drivers.disk_guard import DiskGuard
from springtide.drivers.embedded_valkey import start_valkey
from springtide.drivers.run_folder import MARK, make_run_folder, release, sweep
from springtide.drivers.small_disk import Ballast, mount_small_disk
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey import ValkeyInventory
from springtide.errors import InventoryError, InventoryUnavailable, LedgerError, UserError
from springtide.model import ReserveRequest, ReserveStatus, Sale, StockReturn
from tests.integration.order_path import now_ms, small_sale

CLOCK = SystemClock()
MB = 1_048_576
SMALL = InventorySettings(disk_reserve_mb=16)


async def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        await asyncio.sleep(0.01)


async def answered(call: Callable[[], Awaitable[object]], seconds: float = 20.0) -> int:
    """Repeat a call, as its port allows, until it is answered; how often it failed."""
    end = time.monotonic() + seconds
    failures = 0
    while True:
        try:
            await call()
        except (InventoryError, LedgerError):
            failures += 1
            assert time.monotonic() < end, "it was never answered"
            await asyncio.sleep(0.02)
        else:
            return failures


def wanted(buyer: str, sale: Sale) -> ReserveRequest:
    return ReserveRequest(buyer, "k", "tea", 1, f"o-{buyer}", sale.epoch, now_ms() + 30_000)


async def bought(inventory: ValkeyInventory, sale: Sale, buyer: str) -> ReserveStatus:
    (result,) = await inventory.reserve(sale.sale, 0, [wanted(buyer, sale)])
    return result.status


# --- supervision ----------------------------------------------------------------------------------


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    async with AsyncExitStack() as stack:
        (tmp_path / "valkey").mkdir()
        yield await start_stores(stack, CLOCK, Given(), Places(tmp_path / "valkey"), SMALL)


async def test_killed_engines_come_back_with_their_data_and_their_clients_find_them(stores: Stores) -> None:
    sale = small_sale("live", buckets=1)
    await stores.inventory.publish(sale)
    await stores.ledger.publish(sale)
    assert await bought(stores.inventory, sale, "ann") is ReserveStatus.RESERVED
    assert stores.valkey is not None
    assert stores.postgres is not None
    before = {stores.valkey.child.pid, stores.postgres.child.pid}
    for engine in (stores.valkey, stores.postgres):
        engine.child.signal(signal.SIGKILL)

    await answered(lambda: stores.ledger.sale_records("", 10))
    await until(lambda: stores.valkey is not None and stores.valkey.running and stores.valkey.restarts == 1)
    await answered(stores.inventory.sales)
    assert await bought(stores.inventory, sale, "ann") is ReserveStatus.REPEATED
    assert [record.sale.sale for record in await stores.ledger.sale_records("", 10)] == ["live"]
    assert not before & {stores.valkey.child.pid, stores.postgres.child.pid}


async def test_a_frozen_valkey_times_out_and_recovers(stores: Stores) -> None:
    assert stores.valkey is not None
    pid = stores.valkey.child.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(InventoryError):
            await stores.inventory.sales()
    finally:
        os.kill(pid, signal.SIGCONT)
    await answered(stores.inventory.sales)
    assert (stores.valkey.child.pid, stores.valkey.restarts) == (pid, 0)


async def test_a_world_may_stand_on_engines_of_somebody_else(stores: Stores, tmp_path: Path) -> None:
    given = Given(stores.address, stores.ledger_dsn)
    async with AsyncExitStack() as stack:
        other = await start_stores(stack, CLOCK, given, Places(tmp_path / "unused"), SMALL)
        assert (other.valkey, other.postgres, other.guard) == (None, None, None)
        sale = small_sale("other", buckets=1)
        await other.inventory.publish(sale)
        await other.ledger.publish(sale)
    assert await stores.inventory.sales() == ["other"]
    with pytest.raises(UserError, match="HOST:PORT"):
        await start_stores(AsyncExitStack(), CLOCK, Given("nowhere"), Places(tmp_path), SMALL)


async def test_a_process_that_keeps_dying_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "RESTARTS_MAX", 3)
    monkeypatch.setattr(supervision, "BACKOFF_S", 0.01)

    def dying() -> Child:
        return spawn("dying", ["false"], tmp_path / "log")

    supervisor = Supervisor("dying", starts(dying), CLOCK)
    await supervisor.start()
    await until(lambda: supervisor.given_up)
    assert supervisor.restarts == 3
    await supervisor.stop(1.0)


# --- the disk -------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(small_disk.missing()), reason=small_disk.missing() or "possible")
async def test_a_full_disk_stops_the_selling_and_not_valkey(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        run = make_run_folder()
        stack.callback(release, run)
        mount_small_disk(run / "disk.img", run / "valkey", 64)
        server = await start_valkey(run / "valkey", CLOCK)
        stack.push_async_callback(server.stop)
        guard = DiskGuard(run / "valkey", 16 * MB, (server.host, server.port), CLOCK)
        await guard.start()
        stack.push_async_callback(guard.close)
        inventory = await ValkeyInventory.connect(server.host, server.port, CLOCK)
        stack.push_async_callback(inventory.close)
        sale = small_sale("live", buckets=1)
        await inventory.publish(sale)
        assert await bought(inventory, sale, "ann") is ReserveStatus.RESERVED

        ballast = Ballast(run / "valkey")
        ballast.leave(4 * MB)
        await until(lambda: guard.figures.refusing)
        await asyncio.sleep(0.1)
        with pytest.raises(InventoryUnavailable):
            await bought(inventory, sale, "bob")
        entries = await inventory.read_journal("live", 0, "recorder", 10)
        await inventory.acknowledge("live", 0, [entry.entry_id for entry in entries])
        assert await inventory.give_back(StockReturn("o-ann", "live", 0, "ann", "tea", 1))
        assert await inventory.view("live") is not None

        # One that is started again while the disk is full does not know of the limit, and is told.
        await server.restart()
        await answered(inventory.sales)
        await asyncio.sleep(0.3)
        with pytest.raises(InventoryUnavailable):
            await bought(inventory, sale, "bob")

        ballast.drop()
        await until(lambda: not guard.figures.refusing)
        await answered(lambda: bought(inventory, sale, "cid"))
        assert guard.figures.refusals == 1


# --- what killed runs leave -----------------------------------------------------------------------


def test_a_sweep_removes_what_a_killed_run_left_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine, killed, unmarked = make_run_folder(), make_run_folder("pg-"), tmp_path / "springtide-somebody"
    unmarked.mkdir()
    (killed / "data").mkdir()
    owner = (killed / MARK).read_text()
    pid = f'"pid":{os.getpid()}'
    assert pid in owner
    (killed / MARK).write_text(owner.replace(pid, '"pid":4194303'))
    assert sweep(lambda _: None) == [killed]
    assert mine.exists()
    assert unmarked.exists()
    assert not killed.exists()


def test_a_folder_that_a_process_works_in_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed = make_run_folder()
    (killed / MARK).write_text((killed / MARK).read_text().replace(f'"pid":{os.getpid()}', '"pid":4194303'))
    monkeypatch.chdir(killed)
    assert sweep(lambda _: None) == []
    monkeypatch.chdir(tmp_path)
    assert sweep(lambda _: None) == [killed]
