"""Services: what a replica of one is, what its scaling looks at, and what is known of its zones and its release."""

from enum import StrEnum

import msgspec

from springtide.model.cloud import Purchase
from springtide.model.identifiers import require_identifier

COUNTER = "counter"
"""The service that every sale has: the front of the order path."""


class HealthCheck(msgspec.Struct, frozen=True):
    """How a replica is found ready: `GET path` answers 200 within `timeout_ms`, asked every `interval_ms`."""

    path: str = "/readyz"
    interval_ms: int = 1000
    timeout_ms: int = 1000


class ServiceSpec(msgspec.Struct, frozen=True):
    """One revision of a service: everything that makes a replica of it what it is.

    `command` may hold `{replica_id}`, `{zone}`, `{port}` and `{announce}`. With `{announce}` the program chooses
    its port and writes it there (see `drivers/process.py`); otherwise it listens on `{port}`, which is also in
    `PORT`. `image` is for the docker runtime; without a command, the image's own runs. `secrets` maps a variable to
    the file that holds its value, read when a replica starts. `cores` and `memory_mb` are limits; 0 memory is no
    limit. `drain_signal` is sent when traffic has been taken away ("" sends none). `revision` differs when anything
    else here does.
    """

    name: str
    revision: str
    command: tuple[str, ...] = ()
    image: str = ""
    port: int = 0
    cores: float = 1.0
    memory_mb: int = 0
    health: HealthCheck = HealthCheck()
    env: dict[str, str] = {}
    secrets: dict[str, str] = {}
    drain_signal: str = ""
    start_ms_max: int = 15_000
    stop_grace_ms: int = 5_000

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        require_identifier("service", self.name)


class SignalKind(StrEnum):
    """What a scaling signal measures. Targets are per replica, but for P99_MS, which holds for the service."""

    IN_FLIGHT = "in_flight"
    QUEUE = "queue"
    P99_MS = "p99_ms"
    CPU = "cpu"
    PROMETHEUS = "prometheus"


class Signal(msgspec.Struct, frozen=True):
    """A figure that the service is kept at or below, beside requests/s.

    `target` is per replica: requests in flight, requests queued, the share of its CPU limit in use (0 to 1), or the
    value of `query` at `url` divided by the replicas. For P99_MS it is the milliseconds that the service may take.
    """

    name: str
    kind: SignalKind
    target: float
    url: str = ""
    query: str = ""


class SignalSample(msgspec.Struct, frozen=True):
    """What a signal measured last, over all replicas together (for P99_MS: of the service; for CPU: cores in use)."""

    name: str
    at_ms: int
    value: float


class ZoneMode(StrEnum):
    """What an operator said of a zone: use it, begin nothing new there, or take everything away from it."""

    OPEN = "open"
    CORDONED = "cordoned"
    DRAINED = "drained"


class ZoneState(StrEnum):
    """What the decisions conclude of a zone. A RETURNING zone gets its traffic back in steps."""

    UP = "up"
    DOWN = "down"
    RETURNING = "returning"


class ZoneHealth(msgspec.Struct, frozen=True):
    """A zone's state, since when, and why. `failures` are its falls within the memory that keeps it from flapping.

    `good_since_ms` is since when all signs have been good, `bad_since_ms` since when they have been bad (0 while they
    are not).
    """

    state: ZoneState
    since_ms: int
    reason: str = ""
    failures: int = 0
    good_since_ms: int = 0
    bad_since_ms: int = 0


class CapacityEstimate(msgspec.Struct, frozen=True):
    """What one replica was found to take, in requests/s, and the `samples` that rests on.

    `limit` names the engine that is the limit when added replicas brought no throughput ("" while they do).
    `best_per_s` and `best_replicas` are the highest throughput of the whole service so far under a standing queue,
    and with how many replicas it was reached: what an added replica has to beat. `at_ms` is the last sample that
    counted.
    """

    requests_per_s: float
    samples: int = 0
    at_ms: int = 0
    best_per_s: float = 0.0
    best_replicas: int = 0
    limit: str = ""


class ScaleOverride(msgspec.Struct, frozen=True):
    """An operator's bounds for the number of replicas, in place of the service's own until `until_ms` (0: for ever)."""

    replicas_min: int
    replicas_max: int
    until_ms: int = 0


class RolloutState(StrEnum):
    """Where a change of revision is."""

    ROLLING = "rolling"
    DONE = "done"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"


class Rollout(msgspec.Struct, frozen=True):
    """A change of a service from revision `previous` to `revision`, of which `failed` replicas have failed.

    `failed_ids` are those, so that each counts once; `proven` is the most replicas of the wanted revision that were
    seen to do well at once, and `progress_ms` when that grew last or nothing was tried (0: it has not been looked at).
    """

    revision: str
    previous: str
    state: RolloutState
    since_ms: int
    failed: int = 0
    reason: str = ""
    failed_ids: tuple[str, ...] = ()
    proven: int = 0
    progress_ms: int = 0

    @property
    def target(self) -> str:
        """The revision that replicas should have now."""
        back = self.state in {RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK}
        return self.previous if back else self.revision


class SeasonPoint(msgspec.Struct, frozen=True):
    """Demand of an earlier season: the mean and the highest requests/s of the bin that begins at `at_ms`.

    `rise_per_s` is the most by which demand rose in the bin within the time that new capacity takes.
    """

    at_ms: int
    mean_per_s: float
    peak_per_s: float
    rise_per_s: float = 0.0


class UsualDemand(msgspec.Struct, frozen=True):
    """What the last `bins` of demand were like.

    All but a few rose by at most `rise_per_s` within the time that new capacity takes, and all but a few stayed at or
    below `peak_per_s`.
    """

    rise_per_s: float
    peak_per_s: float
    bins: int


class Leadership(msgspec.Struct, frozen=True):
    """Who leads, in which term, and until when by the store's own clock. Each new leader's term is one higher."""

    holder: str
    term: int
    until_ms: int


class Intent(msgspec.Struct, frozen=True):
    """An action written down before it is begun: `action` is its JSON, sent again word for word after a crash."""

    intent_id: str
    term: int
    service: str
    action: str
    at_ms: int


class ServiceWish(msgspec.Struct, frozen=True):
    """A service as its operators want it: what a replica is, and how many there may be.

    `requests_per_s` is what one replica is calibrated to take; `port` is where the balancer listens for it. `previous`
    is the revision before, to roll back to. `idempotent` allows the balancer to send any request again; else only
    those that certainly did nothing.
    """

    spec: ServiceSpec
    requests_per_s: float
    replicas_min: int = 1
    replicas_max: int = 100
    port: int = 0
    drain_ms: int = 2_000
    signals: tuple[Signal, ...] = ()
    previous: ServiceSpec | None = None
    idempotent: bool = False


class Wishes(msgspec.Struct, frozen=True):
    """What the operators want, as the leader reads it at every tick; `version` grows with every change.

    `services` by name are the services that should run, each with the revision it should have. `cordoned` are nodes
    on which nothing new may start. `purchases` by event are what its plan buys, each when its `order_ms` comes.
    """

    version: int = 0
    services: dict[str, ServiceWish] = {}
    modes: dict[str, ZoneMode] = {}
    scales: dict[str, ScaleOverride] = {}
    cordoned: frozenset[str] = frozenset()
    purchases: dict[str, tuple[Purchase, ...]] = {}
