"""`springtide offers`: what machines there are to have in data centre and cloud, the cheapest core first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from springtide.cli.cloud_view import look
from springtide.cli.fleet_nodes import require_zone
from springtide.cli.fleet_show import duration
from springtide.cli.platform_options import Here
from springtide.cli.sale_show import say, say_json, table
from springtide.errors import UserError
from springtide.model import FEN_PER_CNY, Market, Offer, StockLevel

SHOWN_MAX = 100
"""More offers than these are in the JSON only."""

_LEVELS = {
    StockLevel.PLENTY: "plenty",
    StockLevel.LOW: "few",
    StockLevel.NONE: "none",
    StockLevel.GONE: "none for good",
}


async def run_offers(here: Here, config: Path | None, environ: Mapping[str, str], zone: str, market: str) -> int:
    """List them. Raises UserError for a zone or market that is not there, and what `look` does."""
    if market and market not in {known.value for known in Market}:
        raise UserError(f"there is no market {market!r}; there are: {', '.join(known.value for known in Market)}")
    view = await look(here.data, config, environ)
    require_zone(view, zone)
    offers = [one for one in view.cloud.offers if zone in {"", one.zone} and market in {"", one.market}]
    rows = [row_of(one) for one in sorted(offers, key=_by_price)]
    if here.json:
        say_json({"at_ms": view.cloud.at_ms, "source": view.source, "offers": rows})
        return 0
    _show(rows[:SHOWN_MAX])
    age = duration(view.now_ms - view.cloud.at_ms)
    more = f", the first {SHOWN_MAX} shown" if len(rows) > SHOWN_MAX else ""
    say(f"{len(rows):,} offers{more} (from {view.source}, {age} ago)")
    return 0


def _by_price(offer: Offer) -> tuple[bool, float, str]:
    """What is owned first, then by the price of a core."""
    return offer.market is not Market.IDC, offer.price_fen_per_h / offer.cores, offer.key


def row_of(offer: Offer) -> dict[str, Any]:
    """One offer as JSON has it."""
    return {
        "offer": offer.key,
        "zone": offer.zone,
        "type": offer.instance_type,
        "market": offer.market.value,
        "cores": offer.cores,
        "memory_mb": offer.memory_mb,
        "arch": offer.arch,
        "price_cny_per_h": offer.price_fen_per_h / FEN_PER_CNY,
        "price_cny_per_core_h": offer.price_fen_per_h / FEN_PER_CNY / offer.cores,
        "level": offer.level.value,
        "stock": offer.stock,
        "boot_ms": list(offer.boot_ms),
    }


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    table(
        ("zone", "type", "market", "cores", "memory", "CNY/h", "CNY/core·h", "to be had", "boots in"),
        (
            (
                row["zone"],
                row["type"] or "–",
                row["market"],
                f"{row['cores']} {row['arch']}" if row["arch"] != "amd64" else row["cores"],
                f"{row['memory_mb'] / 1024:g} GB" if row["memory_mb"] else "–",
                f"{row['price_cny_per_h']:.3f}",
                f"{row['price_cny_per_core_h']:.4f}",
                _LEVELS[StockLevel(row["level"])] if row["stock"] is None else f"{row['stock']:,}",
                "–"
                if row["market"] == Market.IDC
                else f"{duration(row['boot_ms'][0])} to {duration(row['boot_ms'][1])}",
            )
            for row in rows
        ),
    )
