"""The service of `echo_replica.py`, as processes run it."""

import sys
from pathlib import Path

from springtide.model import HealthCheck, ServiceSpec

ECHO = Path(__file__).with_name("echo_replica.py")


def echo(
    name: str,
    *options: str,
    revision: str = "",
    announce: bool = True,
    start_ms_max: int = 15_000,
    stop_grace_ms: int = 1_000,
) -> ServiceSpec:
    """A service of echo replicas; `options` as in `echo_replica.py`."""
    return ServiceSpec(
        name=name,
        revision=revision,
        command=(sys.executable, str(ECHO), "{announce}" if announce else "{port}", *options),
        health=HealthCheck("/readyz"),
        drain_signal="SIGUSR1",
        start_ms_max=start_ms_max,
        stop_grace_ms=stop_grace_ms,
    )
