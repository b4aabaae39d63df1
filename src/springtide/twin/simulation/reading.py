"""Scenarios by name or file, and the counts that drive their demand; mistakes are told with their key."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from springtide.errors import ConfigError
from springtide.twin.simulation.faults import FaultKind
from springtide.twin.simulation.scenario import DURATION_MAX_S, DemandSettings, Scenario
from springtide.twin.simulation.trace import read_trace


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
    demand = scenario.demand
    if not demand.file:
        return None
    trace = read_trace(Path(demand.file))
    if trace.step_s not in {None, demand.bin_s}:
        msg = f"{demand.file}: its lines are {trace.step_s} s apart, and the scenario says {demand.bin_s} s"
        raise ConfigError(f"{msg}; set `bin_s = {trace.step_s}` in [demand]")
    return trace.values


def with_demand(scenario: Scenario, file: Path, scale: float) -> Scenario:
    """The scenario with a file's counts as all of its demand, for as long as they go on. Raises ConfigError.

    Its waves are not there, and with them what was announced; a file that does not say how long its steps are has the
    scenario's.
    """
    trace = read_trace(file)
    bin_s = trace.step_s or scenario.demand.bin_s
    demand = DemandSettings(file=str(file), bin_s=bin_s, scale=scale, noise=scenario.demand.noise)
    duration_s = len(trace.values) * bin_s
    if duration_s > DURATION_MAX_S:
        days, lines = DURATION_MAX_S / 86_400, DURATION_MAX_S // bin_s
        raise ConfigError(f"{file}: {duration_s / 86_400:.1f} days; give at most {days:g}, the first {lines:,} steps")
    faults = tuple(fault for fault in scenario.faults if fault.kind is not FaultKind.LARGER_SALE)
    return msgspec.structs.replace(scenario, demand=demand, duration_s=duration_s, faults=faults)
