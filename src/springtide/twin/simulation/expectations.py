"""What a scenario's outcome is expected to be: bounds on its figures, as a TOML file of `figure = [least, most]`."""

import tomllib
from pathlib import Path

import msgspec

from springtide.errors import ConfigError
from springtide.twin.simulation.outcome import Outcome

Expectation = dict[str, tuple[float, float]]
"""The least and the most of each figure that is named, both allowed."""

FIGURES = frozenset(
    field.name
    for field in msgspec.structs.fields(Outcome)
    if field.type in {int, float} or field.type in {float | None, int | None}
) | {"cost_ratio"}
"""What can be expected of an outcome."""


def read_expectation(text: str, origin: str) -> Expectation:
    """The bounds of a file; `origin` names it in messages. Raises ConfigError."""
    try:
        bounds = msgspec.convert(tomllib.loads(text), Expectation)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{origin}: {error}; write lines such as: availability = [0.999, 1.0]") from None
    for name, (least, most) in bounds.items():
        if name not in FIGURES:
            raise ConfigError(f"{origin}: {name}: no such figure; there are: {', '.join(sorted(FIGURES))}")
        if least > most:
            raise ConfigError(f"{origin}: {name}: {least:g} to {most:g} is empty; the least comes first")
    return bounds


def load_expectation(path: Path) -> Expectation:
    """The bounds of a file. Raises ConfigError."""
    try:
        return read_expectation(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; give a TOML file of bounds") from error


def unmet(outcome: Outcome, expectation: Expectation) -> list[str]:
    """What of an outcome lies outside of its bounds; a figure that is not known does."""
    wrong = []
    for name, (least, most) in expectation.items():
        value = getattr(outcome, name)
        if value is None or not least <= value <= most:
            shown = "not known" if value is None else f"{value:,g}"
            wrong.append(f"{name} is {shown}, expected {least:,g} to {most:,g}")
    return wrong
