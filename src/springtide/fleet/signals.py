"""CPU in use, by service, from what replicas have used since they were looked at before."""

from collections.abc import Sequence

from springtide.model import Replica, ReplicaState, SignalSample

INTERVAL_MS_MIN = 100
"""Over less than this the kernel's clock ticks (10 ms) are too coarse to be a measure."""


class CpuMeter:
    """Remembers each replica's CPU seconds and when it was read."""

    def __init__(self) -> None:
        """Nothing has been read yet."""
        self._before: dict[str, tuple[int, float]] = {}

    def measure(self, replicas: Sequence[Replica], now_ms: int) -> dict[str, SignalSample]:
        """Cores in use, by service, over the replicas that were read before; a service with none is not named.

        `replicas` are those that were heard now; the others are forgotten, so that a gap is not taken for rest.
        """
        cores: dict[str, float] = {}
        kept: dict[str, tuple[int, float]] = {}
        for replica in replicas:
            if replica.state not in {ReplicaState.READY, ReplicaState.DRAINING}:
                continue
            before = self._before.get(replica.replica_id)
            if before is not None and now_ms - before[0] < INTERVAL_MS_MIN:
                kept[replica.replica_id] = before
                continue
            kept[replica.replica_id] = now_ms, replica.cpu_s
            if before is not None and replica.cpu_s >= before[1]:
                used = (replica.cpu_s - before[1]) * 1000 / (now_ms - before[0])
                cores[replica.service] = cores.get(replica.service, 0.0) + used
        self._before = kept
        return {service: SignalSample("", now_ms, used) for service, used in cores.items()}
