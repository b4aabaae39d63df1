"""`springtide scale` and `springtide zone …`: what operators decide by hand, against the automatic."""

import re
from typing import Any

from rich.table import Table

from springtide.cli.fleet_show import counts, counts_in, duration, show, zone_names, zone_state
from springtide.cli.platform_link import Link, linked
from springtide.cli.platform_options import Here
from springtide.cli.sale_show import say, say_json
from springtide.drivers.system import SystemClock
from springtide.errors import Refused, UserError
from springtide.fleet.status import FleetStatus, ServiceStatus
from springtide.model import ReplicaState, ScaleOverride, Wishes, ZoneMode

REPLICAS_MAX = 100_000
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_duration_ms(text: str) -> int:
    """`30m` and the like; 0 for an empty text. Raises UserError."""
    if not text:
        return 0
    found = _DURATION.fullmatch(text)
    if found is None or float(found[1]) == 0:
        raise UserError(f"--for {text}: give a number with a unit, such as 90s, 30m, 2h or 1d")
    return round(float(found[1]) * _MS[found[2]])


def bounds_of(count: int | None, least: int | None, most: int | None, *, auto: bool) -> tuple[int, int] | None:
    """What was asked for as bounds; None gives the service back to the automatic. Raises UserError."""
    ways = (count is not None) + (least is not None or most is not None) + auto
    if ways != 1:
        raise UserError("give either a number of replicas, or --min and --max, or --auto")
    if auto:
        return None
    if count is not None:
        least = most = count
    if least is None or most is None:
        raise UserError("give both --min and --max")
    if not 0 <= least <= most <= REPLICAS_MAX:
        raise UserError(f"bounds of {least} to {most}: they must be 0 to {REPLICAS_MAX}, the smaller one first")
    return least, most


async def run_scale(here: Here, service: str, bounds: tuple[int, int] | None, for_ms: int, wait_s: float) -> int:
    """Bound a service's replicas, or leave them to its own bounds, and wait until it is so."""
    clock = SystemClock()
    async with linked(here.data, clock) as link:
        await link.wished(service)
        until_ms = clock.now_ms() + for_ms if for_ms else 0
        scale = ScaleOverride(*bounds, until_ms) if bounds else None
        await link.state.wish_scale(service, scale)
        reached = await _within(link, service, bounds, wait_s)
        status = await link.status()
    one = status.services.get(service) if status else None
    if here.json:
        say_json(
            {
                "service": service,
                "bounds": list(bounds) if bounds else None,
                "until_ms": until_ms or None,
                "reached": reached,
                "replicas": one.replicas if one else {},
            }
        )
    else:
        _tell_scale(service, bounds, for_ms, one)
    if not reached:
        raise Refused(f"{service} is not there after {wait_s:g} s; `springtide why {service}` says what hinders it")
    return 0


def _tell_scale(service: str, bounds: tuple[int, int] | None, for_ms: int, one: ServiceStatus | None) -> None:
    now = counts(one) if one else "none"
    if bounds is None:
        say(f"{service}: its own bounds hold again; replicas: {now}")
        return
    least, most = bounds
    number = f"{least}" if least == most else f"{least} to {most}"
    until = f" for {duration(for_ms)}" if for_ms else " until `springtide scale --auto`"
    say(f"{service}: {number} replicas{until}; now: {now}")


async def _within(link: Link, service: str, bounds: tuple[int, int] | None, wait_s: float) -> bool:
    """Wait until the ready replicas lie within the bounds and no other is on its way."""
    wishes = await link.state.wishes()
    least, most = bounds or (0, REPLICAS_MAX)

    def reached(status: FleetStatus) -> bool:
        one = status.services.get(service)
        if one is None or status.wishes < wishes.version:
            return False
        ready = sum(states.get(ReplicaState.READY, 0) for states in one.replicas.values())
        return least <= ready <= most and least <= one.wanted <= most

    return not wait_s or await link.wait(wait_s, reached)


async def run_zones(here: Here) -> int:
    """All zones, with what is in them."""
    clock = SystemClock()
    async with linked(here.data, clock) as link:
        status = await link.status() or FleetStatus(0, 0, "", 0)
        wishes = await link.state.wishes()
        names = [zone.name for zone in link.settings.config.zones]
    names += [name for name in zone_names(status, wishes) if name not in names]
    zones = [_zone(name, status, wishes) for name in names]
    if here.json:
        say_json({"zones": zones, "at_ms": status.at_ms})
        return 0
    shown = Table("zone", "mode", "health", "replicas")
    for name, zone in zip(names, zones, strict=True):
        replicas = "; ".join(f"{service}: {counts_in(one, name)}" for service, one in sorted(status.services.items()))
        shown.add_row(name, zone["mode"], zone["health"], replicas or "–")
    show(shown)
    return 0


def _zone(name: str, status: FleetStatus, wishes: Wishes) -> dict[str, Any]:
    health, reason = zone_state(status, name)
    return {
        "zone": name,
        "mode": wishes.modes.get(name, ZoneMode.OPEN),
        "health": health,
        "reason": reason,
        "replicas": {one.service: one.replicas.get(name, {}) for one in status.services.values()},
        "weights": {one.service: one.weights.get(name, 0) for one in status.services.values()},
    }


async def run_zone_mode(here: Here, zone: str, mode: ZoneMode, wait_s: float) -> int:
    """Say what may be done with a zone; with `wait_s`, wait until it is so."""
    clock = SystemClock()
    async with linked(here.data, clock) as link:
        known = [one.name for one in link.settings.config.zones]
        if zone not in known:
            raise UserError(f"there is no zone {zone!r}; there are: {', '.join(known)}")
        await link.state.wish_mode(zone, mode)
        reached = await _is_so(link, zone, mode, wait_s)
    if here.json:
        say_json({"zone": zone, "mode": mode, "reached": reached})
    elif reached:
        say(f"{zone} is {_SAID[mode]}")
    if not reached:
        raise Refused(f"{zone} is {_SAID[mode]}, but not finished after {wait_s:g} s; see `springtide status`")
    return 0


_SAID = {ZoneMode.OPEN: "open", ZoneMode.CORDONED: "cordoned: nothing new starts there", ZoneMode.DRAINED: "drained"}


async def _is_so(link: Link, zone: str, mode: ZoneMode, wait_s: float) -> bool:
    wishes = await link.state.wishes()

    def reached(status: FleetStatus) -> bool:
        if status.wishes < wishes.version:
            return False
        services = status.services.values()
        if mode is ZoneMode.DRAINED:
            return not any(one.weights.get(zone) or sum(one.replicas.get(zone, {}).values()) for one in services)
        if mode is ZoneMode.OPEN:
            return all(
                one.replicas.get(zone, {}).get(ReplicaState.READY, 0) >= one.placement.get(zone, 0) for one in services
            )
        return True

    return not wait_s or await link.wait(wait_s, reached)
