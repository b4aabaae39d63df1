"""The registry that a platform's images come from, where the configuration asks for one of its own."""

from contextlib import AsyncExitStack
from pathlib import Path

from springtide.cli.platform_folder import PlatformFolder
from springtide.cli.supervisor import Supervisor
from springtide.config import ImagesSettings
from springtide.drivers.child import Child
from springtide.drivers.embedded_registry import RegistrySettings, start_registry
from springtide.ports import Clock


async def start_origin(
    stack: AsyncExitStack, folder: PlatformFolder, images: ImagesSettings | None, clock: Clock
) -> None:
    """Run it, started again whenever it dies. Raises EngineError."""
    if images is None or images.origin:
        return
    place = Path(images.folder) if images.folder else folder.images
    registry = await start_registry(place, clock, RegistrySettings(port=images.port))
    stack.push_async_callback(registry.stop)

    async def again() -> Child:
        await registry.restart()
        return registry.child

    supervisor = Supervisor("registry", again, clock, registry.child)
    await supervisor.start()
    stack.push_async_callback(supervisor.release)
