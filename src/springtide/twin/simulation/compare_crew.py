"""What runs a simulated fleet by a policy that only counts replicas, as scheduler and node autoscaler at their best.

It acts through the same hands as ours, at the same ticks, in the same market. Replicas go on the owner's nodes first,
spread over them, then on rented ones, the fullest first. What has no place is the reason for machines at once, by the
price of a replica's room on them, zones of one price evenly; what an offer does not have is tried at the next one in
the same tick. A rented node is given back at the tick at which it is empty; whoever goes is of the emptiest.
Replicas that nobody reaches, or whose machine will be taken away, are replaced at once.
"""

from collections import Counter, deque
from collections.abc import Sequence

from springtide.decide.autoscale import base_total
from springtide.model import (
    DemandRange,
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
)
from springtide.twin.policies import Counting, Seen
from springtide.twin.simulation.compare_buyer import Buyer
from springtide.twin.simulation.hands import Hands
from springtide.twin.simulation.replicas import FULL_WEIGHT
from springtide.twin.simulation.world import World

SAMPLES_MAX = 512
"""Traffic samples that a metric is the mean of, at most."""


class CrewDecisions:
    """Keeps a world at the count of a policy, as far as there is room; the counterpart of `decisions.Decisions`."""

    def __init__(self, world: World, hands: Hands, policy: FleetPolicy, counting: Counting) -> None:
        """Begin without a past. Of `policy` the base, the budget, the drain and the limits on renting hold."""
        self._world = world
        self._hands = hands
        self._counting = counting
        self.policy = policy
        self._buyer = Buyer(world, hands, policy)
        self._cores = world.scenario.service.replica_cores
        self._least = min(base_total(policy, [zone.model() for zone in world.scenario.zones]), self._own_slots())
        self._traffic: deque[TrafficSample] = deque(maxlen=SAMPLES_MAX)
        self._wanted = max(1, self._least)
        self._sync_ms = 0
        self._started = 0
        self._rests: tuple[int, int] | None = None
        self.every_tick = False
        self.ticks = self.plans = 0
        self.plan: Plan | None = None
        self.snapshot: Snapshot | None = None
        """None: it decides by no snapshot."""

    def tick(self, sample: TrafficSample) -> Plan:
        """Count when it is time to, act, and say what is wanted."""
        self.ticks += 1
        self._traffic.append(sample)
        now_ms = self._world.kernel.now_ms
        if now_ms >= self._sync_ms:
            self._sync_ms = now_ms + self._counting.sync_ms
            self._wanted = self._bounded(self._counting.decide(Seen(now_ms, max(1, self._wanted), self._mean)))
        state = self._world.version + self._hands.version, self._wanted
        if self.every_tick or state != self._rests:
            self.plans += 1
            self._rests = state if self._act() else None
        rate = sample.requests_per_s
        self.plan = Plan(
            tick=self.ticks,
            demand=DemandRange(rate, rate, rate, "what came"),
            replicas_wanted=self._wanted,
            placement={},
            weights={},
            actions=(),
            reasons=(),
        )
        return self.plan

    def _bounded(self, count: int) -> int:
        most = self.policy.replicas_max
        count = max(count, self._least)
        return count if most is None else min(count, most)

    def _mean(self, from_ms: int, until_ms: int) -> float:
        """The mean of the samples of a time, of the last one before its end where it has none."""
        rates = [each.requests_per_s for each in self._traffic if from_ms < each.at_ms <= until_ms]
        if not rates:
            before = [each for each in self._traffic if each.at_ms <= until_ms]
            return (before[-1] if before else self._traffic[0]).requests_per_s
        return sum(rates) / len(rates)

    def _act(self) -> bool:
        """Do what there is to do; whether nothing is left that time alone would bring."""
        world, hands = self._world, self._hands
        self._stop_drained()
        going = {node.node_id for node in world.market.nodes() if node.reclaim_ms}
        staying = [
            replica
            for replica in world.replicas.all
            if replica.state in {ReplicaState.STARTING, ReplicaState.READY}
            and world.is_reached(replica.zone)
            and replica.node_id not in going
        ]
        waiting = self._wanted - len(staying)
        if waiting > 0:
            waiting -= self._fill(waiting, going)
        elif waiting < 0:
            self._thin(staying, -waiting)
        if going and sum(replica.state is ReplicaState.READY for replica in staying) >= self._wanted:
            self._leave(going)
        coming = self._coming(going)
        if waiting > coming:
            self._buyer.rent(waiting - coming)
        self._give_back(max(0, waiting))
        self._list()
        drains = any(replica.state is ReplicaState.DRAINING for replica in world.replicas.all)
        return waiting <= 0 and not drains and not going and not hands.in_flight and not world.silent_ms()

    def _stop_drained(self) -> None:
        over_ms = self._world.kernel.now_ms - self.policy.drain_ms
        self._hands.carry_out(
            [
                StopReplica(replica.replica_id, replica.zone, "")
                for replica in self._world.replicas.all
                if replica.state is ReplicaState.DRAINING and replica.since_ms <= over_ms
            ]
        )

    def _fill(self, missing: int, going: set[str]) -> int:
        """Start up to so many on nodes that are ready; how many."""
        rented = self._world.market.live
        ready = [
            node
            for node in self._world.nodes
            if node.state is NodeState.READY and self._world.is_reached(node.zone) and node.node_id not in going
        ]

        def key(node: Node) -> tuple[bool, int]:
            used = self._world.replicas.used_cores(node.node_id)
            return node.node_id in rented, -used if node.node_id in rented else used

        starts: list[StartReplica] = []
        for node in sorted(ready, key=key):
            for _ in range(min(self._free(node), missing - len(starts))):
                self._started += 1
                starts.append(StartReplica(ReplicaSpec(f"crew-r{self._started}", node.zone, node.node_id), ""))
        self._hands.carry_out(starts)
        return len(starts)

    def _thin(self, staying: Sequence[Replica], count: int) -> None:
        """Take so many away: first what does not serve yet, then from the emptiest rented node."""
        used = self._world.replicas.used_cores
        rented = self._world.market.live

        def key(replica: Replica) -> tuple[bool, bool, int, str, int]:
            name = replica.node_id
            return replica.state is ReplicaState.READY, name not in rented, used(name), name, -replica.since_ms

        self._hands.carry_out(
            [
                StopReplica(replica.replica_id, replica.zone, "")
                if replica.state is ReplicaState.STARTING
                else DrainReplica(replica.replica_id, replica.zone, "")
                for replica in sorted(staying, key=key)[:count]
            ]
        )

    def _leave(self, going: set[str]) -> None:
        """Empty the machines that will be taken away, now that others serve in their place."""
        self._hands.carry_out(
            [
                DrainReplica(replica.replica_id, replica.zone, "")
                for replica in self._world.replicas.all
                if replica.node_id in going and replica.state is ReplicaState.READY
            ]
        )

    def _coming(self, going: set[str]) -> int:
        """Replicas for which machines boot or are ordered."""
        boots = [
            node
            for node in self._world.market.nodes()
            if node.state is NodeState.BOOTING and self._world.is_reached(node.zone) and node.node_id not in going
        ]
        ordered = [action for action in self._hands.in_flight if isinstance(action, RentNodes)]
        return sum(map(self._free, boots)) + sum(each.count * (each.cores // self._cores) for each in ordered)

    def _give_back(self, waiting: int) -> None:
        """Give back what is empty and not waited for, the youngest of what boots first."""
        leaving = {action.node_id for action in self._hands.in_flight if isinstance(action, ReleaseNode)}
        rented = [node for node in self._world.market.nodes() if node.node_id not in leaving]
        empty = [node for node in rented if not self._world.replicas.used_cores(node.node_id)]
        spare = sum(map(self._free, rented)) - waiting
        releases = []
        for node in sorted(empty, key=lambda node: (node.state is NodeState.READY, -node.since_ms)):
            if self._free(node) <= spare:
                spare -= self._free(node)
                releases.append(ReleaseNode(node.node_id, node.zone, ""))
        self._hands.carry_out(releases)

    def _list(self) -> None:
        """Give the balancer all that are ready and answer, with one weight."""
        healthy = self._world.healthy()
        listed = tuple(
            Endpoint(replica.replica_id, replica.zone, replica.host, replica.port, FULL_WEIGHT)
            for replica in self._world.replicas.all
            if replica.state is ReplicaState.READY and replica.replica_id in healthy
        )
        if listed != self._world.replicas.endpoints:
            self._hands.carry_out([SetEndpoints(listed, "")])

    def _free(self, node: Node) -> int:
        return node.cores // self._cores - self._world.replicas.used_cores(node.node_id) // self._cores

    def _own_slots(self) -> int:
        room: Counter[str] = Counter({node.node_id: node.cores // self._cores for node in self._world.nodes})
        return room.total()
