"""Where the replicas of a platform write what they have to say, for each runtime."""

from collections.abc import Sequence
from typing import Protocol

from springtide.cli.platform_folder import PlatformFolder, PlatformSettings
from springtide.drivers.process_state import Record, RecordFolder
from springtide.drivers.replica_launch import last_lines
from springtide.ports import Clock


class ReplicaLogs(Protocol):
    """What replicas wrote."""

    async def replicas(self, service: str) -> list[str]:
        """The ids of a service's replicas, the failed ones included."""

    async def lines(self, replica_id: str, count: int) -> Sequence[str]:
        """The last lines of one, oldest first."""

    async def close(self) -> None:
        """Let go of connections."""


def open_logs(folder: PlatformFolder, settings: PlatformSettings, clock: Clock) -> ReplicaLogs:
    """The logs of this platform's runtime."""
    if settings.config.fleet.runtime == "docker":
        from springtide.cli.fleet_docker import DockerLogs  # noqa: PLC0415 - only where Docker is used

        return DockerLogs(folder, settings.config.zones, clock)
    return ProcessLogs(folder, [zone.name for zone in settings.config.zones])


class ProcessLogs:
    """Of local processes: their files are read, the platform is not asked."""

    def __init__(self, folder: PlatformFolder, zones: Sequence[str]) -> None:
        """Nothing is read yet."""
        self._folders = [RecordFolder(folder.replicas(zone)) for zone in zones]

    async def replicas(self, service: str) -> list[str]:
        """By id."""
        return sorted(record.replica_id for _, record in self._records() if record.service == service)

    async def lines(self, replica_id: str, count: int) -> Sequence[str]:
        """None when it has gone meanwhile."""
        for files, record in self._records():
            if record.replica_id == replica_id:
                return last_lines(files.log_end(record, count), count)
        return []

    async def close(self) -> None:
        """Nothing is open."""

    def _records(self) -> list[tuple[RecordFolder, Record]]:
        return [(files, record) for files in self._folders for record in files.records()]
