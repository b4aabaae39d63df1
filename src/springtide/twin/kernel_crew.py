"""What carries out the number of a policy that counts replicas: as well as scheduler and node autoscaler ever could.

A replica that has no place is the reason for a node at once; a node is given back the moment it is empty; whoever goes
is taken from the emptiest node, so that nodes fall empty soon.
"""

from collections.abc import Callable

from springtide.model import (
    DrainReplica,
    Node,
    NodeState,
    ReleaseNode,
    RentNodes,
    Replica,
    ReplicaSpec,
    ReplicaState,
    StartReplica,
    StopReplica,
    ZoneKind,
)
from springtide.twin.kernel_world import World


class Crew:
    """Keeps a world at `wanted` replicas, as far as there is room."""

    def __init__(self, world: World, drain_ms: int) -> None:
        """`drain_ms` is from a replica's last new request to its end."""
        self._world = world
        self._drain_ms = drain_ms
        self._started = 0
        self.wanted = 0
        world.on_node = self._fill

    def scale(self, wanted: int) -> None:
        """Have so many replicas, as soon as can be."""
        if wanted == self.wanted:
            return
        self.wanted = wanted
        live = self._live()
        if len(live) < wanted:
            self._fill()
        else:
            self._thin(live)
        self._order_nodes()

    def _live(self) -> list[Replica]:
        return [replica for replica in self._world.replicas if replica.state is not ReplicaState.DRAINING]

    def _fill(self) -> None:
        """Start what is missing on the nodes that are ready, the fullest first."""
        missing = self.wanted - len(self._live())
        if missing <= 0:
            return
        used = self._world.used
        ready = [node for node in self._world.nodes if node.state is NodeState.READY]
        for node in sorted(ready, key=lambda node: (self._rented(node), -used[node.node_id])):
            for _ in range(min(node.cores - used[node.node_id], missing)):
                self._started += 1
                spec = ReplicaSpec(f"r{self._started}", node.zone, node.node_id)
                self._world.apply(StartReplica(spec, ""))
                missing -= 1

    def _thin(self, live: list[Replica]) -> None:
        """Take away what is too much: first what does not serve yet, then from the emptiest rented node."""
        used = self._world.used
        rented = {node.node_id: self._rented(node) for node in self._world.nodes}

        def key(replica: Replica) -> tuple[bool, bool, int, str, int]:
            serves = replica.state is ReplicaState.READY
            return serves, not rented[replica.node_id], used[replica.node_id], replica.node_id, -replica.since_ms

        for replica in sorted(live, key=key)[: len(live) - self.wanted]:
            if replica.state is ReplicaState.STARTING:
                self._stop(replica)()
                continue
            self._world.apply(DrainReplica(replica.replica_id, replica.zone, ""))
            self._world.kernel.at(self._world.kernel.now_ms + self._drain_ms, self._stop(replica))

    def _stop(self, replica: Replica) -> Callable[[], None]:
        def stop() -> None:
            self._world.apply(StopReplica(replica.replica_id, replica.zone, ""))
            self._fill()  # somebody may be waiting for the place
            self._order_nodes()

        return stop

    def _order_nodes(self) -> None:
        """Rent what has no place, and give back what is empty and not waited for."""
        rented = [node for node in self._world.nodes if self._rented(node)]
        waiting = self.wanted - len(self._live())
        free = sum(node.cores - self._world.used[node.node_id] for node in rented)
        if waiting > free:
            self._rent(waiting - free)
        empty = [node for node in rented if not self._world.used[node.node_id]]
        empty.sort(key=lambda node: (node.state is NodeState.READY, -node.since_ms))
        for node in empty:
            if free - node.cores < max(0, waiting):
                break
            free -= node.cores
            self._world.apply(ReleaseNode(node.node_id, node.zone, ""))

    def _rent(self, replicas: int) -> None:
        """Spread the nodes over the cloud's zones as far as their quotas go."""
        for zone in sorted(self._world.settings.zones, key=lambda zone: zone.price_fen_per_node_h):
            if zone.kind is not ZoneKind.CLOUD or replicas <= 0:
                continue
            there = sum(node.zone == zone.name for node in self._world.nodes)
            count = min(-(-replicas // zone.cores_per_node), zone.nodes_max - there)
            if count > 0:
                self._world.apply(RentNodes(zone.name, count, "", ""))
                replicas -= count * zone.cores_per_node

    def _rented(self, node: Node) -> bool:
        return self._world.zones[node.zone].kind is ZoneKind.CLOUD
