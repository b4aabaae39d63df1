"""Scaling signals: each asks for what keeps it at its target."""

import msgspec
import pytest

from springtide.decide.signals import replicas_by_signals
from springtide.model import Signal, SignalKind, SignalSample, Snapshot
from tests.unit.fleets import NOW, POLICY, snapshot


def seen(**values: float) -> Snapshot:
    samples = tuple(SignalSample(name, NOW - 100, value) for name, value in values.items())
    return msgspec.structs.replace(snapshot(), signals=samples)


@pytest.mark.parametrize(
    ("kind", "target", "value", "serving", "asked"),
    [
        (SignalKind.IN_FLIGHT, 10, 200, 10, 20),
        (SignalKind.IN_FLIGHT, 10, 201, 10, 21),
        (SignalKind.IN_FLIGHT, 10, 0, 10, 0),
        (SignalKind.QUEUE, 5, 12, 1, 3),
        (SignalKind.CPU, 0.5, 3.0, 4, 6),
        (SignalKind.PROMETHEUS, 0.1, 0.3, 2, 3),
        # Latency: in proportion, at most double; near its target what serves now; no opinion when easy.
        (SignalKind.P99_MS, 100, 150, 10, 15),
        (SignalKind.P99_MS, 100, 5_000, 10, 20),
        (SignalKind.P99_MS, 100, 60, 10, 10),
        (SignalKind.P99_MS, 100, 49, 10, 0),
    ],
)
def test_each_kind_asks_for_its_target(kind: SignalKind, target: float, value: float, serving: int, asked: int) -> None:
    policy = msgspec.structs.replace(POLICY, signals=(Signal("s", kind, target),))
    found = replicas_by_signals(seen(s=value), policy, serving)
    assert (found.replicas, found.blind) == (asked, False)
    assert ("s is" in found.reason) == (asked > 0)


def test_a_cpu_target_is_a_share_of_the_limit() -> None:
    policy = msgspec.structs.replace(POLICY, replica_cores=0.5, signals=(Signal("cpu", SignalKind.CPU, 0.6),))
    assert replicas_by_signals(seen(cpu=3.0), policy, 8).replicas == 10


def test_the_most_demanding_signal_counts() -> None:
    signals = (Signal("queue", SignalKind.QUEUE, 5), Signal("flight", SignalKind.IN_FLIGHT, 10))
    policy = msgspec.structs.replace(POLICY, signals=signals)
    found = replicas_by_signals(seen(queue=50, flight=30), policy, 3)
    assert found.replicas == 10
    assert found.reason.startswith("queue is 50, target 5 a replica: 10 replicas")


@pytest.mark.parametrize("samples", [(), (SignalSample("queue", NOW - POLICY.stale_ms - 1, 500),)])
def test_a_figure_that_is_missing_or_old_asks_for_nothing_and_says_so(samples: tuple[SignalSample, ...]) -> None:
    policy = msgspec.structs.replace(POLICY, signals=(Signal("queue", SignalKind.QUEUE, 5),))
    found = replicas_by_signals(msgspec.structs.replace(snapshot(), signals=samples), policy, 3)
    assert found.replicas == 0
    assert found.blind
    assert found.reason == "no fresh figure for queue"


def test_without_signals_nothing_is_asked() -> None:
    found = replicas_by_signals(seen(queue=50), POLICY, 3)
    assert (found.replicas, found.reason, found.blind) == (0, "", False)
