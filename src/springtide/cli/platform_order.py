"""The order path as a part of the platform: engines, recorder and back office; the counters are one more service."""

import hashlib
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import msgspec

from springtide.cli.platform_folder import PlatformFolder, PlatformSettings
from springtide.cli.roles import RoleSettings
from springtide.cli.serve import open_shop, server_secrets, with_owner
from springtide.cli.stores import Given, Places, start_stores
from springtide.cli.world import Folders, counter_service, settings_file, start_workers
from springtide.config import Config, with_revision
from springtide.drivers.embedded_valkey import free_port
from springtide.drivers.listening import is_taken
from springtide.drivers.system import SystemClock, SystemIds
from springtide.model import COUNTER, CalendarEvent, ServiceWish
from springtide.ports import Sensor

HOST = "127.0.0.1"
REPLICAS_MAX = 100_000
_DIGEST = 12
_SETTINGS = "counter"


@dataclass(frozen=True)
class OrderPath:
    """What runs; `calendar` is the demand announced for what it sells, `engines` how busy its engines are."""

    backoffice_url: str = ""
    calendar: tuple[CalendarEvent, ...] = ()
    engines: Mapping[str, Sensor] = field(default_factory=dict)


async def start_order_path(
    stack: AsyncExitStack, folder: PlatformFolder, settings: PlatformSettings, dsn: str, clock: SystemClock
) -> OrderPath:
    """Start the engines and workers, publish the sales that are not there yet. Raises EngineError and the drivers'."""
    config = settings.config
    places = Places(folder.valkey, valkey_port=0 if settings.inventory else _stable_port(folder))
    folder.valkey.mkdir(exist_ok=True)
    stores = await start_stores(stack, clock, Given(settings.inventory, dsn), places, config.inventory)
    secrets = await with_owner(server_secrets(folder.data, SystemIds()), folder.data, stores, clock)
    role = RoleSettings(
        inventory=stores.address,
        replicas_acked=config.inventory.replicas_acked,
        room=config.room,
        ledger_dsn=stores.ledger_dsn,
        token_master=secrets.token_master,
        webhook_secret=secrets.webhook_secret,
        counter=config.counter,
        rate_max=config.counter.rate_max,
        backoffice_port=settings.backoffice_port,
    )
    folders = Folders(out=folder.data, run=folder.counter.parent)
    path = settings_file(folders, _SETTINGS, role)
    workers = await start_workers(stack, folders, clock, path)
    sales = await open_shop(config, clock, stores, "")
    opens = {sale.sale: sale.opens_ms for sale in sales}
    calendar = tuple(event.model(opens[event.sale]) for event in config.calendar if event.sale in opens)
    return OrderPath(workers.backoffice_url(), calendar, stores.loads(clock))


def _stable_port(folder: PlatformFolder) -> int:
    """The inventory's port of the time before, so that counters that have outlived it find it again."""
    kept = folder.counter.with_name("valkey.port")
    before = int(kept.read_text()) if kept.exists() else 0
    port = before if before and not is_taken(HOST, before) else free_port()
    kept.write_text(str(port))
    return port


def counter_wish(folder: PlatformFolder, config: Config, port: int) -> ServiceWish:
    """The counters as a service. Their settings are in a file: when it changes, so does the revision."""
    digest = hashlib.sha256(folder.counter.read_bytes()).hexdigest()[:_DIGEST]
    spec = msgspec.structs.replace(
        counter_service(folder.counter), cores=float(config.counter.cores), env={"SPRINGTIDE_SETTINGS": digest}
    )
    idc = sum(zone.kind == "idc" for zone in config.zones)
    return ServiceWish(
        spec=with_revision(msgspec.structs.replace(spec, name=COUNTER)),
        requests_per_s=config.counter.rate_max,
        replicas_min=max(1, config.fleet.base_replicas * idc),
        replicas_max=REPLICAS_MAX,
        port=port,
        drain_ms=round(config.fleet.drain_s * 1000),
        idempotent=True,
    )
