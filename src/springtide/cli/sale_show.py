"""How answers of the merchant's API look in a terminal."""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

CONTROLS = dict.fromkeys((*range(32), 127), "�")
"""Texts in an answer are other people's: none of them may steer this terminal."""


def say(text: str) -> None:
    """One line."""
    sys.stdout.write(f"{text.translate(CONTROLS)}\n")


def say_json(value: object) -> None:
    """For programs."""
    sys.stdout.write(f"{json.dumps(value, ensure_ascii=False)}\n")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows under their names."""
    shown = Table(*head)
    for row in rows:
        shown.add_row(*(str(cell).translate(CONTROLS) for cell in row))
    Console(markup=False, highlight=False).print(shown)


def moment(at_ms: int | None) -> str:
    """UTC, to the second; a dash when there is none."""
    return "–" if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def yuan(fen: int) -> str:
    """With two decimals."""
    return f"{fen // 100:,}.{fen % 100:02}"


def show_sale(sale: dict[str, Any]) -> None:
    """All of a sale."""
    say(f"{sale['sale']}: {sale['title']}, {sale['state']} (revision {sale['revision']})")
    say(f"opens {moment(sale['opens_ms'])}, closes {moment(sale['closes_ms'])}, holds {sale['hold_ms'] / 1000:g} s")
    left = (sale["live"] or {}).get("stock", {})
    rows = [
        (
            sku["sku"],
            sku["title"],
            yuan(sku["price_fen"]),
            f"{sku['stock']:,}",
            f"{left[sku['sku']]:,}" if sku["sku"] in left else "–",
            sku["per_buyer_max"],
        )
        for sku in sale["skus"]
    ]
    table(("SKU", "title", "price (CNY)", "began with", "left", "per buyer"), rows)
    if sale["state"] == "missing":
        say(f"The inventory does not have this sale: see `springtide sale rebuild {sale['sale']}`.")
