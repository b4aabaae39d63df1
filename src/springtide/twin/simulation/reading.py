"""Scenarios by name or file, and the counts that drive their demand; mistakes are told with their key."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from springtide.errors import ConfigError
from springtide.twin.series import load_bins
from springtide.twin.simulation.scenario import Scenario


def shipped() -> list[str]:
    """The names of the scenarios that come along."""
    files = resources.files("springtide.twin") / "scenarios"
    return sorted(file.name.removesuffix(".toml") for file in files.iterdir() if file.name.endswith(".toml"))


def find_scenario(name_or_path: str) -> Scenario:
    """The scenario of a file, or of one that comes along. Raises ConfigError."""
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.is_file():
        try:
            return parse_scenario(path.read_text(encoding="utf-8"), str(path), path.parent)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}; give a TOML file") from error
    if name_or_path not in shipped():
        raise ConfigError(f"scenario {name_or_path!r} is unknown; give a TOML file, or one of: {', '.join(shipped())}")
    file = resources.files("springtide.twin") / "scenarios" / f"{name_or_path}.toml"
    return parse_scenario(file.read_text(encoding="utf-8"), f"{name_or_path}.toml", None)


def parse_scenario(text: str, origin: str, folder: Path | None = None) -> Scenario:
    """A scenario from TOML; `origin` names it in messages, `folder` is where its demand's file lies.

    Raises ConfigError.
    """
    try:
        raw: dict[str, Any] = tomllib.loads(text)
        scenario = msgspec.convert(raw, Scenario)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin}: not valid TOML: {error}; correct that line") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin}: {error}; correct that key") from None
    file = scenario.demand.file
    if file and folder is not None and not Path(file).is_absolute():
        demand = msgspec.structs.replace(scenario.demand, file=str(folder / file))
        scenario = msgspec.structs.replace(scenario, demand=demand)
    return scenario


def counts_of(scenario: Scenario) -> list[float] | None:
    """What the demand's file says; None without one. Raises ConfigError."""
    return load_bins(Path(scenario.demand.file)) if scenario.demand.file else None


def with_demand(scenario: Scenario, file: Path, scale: float) -> Scenario:
    """The scenario with a file's counts instead of its normal demand; its waves stay."""
    demand = msgspec.structs.replace(scenario.demand, file=str(file), scale=scale)
    return msgspec.structs.replace(scenario, demand=demand)
