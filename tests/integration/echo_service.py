"""The service of `echo_replica.py`, as processes and as containers run it."""

import sys
from pathlib import Path

import msgspec

from springtide.model import ServiceSpec

ECHO = Path(__file__).with_name("echo_replica.py")


def echo(
    name: str,
    *options: str,
    revision: str = "",
    announce: bool = True,
    start_ms_max: int = 15_000,
    stop_grace_ms: int = 1_000,
) -> ServiceSpec:
    """A service of echo processes; `options` as in `echo_replica.py`."""
    return ServiceSpec(
        name=name,
        revision=revision,
        command=(sys.executable, str(ECHO), "{announce}" if announce else "{port}", *options),
        drain_signal="SIGUSR1",
        start_ms_max=start_ms_max,
        stop_grace_ms=stop_grace_ms,
    )


def in_container(service: ServiceSpec, image: str) -> ServiceSpec:
    """The same service, run from an image whose /app has `echo_replica.py`."""
    options = service.command[3:]
    return msgspec.structs.replace(
        service, image=image, command=("python3", "/app/echo_replica.py", "{port}", *options)
    )
