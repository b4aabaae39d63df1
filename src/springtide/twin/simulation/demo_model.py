"""The twin's prediction of `springtide demo`: its configuration, its demand and the production decisions, on a kernel.

The fleet is the twin's world with the demo's zones, boot times and start times; the people are single requests, since a
demo has only thousands of them. What the demo's stack takes for an answer, and a replica for its start, is measured: of
an earlier run (`measured_in`), or by `springtide calibrate`.
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec
from typing_extensions import override

from springtide.config import Config, CrowdSettings
from springtide.decide.readiness import boot_quantile_ms
from springtide.drivers.alibaba_settings import FIRST_LOOK, SLOW_BOOT
from springtide.drivers.localcloud import BOOT_JITTER
from springtide.errors import ConfigError
from springtide.model import NodeState, RentNodes, ReplicaState, Sale
from springtide.ports import Chance
from springtide.sale.admission import BURST_S
from springtide.sale.counter import RETRY_SPAN_S
from springtide.sale.refusals import ROUND_S
from springtide.twin.crowd.buyers import EARLY_SHARE, SEVERAL_SHARE
from springtide.twin.crowd.demand import Demand
from springtide.twin.kernel import Kernel
from springtide.twin.kernel_run import PlanLoop
from springtide.twin.kernel_world import World, WorldSettings
from springtide.twin.series import Series
from springtide.twin.simulation.calibration import Calibration
from springtide.twin.simulation.flow import Capacity, PathSettings
from springtide.twin.simulation.path_events import EventPath

STEP_MS = 100
LEAD_IN_MS = 5_000
"""The fleet runs so long before the first second of the demand (cli.demo)."""

SETTLE_MS = 10_000
START_MS = 1_700_000_000_000
PAY_SPREAD = 1.15
"""People pay after 0.5 to 1.8 of `pay_after_s` (twin.crowd.buyers): this much of it in the mean."""

AGAIN_S = 1.0 + RETRY_SPAN_S / 4 + 0.25
"""When people come again, in the mean: `Retry-After` is 1 or 2 s alike, and up to half a second is added."""

BOOT_P99 = 1.2
"""A served demo's machines boot in the `boot_s` of their zone, the slowest of a hundred in so many times that."""

STOCK_SHARE = 6
"""An offer of it has a sixth of the nodes that its zone may have, one at least: what an order lacks comes of others."""

_BUSY_SHARE = 0.5  # up to this share of its capacity a fleet's queues hardly count
_ANSWERS_MIN = 20
_WAITING = 3.0  # where half of the answers take so many times as long, they wait for looks
_LN_2, _LN_100 = 0.693, 4.605


class StackFigures(msgspec.Struct, frozen=True):
    """What the demo's stack takes, ms: half of its answers, and 99 of 100, without any queue; a replica to start.

    `look_ms` is the time from one look of a replica at the sale to the next, while sold-out answers wait for each.
    """

    p50_ms: float
    p99_ms: float
    start_ms: float
    look_ms: float = ROUND_S * 1000

    @property
    def mean_ms(self) -> float:
        """The mean, where times are a fixed part and an exponential one."""
        return self.p50_ms + (self.p99_ms - self.p50_ms) / (_LN_100 - _LN_2) * (1.0 - _LN_2)


class DemoFigures(msgspec.Struct, frozen=True):
    """What a demo came to, or will come to. Shares lie in [0, 1]; replicas are the sum of each zone's most."""

    replicas_peak: float
    shed_share: float
    p99_ms: float
    requests: float
    acknowledged: float
    replicas_by_zone: dict[str, float] = {}


class _Second(msgspec.Struct):
    second: int
    sent: int
    answers: dict[str, int]
    p50_ms: float
    p99_ms: float


class _Fleet(msgspec.Struct):
    second: int
    capacity_by_zone: dict[str, float]


class _Report(msgspec.Struct):
    """What is read of a demo's report.json."""

    replicas_peak: dict[str, int]
    shed_share: float
    p99_ms: float
    requests: int
    acknowledged: int
    seconds: list[_Second]
    fleet: list[_Fleet]


def read_report(path: Path) -> tuple[DemoFigures, "_Report"]:
    """The figures of a demo that was run, from its report.json. Raises ConfigError."""
    try:
        report = msgspec.json.decode(path.read_bytes(), type=_Report)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: no report of a demo: {error}; `springtide demo` writes it") from error
    peak = {zone: float(count) for zone, count in report.replicas_peak.items()}
    figures = DemoFigures(
        float(sum(peak.values())), report.shed_share, report.p99_ms, report.requests, report.acknowledged, peak
    )
    return figures, report


def measured_in(report: "_Report", start_ms: Sequence[float]) -> StackFigures:
    """What the stack took in a demo's seconds without queues or sold-out answers; `start_ms` is of its replicas.

    Raises ConfigError for a demo without such seconds.
    """
    capacity = {one.second: sum(one.capacity_by_zone.values()) for one in report.fleet}
    calm = [
        one
        for one in report.seconds
        if sum(one.answers.values()) >= _ANSWERS_MIN
        and one.sent <= _BUSY_SHARE * capacity.get(one.second, 0.0)
        and not any("sold_out" in answer for answer in one.answers)
    ]
    if not calm or not start_ms:
        raise ConfigError("this demo has no second with room and without sold-out answers; calibrate on another")
    counts = [sum(one.answers.values()) for one in calm]
    p50_ms = sum(one.p50_ms * count for one, count in zip(calm, counts, strict=True)) / sum(counts)
    p99_ms = sum(one.p99_ms * count for one, count in zip(calm, counts, strict=True)) / sum(counts)
    stack = StackFigures(p50_ms, p99_ms, statistics.median(start_ms))
    looks = [
        (one.p99_ms, count)
        for one in report.seconds
        if (count := sum(one.answers.values())) >= _ANSWERS_MIN
        and one.p50_ms > _WAITING * p50_ms
        and 2 * sum(of for answer, of in one.answers.items() if "sold_out" in answer) > count
    ]
    if looks:  # waits are even between none and a whole look, so their 99th percentile is nearly that
        slow_ms = sum(p99_ms * count for p99_ms, count in looks) / sum(count for _, count in looks)
        stack = msgspec.structs.replace(stack, look_ms=max(stack.look_ms, (slow_ms - stack.mean_ms) / 0.99))
    return stack


def stack_of(calibration: Calibration) -> StackFigures:
    """What `springtide calibrate` measured of the same stack at ease."""
    stack_ms = calibration.stack_ms.median
    return StackFigures(
        stack_ms,
        calibration.stack_p99_ms.median,
        calibration.replica_start_ms.median,
        look_ms=ROUND_S * 1000 + stack_ms,  # a look asks the inventory, and the rest counts from its end
    )


def predict(config: Config, demand: Demand, stack: StackFigures, chances: Sequence[Chance]) -> DemoFigures:
    """The mean of as many runs as there are chances, at least one. Raises ConfigError where a demo would.

    `demand` is the people of each second, as in the demo's file.
    """
    runs = [_Run(config, demand, stack, one).figures() for one in chances]

    def mean(name: str) -> float:
        return statistics.fmean(getattr(run, name) for run in runs)

    zones = {name: statistics.fmean(run.replicas_by_zone[name] for run in runs) for name in runs[0].replicas_by_zone}
    return DemoFigures(
        mean("replicas_peak"), mean("shed_share"), mean("p99_ms"), mean("requests"), mean("acknowledged"), zones
    )


class _World(World):
    """The twin's world, with a cloud that delivers and boots as the demo's does.

    `poll_ms` is the time between two looks at machines that boot; None: the cloud is on paper (`drivers.localcloud`).
    A served cloud has little of each offer, so what an order lacks is ordered again at the next tick.
    """

    def __init__(self, kernel: Kernel, settings: WorldSettings, chance: Chance, poll_ms: int | None) -> None:
        super().__init__(kernel, settings)
        self._chance = chance
        self._poll_ms = poll_ms

    @override
    def _rent(self, action: RentNodes) -> None:
        """As many as the quota and the stock leave."""
        zone = self.zones[action.zone]
        there = sum(node.zone == zone.name for node in self.nodes)
        count = min(action.count, zone.nodes_max - there)
        if self._poll_ms is not None:
            count = min(count, max(1, zone.nodes_max // STOCK_SHARE))
        for _ in range(count):
            node = self._add_node(zone, action.client_token, NodeState.BOOTING)
            ready_ms = self.kernel.now_ms + self._boot_ms(zone.lead_ms)
            self.kernel.at(ready_ms, lambda name=node.node_id: self._booted(name))  # type: ignore[misc] # a lambda's default

    def _boot_ms(self, usual_ms: int) -> int:
        """From the order until the loop knows that the machine is up."""
        if self._poll_ms is None:
            return round(usual_ms * self._chance.uniform(1 - BOOT_JITTER, 1 + BOOT_JITTER))
        usual_ms = round(usual_ms / SLOW_BOOT)
        drawn = min(max(self._chance.random(), 1e-9), 1 - 1e-9)
        boot_ms = boot_quantile_ms((usual_ms, round(usual_ms * BOOT_P99)), 1 - drawn)
        first_ms = FIRST_LOOK * usual_ms
        looks = max(0, math.ceil((boot_ms - first_ms) / self._poll_ms))
        return round(first_ms + looks * self._poll_ms)


class _Seen(Series, frozen=True):
    """What the balancer sees: the requests of each step, retries among them. The list grows as the run goes on."""

    counts: list[float] = msgspec.field(default_factory=list)

    @override
    def mean(self, from_ms: int, until_ms: int) -> float:
        """Requests/s between two moments."""
        first = max(0, (from_ms - self.start_ms) // STEP_MS)
        some = self.counts[first : max(0, (until_ms - self.start_ms) // STEP_MS)]
        return sum(some) * 1000 / max(STEP_MS, until_ms - from_ms)


class _Run:
    """One run of the model."""

    def __init__(self, config: Config, demand: Demand, stack: StackFigures, chance: Chance) -> None:
        if config.crowd is None or len(config.sales) != 1:
            raise ConfigError("a demo has one sale, and a [crowd]; give the configuration of one")
        zones = config.fleet_zones()
        begin_ms = START_MS - LEAD_IN_MS
        self._config = config
        self._demand = demand
        self._kernel = Kernel(begin_ms)
        served = config.cloud.driver == "alibaba"
        poll_ms = round(config.cloud.poll_s * 1000) if served else None
        if served:  # the loop reckons with the slowest machines; those that come are drawn from the usual time
            zones = tuple(msgspec.structs.replace(zone, lead_ms=round(zone.lead_ms * SLOW_BOOT)) for zone in zones)
        self._world = _World(self._kernel, WorldSettings(zones, start_ms=round(stack.start_ms)), chance, poll_ms)
        (sale,) = config.sales_from(START_MS)
        self._path = EventPath(path_settings(config.counter.rate_max, config, config.crowd, sale, stack), chance)
        seconds = LEAD_IN_MS // 1000 + len(demand.rates) + SETTLE_MS // 1000
        self._seen = _Seen(
            name="demo",
            start_ms=begin_ms,
            rates=[0.0] * seconds,
            tuned_s=0,
            calendar=config.calendar_from(START_MS),
            counts=[],
        )
        loop = PlanLoop(self._world, self._seen, config.policy(), config.fleet.tick_ms, every_tick=True)
        self._first = self._shed = self._requests = self._acknowledged = 0.0
        self._peak = {zone.name: 0.0 for zone in zones}
        self._kernel.every(STEP_MS, self._step)
        self._kernel.every(config.fleet.tick_ms, loop.tick)
        self._kernel.every(config.fleet.tick_ms, self._count)
        self._kernel.run(begin_ms + seconds * 1000)

    def figures(self) -> DemoFigures:
        return DemoFigures(
            sum(self._peak.values()),
            self._shed / max(1.0, self._first),
            self._path.answers.quantile_ms(0.99),
            self._requests,
            self._acknowledged,
            self._peak,
        )

    def _step(self) -> None:
        """People come, and are answered by the replicas that the balancer has."""
        now_ms = self._kernel.now_ms
        second = (now_ms - START_MS) // 1000
        rate = self._demand.rates[second] if 0 <= second < len(self._demand.rates) else 0.0
        serving = self._world.serving
        capacity = Capacity(
            serving * self._config.counter.rate_max, round_trip_ms=0.0, replicas=serving, own_queues=True
        )
        flow = self._path.step(now_ms, STEP_MS / 1000, rate, capacity)
        self._seen.counts.append(flow.requests)
        self._first += flow.requests - flow.retries
        self._shed += flow.shed_first
        self._requests += flow.requests
        self._acknowledged += flow.acknowledged

    def _count(self) -> None:
        for zone in self._peak:
            ready = sum(one.zone == zone and one.state is ReplicaState.READY for one in self._world.replicas)
            self._peak[zone] = max(self._peak[zone], float(ready))


def path_settings(
    rate_max: float, config: Config, crowd: CrowdSettings, sale: Sale, stack: StackFigures
) -> PathSettings:
    """The demo's order path and crowd. Its engines are never its limit; the emulated rate of its replicas is."""
    weights = [rank**-crowd.zipf_exponent for rank in range(1, len(sale.skus) + 1)]
    wanted = [(1 - SEVERAL_SHARE) + SEVERAL_SHARE * (1 + sku.per_buyer_max) / 2 for sku in sale.skus]
    units = sum(weight * each for weight, each in zip(weights, wanted, strict=True)) / sum(weights)
    return PathSettings(
        stock=round(sum(sku.stock for sku in sale.skus) / units),
        service_ms=max(0.01, stack.mean_ms),
        service_p99_ms=stack.p99_ms,
        deadline_ms=config.counter.queue_wait_ms_max,
        burst_s=max(BURST_S, 1 / rate_max),
        purchase_share=1 - crowd.page_share,
        early_share=EARLY_SHARE,
        retry_share=1.0,
        retries_max=crowd.retries_max,
        retry_after_s=AGAIN_S,
        sold_out_again_share=crowd.retry_share,
        sold_out_wait_ms=stack.look_ms,
        pay_share=crowd.pay_share,
        pay_after_s=crowd.pay_after_s * PAY_SPREAD,
        hold_s=sale.hold_ms / 1000,
        opens_ms=sale.opens_ms,
        closes_ms=sale.closes_ms,
    )
