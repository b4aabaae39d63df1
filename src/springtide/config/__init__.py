"""`springtide.toml` and `SPRINGTIDE_*` variables → one Config. Each mistake is reported with its key and the remedy."""

from springtide.config.cloud import CloudSettings, LineSettings, MachineSettings
from springtide.config.document import Config
from springtide.config.fleet import CalendarSettings, FleetSettings, ImagesSettings, ZoneSettings
from springtide.config.reading import load, load_sale, parse
from springtide.config.sales import (
    CounterSettings,
    CrowdSettings,
    InventorySettings,
    RoomSettings,
    SaleSettings,
    SkuSettings,
)
from springtide.config.services import HealthSettings, ServiceSettings, SignalSettings, with_revision

__all__ = [
    "CalendarSettings",
    "CloudSettings",
    "Config",
    "CounterSettings",
    "CrowdSettings",
    "FleetSettings",
    "HealthSettings",
    "ImagesSettings",
    "InventorySettings",
    "LineSettings",
    "MachineSettings",
    "RoomSettings",
    "SaleSettings",
    "ServiceSettings",
    "SignalSettings",
    "SkuSettings",
    "ZoneSettings",
    "load",
    "load_sale",
    "parse",
    "with_revision",
]
