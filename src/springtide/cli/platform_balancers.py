"""A balancer for each service that is wanted, from the one engine of a platform, which is kept alive."""

import asyncio
import contextlib
from pathlib import Path

import msgspec
import structlog

from springtide.drivers.balanced_service import ORDER_PATH, BalancedService
from springtide.drivers.balancers import BalancerEngine, BalancerKind, choose, start_balancer
from springtide.errors import EngineError
from springtide.model import COUNTER, ServiceWish
from springtide.ports import Balancer, Clock
from springtide.sale.backoff import Backoff

WATCH_S = 0.1
RESTART_S = 0.2
RESTART_MAX_S = 5.0
_log = structlog.get_logger(__name__)


def balanced(wish: ServiceWish) -> BalancedService:
    """What the engine has to know of a service."""
    if wish.spec.name == COUNTER:
        return msgspec.structs.replace(ORDER_PATH, port=wish.port, health=wish.spec.health)
    return BalancedService(wish.spec.name, port=wish.port, health=wish.spec.health, idempotent=wish.idempotent)


async def start_engine(kind: BalancerKind, folder: Path, clock: Clock) -> BalancerEngine:
    """Take over the engine that runs in `folder`, or start one; one of the other kind is ended. Raises EngineError."""
    other: BalancerKind = "envoy" if choose(kind) == "haproxy" else "haproxy"
    kept = folder / other / "kept.json"
    if kept.exists():
        # It holds the ports. To be found and ended it has to be taken over first.
        await (await start_balancer(other, folder, clock, survive=True)).stop()
        kept.unlink(missing_ok=True)
    return await start_balancer(kind, folder, clock, survive=True)


class ServiceBalancers:
    """`fleet.ports.Balancers` on one engine. `release` it at the end: what is still served goes on without us."""

    def __init__(self, engine: BalancerEngine, clock: Clock) -> None:
        """Use it from the loop that the engine was started in."""
        self._engine = engine
        self._clock = clock
        self._changing = asyncio.Lock()
        self._watching = asyncio.create_task(self._watch(), name="watch the balancer")

    async def of(self, service: str, wish: ServiceWish | None) -> Balancer | None:
        """See the port."""
        async with self._changing:
            if wish is not None:
                await self._engine.ensure_service(balanced(wish))
            return self._engine.balancer(service) if service in self._engine.services else None

    async def dismiss(self, service: str) -> None:
        """See the port."""
        async with self._changing:
            await self._engine.remove_service(service)

    async def release(self) -> None:
        """Let the engine go on with what it serves; when that is nothing, end it."""
        self._watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watching
        if self._engine.services:
            self._engine.detach()
        else:
            await self._engine.stop()

    async def _watch(self) -> None:
        """Start the engine again when it dies, on its ports and with the endpoints it had."""
        backoff = Backoff(RESTART_S, RESTART_MAX_S)
        while True:
            await self._clock.sleep(WATCH_S)
            if self._engine.process is not None and self._engine.process.alive:
                backoff.reset()
                continue
            _log.warning("the balancer died, starting it again", engine=self._engine.name)
            try:
                async with self._changing:
                    await self._engine.restart()
            except EngineError as error:
                _log.warning("the balancer did not start", error=str(error))
                await self._clock.sleep(backoff.next_s())
