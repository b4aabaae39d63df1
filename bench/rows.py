"""What a measurement says, as a table and as JSON."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table


class Row(msgspec.Struct, frozen=True):
    """One figure: the median of `runs`, and how it stands to the reference of the same call.

    `floor` is the ratio the design asks for, `ceiling` the value it asks not to exceed; None where it asks for nothing.
    """

    what: str
    value: float
    unit: str
    reference: str = ""
    ratio: float | None = None
    floor: float | None = None
    ceiling: float | None = None
    runs: tuple[float, ...] = ()


class Skipped(msgspec.Struct, frozen=True):
    """A reference that could not run here, and what would make it run."""

    what: str
    reason: str


def median_row(what: str, unit: str, runs: Sequence[float], ceiling: float | None = None) -> Row:
    return Row(what, statistics.median(runs), unit, ceiling=ceiling, runs=tuple(runs))


def compared(row: Row, reference: Row, floor: float | None) -> Row:
    ratio = row.value / reference.value if reference.value else None
    return msgspec.structs.replace(row, reference=reference.what, ratio=ratio, floor=floor)


def show(name: str, rows: Sequence[Row], skipped: Sequence[Skipped]) -> None:
    table = Table(title=name)
    for heading in ("what", "value", "unit", "reference", "ratio", "asked", "runs"):
        table.add_column(heading, justify="right" if heading in {"value", "ratio", "asked"} else "left")
    for row in rows:
        table.add_row(
            row.what,
            _figure(row.value),
            row.unit,
            row.reference,
            "" if row.ratio is None else f"{row.ratio:.2f}",
            _asked(row),
            " ".join(_figure(run) for run in row.runs),
        )
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    for each in skipped:
        console.print(f"skipped: {each.what}: {each.reason}")


def write(folder: Path, name: str, rows: Sequence[Row], skipped: Sequence[Skipped]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    document = {"bench": name, "rows": rows, "skipped": skipped}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    return path


def _asked(row: Row) -> str:
    if row.floor is not None:
        return f"≥ {row.floor:g}"
    return "" if row.ceiling is None else f"≤ {row.ceiling:g}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
