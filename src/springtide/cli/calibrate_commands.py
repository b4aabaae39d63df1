"""`springtide calibrate`: the options of the command."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from springtide.cli.running import run_command
from springtide.errors import UserError

RUNS_MAX = 10


def calibrate(
    *,
    out: Annotated[Path, Parameter(help="The file to write, JSON.")] = Path("calibration.json"),
    runs: Annotated[int, Parameter(help="How often each is measured; the median counts.")] = 3,
    json: Annotated[bool, Parameter(negative=(), help="The figures as JSON on standard output too.")] = False,
) -> int:
    """Measure this machine's building blocks with the real engines, in less than a minute."""
    from springtide.cli.calibrate import run_calibrate  # noqa: PLC0415 - each command loads only what it needs

    if not 1 <= runs <= RUNS_MAX:
        raise UserError(f"--runs {runs}: give 1 to {RUNS_MAX}")
    return run_command(run_calibrate(out, runs, as_json=json))
