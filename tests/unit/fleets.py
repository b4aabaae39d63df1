"""Small fleets for the tests of the decisions."""

from typing import Any

from springtide.model import (
    CalendarEvent,
    Endpoint,
    FleetPolicy,
    Node,
    NodeState,
    Replica,
    ReplicaState,
    Snapshot,
    TrafficSample,
    Zone,
    ZoneKind,
)

NOW = 1_000_000
A = Zone("idc-a", ZoneKind.IDC, nodes_max=1, cores_per_node=4)
B = Zone("idc-b", ZoneKind.IDC, nodes_max=1, cores_per_node=4)
H = Zone("cloud-h", ZoneKind.CLOUD, nodes_max=5, cores_per_node=2, lead_ms=6_000, price_fen_per_node_h=100)
POLICY = FleetPolicy(
    replica_requests_per_s=100,
    replica_cores=1,
    headroom=0.25,
    base_replicas=1,
    patience_ms=10_000,
    drain_ms=2_000,
    start_ms=3_000,
    actions_max=8,
    starting_max=4,
    stale_ms=1_500,
)


def node(name: str, zone: Zone = H, state: NodeState = NodeState.READY, token: str = "t") -> Node:
    return Node(name, zone.name, state, zone.cores_per_node, token, NOW - 60_000)


IDC_NODES = (node("idc-a-0", A, token=""), node("idc-b-0", B, token=""))


def replica(
    name: str,
    on: Node,
    state: ReplicaState = ReplicaState.READY,
    age_ms: int = 60_000,
    port: int | None = None,
) -> Replica:
    """A replica; its port follows from its name, and is 0 while it starts."""
    listens = 1024 + sum(ord(c) * 31**i for i, c in enumerate(name)) % 60_000 if port is None else port
    listens = 0 if state is ReplicaState.STARTING else listens
    return Replica(name, on.zone, on.node_id, state, "127.0.0.1", listens, NOW - age_ms)


def endpoint(of: Replica, weight: int = 100) -> Endpoint:
    return Endpoint(of.replica_id, of.zone, of.host, of.port, weight)


def listed(*replicas: Replica) -> tuple[Endpoint, ...]:
    """The list a balancer has once all of these take traffic."""
    return tuple(sorted((endpoint(r) for r in replicas), key=lambda e: (e.zone, e.replica_id)))


BASE = (replica("a1", IDC_NODES[0]), replica("b1", IDC_NODES[1]))


def snapshot(rate: float = 50.0, **changes: Any) -> Snapshot:
    """The base fleet under a steady rate, unless changed."""
    parts: dict[str, Any] = {
        "run": "r1",
        "tick": 7,
        "now_ms": NOW,
        "zones": (A, B, H),
        "nodes": IDC_NODES,
        "replicas": BASE,
        "traffic": tuple(TrafficSample(NOW - 500 * n, rate) for n in range(19, -1, -1)),
        "calendar": (),
    }
    parts |= changes
    ready = [r for r in parts["replicas"] if r.state is ReplicaState.READY]
    parts.setdefault("endpoints", listed(*ready))
    return Snapshot(**parts)


def event(opens_in_ms: int, peak: float, lasts_ms: int = 10_000, ready_ms: int = 5_000) -> CalendarEvent:
    return CalendarEvent("live", NOW + opens_in_ms, lasts_ms, peak, ready_ms)
