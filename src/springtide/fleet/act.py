"""Carry out plans: the balancers' lists at once, everything else in the background and within limits."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from springtide.errors import CloudError, CloudUnavailable, ReplicaError, SpringtideError
from springtide.fleet.intents import Deed
from springtide.fleet.journal import Entry, Fault, Outcome
from springtide.fleet.ports import FleetPorts
from springtide.model import (
    Action,
    DrainReplica,
    Node,
    ReleaseNode,
    RentNodes,
    SetEndpoints,
    StartReplica,
    StopReplica,
    Zone,
)
from springtide.ports import Balancer, Clock, Runtime

IN_FLIGHT_MAX = 64
"""Actions under way at once; what does not fit is decided again at the next tick."""

ACTION_S_MAX = 60.0
"""How long one call may take before it counts as failed. All calls can be repeated."""

ENDPOINTS_S_MAX = 5.0
"""The same for the balancer's list, which a tick waits for: traffic leaves a replica first of all."""

RENT_TRIES = 5
"""How often a purchase is sent, each time with the same token, while the cloud does not answer."""

RENT_PAUSE_S = 0.5
"""The pause after the first try; it doubles with each."""

SOLD_OUT_S = 30.0
"""For how long a zone that delivered less than was asked is not asked again."""

ADOPTED_S = 30.0
"""For how long a rented node counts though the cloud's list does not show it yet."""


class Actor:
    """Begins actions, remembers those under way and what the cloud refused, and records every outcome."""

    def __init__(
        self,
        clock: Clock,
        ports: FleetPorts,
        zones: Sequence[Zone],
        record: Callable[[Entry], None],
        runtime_of: Callable[[str, str], Runtime | None],
    ) -> None:
        """`record` is given an Outcome for each action, and a Fault for each try that is repeated.

        `runtime_of` tells who has a replica (its id, its zone).
        """
        self._clock = clock
        self._cloud = ports.cloud
        self._zones = {zone.name: zone for zone in zones}
        self._record = record
        self._runtime_of = runtime_of
        self._tasks: dict[asyncio.Task[None], Deed] = {}
        self._sold_out_until_ms: dict[str, int] = {}
        self._adopted: dict[str, tuple[int, Node]] = {}
        self.left_s: Callable[[], float] = lambda: ACTION_S_MAX
        """For how long we surely lead; nothing is sent when that is not above 0."""
        self.ended: Callable[[str], None] = lambda _: None
        """Told the intent of each action that has ended."""

    @property
    def in_flight(self) -> tuple[Deed, ...]:
        """What was begun and has not ended, oldest first."""
        return tuple(self._tasks.values())

    @property
    def room(self) -> int:
        """How many more actions may be begun."""
        return max(0, IN_FLIGHT_MAX - len(self._tasks))

    async def set_endpoints(self, service: str, balancer: Balancer, action: SetEndpoints, tick: int) -> bool:
        """Give a balancer its list; False when it may not have it."""
        seconds = min(ENDPOINTS_S_MAX, self.left_s())
        if seconds <= 0:
            return False
        error = await self._try(balancer.set_endpoints(action.endpoints), seconds)
        self._record(Outcome(self._clock.now_ms(), tick, action, error, service))
        return not error

    def begin(self, deed: Deed) -> None:
        """Carry out in the background."""
        task = asyncio.create_task(self._carry_out(deed))
        self._tasks[task] = deed
        task.add_done_callback(self._tasks.pop)

    def refuse(self, deed: Deed, why: str) -> None:
        """Record that an action is not begun; it is decided again at the next tick."""
        self._record(Outcome(self._clock.now_ms(), deed.tick, deed.action, f"not begun: {why}", deed.service))

    async def wait(self, timeout_s: float) -> bool:
        """Wait for all that is under way, at most so long, then end it. True when nothing had to be."""
        until = self._clock.monotonic_s() + timeout_s
        while self._tasks and self._clock.monotonic_s() < until:
            await self._clock.sleep(min(0.05, timeout_s))
        rest = list(self._tasks)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        return not rest

    def with_adopted(self, listed: Sequence[Node]) -> tuple[Node, ...]:
        """The cloud's list, and what was rented lately and is not on it yet."""
        known = {node.node_id for node in listed}
        oldest_ms = self._clock.now_ms() - round(ADOPTED_S * 1000)
        self._adopted = {
            name: (since_ms, node)
            for name, (since_ms, node) in self._adopted.items()
            if name not in known and since_ms >= oldest_ms
        }
        return (*listed, *(node for _, node in self._adopted.values()))

    def within_stock(self, nodes: Sequence[Node]) -> tuple[Zone, ...]:
        """The zones, with no more nodes than they have now where the cloud refused more a short while ago."""
        now_ms = self._clock.now_ms()
        return tuple(
            msgspec.structs.replace(zone, nodes_max=sum(node.zone == zone.name for node in nodes))
            if now_ms < self._sold_out_until_ms.get(zone.name, 0)
            else zone
            for zone in self._zones.values()
        )

    async def _carry_out(self, deed: Deed) -> None:
        if isinstance(deed.action, RentNodes):
            error = await self._rent(deed.action, deed.tick)
        else:
            error = await self._try(self._call(deed.action), ACTION_S_MAX)
        if deed.intent_id:
            self.ended(deed.intent_id)
        self._record(Outcome(self._clock.now_ms(), deed.tick, deed.action, error, deed.service))

    async def _call(self, action: Action) -> None:
        match action:
            case StartReplica(spec=spec):
                await self._runtime(spec.replica_id, spec.zone).start(spec)
            case DrainReplica(replica_id=replica_id, zone=zone):
                await self._runtime(replica_id, zone).drain(replica_id)
            case StopReplica(replica_id=replica_id, zone=zone):
                await self._runtime(replica_id, zone).stop(replica_id)
            case ReleaseNode(node_id=node_id):
                await self._cloud.release(node_id)
                self._adopted.pop(node_id, None)

    def _runtime(self, replica_id: str, zone: str) -> Runtime:
        runtime = self._runtime_of(replica_id, zone)
        if runtime is None:
            raise ReplicaError(f"zone {zone} has no runtime here; give it one, or take it out of the configuration")
        return runtime

    async def _rent(self, action: RentNodes, tick: int) -> str:
        """Send a purchase until it is answered; the error that ended it, or an empty text."""
        pause_s = RENT_PAUSE_S
        error = ""
        for attempt in range(1, RENT_TRIES + 1):
            if self.left_s() <= 0:
                return f"not sent: the lead was lost; {error or 'the next leader sends it'}"
            error = await self._try(self._rent_once(action), ACTION_S_MAX)
            if not error or self._is_sold_out(action.zone):
                return error
            if attempt < RENT_TRIES:
                again = f"try {attempt} of {RENT_TRIES}: {error}"
                self._record(Fault(self._clock.now_ms(), tick, action.client_token, again))
                await self._clock.sleep(pause_s)
                pause_s *= 2
        return error

    async def _rent_once(self, action: RentNodes) -> None:
        zone = self._zones.get(action.zone)
        if zone is None:
            raise CloudError(f"zone {action.zone} is not in the configuration any more; what is rented there is listed")
        try:
            rented = await self._cloud.rent(zone, action.count, action.client_token)
        except CloudUnavailable:
            raise
        except CloudError:
            self._close(action.zone)
            raise
        for node in rented:
            self._adopted[node.node_id] = self._clock.now_ms(), node
        if len(rented) < action.count:
            self._close(action.zone)

    def _close(self, zone: str) -> None:
        self._sold_out_until_ms[zone] = self._clock.now_ms() + round(SOLD_OUT_S * 1000)

    def _is_sold_out(self, zone: str) -> bool:
        return self._clock.now_ms() < self._sold_out_until_ms.get(zone, 0)

    async def _try(self, call: Awaitable[None], seconds: float) -> str:
        """Wait for a call; its error as a text, empty when it went well."""
        try:
            async with self._clock.timeout(seconds):
                await call
        except TimeoutError:
            return f"no answer within {seconds:g} s"
        except (SpringtideError, OSError) as error:
            return str(error) or type(error).__name__
        except Exception as error:  # noqa: BLE001 - a fault in a driver must not end the loop that replaces capacity
            return f"{type(error).__name__}: {error}"
        return ""
