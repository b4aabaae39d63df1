"""`springtide nodes or offers or cost or sweep`: data centre and cloud as one, and what is rented of the cloud.

Exit status: 0 done, 1 refused, or strays are left, 2 bad input, 130 Ctrl-C.
"""

import os
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from springtide.cli.platform_options import HERE, Here
from springtide.cli.running import run_command

ConfigFile = Annotated[
    Path | None, Parameter(help="Ask the cloud of this configuration; without it, the platform of the folder.")
]
Names = Annotated[str, Parameter(help="Node ids, as `springtide nodes` shows them.")]
ZoneName = Annotated[str, Parameter(help="Of this zone alone.")]

nodes = App(name="nodes", help="The nodes of data centre and cloud, and how to take one out of use.")


@nodes.default
def list_nodes(
    *,
    config: ConfigFile = None,
    zone: ZoneName = "",
    each: Annotated[bool, Parameter(negative=(), help="Every node, also when there are many.")] = False,
    here: Here = HERE,
) -> int:
    """All nodes: where, of which type and market, in which state, with what on them, at what price, until when."""
    from springtide.cli.fleet_nodes import run_nodes  # noqa: PLC0415 - each command loads only what it needs

    return run_command(run_nodes(here, config, dict(os.environ), zone, each=each))


@nodes.command
def cordon(*names: Names, here: Here = HERE) -> int:
    """Start nothing new on these nodes; what runs there goes on."""
    from springtide.cli.fleet_nodes import run_cordon  # noqa: PLC0415 - each command loads only what it needs

    return run_command(run_cordon(here, names, cordoned=True))


@nodes.command
def restore(*names: Names, here: Here = HERE) -> int:
    """Use these nodes again."""
    from springtide.cli.fleet_nodes import run_cordon  # noqa: PLC0415 - each command loads only what it needs

    return run_command(run_cordon(here, names, cordoned=False))


def offers(
    *,
    config: ConfigFile = None,
    zone: ZoneName = "",
    market: Annotated[str, Parameter(help="Of this market alone: idc, on_demand, spot or eci.")] = "",
    here: Here = HERE,
) -> int:
    """What machines there are to have, the cheapest core first, and how many of each as far as is known."""
    from springtide.cli.fleet_offers import run_offers  # noqa: PLC0415 - each command loads only what it needs

    return run_command(run_offers(here, config, dict(os.environ), zone, market))


def cost(*, config: ConfigFile = None, here: Here = HERE) -> int:
    """What is spent on rented nodes: an hour, so far, and until the announced events are over; limits and quotas."""
    from springtide.cli.fleet_cost import run_cost  # noqa: PLC0415 - each command loads only what it needs

    return run_command(run_cost(here, config, dict(os.environ)))


def sweep(
    *,
    config: ConfigFile = None,
    release: Annotated[bool, Parameter(negative=(), help="Give strays back; without it, they are named.")] = False,
    older_than_h: Annotated[
        float, Parameter(help="Nodes rented longer ago are strays as well, unless a running leader has them; 0: no.")
    ] = 0.0,
    here: Here = HERE,
) -> int:
    """Find rented nodes that nobody wants any more, by their tag; status 1 when some are left."""
    from springtide.cli.sweep import SweepOptions, run_sweep  # noqa: PLC0415 - each command loads only what it needs
    from springtide.errors import UserError  # noqa: PLC0415 - as above

    if older_than_h < 0:
        raise UserError(f"--older-than-h {older_than_h:g}: give a number of hours, 0 or more")
    return run_command(run_sweep(SweepOptions(config, here.data, release, older_than_h, here.json), dict(os.environ)))
