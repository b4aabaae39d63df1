"""`springtide run counter`: one replica."""

import asyncio
import signal
from pathlib import Path

from springtide.cli.inventories import open_inventory, open_rooms
from springtide.cli.roles import RoleSettings, read_settings, until_stopped
from springtide.cli.roles import announce as write_announcement
from springtide.decide.room import policy_of
from springtide.drivers.system import SystemClock, SystemIds
from springtide.drivers.valkey import ValkeyInventory
from springtide.drivers.valkey_room import ValkeyRoom
from springtide.sale.buyer_page import BuyerPage
from springtide.sale.counter import CounterServer, tune_interpreter
from springtide.sale.room_tickets import RoomKeys
from springtide.sale.waitingroom import WaitingRoomDesk


async def run_counter(settings_path: Path, replica_id: str, announce: Path) -> int:
    """Serve until SIGTERM; SIGUSR1 drains: not ready any more, but every request is still served."""
    settings = read_settings(settings_path)
    clock = SystemClock()
    inventory = await open_inventory(
        settings.inventory,
        clock,
        replicas_acked=settings.replicas_acked,
        journal_lag_max=settings.counter.journal_lag_max,
        library=settings.functions(),
    )
    rooms = await open_rooms(settings.inventory, clock)
    server, desk = _assemble(settings, inventory, rooms, clock, replica_id)
    draining: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, lambda: draining.add(asyncio.create_task(server.drain())))
    port = await server.start(settings.bind_host, 0)
    desk.start()
    tune_interpreter()
    write_announcement(announce, port)
    await until_stopped(asyncio.Event())
    await server.stop()
    await desk.close()
    await rooms.close()
    await inventory.close()
    return 0


def _assemble(
    settings: RoleSettings, inventory: ValkeyInventory, rooms: ValkeyRoom, clock: SystemClock, replica_id: str
) -> tuple[CounterServer, WaitingRoomDesk]:
    """The counter with the page to buy on and the desk of the waiting rooms."""
    ids = SystemIds()
    master = bytes.fromhex(settings.token_master)
    desk = WaitingRoomDesk(
        rooms,
        clock,
        ids,
        RoomKeys(master),
        lambda: server.keys,
        pass_ms=policy_of(settings.room).pass_ms,
        load=lambda: server.load(),  # noqa: PLW0108 - the server is made after the desk, and needs it
    )
    server = CounterServer(
        settings.counter,
        inventory,
        clock,
        ids,
        master,
        replica_id,
        rate_max=settings.rate_max,
        extensions=(desk, BuyerPage()),
        door=desk,
        more_gauges=desk.gauges(),
    )
    return server, desk
