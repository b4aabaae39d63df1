"""The processes a run consists of: `springtide run counter | recorder | backoffice | crowd`.

Each reads its settings from a file that only its owner may read, so that no secret stands in a process list.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from springtide.config import CounterSettings, RoomSettings
from springtide.errors import ConfigError

STOP_S = 10.0


class RoleSettings(msgspec.Struct, frozen=True):
    """What every role needs: where the engines are, and the keys. Keys are hexadecimal.

    `bind_host` is where a role that serves listens. `library` names a file with the inventory's functions, in place of
    those that come along. `inventory` is HOST:PORT, or several of a cluster; an order is acknowledged when
    `replicas_acked` replicas have it on disk too. The keys of buyer tokens and tickets are derived from `token_master`.
    """

    inventory: str
    ledger_dsn: str
    token_master: str
    webhook_secret: str
    counter: CounterSettings
    rate_max: float | None
    bind_host: str = "127.0.0.1"
    library: str = ""
    replicas_acked: int = 0
    backoffice_port: int = 0
    room: RoomSettings = RoomSettings()

    def functions(self) -> bytes | None:
        """The inventory's functions where `library` names some. Raises ConfigError when they cannot be read."""
        if not self.library:
            return None
        try:
            return Path(self.library).read_bytes()
        except OSError as error:
            msg = f"{self.library}: cannot be read as the inventory's functions: {error}"
            raise ConfigError(msg) from error


def read_settings(path: Path) -> RoleSettings:
    """Raises ConfigError when the file is missing or is not what `write_private` wrote."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=RoleSettings)
    except (OSError, msgspec.DecodeError) as error:
        msg = f"{path}: cannot be used as settings of a role: {error}"
        raise ConfigError(msg) from error


def announce(path: Path, port: int) -> None:
    """Tell the runtime that we listen: written aside and renamed, so that it is never read half."""
    aside = path.with_suffix(".part")
    aside.write_bytes(msgspec.json.encode({"port": port, "pid": os.getpid()}))
    aside.replace(path)


async def until_stopped(stopping: asyncio.Event) -> None:
    """Return when SIGTERM or SIGINT has come."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await stopping.wait()


async def work_until_stopped(work: Callable[[], Awaitable[None]], stop: Callable[[], None]) -> None:
    """Run a worker; on SIGTERM ask it to stop and wait for its last batch. A worker that fails fails the process."""
    stopping = asyncio.Event()
    waiting = asyncio.create_task(until_stopped(stopping))
    working = asyncio.ensure_future(work())
    await asyncio.wait({waiting, working}, return_when=asyncio.FIRST_COMPLETED)
    stop()
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    await working
