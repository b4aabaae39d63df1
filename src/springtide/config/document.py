"""The whole configuration as one value, and what its readers make of it."""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from springtide.config.cloud import CloudSettings, LineSettings
from springtide.config.fields import to_ms
from springtide.config.fleet import CalendarSettings, FleetSettings, ImagesSettings, ZoneSettings
from springtide.config.sales import CounterSettings, CrowdSettings, InventorySettings, RoomSettings, SaleSettings
from springtide.config.services import ServiceSettings
from springtide.model import CalendarEvent, FleetPolicy, Line, Sale, ServiceWish, Zone


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything `springtide.toml` says."""

    zones: Annotated[tuple[ZoneSettings, ...], Meta(min_length=1, max_length=100)]
    sales: Annotated[tuple[SaleSettings, ...], Meta(max_length=100)] = ()
    services: Annotated[tuple[ServiceSettings, ...], Meta(max_length=100)] = ()
    calendar: tuple[CalendarSettings, ...] = ()
    counter: CounterSettings = CounterSettings()
    inventory: InventorySettings = InventorySettings()
    room: RoomSettings = RoomSettings()
    fleet: FleetSettings = FleetSettings()
    images: ImagesSettings | None = None
    cloud: CloudSettings = CloudSettings()
    lines: Annotated[tuple[LineSettings, ...], Meta(max_length=20)] = ()
    crowd: CrowdSettings | None = None

    def fleet_zones(self) -> tuple[Zone, ...]:
        """The zones as the decisions see them."""
        return tuple(zone.model() for zone in self.zones)

    def sales_from(self, start_ms: int) -> tuple[Sale, ...]:
        """The sales, with the seconds of the file counted from `start_ms`."""
        return tuple(sale.model(start_ms) for sale in self.sales)

    def calendar_from(self, start_ms: int) -> tuple[CalendarEvent, ...]:
        """The demand announced for sales, with the seconds of the file counted from `start_ms`."""
        opens = {sale.sale: sale.opens_after_s for sale in self.sales}
        return tuple(event.model(start_ms + to_ms(opens[event.sale])) for event in self.calendar if event.sale)

    def calendar_of(self, service: str) -> tuple[CalendarEvent, ...]:
        """The demand announced for a service."""
        return tuple(event.model(event.at_ms()) for event in self.calendar if event.service == service)

    def wishes(self, folder: Path) -> dict[str, ServiceWish]:
        """The services by name, as the fleet is asked for them; relative paths count from `folder`."""
        return {service.name: service.wish(folder) for service in self.services}

    def policy(self) -> FleetPolicy:
        """The limits and tastes of the decisions about counters; services differ by what their wishes say."""
        fleet = self.cloud.policy(self.fleet.policy(self.counter.rate_max, self.counter.cores, len(self.zones)))
        share = min((line.share_max for line in self.lines), default=fleet.line_share_max)
        return msgspec.structs.replace(fleet, line_share_max=share)

    def fleet_lines(self) -> tuple[Line, ...]:
        """The lines as the decisions see them."""
        return tuple(line.model() for line in self.lines)
