"""A fleet of a few lines that does at once what each plan says, for tests of many ticks."""

from collections import Counter
from typing import Any

import msgspec

from springtide.decide.plan import plan
from springtide.model import (
    DrainReplica,
    Endpoint,
    FleetPolicy,
    Node,
    NodeState,
    Plan,
    ReleaseNode,
    RentNodes,
    Replica,
    ReplicaSpec,
    ReplicaState,
    SetEndpoints,
    Snapshot,
    StartReplica,
    StopReplica,
    TrafficSample,
    Zone,
    ZoneKind,
    ZoneState,
)

TICK_MS = 500
CRASH_MS = 2_500


class TinyFleet:
    """Zones, their nodes and replicas.

    `broken`, `sick` and `refused` name revisions whose replicas fail, are never healthy, or never come to be; `flawed`
    names replicas that are not healthy. `fates` gives each replica of a revision what becomes of it, in turn: "well",
    "fails", "sick", "refused", or "crashes" (some ticks after it became ready).
    """

    def __init__(self, zones: tuple[Zone, ...], policy: FleetPolicy, rate: float) -> None:
        self.zones, self.policy, self.rate = zones, policy, rate
        self.now_ms, self.tick_no = 1_000_000, 0
        self.nodes = {
            f"{zone.name}-{n}": Node(f"{zone.name}-{n}", zone.name, NodeState.READY, zone.cores_per_node, "", 0)
            for zone in zones
            if zone.kind is ZoneKind.IDC
            for n in range(zone.nodes_max)
        }
        self.replicas: dict[str, Replica] = {}
        self.endpoints: tuple[Endpoint, ...] = ()
        self.traffic: list[TrafficSample] = []
        self.cut_off: set[str] = set()
        self.silent: set[str] = set()
        self.broken: set[str] = set()
        self.sick: set[str] = set()
        self.refused: set[str] = set()
        self.flawed: set[str] = set()
        self.fates: dict[str, list[str]] = {}
        self.started: Counter[str] = Counter()
        self.doomed: dict[str, str] = {}
        self.more: dict[str, Any] = {}
        self.plan: Plan | None = None
        self.plans: list[Plan] = []
        self.replicas_run = 0

    def healthy(self) -> frozenset[str]:
        known = {endpoint.replica_id for endpoint in self.endpoints}
        ups = {ReplicaState.READY, ReplicaState.DRAINING}
        return frozenset(
            r.replica_id
            for r in self.replicas.values()
            if r.replica_id in known
            and r.state in ups
            and r.zone not in self.cut_off
            and r.revision not in self.sick
            and r.replica_id not in self.flawed
        )

    def serving(self) -> set[str]:
        """Replicas with weight that are reached."""
        weighted = {endpoint.replica_id for endpoint in self.endpoints if endpoint.weight}
        return {name for name in self.healthy() & weighted if self.replicas[name].state is ReplicaState.READY}

    def count(self, zone: str) -> int:
        return sum(replica.zone == zone for replica in self.replicas.values())

    def revisions(self) -> Counter[str]:
        return Counter(replica.revision for replica in self.replicas.values())

    def state(self, zone: str) -> ZoneState:
        assert self.plan is not None
        return self.plan.zone_health[zone].state

    def snapshot(self) -> Snapshot:
        before = self.plan
        carried: dict[str, Any] = {}
        if before is not None:
            carried = {
                "zone_health": before.zone_health,
                "rollout": before.rollout,
                "scaled_in_ms": before.scaled_in_ms,
            }
        return Snapshot(
            run="r1",
            tick=self.tick_no,
            now_ms=self.now_ms,
            zones=self.zones,
            nodes=tuple(self.nodes.values()),
            replicas=tuple(self.replicas.values()),
            endpoints=self.endpoints,
            traffic=tuple(self.traffic[-16:]),
            calendar=(),
            healthy=self.healthy(),
            ages_ms={f"replicas/{zone}": 60_000 for zone in self.silent},
            **{**carried, **self.more},
        )

    def tick(self) -> Plan:
        self.tick_no += 1
        self.now_ms += TICK_MS
        self._grow_older()
        self.traffic.append(TrafficSample(self.now_ms, self.rate))
        self.plan = plan(self.snapshot(), self.policy)
        self.plans.append(self.plan)
        self.more.pop("rollout", None)  # given once, it is the plan's from then on
        for action in self.plan.actions:
            self._do(action)
        return self.plan

    def ticks(self, count: int) -> None:
        for _ in range(count):
            self.tick()

    def fail(self, zone: str) -> None:
        for replica in list(self.replicas.values()):
            if replica.zone == zone:
                self._become(replica, ReplicaState.FAILED)

    def _grow_older(self) -> None:
        for replica in list(self.replicas.values()):
            late = self.now_ms - replica.since_ms >= self.policy.start_ms
            if replica.state is ReplicaState.STARTING and late and replica.zone not in self.silent:
                broken = replica.revision in self.broken or self.doomed.get(replica.replica_id) == "fails"
                self._become(replica, ReplicaState.FAILED if broken else ReplicaState.READY)
            settled = replica.state is ReplicaState.READY and self.now_ms - replica.since_ms >= CRASH_MS
            if settled and self.doomed.get(replica.replica_id) == "crashes":
                self._become(replica, ReplicaState.FAILED)
        for node in list(self.nodes.values()):
            lead = next(zone.lead_ms for zone in self.zones if zone.name == node.zone)
            if node.state is NodeState.BOOTING and self.now_ms - node.since_ms >= lead:
                self.nodes[node.node_id] = msgspec.structs.replace(node, state=NodeState.READY)

    def _become(self, replica: Replica, state: ReplicaState) -> None:
        port = replica.port
        if state is ReplicaState.READY:
            self.replicas_run += 1
            port = 1_024 + self.replicas_run
        changed = msgspec.structs.replace(replica, state=state, since_ms=self.now_ms, port=port)
        self.replicas[replica.replica_id] = changed

    def _fate(self, spec: ReplicaSpec) -> str:
        fates = self.fates.get(spec.revision, ["well"])
        fate = fates[self.started[spec.revision] % len(fates)]
        self.started[spec.revision] += 1
        self.doomed[spec.replica_id] = fate
        if fate == "sick":
            self.flawed.add(spec.replica_id)
        return fate

    def _do(self, action: Any) -> None:
        match action:
            case SetEndpoints(endpoints=endpoints):
                self.endpoints = endpoints
            case StartReplica(spec=spec):
                assert spec.zone not in self.silent, "a start in a zone whose runtime is silent"
                if spec.revision in self.refused or self._fate(spec) == "refused":
                    return
                self.replicas[spec.replica_id] = Replica(
                    replica_id=spec.replica_id,
                    zone=spec.zone,
                    node_id=spec.node_id,
                    state=ReplicaState.STARTING,
                    host="127.0.0.1",
                    port=0,
                    since_ms=self.now_ms,
                    service=spec.service,
                    revision=spec.revision,
                )
            case DrainReplica(replica_id=name):
                self._become(self.replicas[name], ReplicaState.DRAINING)
            case StopReplica(replica_id=name):
                assert self.replicas[name].zone not in self.silent
                del self.replicas[name]
            case RentNodes(zone=zone, count=count):
                cores = next(z.cores_per_node for z in self.zones if z.name == zone)
                for n in range(count):
                    name = f"{zone}-{self.tick_no}-{n}"
                    self.nodes[name] = Node(name, zone, NodeState.BOOTING, cores, action.client_token, self.now_ms)
            case ReleaseNode(node_id=name):
                del self.nodes[name]
