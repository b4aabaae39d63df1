"""A scenario: the world, the people, what goes wrong in it, and what the fleet is told, as one value."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from springtide.config import FleetSettings
from springtide.config.fields import Count, NotNegative, Positive, Seconds, Share, to_ms
from springtide.model import CalendarEvent, FleetPolicy, Market, Zone, ZoneKind, require_identifier
from springtide.twin.market_settings import ApiLimits
from springtide.twin.simulation.faults import Fault, FaultKind
from springtide.twin.simulation.flow import PathSettings

__all__ = [
    "DemandSettings",
    "Fault",
    "FaultKind",
    "PolicySettings",
    "Scenario",
    "Service",
    "SimCloud",
    "SimLine",
    "SimOffer",
    "SimQuota",
    "SimZone",
    "Slo",
    "Wave",
]

DURATION_MAX_S = 31 * 86_400
_START = datetime(2023, 11, 11, 11, 30, tzinfo=UTC)  # 19:30 in China, half an hour before the sale opens


class Wave(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One event: so many people a second on top of the normal ones, and what the calendar says of it.

    From `opens_s` the demand rises in a straight line for `rise_s` to `peak_per_s`, holds for `holds_s`, then falls to
    1/e in each `fades_s`. The calendar announces `announced_per_s` requests/s for `announced_s` (0: until it begins to
    fade), and wants the capacity to stand `ready_s` before; an `announced_per_s` of 0: nobody knew.
    """

    name: str
    opens_s: NotNegative
    peak_per_s: NotNegative
    rise_s: Seconds = 1.0
    holds_s: Seconds = 600.0
    fades_s: Seconds = 300.0
    announced_per_s: NotNegative = 0.0
    announced_s: Seconds = 0.0
    ready_s: Seconds = 60.0

    @property
    def lasts_s(self) -> float:
        """From the opening until it fades."""
        return self.rise_s + self.holds_s


class DemandSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who comes: `base_per_s` people a second, and the waves; or a CSV file of `timestamp,value`.

    A `file`'s values are counts for each `bin_s`, times `scale`; waves come on top, `base_per_s` does not count then.
    `noise`: each second's count differs as that of independent arrivals would. Bots are among them
    (`PathSettings.bots_share`).
    """

    base_per_s: NotNegative = 0.0
    waves: tuple[Wave, ...] = ()
    file: str = ""
    bin_s: Count = 300
    scale: Positive = 1.0
    noise: bool = True


class Service(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What answers: a request takes `cpu_s` core seconds over its whole call tree, so the cores follow from the demand.

    A replica has `replica_cores` and is run at up to `load_max` of them: beyond, waiting times grow without bound. It
    serves `start_s` after its node has the image of `image_mb`.
    """

    cpu_s: Positive = 0.1
    replica_cores: Count = 32
    load_max: Annotated[float, Meta(gt=0, le=1)] = 0.9
    start_s: Seconds = 20.0
    image_mb: Positive = 1_000.0

    @property
    def replica_per_s(self) -> float:
        """Requests/s that a replica takes at the load it is run at."""
        return self.replica_cores * self.load_max / self.cpu_s


class SimZone(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A room of the data centre, or a cloud zone.

    `nodes` is the size of the fixed pool, or how many may be rented at most. `lines` join it to the origin of the
    images and to the order path (none: it is there). `cache_gbit` is what its image cache sends, `node_gbit` what a
    node receives; `image_cached`: the image lies in the cache from the beginning.
    """

    name: str
    kind: ZoneKind
    nodes: Count
    cores_per_node: Count = 32
    memory_gib_per_node: Count = 64
    lines: tuple[str, ...] = ()
    cache_gbit: Positive = 40.0
    node_gbit: Positive = 10.0
    image_cached: bool = False
    price_cny_per_node_h: NotNegative = 0.0
    lead_s: Seconds = 0.0

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        require_identifier("name", self.name)

    def model(self) -> Zone:
        """The zone as the decisions see it."""
        return Zone(
            name=self.name,
            kind=self.kind,
            nodes_max=self.nodes,
            cores_per_node=self.cores_per_node,
            lead_ms=to_ms(self.lead_s),
            price_fen_per_node_h=round(self.price_cny_per_node_h * 100),
            memory_mb_per_node=self.memory_gib_per_node * 1024,
        )


class SimLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A dedicated line between the data centre and the cloud. A request that crosses it takes `request_bytes`."""

    name: str
    gbit: Positive = 10.0
    round_trip_ms: NotNegative = 2.0
    request_bytes: NotNegative = 400.0


class SimOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A type of machine on offer, `stock` of it in each of `zones` (none named: in every cloud zone)."""

    instance_type: str
    cores: Count
    memory_gib: Count
    price_cny_per_h: Positive
    stock: Annotated[int, Meta(ge=0)] = 1_000
    market: Market = Market.ON_DEMAND
    zones: tuple[str, ...] = ()


class SimQuota(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The account's limit for one market, in cores, in one zone ("": all of them together)."""

    market: Market
    cores: Annotated[int, Meta(ge=0)]
    zone: str = ""


class SimCloud(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The cloud: offers (none: `market_settings.default_offers`), quotas (none: a million cores), and boots.

    Boot times are log-normal: half of the machines need the median at most, 99 of 100 the p99. See MarketSettings for
    the others.
    """

    offers: tuple[SimOffer, ...] = ()
    quotas: tuple[SimQuota, ...] = ()
    boot_median_s: Positive = 60.0
    boot_p99_s: Positive = 180.0
    eci_boot_median_s: Positive = 20.0
    eci_boot_p99_s: Positive = 60.0
    limits: ApiLimits = ApiLimits()
    refill_share_per_h: NotNegative = 0.5
    price_move: Share = 0.03
    reclaims_per_h: NotNegative = 0.0


class PolicySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What FleetPolicy has beyond `[fleet]`, in the units of people."""

    event_doubt: NotNegative = 0.0
    event_doubt_s: Seconds = 120.0
    release_after_s: Seconds = 0.0
    spend_max_cny_per_h: NotNegative = 0.0
    zone_share_max: Share = 1.0
    spot_share_max: Share = 0.0
    line_share_max: Share = 0.8
    replicas_max: Count | None = None


class Slo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A second violates it when a larger share of its requests than `bad_share` was shed or failed, or p99 is above."""

    bad_share: Share = 0.001
    p99_ms: Positive = 1_000.0


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A world to simulate for `duration_s`, in steps of `step_s`; the fleet decides every `fleet.tick_ms`.

    `cores_wanted` serving cores on top of the owner's are what `ready_s` of the outcome is about; 0: what the largest
    demand takes. `calendar`: the fleet knows what was announced.
    """

    name: str
    demand: DemandSettings
    zones: tuple[SimZone, ...]
    about: str = ""
    seed: int = 1
    duration_s: Annotated[int, Meta(ge=1, le=DURATION_MAX_S)] = 7_200
    step_s: Annotated[float, Meta(gt=0, le=60)] = 1.0
    start: datetime = _START
    calendar: bool = True
    cores_wanted: Annotated[int, Meta(ge=0)] = 0
    service: Service = Service()
    lines: tuple[SimLine, ...] = ()
    cloud: SimCloud = SimCloud()
    path: PathSettings = PathSettings(stock=1_000_000)
    fleet: FleetSettings = FleetSettings(tick_ms=5_000, start_s=30.0, actions_max=1_000, starting_max=1_000)
    policy: PolicySettings = PolicySettings()
    faults: tuple[Fault, ...] = ()
    slo: Slo = Slo()

    def __post_init__(self) -> None:
        """Check what holds between the parts."""
        require_identifier("name", self.name)
        zones = [zone.name for zone in self.zones]
        lines = {line.name for line in self.lines}
        if self.fleet.start_s < self.service.start_s:
            msg = f"fleet.start_s: the fleet gives a replica {self.fleet.start_s:g} s to start, and the service takes "
            raise ValueError(f"{msg}{self.service.start_s:g} s and the time of its image; say at least that")
        if not zones or len(set(zones)) < len(zones):
            raise ValueError("zones: give at least one [[zones]], each with a name of its own")
        _known("lines of a zone", (name for zone in self.zones for name in zone.lines), lines)
        cloud = {zone.name for zone in self.zones if zone.kind is ZoneKind.CLOUD}
        _known("zones of an offer", (name for offer in self.cloud.offers for name in offer.zones), cloud)
        _known("zone of a quota", (quota.zone for quota in self.cloud.quotas if quota.zone), cloud)
        waves = {wave.name for wave in self.demand.waves}
        for fault in self.faults:
            if fault.kind in _OF_ZONES and (fault.target or fault.kind is FaultKind.ZONE_LOST):
                _known(f"target of {fault.kind}", (fault.target,), set(zones))
            elif fault.kind in _OF_LINES:
                _known(f"target of {fault.kind}", (fault.target,), lines)
            elif fault.kind is FaultKind.LARGER_SALE and fault.target:
                _known(f"target of {fault.kind}", (fault.target,), waves)

    @property
    def start_ms(self) -> int:
        """The beginning, Unix ms."""
        return round(self.start.timestamp() * 1000)

    def fleet_policy(self) -> FleetPolicy:
        """What the decisions are told."""
        base = self.fleet.policy(self.service.replica_per_s, self.service.replica_cores, len(self.zones))
        more = self.policy
        return msgspec.structs.replace(
            base,
            replicas_max=more.replicas_max,
            event_doubt=more.event_doubt,
            event_doubt_ms=to_ms(more.event_doubt_s),
            release_after_ms=to_ms(more.release_after_s),
            spend_max_fen_per_h=more.spend_max_cny_per_h * 100,
            zone_share_max=more.zone_share_max,
            spot_share_max=more.spot_share_max,
            line_share_max=more.line_share_max,
        )

    def announced(self) -> tuple[CalendarEvent, ...]:
        """The calendar that the fleet has; empty without one."""
        if not self.calendar:
            return ()
        return tuple(
            CalendarEvent(
                name=wave.name,
                opens_ms=self.start_ms + to_ms(wave.opens_s),
                lasts_ms=to_ms(wave.announced_s or wave.lasts_s),
                peak_requests_per_s=wave.announced_per_s,
                ready_ms=to_ms(wave.ready_s),
            )
            for wave in self.demand.waves
            if wave.announced_per_s
        )


_OF_ZONES = {FaultKind.ZONE_LOST, FaultKind.SPOT_RECLAIM, FaultKind.REGISTRY_GONE}
_OF_LINES = {FaultKind.LINE_CUT, FaultKind.LINE_SLOW}


def _known(what: str, names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            msg = f"{what}: {name!r} is unknown; known are: {', '.join(sorted(known)) or 'none'}"
            raise ValueError(msg)
