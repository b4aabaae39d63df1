"""What the crowd's process is told, and what it reports: both are JSON files."""

from pathlib import Path

import msgspec

from springtide.config import CrowdSettings
from springtide.errors import ConfigError
from springtide.model import Sale

ACKNOWLEDGEMENTS = "acknowledgements.jsonl"
SECONDS = "seconds.jsonl"
SUMMARY = "summary.json"


class CrowdSpec(msgspec.Struct, frozen=True):
    """One run of the crowd. The URLs are `http://host:port`; `start_ms` is the moment of second 0.

    The keys are secrets, in hex; `demand` and `out` are paths.
    """

    url: str
    backoffice_url: str
    sale: Sale
    demand: str
    settings: CrowdSettings
    token_key_hex: str
    webhook_secret_hex: str
    start_ms: int
    out: str


class OrderAcknowledged(msgspec.Struct, frozen=True, tag="order", tag_field="kind"):
    """A line of the acknowledgements: an answer 201 or 200 with an order."""

    order_id: str
    buyer: str
    key: str
    sku: str
    quantity: int
    pay_by_ms: int
    at_ms: int


class PaymentAcknowledged(msgspec.Struct, frozen=True, tag="payment", tag_field="kind"):
    """A line of the acknowledgements: the back office took a payment; `outcome` as it said it."""

    payment_id: str
    order_id: str
    amount_fen: int
    outcome: str
    at_ms: int


Acknowledgement = OrderAcknowledged | PaymentAcknowledged


class CrowdSecond(msgspec.Struct, frozen=True):
    """A line of the seconds: what was sent and what came back in second `second` of the run.

    `answers` counts by status and code (`201 reserved`, `0 timeout`). `shed`: first attempts answered 429
    or 503. `failed`: connection errors, timeouts and 5xx. `late`: sends over 20 ms behind their moment, for
    whatever reason. Latencies are of answers received in this second, from the scheduled send time on.
    """

    second: int
    planned: float
    first_attempts: int
    sent: int
    answers: dict[str, int]
    shed: int
    failed: int
    late: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class CrowdSummary(msgspec.Struct, frozen=True):
    """The whole run. Shares lie in [0, 1]; `requests` went to the counter, payments have their own counts.

    `availability`: requests with a truthful answer in time (no connection error, no timeout, no 5xx) among
    all. `unanswered`: purchases that ended without a truthful answer after an attempt with an unknown
    outcome; `resolved`: those that ended with one. `conflicting`: keys that got two different orders.
    `base_rps` is the mean of requests sent per second in the first third of the demand, `peak_rps` the
    busiest second.
    """

    requests: int
    first_attempts: int
    acknowledged: int
    answers: dict[str, int]
    availability: float
    failed: int
    shed_share: float
    shed_share_at_peak: float
    unanswered: int
    resolved: int
    conflicting: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    base_rps: float
    peak_rps: float
    behind: bool
    late_share: float
    generator_late_share: float
    generator_late_ms_max: float
    payments: int
    payments_acknowledged: int
    payments_refused: int
    payments_unanswered: int
    gave_up: int
    cpu_s: float


def read_spec(path: Path) -> CrowdSpec:
    """Raises ConfigError when the file is missing or is no CrowdSpec."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=CrowdSpec)
    except (OSError, msgspec.DecodeError) as error:
        msg = f"{path}: not a crowd specification: {error}; `springtide demo` writes it"
        raise ConfigError(msg) from error


def read_acknowledgements(path: Path) -> list[Acknowledgement]:
    """All lines, in the order they were received. A last line cut short by a crash is left out."""
    lines = path.read_bytes().split(b"\n")
    decoder = msgspec.json.Decoder(Acknowledgement)
    return [decoder.decode(line) for line in lines[:-1]]


def read_seconds(path: Path) -> list[CrowdSecond]:
    """The seconds written so far; empty when there is no file yet."""
    if not path.exists():
        return []
    decoder = msgspec.json.Decoder(CrowdSecond)
    return [decoder.decode(line) for line in path.read_bytes().split(b"\n")[:-1]]
