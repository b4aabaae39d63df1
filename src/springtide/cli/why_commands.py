"""`springtide why | replay`: questions to the control loop's journal."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from springtide.cli.platform_folder import PlatformFolder
from springtide.cli.platform_options import HERE, Here

Journal = Annotated[Path | None, Parameter(help="A journal's file; without it, that of the platform.")]


def why(
    service: Annotated[str, Parameter(help="The service's name; without it, all of them.")] = "",
    /,
    *,
    last: Annotated[int, Parameter(help="How many decisions that changed something.")] = 10,
    journal: Journal = None,
    here: Here = HERE,
) -> int:
    """Why the fleet is as it is: what was decided last, with reasons, actions, and what failed."""
    from springtide.cli.why import run_why  # noqa: PLC0415 - each command loads only what it needs

    return run_why(journal or PlatformFolder(here.data).journal, service, last, as_json=here.json)


def replay(
    *,
    journal: Journal = None,
    here: Here = HERE,
) -> int:
    """Decide again what a journal holds, with the decisions of today; status 1 when any would differ."""
    from springtide.cli.why import run_replay  # noqa: PLC0415 - each command loads only what it needs

    return run_replay(journal or PlatformFolder(here.data).journal, as_json=here.json)
