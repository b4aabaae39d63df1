"""What containers of a platform wrote: their engines are asked."""

from collections.abc import Sequence

from springtide.cli.platform_folder import PlatformFolder
from springtide.cli.platform_images import by_engine
from springtide.cli.platform_runtimes import docker_settings
from springtide.config import ZoneSettings
from springtide.drivers.docker import DockerRuntime
from springtide.ports import Clock


class DockerLogs:
    """Of containers. The runtimes look and let go again; they begin and end nothing."""

    def __init__(self, folder: PlatformFolder, zones: Sequence[ZoneSettings], clock: Clock) -> None:
        """No engine is asked yet."""
        self._runtimes = [
            DockerRuntime(docker_settings(folder, url, here), clock) for url, here in by_engine(zones).items()
        ]

    async def replicas(self, service: str) -> list[str]:
        """By id."""
        found = [replica for runtime in self._runtimes for replica in await runtime.list()]
        return sorted(replica.replica_id for replica in found if replica.service == service)

    async def lines(self, replica_id: str, count: int) -> Sequence[str]:
        """None when it has gone meanwhile."""
        for runtime in self._runtimes:
            if lines := await runtime.logs(replica_id, count):
                return lines
        return []

    async def close(self) -> None:
        """Disconnect."""
        for runtime in self._runtimes:
            await runtime.detach()
