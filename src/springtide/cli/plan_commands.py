"""`springtide plan`: the contract of an event, and what to do with it."""

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from springtide.cli.platform_options import HERE, Here
from springtide.cli.running import run_command


def plan(
    file: Annotated[Path, Parameter(help="The event's file, such as examples/kuaishou-event.toml.")],
    /,
    *,
    apply: Annotated[bool, Parameter(negative=(), help="Hand it to the platform of --data, which orders it.")] = False,
    withdraw: Annotated[bool, Parameter(negative=(), help="Take the event's plan back from the platform.")] = False,
    config: Annotated[
        Path | None, Parameter(help='With `offers = "cloud"`: whose [cloud] is asked; without it, the platform\'s.')
    ] = None,
    now: Annotated[str, Parameter(help="Plan as if it were this moment, such as 2027-11-11T19:30:00+08:00.")] = "",
    here: Here = HERE,
) -> int:
    """What to rent for an event, when, at what cost, how surely; status 1 when it must not be carried out."""
    from springtide.cli.plan import PlanOptions, run_plan, run_withdraw  # noqa: PLC0415 - loads only what it needs
    from springtide.errors import UserError  # noqa: PLC0415 - as above

    if withdraw:
        if apply or now:
            raise UserError("--withdraw goes with neither --apply nor --now: give one of them")
        return run_command(run_withdraw(file, here))
    options = PlanOptions(file, config, now, apply=apply)
    return run_command(run_plan(options, here, dict(os.environ)))
