"""The fleet: zones, nodes, replicas, traffic, and what a tick decides."""

from enum import StrEnum

import msgspec


class ZoneKind(StrEnum):
    """Whose machines a zone has: the owner's fixed pool, or rented ones."""

    IDC = "idc"
    CLOUD = "cloud"


class Zone(msgspec.Struct, frozen=True):
    """A room of the data centre or a zone of the cloud.

    `nodes_max` is the size of the fixed pool (IDC) or the quota (cloud). `lead_ms` is the time from the order of a node
    until it can run a replica; 0 for IDC. `price_fen_per_node_h` is what a rented node costs.
    """

    name: str
    kind: ZoneKind
    nodes_max: int
    cores_per_node: int
    lead_ms: int = 0
    price_fen_per_node_h: int = 0


class NodeState(StrEnum):
    """A node is paid for from BOOTING on, and can run replicas when READY."""

    BOOTING = "booting"
    READY = "ready"
    RELEASING = "releasing"


class Node(msgspec.Struct, frozen=True):
    """One machine. `client_token` names the purchase it came from (empty for IDC)."""

    node_id: str
    zone: str
    state: NodeState
    cores: int
    client_token: str
    since_ms: int


class ReplicaState(StrEnum):
    """Where a replica is in its life, as its runtime sees it."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Replica(msgspec.Struct, frozen=True):
    """One running copy of the counter. `port` is 0 until it listens; `since_ms` is when it entered its state."""

    replica_id: str
    zone: str
    node_id: str
    state: ReplicaState
    host: str
    port: int
    since_ms: int
    cpu_s: float = 0.0
    memory_bytes: int = 0


class ReplicaSpec(msgspec.Struct, frozen=True):
    """A replica to start. The id is chosen by the decision, so that doing it twice starts one."""

    replica_id: str
    zone: str
    node_id: str


class ZoneTraffic(msgspec.Struct, frozen=True):
    """What the balancer sent to a zone, per second over the last interval, and what came of it."""

    zone: str
    requests_per_s: float
    failed_per_s: float
    in_flight: int
    healthy: int


class TrafficSample(msgspec.Struct, frozen=True):
    """The balancer's figures at one moment. `requests_per_s` counts every request that arrived, answered or not."""

    at_ms: int
    requests_per_s: float
    zones: tuple[ZoneTraffic, ...] = ()


class Endpoint(msgspec.Struct, frozen=True):
    """A replica as the balancer sees it; a weight of 0 drains it: no new requests, open ones finish."""

    replica_id: str
    zone: str
    host: str
    port: int
    weight: int


class CalendarEvent(msgspec.Struct, frozen=True):
    """A sale on the calendar: this many requests a second are expected from `opens_ms` on, for `lasts_ms`.

    `ready_ms` is how long before the opening the capacity has to stand.
    """

    name: str
    opens_ms: int
    lasts_ms: int
    peak_requests_per_s: float
    ready_ms: int


class FleetPolicy(msgspec.Struct, frozen=True):
    """The limits and tastes of the decisions.

    `replica_requests_per_s` is what one replica can take; `headroom` is the spare share on top of the demand (0.25 = a
    quarter more); `base_replicas` stay in each IDC zone for ever; `patience_ms` is how long a lower demand must last
    before capacity goes; `actions_max` bounds what one tick may begin; `starting_max` what may be starting at once.
    `replicas_max` is a budget that no demand exceeds; None is no budget.
    """

    replica_requests_per_s: float
    replica_cores: int
    headroom: float
    base_replicas: int
    patience_ms: int
    drain_ms: int
    start_ms: int
    actions_max: int
    starting_max: int
    stale_ms: int
    replicas_max: int | None = None


class DemandRange(msgspec.Struct, frozen=True):
    """Requests per second expected within the horizon: at the least, most likely, and at the most."""

    low: float
    likely: float
    high: float
    reason: str


class RentNodes(msgspec.Struct, frozen=True, tag="rent_nodes"):
    """Rent `count` nodes in a cloud zone; the token makes the purchase idempotent."""

    zone: str
    count: int
    client_token: str
    reason: str


class ReleaseNode(msgspec.Struct, frozen=True, tag="release_node"):
    """Give a rented node back; it runs nothing any more."""

    node_id: str
    zone: str
    reason: str


class StartReplica(msgspec.Struct, frozen=True, tag="start_replica"):
    """Start one replica on a node that is ready."""

    spec: ReplicaSpec
    reason: str


class DrainReplica(msgspec.Struct, frozen=True, tag="drain_replica"):
    """Take a replica's traffic away; it finishes what it has."""

    replica_id: str
    zone: str
    reason: str


class StopReplica(msgspec.Struct, frozen=True, tag="stop_replica"):
    """End a replica that is drained or failed."""

    replica_id: str
    zone: str
    reason: str


class SetEndpoints(msgspec.Struct, frozen=True, tag="set_endpoints"):
    """Give the balancer this exact list."""

    endpoints: tuple[Endpoint, ...]
    reason: str


Action = RentNodes | ReleaseNode | StartReplica | DrainReplica | StopReplica | SetEndpoints


class Snapshot(msgspec.Struct, frozen=True):
    """Everything a decision may know. `run` and `tick` make the ids it chooses unique and reproducible.

    `traffic` is the recent history, oldest first; the age of the newest sample tells how far to trust it.
    `wanted_before` is the history of (moment, replicas that the demand alone asked for), oldest first, for patience in
    scaling in. `healthy` is what the balancer itself finds healthy; None when it has not said. `ages_ms` is how old the
    observation of "replicas", "nodes" or "health" is; one that is not named is fresh. `in_flight` are actions that were
    begun and have not ended.
    """

    run: str
    tick: int
    now_ms: int
    zones: tuple[Zone, ...]
    nodes: tuple[Node, ...]
    replicas: tuple[Replica, ...]
    endpoints: tuple[Endpoint, ...]
    traffic: tuple[TrafficSample, ...]
    calendar: tuple[CalendarEvent, ...]
    wanted_before: tuple[tuple[int, int], ...] = ()
    healthy: frozenset[str] | None = None
    ages_ms: dict[str, int] = {}
    in_flight: tuple[Action, ...] = ()


class Plan(msgspec.Struct, frozen=True):
    """What one tick decided, and why. `placement` is replicas wanted by zone; `weights` shares of traffic by zone."""

    tick: int
    demand: DemandRange
    replicas_wanted: int
    placement: dict[str, int]
    weights: dict[str, int]
    actions: tuple[Action, ...]
    reasons: tuple[str, ...]
