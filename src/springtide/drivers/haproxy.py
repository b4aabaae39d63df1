"""The balancer port on HAProxy: servers through its Runtime API, figures through its statistics.

Change. A server is added with weight 0 and marked down before it gets its weight, so that its first check comes before
its first request. One that leaves goes into maintenance, finishes what it has, and is deleted when it is idle.

Figures. HAProxy's counters of a server vanish with it, so they are read once more before one is deleted.
"""

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from springtide.drivers.balanced_service import BalancedService, check_endpoints
from springtide.drivers.haproxy_api import BACKEND, FRONTEND, Row, RuntimeApi
from springtide.drivers.haproxy_config import (
    ENDPOINTS_MAX,
    add_command,
    endpoint_of,
    engine_weights,
    server_name,
)
from springtide.drivers.haproxy_latency import LatencyLog
from springtide.errors import BalancerError
from springtide.model import Endpoint, TrafficSample, ZoneTraffic
from springtide.ports import Clock

_FIRST_CHECK_S_MAX = 1.0
_POLL_S = 0.02


class _Counts(msgspec.Struct):
    """Requests and failed tries, of a server so far or of a zone since the last sample."""

    requests: int = 0
    failed: int = 0


class HaproxyBalancer:
    """`ports.Balancer` for one service of a running HAProxy: the backend of its name, and the frontend `NAME.in`.

    A new object takes over what the HAProxy has. Figures count from the first sample on. A request that is tried on two
    replicas counts once in `requests_per_s` and once in the zone of each; a failed try counts in `failed_per_s` of its
    zone, and in the service's only when the client got an error. `keep` is told every list that is in force, for the
    configuration of a later start. Servers that HAProxy has lost are given to it again by the next sample.
    """

    def __init__(
        self,
        api: RuntimeApi,
        service: BalancedService,
        clock: Clock,
        latency: LatencyLog | None = None,
        keep: Callable[[Sequence[Endpoint]], None] = lambda _: None,
    ) -> None:
        """Nothing is asked of HAProxy yet."""
        self.write_lock = asyncio.Lock()
        """Held by a change; who holds it finds the list at rest."""
        self.wanted: tuple[Endpoint, ...] | None = None
        """The list in force; None until one was set by this object."""
        self.service = service
        """What it is about, as HAProxy has it."""
        self._api = api
        # Of two looks at the same time, the older answer must not come last: counters would seem to begin anew.
        self._counting = asyncio.Lock()
        self._clock = clock
        self._latency = latency
        self._keep = keep
        self._seen: dict[str, _Counts] = {}
        self._zones: dict[str, _Counts] = {}
        self._arrived = _Counts()
        self._total = _Counts()
        self._sampled_s: float | None = None

    async def set_endpoints(self, endpoints: Sequence[Endpoint]) -> None:
        """Send traffic to exactly these from now on, by weight.

        Returns when the new ones have passed their first check; for that it waits at most one second. Raises
        BalancerError when the list cannot be used or HAProxy does not answer.
        """
        check_endpoints(endpoints, ENDPOINTS_MAX)
        async with self.write_lock:
            await self._change(endpoints)
            self._keep(endpoints)
            self.wanted = tuple(endpoints)

    async def sample(self, now_ms: int) -> TrafficSample:
        """The figures since the last sample; the first one sets the mark and reports no traffic."""
        rows = await self._count()
        if self._incomplete(rows) and not self.write_lock.locked():
            async with self.write_lock:
                await self._change(self.wanted or ())
            rows = await self._count()
        await self._bury(rows)
        return self._sampled(rows, now_ms)

    async def healthy(self) -> frozenset[str]:
        """The ids of the replicas that pass HAProxy's check and are not ejected, the drained ones included."""
        rows = _servers(await self._api.statistics(self.service.name))
        return frozenset(endpoint_of(name, 0).replica_id for name, row in rows.items() if row.passes)

    def close(self) -> None:
        """Stop listening to the log; HAProxy goes on."""
        if self._latency:
            self._latency.close()

    async def _change(self, endpoints: Sequence[Endpoint]) -> None:
        weights = engine_weights(endpoints)
        rows = _servers(await self._count())
        present = {name: row for name, row in rows.items() if not row.leaves}
        fresh = [endpoint for endpoint in endpoints if server_name(endpoint) not in present]
        if fresh:
            slow = any(row.weight and row.passes for row in present.values())
            said = await self._api.change([line for e in fresh for line in self._adding(e, rows, weights, slow=slow)])
            self._require({server_name(e) for e in fresh}, _servers(await self._count()), said)
            await self._until_healthy({server_name(e) for e in fresh if e.weight})
        changed = [n for n in weights.keys() & present.keys() if present[n].weight != weights[n]]
        gone = present.keys() - weights.keys()
        said = await self._api.change(
            [self._line(f"set server {{}} weight {weights[name]}", name) for name in changed]
            + [self._line("set server {} state maint", name) for name in gone]
        )
        if said:
            raise BalancerError(f"HAProxy refused a change of {self.service.name}: {said[0]}; look at its statistics")
        await self._bury(await self._count())

    def _adding(self, endpoint: Endpoint, rows: dict[str, Row], weights: dict[str, int], *, slow: bool) -> list[str]:
        name = server_name(endpoint)
        begin = (
            self._line("set server {} weight 0", name)
            if name in rows
            else add_command(self.service, endpoint, slow_start=slow)
        )
        return [
            begin,
            self._line("enable health {}", name),
            self._line("enable server {}", name),
            self._line("set server {} health down", name),
            self._line(f"set server {{}} weight {weights[name]}", name),
        ]

    def _line(self, command: str, name: str) -> str:
        return command.format(f"{self.service.name}/{name}")

    def _require(self, names: set[str], rows: dict[str, Row], said: Sequence[str]) -> None:
        missing = sorted(name for name in names if name not in rows or rows[name].leaves)
        if missing:
            why = said[0] if said else "it does not say why"
            raise BalancerError(
                f"HAProxy refused {len(missing)} endpoints of {self.service.name}, {missing[0]} among them: {why}"
            )

    async def _until_healthy(self, waiting: set[str]) -> None:
        """One check passed is enough for a new server; an ill one must not hold up the others for long."""
        until = self._clock.monotonic_s() + _FIRST_CHECK_S_MAX
        while waiting and self._clock.monotonic_s() < until:
            rows = _servers(await self._count())
            passed = {name for name in waiting if name in rows and rows[name].check_health > 0}
            await self._api.change([self._line("set server {} health up", name) for name in passed])
            waiting -= passed
            if waiting:
                await self._clock.sleep(_POLL_S * (1 + len(rows) // 200))  # reading many rows is work for both sides

    def _incomplete(self, rows: Sequence[Row]) -> bool:
        found = _servers(rows)
        return any(server_name(e) not in found or found[server_name(e)].leaves for e in self.wanted or ())

    async def _bury(self, rows: Sequence[Row]) -> None:
        """Delete what has left and is idle; the others are tried again with the next sample or change."""
        idle = [name for name, row in _servers(rows).items() if row.leaves and not row.in_flight]
        if idle:
            await self._api.change([self._line("del server {}", name) for name in idle])

    async def count(self) -> None:
        """Take note of the figures so far, because HAProxy is about to begin new ones (a reload)."""
        await self._count()

    async def _count(self) -> list[Row]:
        """Add to each zone what its servers did since they were last looked at."""
        async with self._counting:
            rows = await self._api.statistics(self.service.name)
            self._add_up(rows)
            return rows

    def _add_up(self, rows: Sequence[Row]) -> None:
        servers = _servers(rows)
        for name, row in servers.items():
            zone = self._zones.setdefault(endpoint_of(name, 0).zone, _Counts())
            _add(zone, self._seen.setdefault(name, _Counts()), _Counts(row.requests, row.failed))
        self._seen = {name: counts for name, counts in self._seen.items() if name in servers}
        front = _proxy(rows, FRONTEND)
        _add(self._total, self._arrived, _Counts(front.requests, front.answered_5xx))

    def _sampled(self, rows: Sequence[Row], now_ms: int) -> TrafficSample:
        now_s, since_s = self._clock.monotonic_s(), self._sampled_s
        zones, self._zones = self._zones, {}
        total, self._total = self._total, _Counts()
        self._sampled_s = now_s
        per = 1 / max(now_s - since_s, 0.001) if since_s is not None else 0.0
        servers = [(endpoint_of(name, 0).zone, row) for name, row in _servers(rows).items()]
        back = _proxy(rows, BACKEND)
        return TrafficSample(
            at_ms=now_ms,
            requests_per_s=total.requests * per,
            failed_per_s=total.failed * per,
            queued=back.queued,
            in_flight=sum(row.in_flight for _, row in servers),
            p99_ms=self._latency.p99_ms(since_s) if self._latency and since_s is not None else None,
            zones=tuple(
                _zone(zone, zones.get(zone, _Counts()), [row for name, row in servers if name == zone], per)
                for zone in sorted({name for name, _ in servers} | zones.keys())
            ),
        )


def _zone(name: str, counts: _Counts, rows: Sequence[Row], per: float) -> ZoneTraffic:
    return ZoneTraffic(
        zone=name,
        requests_per_s=counts.requests * per,
        failed_per_s=counts.failed * per,
        in_flight=sum(row.in_flight for row in rows),
        healthy=sum(row.passes and row.weight > 0 for row in rows),
        queued=sum(row.queued for row in rows),
    )


def _servers(rows: Sequence[Row]) -> dict[str, Row]:
    return {row.server: row for row in rows if row.server}


def _proxy(rows: Sequence[Row], kind: int) -> Row:
    return next(row for row in rows if row.kind == kind)


def _add(to: _Counts, seen: _Counts, now: _Counts) -> None:
    """What counters counted since they were seen; ones that began anew count from zero."""
    to.requests += now.requests - seen.requests if now.requests >= seen.requests else now.requests
    to.failed += now.failed - seen.failed if now.failed >= seen.failed else now.failed
    seen.requests, seen.failed = now.requests, now.failed
