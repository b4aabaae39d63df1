"""The replicas of a simulation: they wait for their node's image, start, serve while they are listed, and end."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec

from springtide.errors import SpringtideError
from springtide.model import Endpoint, Market, Node, NodeState, Replica, ReplicaSpec, ReplicaState
from springtide.twin.kernel import Kernel

_PORT_FIRST = 1_024
_PORTS = 64_000
FULL_WEIGHT = 100


class SimulationError(SpringtideError):
    """A decision did what no engine would let it do, or the twin has lost count: a defect.

    The same scenario, seed and version show it again: report them.
    """


class Serving(msgspec.Struct, frozen=True):
    """What takes traffic: replicas by zone (by their weight: one with half of it counts half), and cores by market."""

    by_zone: Mapping[str, float]
    cores: Mapping[Market, int]
    replicas: int


class Replicas:
    """All replicas of the one service, and the balancer's list of them."""

    def __init__(
        self, kernel: Kernel, cores: int, start_ms: int, pull: Callable[[str, Callable[[], None]], None]
    ) -> None:
        """A replica takes `cores` of its node; `pull(zone, done)` gets the image to a node of a zone."""
        self._kernel = kernel
        self._cores = cores
        self._start_ms = start_ms
        self._pull = pull
        self._all: dict[str, Replica] = {}
        self._used: Counter[str] = Counter()
        self._markets: dict[str, Market] = {}
        self._has_image: set[str] = set()
        self._waiting: dict[str, list[str]] = {}
        self._made = 0
        self._listed: tuple[Replica, ...] | None = ()
        self._serving: Serving | None = None
        self._live_ids: frozenset[str] | None = None
        self.endpoints: tuple[Endpoint, ...] = ()
        self.version = 0
        """Grows with every change."""

    @property
    def all(self) -> tuple[Replica, ...]:
        """All that were started and not stopped; the same object until something changes."""
        if self._listed is None:
            self._listed = tuple(self._all.values())
        return self._listed

    @property
    def starting(self) -> int:
        """How many are on their way."""
        return sum(replica.state is ReplicaState.STARTING for replica in self.all)

    def used_cores(self, node_id: str) -> int:
        """What of a node's cores is taken."""
        return self._used[node_id] * self._cores

    @property
    def serving(self) -> Serving:
        """What takes traffic where the balancer reaches it."""
        if self._serving is None:
            by_zone: dict[str, float] = {}
            cores: Counter[Market] = Counter()
            count = 0
            for endpoint in self.endpoints:
                replica = self._all.get(endpoint.replica_id)
                if endpoint.weight and replica is not None and replica.state is ReplicaState.READY:
                    by_zone[replica.zone] = by_zone.get(replica.zone, 0.0) + endpoint.weight / FULL_WEIGHT
                    cores[self._markets[replica.node_id]] += self._cores
                    count += 1
            self._serving = Serving(by_zone, cores, count)
        return self._serving

    @property
    def answering(self) -> frozenset[str]:
        """The ids of those that would pass a check."""
        if self._live_ids is None:
            answers = {ReplicaState.READY, ReplicaState.DRAINING}
            self._live_ids = frozenset(name for name, replica in self._all.items() if replica.state in answers)
        return self._live_ids

    def start(self, spec: ReplicaSpec, node: Node) -> None:
        """Begin to start one. Raises SimulationError when its node is not ready or full, or it runs already."""
        if node.state is not NodeState.READY or self.used_cores(node.node_id) + self._cores > node.cores:
            raise SimulationError(f"{spec.replica_id} cannot start on {node.node_id}: it is not ready, or full")
        if spec.replica_id in self._all:
            raise SimulationError(f"{spec.replica_id} runs already")
        now_ms, name = self._kernel.now_ms, spec.replica_id
        self._all[name] = Replica(name, spec.zone, spec.node_id, ReplicaState.STARTING, "", 0, now_ms)
        self._used[spec.node_id] += 1
        self._markets[spec.node_id] = node.market
        self._changed()
        if spec.node_id in self._has_image:
            self._kernel.at(now_ms + self._start_ms, lambda: self._started(name))
        elif spec.node_id in self._waiting:
            self._waiting[spec.node_id].append(name)
        else:
            self._waiting[spec.node_id] = [name]
            self._pull(spec.zone, lambda: self._pulled(spec.node_id))

    def drain(self, replica_id: str) -> None:
        """Take its traffic away, as its runtime is told. Unknown ids are ignored."""
        self._enter(replica_id, ReplicaState.DRAINING)

    def stop(self, replica_id: str) -> None:
        """End it. Unknown ids are ignored."""
        replica = self._all.pop(replica_id, None)
        if replica is not None:
            self._used[replica.node_id] -= 1
            if not self._used[replica.node_id]:
                del self._used[replica.node_id]
            self._changed()

    def lose_nodes(self, node_ids: Sequence[str]) -> None:
        """Nodes are gone, and what ran on them."""
        gone = set(node_ids)
        self._has_image -= gone
        for node_id in gone:
            self._waiting.pop(node_id, None)
        if any(self._used[node_id] for node_id in gone):
            for name in [name for name, replica in self._all.items() if replica.node_id in gone]:
                self.stop(name)

    def list(self, endpoints: Sequence[Endpoint]) -> None:
        """Give the balancer its list."""
        self.endpoints = tuple(endpoints)
        self._changed()

    def check(self) -> None:
        """Recount what is kept by adding up. Raises SimulationError where it differs."""
        used = Counter(replica.node_id for replica in self._all.values())
        if used != +self._used:
            raise SimulationError(f"the twin has lost count of its replicas: {sum(used.values())} run")

    def _pulled(self, node_id: str) -> None:
        waiting = self._waiting.pop(node_id, None)
        if waiting is None:
            return  # the node is gone
        self._has_image.add(node_id)
        for name in waiting:
            self._kernel.at(self._kernel.now_ms + self._start_ms, partial(self._started, name))

    def _started(self, replica_id: str) -> None:
        replica = self._all.get(replica_id)
        if replica is None or replica.state is not ReplicaState.STARTING:
            return
        self._made += 1
        port = _PORT_FIRST + self._made % _PORTS
        self._all[replica_id] = msgspec.structs.replace(replica, host=replica.node_id, port=port)
        self._enter(replica_id, ReplicaState.READY)

    def _enter(self, replica_id: str, state: ReplicaState) -> None:
        replica = self._all.get(replica_id)
        if replica is not None:
            self._all[replica_id] = msgspec.structs.replace(replica, state=state, since_ms=self._kernel.now_ms)
            self._changed()

    def _changed(self) -> None:
        self.version += 1
        self._listed = self._serving = self._live_ids = None
