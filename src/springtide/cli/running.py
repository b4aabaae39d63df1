"""How a command's coroutine is run: on uvloop, with signals that end it in order."""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any

import uvloop

EXIT_INTERRUPTED = 130


def run_command(work: Coroutine[Any, Any, int]) -> int:
    """Run a command to its end. The first SIGTERM or SIGINT cancels it; more are ignored while it cleans up."""

    async def cancellable() -> int:
        loop = asyncio.get_running_loop()
        working = asyncio.ensure_future(work)
        stopping: list[bool] = []

        def stop() -> None:
            if not stopping:
                stopping.append(True)
                working.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        return await working

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(cancellable())
        except asyncio.CancelledError:
            sys.stderr.write("springtide: stopped; everything that was started has been ended\n")
            return EXIT_INTERRUPTED
