"""An embedded image registry: Debian's `docker-registry` (the distribution engine) as our child, its files in a folder.

Its garbage collector may not run beside an upload: it would delete a layer whose manifest has not come yet. So the
registry is restarted read-only for as long as it takes; pulls go on, and uploads are refused until it has ended.
"""

import os
import shutil
import signal
from asyncio import Lock, to_thread
from pathlib import Path
from typing import Any

import msgspec

from springtide.drivers.child import Child, spawn
from springtide.drivers.http_get import http_get
from springtide.drivers.listening import free_port, listens
from springtide.errors import EngineError, ImageError
from springtide.ports import Clock

BINARY = "docker-registry"
HOST = "127.0.0.1"
READY_S_MAX = 15.0
DRAIN_S = 3.0
"""How long requests that are open may go on when it is stopped; longer ones are cut, and their clients repeat them."""

GARBAGE_S_MAX = 600.0
UPLOADS_KEPT = "24h"
"""Uploads that were broken off are deleted when they are older: their bytes are of no use to a repetition."""

IMAGES = Path("data", "docker", "registry", "v2")
"""Where in its folder the engine keeps images."""

_STOP_GRACE_S = DRAIN_S + 2.0
_POLL_S = 0.02
_CALL_S_MAX = 1.0
_OK = 200


class RegistrySettings(msgspec.Struct, frozen=True):
    """Where a registry listens, and the registry it passes pulls through to ("" is none: it holds what it is given).

    `prefix` are words before the command that starts it, such as those that enter a network namespace. With an
    `upstream` (`HOST:PORT`) it takes no uploads, deletes what it fetched after seven days, and has to reach the
    upstream when it starts. A layer that it lacks crosses the line twice: once for the client, once for itself.
    """

    host: str = HOST
    port: int = 0
    upstream: str = ""
    prefix: tuple[str, ...] = ()


class EmbeddedRegistry:
    """A running registry. Its files outlive it; the garbage is collected by `collect_garbage`."""

    def __init__(self, folder: Path, settings: RegistrySettings, child: Child, clock: Clock) -> None:
        """Use `start_registry`."""
        self.folder = folder
        self.address = f"{settings.host}:{settings.port}"
        self.child = child
        self._settings = settings
        self._clock = clock
        self._changing = Lock()

    async def stop(self) -> None:
        """End it; requests that are open have DRAIN_S to end."""
        await self.child.stop(self._clock, _STOP_GRACE_S)

    async def restart(self) -> None:
        """Start it again, also when it was killed. Raises EngineError."""
        async with self._changing:
            await self._again(read_only=False)

    async def revive(self) -> None:
        """Start it again if it has died. Raises EngineError."""
        async with self._changing:
            if self.child.returncode is not None:
                await self._again(read_only=False)

    async def collect_garbage(self, *, untagged: bool = True) -> int:
        """Delete what no manifest needs; the bytes that became free. Uploads are refused meanwhile, pulls go on.

        Uploads that were open are cut off, and what there is of them is deleted: a repetition begins anew in any case.

        `untagged` deletes manifests without a tag, too. It may not be used where images for several machine types are
        kept: their parts have no tag (a known fault of the engine's 2.8). Raises ImageError, EngineError; in either
        case the registry takes uploads again.
        """
        async with self._changing:
            before = await to_thread(blob_bytes, self.folder)
            await self._again(read_only=True)
            try:
                await to_thread(_forget_uploads, self.folder)
                await self._garbage(untagged=untagged)
            finally:
                await self._again(read_only=False)
            return before - await to_thread(blob_bytes, self.folder)

    async def _again(self, *, read_only: bool) -> None:
        await self.child.stop(self._clock, _STOP_GRACE_S)
        self.child = await _start(self.folder, self._settings, self._clock, read_only=read_only)

    async def _garbage(self, *, untagged: bool) -> None:
        log = self.folder / "garbage.log"
        log.unlink(missing_ok=True)
        command = [BINARY, "garbage-collect", *(["--delete-untagged"] if untagged else []), str(_config(self.folder))]
        child = spawn("the registry's garbage collection", command, log)
        try:
            code = await child.wait(self._clock, GARBAGE_S_MAX)
        finally:
            child.signal(signal.SIGKILL)
        # A registry that never had an image has no folder to look through, which the engine calls an error.
        if code != 0 and (self.folder / "data" / "docker").exists():
            how = f"took longer than {GARBAGE_S_MAX:.0f} s" if code is None else f"ended with status {code}"
            raise ImageError(f"{child.name} {how}; nothing that is needed was deleted; see {log}\n{child.log_tail()}")


async def start_registry(folder: Path, clock: Clock, settings: RegistrySettings | None = None) -> EmbeddedRegistry:
    """Start a registry that keeps its images in `folder`, and wait until it answers. Port 0 is any free one.

    Raises EngineError when the program is missing, the folder cannot be written, the port is in use, or the upstream
    does not answer.
    """
    settings = settings or RegistrySettings()
    if reason := missing():
        raise EngineError(reason)
    if not settings.port:
        settings = msgspec.structs.replace(settings, port=free_port(settings.host, frozenset()))
    folder = _absolute(folder)
    child = await _start(folder, settings, clock, read_only=False)
    return EmbeddedRegistry(folder, settings, child, clock)


def missing() -> str:
    """Why there can be no registry here; empty when there can."""
    if shutil.which(BINARY) is None:
        return f"an image registry needs the program `{BINARY}` (package docker-registry)"
    return ""


def blob_bytes(folder: Path) -> int:
    """What layers, configurations, manifests, and uploads that have not ended take in a registry's folder, in bytes."""
    total = 0
    for part in ("blobs", "repositories"):
        for at, _, names in os.walk(folder / IMAGES / part):
            # The other files of a repository are links of 71 bytes each.
            total += sum(_size(f"{at}/{name}") for name in names if name == "data")
    return total


def _forget_uploads(folder: Path) -> None:
    for uploads in (folder / IMAGES / "repositories").glob("**/_uploads"):
        shutil.rmtree(uploads, ignore_errors=True)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - of many, by name
    except FileNotFoundError:
        return 0


def _absolute(folder: Path) -> Path:
    return folder.absolute()


def _config(folder: Path) -> Path:
    return folder / "registry.yml"


async def _start(folder: Path, settings: RegistrySettings, clock: Clock, *, read_only: bool) -> Child:
    if settings.upstream:
        await _require_upstream(settings.upstream, clock)
    _prepare(folder, settings, read_only=read_only)
    child = spawn(
        "the image registry",
        [*settings.prefix, BINARY, "serve", str(_config(folder))],
        folder / "registry.log",
    )
    try:
        await _until_ready(child, clock, settings)
    except BaseException:
        await child.stop(clock, 0.0, signal.SIGKILL)
        raise
    return child


def _prepare(folder: Path, settings: RegistrySettings, *, read_only: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # JSON is YAML: the engine reads it as it is.
        _config(folder).write_bytes(msgspec.json.encode(_settings(folder, settings, read_only=read_only)))
        (folder / "registry.log").unlink(missing_ok=True)
    except OSError as error:
        raise EngineError(
            f"the registry cannot keep its files in {folder}: {error.strerror}; name a folder that you may write to"
        ) from error


async def _require_upstream(upstream: str, clock: Clock) -> None:
    """The engine panics when the upstream is down at its start: a plain word is better."""
    host, _, port = upstream.rpartition(":")
    if not await _answers(clock, host, int(port)):
        raise EngineError(
            f"a registry that passes pulls through cannot start while its upstream {upstream} does not answer: "
            "start the upstream first, or run a cache without one"
        )


async def _until_ready(child: Child, clock: Clock, settings: RegistrySettings) -> None:
    until = clock.monotonic_s() + READY_S_MAX
    while clock.monotonic_s() < until:
        if child.returncode is not None:
            if "address already in use" in child.log_tail():
                raise EngineError(
                    f"the image registry cannot listen on {settings.host}:{settings.port}: the port is in use; "
                    "end what listens there or name another port"
                )
            raise child.failure(f"ended at once with status {child.returncode}")
        # What answers may be another program on our port: then ours is about to end.
        if await _answers(clock, settings.host, settings.port) and await to_thread(listens, child.pid, settings.port):
            return
        await clock.sleep(_POLL_S)
    raise child.failure(f"did not answer within {READY_S_MAX:.0f} s")


async def _answers(clock: Clock, host: str, port: int) -> bool:
    try:
        status, _ = await http_get(clock, host, port, "/v2/", _CALL_S_MAX)
    except (OSError, TimeoutError):
        return False
    return status == _OK


def _settings(folder: Path, settings: RegistrySettings, *, read_only: bool) -> dict[str, Any]:
    """No cache of descriptors: it would go on saying that a layer is there after the garbage was collected."""
    maintenance = {
        "uploadpurging": {"enabled": True, "age": UPLOADS_KEPT, "interval": "1h", "dryrun": False},
        "readonly": {"enabled": read_only},
    }
    config: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(folder / "data")},
            "delete": {"enabled": True},
            "maintenance": maintenance,
        },
        # Relative: clients reach it under more than one address.
        "http": {
            "addr": f"{settings.host}:{settings.port}",
            "relativeurls": True,
            "draintimeout": f"{DRAIN_S:.0f}s",
        },
    }
    if settings.upstream:
        config["proxy"] = {"remoteurl": f"http://{settings.upstream}"}
    return config
