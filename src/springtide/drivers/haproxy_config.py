"""What HAProxy is told: the configuration of the process and of each service, and the names of servers.

A server's name says everything about it (`REPLICA:ZONE:ADDRESS:PORT`), so that whoever finds a running HAProxy knows
what it has. Weights are from 0 to 256 there: larger ones are scaled down, so that the smallest share is 1/256 of the
largest; smaller ones are scaled up by a whole number, which keeps the shares exact.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from springtide.drivers.balanced_service import BalancedService
from springtide.drivers.haproxy_api import frontend_name
from springtide.model import Endpoint

ENDPOINTS_MAX = 4_000
"""Of one service: HAProxy's round robin serves 4,095 (configuration manual 2.6, `balance`)."""

SLOW_LOG_PER_S = 200
LOG_ONE_OF = 16
"""Up to that rate the time of every answer is logged, for the percentiles; above it one of these."""

_ENGINE_WEIGHT_MAX = 256
_RETRIES = 12
_IDLE_MS = 5_000
_ANSWERS = {
    400: "not a request",
    408: "the request took too long to arrive",
    502: "the replica broke off",
    503: "no replica can take it now",
    504: "the replica took too long",
}


class Limits(msgspec.Struct, frozen=True):
    """Of the process: client connections, open files beside theirs, threads, and how long an old one may finish."""

    connections: int
    spare_files: int
    threads: int = 1
    finish_s: int = 60


def global_text(folder: Path, limits: Limits) -> str:
    """The part that all services share."""
    return "\n".join(
        [
            "global",
            f"  maxconn {limits.connections}",
            # Its reckoning of open files has no room for the checks of servers that come later; pipes, which would be
            # for splicing, are never opened, but make room.
            f"  maxpipes {limits.spare_files // 2}",
            f"  nbthread {limits.threads}",
            "  noreuseport",  # else another program of ours could take a share of a port
            f"  hard-stop-after {limits.finish_s}s",
            f"  stats socket {folder / 'api.sock'} mode 600 level admin expose-fd listeners",
            "  stats timeout 10s",
            f"  server-state-file {folder / 'state'}",
            "defaults",
            "  mode http",
            "  timeout http-request 10s",
            "  timeout http-keep-alive 75s",
            "  timeout client 75s",
            # A lost SYN is sent again after a second; another replica is the faster answer.
            "  timeout connect 500ms",
            "  load-server-state-from-file global",
            "  balance roundrobin",
            f"  retries {_RETRIES}",
            "  option redispatch 1",
            *(_own_answer(status, title) for status, title in _ANSWERS.items()),
            "",
        ]
    )


def service_text(service: BalancedService, port: int, host: str, log: Path, endpoints: Sequence[Endpoint]) -> str:
    """A service: where it listens, what it does with a request, and its replicas."""
    full = f"{{ queue({service.name}) ge {service.queue_max} }}"
    sampled = f"{{ fe_req_rate({frontend_name(service.name)}) gt {SLOW_LOG_PER_S} }} !{{ rand({LOG_ONE_OF}) eq 0 }}"
    lines = [
        f"frontend {frontend_name(service.name)}",
        f"  bind {host}:{port}",
        "  option idle-close-on-response",  # a reload must not close a connection that a request is on its way to
        f"  log {log} format raw local0 info",
        '  log-format "%Ta"',
        f"  http-request set-log-level silent if {sampled}",
        f"  default_backend {service.name}",
        f"backend {service.name}",
        f"  http-request return {_problem(503, 'too many requests wait already')} if {full}",
        f"  timeout queue {service.queue_ms}ms",
        f"  timeout check {service.health.timeout_ms}ms",
        f"  timeout server {service.try_ms if service.idempotent else service.request_ms}ms",
        *_repeats(service),
        "  option httpchk",
        f"  http-check send meth GET uri {service.health.path} ver HTTP/1.1 hdr host {service.name}",
        "  http-check expect status 200",
    ]
    weights = engine_weights(endpoints)
    options = server_options(service, slow_start=True)
    lines += [f"  server {server_name(e)} {_place(e)} weight {weights[server_name(e)]} {options}" for e in endpoints]
    return "\n".join(lines) + "\n"


def server_options(service: BalancedService, *, slow_start: bool) -> str:
    """How each server of a service is checked, ejected and limited.

    A new server has to pass one check (`HaproxyBalancer` says it is up then), an ejected one six, in 0.75 s at least.
    Servers that come by the Runtime API keep no idle connections unless they are told to (seen in 2.6: half the
    throughput).
    """
    observed = "layer7 error-limit 5" if service.eject_on_errors else "layer4 error-limit 2"
    slow = f" slowstart {service.slow_start_ms}ms" if slow_start and service.slow_start_ms else ""
    return (
        f"check inter {service.check_every_ms}ms fastinter 100ms downinter 250ms fall 2 rise 6"
        f" observe {observed} on-error mark-down maxconn {service.in_flight_max}"
        f" pool-max-conn {service.in_flight_max} pool-purge-delay {_IDLE_MS}ms{slow}"
    )


def add_command(service: BalancedService, endpoint: Endpoint, *, slow_start: bool) -> str:
    """The command that makes a server, which gets nothing yet."""
    options = server_options(service, slow_start=slow_start)
    return f"add server {service.name}/{server_name(endpoint)} {_place(endpoint)} weight 0 {options}"


def server_name(endpoint: Endpoint) -> str:
    """The name of an endpoint's server."""
    return f"{endpoint.replica_id}:{endpoint.zone}:{endpoint.host}:{endpoint.port}"


def endpoint_of(name: str, weight: int) -> Endpoint:
    """The endpoint with this server's name; one that others have named is its own replica, in the zone ''."""
    replica_id, _, rest = name.partition(":")
    zone, _, rest = rest.partition(":")
    host, _, port = rest.rpartition(":")
    return Endpoint(replica_id, zone, host, int(port) if port.isdigit() else 0, weight)


def engine_weights(endpoints: Sequence[Endpoint]) -> dict[str, int]:
    """HAProxy's weights, by server name."""
    largest = max((e.weight for e in endpoints), default=0) or 1
    if largest <= _ENGINE_WEIGHT_MAX:
        factor = _ENGINE_WEIGHT_MAX // largest
        return {server_name(e): e.weight * factor for e in endpoints}
    return {
        server_name(e): max(1, round(e.weight * _ENGINE_WEIGHT_MAX / largest)) if e.weight else 0 for e in endpoints
    }


def _place(endpoint: Endpoint) -> str:
    return f"[{endpoint.host}]:{endpoint.port}" if ":" in endpoint.host else f"{endpoint.host}:{endpoint.port}"


def _repeats(service: BalancedService) -> list[str]:
    if service.idempotent:
        return ["  http-reuse always", "  retry-on conn-failure empty-response response-timeout"]
    return ["  http-reuse safe", "  retry-on conn-failure"]


def _own_answer(status: int, title: str) -> str:
    return f"  http-error {_problem(status, title)}"


def _problem(status: int, title: str) -> str:
    """An answer in the form of all our errors (RFC 9457); 503 says when to come back."""
    body = msgspec.json.encode({"type": "about:blank", "title": title, "status": status}).decode()
    again = " hdr retry-after 1" if status == 503 else ""  # noqa: PLR2004 - the status that HTTP names Unavailable
    return f"status {status} content-type application/problem+json string '{body}'{again}"
