"""Options that all commands about a platform share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

DATA = Path("springtide-data")


@Parameter(name="*")
@dataclass(frozen=True)
class Here:
    """Which platform, and how the answer is shown."""

    data: Annotated[Path, Parameter(env_var="SPRINGTIDE_DATA", help="The platform's folder.")] = DATA
    json: Annotated[bool, Parameter(negative=(), help="For programs: JSON on standard output.")] = False


HERE = Here()
