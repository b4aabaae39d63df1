"""The order path in fluid steps: millions of requests a second as amounts, at some microseconds a step.

All who wait are one line, first come first served; who is shed, finds it sold out or fails is taken from all attempts
alike. The waits of single requests, and so the 99th percentile, come from `path_queue`. No backlog is kept at a shard:
what it cannot take within a step is shed, as counters do once their patience with it is exceeded.
"""

import math

from springtide.twin.simulation.flow import Capacity, Flow, PathSettings
from springtide.twin.simulation.path_bots import BotLimits
from springtide.twin.simulation.path_lines import Lines
from springtide.twin.simulation.path_queue import SLOWEST, mixed_p99_ms, service_p99_ms, wait_p99_s
from springtide.twin.simulation.path_stock import StockBook

STEP_MAX_S = 1.0
"""Longer steps are made of parts no longer than this, and no longer than half of the time until people come again."""

NOBODY = 1e-9
"""Fewer people than this are nobody; what is left of them is shed."""

OPENING_SPREAD_S = 1.0
"""People who were too early come again within this time after the opening (twin.crowd.buyers)."""

_COUNTS = 14
(
    _REQUESTS,
    _RETRIES,
    _ACKNOWLEDGED,
    _SOLD_OUT,
    _SHED,
    _FAILED,
    _PAGES,
    _GAVE_UP,
    _RECORDED,
    _EXPIRED,
    _P99,
    _BOTS,
    _BOTS_REFUSED,
    _SHED_FIRST,
) = range(_COUNTS)


class FluidPath:
    """`flow.OrderPath` in amounts. Kinds of requests: purchases by their attempt, then pages, then bots."""

    def __init__(self, settings: PathSettings) -> None:
        """Nobody has come yet."""
        self.settings = settings
        self._attempts = settings.retries_max + 1
        self._page, self._bot = self._attempts, self._attempts + 1
        self._again = Lines(settings.retry_after_s, self._attempts)
        self._queue = [0.0] * (self._attempts + 2)
        self._waiting = 0.0
        self._book = StockBook(settings)
        self._bots = BotLimits(settings)
        self._shares = settings.shard_shares or (1.0 / settings.shards,) * settings.shards
        self._share_max = max(self._shares)
        self._up, self._up_share = settings.shards, 1.0
        self._lost: tuple[float, float] = 0.0, 0.0  # a share of the buyers whose requests fail, until then
        self._early = self._early_left = 0.0
        self._deadline_s = settings.deadline_ms / 1000
        self._alike = {settings.page_cost, settings.sold_out_cost, settings.refused_cost} == {1.0}
        self._variation = (settings.arrival_scv + settings.service_scv) / 2
        self._p99_ms = service_p99_ms(settings)
        self._part_max_s = min(STEP_MAX_S, settings.retry_after_s / 2)
        self._now: list[float] = []

    def step(self, now_ms: int, dt_s: float, arrivals_per_s: float, capacity: Capacity) -> Flow:
        """See `flow.OrderPath`."""
        self._now = now = [0.0] * _COUNTS
        begin_s = now_ms / 1000
        self._shards_change(begin_s, capacity)
        parts = max(1, math.ceil(dt_s / self._part_max_s - 1e-9))
        part_s = dt_s / parts
        for part in range(parts):
            self._part(begin_s + part * part_s, part_s, arrivals_per_s, capacity)
        book = self._book
        return Flow(
            requests=now[_REQUESTS],
            retries=now[_RETRIES],
            acknowledged=now[_ACKNOWLEDGED],
            sold_out=now[_SOLD_OUT],
            shed=now[_SHED],
            failed=now[_FAILED],
            pages=now[_PAGES],
            gave_up=now[_GAVE_UP],
            recorded=now[_RECORDED],
            expired=now[_EXPIRED],
            p99_ms=now[_P99],
            waiting=self._waiting,
            journal=book.journal,
            stock=book.left,
            reserved=book.reserved,
            paid=book.paid,
            bots=now[_BOTS],
            bots_refused=now[_BOTS_REFUSED],
            shed_first=now[_SHED_FIRST],
        )

    def _shards_change(self, at_s: float, capacity: Capacity) -> None:
        """What was under way at a shard that is lost gets no answer; it takes the deadline until counters know."""
        up = min(capacity.shards_up, self.settings.shards)
        if up == self._up:
            return
        if up < self._up:
            self._lost = sum(self._shares[up : self._up]), at_s + self._deadline_s
        self._up, self._up_share = up, sum(self._shares[:up])

    def _part(self, at_s: float, seconds: float, arrivals_per_s: float, capacity: Capacity) -> None:
        now, book = self._now, self._book
        now[_EXPIRED] += book.settle(at_s + seconds)
        coming = self._come(at_s, seconds, arrivals_per_s)
        over = self._over(at_s, seconds)
        served, turned, shed, wait_s = self._admit(coming, seconds, capacity, over=over)
        sold_out, failed = now[_SOLD_OUT], now[_FAILED]
        now[_PAGES] += served[self._page]
        now[_SHED] += shed
        now[_SHED_FIRST] += turned[0] + turned[self._page]
        bots = self._bots_ask(served[self._bot], seconds)
        wait_s += self._buy(served, turned, bots, at_s, seconds, over=over)
        if any(turned):
            self._turn_away(at_s + seconds / 2, turned)
        now[_RECORDED] += book.record(seconds)
        answers = sum(served)
        if answers > NOBODY:
            p99_ms = self._p99_ms + capacity.round_trip_ms + wait_s * 1000
            if self.settings.sold_out_wait_ms:
                p99_ms = self._with_looks(p99_ms, (now[_SOLD_OUT] - sold_out) / answers, answers / seconds, capacity)
            if now[_FAILED] - failed > SLOWEST * answers:
                p99_ms = max(p99_ms, float(self.settings.deadline_ms))
            now[_P99] = max(now[_P99], p99_ms)

    def _with_looks(self, p99_ms: float, sold_out_share: float, per_s: float, capacity: Capacity) -> float:
        """With the wait of sold-out answers for a replica's next look at the sale; looks have a least time between.

        Who comes when none is due looks at once. So of independent arrivals, r within that time, the share
        r/(r+exp(-r)) waits; where they come evenly, as in lines of their own, nobody waits while r is below 1.
        """
        apart_ms = self.settings.sold_out_wait_ms
        if capacity.replicas:
            within = per_s * sold_out_share / capacity.replicas * apart_ms / 1000
            if capacity.own_queues:
                sold_out_share *= within >= 1.0
            else:
                sold_out_share *= within / (within + math.exp(-within))
        return mixed_p99_ms(p99_ms, sold_out_share, apart_ms)

    def _come(self, at_s: float, seconds: float, arrivals_per_s: float) -> list[float]:
        """Who comes, by kind."""
        settings, now = self.settings, self._now
        new = arrivals_per_s * seconds
        bots = new * settings.bots_share
        people = new - bots
        coming = list(self._again.take(at_s + seconds))
        now[_RETRIES] += sum(coming)
        opens_s = settings.opens_ms / 1000
        if at_s + seconds / 2 < opens_s:
            self._early += people * settings.early_share
            self._early_left = self._early
            buyers = 0.0
        else:
            buyers = people * settings.purchase_share
            if self._early_left > 0.0:
                early = min(self._early_left, self._early * seconds / OPENING_SPREAD_S)
                self._early_left -= early
                now[_RETRIES] += early
                coming[min(1, settings.retries_max)] += early
        coming[0] += buyers
        coming.append(people - buyers)
        coming.append(bots)
        now[_REQUESTS] += sum(coming)
        now[_BOTS] += bots
        return coming

    def _admit(
        self, coming: list[float], seconds: float, capacity: Capacity, *, over: bool
    ) -> tuple[list[float], list[float], float, float]:
        """Who is served in this part and who is shed, by kind; how many are shed; the wait's 99th percentile, s."""
        queue, waited = self._queue, self._waiting
        came = sum(coming)
        total = waited + came
        if total <= NOBODY:  # not worth a division, which such an amount may not survive
            served = [was + new for was, new in zip(queue, coming, strict=True)]
            self._queue, self._waiting = [0.0] * len(coming), 0.0
            return served, [0.0] * len(coming), 0.0, 0.0
        per_s = capacity.requests_per_s
        if not self._alike:
            per_s /= self._mean_cost(coming, total, over=over)
        slots = per_s * seconds
        if total <= slots:
            self._queue, self._waiting = [0.0] * len(coming), 0.0
            served = [was + new for was, new in zip(queue, coming, strict=True)] if waited else coming
            wait_s = max(waited / per_s, self._steady_wait_s(came / slots, per_s, capacity))
            return served, [0.0] * len(coming), 0.0, wait_s
        stay = min(total - slots, per_s * self._deadline_s)
        shed = total - slots - stay
        # First come, first served; and who comes is shed before who waits already.
        served_old, shed_new = min(waited, slots), min(came, shed)
        served_new, stay_old = slots - served_old, waited - served_old - (shed - shed_new)
        stay_new = came - served_new - shed_new
        pairs = list(zip(queue, coming, strict=True))
        a, b = _part_of(served_old, waited), _part_of(served_new, came)
        served = [was * a + one * b for was, one in pairs]
        a, b = _part_of(shed - shed_new, waited), _part_of(shed_new, came)
        turned = [was * a + one * b for was, one in pairs]
        a, b = _part_of(stay_old, waited), _part_of(stay_new, came)
        self._queue, self._waiting = [was * a + one * b for was, one in pairs], stay
        wait_s = max(waited, stay) / per_s if per_s else 0.0
        return served, turned, shed, min(self._deadline_s, wait_s)

    def _mean_cost(self, coming: list[float], total: float, *, over: bool) -> float:
        """Of those who wait or come; a purchase that can succeed costs 1."""
        settings, queue = self.settings, self._queue
        pages = coming[self._page] + queue[self._page]
        bots = coming[self._bot] + queue[self._bot]
        purchase = settings.sold_out_cost if over else 1.0
        cost = (total - pages - bots) * purchase + pages * settings.page_cost + bots * settings.refused_cost
        return cost / total

    def _steady_wait_s(self, utilisation: float, per_s: float, capacity: Capacity) -> float:
        """The 99th percentile of the wait while there is room for all."""
        settings = self.settings
        if utilisation >= 1.0:
            return self._deadline_s
        servers = capacity.replicas or max(1.0, per_s * settings.service_ms / 1000)
        wait_s = wait_p99_s(utilisation, 1.0 if capacity.own_queues else servers, servers / per_s, self._variation)
        return min(self._deadline_s, max(0.0, wait_s - settings.burst_s))

    def _bots_ask(self, served: float, seconds: float) -> float:
        """How many of them come as far as a purchase; the others are refused, or hear that they hold an order."""
        if served <= 0.0:
            return 0.0
        now = self._now
        allowed = self._bots.allow(served, seconds)
        now[_SHED] += served - allowed
        now[_BOTS_REFUSED] += served - allowed
        buying = min(allowed, self._bots.free)
        now[_SOLD_OUT] += allowed - buying
        return buying

    def _buy(
        self, served: list[float], turned: list[float], bots: float, at_s: float, seconds: float, *, over: bool
    ) -> float:
        """The purchases of those served; who is shed now is added to `turned`. How late a full shard makes them, s."""
        now, book = self._now, self._book
        people = sum(served[: self._attempts])
        all_who_buy = people + bots
        if all_who_buy <= NOBODY:
            now[_SHED] += all_who_buy
            return 0.0
        if over:
            now[_SOLD_OUT] += all_who_buy
            self._want_another(served, 1.0, at_s + seconds / 2)
            return 0.0
        reach, fail, full = self._shards_take(all_who_buy, at_s, seconds)
        taken = min(reach, book.room(seconds))
        took = min(taken, book.left)
        while_stock = took / taken if taken > 0.0 else 1.0  # the part of the time in which there is stock
        failed = fail * while_stock
        shed = (all_who_buy - taken) * while_stock - failed
        sold_out = all_who_buy - took - failed - shed
        book.sell(at_s + seconds / 2, took)
        self._bots.free -= bots * took / all_who_buy
        now[_ACKNOWLEDGED] += took
        now[_SOLD_OUT] += sold_out
        now[_FAILED] += failed
        now[_SHED] += shed
        now[_SHED_FIRST] += shed * served[0] / all_who_buy
        if sold_out > 0.0:
            self._want_another(served, sold_out / all_who_buy, at_s + seconds / 2)
        again = (shed + failed) / all_who_buy
        if again > 0.0:
            for attempt in range(self._attempts):
                turned[attempt] += served[attempt] * again
        return self._deadline_s if full and while_stock > 0.0 else 0.0

    def _over(self, at_s: float, seconds: float) -> bool:
        """Whether nothing can be bought in this part: there is no stock, or the sale is closed."""
        closes_ms = self.settings.closes_ms
        return self._book.left <= 0.0 or 0 < closes_ms <= (at_s + seconds / 2) * 1000

    def _shards_take(self, buying: float, at_s: float, seconds: float) -> tuple[float, float, bool]:
        """How many purchases the shards take, how many fail with a shard just lost, and whether a shard is full."""
        shares, up, up_share = self._shares, self._up, self._up_share
        fail = 0.0
        if up < len(shares):
            lost, until_s = self._lost
            fail = buying * min(lost, 1.0 - up_share) * min(1.0, max(0.0, (until_s - at_s) / seconds))
        each = self.settings.shard_per_s * seconds
        if buying * self._share_max <= each:
            return buying * up_share, fail, False
        return sum(min(each, buying * share) for share in shares[:up]), fail, True

    def _turn_away(self, at_s: float, turned: list[float]) -> None:
        """Some of the people who were shed or failed come again; the others give up."""
        last = self._attempts - 1
        share = self.settings.retry_share
        again = [0.0] * self._attempts
        gave_up = turned[last]
        for attempt in range(last):
            some = turned[attempt] * share
            again[attempt + 1] = some
            gave_up += turned[attempt] - some
        self._now[_GAVE_UP] += gave_up
        self._again.put(at_s, again)

    def _want_another(self, served: list[float], share: float, at_s: float) -> None:
        """Of the people served, this share found it sold out; some of them try another article."""
        share *= self.settings.sold_out_again_share
        if share > 0.0:
            self._again.put(at_s, [0.0, *(some * share for some in served[: self._attempts - 1])])


def _part_of(some: float, whole: float) -> float:
    return some / whole if whole else 0.0
