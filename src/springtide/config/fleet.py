"""What the fleet is told: its zones and their engines, the control loop, images, and the demand on the calendar."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from springtide.config.fields import Count, NotNegative, Port, Positive, Seconds, to_ms
from springtide.model import CalendarEvent, FleetPolicy, Zone, ZoneKind, require_identifier

RuntimeName = Literal["process", "docker"]
BalancerName = Literal["auto", "haproxy", "envoy"]
_MS_PER_H = 3_600_000


def require_registry(what: str, address: str) -> None:
    """Raise ValueError unless `address` is `HOST:PORT`."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        msg = f"{what} {address!r} must be HOST:PORT of a registry"
        raise ValueError(msg)


class ZoneSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[zones]]`: a room of the data centre, or a cloud zone.

    `engine` is the zone's Docker Engine (`unix:///PATH` or `tcp://HOST:PORT`), `address` where its containers' ports
    are reached ("": the engine is on this machine), `cache` the registry (`HOST:PORT`) that keeps its images.
    `cloud_zone` is the cloud's own name of the zone, `vswitch` the switch that new machines are connected to.
    """

    name: str
    kind: ZoneKind
    nodes_max: Count
    cores_per_node: Count
    boot_s: Seconds = 0.0
    price_cny_per_node_h: NotNegative = 0.0
    memory_mb_per_node: Annotated[int, Meta(ge=0, le=100_000_000)] = 0
    engine: str = ""
    address: str = ""
    cache: str = ""
    cloud_zone: str = ""
    vswitch: str = ""

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        require_identifier("name", self.name)
        if self.kind is ZoneKind.IDC and (self.cloud_zone or self.vswitch):
            msg = f"zone {self.name} is no cloud zone: leave cloud_zone and vswitch out"
            raise ValueError(msg)
        if self.engine and not self.engine.startswith(("unix:///", "tcp://")):
            msg = f"engine {self.engine!r} of zone {self.name} must be unix:///PATH or tcp://HOST:PORT"
            raise ValueError(msg)
        if self.cache:
            require_registry("cache", self.cache)

    def model(self) -> Zone:
        """The zone as the decisions see it."""
        return Zone(
            name=self.name,
            kind=self.kind,
            nodes_max=self.nodes_max,
            cores_per_node=self.cores_per_node,
            lead_ms=to_ms(self.boot_s),
            price_fen_per_node_h=round(self.price_cny_per_node_h * 100),
            memory_mb_per_node=self.memory_mb_per_node,
        )


class FleetSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[fleet]`: the control loop. Without `failure_budget`, one zone of several may be lost."""

    tick_ms: Annotated[int, Meta(ge=50, le=60_000)] = 500
    headroom: Annotated[float, Meta(ge=0, le=10)] = 0.3
    base_replicas: Count = 2
    patience_s: Seconds = 8.0
    drain_s: Seconds = 2.0
    start_s: Seconds = 3.0
    actions_max: Count = 8
    starting_max: Count = 4
    runtime: RuntimeName = "process"
    balancer: BalancerName = "auto"
    failure_budget: Annotated[int, Meta(ge=0, le=1)] | None = None
    scale_in_share: Annotated[float, Meta(gt=0, le=1)] = 0.5
    scale_in_every_s: Seconds = 2.0
    zone_down_s: Seconds = 0.0
    zone_return_s: Seconds = 5.0
    zone_ramp_s: Seconds = 10.0
    rollout_surge: Count = 1
    rollout_failed_max: Annotated[int, Meta(ge=0, le=1000)] = 2
    capacity_learnt: bool = False
    season_h: Annotated[float, Meta(ge=0, le=744)] = 0.0
    lease_s: Annotated[float, Meta(ge=1, le=60)] = 3.0

    def policy(self, requests_per_s: float, cores: float, zones: int) -> FleetPolicy:
        """The limits and tastes of the decisions about replicas of this size, over so many zones."""
        return FleetPolicy(
            replica_requests_per_s=requests_per_s,
            replica_cores=cores,
            headroom=self.headroom,
            base_replicas=self.base_replicas,
            patience_ms=to_ms(self.patience_s),
            drain_ms=to_ms(self.drain_s),
            start_ms=to_ms(self.start_s),
            actions_max=self.actions_max,
            starting_max=self.starting_max,
            stale_ms=3 * self.tick_ms,
            failure_budget=int(zones > 1) if self.failure_budget is None else self.failure_budget,
            scale_in_share=self.scale_in_share,
            scale_in_every_ms=to_ms(self.scale_in_every_s),
            zone_down_ms=to_ms(self.zone_down_s),
            zone_return_ms=to_ms(self.zone_return_s),
            zone_ramp_ms=to_ms(self.zone_ramp_s),
            rollout_surge=self.rollout_surge,
            rollout_failed_max=self.rollout_failed_max,
            capacity_learnt=self.capacity_learnt,
            season_ms=round(self.season_h * _MS_PER_H),
        )


class ImagesSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[images]`: the registry that images come from, and the line to the zones' caches.

    `origin` is the `HOST:PORT` of one that is there. Without it, one is run here that listens on `port` and keeps its
    images in `folder` (""; in the data folder). `keep` are references that no collection
    deletes, beside those that are in use. A `bandwidth_mbit` of 0 is not limited.
    """

    origin: str = ""
    port: Port = 5000
    folder: str = ""
    keep: tuple[str, ...] = ()
    bandwidth_mbit: NotNegative = 0.0

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        if self.origin:
            require_registry("origin", self.origin)

    @property
    def address(self) -> str:
        """Where the registry is that images come from."""
        return self.origin or f"127.0.0.1:{self.port}"


class CalendarSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[calendar]]`: the demand that is announced, for a sale (from its opening on) or for a service (`at` a moment).

    `ready_s`: capacity stands this long before it.
    """

    peak_requests_per_s: Positive
    lasts_s: Seconds
    sale: str = ""
    service: str = ""
    at: Annotated[datetime, Meta(tz=True)] | None = None
    ready_s: Seconds = 5.0

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        if bool(self.sale) == bool(self.service):
            raise ValueError("an entry names either a sale or a service: give one of them")
        if self.service and self.at is None:
            msg = f"service {self.service} needs at: the moment, such as 2026-11-11T20:00:00+08:00"
            raise ValueError(msg)
        if self.sale and self.at is not None:
            msg = f"sale {self.sale} has its opening in [[sales]]: leave at out"
            raise ValueError(msg)

    def model(self, opens_ms: int) -> CalendarEvent:
        """The event, from `opens_ms` on."""
        return CalendarEvent(
            name=self.sale or self.service,
            opens_ms=opens_ms,
            lasts_ms=to_ms(self.lasts_s),
            peak_requests_per_s=self.peak_requests_per_s,
            ready_ms=to_ms(self.ready_s),
        )

    def at_ms(self) -> int:
        """The moment of a service's entry, Unix milliseconds."""
        return 0 if self.at is None else round(self.at.timestamp() * 1000)
