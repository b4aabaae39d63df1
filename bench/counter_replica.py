"""The counter as a process of its own, unthrottled: `python -m bench.counter_replica VALKEY_PORT TOKEN_KEY`;
prints its port."""

import asyncio
import signal
import sys

import uvloop

from springtide.config import CounterSettings
from springtide.decide.room import RoomPolicy
from springtide.drivers.system import SystemClock, SystemIds
from springtide.drivers.valkey import ValkeyInventory
from springtide.drivers.valkey_room import ValkeyRoom
from springtide.sale.counter import CounterServer, tune_interpreter
from springtide.sale.room_tickets import RoomKeys
from springtide.sale.tokens import TokenKeys
from springtide.sale.waitingroom import WaitingRoomDesk


async def serve(valkey_port: int, token_key: bytes) -> None:
    clock, ids = SystemClock(), SystemIds()
    inventory = await ValkeyInventory.connect("127.0.0.1", valkey_port, clock, journal_lag_max=1_000_000)
    rooms = await ValkeyRoom.connect("127.0.0.1", valkey_port, clock)
    keys = TokenKeys((token_key,))
    desk = WaitingRoomDesk(rooms, clock, ids, RoomKeys(token_key), lambda: keys, pass_ms=RoomPolicy().pass_ms)
    server = CounterServer(
        CounterSettings(), inventory, clock, ids, keys, "bench", rate_max=None, extensions=(desk,), door=desk
    )
    port = await server.start("127.0.0.1", 0)
    desk.start()
    tune_interpreter()
    print(port, flush=True)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await stopping.wait()
    await server.stop()
    await desk.close()
    await rooms.close()
    await inventory.close()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), bytes.fromhex(sys.argv[2])))
