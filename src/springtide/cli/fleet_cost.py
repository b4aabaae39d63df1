"""`springtide cost`: what rented nodes cost an hour, have cost so far, and will have until the events are over."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from springtide.cli.cloud_view import View, look, market_of
from springtide.cli.fleet_show import duration
from springtide.cli.platform_options import Here
from springtide.cli.sale_show import moment, say, say_json, table
from springtide.model import FEN_PER_CNY, Market, ZoneKind

_MS_PER_H = 3_600_000


async def run_cost(here: Here, config: Path | None, environ: Mapping[str, str]) -> int:
    """Say it. Raises what `look` does."""
    view = await look(here.data, config, environ)
    found = cost_of(view)
    if here.json:
        say_json(found)
    else:
        _show(view, found)
    return 0


def cost_of(view: View) -> dict[str, Any]:
    """Money in CNY, times in Unix milliseconds. What is owned costs nothing here.

    The forecast is what is spent so far, what runs now until the last announced event ends, and what plans of events
    have scheduled until theirs; without an event ahead it is None.
    """
    groups: dict[tuple[str, str, str], list[float]] = {}
    for node in view.rented:
        at = (node.zone, market_of(node).value, node.instance_type)
        group = groups.setdefault(at, [0, 0, 0.0])
        group[0] += 1
        group[1] += node.cores
        group[2] += view.price_fen_per_h(node) / FEN_PER_CNY
    per_h = sum(group[2] for group in groups.values())
    so_far = view.cloud.cost_fen / FEN_PER_CNY
    limit = view.config.cloud.spend_max_cny_per_h
    end_ms = events_end_ms(view)
    return {
        "at_ms": view.cloud.at_ms,
        "source": view.source,
        "currency": "CNY",
        "per_h": per_h,
        "per_h_max": limit or None,
        "so_far": so_far,
        "until_ms": end_ms or None,
        "forecast": so_far + _ahead_cny(view, per_h, end_ms) if end_ms else None,
        "groups": [
            {"zone": zone, "market": market, "type": name, "nodes": int(nodes), "cores": int(cores), "per_h": cny}
            for (zone, market, name), (nodes, cores, cny) in sorted(groups.items())
        ],
        "zones": [
            {
                "zone": zone.name,
                "nodes": sum(node.zone == zone.name for node in view.rented),
                "nodes_max": zone.nodes_max,
            }
            for zone in view.zones.values()
            if zone.kind is ZoneKind.CLOUD
        ],
        "shares": _shares(view),
        "quotas": [
            {
                "market": quota.market.value,
                "zone": quota.zone,
                "used_cores": quota.used_cores,
                "limit_cores": quota.limit_cores,
            }
            for quota in view.cloud.quotas
        ],
    }


def events_end_ms(view: View) -> int:
    """When the last announced event that is not over ends; 0 when there is none."""
    ends = [event.opens_ms + event.lasts_ms for event in view.cloud.events]
    ends += [purchase.needed_until_ms for purchase in view.cloud.purchases]
    return max((end_ms for end_ms in ends if end_ms > view.now_ms), default=0)


def _ahead_cny(view: View, per_h: float, end_ms: int) -> float:
    """From now on: what runs, and what is scheduled."""
    scheduled = sum(
        purchase.count
        * (purchase.price_fen_per_h / FEN_PER_CNY)
        * max(0, (purchase.needed_until_ms or end_ms) - max(view.now_ms, purchase.order_ms))
        / _MS_PER_H
        for purchase in view.cloud.purchases
    )
    return per_h * (end_ms - view.now_ms) / _MS_PER_H + scheduled


def _shares(view: View) -> dict[str, Any]:
    """The largest zone's and spot's share of all rented cores, beside their limits."""
    cores = sum(node.cores for node in view.rented)
    by_zone: dict[str, int] = {}
    for node in view.rented:
        by_zone[node.zone] = by_zone.get(node.zone, 0) + node.cores
    spot = sum(node.cores for node in view.rented if node.market is Market.SPOT)
    return {
        "zone": max(by_zone.values(), default=0) / cores if cores else 0.0,
        "zone_max": view.config.cloud.zone_share_max,
        "spot": spot / cores if cores else 0.0,
        "spot_max": view.config.cloud.spot_share_max,
    }


def _show(view: View, found: Mapping[str, Any]) -> None:
    rows = [
        (
            one["zone"],
            one["market"],
            one["type"] or "–",
            f"{one['nodes']:,}",
            f"{one['cores']:,}",
            f"{one['per_h']:,.2f}",
        )
        for one in found["groups"]
    ]
    if rows:
        table(("zone", "market", "type", "nodes", "cores", "CNY/h"), rows)
    most = f" of at most {found['per_h_max']:,.2f}" if found["per_h_max"] else ""
    say(f"now          {found['per_h']:,.2f} CNY/h{most}")
    say(f"so far       {found['so_far']:,.2f} CNY")
    if found["forecast"] is not None:
        say(f"by {moment(found['until_ms'])}  {found['forecast']:,.2f} CNY, as it stands and is planned")
    for zone in found["zones"]:
        say(f"{zone['zone']}: {zone['nodes']:,} of at most {zone['nodes_max']:,} nodes")
    for quota in found["quotas"]:
        where = f" in {quota['zone']}" if quota["zone"] else ""
        say(f"quota of {quota['market']}{where}: {quota['used_cores']:,} of {quota['limit_cores']:,} cores")
    say(f"(from {view.source}, {duration(view.now_ms - view.cloud.at_ms)} ago)")
