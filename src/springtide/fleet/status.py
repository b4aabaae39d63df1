"""What the leading control loop says of the fleet for people: one value, kept in the fleet's state."""

import msgspec

from springtide.errors import FleetStateError
from springtide.model import CapacityEstimate, DemandRange, Rollout, ZoneHealth, ZoneMode
from springtide.ports import FleetState

STATUS = "status"
"""The name that the value is remembered under."""


class ServiceStatus(msgspec.Struct, frozen=True):
    """One service at the last tick.

    `replicas` counts by zone and then by state (`starting`, `ready`, `draining`, `failed`); `placement` is the
    replicas wanted by zone, `wanted` their number by the decision, `weights` the traffic by zone. `nodes` counts the
    rented nodes by zone. `requests_per_s`, `failed_per_s`, `queued`, `in_flight` and `p99_ms` are the balancer's last
    figures. `ages_ms` names what was not heard at that tick, and how old its last word is. `retiring`: nobody wants
    the service any more, it is being taken down. `failure` is why a replica failed last, until all are well. `port` is
    where its balancer listens (0: not known here).
    """

    service: str
    revision: str = ""
    replicas: dict[str, dict[str, int]] = {}
    wanted: int = 0
    placement: dict[str, int] = {}
    weights: dict[str, int] = {}
    nodes: dict[str, int] = {}
    demand: DemandRange = DemandRange(0.0, 0.0, 0.0, "")
    requests_per_s: float = 0.0
    failed_per_s: float = 0.0
    queued: int = 0
    in_flight: int = 0
    p99_ms: float | None = None
    zone_health: dict[str, ZoneHealth] = {}
    capacity: CapacityEstimate | None = None
    rollout: Rollout | None = None
    reasons: tuple[str, ...] = ()
    alerts: tuple[str, ...] = ()
    ages_ms: dict[str, int] = {}
    retiring: bool = False
    port: int = 0
    failure: str = ""


class FleetStatus(msgspec.Struct, frozen=True):
    """The fleet at the last tick of its leader. `wishes` is the version of the wishes that it rests on."""

    at_ms: int
    tick: int
    leader: str
    term: int
    wishes: int = 0
    modes: dict[str, ZoneMode] = {}
    services: dict[str, ServiceStatus] = {}
    in_flight: int = 0
    alerts: tuple[str, ...] = ()


_DECODER = msgspec.json.Decoder(FleetStatus)


def encode_status(status: FleetStatus) -> bytes:
    """The value to remember."""
    return msgspec.json.encode(status)


async def read_status(state: FleetState) -> FleetStatus | None:
    """The last status; None when no loop has led yet. Raises FleetStateError."""
    value = await state.recall(STATUS)
    if value is None:
        return None
    try:
        return _DECODER.decode(value)
    except msgspec.DecodeError as error:
        raise FleetStateError(f"the status is not one ({error}); a loop of another version leads: use that") from error
