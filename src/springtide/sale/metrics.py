"""The counter's figures. The hot path adds to plain integers; Prometheus's text is made on demand."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from springtide.sale.problems import PROBLEMS

LATENCY_BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

SUCCESSES = ("reserved", "repeated", "page", "healthz", "readyz", "metrics", "orders", "undecided")
"""What a success can be, in the order of `Figures.successes`."""

RESERVED, REPEATED, PAGE, HEALTHZ, READYZ, METRICS, ORDERS, UNDECIDED = range(len(SUCCESSES))

SHEDS = ("capacity", "buyer_rate", "address_rate", "no_pass", "backlog", "slow_inventory", "late", "lookups")
"""Why a request was shed, in the order of `Figures.sheds`."""

CAPACITY, BUYER_RATE, ADDRESS_RATE, NO_PASS, BACKLOG, SLOW_INVENTORY, LATE, LOOKUPS = range(len(SHEDS))
CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()


class Figures:
    """Plain integers and lists of them, one process's since its start."""

    __slots__ = (
        "batch_sizes",
        "batched",
        "connections_refused",
        "disconnected",
        "from_memory",
        "latencies",
        "latency_sum_s",
        "problems",
        "sheds",
        "successes",
    )

    def __init__(self) -> None:
        """Start at nought."""
        self.successes = [0] * len(SUCCESSES)
        self.problems = [0] * len(PROBLEMS)
        self.sheds = [0] * len(SHEDS)
        self.latencies = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self.latency_sum_s = 0.0
        self.batch_sizes = [0] * (len(BATCH_BOUNDS) + 1)
        self.batched = 0
        self.connections_refused = 0
        self.disconnected = 0
        self.from_memory = 0

    def latency(self, seconds: float) -> None:
        """A purchase was answered this long after its request had arrived whole."""
        self.latencies[bisect_left(LATENCY_BOUNDS_S, seconds)] += 1
        self.latency_sum_s += seconds

    def batch(self, size: int) -> None:
        """A batch of this many purchases was sent."""
        self.batch_sizes[bisect_left(BATCH_BOUNDS, size)] += 1
        self.batched += size


Gauges = Mapping[str, tuple[str, Callable[[], float]]]
"""By name: what it says, and where to read it."""


class _FiguresCollector(Collector):
    def __init__(self, figures: Figures, gauges: Gauges) -> None:
        self._figures = figures
        self._gauges = gauges

    @override
    def collect(self) -> Iterable[Metric]:
        yield self._requests()
        yield self._sheds()
        yield self._latency()
        yield self._batches()
        figures = self._figures
        yield CounterMetricFamily(
            "springtide_counter_connections_refused",
            "Connections closed at once because connections_max was reached",
            value=figures.connections_refused,
        )
        yield CounterMetricFamily(
            "springtide_counter_disconnected",
            "Requests whose connection was gone before their answer",
            value=figures.disconnected,
        )
        yield CounterMetricFamily(
            "springtide_counter_refused_from_memory",
            "Purchases refused without a call to the inventory of their own",
            value=figures.from_memory,
        )
        for name, (text, read) in self._gauges.items():
            yield GaugeMetricFamily(f"springtide_counter_{name}", text, value=read())

    def _requests(self) -> Metric:
        family = CounterMetricFamily("springtide_counter_requests", "Requests by their answer", labels=["answer"])
        for name, count in zip(SUCCESSES, self._figures.successes, strict=True):
            family.add_metric([name], count)
        for problem, count in zip(PROBLEMS, self._figures.problems, strict=True):
            family.add_metric([problem.code], count)
        return family

    def _sheds(self) -> Metric:
        family = CounterMetricFamily("springtide_counter_shed", "Requests refused for a limit", labels=["reason"])
        for name, count in zip(SHEDS, self._figures.sheds, strict=True):
            family.add_metric([name], count)
        return family

    def _latency(self) -> Metric:
        return HistogramMetricFamily(
            "springtide_counter_purchase_seconds",
            "From the whole request to the answer of a purchase that the inventory decided",
            buckets=_cumulative(LATENCY_BOUNDS_S, self._figures.latencies),
            sum_value=self._figures.latency_sum_s,
        )

    def _batches(self) -> Metric:
        return HistogramMetricFamily(
            "springtide_counter_batch_size",
            "Purchases in one call to the inventory",
            buckets=_cumulative(BATCH_BOUNDS, self._figures.batch_sizes),
            sum_value=self._figures.batched,
        )


class MetricsPage:
    """The text of `/metrics`."""

    def __init__(self, figures: Figures, gauges: Gauges) -> None:
        """`gauges` are read when the page is."""
        self._registry = CollectorRegistry()
        self._registry.register(_FiguresCollector(figures, gauges))

    def text(self) -> bytes:
        """All figures now."""
        return generate_latest(self._registry)


def _cumulative(bounds: tuple[float, ...], counts: list[int]) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
