"""How the fleet looks in a terminal: its services, its zones, and what its control loop says."""

from collections.abc import Iterable, Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from springtide.cli.sale_show import CONTROLS
from springtide.fleet.status import FleetStatus, ServiceStatus
from springtide.model import ReplicaState, RolloutState, ScaleOverride, ServiceWish, Wishes, ZoneMode, ZoneState

STALE_MS = 10_000
"""A status that is older is no word of now: its loop ticks every second or so."""

_S_PER = ((86_400, "d"), (3600, "h"), (60, "min"))


def duration(ms: float) -> str:
    """In the largest unit of which there are two, such as `90 s` or `3 h`."""
    seconds = max(0.0, ms / 1000)
    for size, unit in _S_PER:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def is_stale(status: FleetStatus, now_ms: int) -> bool:
    """Whether its loop has said nothing for too long."""
    return now_ms - status.at_ms > STALE_MS


def fleet(status: FleetStatus, wishes: Wishes, now_ms: int) -> RenderableType:
    """The whole status as one thing to print."""
    parts: list[RenderableType] = [_headline(status, now_ms)]
    parts.append(_services(status, wishes, now_ms))
    parts.append(_zones(status, wishes))
    parts.extend(Text(_plain(line), style="yellow") for line in _lines(_remarks(status)))
    return Group(*parts)


def show(content: RenderableType) -> None:
    """Print it."""
    Console(markup=False, highlight=False).print(content)


def _headline(status: FleetStatus, now_ms: int) -> Text:
    age = duration(now_ms - status.at_ms)
    if is_stale(status, now_ms):
        return Text(
            f"The control loop has said nothing for {age}: these are its last figures. "
            "Traffic goes on as it was; `springtide up` starts it again.",
            style="bold red",
        )
    return Text(f"led by {_plain(status.leader)}, term {status.term}, tick {status.tick}, {age} ago")


def _services(status: FleetStatus, wishes: Wishes, now_ms: int) -> Table:
    shown = Table("service", "replicas", "wanted", "requests/s", "p99", "revision")
    for name in sorted(status.services.keys() | wishes.services.keys()):
        one = status.services.get(name, ServiceStatus(name))
        wish = wishes.services.get(name)
        bounds = "" if wish is None else f" ({_bounds(wish, wishes.scales.get(name), now_ms)})"
        port = one.port or (wish.port if wish else 0)
        shown.add_row(
            _plain(name) + (f" :{port}" if port else ""),
            counts(one),
            f"{sum(one.placement.values())}{bounds}",
            _rates(one),
            "–" if one.p99_ms is None else f"{one.p99_ms:,.0f} ms",
            revision(one),
        )
    return shown


def _rates(service: ServiceStatus) -> str:
    """What arrives, what of it fails, and what is expected."""
    failed = f", {service.failed_per_s:,.1f} failed" if service.failed_per_s else ""
    return f"{service.requests_per_s:,.0f}{failed} (up to {service.demand.high:,.0f} ahead)"


def counts(service: ServiceStatus) -> str:
    """Replicas by state, such as `4 ready, 1 starting`."""
    total: dict[str, int] = {}
    for states in service.replicas.values():
        for state, count in states.items():
            total[state] = total.get(state, 0) + count
    order = (ReplicaState.READY, ReplicaState.STARTING, ReplicaState.DRAINING, ReplicaState.FAILED)
    return ", ".join(f"{total[state]} {state}" for state in order if total.get(state)) or "none"


def counts_in(service: ServiceStatus, zone: str) -> str:
    """The same of one zone."""
    return counts(ServiceStatus(service.service, replicas={zone: service.replicas.get(zone, {})}))


def revision(service: ServiceStatus) -> str:
    """The revision, or where its change is."""
    if service.retiring:
        return "going away"
    rollout = service.rollout
    if rollout is None or rollout.state is RolloutState.DONE:
        return service.revision or "–"
    said = {RolloutState.ROLLING: "rolling out", RolloutState.ROLLING_BACK: "rolling back"}
    return f"{said.get(rollout.state, 'rolled back')} {rollout.revision}"


def _bounds(wish: ServiceWish, scale: ScaleOverride | None, now_ms: int) -> str:
    if scale is None or (scale.until_ms and scale.until_ms <= now_ms):
        return f"{wish.replicas_min} to {wish.replicas_max}"
    until = f", for {duration(scale.until_ms - now_ms)}" if scale.until_ms else ""
    if scale.replicas_min == scale.replicas_max:
        return f"{scale.replicas_min} by hand{until}"
    return f"{scale.replicas_min} to {scale.replicas_max} by hand{until}"


def zone_names(status: FleetStatus, wishes: Wishes) -> list[str]:
    """All zones that anything is known of."""
    names = set(status.modes) | set(wishes.modes)
    for service in status.services.values():
        names |= service.placement.keys() | service.replicas.keys() | service.zone_health.keys()
    return sorted(names)


def zone_state(status: FleetStatus, zone: str) -> tuple[ZoneState, str]:
    """The worst that any service says of a zone, and why."""
    worst, why = ZoneState.UP, ""
    for service in status.services.values():
        health = service.zone_health.get(zone)
        if health and health.state is not ZoneState.UP and worst is not ZoneState.DOWN:
            worst, why = health.state, health.reason
    return worst, why


def _zones(status: FleetStatus, wishes: Wishes) -> Table:
    shown = Table("zone", "mode", "health", "nodes rented", "replicas by service (weight of the traffic)")
    for zone in zone_names(status, wishes):
        state, why = zone_state(status, zone)
        nodes = sum(service.nodes.get(zone, 0) for service in status.services.values())
        shown.add_row(
            _plain(zone),
            wishes.modes.get(zone, ZoneMode.OPEN),
            f"{state}: {_plain(why)}" if why else state,
            str(nodes),
            "; ".join(_in_zone(service, zone) for _, service in sorted(status.services.items())) or "–",
        )
    return shown


def _in_zone(service: ServiceStatus, zone: str) -> str:
    return f"{_plain(service.service)}: {counts_in(service, zone)} ({service.weights.get(zone, 0)})"


def _lines(remarks: Iterable[str]) -> list[str]:
    """Each once; the end of a log in one of them keeps its lines."""
    return [line for remark in dict.fromkeys(remarks) for line in remark.splitlines()]


def _remarks(status: FleetStatus) -> Iterator[str]:
    for alert in status.alerts:
        yield f"alert: {alert}"
    for name, service in sorted(status.services.items()):
        for alert in service.alerts:
            yield f"alert: {name}: {alert}"
        if service.failure:
            yield f"{name}: {service.failure}"
        if service.rollout and service.rollout.reason:
            yield f"{name}: {service.rollout.reason}"
        if service.capacity and service.capacity.samples:
            yield f"{name}: a replica was found to take {service.capacity.requests_per_s:,.0f} requests/s"
        if service.capacity and service.capacity.limit:
            yield f"{name}: more replicas bring nothing, {service.capacity.limit} is the limit"
        for source, age_ms in sorted(service.ages_ms.items()):
            yield f"{name}: nothing heard of {source} for {duration(age_ms)}"


def _plain(text: str) -> str:
    return text.translate(CONTROLS)
