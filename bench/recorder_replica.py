"""The recorder as a process of its own: `python -m bench.recorder_replica VALKEY_PORT DSN NICE`; prints a line when it
begins."""

import asyncio
import os
import signal
import sys

import uvloop

from springtide.drivers.postgres import PostgresLedger
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey import ValkeyInventory
from springtide.sale.recorder import Recorder


async def record(valkey_port: int, dsn: str) -> None:
    clock = SystemClock()
    inventory = await ValkeyInventory.connect("127.0.0.1", valkey_port, clock)
    ledger = await PostgresLedger.connect(dsn, clock)
    recorder = Recorder(inventory, ledger, clock, "bench")
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, recorder.stop)
    print("0", flush=True)
    await recorder.run()
    await ledger.close()
    await inventory.close()


if __name__ == "__main__":
    os.nice(int(sys.argv[3]))
    uvloop.run(record(int(sys.argv[1]), sys.argv[2]))
