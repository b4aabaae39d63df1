"""`springtide.toml` and `SPRINGTIDE_*` variables → one Config. Each mistake is reported with its key and the remedy.

A variable overrides a key of a table: `SPRINGTIDE_FLEET_HEADROOM=0.5` is `headroom` in `[fleet]`.
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from springtide.errors import ConfigError
from springtide.model import (
    BUCKETS_MAX,
    CalendarEvent,
    FleetPolicy,
    Sale,
    Sku,
    Zone,
    ZoneKind,
    require_identifier,
)

Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1, le=100_000)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Milliseconds = Annotated[int, Meta(ge=1, le=3_600_000)]


class ZoneSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[zones]]`: a room of the data centre, or a cloud zone."""

    name: str
    kind: ZoneKind
    nodes_max: Count
    cores_per_node: Count
    boot_s: Seconds = 0.0
    price_cny_per_node_h: Annotated[float, Meta(ge=0)] = 0.0

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        require_identifier("name", self.name)
        if self.kind is ZoneKind.CLOUD and self.price_cny_per_node_h == 0:
            msg = f"cloud zone {self.name} needs price_cny_per_node_h: what a node costs an hour"
            raise ValueError(msg)


class CounterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[counter]`: one replica of the order path's front."""

    rate_max: Positive = 300.0
    queue_wait_ms_max: Milliseconds = 250
    cores: Count = 1
    batch_max: Annotated[int, Meta(ge=1, le=1024)] = 128
    batches_in_flight_max: Annotated[int, Meta(ge=1, le=64)] = 2
    purchase_timeout_ms: Milliseconds = 2000
    connections_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    body_bytes_max: Annotated[int, Meta(ge=64, le=1_048_576)] = 4096
    buyer_rate_max: Positive = 10.0
    buyer_burst_max: Count = 20
    address_rate_max: Annotated[float, Meta(ge=0)] = 100_000.0
    address_burst_max: Count = 100_000
    forwarded_hops: Annotated[int, Meta(ge=0, le=16)] = 0
    page_age_ms_max: Milliseconds = 200
    journal_lag_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000


class InventorySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[inventory]`: Valkey. The reserve is for the embedded one, the replicas for a cluster."""

    replicas_acked: Annotated[int, Meta(ge=0, le=5)] = 1
    disk_reserve_mb: Annotated[int, Meta(ge=16, le=1_048_576)] = 256


class RoomSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[room]`: the waiting rooms."""

    pass_s: Annotated[float, Meta(ge=5, le=3600)] = 120.0
    requests_per_buyer: Positive = 5.0
    rate_default: Positive = 200.0
    rate_max: Positive = 100_000.0


class FleetSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[fleet]`: the control loop."""

    tick_ms: Annotated[int, Meta(ge=50, le=60_000)] = 500
    headroom: Annotated[float, Meta(ge=0, le=10)] = 0.3
    base_replicas: Count = 2
    patience_s: Seconds = 8.0
    drain_s: Seconds = 2.0
    start_s: Seconds = 3.0
    actions_max: Count = 8
    starting_max: Count = 4


class SkuSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[sales.skus]]`."""

    sku: str
    title: str
    price_cny: Annotated[float, Meta(ge=0, le=10_000_000)]
    stock: Annotated[int, Meta(ge=0, le=1_000_000_000_000)]
    per_buyer_max: Count = 1
    spread: bool = False

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        require_identifier("sku", self.sku)


class SaleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[sales]]`: what is sold and when, in seconds after the start of the run."""

    sale: str
    title: str
    opens_after_s: Seconds
    closes_after_s: Seconds
    hold_s: Annotated[float, Meta(ge=1, le=86_400)]
    skus: Annotated[tuple[SkuSettings, ...], Meta(min_length=1, max_length=100)]
    buckets: Annotated[int, Meta(ge=1, le=BUCKETS_MAX)] = 1
    waiting_room: bool = False
    pay_url: str = ""

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        require_identifier("sale", self.sale)
        if self.closes_after_s <= self.opens_after_s:
            msg = f"sale {self.sale} closes before it opens: closes_after_s must be above opens_after_s"
            raise ValueError(msg)


class CalendarSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[calendar]]`: the demand the merchant announces for a sale.

    `ready_s`: capacity stands this long before the opening.
    """

    sale: str
    peak_requests_per_s: Positive
    lasts_s: Seconds
    ready_s: Seconds = 5.0


class CrowdSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[crowd]`: the buyers of a demo. `demand` is a CSV beside the TOML: `second,requests_per_second`."""

    demand: str
    seed: int = 1
    zipf_exponent: Positive = 1.1
    page_share: Share = 0.15
    pay_share: Share = 0.8
    pay_after_s: Seconds = 3.0
    retry_share: Share = 0.5
    retries_max: Annotated[int, Meta(ge=0, le=20)] = 3
    answer_timeout_s: Positive = 5.0
    connections: Annotated[int, Meta(ge=1, le=10_000)] = 256


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything `springtide.toml` says."""

    zones: Annotated[tuple[ZoneSettings, ...], Meta(min_length=1, max_length=100)]
    sales: Annotated[tuple[SaleSettings, ...], Meta(min_length=1, max_length=100)]
    calendar: tuple[CalendarSettings, ...] = ()
    counter: CounterSettings = CounterSettings()
    inventory: InventorySettings = InventorySettings()
    room: RoomSettings = RoomSettings()
    fleet: FleetSettings = FleetSettings()
    crowd: CrowdSettings | None = None

    def fleet_zones(self) -> tuple[Zone, ...]:
        """The zones as the decisions see them."""
        return tuple(
            Zone(
                name=zone.name,
                kind=zone.kind,
                nodes_max=zone.nodes_max,
                cores_per_node=zone.cores_per_node,
                lead_ms=round(zone.boot_s * 1000),
                price_fen_per_node_h=round(zone.price_cny_per_node_h * 100),
            )
            for zone in self.zones
        )

    def sales_from(self, start_ms: int) -> tuple[Sale, ...]:
        """The sales, with the seconds of the file counted from `start_ms`."""
        return tuple(
            Sale(
                sale=sale.sale,
                title=sale.title,
                skus=tuple(
                    Sku(
                        sku=sku.sku,
                        title=sku.title,
                        price_fen=round(sku.price_cny * 100),
                        stock=sku.stock,
                        per_buyer_max=sku.per_buyer_max,
                        spread=sku.spread,
                    )
                    for sku in sale.skus
                ),
                opens_ms=start_ms + round(sale.opens_after_s * 1000),
                closes_ms=start_ms + round(sale.closes_after_s * 1000),
                hold_ms=round(sale.hold_s * 1000),
                buckets=sale.buckets,
                waiting_room=sale.waiting_room,
                pay_url=sale.pay_url,
            )
            for sale in self.sales
        )

    def calendar_from(self, start_ms: int) -> tuple[CalendarEvent, ...]:
        """The announced demand, with the seconds of the file counted from `start_ms`."""
        opens = {sale.sale: sale.opens_after_s for sale in self.sales}
        return tuple(
            CalendarEvent(
                name=event.sale,
                opens_ms=start_ms + round(opens[event.sale] * 1000),
                lasts_ms=round(event.lasts_s * 1000),
                peak_requests_per_s=event.peak_requests_per_s,
                ready_ms=round(event.ready_s * 1000),
            )
            for event in self.calendar
        )

    def policy(self) -> FleetPolicy:
        """The limits and tastes of the decisions."""
        fleet = self.fleet
        return FleetPolicy(
            replica_requests_per_s=self.counter.rate_max,
            replica_cores=self.counter.cores,
            headroom=fleet.headroom,
            base_replicas=fleet.base_replicas,
            patience_ms=round(fleet.patience_s * 1000),
            drain_ms=round(fleet.drain_s * 1000),
            start_ms=round(fleet.start_s * 1000),
            actions_max=fleet.actions_max,
            starting_max=fleet.starting_max,
            stale_ms=3 * fleet.tick_ms,
        )


_TABLES: dict[str, type[msgspec.Struct]] = {
    "counter": CounterSettings,
    "inventory": InventorySettings,
    "room": RoomSettings,
    "fleet": FleetSettings,
    "crowd": CrowdSettings,
}
_LISTS: dict[str, type[msgspec.Struct]] = {
    "zones": ZoneSettings,
    "sales": SaleSettings,
    "calendar": CalendarSettings,
}


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Read the file and the variables. Raises ConfigError, one line for each mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        msg = f"{path}: there is no such file; give the path of a springtide.toml"
        raise ConfigError(msg) from None
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: cannot be read: {error}"
        raise ConfigError(msg) from error
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        msg = f"{path}: not valid TOML: {error}"
        raise ConfigError(msg) from error
    return parse(raw, str(path), environ)


def parse(raw: dict[str, Any], origin: str, environ: Mapping[str, str]) -> Config:
    """Check a parsed TOML document; `origin` names it in messages. Raises ConfigError, one line for each mistake."""
    raw = _with_variables(raw, environ)
    mistakes: list[str] = []
    parts: dict[str, Any] = {}
    for name, value in raw.items():
        if name in _TABLES:
            parts[name] = _part(value, _TABLES[name], name, mistakes)
        elif name in _LISTS:
            parts[name] = _parts(value, _LISTS[name], name, mistakes)
        else:
            mistakes.append(f"{name}: unknown{_suggestion(name, [*_TABLES, *_LISTS])}")
    mistakes.extend(
        f"{name}: missing; a run needs at least one [[{name}]]" for name in ("zones", "sales") if name not in raw
    )
    if not mistakes:
        mistakes = _cross_checks(parts)
    if mistakes:
        raise ConfigError("\n".join(f"{origin}: {mistake}" for mistake in mistakes))
    return msgspec.convert(parts, Config)


def _parts(value: object, kind: type[msgspec.Struct], name: str, mistakes: list[str]) -> tuple[object, ...]:
    if not isinstance(value, list):
        mistakes.append(f"{name}: must be written as [[{name}]]")
        return ()
    if not value:
        mistakes.append(f"{name}: empty; give at least one [[{name}]] or leave it out")
    return tuple(_part(item, kind, f"{name}[{index}]", mistakes) for index, item in enumerate(value))


def _part(value: object, kind: type[msgspec.Struct], where: str, mistakes: list[str]) -> object:
    """One table, checked key by key, so that every wrong key is named and not only the first."""
    if not isinstance(value, dict):
        mistakes.append(f"{where}: must be a table")
        return None
    known = {field.name: field for field in msgspec.structs.fields(kind)}
    found = len(mistakes)
    for key, item in value.items():
        if key not in known:
            mistakes.append(f"{where}.{key}: unknown{_suggestion(key, list(known))}")
            continue
        try:
            msgspec.convert(item, known[key].type)
        except msgspec.ValidationError as error:
            mistakes.append(f"{where}.{key}: {_plain(error)}")
    mistakes.extend(f"{where}.{name}: missing" for name, field in known.items() if field.required and name not in value)
    if len(mistakes) > found:
        return None
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        mistakes.append(f"{where}: {_plain(error)}")
        return None


def _cross_checks(parts: dict[str, Any]) -> list[str]:
    mistakes: list[str] = []
    for name, key in (("zones", "name"), ("sales", "sale")):
        values = [getattr(item, key) for item in parts[name]]
        mistakes.extend(
            f"{name}[{index}].{key}: {value!r} stands twice; names must differ"
            for index, value in enumerate(values)
            if value in values[:index]
        )
    if not any(zone.kind is ZoneKind.IDC for zone in parts["zones"]):
        mistakes.append('zones: no zone has kind = "idc"; inventory and base replicas need one')
    sales = [sale.sale for sale in parts["sales"]]
    mistakes.extend(
        f"calendar[{index}].sale: there is no sale {event.sale!r}{_suggestion(event.sale, sales)}"
        for index, event in enumerate(parts.get("calendar", ()))
        if event.sale not in sales
    )
    for index, sale in enumerate(parts["sales"]):
        skus = [sku.sku for sku in sale.skus]
        mistakes.extend(
            f"sales[{index}].skus[{at}].sku: {sku!r} stands twice; names must differ"
            for at, sku in enumerate(skus)
            if sku in skus[:at]
        )
    return mistakes


def _with_variables(raw: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    merged = {name: dict(value) if isinstance(value, dict) else value for name, value in raw.items()}
    for variable, text in environ.items():
        for table in _TABLES:
            prefix = f"SPRINGTIDE_{table.upper()}_"
            if variable.startswith(prefix):
                merged.setdefault(table, {})[variable.removeprefix(prefix).lower()] = _value(text)
    return merged


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _suggestion(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known are: {', '.join(sorted(known))}"


def _plain(error: Exception) -> str:
    return str(error).replace(" - at `$", " at `").replace("Expected", "expected")
