"""What is done to the containers of one fleet on one Docker Engine, call by call. Raises ReplicaError."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from springtide.drivers.child import LOG_TAIL_LINES
from springtide.drivers.docker_container import BUILT_LABEL, DRAINING, Found, container_name, fleet_filter, found_of
from springtide.drivers.docker_engine import CONFLICT, NOT_FOUND, NOT_MODIFIED, WORK_S, DockerEngine
from springtide.drivers.replica_launch import last_lines, read_secrets, redacted
from springtide.errors import ReplicaError

LINES_MAX = 10_000
"""Log lines that one call returns at most."""

_STOP_MARGIN_S = 30.0
_GONE = (NOT_FOUND, CONFLICT)  # a conflict says that its removal has begun, or that it has ended


class FleetContainers:
    """The containers of `fleet`; those of others on the same engine are not seen."""

    def __init__(self, engine: DockerEngine, fleet: str) -> None:
        """Ask nothing yet."""
        self._engine = engine
        self._fleet = fleet

    async def listed(self, container_id: str = "") -> list[Found]:
        """All of them, or the one with this id."""
        client = self._engine.docker
        filters = fleet_filter(self._fleet, container_id)
        listed = await self._engine.ask("listing replicas", client.containers.list(all="true", filters=filters))
        return [found for each in listed or () if (found := found_of(each._container))]  # noqa: SLF001 - a container has no other view of its entry

    async def create(self, replica_id: str, body: Mapping[str, Any]) -> str:
        """Create a replica's container, or find it created; its id. Raises ReplicaError when the image is missing."""
        name = container_name(self._fleet, replica_id)
        client = self._engine.docker
        call = client.containers.create(dict(body), name=name)
        made = await self._engine.ask(f"creating {name}", call, WORK_S, accept=(CONFLICT, NOT_FOUND))
        if made is not None:
            return str(made.id)
        # Either somebody was first, or there is no image.
        for found in await self.listed():
            if found.replica_id == replica_id:
                return found.container_id
        raise ReplicaError(
            f"image {body['Image']} is not on the engine at {self._engine.url}, or {name} belongs to somebody else: "
            "warm the zone's cache, or build or pull the image there"
        )

    async def begin(self, container_id: str, replica_id: str) -> None:
        """Let its program begin; one that runs is left alone."""
        container = self._engine.docker.containers.container(container_id)
        await self._engine.ask(f"starting {replica_id}", container.start(), WORK_S, accept=(NOT_MODIFIED,))

    async def mark_draining(self, container_id: str, replica_id: str, signal: str) -> None:
        """Let the name say that it drains, and send the signal, if there is one."""
        container = self._engine.docker.containers.container(container_id)
        what = f"draining {replica_id}"
        name = f"{container_name(self._fleet, replica_id)}{DRAINING}"
        await self._engine.ask(what, container.rename(name), accept=_GONE)
        if signal:
            await self._engine.ask(what, container.kill(signal=signal), accept=_GONE)

    async def stop(self, container_id: str, replica_id: str, grace_ms: int) -> None:
        """Ask it to end, and kill it when it has not within the grace, in whole seconds."""
        container = self._engine.docker.containers.container(container_id)
        grace_s = math.ceil(grace_ms / 1000)
        call = container.stop(t=grace_s)
        await self._engine.ask(f"stopping {replica_id}", call, grace_s + _STOP_MARGIN_S, (NOT_FOUND, NOT_MODIFIED))

    async def kill(self, container_id: str, replica_id: str) -> None:
        """End it at once; it stays, with its log."""
        container = self._engine.docker.containers.container(container_id)
        await self._engine.ask(f"killing {replica_id}", container.kill(), accept=_GONE)

    async def remove(self, container_id: str, replica_id: str) -> None:
        """Remove it and all it wrote."""
        container = self._engine.docker.containers.container(container_id)
        await self._engine.ask(f"removing {replica_id}", container.delete(force=True, v=True), WORK_S, _GONE)

    async def ending(self, container_id: str, memory_mb: int) -> str:
        """How it ended, as the rest of a sentence."""
        container = self._engine.docker.containers.container(container_id)
        about = await self._engine.ask("looking at a replica", container.show(), accept=(NOT_FOUND,))
        state: dict[str, Any] = (about or {}).get("State") or {}
        how = f" with status {state['ExitCode']}" if "ExitCode" in state else ""
        if state.get("OOMKilled"):
            how += f", out of memory at its limit of {memory_mb} MB"
        if state.get("Error"):
            how += f" ({state['Error']})"
        return f"ended by itself{how}"

    async def log_lines(self, container_id: str, lines: int) -> list[str]:
        """The last lines of both of its outputs."""
        count = min(lines, LINES_MAX)
        if count <= 0 or not container_id:
            return []
        container = self._engine.docker.containers.container(container_id)
        call = container.log(stdout=True, stderr=True, tail=str(count))
        pieces: Sequence[str] | None = await self._engine.ask("reading a log", call, accept=_GONE)
        return last_lines("".join(pieces or ()), count)

    async def with_log(self, what: str, container_id: str, secret_files: Mapping[str, str]) -> str:
        """What happened, with the end of the log, in which a program may have written its secrets."""
        lines = await self.log_lines(container_id, LOG_TAIL_LINES)
        try:
            values = read_secrets(secret_files).values()
        except ReplicaError:
            return f"{what} (its log is not shown: a secret's file is gone, so it could not be taken out)"
        return "\n".join([what, *(redacted(line, values) for line in lines)])

    async def is_built_here(self, image: str) -> bool:
        """Whether `drivers/image_build.py` made the image."""
        client = self._engine.docker
        about = await self._engine.ask(f"image {image}", client.images.inspect(image), accept=(NOT_FOUND,))
        return BUILT_LABEL in (((about or {}).get("Config") or {}).get("Labels") or {})
