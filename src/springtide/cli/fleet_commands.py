"""`springtide up | down | status | logs | scale | zone`: the platform that runs services, from a folder.

Exit status: 0 done, 1 refused or not as wanted, 2 bad input, 130 Ctrl-C.
"""

import os
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from springtide.cli.platform_options import HERE, Here
from springtide.cli.running import run_command
from springtide.model import ZoneMode

ServiceName = Annotated[str, Parameter(help="The service's name.")]
ZoneName = Annotated[str, Parameter(help="The zone's name.")]
Wait = Annotated[bool, Parameter(help="Wait until it is so.")]
WaitS = Annotated[float, Parameter(help="How long to wait at most.")]

zone = App(name="zone", help="Take a zone out of use, by hand, and put it back.")


def up(  # noqa: PLR0913 - each is an option of the command line
    config: Annotated[Path, Parameter(help="The services and zones.")] = Path("springtide.toml"),
    *,
    wait: Annotated[bool, Parameter(help="--no-wait: return as soon as the platform knows what is wanted.")] = True,
    wait_s: WaitS = 180.0,
    port: Annotated[int, Parameter(help="The shop's port, when there is something to sell.")] = 8080,
    backoffice_port: Annotated[int, Parameter(help="The back office's port.")] = 8000,
    inventory: Annotated[str, Parameter(help="HOST:PORT of a Valkey to use; without it, an embedded one.")] = "",
    ledger: Annotated[str, Parameter(help="URL of a PostgreSQL to use; without it, an embedded one.")] = "",
    here: Here = HERE,
) -> int:
    """Run the services of a configuration in the background, or change what runs into what it says now."""
    from springtide.cli.fleet_up import UpOptions, run_up  # noqa: PLC0415 - each command loads only what it needs

    options = UpOptions(config, ledger, inventory, port, backoffice_port, wait, wait_s)
    return run_command(run_up(here, options, dict(os.environ)))


def down(
    *,
    keep_services: Annotated[
        bool, Parameter(negative=(), help="End the platform alone; replicas go on, to be taken over by `up`.")
    ] = False,
    wait_s: WaitS = 120.0,
    here: Here = HERE,
) -> int:
    """End what `up` started: services are drained and stopped, rented nodes given back; the data stays."""
    from springtide.cli.fleet_down import run_down  # noqa: PLC0415 - each command loads only what it needs

    return run_command(run_down(here, wait_s, keep_services=keep_services))


def status(
    *,
    watch: Annotated[bool, Parameter(negative=(), help="A live view, until Ctrl-C.")] = False,
    here: Here = HERE,
) -> int:
    """Services, replicas, traffic, zones, roll-outs and alerts; status 1 when the control loop is silent."""
    from springtide.cli.fleet_status import run_status  # noqa: PLC0415 - each command loads only what it needs

    return run_command(run_status(here, watch=watch))


def logs(
    service: Annotated[str, Parameter(help="The service's name.")] = "",
    /,
    *,
    replica: Annotated[str, Parameter(help="One replica's id; else all of the service.")] = "",
    lines: Annotated[int, Parameter(help="Of each, the last ones.")] = 50,
    follow: Annotated[bool, Parameter(negative=(), help="Go on with what they write, until Ctrl-C.")] = False,
    platform: Annotated[bool, Parameter(negative=(), help="The platform's own log.")] = False,
    here: Here = HERE,
) -> int:
    """What the replicas of a service wrote last."""
    from springtide.cli.fleet_logs import run_logs, run_platform_logs  # noqa: PLC0415 - as above
    from springtide.errors import UserError  # noqa: PLC0415 - as above

    if platform == bool(service):
        raise UserError("give either a service's name or --platform")
    if platform:
        return run_command(run_platform_logs(here, lines))
    return run_command(run_logs(here, service, replica, lines, follow=follow))


def scale(  # noqa: PLR0913 - each is an option of the command line
    service: ServiceName,
    count: Annotated[int | None, Parameter(help="This many replicas.")] = None,
    /,
    *,
    least: Annotated[int | None, Parameter(name="--min", help="At least this many.")] = None,
    most: Annotated[int | None, Parameter(name="--max", help="At most this many.")] = None,
    auto: Annotated[bool, Parameter(negative=(), help="Its own bounds, from the configuration, again.")] = False,
    lasts: Annotated[str, Parameter(name="--for", help="Such as 30m or 2h; without it, until --auto.")] = "",
    wait: Wait = True,
    wait_s: WaitS = 60.0,
    here: Here = HERE,
) -> int:
    """Bound the replicas of a service by hand, in place of its configuration."""
    from springtide.cli.fleet_scale import bounds_of, parse_duration_ms, run_scale  # noqa: PLC0415 - as above

    bounds = bounds_of(count, least, most, auto=auto)
    return run_command(run_scale(here, service, bounds, parse_duration_ms(lasts), wait_s if wait else 0.0))


@zone.command(name="list")
def list_zones(*, here: Here = HERE) -> int:
    """All zones, with their modes, health and replicas."""
    from springtide.cli.fleet_scale import run_zones  # noqa: PLC0415 - each command loads only what it needs

    return run_command(run_zones(here))


@zone.command
def drain(name: ZoneName, /, *, wait: Wait = False, wait_s: WaitS = 120.0, here: Here = HERE) -> int:
    """Take all traffic and replicas away from a zone; its share is started elsewhere first."""
    return _mode(here, name, ZoneMode.DRAINED, wait_s if wait else 0.0)


@zone.command
def cordon(name: ZoneName, /, *, here: Here = HERE) -> int:
    """Start nothing new in a zone; what runs there goes on."""
    return _mode(here, name, ZoneMode.CORDONED, 0.0)


@zone.command
def restore(name: ZoneName, /, *, wait: Wait = False, wait_s: WaitS = 120.0, here: Here = HERE) -> int:
    """Use a zone again."""
    return _mode(here, name, ZoneMode.OPEN, wait_s if wait else 0.0)


def _mode(here: Here, name: str, mode: ZoneMode, wait_s: float) -> int:
    from springtide.cli.fleet_scale import run_zone_mode  # noqa: PLC0415 - each command loads only what it needs

    return run_command(run_zone_mode(here, name, mode, wait_s))
