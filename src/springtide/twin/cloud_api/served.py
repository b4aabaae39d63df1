"""A cloud to test against: the twin's market behind the HTTP API, on a port of this machine, on the real clock."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import uvicorn
from typing_extensions import override

from springtide.errors import UserError
from springtide.ports import Chance, Clock, Ids
from springtide.twin.cloud_api.account import Account, Machine, ServedSettings
from springtide.twin.cloud_api.app import CloudApi
from springtide.twin.cloud_api.signature import AccessKey
from springtide.twin.kernel import Kernel
from springtide.twin.market import Market, MarketSettings
from springtide.twin.market_state import MarketState, restore, save

HOST = "127.0.0.1"
FOLLOW_S = 0.05
STOP_S = 2


class Sources(msgspec.Struct, frozen=True):
    """Where the cloud takes time, ids and chance from."""

    clock: Clock
    ids: Ids
    chance: Chance


class ServedOptions(msgspec.Struct, frozen=True):
    """How the cloud is served. `speed`: its clock runs so many times as fast as the real one. `port` 0: a free one.

    `data` is the file that it survives a restart with; None: it forgets. `keys` None: fresh ones.
    """

    market: MarketSettings = msgspec.field(default_factory=MarketSettings)
    api: ServedSettings = ServedSettings()
    speed: float = 1.0
    port: int = 0
    data: Path | None = None
    keys: AccessKey | None = None


class CloudFile(msgspec.Struct):
    """What is in the data file."""

    keys: AccessKey
    market: MarketState
    machines: dict[str, Machine]


class ServedCloud:
    """`async with ServedCloud(Sources(clock, ids, chance)) as cloud:` serves on `cloud.endpoint` until the end."""

    def __init__(self, sources: Sources, options: ServedOptions | None = None) -> None:
        """Prepare the cloud, from its data file if it has one. Raises UserError for a file that cannot be read."""
        self._options = options or ServedOptions()
        self._clock = sources.clock
        self._began_real_ms = self._clock.now_ms()
        kept = _read(self._options.data)
        self._began_ms = max(self._began_real_ms, kept.market.now_ms if kept else 0)
        self.market = Market(Kernel(self._began_ms), sources.chance, self._options.market)
        self.account = Account(self.market, self._options.api)
        self.keys = self._options.keys or (kept.keys if kept else _fresh(sources.ids))
        """What calls are signed with."""
        if kept:
            _take_up(self.market, self.account, kept)
        self.api = CloudApi(self.account, self.keys, self._clock, sources.ids)
        self.api.before, self.api.keep = self.advance, self._keep
        self._dirty = False
        self.market.on_change = self._note
        self._server: uvicorn.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.port = 0

    @property
    def endpoint(self) -> str:
        """`HOST:PORT`, as the SDK's Config takes it, with `protocol="http"`."""
        return f"{HOST}:{self.port}"

    def advance(self) -> None:
        """Let everything happen that is due by now."""
        passed_ms = (self._clock.now_ms() - self._began_real_ms) * self._options.speed
        self.market.kernel.run(self._began_ms + round(passed_ms) + 1)

    async def __aenter__(self) -> Self:
        """Listen. Raises UserError for a port that is taken."""
        listener = _listen(self._options.port)
        self.port = int(listener.getsockname()[1])
        config = uvicorn.Config(
            self.api.app,
            log_config=None,
            access_log=False,
            server_header=False,
            http="httptools",
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=STOP_S,
        )
        self._server = _Server(config)
        self._tasks = [
            asyncio.create_task(self._server.serve(sockets=[listener])),
            asyncio.create_task(self._follow()),
        ]
        while not self._server.started and not self._tasks[0].done():
            await self._clock.sleep(0.005)
        self._keep()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening; what is rented stays in the data file."""
        serving, following = self._tasks
        following.cancel()
        if self._server is not None:
            self._server.should_exit = True
        await asyncio.gather(serving, following, return_exceptions=True)
        self._dirty = True
        self._keep()

    async def _follow(self) -> None:
        while True:
            await self._clock.sleep(FOLLOW_S)
            self.advance()
            if self._dirty:
                self._keep()

    def _note(self) -> None:
        self._dirty = True

    def _keep(self) -> None:
        self._dirty = False
        if self._options.data is None:
            return
        alive = {name: kept for name, kept in self.account.machines.items() if name in self.market.live}
        content = msgspec.json.encode(CloudFile(self.keys, save(self.market), alive))
        beside = self._options.data.with_name(f"{self._options.data.name}.new")
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        beside.replace(self._options.data)


class _Server(uvicorn.Server):
    """Leaves the signals to the command that serves."""

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise UserError(f"port {port} of {HOST} is taken; give another, or 0 for a free one") from error
    return listener


def _fresh(ids: Ids) -> AccessKey:
    return AccessKey(ids.new("LTAI"), ids.new("") + ids.new(""))


def _read(path: Path | None) -> CloudFile | None:
    if path is None or not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=CloudFile)
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(f"{path} cannot be read as a cloud's data: {error}; move it away to begin anew") from error


def _take_up(market: Market, account: Account, kept: CloudFile) -> None:
    try:
        restore(market, kept.market)
    except KeyError as error:
        raise UserError(
            f"the data file has machines of {error}, which is not among the offers; add it again"
        ) from error
    account.machines.update(kept.machines)
