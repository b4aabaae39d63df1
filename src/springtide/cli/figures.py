"""From what a demo left behind (logs, audit, ledger, journal) to the figures of its report."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from springtide.cli.chaos import Fault
from springtide.config import Config
from springtide.console.figures import FleetSecond, Mark, RentedNodes, RunFigures
from springtide.fleet.journal import Decision, Outcome, read_journal
from springtide.model import (
    FEN_PER_CNY,
    Node,
    Order,
    ReleaseNode,
    RentNodes,
    ReplicaState,
    Sale,
    Snapshot,
    Zone,
    ZoneKind,
)
from springtide.sale.audit import AuditReport, compare_acknowledged
from springtide.twin.crowd.spec import (
    ACKNOWLEDGEMENTS,
    SECONDS,
    SUMMARY,
    CrowdSummary,
    OrderAcknowledged,
    read_acknowledgements,
    read_seconds,
)

HOURS_A_DAY = 24


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What was found at the end of a run. `fleet` has one entry for each second that was watched."""

    config: Config
    zones: tuple[Zone, ...]
    scale: bool
    chaos: bool
    sale: Sale
    start_ms: int
    faults: tuple[Fault, ...]
    audit: AuditReport
    orders: tuple[Order, ...]
    nodes_left: int
    cost_fen: float
    calls: dict[str, int]
    throttled: int
    unthrottled_rps: float
    fleet: tuple[FleetSecond, ...]
    out: Path


class _FleetHistory(msgspec.Struct, frozen=True):
    """What the control loop's journal tells of the run."""

    replicas_peak: dict[str, int]
    rented: tuple[RentedNodes, ...]
    price_peak_cny_per_h: float
    cloud_share_at_peak: float
    ready_before_open_s: float | None
    first_node_rented_s: float | None
    last_node_released_s: float | None


def collect(found: Findings) -> RunFigures:
    """Compare the client's log with the ledger, and put everything together."""
    acknowledged = [
        (line.order_id, line.buyer, line.key, line.sku, line.quantity)
        for line in read_acknowledgements(found.out / ACKNOWLEDGEMENTS)
        if isinstance(line, OrderAcknowledged)
    ]
    comparison = compare_acknowledged(found.orders, acknowledged)
    history = fleet_history(found)
    return RunFigures(
        title=found.sale.title,
        zones=found.zones,
        crowd=msgspec.json.decode((found.out / SUMMARY).read_bytes(), type=CrowdSummary),
        recorded=len(found.orders),
        proved=found.audit.settled and found.audit.method == "still",
        oversold=found.audit.oversold,
        lost=len(comparison.lost) + len(comparison.mismatched),
        duplicates=len(set(comparison.duplicates) | set(found.audit.duplicates)),
        stock_differences=found.audit.differences,
        replicas_peak=history.replicas_peak,
        cloud_share_at_peak=history.cloud_share_at_peak,
        nodes_rented=sum(one.nodes for one in history.rented),
        rented=history.rented,
        calls=found.calls,
        throttled=found.throttled,
        nodes_left=found.nodes_left,
        ready_before_open_s=history.ready_before_open_s,
        cost_cny=found.cost_fen / FEN_PER_CNY,
        cost_static_peak_cny=history.price_peak_cny_per_h * HOURS_A_DAY,
        rate_max=found.config.counter.rate_max,
        unthrottled_rps=found.unthrottled_rps,
        opens_s=(found.sale.opens_ms - found.start_ms) / 1000,
        first_node_rented_s=history.first_node_rented_s,
        last_node_released_s=history.last_node_released_s,
        scaled=found.scale,
        chaos=found.chaos,
        faults=tuple(Mark(fault.second, fault.what) for fault in found.faults),
        seconds=tuple(read_seconds(found.out / SECONDS)),
        fleet=found.fleet,
    )


def fleet_history(found: Findings) -> _FleetHistory:
    """Read the journal once: peaks by zone, who carried the peak, when capacity stood, when nodes came and went."""
    replicas_peak = {zone.name: 0 for zone in found.zones}
    prices_fen = {zone.name: float(zone.price_fen_per_node_h) for zone in found.zones}
    nodes: dict[str, Node] = {}
    peak_fen = 0.0
    rented: list[int] = []
    released: list[int] = []
    snapshots: list[Snapshot] = []
    for entry in read_journal(found.out / "journal.jsonl"):
        if isinstance(entry, Decision):
            snapshots.append(entry.snapshot)
            _raise_to(
                replicas_peak,
                [one.zone for one in entry.snapshot.replicas if one.state is ReplicaState.READY],
            )
            here = [node for node in entry.snapshot.nodes if node.client_token]
            nodes.update((node.node_id, node) for node in here)
            peak_fen = max(peak_fen, sum(_price_fen(node, prices_fen) for node in here))
        elif isinstance(entry, Outcome) and not entry.error:
            if isinstance(entry.action, RentNodes):
                rented.append(entry.at_ms)
            elif isinstance(entry.action, ReleaseNode):
                released.append(entry.at_ms)
    return _FleetHistory(
        replicas_peak=replicas_peak,
        rented=_by_offer(nodes.values(), prices_fen),
        price_peak_cny_per_h=peak_fen / FEN_PER_CNY,
        cloud_share_at_peak=cloud_share_at_peak(snapshots, found.zones),
        ready_before_open_s=ready_before_open_s(snapshots, found),
        first_node_rented_s=(min(rented) - found.start_ms) / 1000 if rented else None,
        last_node_released_s=(max(released) - found.start_ms) / 1000 if released else None,
    )


def cloud_share_at_peak(snapshots: Sequence[Snapshot], zones: Sequence[Zone]) -> float:
    """The cloud's share of the requests in the busiest sample that the balancer gave."""
    cloud = {zone.name for zone in zones if zone.kind is ZoneKind.CLOUD}
    samples = [snapshot.traffic[-1] for snapshot in snapshots if snapshot.traffic]
    if not samples:
        return 0.0
    busiest = max(samples, key=lambda sample: sample.requests_per_s)
    total = sum(zone.requests_per_s for zone in busiest.zones)
    carried = sum(zone.requests_per_s for zone in busiest.zones if zone.zone in cloud)
    return carried / total if total else 0.0


def ready_before_open_s(snapshots: Sequence[Snapshot], found: Findings) -> float | None:
    """How long before the opening the announced peak could be carried, without a break; None if it never could."""
    announced = max((event.peak_requests_per_s for event in found.config.calendar), default=0.0)
    since_ms: int | None = None
    for snapshot in snapshots:
        if snapshot.now_ms > found.sale.opens_ms:
            break
        ready = sum(replica.state is ReplicaState.READY for replica in snapshot.replicas)
        enough = ready * found.config.counter.rate_max >= announced
        since_ms = (since_ms or snapshot.now_ms) if enough else None
    return None if since_ms is None else (found.sale.opens_ms - since_ms) / 1000


def _raise_to(peak: dict[str, int], zones: Sequence[str]) -> None:
    for zone, before in list(peak.items()):
        peak[zone] = max(before, zones.count(zone))


def _price_fen(node: Node, zones_fen: Mapping[str, float]) -> float:
    """Its own price, or else its zone's."""
    return node.price_fen_per_h or zones_fen.get(node.zone, 0.0)


def _by_offer(nodes: Iterable[Node], zones_fen: Mapping[str, float]) -> tuple[RentedNodes, ...]:
    groups: defaultdict[tuple[str, str, str], list[Node]] = defaultdict(list)
    for node in nodes:
        groups[node.zone, node.instance_type, node.market.value].append(node)
    return tuple(
        RentedNodes(
            zone, name, market, len(group), group[0].cores, round(_price_fen(group[-1], zones_fen) / FEN_PER_CNY, 4)
        )
        for (zone, name, market), group in sorted(groups.items())
    )
