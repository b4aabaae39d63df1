"""Look at the balancer, the runtimes and the clouds at once; keep the last word of each, with its age."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from springtide.decide.forecast import TREND_MS
from springtide.errors import SpringtideError
from springtide.model import FleetPolicy, Node, NodeState, Replica, TrafficSample, Zone, ZoneKind
from springtide.ports import Balancer, Clock, Cloud, Runtime

TRAFFIC_SAMPLES_MAX = 64
"""Samples of traffic kept, however short the tick: each is journalled again with every snapshot."""

T = TypeVar("T")


class FleetPorts(msgspec.Struct, frozen=True):
    """What the loop looks at and acts on."""

    balancer: Balancer
    runtime: Runtime
    cloud: Cloud


class Observation(msgspec.Struct, frozen=True):
    """The last word of each source, and how old it is where it is not of now."""

    now_ms: int
    nodes: tuple[Node, ...]
    replicas: tuple[Replica, ...]
    healthy: frozenset[str] | None
    traffic: tuple[TrafficSample, ...]
    ages_ms: dict[str, int]


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
        # Before the first word of a source nothing may be done on its strength: it is stale.
        never_ms = clock.now_ms() - policy.stale_ms - 1
        self._seen_ms = dict.fromkeys(("replicas", "nodes", "health"), never_ms)
        self._replicas: list[Replica] = []
        self._rented: list[Node] = []
        self._healthy: frozenset[str] | None = None
        self._traffic: deque[TrafficSample] = deque(maxlen=TRAFFIC_SAMPLES_MAX)

    async def observe(self, timeout_s: float) -> Observation:
        """Ask everyone, for at most this long."""
        asked_ms = self._clock.now_ms()
        ports = self._ports
        replicas, rented, healthy, sample = await asyncio.gather(
            self._ask("replicas", ports.runtime.list(), timeout_s),
            self._ask("nodes", ports.cloud.nodes(), timeout_s),
            self._ask("health", ports.balancer.healthy(), timeout_s),
            self._ask("traffic", ports.balancer.sample(asked_ms), timeout_s),
        )
        self._replicas = self._replicas if replicas is None else replicas
        self._rented = self._rented if rented is None else rented
        self._healthy = self._healthy if healthy is None else healthy
        if sample is not None:
            self._keep(sample)
        now_ms = self._clock.now_ms()
        return Observation(
            now_ms=now_ms,
            nodes=(*self._pool, *self._rented),
            replicas=tuple(self._replicas),
            healthy=self._healthy,
            traffic=tuple(self._traffic),
            ages_ms={source: now_ms - seen for source, seen in self._seen_ms.items() if seen < asked_ms},
        )

    async def _ask(self, source: str, answer: Awaitable[T], timeout_s: float) -> T | None:
        try:
            async with self._clock.timeout(timeout_s):
                found = await answer
        except TimeoutError:
            self._report(source, f"no answer within {timeout_s:g} s")
            return None
        except (SpringtideError, OSError) as error:
            self._report(source, str(error))
            return None
        except Exception as error:  # noqa: BLE001 - a fault in a driver must not end the loop that replaces capacity
            self._report(source, f"{type(error).__name__}: {error}")
            return None
        if source in self._seen_ms:
            self._seen_ms[source] = self._clock.now_ms()
        return found

    def _keep(self, sample: TrafficSample) -> None:
        self._traffic.append(sample)
        while self._traffic[0].at_ms <= sample.at_ms - TREND_MS:
            self._traffic.popleft()


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
        )
        for zone in zones
        if zone.kind is ZoneKind.IDC
        for number in range(zone.nodes_max)
    )
