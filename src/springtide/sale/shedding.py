"""Tells early that a purchase could not be answered in time: how long the inventory takes, and what waits for it."""

from collections.abc import Sequence

from springtide.model import CounterLoad, ReserveRequest, ReserveResult
from springtide.ports import Clock
from springtide.sale import metrics
from springtide.sale.admission import CapacityQueue
from springtide.sale.metrics import Figures
from springtide.sale.pooled_stock import Reserver

LANES_MAX = 4096
"""Lanes whose answer time is remembered; beyond, all those with nothing under way are forgotten."""

_NEWEST_SHARE = 0.5
_FOR_WANT_OF_CAPACITY = (metrics.CAPACITY, metrics.BACKLOG, metrics.SLOW_INVENTORY, metrics.LATE)


class LaneLoad:
    """One bucket's. `outstanding` purchases have been given to the batcher and not been answered."""

    __slots__ = ("answer_s", "batches", "moved_s", "outstanding")

    def __init__(self) -> None:
        """Nothing is known."""
        self.answer_s = 0.0
        self.batches = 0
        self.moved_s = 0.0
        self.outstanding = 0

    def expected_s(self, now_s: float, in_flight_max: int) -> float:
        """When a purchase that comes now may expect its answer.

        As many rounds as there are purchases before it, each as long as the inventory has taken lately or, when it has
        been silent for longer than that, as long as it has been silent. 0 while nothing is under way: then somebody has
        to try. `in_flight_max` is in purchases.
        """
        if not self.batches:
            return 0.0
        round_s = now_s - self.moved_s
        if round_s < self.answer_s:  # noqa: PLR1730 - a call of `max` for each purchase takes longer
            round_s = self.answer_s
        return round_s * (1.0 + self.outstanding / in_flight_max)


class WatchedReserver:
    """A Reserver that notes how long its answers take, lane by lane."""

    def __init__(self, reserver: Reserver, clock: Clock) -> None:
        """Times are the clock's monotonic seconds."""
        self._reserver = reserver
        self._clock = clock
        self._lanes: dict[tuple[str, int], LaneLoad] = {}

    def lane(self, sale: str, bucket: int) -> LaneLoad:
        """The load of a lane; the object stays the same while anything is under way in it."""
        lane = self._lanes.get((sale, bucket))
        if lane is None:
            if len(self._lanes) >= LANES_MAX:
                self._lanes = {key: one for key, one in self._lanes.items() if one.batches or one.outstanding}
            lane = self._lanes[sale, bucket] = LaneLoad()
        return lane

    def answer_s_max(self) -> float:
        """How long the slowest lane has taken lately, seconds."""
        return max((lane.answer_s for lane in self._lanes.values()), default=0.0)

    async def reserve(self, sale: str, bucket: int, batch: Sequence[ReserveRequest]) -> list[ReserveResult]:
        """See `ports.Inventory`."""
        lane = self.lane(sale, bucket)
        begun_s = self._clock.monotonic_s()
        if not lane.batches:
            lane.moved_s = begun_s
        lane.batches += 1
        try:
            return await self._reserver.reserve(sale, bucket, batch)
        finally:
            lane.batches -= 1
            lane.moved_s = self._clock.monotonic_s()
            lane.answer_s += (lane.moved_s - begun_s - lane.answer_s) * _NEWEST_SHARE


class LoadMeter:
    """What one counter can take and how hard pressed it is, from one reading to the next."""

    def __init__(self, replica_id: str, figures: Figures, capacity: CapacityQueue | None, rate_max: float) -> None:
        """`rate_max` is in requests a second, 0 when there is no limit."""
        self._replica_id = replica_id
        self._figures = figures
        self._capacity = capacity
        self._rate_max = rate_max
        self._decided = 0
        self._refused = 0

    def read(self) -> CounterLoad:
        """The load now; the share of refusals is that since the last reading."""
        figures, capacity = self._figures, self._capacity
        refused = sum(figures.sheds[reason] for reason in _FOR_WANT_OF_CAPACITY)
        decided = sum(figures.latencies) + figures.from_memory + refused
        new_refused, new_decided = refused - self._refused, decided - self._decided
        self._refused, self._decided = refused, decided
        queued = capacity.depth / capacity.depth_max if capacity is not None and capacity.depth_max else 0.0
        return CounterLoad(
            replica_id=self._replica_id,
            rate_max=self._rate_max,
            queue_share=min(1.0, queued),
            refused_share=new_refused / new_decided if new_decided else 0.0,
        )
