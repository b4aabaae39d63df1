"""`springtide run counter`: one replica."""

import asyncio
import signal
from pathlib import Path

from springtide.cli.roles import announce as write_announcement
from springtide.cli.roles import read_settings, until_stopped
from springtide.drivers.system import SystemClock, SystemIds
from springtide.drivers.valkey import ValkeyInventory
from springtide.sale.counter import CounterServer, tune_interpreter
from springtide.sale.tokens import TokenKeys


async def run_counter(settings_path: Path, replica_id: str, announce: Path) -> int:
    """Serve until SIGTERM; SIGUSR1 drains: not ready any more, but every request is still served."""
    settings = read_settings(settings_path)
    clock = SystemClock()
    inventory = await ValkeyInventory.connect(
        settings.inventory_host,
        settings.inventory_port,
        clock,
        journal_lag_max=settings.counter.journal_lag_max,
    )
    server = CounterServer(
        settings.counter,
        inventory,
        clock,
        SystemIds(),
        TokenKeys((bytes.fromhex(settings.token_key),)),
        replica_id,
        rate_max=settings.rate_max,
    )
    draining: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, lambda: draining.add(asyncio.create_task(server.drain())))
    port = await server.start("127.0.0.1", 0)
    tune_interpreter()
    write_announcement(announce, port)
    await until_stopped(asyncio.Event())
    await server.stop()
    await inventory.close()
    return 0
