"""The order path request by request: what `path_fluid` is held against, for up to about a million requests.

The rules are those of the fluid steps, with whole people and orders, each with a wait of its own. Arrivals are a
Poisson process (what `PathSettings.arrival_scv` says is of the fluid's formula alone).
"""

import heapq
import itertools
import math
from bisect import bisect_right
from collections import Counter, deque

from springtide.ports import Chance
from springtide.twin.crowd.figures import Histogram
from springtide.twin.simulation.flow import Capacity, Flow, PathSettings
from springtide.twin.simulation.path_bots import BotLimits
from springtide.twin.simulation.path_queue import SLOWEST, service_p99_ms
from springtide.twin.simulation.path_servers import Servers

REQUESTS_MAX = 10_000_000
"""More than so many people expected in one step are refused: that is what the fluid steps are for."""

OPENING_SPREAD_S = 1.0
"""People who were too early come again within this time after the opening (twin.crowd.buyers)."""

RETRY_SPREAD = 0.25
"""People come again within this share of `retry_after_s`, either way."""

_PAGE, _BOT, _EARLY = -1, -2, -3  # kinds of requests beside the attempts of purchases, which count from 0
_NEVER = math.inf


class EventPath:
    """`flow.OrderPath` in single requests."""

    def __init__(self, settings: PathSettings, chance: Chance) -> None:
        """Nobody has come yet. `chance` decides arrivals, choices and service times."""
        self.settings = settings
        self._chance = chance
        self._servers = Servers(settings, chance)
        self._bots = BotLimits(settings)
        self._bots_s = 0.0
        shares = settings.shard_shares or (1.0 / settings.shards,) * settings.shards
        self._bounds = list(itertools.accumulate(shares))[:-1]
        self._shard_free_s = [0.0] * settings.shards
        self._lost_until_s = [0.0] * settings.shards
        self._up = settings.shards
        self._left, self._reserved, self._paid, self._journal = settings.stock, 0, 0, 0
        self._drained_s, self._drain = 0.0, 0.0
        # When it is served, a number, when it came, its kind, by which replica.
        self._waiting: list[tuple[float, int, float, int, int]] = []
        self._number = itertools.count()
        self._again: list[tuple[float, int]] = []
        self._early: list[float] = []
        self._looks_s: dict[int, float] = {}
        self._pay: deque[float] = deque()
        self._hold: deque[float] = deque()
        self._deadline_s = settings.deadline_ms / 1000
        self._varies = (service_p99_ms(settings) / settings.service_ms - 1.0) / (-math.log(SLOWEST) - 1.0)
        self._round_trip_s = 0.0
        self._now: Counter[str] = Counter()
        self._took_s: list[float] = []
        self.answers = Histogram()
        """How long the answers of all steps took, the polite refusals included."""

    def step(self, now_ms: int, dt_s: float, arrivals_per_s: float, capacity: Capacity) -> Flow:
        """See `flow.OrderPath`. Raises OverflowError for more than REQUESTS_MAX people."""
        if arrivals_per_s * dt_s > REQUESTS_MAX:
            raise OverflowError(f"{arrivals_per_s * dt_s:.0f} people come in one step; take FluidPath for so many")
        at_s = now_ms / 1000
        self._now, self._took_s = Counter(), []
        self._round_trip_s = capacity.round_trip_ms / 1000
        self._change(at_s, capacity)
        self._run(at_s, at_s + dt_s, arrivals_per_s)
        self._record(at_s + dt_s)
        now, took_s = self._now, sorted(self._took_s)
        p99_s = took_s[min(len(took_s) - 1, math.floor(len(took_s) * (1.0 - SLOWEST)))] if took_s else 0.0
        return Flow(
            requests=now["requests"],
            retries=now["retries"],
            acknowledged=now["acknowledged"],
            sold_out=now["sold_out"],
            shed=now["shed"],
            failed=now["failed"],
            pages=now["pages"],
            gave_up=now["gave_up"],
            recorded=now["recorded"],
            expired=now["expired"],
            p99_ms=p99_s * 1000,
            waiting=len(self._waiting),
            journal=self._journal,
            stock=self._left,
            reserved=self._reserved,
            paid=self._paid,
            bots=now["bots"],
            bots_refused=now["bots_refused"],
            shed_first=now["shed_first"],
        )

    # --- time ---

    def _run(self, at_s: float, end_s: float, arrivals_per_s: float) -> None:
        chance, waiting, again = self._chance, self._waiting, self._again
        early, pay, hold = self._early, self._pay, self._hold
        new_s = at_s + chance.expovariate(arrivals_per_s) if arrivals_per_s > 0 else _NEVER
        while True:
            served_s = waiting[0][0] if waiting else _NEVER
            again_s = again[0][0] if again else _NEVER
            early_s = early[0] if early else _NEVER
            book_s = min(pay[0] if pay else _NEVER, hold[0] if hold else _NEVER)
            at_s = min(new_s, served_s, again_s, early_s, book_s)
            if at_s >= end_s:
                return
            if at_s == served_s:
                _, _, came_s, kind, replica = heapq.heappop(waiting)
                self._serve(at_s, came_s, kind, replica)
            elif at_s == book_s:
                self._settle(at_s)
            elif at_s == again_s:
                self._now["retries"] += 1
                self._arrive(at_s, heapq.heappop(again)[1])
            elif at_s == early_s:
                heapq.heappop(early)
                self._now["retries"] += 1
                self._arrive(at_s, min(1, self.settings.retries_max))
            else:
                self._arrive(at_s, self._kind(at_s))
                new_s = at_s + chance.expovariate(arrivals_per_s)

    def _change(self, at_s: float, capacity: Capacity) -> None:
        """Another capacity: who waits is placed anew, and shed where that takes too long. Shards that go and come."""
        up = min(capacity.shards_up, self.settings.shards)
        for shard in range(up, self._up):
            self._lost_until_s[shard] = at_s + self._deadline_s
        self._up = up
        if self._servers.resize(at_s, capacity):
            waited = sorted(self._waiting, key=lambda one: (one[2], one[1]))
            self._waiting.clear()
            for _, _, came_s, kind, _ in waited:
                self._place(at_s, came_s, kind)

    def _settle(self, at_s: float) -> None:
        """Payments and expiries of this moment."""
        while self._pay and self._pay[0] <= at_s:
            self._pay.popleft()
            self._reserved -= 1
            self._paid += 1
        while self._hold and self._hold[0] <= at_s:
            self._hold.popleft()
            self._reserved -= 1
            self._left += 1
            self._now["expired"] += 1

    def _record(self, at_s: float) -> None:
        """Move from the journal into the ledger what the recorder has managed since the last time."""
        self._drain += (at_s - self._drained_s) * self.settings.recorder_per_s
        self._drained_s = at_s
        recorded = min(self._journal, math.floor(self._drain))
        self._journal -= recorded
        self._now["recorded"] += recorded
        self._drain = self._drain - recorded if self._journal else 0.0

    # --- requests ---

    def _kind(self, at_s: float) -> int:
        """What somebody new wants."""
        settings, chance = self.settings, self._chance
        if settings.bots_share and chance.random() < settings.bots_share:
            self._now["bots"] += 1
            return _BOT
        if at_s * 1000 < settings.opens_ms:
            return _EARLY if chance.random() < settings.early_share else _PAGE
        return 0 if chance.random() < settings.purchase_share else _PAGE

    def _arrive(self, at_s: float, kind: int) -> None:
        self._now["requests"] += 1
        if kind == _EARLY:
            heapq.heappush(self._early, self.settings.opens_ms / 1000 + self._chance.uniform(0.0, OPENING_SPREAD_S))
            kind = _PAGE
        self._place(at_s, at_s, kind)

    def _place(self, at_s: float, came_s: float, kind: int) -> None:
        """Serve it now, let it wait, or shed it."""
        place = self._servers.place(at_s, came_s, self._cost(at_s, kind))
        if place is None:
            self._shed(at_s, kind, at_s - came_s)
        elif place[0] > at_s:
            heapq.heappush(self._waiting, (place[0], next(self._number), came_s, kind, place[1]))
        else:
            self._serve(at_s, came_s, kind, place[1])

    def _cost(self, at_s: float, kind: int) -> float:
        settings = self.settings
        if kind == _PAGE:
            return settings.page_cost
        if kind == _BOT:
            return settings.refused_cost
        return settings.sold_out_cost if self._over(at_s) else 1.0

    def _over(self, at_s: float) -> bool:
        return self._left <= 0 or 0 < self.settings.closes_ms <= at_s * 1000

    def _serve(self, at_s: float, came_s: float, kind: int, replica: int) -> None:
        wait_s = at_s - came_s
        if kind == _PAGE:
            self._now["pages"] += 1
            self._took(wait_s)
        elif kind != _BOT:
            self._buy(at_s, wait_s, kind, replica)
        else:
            self._bot_asks(at_s, wait_s, replica)

    def _bot_asks(self, at_s: float, wait_s: float, replica: int) -> None:
        seconds, self._bots_s = at_s - self._bots_s, at_s
        if not self._bots.allow_one(seconds):
            self._now["shed"] += 1
            self._now["bots_refused"] += 1
        elif self._bots.free >= 1.0:
            self._buy(at_s, wait_s, _BOT, replica)
        else:
            self._now["sold_out"] += 1
            self._took(wait_s)

    def _look_wait_s(self, at_s: float, replica: int) -> float:
        """How long until the replica's next look at the sale: one at a time, for all who came before it."""
        apart_s = self.settings.sold_out_wait_ms / 1000
        if not apart_s:
            return 0.0
        look_s = self._looks_s.get(replica, -apart_s)
        if look_s < at_s:
            look_s = self._looks_s[replica] = max(at_s, look_s + apart_s)
        return look_s - at_s

    def _took(self, wait_s: float) -> None:
        """Note an answer; its service time is drawn."""
        mean_s = self.settings.service_ms / 1000
        service_s = mean_s * (1.0 - self._varies + self._varies * self._chance.expovariate(1.0))
        self._note(wait_s + max(0.0, service_s) + self._round_trip_s)

    def _note(self, took_s: float) -> None:
        self._took_s.append(took_s)
        self.answers.add(took_s)

    def _shed(self, at_s: float, kind: int, wait_s: float) -> None:
        """Somebody is sent away politely; that he was told so counts among the answers of the run alone."""
        self._now["shed"] += 1
        self._now["shed_first"] += kind in {0, _PAGE}
        self.answers.add(wait_s + self._round_trip_s + self.settings.service_ms / 1000)
        self._turn_away(at_s, kind)

    def _buy(self, at_s: float, wait_s: float, kind: int, replica: int) -> None:
        """A purchase that a counter has taken up."""
        settings, now = self.settings, self._now
        if self._over(at_s):
            self._sold_out(at_s, wait_s, kind, replica)
            return
        shard = bisect_right(self._bounds, self._chance.random())
        if shard >= self._up:
            if at_s >= self._lost_until_s[shard]:
                self._shed(at_s, kind, wait_s)
                return
            now["failed"] += 1
            self._note(self._deadline_s)
            self._turn_away(at_s, kind)
            return
        self._record(at_s)
        start_s = max(at_s, self._shard_free_s[shard])
        if start_s - at_s > self._deadline_s or self._journal >= settings.journal_max:
            self._shed(at_s, kind, wait_s)
            return
        self._shard_free_s[shard] = start_s + 1.0 / settings.shard_per_s
        now["acknowledged"] += 1
        self._left -= 1
        self._reserved += 1
        self._journal += 1
        if kind == _BOT:
            self._bots.free -= 1.0
        if self._chance.random() < settings.pay_share:
            self._pay.append(at_s + settings.pay_after_s)
        else:
            self._hold.append(at_s + settings.hold_s)
        self._took(wait_s + start_s - at_s)

    def _sold_out(self, at_s: float, wait_s: float, kind: int, replica: int) -> None:
        settings = self.settings
        self._now["sold_out"] += 1
        self._took(wait_s + self._look_wait_s(at_s, replica))
        again = settings.sold_out_again_share
        if again and 0 <= kind < settings.retries_max and self._chance.random() < again:
            self._come_again(at_s, kind)

    def _come_again(self, at_s: float, attempt: int) -> None:
        """After about the time that is said: who was refused at one moment does not come again at one moment."""
        after_s = self.settings.retry_after_s * self._chance.uniform(1.0 - RETRY_SPREAD, 1.0 + RETRY_SPREAD)
        heapq.heappush(self._again, (at_s + after_s, attempt + 1))

    def _turn_away(self, at_s: float, kind: int) -> None:
        """A person who was shed or failed comes again, or gives up."""
        settings = self.settings
        if kind < 0:
            return
        if kind < settings.retries_max and self._chance.random() < settings.retry_share:
            self._come_again(at_s, kind)
        else:
            self._now["gave_up"] += 1
