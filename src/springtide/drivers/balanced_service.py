"""What a load balancer has to know of a service, whichever engine does it."""

import ipaddress
import re
from collections.abc import Sequence

import msgspec

from springtide.errors import BalancerError, EngineError
from springtide.model import COUNTER, IDENTIFIER, Endpoint, HealthCheck

SERVICES_MAX = 200
"""Services of one engine: each has a port, a queue and its own figures."""

CHECK_EVERY_MS_MAX = 500
"""The engines ask at least this often, so that a frozen replica is found within 3 s."""

WEIGHT_MAX = 100_000
"""Of one endpoint: Envoy wants the weights of a zone to add up to less than 2^32."""

_PORT_MAX = 65_535
_PATH = re.compile(r"/[A-Za-z0-9/_.~%?&=:@+,-]{0,255}")
_MS_MAX = 3_600_000
_IN_FLIGHT_MAX = 100_000


class BalancedService(msgspec.Struct, frozen=True):
    """A service in front of which an engine listens on `port` (0: one is chosen).

    `idempotent` allows any request to be sent a second time, to another replica, when the first had no answer within
    `try_ms` or lost its connection; without it, only one that reached no replica is. A request may take `request_ms` in
    all (HAProxy: each wait for the replica may). A replica whose answers are errors (5xx), five in a row, gets nothing
    until it passes its check again, unless `eject_on_errors` is off: for a service whose 503 is a refusal. A replica
    gets `in_flight_max` requests at once; up to `queue_max` more wait for `queue_ms`, beyond that the answer is 503.
    A new replica's share rises to its full one over `slow_start_ms`.
    """

    name: str
    port: int = 0
    health: HealthCheck = HealthCheck()
    idempotent: bool = False
    eject_on_errors: bool = True
    try_ms: int = 2_500
    request_ms: int = 30_000
    in_flight_max: int = 1_024
    queue_max: int = 1_024
    queue_ms: int = 1_000
    slow_start_ms: int = 2_000

    @property
    def check_every_ms(self) -> int:
        """The time between checks of a replica that is well."""
        return min(self.health.interval_ms, CHECK_EVERY_MS_MAX)


ORDER_PATH = BalancedService(
    COUNTER,
    idempotent=True,
    eject_on_errors=False,
    request_ms=5_000,
    in_flight_max=10_000,
    queue_max=10_000,
    slow_start_ms=0,
)
"""The counter: idempotent by key, refuses with 503 and 429, and is as fast at its first request as ever."""


def check_service(service: BalancedService) -> None:
    """Raise EngineError when an engine could not take this service as it is."""
    if not _PATH.fullmatch(service.health.path):
        raise EngineError(
            f"the health path {service.health.path!r} of {service.name} must begin with / and have no blanks or quotes"
        )
    if not 0 <= service.port <= _PORT_MAX:
        raise EngineError(f"the port of {service.name} must be from 0 to {_PORT_MAX}, not {service.port}")
    times = (
        service.try_ms,
        service.request_ms,
        service.queue_ms,
        service.health.interval_ms,
        service.health.timeout_ms,
    )
    if min(times) < 1 or max(times) > _MS_MAX or not 0 <= service.slow_start_ms <= _MS_MAX:
        raise EngineError(f"the times of {service.name} must be from 1 ms to an hour (slow start: from 0)")
    if not 1 <= service.in_flight_max <= _IN_FLIGHT_MAX or not 1 <= service.queue_max <= _IN_FLIGHT_MAX:
        raise EngineError(f"in_flight_max and queue_max of {service.name} must be from 1 to {_IN_FLIGHT_MAX}")


def check_endpoints(endpoints: Sequence[Endpoint], most: int) -> None:
    """Raise BalancerError when a list cannot be used."""
    if len(endpoints) > most:
        raise BalancerError(f"{len(endpoints)} endpoints are more than one balancer takes ({most}); add a balancer")
    addresses: set[tuple[str, int]] = set()
    for endpoint in endpoints:
        _check(endpoint)
        address = (endpoint.host, endpoint.port)
        if address in addresses:
            raise BalancerError(f"two endpoints have the address {endpoint.host}:{endpoint.port}; give each its own")
        addresses.add(address)


def _check(endpoint: Endpoint) -> None:
    if not 0 <= endpoint.weight <= WEIGHT_MAX:
        raise BalancerError(
            f"the weight of {endpoint.replica_id} must be from 0 to {WEIGHT_MAX}, not {endpoint.weight}"
        )
    if not IDENTIFIER.fullmatch(endpoint.replica_id) or not IDENTIFIER.fullmatch(endpoint.zone):
        raise BalancerError(
            f"{endpoint.replica_id!r} in zone {endpoint.zone!r} was refused: a name is up to 64 letters, digits, -, _"
        )
    try:
        ipaddress.ip_address(endpoint.host)
    except ValueError:
        raise BalancerError(
            f"the address of {endpoint.replica_id} was refused: {endpoint.host!r} is no IP address; resolve it first"
        ) from None
    if not 1 <= endpoint.port <= _PORT_MAX:
        raise BalancerError(f"the port of {endpoint.replica_id} must be from 1 to {_PORT_MAX}, not {endpoint.port}")
