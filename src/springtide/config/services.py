"""`[[services]]`: what a replica of each is, and how many there may be, as the fleet wants to be told."""

import hashlib
import shlex
import signal
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from springtide.config.fields import Count, Milliseconds, Port, Positive, Seconds, to_ms
from springtide.model import COUNTER, HealthCheck, ServiceSpec, ServiceWish, Signal, SignalKind, require_identifier

REVISION_DIGITS = 12
HERE = "{here}"
"""In a command, the folder of the configuration file."""


class HealthSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[services.health]`: how a replica is found ready."""

    path: str = "/readyz"
    interval_ms: Milliseconds = 1000
    timeout_ms: Milliseconds = 1000

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        if not self.path.startswith("/"):
            msg = f"path {self.path!r} must begin with /"
            raise ValueError(msg)


class SignalSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[services.signals]]`: a figure that the service is kept at or below, beside requests/s."""

    kind: SignalKind
    target: Positive
    name: str = ""
    url: str = ""
    query: str = ""

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        asks = self.kind is SignalKind.PROMETHEUS
        if asks and not (self.url.startswith(("http://", "https://")) and self.query):
            raise ValueError("a signal of kind prometheus needs url (http://…) and query")
        if not asks and (self.url or self.query):
            msg = f"a signal of kind {self.kind} is measured here: leave url and query out"
            raise ValueError(msg)

    def model(self) -> Signal:
        """The signal as the decisions see it."""
        return Signal(self.name or self.kind, self.kind, self.target, self.url, self.query)


class ServiceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[services]]`: a program or an image that answers HTTP, behind the balancer at `port`.

    `container_port` is where a replica listens; 0 lets the runtime choose one, which the program finds in `PORT`.
    `idempotent` allows the balancer to send a request again when a replica broke off.
    """

    name: str
    port: Port
    requests_per_s: Positive
    image: str = ""
    command: str | tuple[str, ...] = ()
    container_port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    health: HealthSettings = HealthSettings()
    cores: Positive = 1.0
    memory_mb: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    replicas_min: Count = 1
    replicas_max: Count = 100
    signals: Annotated[tuple[SignalSettings, ...], Meta(max_length=10)] = ()
    drain_s: Seconds = 2.0
    stop_grace_s: Seconds = 5.0
    start_s: Annotated[float, Meta(ge=1, le=3600)] = 15.0
    env: dict[str, str] = {}
    secrets: dict[str, str] = {}
    drain_signal: str = ""
    idempotent: bool = False

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        require_identifier("name", self.name)
        for wrong in self._mistakes():
            msg = f"service {self.name}: {wrong}"
            raise ValueError(msg)

    def _mistakes(self) -> list[str]:
        wrong = []
        if self.name == COUNTER:
            wrong.append(f"the name {COUNTER} is the order path's; give another")
        if not self.image and not self.command:
            wrong.append("give image, command, or both")
        if self.replicas_max < self.replicas_min:
            wrong.append("replicas_max must not be below replicas_min")
        if self.drain_signal and self.drain_signal not in signal.Signals.__members__:
            wrong.append(f"drain_signal {self.drain_signal!r} is no signal; give one such as SIGUSR1")
        if both := sorted(self.env.keys() & self.secrets.keys()):
            wrong.append(f"{both[0]} stands in env and in secrets; leave one out")
        names = [one.name or one.kind for one in self.signals]
        if len(set(names)) < len(names):
            wrong.append("two signals have the same name; give each its own name")
        return wrong

    def wish(self, folder: Path) -> ServiceWish:
        """What the fleet is asked for; relative paths of secrets count from `folder`."""
        return ServiceWish(
            spec=with_revision(self._spec(folder)),
            requests_per_s=self.requests_per_s,
            replicas_min=self.replicas_min,
            replicas_max=self.replicas_max,
            port=self.port,
            drain_ms=to_ms(self.drain_s),
            signals=tuple(one.model() for one in self.signals),
            idempotent=self.idempotent,
        )

    def _spec(self, folder: Path) -> ServiceSpec:
        words = tuple(shlex.split(self.command)) if isinstance(self.command, str) else self.command
        return ServiceSpec(
            name=self.name,
            revision="",
            command=tuple(word.replace(HERE, str(folder)) for word in words),
            image=self.image,
            port=self.container_port,
            cores=self.cores,
            memory_mb=self.memory_mb,
            health=HealthCheck(self.health.path, self.health.interval_ms, self.health.timeout_ms),
            env=self.env,
            secrets={variable: str(folder / file) for variable, file in self.secrets.items()},
            drain_signal=self.drain_signal,
            start_ms_max=to_ms(self.start_s),
            stop_grace_ms=to_ms(self.stop_grace_s),
        )


def with_revision(spec: ServiceSpec) -> ServiceSpec:
    """The spec under the name of its content: another spec of the service has another revision."""
    content = msgspec.json.encode(msgspec.structs.replace(spec, revision=""), order="sorted")
    return msgspec.structs.replace(spec, revision=hashlib.sha256(content).hexdigest()[:REVISION_DIGITS])
