"""`springtide nodes`: the machines of data centre and cloud as one list; `nodes cordon` and `restore`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from springtide.cli.cloud_view import View, is_rented, look, market_of
from springtide.cli.fleet_show import duration
from springtide.cli.platform_link import Link, linked
from springtide.cli.platform_options import Here
from springtide.cli.sale_show import moment, say, say_json, table
from springtide.drivers.system import SystemClock
from springtide.errors import Refused, UserError
from springtide.fleet.cloud_status import read_cloud
from springtide.fleet.observe import idc_nodes
from springtide.model import FEN_PER_CNY

EACH_MAX = 60
"""More nodes than these are shown by group, unless each is asked for."""


async def run_nodes(here: Here, config: Path | None, environ: Mapping[str, str], zone: str, *, each: bool) -> int:
    """List them, of one zone or of all (""). Raises UserError for a zone that is not there, and what `look` does."""
    view = await look(here.data, config, environ)
    require_zone(view, zone)
    rows = [row for row in rows_of(view) if zone in {"", row["zone"]}]
    if here.json:
        say_json({"at_ms": view.cloud.at_ms, "source": view.source, "nodes": rows})
    elif each or len(rows) <= EACH_MAX:
        _show_each(rows)
        _tell_sum(view, rows)
    else:
        _show_groups(rows)
        _tell_sum(view, rows)
        say(f"`springtide nodes --each` lists all {len(rows):,}")
    return 0


def require_zone(view: View, zone: str) -> None:
    """Raise UserError unless the zone is there or none was asked for."""
    if zone and zone not in view.zones:
        raise UserError(f"there is no zone {zone!r}; there are: {', '.join(view.zones)}")


def rows_of(view: View) -> list[dict[str, Any]]:
    """Each node as JSON has it: those of the data centre first."""
    return [
        {
            "node": node.node_id,
            "zone": node.zone,
            "market": market_of(node).value,
            "type": node.instance_type,
            "state": node.state.value,
            "cordoned": node.node_id in view.cordoned,
            "cores": node.cores,
            "memory_mb": node.memory_mb,
            "price_cny_per_h": view.price_fen_per_h(node) / FEN_PER_CNY,
            "service": view.cloud.owners.get(node.node_id, ""),
            "replicas": view.cloud.replicas.get(node.node_id, {}),
            "address": node.address,
            "client_token": node.client_token,
            "rented_ms": node.rented_ms or (node.since_ms if is_rented(node) else 0),
            "release_at_ms": node.release_at_ms,
            "reclaim_ms": node.reclaim_ms,
        }
        for node in view.cloud.nodes
    ]


def _show_each(rows: Sequence[Mapping[str, Any]]) -> None:
    head = ("node", "zone", "market", "type", "cores", "state", "replicas", "CNY/h", "released by itself")
    table(
        head,
        (
            (
                row["node"],
                row["zone"],
                row["market"],
                row["type"] or "–",
                row["cores"],
                _state(row),
                ", ".join(f"{service}: {count}" for service, count in sorted(row["replicas"].items())) or "–",
                f"{row['price_cny_per_h']:.3f}" if row["price_cny_per_h"] else "–",
                moment(row["release_at_ms"] or None),
            )
            for row in rows
        ),
    )


def _state(row: Mapping[str, Any]) -> str:
    said = row["state"]
    if row["cordoned"]:
        said += ", cordoned"
    if row["reclaim_ms"]:
        said += ", is taken away"
    return str(said)


def _show_groups(rows: Sequence[Mapping[str, Any]]) -> None:
    groups = Counter((row["zone"], row["market"], row["type"] or "–", _state(row)) for row in rows)
    cores: Counter[tuple[str, ...]] = Counter()
    price: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        group = (row["zone"], row["market"], row["type"] or "–", _state(row))
        cores[group] += row["cores"]
        price[group] += row["price_cny_per_h"]
    table(
        ("zone", "market", "type", "state", "nodes", "cores", "CNY/h"),
        (
            (*group, f"{count:,}", f"{cores[group]:,}", f"{price[group]:,.2f}")
            for group, count in sorted(groups.items())
        ),
    )


def _tell_sum(view: View, rows: Sequence[Mapping[str, Any]]) -> None:
    rented = [row for row in rows if row["client_token"]]
    price = sum(row["price_cny_per_h"] for row in rented)
    age = duration(view.now_ms - view.cloud.at_ms)
    say(
        f"{len(rows):,} nodes with {sum(row['cores'] for row in rows):,} cores; {len(rented):,} of them rented, "
        f"{price:,.2f} CNY/h (from {view.source}, {age} ago)"
    )


async def run_cordon(here: Here, names: Sequence[str], *, cordoned: bool) -> int:
    """Take nodes out of use, or put them back; the words on nodes that are gone are struck as well.

    Raises UserError for a node that is not there, Refused without a platform.
    """
    if not names:
        raise UserError("give at least one node, as `springtide nodes` names them")
    async with linked(here.data, SystemClock()) as link:
        there = await _there(link)
        before = (await link.state.wishes()).cordoned
        if unknown := [name for name in names if name not in there and name not in before]:
            raise UserError(f"there is no node {unknown[0]!r}; see `springtide nodes`")
        for name in names:
            await link.state.wish_node(name, cordoned=cordoned)
        for gone in sorted(before - there):
            await link.state.wish_node(gone, cordoned=False)
        now = (await link.state.wishes()).cordoned
    if here.json:
        say_json({"cordoned": sorted(now)})
    else:
        said = "cordoned: nothing new starts there" if cordoned else "in use again"
        for name in names:
            say(f"{name} is {said}")
    return 0


async def _there(link: Link) -> set[str]:
    told = await read_cloud(link.state)
    if told is None:
        raise Refused(f"no control loop has said anything of its nodes yet; see {link.folder.log}")
    pool = idc_nodes(link.settings.config.fleet_zones())
    return {node.node_id for node in (*pool, *told.nodes)}
