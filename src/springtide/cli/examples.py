"""The examples that come along: beside the source in a checkout, inside the package in an installed wheel."""

from pathlib import Path

_PLACES = (Path(__file__).parents[1] / "examples", Path(__file__).parents[3] / "examples")


def example(name: str) -> Path:
    """The path of an example; when it is nowhere, the path in a checkout, for the error message to name."""
    for place in _PLACES:
        if (place / name).is_file():
            return place / name
    return _PLACES[-1] / name
