"""`springtide run recorder | backoffice | crowd`: the processes behind and in front of the counters."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from typing_extensions import override

from springtide.cli.roles import announce as write_announcement
from springtide.cli.roles import read_settings, work_until_stopped
from springtide.drivers.postgres import PostgresLedger
from springtide.drivers.system import SystemClock, SystemIds, chance
from springtide.drivers.valkey import ValkeyInventory
from springtide.sale.backoffice import create_app, merchant_api
from springtide.sale.payments import Payments
from springtide.sale.recorder import Recorder
from springtide.sale.stock_keeper import StockKeeper
from springtide.twin.crowd.generator import run_crowd
from springtide.twin.crowd.spec import read_spec

ANNOUNCE_TIMEOUT_S = 20.0
STOP_S = 5
"""Requests that are under way when the back office is stopped have this long."""

CONSUMER = "recorder"
"""Stable, so that a restarted recorder finds its own unacknowledged entries at once; one recorder per bucket."""


async def run_recorder(settings_path: Path) -> int:
    """Record the journal and keep stock where it sells, until SIGTERM."""
    settings = read_settings(settings_path)
    clock = SystemClock()
    address = (settings.inventory_host, settings.inventory_port)
    inventory = await ValkeyInventory.connect(*address, clock, library=settings.functions())
    ledger = await PostgresLedger.connect(settings.ledger_dsn, clock)
    recorder = Recorder(inventory, ledger, clock, CONSUMER)
    keeper = StockKeeper(inventory, clock, SystemIds())

    async def work() -> None:
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(keeper.run())
            await recorder.run()
            keeping.cancel()

    await work_until_stopped(work, recorder.stop)
    await ledger.close()
    await inventory.close()
    return 0


async def run_backoffice(settings_path: Path, announce: Path) -> int:
    """Serve the back office until SIGTERM."""
    settings = read_settings(settings_path)
    clock = SystemClock()
    address = (settings.inventory_host, settings.inventory_port)
    inventory = await ValkeyInventory.connect(*address, clock, library=settings.functions())
    ledger = await PostgresLedger.connect(settings.ledger_dsn, clock)
    payments = Payments(inventory, ledger, clock)
    master = bytes.fromhex(settings.token_master)
    api = merchant_api(inventory, ledger, clock, SystemIds(), master)
    application = create_app(payments, inventory, ledger, bytes.fromhex(settings.webhook_secret), api)
    server = _Server(
        uvicorn.Config(
            application,
            host=settings.bind_host,
            port=0,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=STOP_S,
        )
    )

    def stop() -> None:
        server.should_exit = True

    serving = asyncio.create_task(work_until_stopped(server.serve, stop))
    async with clock.timeout(ANNOUNCE_TIMEOUT_S):
        while not server.started and not serving.done():
            await clock.sleep(0.02)
    if server.started:
        write_announcement(announce, server.servers[0].sockets[0].getsockname()[1])
    await serving
    await ledger.close()
    await inventory.close()
    return 0 if server.started else 1


class _Server(uvicorn.Server):
    """Leaves the signals to us: uvicorn would raise them once more when it has stopped, while we are tidying up."""

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run_crowd_role(spec_path: Path) -> int:
    """Send the demand of the file and leave the logs beside the report."""
    await run_crowd(read_spec(spec_path), SystemClock(), SystemIds(), chance)
    return 0
