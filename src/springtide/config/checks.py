"""What holds between the tables of a configuration, each of which is right by itself."""

from collections.abc import Callable, Iterator, Sequence

from springtide.config.document import Config
from springtide.model import ZoneKind

Suggest = Callable[[str, list[str]], str]
"""From a wrong word and the known ones to the end of a message."""


def cross_checks(config: Config, suggest: Suggest) -> list[str]:
    """All mistakes, each with its key and the remedy."""
    return [*_names(config), *_zones(config), *_services(config), *_calendar(config, suggest)]


def _names(config: Config) -> Iterator[str]:
    yield from _twice("zones", "name", [zone.name for zone in config.zones])
    yield from _twice("sales", "sale", [sale.sale for sale in config.sales])
    yield from _twice("services", "name", [service.name for service in config.services])
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
