"""IDC and cloud as one: nodes, offers, quotas and money, as the running leader knows them, or asked of the cloud.

A platform that runs answers for both. Without one, or with `--config`, the configured cloud is asked itself.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from springtide.cli.clouds import LOCAL_FILE, open_cloud
from springtide.cli.platform_folder import PlatformFolder
from springtide.cli.platform_link import linked
from springtide.config import Config, load
from springtide.drivers.system import SystemClock
from springtide.errors import Refused
from springtide.fleet.cloud_status import CloudStatus, read_cloud
from springtide.fleet.observe import idc_nodes
from springtide.model import CalendarEvent, Market, Node, Offer, Zone, ZoneKind
from springtide.ports import Cloud

LEADER = "the control loop"
CLOUD = "the cloud itself"


class View(msgspec.Struct, frozen=True):
    """What is known, of when (`cloud.at_ms`) and from whom. `now_ms` is when it was looked at.

    Nodes of the data centre and of the cloud stand in one list, and so do offers: what is owned costs nothing more.
    """

    now_ms: int
    source: str
    config: Config
    cloud: CloudStatus
    cordoned: frozenset[str] = frozenset()

    @property
    def zones(self) -> dict[str, Zone]:
        """By name."""
        return {zone.name: zone for zone in self.config.fleet_zones()}

    @property
    def rented(self) -> list[Node]:
        """What costs money."""
        return [node for node in self.cloud.nodes if is_rented(node)]

    def price_fen_per_h(self, node: Node) -> float:
        """What a node costs an hour: its own price, or else its zone's."""
        if not is_rented(node):
            return 0.0
        zone = self.zones.get(node.zone)
        return node.price_fen_per_h or (zone.price_fen_per_node_h if zone else 0.0)


def is_rented(node: Node) -> bool:
    """Whether it came by a purchase."""
    return bool(node.client_token)


def market_of(node: Node) -> Market:
    """How it is had."""
    return node.market if is_rented(node) else Market.IDC


async def look(data: Path, config: Path | None, environ: Mapping[str, str]) -> View:
    """Look once. Raises Refused without a platform and a configuration, ConfigError, CloudError, FleetStateError."""
    clock = SystemClock()
    if config is not None:
        return await _asked(load(config, environ), clock, data)
    folder = PlatformFolder(data)
    settings = folder.settings()
    if settings is None:
        raise Refused(f"no platform runs from {folder.data}: start one with `springtide up`, or give --config")
    if folder.running() is None:
        return await _asked(settings.config, clock, folder.data)
    async with linked(data, clock) as link:
        told = await read_cloud(link.state)
        cordoned = (await link.state.wishes()).cordoned
        if told is None:
            raise Refused(f"no control loop has said anything of its nodes yet; see {link.folder.log}")
        told = msgspec.structs.replace(told, offers=with_own(settings.config, told.offers))
        return View(clock.now_ms(), LEADER, settings.config, told, cordoned)


async def _asked(config: Config, clock: SystemClock, folder: Path) -> View:
    with tempfile.TemporaryDirectory() as copy:
        # The file of a cloud on paper is its platform's own: asking it must not write there.
        with contextlib.suppress(OSError):
            shutil.copy(folder / LOCAL_FILE, copy)
        return await _asked_of(open_cloud(config, clock, Path(copy)), config, clock)


async def _asked_of(cloud: Cloud, config: Config, clock: SystemClock) -> View:
    try:
        rented = await cloud.nodes()
        now_ms = clock.now_ms()
        told = CloudStatus(
            at_ms=now_ms,
            nodes=(*idc_nodes(config.fleet_zones()), *rented),
            offers=with_own(config, await cloud.offers()),
            quotas=tuple(await cloud.quotas()),
            cost_fen=await cloud.cost_fen(now_ms),
            events=events_of(config),
        )
    finally:
        await cloud.close()
    return View(now_ms, CLOUD, config, told)


def events_of(config: Config) -> tuple[CalendarEvent, ...]:
    """The announced events of services; those of sales begin with a run."""
    names = sorted({event.service for event in config.calendar if event.service})
    return tuple(event for name in names for event in config.calendar_of(name))


def with_own(config: Config, offers: "list[Offer] | tuple[Offer, ...]") -> tuple[Offer, ...]:
    """The cloud's offers behind the data centre's machines, and behind the one machine of zones that offer no other."""
    named = {offer.zone for offer in offers}
    own = [zone for zone in config.fleet_zones() if zone.kind is ZoneKind.IDC or zone.name not in named]
    return (
        *(
            Offer(
                zone=zone.name,
                instance_type="",
                market=Market.IDC if zone.kind is ZoneKind.IDC else Market.ON_DEMAND,
                cores=zone.cores_per_node,
                memory_mb=zone.memory_mb_per_node,
                price_fen_per_h=0.0 if zone.kind is ZoneKind.IDC else float(zone.price_fen_per_node_h),
                stock=zone.nodes_max,
                boot_ms=(zone.lead_ms, zone.lead_ms),
            )
            for zone in own
        ),
        *offers,
    )
