"""The crowd's counts: per second as they come, and over the whole run."""

from collections import Counter

from springtide.twin.crowd.demand import Demand
from springtide.twin.crowd.spec import CrowdSecond, CrowdSummary

LATE_S = 0.020
"""A request sent later than this after its moment is a late send."""
BEHIND_S = 0.100
BEHIND_SHARE = 0.01
"""The generator is behind when more than 1% of its sends were begun over 100 ms after their moment."""
HTTP_SERVER_ERROR = 500

_SUB_BITS = 5
_SUB = 1 << _SUB_BITS


class Histogram:
    """Latencies in 32 buckets per power of two microseconds: at most 3% off, in memory that does not grow.

    Values of 2^36 µs (19 hours) and more are counted in the last bucket.
    """

    def __init__(self) -> None:
        """Empty."""
        self._counts = [0] * (_SUB * (36 - _SUB_BITS + 1))
        self.total = 0
        self.max_us = 0

    def add(self, seconds: float) -> None:
        """Count one value."""
        value = max(0, int(seconds * 1e6))
        shift = max(0, value.bit_length() - _SUB_BITS - 1)
        index = (shift << _SUB_BITS) + (value >> shift)
        self._counts[min(index, len(self._counts) - 1)] += 1
        self.total += 1
        self.max_us = max(self.max_us, value)

    def quantile_ms(self, share: float) -> float:
        """The smallest bucket's upper edge that `share` of the values do not exceed; 0 when empty."""
        wanted = share * self.total
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return min(_upper_us(index), self.max_us) / 1000
        return 0.0

    @property
    def max_ms(self) -> float:
        """The largest value."""
        return self.max_us / 1000


def _upper_us(index: int) -> int:
    shift = max(0, (index >> _SUB_BITS) - 1)
    return ((index - (shift << _SUB_BITS)) + 1 << shift) - 1


class _Second:
    """The counts of one second that is not over yet."""

    def __init__(self) -> None:
        self.first_attempts = 0
        self.sent = 0
        self.shed = 0
        self.failed = 0
        self.late = 0
        self.answers: Counter[str] = Counter()
        self.latency = Histogram()


class Figures:
    """Counts of a run. Memory: one counter for each second of the demand, and one histogram."""

    def __init__(self, demand: Demand) -> None:
        """Nothing counted yet."""
        self._demand = demand
        self._now = _Second()
        self._sent = [0] * len(demand.rates)
        self._first = [0] * len(demand.rates)
        self._shed = [0] * len(demand.rates)
        self._answers: Counter[str] = Counter()
        self._latency = Histogram()
        self._requests = self._late = self._generator_late = self._failed = 0
        self._generator_late_s_max = 0.0
        self.acknowledged = self.unanswered = self.resolved = self.conflicting = self.gave_up = 0
        self.payments = self.payments_acknowledged = 0
        self.payments_refused = self.payments_unanswered = 0

    def begun(self, second: int, late_s: float, *, first: bool) -> None:
        """The generator hands a request to the client, `late_s` after its moment."""
        self._requests += 1
        self._now.sent += 1
        if second < len(self._sent):
            self._sent[second] += 1
        if first:
            self._now.first_attempts += 1
            self._first[second] += 1
        if late_s > BEHIND_S:
            self._generator_late += 1
        self._generator_late_s_max = max(self._generator_late_s_max, late_s)

    def written(self, late_s: float) -> None:
        """A request left the machine, `late_s` after its moment."""
        if late_s > LATE_S:
            self._late += 1
            self._now.late += 1

    def answered(self, status: int, code: str, latency_s: float, first_second: int) -> None:
        """An attempt ended; `status` 0 is none at all. `first_second` is -1 unless it was a first attempt."""
        label = f"{status} {code}" if code else str(status)
        now = self._now
        now.answers[label] += 1
        if status == 0 or status >= HTTP_SERVER_ERROR:
            now.failed += 1
        if status in {429, 503} and first_second >= 0:
            now.shed += 1
            self._shed[first_second] += 1
        now.latency.add(latency_s)
        self._latency.add(latency_s)

    def close_second(self, second: int) -> CrowdSecond:
        """The counts since the last call, as those of `second`."""
        done, self._now = self._now, _Second()
        self._answers.update(done.answers)
        self._failed += done.failed
        rates = self._demand.rates
        return CrowdSecond(
            second=second,
            planned=rates[second] if second < len(rates) else 0.0,
            first_attempts=done.first_attempts,
            sent=done.sent,
            answers=dict(done.answers),
            shed=done.shed,
            failed=done.failed,
            late=done.late,
            p50_ms=done.latency.quantile_ms(0.5),
            p99_ms=done.latency.quantile_ms(0.99),
            max_ms=done.latency.max_ms,
        )

    def summary(self, cpu_s: float) -> CrowdSummary:
        """The whole run; call it after the last second is closed."""
        requests = max(1, self._requests)
        first = sum(self._first)
        peak = self._demand.peak_seconds()
        base_seconds = self._demand.base_seconds
        generator_late_share = self._generator_late / requests
        return CrowdSummary(
            requests=self._requests,
            first_attempts=first,
            acknowledged=self.acknowledged,
            answers=dict(sorted(self._answers.items())),
            availability=1 - self._failed / requests,
            failed=self._failed,
            shed_share=sum(self._shed) / max(1, first),
            shed_share_at_peak=sum(self._shed[s] for s in peak) / max(1, sum(self._first[s] for s in peak)),
            unanswered=self.unanswered,
            resolved=self.resolved,
            conflicting=self.conflicting,
            p50_ms=self._latency.quantile_ms(0.5),
            p99_ms=self._latency.quantile_ms(0.99),
            p999_ms=self._latency.quantile_ms(0.999),
            max_ms=self._latency.max_ms,
            base_rps=sum(self._sent[:base_seconds]) / base_seconds,
            peak_rps=float(max(self._sent)),
            behind=generator_late_share > BEHIND_SHARE,
            late_share=self._late / requests,
            generator_late_share=generator_late_share,
            generator_late_ms_max=self._generator_late_s_max * 1000,
            payments=self.payments,
            payments_acknowledged=self.payments_acknowledged,
            payments_refused=self.payments_refused,
            payments_unanswered=self.payments_unanswered,
            gave_up=self.gave_up,
            cpu_s=cpu_s,
        )
