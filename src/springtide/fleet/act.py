"""Carry out plans: the balancers' lists at once, everything else in the background and within limits."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import chain
from typing import TypeVar

import msgspec

from springtide.decide.stock import FILLS_MS, Shortfall, shortfall_of
from springtide.errors import (
    CloudError,
    CloudThrottled,
    CloudUnavailable,
    ReplicaError,
    SpringtideError,
)
from springtide.fleet.intents import Deed
from springtide.fleet.journal import Entry, Fault, Outcome
from springtide.fleet.ports import FleetPorts
from springtide.model import (
    Action,
    DrainReplica,
    Fill,
    KeepNodes,
    Node,
    ReleaseNode,
    RentNodes,
    SetEndpoints,
    StartReplica,
    StopReplica,
    Zone,
)
from springtide.ports import Balancer, Clock, Runtime

T = TypeVar("T")

IN_FLIGHT_MAX = 64
"""Calls under way at once; what does not fit is decided again at the next tick."""

RELEASE_CALLS_MAX = 4
"""Calls that give nodes back under way at once, beside those."""

RELEASES_MAX = 100
"""Nodes that one call gives back (ECS: DeleteInstances takes 1 to 100 ids)."""

ACTION_S_MAX = 60.0
"""How long one call may take before it counts as failed. All calls can be repeated."""

ENDPOINTS_S_MAX = 5.0
"""The same for the balancer's list, which a tick waits for: traffic leaves a replica first of all."""

RENT_TRIES = 5
"""How often a purchase is sent, each time with the same token, while the cloud does not answer."""

RENT_PAUSE_S = 0.5
"""The pause after the first try; it doubles with each."""

THROTTLED_S_MAX = 150.0
"""For how long a purchase is sent again when there are too many calls (ECS counts them by the minute)."""

SOLD_OUT_S = 30.0
"""For how long a zone of one machine that delivered less than was asked is not asked again."""

FILLS_MAX = 256
"""What came of so many orders is remembered, each for `stock.FILLS_MS`."""

ADOPTED_S = 30.0
"""For how long a rented node counts though the cloud's list does not show it yet."""


class _Tried(msgspec.Struct, frozen=True):
    """What came of sending an order once. When it is not `final`, it is sent again, `after_s` later at least."""

    error: str
    final: bool = True
    after_s: float = 0.0


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
        self._tasks: dict[asyncio.Task[None], tuple[Deed, ...]] = {}
        self._fills: deque[Fill] = deque(maxlen=FILLS_MAX)
        self._sold_out_until_ms: dict[str, int] = {}
        self._adopted: dict[str, tuple[int, Node]] = {}
        self.left_s: Callable[[], float] = lambda: ACTION_S_MAX
        """For how long we surely lead; nothing is sent when that is not above 0."""
        self.ended: Callable[[str], None] = lambda _: None
        """Told the intent of each action that has ended."""

    @property
    def in_flight(self) -> tuple[Deed, ...]:
        """What was begun and has not ended, oldest first."""
        return tuple(chain.from_iterable(self._tasks.values()))

    @property
    def fills(self) -> tuple[Fill, ...]:
        """What came of the last minutes' orders of offers, oldest first."""
        oldest_ms = self._clock.now_ms() - FILLS_MS
        while self._fills and self._fills[0].at_ms < oldest_ms:
            self._fills.popleft()
        return tuple(self._fills)

    def fitting(self, deeds: Sequence[Deed]) -> tuple[list[Deed], list[Deed]]:
        """Those of the deeds that may be begun now, the first ones first, and those that may not.

        Nodes are given back together, and have calls of their own: what else is under way never keeps their bill going.
        """
        releasing = sum(isinstance(group[0].action, ReleaseNode) for group in self._tasks.values())
        room = IN_FLIGHT_MAX - (len(self._tasks) - releasing)
        releases = (RELEASE_CALLS_MAX - releasing) * RELEASES_MAX
        fit: list[Deed] = []
        rest: list[Deed] = []
        for deed in deeds:
            if isinstance(deed.action, ReleaseNode):
                releases -= 1
                (fit if releases >= 0 else rest).append(deed)
            else:
                room -= 1
                (fit if room >= 0 else rest).append(deed)
        return fit, rest

    async def set_endpoints(self, service: str, balancer: Balancer, action: SetEndpoints, tick: int) -> bool:
        """Give a balancer its list; False when it may not have it."""
        seconds = min(ENDPOINTS_S_MAX, self.left_s())
        if seconds <= 0:
            return False
        error = await self._try(balancer.set_endpoints(action.endpoints), seconds)
        self._record(Outcome(self._clock.now_ms(), tick, action, error, service))
        return not error

    def begin(self, deeds: Sequence[Deed]) -> None:
        """Carry out in the background; nodes are given back together."""
        releases = [deed for deed in deeds if isinstance(deed.action, ReleaseNode)]
        groups = [(deed,) for deed in deeds if not isinstance(deed.action, ReleaseNode)]
        for group in (*groups, *(tuple(some) for some in together(releases))):
            task = asyncio.create_task(self._carry_out(group))
            self._tasks[task] = group
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
        have = Counter(node.zone for node in nodes)
        return tuple(
            msgspec.structs.replace(zone, nodes_max=have[zone.name])
            if now_ms < self._sold_out_until_ms.get(zone.name, 0)
            else zone
            for zone in self._zones.values()
        )

    async def _carry_out(self, deeds: tuple[Deed, ...]) -> None:
        first = deeds[0]
        if isinstance(first.action, RentNodes):
            error = await self._rent(first.action, first.tick)
        elif isinstance(first.action, ReleaseNode):
            error = await self._try(self._release([deed.action for deed in deeds]), ACTION_S_MAX)
        else:
            error = await self._try(self._call(first.action), ACTION_S_MAX)
        for deed in deeds:
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
            case KeepNodes(node_ids=node_ids, release_at_ms=release_at_ms):
                await self._cloud.keep_until(node_ids, release_at_ms)

    async def _release(self, actions: Sequence[Action]) -> None:
        node_ids = [action.node_id for action in actions if isinstance(action, ReleaseNode)]
        await self._cloud.release(node_ids)
        for node_id in node_ids:
            self._adopted.pop(node_id, None)

    def _runtime(self, replica_id: str, zone: str) -> Runtime:
        runtime = self._runtime_of(replica_id, zone)
        if runtime is None:
            raise ReplicaError(f"zone {zone} has no runtime here; give it one, or take it out of the configuration")
        return runtime

    async def _rent(self, action: RentNodes, tick: int) -> str:
        """Send a purchase until it is answered; the error that ended it, or an empty text."""
        pause_s, tries = RENT_PAUSE_S, 0
        until_s = self._clock.monotonic_s() + THROTTLED_S_MAX
        error = ""
        while tries < RENT_TRIES:
            if self.left_s() <= 0:
                return f"not sent: the lead was lost; {error or 'the next leader sends it'}"
            tried = await self._rent_once(action)
            error = tried.error
            if tried.final or (not action.instance_type and self._is_sold_out(action.zone)):
                return error
            tries += not tried.after_s or self._clock.monotonic_s() + tried.after_s > until_s
            if tries < RENT_TRIES:
                again = f"throttled: {error}" if tried.after_s else f"try {tries} of {RENT_TRIES}: {error}"
                self._record(Fault(self._clock.now_ms(), tick, action.client_token, again))
                await self._clock.sleep(max(pause_s, tried.after_s))
                pause_s *= 1 if tried.after_s else 2
        self._filled(action, 0, f"{Shortfall.SILENCE}: {error}")
        return error

    async def _rent_once(self, action: RentNodes) -> _Tried:
        if action.zone not in self._zones:
            return _Tried(f"zone {action.zone} is not in the configuration any more; what is rented there is listed")
        rented: list[Node] = []
        failed: list[CloudError] = []

        async def order() -> None:
            try:
                rented.extend(await self._cloud.rent(action.order))
            except CloudError as error:
                failed.append(error)
                raise

        error = await self._try(order(), ACTION_S_MAX)
        for node in rented:
            self._adopted[node.node_id] = self._clock.now_ms(), node
        match failed:
            case [CloudThrottled(retry_after_s=after_s)]:
                return _Tried(error, final=False, after_s=max(after_s, RENT_PAUSE_S))
            case [CloudUnavailable()]:
                return _Tried(error, final=False)
            case [cause]:
                self._filled(action, 0, f"{shortfall_of(cause)}: {error}")
                return _Tried(error)
        if not error:
            short = len(rented) < action.count
            self._filled(action, len(rented), f"{Shortfall.STOCK}: no more were there" if short else "")
        return _Tried(error, final=not error)

    def _filled(self, action: RentNodes, count: int, why: str) -> None:
        """Remember what came of an order: of an offer by itself, of a zone's one machine for the zone."""
        if action.instance_type:
            key = action.order.offer_key
            self._fills.append(Fill(key, self._clock.now_ms(), action.count, count, why))
        elif why and not why.startswith(Shortfall.SILENCE):
            self._sold_out_until_ms[action.zone] = self._clock.now_ms() + round(SOLD_OUT_S * 1000)

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


def together(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """In groups of at most RELEASES_MAX."""
    return (items[begin : begin + RELEASES_MAX] for begin in range(0, len(items), RELEASES_MAX))
