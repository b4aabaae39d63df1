"""What holds between the tables of a configuration, each of which is right by itself."""

from collections.abc import Callable, Iterator, Sequence

from springtide.config.cloud import CloudSettings
from springtide.config.document import Config
from springtide.model import Market, ZoneKind

Suggest = Callable[[str, list[str]], str]
"""From a wrong word and the known ones to the end of a message."""


def cross_checks(config: Config, suggest: Suggest) -> list[str]:
    """All mistakes, each with its key and the remedy."""
    return [
        *_names(config),
        *_zones(config),
        *_cloud(config),
        *_lines(config, suggest),
        *_services(config),
        *_calendar(config, suggest),
    ]


def _names(config: Config) -> Iterator[str]:
    yield from _twice("zones", "name", [zone.name for zone in config.zones])
    yield from _twice("sales", "sale", [sale.sale for sale in config.sales])
    yield from _twice("services", "name", [service.name for service in config.services])
    yield from _twice("lines", "name", [line.name for line in config.lines])
    for index, sale in enumerate(config.sales):
        yield from _twice(f"sales[{index}].skus", "sku", [sku.sku for sku in sale.skus])


def _twice(where: str, key: str, values: Sequence[object]) -> Iterator[str]:
    for index, value in enumerate(values):
        if value in values[:index]:
            yield f"{where}[{index}].{key}: {value!r} stands twice; {key}s must differ"


def _zones(config: Config) -> Iterator[str]:
    if not any(zone.kind is ZoneKind.IDC for zone in config.zones):
        yield 'zones: no zone has kind = "idc"; inventory and base replicas need one'
    if config.fleet.runtime == "docker":
        for index, zone in enumerate(config.zones):
            if not zone.engine:
                yield (
                    f"zones[{index}].engine: missing; the docker runtime needs the engine of each zone, "
                    "such as unix:///var/run/docker.sock"
                )


def _cloud(config: Config) -> Iterator[str]:
    rented = [(index, zone) for index, zone in enumerate(config.zones) if zone.kind is ZoneKind.CLOUD]
    if config.cloud.driver == "alibaba":
        yield from _account(config.cloud)
        if not rented:
            yield 'cloud.driver: "alibaba" rents nothing without a zone of kind "cloud"; add one or leave it out'
        for index, zone in rented:
            if not zone.cloud_zone:
                yield f"zones[{index}].cloud_zone: missing; the cloud's name of {zone.name}, such as cn-beijing-h"
            if not zone.vswitch:
                yield f"zones[{index}].vswitch: missing; what machines of {zone.name} are connected to, as vsw-bp1…"
        yield from _twice("zones", "cloud_zone", [zone.cloud_zone or f"none of {zone.name}" for zone in config.zones])
        return
    for index, zone in rented:
        if not zone.price_cny_per_node_h:
            where = f"zones[{index}].price_cny_per_node_h"
            yield f"{where}: missing; cloud zone {zone.name} needs what a node costs an hour"


def _account(cloud: CloudSettings) -> Iterator[str]:
    if not cloud.installation:
        yield "cloud.installation: missing; a name of this platform alone, by which its machines are found again"
    allowed = set(cloud.markets)
    if not any(allowed & set(machine.markets) for machine in cloud.types):
        yield "cloud.types: nothing may be rented; give a [[cloud.types]] of one of the markets"
    if allowed - {Market.ECI} and not cloud.image:
        yield "cloud.image: missing; a rented machine starts from an image, such as an id of DescribeImages"
    if not cloud.security_group:
        yield "cloud.security_group: missing; a rented machine is in one, such as sg-bp1…"


def _lines(config: Config, suggest: Suggest) -> Iterator[str]:
    rented = [zone.name for zone in config.zones if zone.kind is ZoneKind.CLOUD]
    for index, line in enumerate(config.lines):
        for name in line.zones:
            if name not in rented:
                yield f"lines[{index}].zones: there is no cloud zone {name!r}{suggest(name, rented)}"


def _services(config: Config) -> Iterator[str]:
    yield from _twice("services", "port", [service.port for service in config.services])
    widest = max(zone.cores_per_node for zone in config.zones)
    for index, service in enumerate(config.services):
        where = f"services[{index}]"
        if config.fleet.runtime == "docker" and not service.image:
            yield f'{where}.image: missing; with runtime = "docker" in [fleet] a replica is a container of an image'
        if config.fleet.runtime == "process" and not service.command:
            yield f'{where}.command: missing; with runtime = "process" in [fleet] a replica is a program'
        if service.cores > widest:
            yield f"{where}.cores: {service.cores:g} do not fit any zone's node; at most cores_per_node = {widest}"


def _calendar(config: Config, suggest: Suggest) -> Iterator[str]:
    sales = [sale.sale for sale in config.sales]
    services = [service.name for service in config.services]
    for index, event in enumerate(config.calendar):
        if event.sale and event.sale not in sales:
            yield f"calendar[{index}].sale: there is no sale {event.sale!r}{suggest(event.sale, sales)}"
        if event.service and event.service not in services:
            yield f"calendar[{index}].service: there is no service {event.service!r}{suggest(event.service, services)}"
