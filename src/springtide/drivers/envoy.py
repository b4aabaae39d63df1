"""The balancer port on Envoy: endpoints through its file-based discovery (EDS), figures through its admin.

Weights. One locality for each zone. Envoy scales a locality's weight by its share of healthy hosts; with an
overprovisioning factor of 100%, what an ill endpoint leaves is spread over all others by weight. A drained
endpoint stays in its locality, so that its open requests finish and its counters go on; Envoy leaves it out
of that share.

Figures. Envoy's counters of an endpoint vanish with it, so they are read once more before one is removed.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from springtide.drivers.balanced_service import check_endpoints
from springtide.drivers.balancer_process import replace_file
from springtide.drivers.http_get import http_get
from springtide.errors import BalancerError
from springtide.model import COUNTER, Endpoint, TrafficSample, ZoneTraffic
from springtide.ports import Clock

ENDPOINTS_MAX = 10_000
"""Of the whole list: keeps every sum of weights inside Envoy's 32 bits."""

_TAKEN_S_MAX = 5.0
_FIRST_CHECK_S_MAX = 1.0
_POLL_S = 0.01
_ADMIN_S_MAX = 3.0
_FIGURES = (
    "cluster.{}.version_text",
    "cluster.{}.update_rejected",
    "cluster.{}.upstream_rq_active",
    "cluster.{}.upstream_rq_pending_active",
    "http.{}.downstream_rq_total",
    "http.{}.downstream_rq_5xx",
    "http.{}.downstream_rq_time",
)
_P99 = re.compile(r"P99\(([0-9.e+]+),")

Address = tuple[str, int]


class _SocketAddress(msgspec.Struct, frozen=True):
    address: str = ""
    port_value: int = 0


class _Address(msgspec.Struct, frozen=True):
    socket_address: _SocketAddress = _SocketAddress()


class _Stat(msgspec.Struct, frozen=True):
    """Envoy writes its 64-bit figures as text and leaves zeros out."""

    name: str
    value: str = "0"


class _Locality(msgspec.Struct, frozen=True):
    zone: str = ""


class _Health(msgspec.Struct, frozen=True):
    eds_health_status: str = "UNKNOWN"
    failed_active_health_check: bool = False
    failed_outlier_check: bool = False


class _Host(msgspec.Struct, frozen=True):
    """One endpoint on the `/clusters` page; its `hostname` is the replica's id."""

    address: _Address
    stats: tuple[_Stat, ...] = ()
    health_status: _Health = _Health()
    hostname: str = ""
    weight: int = 1
    locality: _Locality = _Locality()

    @property
    def key(self) -> Address:
        return self.address.socket_address.address, self.address.socket_address.port_value

    @property
    def passes(self) -> bool:
        return not (self.health_status.failed_active_health_check or self.health_status.failed_outlier_check)

    @property
    def takes_traffic(self) -> bool:
        return self.passes and self.health_status.eds_health_status != "DRAINING"

    def figure(self, name: str) -> int:
        return next((int(stat.value) for stat in self.stats if stat.name == name), 0)


class _Cluster(msgspec.Struct, frozen=True):
    name: str
    host_statuses: tuple[_Host, ...] = ()


class _Clusters(msgspec.Struct, frozen=True):
    cluster_statuses: tuple[_Cluster, ...] = ()


_CLUSTERS = msgspec.json.Decoder(_Clusters)


class _Counts(msgspec.Struct):
    """Requests and failures of an endpoint so far, or of a zone since the last sample."""

    requests: int = 0
    failed: int = 0


class EnvoyBalancer:
    """`ports.Balancer` for one service of a running Envoy: the cluster and the listener of its name.

    `admin` is Envoy's admin address, `discovery` the file that the cluster watches. Figures count from the first
    sample on. A request that is tried on two replicas counts once in `requests_per_s` and once in the zone of
    each; a failed try counts in `failed_per_s` of its zone, and in the service's only when the client got an error.
    """

    def __init__(self, admin: Address, discovery: Path, clock: Clock, service: str = COUNTER) -> None:
        """Nothing is asked of Envoy yet."""
        self.admin = admin
        """Another one after Envoy was started again."""
        self.service = service
        self._discovery = discovery
        self._clock = clock
        self._clusters_page = f"/clusters?format=json&filter={quote(f'^{service}$', safe='')}"
        wanted = "|".join(f"^{figure.format(service)}$".replace(".", r"\.") for figure in _FIGURES)
        self._stats_page = f"/stats?filter={quote(wanted, safe='')}"
        self._write_lock = asyncio.Lock()
        # Of two looks at the same time, the older answer must not come last: counters would seem to begin anew.
        self._counting = asyncio.Lock()
        self._writes = 0
        self._owners: dict[Address, Endpoint] = {}
        self._seen: dict[tuple[Address, str], _Counts] = {}
        self._zones: dict[str, _Counts] = {}
        self._arrived = _Counts()
        self._sampled_s: float | None = None

    async def set_endpoints(self, endpoints: Sequence[Endpoint]) -> None:
        """Send traffic to exactly these from now on, by weight.

        Returns when Envoy has taken the list and finds the new endpoints healthy; for that it waits at most
        one second. Raises BalancerError when the list cannot be used or Envoy does not answer.
        """
        check_endpoints(endpoints, ENDPOINTS_MAX)
        async with self._write_lock:
            before = [self._endpoint(host) for host in await self._count()]
            known = {_address(endpoint) for endpoint in before}
            serving = {_address(endpoint) for endpoint in endpoints if endpoint.weight}
            fresh = [endpoint for endpoint in endpoints if _address(endpoint) in serving - known]
            if any(endpoint.weight and _address(endpoint) not in serving for endpoint in before):
                await self._bridge(before, fresh)
                fresh = []
            await self._apply(endpoints)
            self._owners = {_address(endpoint): endpoint for endpoint in endpoints}
            self._seen = {key: counts for key, counts in self._seen.items() if key[0] in self._owners}
            await self._until_healthy(fresh)

    async def sample(self, now_ms: int) -> TrafficSample:
        """The figures since the last sample; the first one sets the mark and reports no traffic."""
        hosts, stats = await asyncio.gather(self._count(), self._stats())
        now_s = self._clock.monotonic_s()
        arrived = _Counts(_whole(stats, "downstream_rq_total"), _whole(stats, "downstream_rq_5xx"))
        counted, self._zones = self._zones, {}
        before, self._arrived = self._arrived, arrived
        elapsed_s = max(now_s - self._sampled_s, 0.001) if self._sampled_s is not None else None
        self._sampled_s = now_s

        def per_s(count: int) -> float:
            return count / elapsed_s if elapsed_s else 0.0

        return TrafficSample(
            at_ms=now_ms,
            requests_per_s=per_s(_grown(before.requests, arrived.requests)),
            zones=self._by_zone(hosts, counted, per_s),
            failed_per_s=per_s(_grown(before.failed, arrived.failed)),
            queued=_whole(stats, "upstream_rq_pending_active"),
            in_flight=sum(host.figure("rq_active") for host in hosts),
            p99_ms=float(found[1]) if (found := _P99.search(stats.get("downstream_rq_time", ""))) else None,
        )

    async def healthy(self) -> frozenset[str]:
        """The ids of the replicas that pass Envoy's check and are not ejected, the drained ones included."""
        return frozenset(self._owner(host) for host in await self._hosts() if host.passes)

    def _endpoint(self, host: _Host) -> Endpoint:
        drained = host.health_status.eds_health_status == "DRAINING"
        return Endpoint(self._owner(host), self._zone(host), *host.key, weight=0 if drained else host.weight)

    def _owner(self, host: _Host) -> str:
        """Envoy keeps the name and zone of an address's first owner; after our own restart that is all there is."""
        owner = self._owners.get(host.key)
        return owner.replica_id if owner else host.hostname

    def _zone(self, host: _Host) -> str:
        owner = self._owners.get(host.key)
        return owner.zone if owner else host.locality.zone

    def _by_zone(
        self, hosts: Sequence[_Host], counted: dict[str, _Counts], per_s: Callable[[int], float]
    ) -> tuple[ZoneTraffic, ...]:
        zones = [(self._zone(host), host) for host in hosts]
        names = sorted({zone for zone, _ in zones} | counted.keys())
        return tuple(
            ZoneTraffic(
                zone=name,
                requests_per_s=per_s(counted[name].requests if name in counted else 0),
                failed_per_s=per_s(counted[name].failed if name in counted else 0),
                in_flight=sum(host.figure("rq_active") for zone, host in zones if zone == name),
                healthy=sum(host.takes_traffic for zone, host in zones if zone == name),
            )
            for name in names
        )

    async def _count(self) -> tuple[_Host, ...]:
        """Add to each zone what its endpoints did since they were last looked at."""
        async with self._counting:
            hosts = await self._hosts()
            self._add_up(hosts)
            return hosts

    def _add_up(self, hosts: Sequence[_Host]) -> None:
        for host in hosts:
            now = _Counts(host.figure("rq_total"), host.figure("rq_error"))
            # An address that moves to another zone is a new host to Envoy, which counts from zero.
            key = host.key, host.locality.zone
            seen = self._seen.get(key, _Counts())
            zone = self._zones.setdefault(self._zone(host), _Counts())
            zone.requests += _grown(seen.requests, now.requests)
            zone.failed += _grown(seen.failed, now.failed)
            self._seen[key] = now

    async def _bridge(self, before: Sequence[Endpoint], fresh: Sequence[Endpoint]) -> None:
        """The first check of a new host takes a moment: those that leave must not leave before it."""
        if fresh:
            await self._apply([*before, *fresh])
            await self._until_healthy(fresh)
            await self._count()

    async def _apply(self, endpoints: Sequence[Endpoint]) -> None:
        self._writes += 1
        version = f"{self._clock.now_ms()}-{self._writes}"
        rejected = int((await self._stats()).get("update_rejected", "0"))
        self._write(assignment(self.service, endpoints, version))
        await self._until_taken(version, rejected)

    def _write(self, text: bytes) -> None:
        try:
            replace_file(self._discovery, text)
        except OSError as error:
            raise BalancerError(
                f"the endpoints cannot be written to {self._discovery}: {error.strerror}; "
                "the balancer goes on with the ones before; make room or give the right to write"
            ) from error

    async def _until_taken(self, version: str, rejected: int) -> None:
        until = self._clock.monotonic_s() + _TAKEN_S_MAX
        while self._clock.monotonic_s() < until:
            stats = await self._stats()
            if stats.get("version_text") == f'"{version}"':
                return
            if int(stats.get("update_rejected", "0")) > rejected:
                raise BalancerError(
                    "Envoy refused the list of endpoints and goes on with the one before; its log says why"
                )
            await self._clock.sleep(_POLL_S)
        raise BalancerError(f"Envoy did not take the list of endpoints within {_TAKEN_S_MAX:.0f} s; see its log")

    async def _until_healthy(self, fresh: Sequence[Endpoint]) -> None:
        """A new host gets nothing before its first check; an ill one must not hold up the others for long."""
        until = self._clock.monotonic_s() + _FIRST_CHECK_S_MAX
        waiting = {_address(endpoint) for endpoint in fresh}
        while waiting and self._clock.monotonic_s() < until:
            hosts = await self._hosts()
            waiting -= {host.key for host in hosts if host.passes}
            if waiting:
                await self._clock.sleep(_POLL_S * (1 + len(hosts) // 100))  # the page of many is work for both sides

    async def _hosts(self) -> tuple[_Host, ...]:
        try:
            clusters = _CLUSTERS.decode(await self._page(self._clusters_page)).cluster_statuses
        except msgspec.DecodeError as error:
            raise BalancerError(f"Envoy's list of endpoints cannot be read: {error}; is it Envoy 1.40?") from error
        return next((cluster.host_statuses for cluster in clusters if cluster.name == self.service), ())

    async def _stats(self) -> dict[str, str]:
        lines = (await self._page(self._stats_page)).decode().splitlines()
        pairs = (line.partition(": ") for line in lines)
        return {name.rpartition(".")[2]: value for name, _, value in pairs}

    async def _page(self, target: str) -> bytes:
        host, port = self.admin
        try:
            status, body = await http_get(self._clock, host, port, target, _ADMIN_S_MAX)
        except (OSError, TimeoutError) as error:
            raise BalancerError(
                f"Envoy's admin http://{host}:{port} does not answer ({error!r}); does it run? see its log"
            ) from error
        if status != 200:  # noqa: PLR2004 - the status that HTTP names OK
            raise BalancerError(f"Envoy's admin page http://{host}:{port}{target} answers {status}; is it Envoy 1.40?")
        return body


def _address(endpoint: Endpoint) -> Address:
    return endpoint.host, endpoint.port


def _grown(before: int, now: int) -> int:
    """What a counter counted since; one that began anew counts from zero."""
    return now - before if now >= before else now


def _whole(stats: dict[str, str], name: str) -> int:
    return int(stats.get(name, "0"))


def assignment(service: str, endpoints: Sequence[Endpoint], version: str) -> bytes:
    """The discovery file: one locality for each zone."""
    ordered = sorted(endpoints, key=lambda endpoint: endpoint.zone)
    resource = {
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": service,
        "policy": {"overprovisioning_factor": 100},
        "endpoints": [
            _locality(zone, list(members)) for zone, members in groupby(ordered, lambda endpoint: endpoint.zone)
        ],
    }
    return msgspec.json.encode({"version_info": version, "resources": [resource]})


def _locality(zone: str, members: Sequence[Endpoint]) -> dict[str, Any]:
    locality: dict[str, Any] = {
        "locality": {"zone": zone},
        "lb_endpoints": [_lb_endpoint(member) for member in members],
    }
    weight = sum(member.weight for member in members)
    if weight:  # without a weight, a locality gets nothing
        locality["load_balancing_weight"] = weight
    return locality


def _lb_endpoint(endpoint: Endpoint) -> dict[str, Any]:
    address = {"address": endpoint.host, "port_value": endpoint.port}
    return {
        "endpoint": {"hostname": endpoint.replica_id, "address": {"socket_address": address}},
        "load_balancing_weight": max(1, endpoint.weight),
        "health_status": "HEALTHY" if endpoint.weight else "DRAINING",
    }
