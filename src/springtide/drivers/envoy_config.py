"""What Envoy is told: its bootstrap, and a listener and a cluster for each service."""

from pathlib import Path
from typing import Any

import msgspec

from springtide.drivers.balanced_service import BalancedService

IN_FLIGHT_MAX = 100_000
"""Connections and repeats of a service: Envoy's own limit of 3 repeats turns a killed replica into errors."""

CONNECTIONS_MAX = 20_000
"""Open client connections; beyond it, new ones are refused. Each needs two file descriptors at most."""

_EXTENSIONS = "type.googleapis.com/envoy.extensions"
_REPEATS = 12


def bootstrap(host: str, listeners: Path, clusters: Path) -> dict[str, Any]:
    """The process: its admin page on a port that it chooses, and the files that it watches."""
    limit = {"max_active_downstream_connections": CONNECTIONS_MAX}
    return {
        "node": {"id": "springtide", "cluster": "springtide"},
        "admin": {"address": _socket(host, 0)},
        "stats_flush_interval": "1s",  # the interval of its percentiles
        "overload_manager": {
            "resource_monitors": [
                _typed(
                    "envoy.resource_monitors.global_downstream_max_connections",
                    "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    limit,
                )
            ]
        },
        "dynamic_resources": {"lds_config": _watched(listeners), "cds_config": _watched(clusters)},
    }


def discovery(kind: str, resources: list[dict[str, Any]], version: str) -> bytes:
    """A file of listeners (`listener.v3.Listener`) or clusters (`cluster.v3.Cluster`)."""
    typed = [{"@type": f"type.googleapis.com/envoy.config.{kind}", **resource} for resource in resources]
    return msgspec.json.encode({"version_info": version, "resources": typed})


def listener(service: BalancedService, host: str, port: int) -> dict[str, Any]:
    """Where clients of a service send to (0: Envoy chooses the port)."""
    manager = _typed(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        _connection_manager(service),
    )
    return {
        "name": service.name,
        "address": _socket(host, port),
        # With it, another program could listen on the same port and take a share of our clients.
        "enable_reuse_port": False,
        "tcp_backlog_size": 4096,
        "per_connection_buffer_limit_bytes": 65_536,
        "filter_chains": [{"filters": [manager]}],
    }


def cluster(service: BalancedService, endpoints: Path) -> dict[str, Any]:
    """The replicas of a service, from a file of their own."""
    limits = {
        "max_connections": IN_FLIGHT_MAX,
        "max_pending_requests": service.queue_max,
        "max_requests": IN_FLIGHT_MAX,
        "max_retries": IN_FLIGHT_MAX,
    }
    one = {"priority": "DEFAULT", "max_connections": service.in_flight_max}
    return {
        "name": service.name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": _watched(endpoints)},
        "connect_timeout": "0.5s",  # a lost SYN is sent again after a second; another replica is the faster answer
        "lb_policy": "ROUND_ROBIN",
        **_slow_start(service),
        "common_lb_config": {
            "locality_weighted_lb_config": {},
            "healthy_panic_threshold": {"value": 0},
            "close_connections_on_host_set_change": False,
            "update_merge_window": "0s",  # else a new weight or a drain takes effect up to a second later
        },
        "ignore_health_on_host_removal": True,
        "circuit_breakers": {
            "thresholds": [{"priority": "DEFAULT", **limits}],
            "per_host_thresholds": [one],
        },
        "health_checks": [_health_check(service)],
        "outlier_detection": _outlier_detection(service),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions",
                "common_http_protocol_options": {"idle_timeout": "30s"},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }


def _watched(path: Path) -> dict[str, Any]:
    """A file alone in its folder: Envoy reads it again whenever something is moved into that."""
    source = {"path": str(path), "watched_directory": {"path": str(path.parent)}}
    return {"resource_api_version": "V3", "path_config_source": source}


def _socket(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _typed(name: str, kind: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": f"{_EXTENSIONS}.{kind}", **config}}


def _s(milliseconds: int) -> str:
    return f"{milliseconds / 1000:g}s"


def _connection_manager(service: BalancedService) -> dict[str, Any]:
    """HTTP/1.1 and the router, and nothing that costs time on each request."""
    router = _typed("envoy.filters.http.router", "filters.http.router.v3.Router", {"suppress_envoy_headers": True})
    route = {"match": {"prefix": "/"}, "route": _route(service)}
    return {
        "stat_prefix": service.name,
        "codec_type": "HTTP1",
        "server_header_transformation": "PASS_THROUGH",
        "generate_request_id": False,
        "skip_xff_append": True,
        "request_headers_timeout": "10s",
        "request_timeout": "10s",
        "stream_idle_timeout": "0s",  # the two above and the route's timeout bound every phase already
        "common_http_protocol_options": {"idle_timeout": "75s"},
        "local_reply_config": _own_answers(),
        "route_config": {"name": "all", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [router],
    }


def _own_answers() -> dict[str, Any]:
    """What Envoy says by itself has the form of all our errors (RFC 9457), and 503 says when to come back."""
    unavailable = {"comparison": {"op": "EQ", "value": {"default_value": 503, "runtime_key": "unavailable"}}}
    problem = {"type": "about:blank", "title": "%RESPONSE_CODE_DETAILS%", "status": "%RESPONSE_CODE%"}
    return {
        "body_format": {"json_format": problem, "content_type": "application/problem+json"},
        "mappers": [
            {
                "filter": {"status_code_filter": unavailable},
                "headers_to_add": [{"header": {"key": "retry-after", "value": "1"}}],
            }
        ],
    }


def _route(service: BalancedService) -> dict[str, Any]:
    """Where requests may be repeated, every one may, POST included."""
    previous = _typed(
        "envoy.retry_host_predicates.previous_hosts",
        "retry.host.previous_hosts.v3.PreviousHostsPredicate",
        {},
    )
    repeat: dict[str, Any] = {
        "retry_on": "connect-failure,refused-stream,reset-before-request",
        "num_retries": _REPEATS,
        "retry_host_predicate": [previous],
        "host_selection_retry_max_attempts": 5,
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.05s"},
    }
    if service.idempotent:
        repeat |= {"retry_on": "connect-failure,refused-stream,reset", "per_try_timeout": _s(service.try_ms)}
    return {"cluster": service.name, "timeout": _s(service.request_ms), "retry_policy": repeat}


def _slow_start(service: BalancedService) -> dict[str, Any]:
    if not service.slow_start_ms:
        return {}
    window = {"slow_start_window": _s(service.slow_start_ms), "min_weight_percent": {"value": 10}}
    return {"round_robin_lb_config": {"slow_start_config": window}}


def _health_check(service: BalancedService) -> dict[str, Any]:
    # Envoy does not ask faster after a first failure: half the time keeps a frozen replica's end within 3 s.
    every = _s(max(1, service.check_every_ms // 2))
    return {
        "timeout": _s(service.health.timeout_ms),
        "interval": every,
        "no_traffic_interval": every,  # else a cluster without traffic is checked once a minute
        "no_traffic_healthy_interval": every,
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "http_health_check": {"path": service.health.path, "host": service.name},
    }


def _outlier_detection(service: BalancedService) -> dict[str, Any]:
    """Eject a replica that cannot be reached, after a few tries, and where errors say so, one that answers them."""
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 2,
        "enforcing_consecutive_local_origin_failure": 100,
        "consecutive_5xx": 5,
        "enforcing_consecutive_5xx": 100 if service.eject_on_errors else 0,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "enforcing_local_origin_success_rate": 0,
        "successful_active_health_check_uneject_host": False,
        "interval": "0.25s",
        "base_ejection_time": "1.5s",
        "max_ejection_time": "5s",
        "max_ejection_percent": 100,
    }
