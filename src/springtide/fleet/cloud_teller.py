"""Tells people, every few seconds, what the leader knows of nodes, offers and money; a new leader goes on with it."""

from collections.abc import Callable, Mapping, Sequence

from springtide.errors import SpringtideError
from springtide.fleet.cloud_status import (
    CLOUD,
    TELL_MS,
    CloudStatus,
    CostBook,
    encode_cloud,
    read_cloud,
    replicas_by_node,
)
from springtide.fleet.observe import Observation
from springtide.fleet.schedule import purchases_of
from springtide.fleet.split import owners
from springtide.model import COUNTER, CalendarEvent, Node, Purchase, Wishes, Zone
from springtide.ports import Clock, FleetState


class CloudTeller:
    """Writes one value of the fleet's state. Without an answer nothing is told; the next time comes."""

    def __init__(
        self,
        clock: Clock,
        state: FleetState,
        zones: Sequence[Zone],
        calendars: Mapping[str, Sequence[CalendarEvent]],
        report: Callable[[str, str], None],
    ) -> None:
        """Nothing has been told. `calendars` are by service; `report` is told of failures."""
        self._clock = clock
        self._state = state
        self._calendars = calendars
        self._events = tuple(event for events in calendars.values() for event in events)
        self._report = report
        self._costs = CostBook(zones)
        self._term = 0
        self._told_ms = 0

    async def tell(self, term: int, seen: Observation, nodes: Sequence[Node], wishes: Wishes, timeout_s: float) -> None:
        """Tell it when it is time. While the cloud is silent the last word stands, with its age."""
        now_ms = self._clock.now_ms()
        if now_ms - self._told_ms < TELL_MS or "nodes" in seen.ages_ms:
            return
        self._told_ms = now_ms
        try:
            async with self._clock.timeout(timeout_s):
                await self._recall(term)
                await self._state.remember(term, CLOUD, encode_cloud(self._status(seen, nodes, wishes)))
        except TimeoutError:
            self._report("cloud status", f"the fleet's state did not answer within {timeout_s:g} s")
        except (SpringtideError, OSError) as error:
            self._report("cloud status", str(error))

    async def _recall(self, term: int) -> None:
        """In a new term, go on with the bill of the leader before."""
        if term != self._term:
            told = await read_cloud(self._state)
            if told is not None:
                self._costs.restore(told)
            self._term = term

    def _status(self, seen: Observation, nodes: Sequence[Node], wishes: Wishes) -> CloudStatus:
        cost_fen = self._costs.count(nodes, seen.now_ms)
        return CloudStatus(
            at_ms=seen.now_ms,
            nodes=tuple(nodes),
            replicas=replicas_by_node(seen.replicas),
            owners=owners(nodes, wishes.services),
            offers=seen.offers,
            quotas=seen.quotas,
            cost_fen=cost_fen,
            ended_fen=self._costs.ended_fen,
            events=self._events,
            purchases=self._scheduled(wishes, {node.client_token for node in nodes}, seen.now_ms),
        )

    def _scheduled(self, wishes: Wishes, bought: set[str], now_ms: int) -> tuple[Purchase, ...]:
        """What plans of events buy, without what has been bought."""
        found = [
            purchase
            for service in {COUNTER, *self._calendars}
            for purchase in purchases_of(service, wishes.purchases, self._calendars, bought, now_ms)
            if not purchase.ordered
        ]
        return tuple(sorted(found, key=lambda one: (one.order_ms, one.client_token)))
