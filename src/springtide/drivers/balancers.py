"""Which load balancer runs: one kind of engine for both, and the choice between them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from springtide.drivers.balanced_service import BalancedService
from springtide.drivers.balancer_process import BalancerProcess, runs
from springtide.drivers.embedded_envoy import start_envoy_engine
from springtide.drivers.embedded_haproxy import HOST, haproxy_binary, start_haproxy
from springtide.errors import EngineError
from springtide.ports import Balancer, Clock

BalancerKind = Literal["auto", "haproxy", "envoy"]


class BalancerEngine(Protocol):
    """One load balancer process in front of several services. Its methods raise EngineError."""

    @property
    def name(self) -> str:
        """`haproxy` or `envoy`."""

    @property
    def host(self) -> str:
        """The address that all services listen on."""

    @property
    def process(self) -> BalancerProcess | None:
        """The engine's process; its `child` is None when it was found running."""

    @property
    def services(self) -> frozenset[str]:
        """The names of what is served."""

    def balancer(self, service: str) -> Balancer:
        """What says where a service's requests go; the same object while the service is served."""

    def port(self, service: str) -> int:
        """Where clients of a service send to; it stays over restarts."""

    def url(self, service: str) -> str:
        """The same, as a URL."""

    async def ensure_service(self, service: BalancedService) -> None:
        """Serve it from now on as it is given, dropping no request; repeating it does nothing.

        One that was served before under the same name keeps its endpoints. On an error, what was served goes on.
        """

    async def remove_service(self, name: str) -> None:
        """Serve it no longer; open requests finish. One that is not served is ignored."""

    async def restart(self) -> None:
        """Start the engine again after it died, with the same ports and the endpoints it had."""

    async def stop(self) -> None:
        """End it; requests that are open are cut."""

    def detach(self) -> None:
        """Let go of it: one that was started to survive goes on without us."""


def choose(kind: BalancerKind) -> Literal["haproxy", "envoy"]:
    """What `auto` means on this machine: HAProxy where a usable version is installed."""
    if kind != "auto":
        return kind
    try:
        haproxy_binary()
    except EngineError:
        return "envoy"
    return "haproxy"


async def start_balancer(
    kind: BalancerKind,
    folder: Path,
    clock: Clock,
    services: Sequence[BalancedService] = (),
    *,
    host: str = HOST,
    survive: bool = False,
) -> BalancerEngine:
    """Start an engine of this kind, or take over the one that runs in `folder`.

    With `survive` it goes on when this process ends. One that died there, and was not stopped, is started again with
    the services, ports and endpoints it had. `auto` takes Envoy when HAProxy is not installed or does not
    start, or when it is what runs already. Raises EngineError.
    """
    refused = ""
    if choose(kind) == "haproxy" and not (kind == "auto" and runs(folder / "envoy")):
        try:
            return await start_haproxy(folder / "haproxy", clock, services, host, survive=survive)
        except EngineError as error:
            if kind != "auto":
                raise
            refused = f"{error}; "
    try:
        return await start_envoy_engine(folder / "envoy", clock, services, host, survive=survive)
    except EngineError as error:
        raise EngineError(f"{refused}{error}") from error
