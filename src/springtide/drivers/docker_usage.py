"""What containers use, asked of their engine now and then: CPU seconds since their start, memory now."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from springtide.drivers.docker_engine import DockerEngine
from springtide.drivers.pids import Usage
from springtide.errors import ReplicaError
from springtide.ports import Clock

EVERY_S = 2.0
"""A figure younger than this is not asked again."""

PER_LOOK_MAX = 64
AT_ONCE = 8

_NANO = 1_000_000_000


class Usages:
    """The last figures of each container; those that cannot be had stay as they were."""

    def __init__(self, engine: DockerEngine, clock: Clock) -> None:
        """Know none."""
        self._engine = engine
        self._clock = clock
        self._seen: dict[str, tuple[float, Usage]] = {}

    def of(self, container_id: str) -> Usage:
        """What was seen last."""
        return self._seen[container_id][1] if container_id in self._seen else Usage(0.0, 0)

    def forget(self, container_id: str) -> None:
        """It is gone."""
        self._seen.pop(container_id, None)

    async def refresh(self, container_ids: Iterable[str]) -> None:
        """Ask for those whose figures are the oldest, at most PER_LOOK_MAX, AT_ONCE at a time."""
        now_s = self._clock.monotonic_s()
        ages = sorted((self._seen[name][0] if name in self._seen else -EVERY_S, name) for name in container_ids)
        due = [name for seen_s, name in ages if name not in self._seen or now_s - seen_s >= EVERY_S]
        gate = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(self._ask(name, gate) for name in due[:PER_LOOK_MAX]))

    async def _ask(self, container_id: str, gate: asyncio.Semaphore) -> None:
        params = {"stream": "false", "one-shot": "true"}
        async with gate:
            try:
                said = await self._engine.query("statistics", f"containers/{container_id}/stats", params)
            except ReplicaError:
                return
        if said:
            self._seen[container_id] = (self._clock.monotonic_s(), usage_of(said))


def usage_of(said: Mapping[str, Any]) -> Usage:
    """From an answer of `GET /containers/ID/stats`.

    Memory is without the files that the kernel only keeps as long as nobody needs the room (`docker stats` does so
    too): `inactive_file`, or `total_inactive_file` under control groups of version 1.
    """
    cpu = ((said.get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage") or 0
    memory = said.get("memory_stats") or {}
    stats = memory.get("stats") or {}
    idle = stats.get("total_inactive_file") or stats.get("inactive_file") or 0
    return Usage(int(cpu) / _NANO, max(0, int(memory.get("usage") or 0) - int(idle)))
