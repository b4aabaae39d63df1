"""What carries out a plan's actions in a simulation, as `fleet/act.py` does with engines: until they are answered."""

from collections import deque
from collections.abc import Sequence

from springtide.decide.stock import FILLS_MS, Shortfall, shortfall_of
from springtide.errors import CloudError, CloudThrottled, CloudUnavailable
from springtide.fleet.act import FILLS_MAX, RENT_PAUSE_S
from springtide.model import (
    Action,
    DrainReplica,
    Fill,
    KeepNodes,
    NodeOrder,
    ReleaseNode,
    RentNodes,
    SetEndpoints,
    StartReplica,
    StopReplica,
)
from springtide.twin.kernel import Kernel
from springtide.twin.market import BATCH_MAX
from springtide.twin.simulation.replicas import SimulationError
from springtide.twin.simulation.world import World

RETRY_MS = round(RENT_PAUSE_S * 1000)
"""After a throttled call the next comes not sooner."""

THROTTLED_MS_MAX = 150_000
"""For so long a purchase is sent again when there are too many calls (`fleet.act.THROTTLED_S_MAX`)."""


class Hands:
    """Acts on a world. What a throttled cloud has not taken yet is under way, and is sent again word for word."""

    def __init__(self, kernel: Kernel, world: World) -> None:
        """Nothing is under way."""
        self._kernel = kernel
        self._world = world
        self._fills: deque[Fill] = deque(maxlen=FILLS_MAX)
        self._under_way: dict[int, Action] = {}
        self._count = 0
        self.refused = 0
        """Orders that brought nothing."""
        self.rented = 0
        """Nodes that were rented."""
        self.version = 0
        """Grows with every order that is answered."""
        self.ordered: dict[str, NodeOrder] = {}
        """Every purchase that was sent, by its token."""

    @property
    def in_flight(self) -> tuple[Action, ...]:
        """What was begun and has not ended."""
        return tuple(self._under_way.values())

    @property
    def fills(self) -> tuple[Fill, ...]:
        """What came of the last minutes' orders, oldest first."""
        while self._fills and self._fills[0].at_ms < self._kernel.now_ms - FILLS_MS:
            self._fills.popleft()
        return tuple(self._fills)

    def carry_out(self, actions: Sequence[Action]) -> None:
        """Do it all, in order. Raises SimulationError when no engine would."""
        replicas = self._world.replicas
        releases: list[ReleaseNode] = []
        for action in actions:
            match action:
                case SetEndpoints(endpoints=endpoints):
                    replicas.list(endpoints)
                case RentNodes():
                    self.ordered.setdefault(action.client_token, action.order)
                    self._rent(self._begin(action), action, self._kernel.now_ms + THROTTLED_MS_MAX)
                case ReleaseNode():
                    releases.append(action)
                case KeepNodes():
                    self._keep(action)
                case StartReplica(spec=spec):
                    self._world.start(spec)
                case DrainReplica(replica_id=replica_id, zone=zone) if self._world.is_reached(zone):
                    replicas.drain(replica_id)
                case StopReplica(replica_id=replica_id, zone=zone) if self._world.is_reached(zone):
                    replicas.stop(replica_id)
        for begin in range(0, len(releases), BATCH_MAX):
            group = releases[begin : begin + BATCH_MAX]
            self._release([self._begin(action) for action in group], group)

    def _begin(self, action: Action) -> int:
        self._count += 1
        self._under_way[self._count] = action
        return self._count

    def _rent(self, number: int, action: RentNodes, until_ms: int) -> None:
        filled, error = 0, ""
        try:
            filled = len(self._world.market.rent(action.order))
        except CloudThrottled as throttled:
            again_ms = self._kernel.now_ms + max(RETRY_MS, round(throttled.retry_after_s * 1000))
            if again_ms < until_ms:
                self._kernel.at(again_ms, lambda: self._rent(number, action, until_ms))
                return
            error = f"{Shortfall.SILENCE}: {throttled}"
        except CloudUnavailable as silent:
            error = f"{Shortfall.SILENCE}: {silent}"
        except CloudError as refused:
            error = f"{shortfall_of(refused)}: {refused}"
        if not error and filled < action.count:
            error = f"{Shortfall.STOCK}: no more were there"
        self.rented += filled
        self.refused += not filled
        self.version += 1
        self._fills.append(Fill(action.order.offer_key, self._kernel.now_ms, action.count, filled, error))
        del self._under_way[number]

    def _release(self, numbers: Sequence[int], actions: Sequence[ReleaseNode]) -> None:
        for action in actions:
            if self._world.replicas.used_cores(action.node_id):
                raise SimulationError(f"{action.node_id} cannot be given back: replicas run on it")
        try:
            self._world.market.release([action.node_id for action in actions])
        except CloudThrottled as throttled:
            again_ms = self._kernel.now_ms + max(RETRY_MS, round(throttled.retry_after_s * 1000))
            self._kernel.at(again_ms, lambda: self._release(numbers, actions))
            return
        self.version += 1
        for number in numbers:
            del self._under_way[number]

    def _keep(self, action: KeepNodes) -> None:
        try:
            self._world.market.keep_until(action.node_ids, action.release_at_ms)
        except CloudThrottled:
            return  # it is decided again at the next tick
        self.version += 1
