"""Look at all runtimes, clouds, balancers, sensors and wishes at once; keep the last word of each, with its age."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

from springtide.decide.forecast import history_ms
from springtide.errors import SpringtideError
from springtide.fleet.market import MarketWatch
from springtide.fleet.ports import FleetPorts
from springtide.fleet.signals import CpuMeter
from springtide.model import (
    Fill,
    FleetPolicy,
    Node,
    NodeState,
    Offer,
    Quota,
    Replica,
    Signal,
    SignalKind,
    SignalSample,
    TrafficSample,
    Wishes,
    Zone,
    ZoneKind,
)
from springtide.ports import Balancer, Clock, Runtime

__all__ = ["TRAFFIC_SAMPLES_MAX", "Asked", "FleetPorts", "Observation", "Observer", "ServiceSeen", "idc_nodes"]

TRAFFIC_SAMPLES_MAX = 64
"""Samples of traffic kept, however short the tick: each is journalled again with every snapshot."""

T = TypeVar("T")


class Asked(msgspec.Struct, frozen=True):
    """What is to be asked about one service."""

    balancer: Balancer | None
    signals: tuple[Signal, ...] = ()


class ServiceSeen(msgspec.Struct, frozen=True):
    """The last words on one service. `health_age_ms` is None when the balancer was heard just now."""

    healthy: frozenset[str] | None = None
    traffic: tuple[TrafficSample, ...] = ()
    signals: tuple[SignalSample, ...] = ()
    engines: dict[str, float] = {}
    health_age_ms: int | None = None


class Observation(msgspec.Struct, frozen=True):
    """The last word of each source, and how old it is where it is not of now.

    `ages_ms` names "nodes", "offers" (until they were heard once), "replicas" (all runtimes) and "replicas/ZONE".
    `unheard` are the zones whose runtime has not said anything since the loop began. `wishes` is None until they have
    been read once. `line_load` names the lines that have just been heard; `fills` are the actor's.
    """

    now_ms: int
    nodes: tuple[Node, ...]
    replicas: tuple[Replica, ...]
    ages_ms: dict[str, int]
    services: dict[str, ServiceSeen]
    unheard: frozenset[str]
    wishes: Wishes | None
    offers: tuple[Offer, ...] = ()
    quotas: tuple[Quota, ...] = ()
    line_load: dict[str, float] = {}
    fills: tuple[Fill, ...] = ()


class _Service:
    """What is kept of one service between ticks."""

    def __init__(self, never_ms: int, history_ms: int) -> None:
        self._history_ms = history_ms
        self.seen_ms = never_ms
        self.healthy: frozenset[str] | None = None
        self.traffic: deque[TrafficSample] = deque(maxlen=TRAFFIC_SAMPLES_MAX)
        self.signals: dict[str, SignalSample] = {}
        self.engines: dict[str, float] = {}

    def keep(self, sample: TrafficSample) -> None:
        self.traffic.append(sample)
        while self.traffic[0].at_ms <= sample.at_ms - self._history_ms:
            self.traffic.popleft()

    def measure(self, signals: Sequence[Signal], sample: TrafficSample | None, cpu: SignalSample | None) -> None:
        """Signals from the balancer's sample and the replicas' use; what was not measured keeps its last sample."""
        wanted = {signal.name: signal for signal in signals}
        self.signals = {name: kept for name, kept in self.signals.items() if name in wanted}
        for name, signal in wanted.items():
            value: float | None = None
            if sample is not None:
                figures = {
                    SignalKind.IN_FLIGHT: sample.in_flight,
                    SignalKind.QUEUE: sample.queued,
                    SignalKind.P99_MS: sample.p99_ms,
                }
                value = figures.get(signal.kind)
            if value is not None and sample is not None:
                self.signals[name] = SignalSample(name, sample.at_ms, float(value))
            elif signal.kind is SignalKind.CPU and cpu is not None:
                self.signals[name] = msgspec.structs.replace(cpu, name=name)


class Observer:
    """Asks all sources at once; one that fails or takes too long has its last word repeated."""

    def __init__(
        self,
        clock: Clock,
        ports: FleetPorts,
        zones: Sequence[Zone],
        policy: FleetPolicy,
        report: Callable[[str, str], None],
    ) -> None:
        """`report` is told the source and the error of each failure."""
        self._clock = clock
        self._ports = ports
        self._pool = idc_nodes(zones)
        self._report = report
        self._runtimes = ports.distinct_runtimes()
        # Before the first word of a source nothing may be done on its strength: it is stale.
        self._never_ms = clock.now_ms() - policy.stale_ms - 1
        self._history_ms = history_ms(policy)
        self._runtime_ms = [self._never_ms] * len(self._runtimes)
        self._listed: list[list[Replica] | None] = [None] * len(self._runtimes)
        self._nodes_ms = self._never_ms
        self._rented: list[Node] = []
        self._wishes: Wishes | None = None
        self._services: dict[str, _Service] = {}
        self._cpu = CpuMeter()
        self._market = MarketWatch(clock, ports.cloud, report)
        self._lines: dict[str, float] = {}

    async def close(self) -> None:
        """Break off what is asked in the background."""
        await self._market.close()

    def runtime_of(self, replica_id: str, zone: str) -> Runtime | None:
        """Who has the replica, or who would."""
        for (runtime, _), listed in zip(self._runtimes, self._listed, strict=True):
            if listed and any(replica.replica_id == replica_id for replica in listed):
                return runtime
        return self._ports.runtimes.get(zone)

    async def observe(self, services: Mapping[str, Asked], timeout_s: float) -> Observation:
        """Ask everyone, for at most this long."""
        asked_ms = self._clock.now_ms()
        self._services = {
            name: self._services.get(name) or _Service(self._never_ms, self._history_ms) for name in services
        }  # what is gone is forgotten
        samples: dict[str, TrafficSample] = {}
        await asyncio.gather(
            *(self._list(number, timeout_s) for number in range(len(self._runtimes))),
            self._list_nodes(timeout_s),
            self._read_wishes(timeout_s),
            self._market.look(timeout_s),
            *(self._read_line(name, timeout_s) for name in self._ports.lines),
            *(self._look(name, asked, asked_ms, timeout_s, samples) for name, asked in services.items()),
        )
        now_ms = self._clock.now_ms()
        cpu = self._cpu.measure(self._fresh(asked_ms), now_ms)
        for name, asked in services.items():
            self._services[name].measure(asked.signals, samples.get(name), cpu.get(name))
        return Observation(
            now_ms=now_ms,
            nodes=(*self._pool, *self._rented),
            replicas=tuple(replica for listed in self._listed for replica in listed or ()),
            ages_ms=self._ages(asked_ms, now_ms),
            services={name: _seen(kept, asked_ms, now_ms) for name, kept in self._services.items()},
            unheard=frozenset(
                zone
                for (_, zones), listed in zip(self._runtimes, self._listed, strict=True)
                if listed is None
                for zone in zones
            ),
            wishes=self._wishes,
            offers=self._market.offers,
            quotas=self._market.quotas,
            line_load=dict(self._lines),
        )

    async def _list(self, number: int, timeout_s: float) -> None:
        runtime, zones = self._runtimes[number]
        alone = len(self._runtimes) == 1
        listed = await self._ask("replicas" if alone else f"replicas/{zones[0]}", runtime.list(), timeout_s)
        if listed is not None:
            self._listed[number], self._runtime_ms[number] = listed, self._clock.now_ms()

    async def _list_nodes(self, timeout_s: float) -> None:
        rented = await self._ask("nodes", self._ports.cloud.nodes(), timeout_s)
        if rented is not None:
            self._rented, self._nodes_ms = rented, self._clock.now_ms()

    async def _read_wishes(self, timeout_s: float) -> None:
        if self._ports.state is not None:
            wishes = await self._ask("wishes", self._ports.state.wishes(), timeout_s)
            self._wishes = self._wishes if wishes is None else wishes

    async def _read_line(self, name: str, timeout_s: float) -> None:
        load = await self._ask(f"line {name}", self._ports.lines[name].read(), timeout_s)
        # What is not heard is not named: the lines that are left carry all.
        self._lines.pop(name, None)
        if load is not None:
            self._lines[name] = load

    async def _look(
        self, service: str, asked: Asked, asked_ms: int, timeout_s: float, samples: dict[str, TrafficSample]
    ) -> None:
        """Ask the balancer, the sensors and the engines of one service."""
        kept = self._services[service]
        healthy, sample, _ = await asyncio.gather(
            self._ask_balancer("health", service, asked, lambda one: one.healthy(), timeout_s),
            self._ask_balancer("traffic", service, asked, lambda one: one.sample(asked_ms), timeout_s),
            self._read_sensors(service, asked.signals, timeout_s),
        )
        if healthy is not None:
            kept.healthy, kept.seen_ms = healthy, self._clock.now_ms()
        if sample is not None:
            kept.keep(sample)
            samples[service] = sample

    async def _ask_balancer(
        self, what: str, service: str, asked: Asked, call: Callable[[Balancer], Awaitable[T]], timeout_s: float
    ) -> T | None:
        if asked.balancer is None:
            return None
        source = what if len(self._services) == 1 else f"{what} of {service}"
        return await self._ask(source, call(asked.balancer), timeout_s)

    async def _read_sensors(self, service: str, signals: Sequence[Signal], timeout_s: float) -> None:
        kept = self._services[service]

        async def read(signal: Signal) -> None:
            sensor = self._ports.sensors(service, signal) if self._ports.sensors else None
            if sensor is None:
                return self._report(f"signal {signal.name} of {service}", "nothing here can read it")
            value = await self._ask(f"signal {signal.name} of {service}", sensor.read(), timeout_s)
            if value is not None:
                kept.signals[signal.name] = SignalSample(signal.name, self._clock.now_ms(), value)
            return None

        async def gauge(name: str) -> None:
            sensor = self._ports.engines[service][name]
            value = await self._ask(f"engine {name} of {service}", sensor.read(), timeout_s)
            # How busy an engine was an hour ago says nothing: what is not heard is not named.
            kept.engines.pop(name, None)
            if value is not None:
                kept.engines[name] = value

        outside = [read(signal) for signal in signals if signal.kind is SignalKind.PROMETHEUS]
        await asyncio.gather(*outside, *(gauge(name) for name in self._ports.engines.get(service, ())))

    async def _ask(self, source: str, answer: Awaitable[T], timeout_s: float) -> T | None:
        try:
            async with self._clock.timeout(timeout_s):
                return await answer
        except TimeoutError:
            self._report(source, f"no answer within {timeout_s:g} s")
        except (SpringtideError, OSError) as error:
            self._report(source, str(error))
        except Exception as error:  # noqa: BLE001 - a fault in a driver must not end the loop that replaces capacity
            self._report(source, f"{type(error).__name__}: {error}")
        return None

    def _fresh(self, asked_ms: int) -> list[Replica]:
        """The replicas of the runtimes that have just answered."""
        heard = zip(self._listed, self._runtime_ms, strict=True)
        return [replica for listed, seen_ms in heard if seen_ms >= asked_ms for replica in listed or ()]

    def _ages(self, asked_ms: int, now_ms: int) -> dict[str, int]:
        ages: dict[str, int] = {}
        for (_, zones), seen_ms in zip(self._runtimes, self._runtime_ms, strict=True):
            if seen_ms < asked_ms:
                ages.update((f"replicas/{zone}", now_ms - seen_ms) for zone in zones)
        if self._runtimes and max(self._runtime_ms) < asked_ms:
            ages["replicas"] = now_ms - max(self._runtime_ms)
        if self._nodes_ms < asked_ms:
            ages["nodes"] = now_ms - self._nodes_ms
        if not self._market.heard:
            ages["offers"] = now_ms - self._never_ms
        return ages


def _seen(kept: _Service, asked_ms: int, now_ms: int) -> ServiceSeen:
    return ServiceSeen(
        healthy=kept.healthy,
        traffic=tuple(kept.traffic),
        signals=tuple(kept.signals.values()),
        engines=dict(kept.engines),
        health_age_ms=now_ms - kept.seen_ms if kept.seen_ms < asked_ms else None,
    )


def idc_nodes(zones: Sequence[Zone]) -> tuple[Node, ...]:
    """The fixed pools of the IDC zones as nodes: always there, always ready."""
    return tuple(
        Node(
            node_id=f"{zone.name}-{number}",
            zone=zone.name,
            state=NodeState.READY,
            cores=zone.cores_per_node,
            client_token="",
            since_ms=0,
            memory_mb=zone.memory_mb_per_node,
        )
        for zone in zones
        if zone.kind is ZoneKind.IDC
        for number in range(zone.nodes_max)
    )
