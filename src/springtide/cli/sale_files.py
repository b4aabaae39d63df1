"""A sale in a file, TOML or JSON: the API's body, or in a merchant's units.

`opens_at` and `closes_at` are moments with an offset from UTC, `hold_s` is in seconds and `price_cny` in yuan.
"""

import json
import tomllib
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from springtide.errors import UserError


def read_sale(path: Path) -> dict[str, Any]:
    """The body for the API. Raises UserError that names the place."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text, parse_float=Decimal)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be used as a sale: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: a sale is a table of keys and values")
    for moment in ("opens", "closes"):
        _swap(path, found, f"{moment}_at", f"{moment}_ms", _moment_ms)
    _swap(path, found, "hold_s", "hold_ms", lambda value: _times(value, 1000))
    skus = found.get("skus", [])
    for place, sku in enumerate(skus if isinstance(skus, list) else []):
        if isinstance(sku, dict):
            _swap(path, sku, "price_cny", "price_fen", lambda value: _times(value, 100), f"skus.{place}.")
    return {name: value if not isinstance(value, Decimal) else float(value) for name, value in found.items()}


def _swap(
    path: Path, table: dict[str, Any], friendly: str, plain: str, convert: Callable[[object], int], where: str = ""
) -> None:
    """Put `plain` in the place of `friendly`, if that is there."""
    if friendly not in table:
        return
    if plain in table:
        raise UserError(f"{path}: {where}{friendly} and {where}{plain} say the same; give one of them")
    try:
        table[plain] = convert(table.pop(friendly))
    except (ValueError, TypeError, InvalidOperation) as error:
        raise UserError(f"{path}: {where}{friendly}: {error}") from error


def _moment_ms(value: object) -> int:
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ValueError("write a moment with its offset from UTC, for example 2026-11-11T20:00:00+08:00")
    return round(moment.timestamp() * 1000)


def _times(value: object, factor: int) -> int:
    """Exactly: 19.99 yuan are 1,999 fen."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError("write a number")  # noqa: TRY004 - what a person wrote, reported with its place
    scaled = Decimal(str(value)) * factor
    if scaled != scaled.to_integral_value():
        raise ValueError(f"{value} is finer than 1/{factor}")
    return int(scaled)
