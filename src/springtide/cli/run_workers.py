"""`springtide run recorder | backoffice | crowd`: the processes behind and in front of the counters."""

import asyncio
from pathlib import Path

import uvicorn

from springtide.cli.roles import announce as write_announcement
from springtide.cli.roles import read_settings, work_until_stopped
from springtide.drivers.postgres import PostgresLedger
from springtide.drivers.system import SystemClock, SystemIds, chance
from springtide.drivers.valkey import ValkeyInventory
from springtide.sale.backoffice import create_app
from springtide.sale.payments import Payments
from springtide.sale.recorder import Recorder
from springtide.twin.crowd.generator import run_crowd
from springtide.twin.crowd.spec import read_spec

ANNOUNCE_TIMEOUT_S = 20.0
CONSUMER = "recorder"
"""Stable, so that a restarted recorder finds its own unacknowledged entries at once; one recorder per bucket."""


async def run_recorder(settings_path: Path) -> int:
    """Record the journal until SIGTERM."""
    settings = read_settings(settings_path)
    clock = SystemClock()
    inventory = await ValkeyInventory.connect(settings.inventory_host, settings.inventory_port, clock)
    ledger = await PostgresLedger.connect(settings.ledger_dsn, clock)
    recorder = Recorder(inventory, ledger, clock, CONSUMER)
    await work_until_stopped(recorder.run, recorder.stop)
    await ledger.close()
    await inventory.close()
    return 0


async def run_backoffice(settings_path: Path, announce: Path) -> int:
    """Serve the back office until SIGTERM (uvicorn handles it)."""
    settings = read_settings(settings_path)
    clock = SystemClock()
    inventory = await ValkeyInventory.connect(settings.inventory_host, settings.inventory_port, clock)
    ledger = await PostgresLedger.connect(settings.ledger_dsn, clock)
    payments = Payments(inventory, ledger, clock)
    application = create_app(payments, inventory, ledger, bytes.fromhex(settings.webhook_secret))
    server = uvicorn.Server(
        uvicorn.Config(application, host="127.0.0.1", port=0, log_level="warning", access_log=False)
    )
    serving = asyncio.create_task(server.serve())
    async with clock.timeout(ANNOUNCE_TIMEOUT_S):
        while not server.started and not serving.done():
            await clock.sleep(0.02)
    if server.started:
        write_announcement(announce, server.servers[0].sockets[0].getsockname()[1])
    await serving
    await ledger.close()
    await inventory.close()
    return 0 if server.started else 1


async def run_crowd_role(spec_path: Path) -> int:
    """Send the demand of the file and leave the logs beside the report."""
    await run_crowd(read_spec(spec_path), SystemClock(), SystemIds(), chance)
    return 0
