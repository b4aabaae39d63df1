"""The fleet: zones, nodes, replicas, traffic, and what a tick decides."""

from enum import StrEnum

import msgspec

from springtide.model.cloud import Fill, Market, NodeOrder, Offer, Purchase, Quota
from springtide.model.service import (
    COUNTER,
    CapacityEstimate,
    Rollout,
    ScaleOverride,
    SeasonPoint,
    Signal,
    SignalSample,
    UsualDemand,
    ZoneHealth,
    ZoneMode,
)


class ZoneKind(StrEnum):
    """Whose machines a zone has: the owner's fixed pool, or rented ones."""

    IDC = "idc"
    CLOUD = "cloud"


class Zone(msgspec.Struct, frozen=True):
    """A room of the data centre or a zone of the cloud.

    `nodes_max` is the size of the fixed pool (IDC) or the quota (cloud). `lead_ms` is the time from the order of a node
    until it can run a replica; 0 for IDC. `price_fen_per_node_h` is what a rented node costs. A `memory_mb_per_node`
    of 0 is not counted.
    """

    name: str
    kind: ZoneKind
    nodes_max: int
    cores_per_node: int
    lead_ms: int = 0
    price_fen_per_node_h: int = 0
    memory_mb_per_node: int = 0


class NodeState(StrEnum):
    """A node is paid for from BOOTING on, and can run replicas when READY."""

    BOOTING = "booting"
    READY = "ready"
    RELEASING = "releasing"


class Node(msgspec.Struct, frozen=True):
    """One machine. `client_token` names the purchase it came from (empty for IDC).

    `rented_ms` is when its bill began (0: not known), `release_at_ms` when the cloud takes it back by itself (0:
    never), `reclaim_ms` when a spot machine will be taken away, once that was announced (0: it was not).
    """

    node_id: str
    zone: str
    state: NodeState
    cores: int
    client_token: str
    since_ms: int
    memory_mb: int = 0
    instance_type: str = ""
    market: Market = Market.ON_DEMAND
    price_fen_per_h: float = 0.0
    address: str = ""
    rented_ms: int = 0
    release_at_ms: int = 0
    reclaim_ms: int = 0


class ReplicaState(StrEnum):
    """Where a replica is in its life, as its runtime sees it."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Replica(msgspec.Struct, frozen=True):
    """One running copy of a service. `port` is 0 until it listens; `since_ms` is when it entered its state.

    `failure` says why a failed one failed.
    """

    replica_id: str
    zone: str
    node_id: str
    state: ReplicaState
    host: str
    port: int
    since_ms: int
    cpu_s: float = 0.0
    memory_bytes: int = 0
    service: str = COUNTER
    revision: str = ""
    failure: str = ""


class ReplicaSpec(msgspec.Struct, frozen=True):
    """A replica to start. The id is chosen by the decision, so that doing it twice starts one."""

    replica_id: str
    zone: str
    node_id: str
    service: str = COUNTER
    revision: str = ""


class ZoneTraffic(msgspec.Struct, frozen=True):
    """What the balancer sent to a zone, per second over the last interval, and what came of it."""

    zone: str
    requests_per_s: float
    failed_per_s: float
    in_flight: int
    healthy: int
    queued: int = 0


class TrafficSample(msgspec.Struct, frozen=True):
    """The balancer's figures at one moment. `requests_per_s` counts every request that arrived, answered or not.

    `queued` are requests that wait for a replica now, `in_flight` those that a replica has. `p99_ms` is of the
    answers of the last interval; None when the balancer does not know.
    """

    at_ms: int
    requests_per_s: float
    zones: tuple[ZoneTraffic, ...] = ()
    failed_per_s: float = 0.0
    queued: int = 0
    in_flight: int = 0
    p99_ms: float | None = None


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

    `replica_requests_per_s` is what one replica can take; `headroom` is the spare share on top of the demand (0.25
    = a quarter more); `base_replicas` stay in each IDC zone for ever; `patience_ms` is how long a lower demand must
    last before capacity goes; `actions_max` bounds what one tick may begin; `starting_max` what may be starting at
    once. `replicas_max` is a budget that no demand exceeds; None is no budget. `replica_memory_mb` of 0 is not
    counted. `failure_budget` is how many zones may be lost (0 or 1) without the capacity falling below the demand.
    `scale_in_share` is the largest share of the replicas that one stage of scaling in may take, and
    `scale_in_every_ms` the time between stages. `zone_down_ms` is how long a zone's signs must be bad,
    `zone_return_ms` how long they must be good before it returns, `zone_ramp_ms` how long its traffic then takes to
    come back. `rollout_surge` replicas of a new revision may be added at once, `rollout_failed_max` may fail before
    it is rolled back. `capacity_learnt` lets what replicas are seen to take replace `replica_requests_per_s` within
    its bounds.
    `season_ms` is what demand repeats after (0: nothing is known to repeat). `event_doubt` is the share by which more
    than announced may come: it is provided for until `event_doubt_ms` after an opening, when the size is seen.
    `release_after_ms`: the cloud takes a rented node back by itself so long after the end of the event it is for, or
    after its order (0: never). `spend_max_fen_per_h` bounds what all rented nodes cost (0: unbounded),
    `zone_share_max` and `spot_share_max` are as in ProvisionNeed. `line_share_max` is the share of a line that the
    fleet may use.
    """

    replica_requests_per_s: float
    replica_cores: float
    headroom: float
    base_replicas: int
    patience_ms: int
    drain_ms: int
    start_ms: int
    actions_max: int
    starting_max: int
    stale_ms: int
    replicas_max: int | None = None
    replica_memory_mb: int = 0
    failure_budget: int = 0
    scale_in_share: float = 1.0
    scale_in_every_ms: int = 0
    zone_down_ms: int = 0
    zone_return_ms: int = 5_000
    zone_ramp_ms: int = 10_000
    rollout_surge: int = 1
    rollout_failed_max: int = 2
    capacity_learnt: bool = False
    season_ms: int = 0
    signals: tuple[Signal, ...] = ()
    event_doubt: float = 0.0
    event_doubt_ms: int = 120_000
    release_after_ms: int = 0
    spend_max_fen_per_h: float = 0.0
    zone_share_max: float = 1.0
    spot_share_max: float = 0.0
    line_share_max: float = 0.8


class DemandRange(msgspec.Struct, frozen=True):
    """Requests per second expected within the horizon: at the least, most likely, and at the most."""

    low: float
    likely: float
    high: float
    reason: str


class RentNodes(msgspec.Struct, frozen=True, tag="rent_nodes"):
    """Rent `count` nodes in a cloud zone; the token makes the purchase idempotent.

    The fields after `reason` are as in NodeOrder. `cores` is what one of the nodes counts for.
    """

    zone: str
    count: int
    client_token: str
    reason: str
    instance_type: str = ""
    market: Market = Market.ON_DEMAND
    count_min: int = 1
    release_at_ms: int = 0
    price_limit_fen_per_h: float = 0.0
    cores: int = 0

    @property
    def order(self) -> NodeOrder:
        """Exactly what is sent."""
        return NodeOrder(
            self.zone,
            self.count,
            self.client_token,
            self.instance_type,
            self.market,
            self.count_min,
            self.release_at_ms,
            self.price_limit_fen_per_h,
        )


class ReleaseNode(msgspec.Struct, frozen=True, tag="release_node"):
    """Give a rented node back; it runs nothing any more."""

    node_id: str
    zone: str
    reason: str


class KeepNodes(msgspec.Struct, frozen=True, tag="keep_nodes"):
    """Let the cloud take these rented nodes back by itself at another moment than it was told: always a later one."""

    node_ids: tuple[str, ...]
    release_at_ms: int
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


Action = RentNodes | ReleaseNode | KeepNodes | StartReplica | DrainReplica | StopReplica | SetEndpoints


class LineLimit(msgspec.Struct, frozen=True):
    """How much of its usual share of traffic the cloud may have because of the line to it, decided at `since_ms`."""

    share: float = 1.0
    since_ms: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    """Everything a decision may know. `run` and `tick` make the ids it chooses unique and reproducible.

    `traffic` is the recent history, oldest first; the age of the newest sample tells how far to trust it.
    `wanted_before` is the history of (moment, replicas that the demand alone asked for), oldest first, for patience in
    scaling in. `healthy` is what the balancer itself finds healthy; None when it has not said. `ages_ms` is how old the
    observation of "replicas", "nodes" or "health" is; one that is not named is fresh. "replicas/ZONE" is the age of the
    word of that zone's runtime alone. `in_flight` are actions that were begun and have not ended.

    One snapshot is about one `service`, and has a `run` of its own. IDC nodes are shared: `taken_cores` and
    `taken_memory_mb` are what other services hold of each; rented nodes belong to the service that rented them, and
    only those are listed. `modes` is what operators said of zones. `revision` is the one that new replicas get when
    there is no `rollout`.
    `zone_health`, `capacity`, `rollout` and `scaled_in_ms` are the plan's before this one. `seasons` is the demand of
    earlier seasons, oldest first. `engines` is how busy the engines behind the service are (0 to 1), by name.
    `usual` is what demand of the last hours was like.
    `offers` is what can be rented; without any, each cloud zone has the one machine that it is configured with, up to
    its `nodes_max`. `fills` is what came of the last minutes' orders, oldest first; `quotas` the account's limits.
    `purchases` are what the plans of events that are not over have scheduled, ordered or not. `cordoned` are nodes on
    which nothing new starts. `line_load` is the share of each line that is taken (0 to 1), by name; one that has failed
    is not named. `line_limit` is the plan's before this one. `others_fen_per_h` is what the rented nodes of other
    services cost, those on order included.
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
    service: str = COUNTER
    revision: str = ""
    rollout: Rollout | None = None
    modes: dict[str, ZoneMode] = {}
    zone_health: dict[str, ZoneHealth] = {}
    capacity: CapacityEstimate | None = None
    taken_cores: dict[str, float] = {}
    taken_memory_mb: dict[str, int] = {}
    signals: tuple[SignalSample, ...] = ()
    scale: ScaleOverride | None = None
    seasons: tuple[SeasonPoint, ...] = ()
    engines: dict[str, float] = {}
    usual: UsualDemand | None = None
    scaled_in_ms: int = 0
    offers: tuple[Offer, ...] = ()
    fills: tuple[Fill, ...] = ()
    quotas: tuple[Quota, ...] = ()
    purchases: tuple[Purchase, ...] = ()
    cordoned: frozenset[str] = frozenset()
    line_load: dict[str, float] = {}
    line_limit: LineLimit = LineLimit()
    others_fen_per_h: float = 0.0


class Plan(msgspec.Struct, frozen=True):
    """What one tick decided, and why. `placement` is replicas wanted by zone; `weights` shares of traffic by zone.

    `zone_health`, `capacity`, `rollout`, `line_limit` and `scaled_in_ms` (when a stage of scaling in began last) go
    into the next snapshot as they are. `alerts` are for a person. `asked` is what demand and signals alone asked for at
    this moment: the next snapshots' `wanted_before`.
    """

    tick: int
    demand: DemandRange
    replicas_wanted: int
    placement: dict[str, int]
    weights: dict[str, int]
    actions: tuple[Action, ...]
    reasons: tuple[str, ...]
    zone_health: dict[str, ZoneHealth] = {}
    capacity: CapacityEstimate | None = None
    rollout: Rollout | None = None
    alerts: tuple[str, ...] = ()
    asked: int = 0
    scaled_in_ms: int = 0
    line_limit: LineLimit = LineLimit()
