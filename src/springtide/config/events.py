"""An event's file: when it is, what it needs and has, what may be rented, within what limits; each key is checked."""

import math
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from springtide.config.cloud import LineSettings
from springtide.config.event_offers import BootSettings, OfferSettings, SpotSettings, read_csv
from springtide.config.fields import Count, NotNegative, Positive, Seconds, Share, to_ms
from springtide.config.reading import read_toml, suggestion, table, tables
from springtide.errors import ConfigError
from springtide.model import (
    FEN_PER_CNY,
    ApiLimit,
    EventImage,
    EventNeed,
    ImageCopy,
    LineNeed,
    Market,
    Odds,
    Offer,
    Quota,
    require_identifier,
)

CLOUD = "cloud"
"""`offers` of this are those of the configured cloud."""

CORES_MAX = 10_000_000

Probability = Annotated[float, Meta(gt=0, lt=1)]
_MS_PER_MIN = 60_000
_MS_PER_H = 3_600_000
_GBIT = 1e9 / 8
_MB = 1e6

ALIBABA_APIS = (
    ApiLimit("RunInstances", (Market.ON_DEMAND, Market.SPOT), batch=100, burst=5_000, per_s=5_000 / 60),
    ApiLimit("CreateContainerGroup", (Market.ECI,), batch=1, burst=100, per_s=20.0, call_ms=300, in_flight=20),
)
"""RunInstances makes 1 to 100 instances a call (its `Amount`), an account 5,000 a minute (ECS, "Limits");
CreateContainerGroup makes one group a call, 100 at once and then 20 a second (ECI, "Limits"). How long a call takes is
not documented: the figures are assumptions on the safe side."""


class EventSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[event]`: what it is called, from when on it lasts how long, and how surely its capacity has to stand.

    Capacity stands `ready_s` before it, and is given back within `release_min` after it. `calendar` is the sale or the
    service that has this event on a platform's calendar ("": it is called as the event is).
    """

    name: str
    at: Annotated[datetime, Meta(tz=True)]
    lasts_min: Annotated[float, Meta(gt=0, le=10_080)]
    probability: Probability = 0.99
    ready_s: Seconds = 60.0
    release_min: Annotated[float, Meta(ge=0, le=1_440)] = 10.0
    calendar: str = ""

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        require_identifier("name", self.name)


class LoadSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[service]`: the cores it needs: `cores` themselves, or a peak with what a request or a replica takes.

    `headroom` is the spare share on top of the peak.
    """

    cores: Annotated[int, Meta(ge=1, le=CORES_MAX)] | None = None
    peak_requests_per_s: Positive | None = None
    cpu_s_per_request: Positive | None = None
    requests_per_s_per_replica: Positive | None = None
    headroom: Annotated[float, Meta(ge=0, le=10)] | None = None
    cores_per_replica: Positive = 1.0
    memory_mb_per_replica: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    start_s: Annotated[float, Meta(ge=0, le=3600)] = 5.0
    arch: Annotated[tuple[str, ...], Meta(min_length=1, max_length=4)] = ("amd64",)

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        each = (self.cpu_s_per_request, self.requests_per_s_per_replica)
        if self.cores is not None:
            if any(each) or self.headroom is not None:
                raise ValueError("cores are all that is wanted: leave headroom and what a request takes out")
        elif self.peak_requests_per_s is None:
            raise ValueError("give cores, or peak_requests_per_s with cpu_s_per_request or requests_per_s_per_replica")
        elif sum(one is not None for one in each) != 1:
            raise ValueError("give one of cpu_s_per_request and requests_per_s_per_replica")
        if self.wanted_cores() > CORES_MAX:
            raise ValueError(f"this takes {self.wanted_cores():,} cores; at most {CORES_MAX:,} can be planned")

    def wanted_cores(self) -> int:
        """In all, in whole replicas."""
        if self.cores is not None:
            return self.cores
        peak = (self.peak_requests_per_s or 0.0) * (1 + (0.25 if self.headroom is None else self.headroom))
        if self.requests_per_s_per_replica:
            replicas = math.ceil(peak / self.requests_per_s_per_replica - 1e-9)
        else:
            replicas = math.ceil(peak * (self.cpu_s_per_request or 0.0) / self.cores_per_replica - 1e-9)
        return math.ceil(replicas * self.cores_per_replica - 1e-9)


class RoomSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[idc]]`: machines of the data centre, and the cores of them that are in use anyway."""

    name: str
    nodes: Count
    cores_per_node: Count
    base_cores: NotNegative = 0.0

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        require_identifier("name", self.name)
        if self.base_cores > self.nodes * self.cores_per_node:
            raise ValueError(f"base_cores of {self.name} are more than its {self.nodes * self.cores_per_node:,} cores")

    def free_cores(self, replica_cores: float) -> int:
        """What whole replicas find beside the base, which is spread evenly."""
        free = self.cores_per_node - self.base_cores / self.nodes
        return math.floor(self.nodes * math.floor(free / replica_cores + 1e-9) * replica_cores + 1e-9)


class QuotaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[quota]`: cores that the account may have in all zones, of each market, and in which time that is raised."""

    on_demand: Annotated[int, Meta(ge=0)] | None = None
    spot: Annotated[int, Meta(ge=0)] | None = None
    eci: Annotated[int, Meta(ge=0)] | None = None
    raised_within_h: Annotated[float, Meta(ge=0, le=8_784)] = 72.0


class PlaceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[zones]]`: a zone of the cloud, its quotas in cores, and its registry caches: what all deliver together."""

    name: str
    quota_on_demand: Annotated[int, Meta(ge=0)] | None = None
    quota_spot: Annotated[int, Meta(ge=0)] | None = None
    quota_eci: Annotated[int, Meta(ge=0)] | None = None
    caches: Annotated[int, Meta(ge=0, le=1000)] = 1
    cache_gbit: Positive = 10.0

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        require_identifier("name", self.name)


class LineUseSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[line_use]`: what the lines carry anyway, and for each request that the cloud serves."""

    base_gbit: NotNegative = 0.0
    bytes_per_request: NotNegative = 0.0


class EventImageSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[image]`: what a new machine pulls (0: its own image has everything), how fast, and how fast it unpacks it."""

    size_mb: NotNegative = 0.0
    node_gbit: Positive = 10.0
    unpack_mb_per_s: Positive = 100.0


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[limits]`: shares of the rented cores, and what may be spent; 0 CNY is no limit."""

    zone_share_max: Annotated[float, Meta(gt=0, le=1)] = 1.0
    spot_share_max: Share = 0.0
    spend_cny: NotNegative = 0.0
    spend_cny_per_h: NotNegative = 0.0


class ApiSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[apis]]`: how fast machines can be ordered, in place of the documented limits of Alibaba Cloud."""

    name: str
    markets: Annotated[tuple[Market, ...], Meta(min_length=1, max_length=3)]
    batch: Count
    burst: Count
    per_s: Positive
    call_ms: Annotated[int, Meta(ge=1, le=600_000)] = 1_000
    in_flight: Count = 4


class OddsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[odds]`: the probabilities of what may go wrong; the defaults and their sources are in the operations guide."""

    boot_failed: Share = 0.002
    stock_out_plenty: Share = 0.01
    stock_out_low: Share = 0.10
    zone_lost: Share = 0.00025
    spot_taken_per_h: NotNegative = 0.03
    spot_safe_min: NotNegative = 60.0
    reorder_s: Seconds = 15.0

    def model(self) -> Odds:
        """As the decisions see them."""
        return Odds(
            self.boot_failed,
            self.stock_out_plenty,
            self.stock_out_low,
            self.zone_lost,
            self.spot_taken_per_h,
            round(self.spot_safe_min * _MS_PER_MIN),
            to_ms(self.reorder_s),
        )


class EventFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything an event's file says. `offers` are `"cloud"`, the path of a CSV file, or typed in."""

    event: EventSettings
    service: LoadSettings
    zones: Annotated[tuple[PlaceSettings, ...], Meta(max_length=100)] = ()
    offers: str | Annotated[tuple[OfferSettings, ...], Meta(max_length=2_000)] = CLOUD
    idc: Annotated[tuple[RoomSettings, ...], Meta(max_length=100)] = ()
    quota: QuotaSettings = QuotaSettings()
    lines: Annotated[tuple[LineSettings, ...], Meta(max_length=20)] = ()
    line_use: LineUseSettings = LineUseSettings()
    image: EventImageSettings = EventImageSettings()
    limits: LimitSettings = LimitSettings()
    boot: BootSettings = BootSettings()
    spot: SpotSettings = SpotSettings()
    apis: Annotated[tuple[ApiSettings, ...], Meta(max_length=10)] = ()
    odds: OddsSettings = OddsSettings()

    def at_ms(self) -> int:
        """When the event begins."""
        return round(self.event.at.timestamp() * 1000)

    @property
    def on_calendar(self) -> str:
        """What a platform's calendar calls the event."""
        return self.event.calendar or self.event.name

    def need(self) -> EventNeed:
        """The event as the decisions see it."""
        load, event, limits = self.service, self.event, self.limits
        free = {room.name: room.free_cores(load.cores_per_replica) for room in self.idc}
        return EventNeed(
            name=event.name,
            at_ms=self.at_ms(),
            lasts_ms=round(event.lasts_min * _MS_PER_MIN),
            cores=load.wanted_cores(),
            probability=event.probability,
            free_cores=sum(free.values()),
            rooms={room.name: free[room.name] + math.ceil(room.base_cores) for room in self.idc},
            ready_ms=to_ms(event.ready_s),
            release_ms=round(event.release_min * _MS_PER_MIN),
            requests_per_s=load.peak_requests_per_s or 0.0,
            replica_cores=load.cores_per_replica,
            replica_memory_mb=load.memory_mb_per_replica,
            arch=load.arch,
            start_ms=to_ms(load.start_s),
            image=self._image(),
            line=LineNeed(
                tuple(line.model() for line in self.lines),
                self.line_use.base_gbit * _GBIT,
                self.line_use.bytes_per_request,
            ),
            apis=tuple(ApiLimit(*msgspec.structs.astuple(one)) for one in self.apis) or ALIBABA_APIS,
            odds=self.odds.model(),
            zone_share_max=limits.zone_share_max,
            spot_share_max=limits.spot_share_max,
            spend_max_fen=limits.spend_cny * FEN_PER_CNY,
            spend_max_fen_per_h=limits.spend_cny_per_h * FEN_PER_CNY,
            quota_ms=round(self.quota.raised_within_h * _MS_PER_H),
        )

    def for_rent(self) -> list[Offer]:
        """The offers that are typed in; none when they are elsewhere."""
        if isinstance(self.offers, str):
            return []
        zones = [zone.name for zone in self.zones]
        return [model for offer in self.offers for model in offer.models(zones, self.boot, self.spot)]

    def quotas(self) -> tuple[Quota, ...]:
        """The limits that are given."""
        found = [("", self.quota.on_demand, self.quota.spot, self.quota.eci)]
        found += [(zone.name, zone.quota_on_demand, zone.quota_spot, zone.quota_eci) for zone in self.zones]
        markets = (Market.ON_DEMAND, Market.SPOT, Market.ECI)
        return tuple(
            Quota(market, limit, zone=zone)
            for zone, *limits in found
            for market, limit in zip(markets, limits, strict=True)
            if limit is not None
        )

    def _image(self) -> EventImage:
        image = self.image
        caches = (ImageCopy(zone.name, zone.cache_gbit * _GBIT, zone.caches) for zone in self.zones if zone.caches)
        return EventImage(
            round(image.size_mb * _MB), tuple(caches), image.node_gbit * _GBIT, image.unpack_mb_per_s * _MB
        )


_LISTS: dict[str, type[msgspec.Struct]] = {
    "zones": PlaceSettings,
    "offers": OfferSettings,
    "idc": RoomSettings,
    "lines": LineSettings,
    "apis": ApiSettings,
}
_TABLES: dict[str, type[msgspec.Struct]] = {
    "event": EventSettings,
    "service": LoadSettings,
    "quota": QuotaSettings,
    "line_use": LineUseSettings,
    "image": EventImageSettings,
    "limits": LimitSettings,
    "boot": BootSettings,
    "spot": SpotSettings,
    "odds": OddsSettings,
}


def load_event(path: Path) -> EventFile:
    """Read an event's file, and the CSV file that it names. Raises ConfigError, one line for each mistake."""
    event = parse_event(read_toml(path, "an event's file, such as examples/kuaishou-event.toml"), str(path))
    if isinstance(event.offers, str) and event.offers != CLOUD:
        offers = read_csv(path.parent / event.offers, [zone.name for zone in event.zones], event.spot)
        return msgspec.structs.replace(event, offers=offers)
    return event


def parse_event(raw: dict[str, Any], origin: str) -> EventFile:
    """Check a parsed TOML document; `origin` names it in messages. Raises ConfigError, one line for each mistake."""
    mistakes: list[str] = []
    parts: dict[str, Any] = {}
    for name, value in raw.items():
        if name == "offers" and isinstance(value, str):
            parts[name] = value
        elif name in _LISTS:
            parts[name] = tables(value, _LISTS[name], name, mistakes)
        elif name in _TABLES:
            parts[name] = table(value, _TABLES[name], name, mistakes)
        else:
            mistakes.append(f"{name}: unknown{suggestion(name, [*_TABLES, *_LISTS])}")
    mistakes.extend(f"{name}: missing; an event needs [{name}]" for name in ("event", "service") if name not in raw)
    if not mistakes:
        event = EventFile(**parts)
        mistakes = list(_cross_checks(event))
        if not mistakes:
            return event
    raise ConfigError("\n".join(f"{origin}: {mistake}" for mistake in mistakes))


def _cross_checks(event: EventFile) -> Iterator[str]:
    zones = [zone.name for zone in event.zones]
    for key, names in (
        ("zones", zones),
        ("idc", [room.name for room in event.idc]),
        ("lines", [line.name for line in event.lines]),
        ("apis", [api.name for api in event.apis]),
    ):
        yield from (
            f"{key}[{at}].name: {name!r} stands twice; names must differ"
            for at, name in enumerate(names)
            if name in names[:at]
        )
    if event.offers != CLOUD and not zones:
        yield "zones: missing; name the zones of the cloud in which machines may be rented, each as [[zones]]"
    for at, line in enumerate(event.lines):
        yield from (
            f"lines[{at}].zones: there is no zone {name!r}{suggestion(name, zones)}"
            for name in line.zones
            if name not in zones
        )
    yield from _offers(event, zones)


def _offers(event: EventFile, zones: list[str]) -> Iterator[str]:
    if isinstance(event.offers, str):
        return
    seen: set[str] = set()
    for at, offer in enumerate(event.offers):
        yield from (
            f"offers[{at}].zones: there is no zone {name!r}{suggestion(name, zones)}"
            for name in offer.zones
            if name not in zones
        )
        try:
            keys = {model.key for model in offer.models(zones, event.boot, event.spot)}
        except ValueError as error:
            yield f"offers[{at}]: {error}"
            continue
        if twice := sorted(keys & seen):
            yield f"offers[{at}]: {twice[0]} stands twice; leave one out"
        seen |= keys
