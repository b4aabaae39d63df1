"""What a control loop looks at and acts on, and how it comes by a balancer for each service."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from springtide.errors import SpringtideError
from springtide.model import COUNTER, ServiceWish, Signal, Zone
from springtide.ports import Balancer, Cloud, FleetState, Runtime, Sensor


class Balancers(Protocol):
    """What puts a load balancer in front of each service, as services come and go."""

    async def of(self, service: str, wish: ServiceWish | None) -> Balancer | None:
        """The service's balancer, started if need be; None when the service has none.

        Asked when the service appears, and again when its port or `idempotent` changes, never twice at once for one
        service. `wish` is None for a service that nobody wants any more and of which nothing else is known. A failure
        (any SpringtideError) is asked again at the next tick.
        """

    async def dismiss(self, service: str) -> None:
        """The service is gone: end what stood in front of it. Unknown services are ignored."""


SensorOf = Callable[[str, Signal], Sensor | None]
"""From a service and one of its signals (PROMETHEUS) to what reads it; None when nothing can."""


class FleetPorts(msgspec.Struct, frozen=True):
    """What the loop looks at and acts on.

    `runtimes` is by zone; one object may serve several zones. `balancers` is by service where all are known from the
    start; a service that is not named has none. `engines` is by service and name: how busy the engines behind it are
    (0 to 1). `lines` tell the share of each line to the cloud that is taken (0 to 1); one that has failed raises.
    Without `state` there is one service (COUNTER) and this loop leads for ever.
    """

    runtimes: Mapping[str, Runtime]
    balancers: Mapping[str, Balancer] | Balancers
    cloud: Cloud
    state: FleetState | None = None
    sensors: SensorOf | None = None
    engines: Mapping[str, Mapping[str, Sensor]] = {}
    lines: Mapping[str, Sensor] = {}

    def distinct_runtimes(self) -> list[tuple[Runtime, list[str]]]:
        """Each runtime once, with its zones."""
        found: dict[int, tuple[Runtime, list[str]]] = {}
        for zone, runtime in self.runtimes.items():
            found.setdefault(id(runtime), (runtime, []))[1].append(zone)
        return list(found.values())


def one_service(
    balancer: Balancer,
    runtime: Runtime,
    cloud: Cloud,
    zones: Sequence[Zone],
    engines: Mapping[str, Sensor] | None = None,
) -> FleetPorts:
    """The ports of a loop for the counter alone, with one runtime for all zones and no shared state."""
    runtimes = {zone.name: runtime for zone in zones}
    return FleetPorts(runtimes, {COUNTER: balancer}, cloud, engines={COUNTER: engines or {}})


class BalancerBook:
    """The balancers at hand, by service."""

    def __init__(self, balancers: Mapping[str, Balancer] | Balancers, report: Callable[[str, str], None]) -> None:
        """`report` is told the source and the error of each failure."""
        self._given = balancers if isinstance(balancers, Mapping) else None
        self._maker = None if isinstance(balancers, Mapping) else balancers
        self._report = report
        self._made: dict[str, Balancer | None] = {}
        self._keys: dict[str, tuple[int, bool]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def want(self, service: str, wish: ServiceWish | None) -> None:
        """Let there be a balancer for this wish, in the background where it has to be made."""
        if self._maker is None or service in self._tasks:
            return
        key = (wish.port, wish.idempotent) if wish else self._keys.get(service, (0, False))
        if service in self._made and self._keys[service] == key:
            return
        task = asyncio.create_task(self._make(self._maker, service, wish, key))
        self._tasks[service] = task
        task.add_done_callback(lambda _: self._tasks.pop(service, None))

    def get(self, service: str) -> Balancer | None:
        """The balancer, as soon as there is one."""
        return self._given.get(service) if self._given is not None else self._made.get(service)

    def is_unrouted(self, service: str) -> bool:
        """Whether the service certainly has no balancer, so that nothing has to be taken from it."""
        if self._given is not None:
            return service not in self._given
        return service in self._made and self._made[service] is None

    async def dismiss(self, service: str) -> None:
        """End it. A failure is reported: it stands in front of nothing."""
        self._made.pop(service, None)
        self._keys.pop(service, None)
        if self._maker is not None:
            try:
                await self._maker.dismiss(service)
            except (SpringtideError, OSError) as error:
                self._report(f"balancer of {service}", str(error))

    async def close(self) -> None:
        """Break off what is being made."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _make(self, maker: Balancers, service: str, wish: ServiceWish | None, key: tuple[int, bool]) -> None:
        try:
            self._made[service] = await maker.of(service, wish)
            self._keys[service] = key
        except Exception as error:  # noqa: BLE001 - a fault in a driver must not end the loop that replaces capacity
            self._report(f"balancer of {service}", str(error) or type(error).__name__)
