"""The figures of one run, what they have to be, and what follows from them."""

from typing import Any

import msgspec

from springtide.model import Zone
from springtide.twin.crowd.spec import CrowdSecond, CrowdSummary

SHED_SHARE_MAX = 0.001
"""At most 0.1% of first attempts may be asked to come back later."""
STATUS_HOLDS = 0
STATUS_FAILS = 1
STATUS_TOO_SLOW = 3


class FleetSecond(msgspec.Struct, frozen=True):
    """The fleet and the sale at the end of second `second` of the run.

    Capacity is of the replicas that take traffic, in requests per second; stock in units by SKU; orders by
    state in the order in which they are drawn; the cost of rented nodes is counted from the start of the
    run.
    """

    second: int
    capacity_by_zone: dict[str, float]
    replicas_by_zone: dict[str, int]
    nodes_by_zone: dict[str, int]
    stock: dict[str, int]
    orders: dict[str, int]
    cost_cny: float


class Mark(msgspec.Struct, frozen=True):
    """Something that happened at a moment of the run: a fault that struck."""

    second: float
    what: str


class RentedNodes(msgspec.Struct, frozen=True):
    """How many nodes of one offer were rented in a run, each with so many cores, at what price."""

    zone: str
    instance_type: str
    market: str
    nodes: int
    cores: int
    price_cny_per_h: float


class RunFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a report says of one run. Moments (`…_s`) count from second 0; None: it did not happen.

    `proved` says that the audit found the sale at rest and the ledger at the journal's end: only then is the
    stock equation exact. `stock_differences` is by SKU what the equation is off by, in units.
    `cost_static_peak_cny` is what the most nodes rented at one time would cost for a whole day. `rate_max` is
    the emulated capacity of a replica and `unthrottled_rps` what one replica did on this machine without that
    limit, both in requests per second. `calls` of the cloud's API were sent, by name; `throttled` of them were too
    many.
    """

    title: str
    zones: tuple[Zone, ...]
    crowd: CrowdSummary
    recorded: int
    proved: bool
    oversold: int
    lost: int
    duplicates: int
    stock_differences: dict[str, int]
    replicas_peak: dict[str, int]
    cloud_share_at_peak: float
    nodes_rented: int
    nodes_left: int
    ready_before_open_s: float | None
    cost_cny: float
    cost_static_peak_cny: float
    rate_max: float
    unthrottled_rps: float | None
    opens_s: float
    first_node_rented_s: float | None = None
    last_node_released_s: float | None = None
    scaled: bool = True
    chaos: bool = False
    faults: tuple[Mark, ...] = ()
    rented: tuple[RentedNodes, ...] = ()
    calls: dict[str, int] = {}
    throttled: int = 0
    seconds: tuple[CrowdSecond, ...] = ()
    fleet: tuple[FleetSecond, ...] = ()

    @property
    def peak_over_base(self) -> float:
        """The busiest second's requests over the mean of the normal evening; 0 when there was no evening."""
        return self.crowd.peak_rps / self.crowd.base_rps if self.crowd.base_rps else 0.0


class Check(msgspec.Struct, frozen=True):
    """One line of the verdict; `integrity`: of stock and orders. What is not `judged` is only reported."""

    name: str
    value: str
    bound: str
    ok: bool
    judged: bool = True
    integrity: bool = False


def verdict(figures: RunFigures) -> list[Check]:
    """All checks. With faults (`chaos`) availability and shed requests are reported and not judged."""
    return [*_integrity(figures), *_service(figures)]


def _integrity(figures: RunFigures) -> list[Check]:
    crowd = figures.crowd
    off = {sku: units for sku, units in figures.stock_differences.items() if units}
    equation = "off by " + ", ".join(f"{units:+d} {sku}" for sku, units in off.items()) if off else "true"
    if not figures.proved:
        equation = "not proved: the sale had not come to rest"
    return [
        _zero("Units oversold", figures.oversold),
        _zero("Acknowledged orders lost", figures.lost),
        _zero("Orders recorded twice", figures.duplicates),
        Check("Stock equation of every SKU", equation, "true", figures.proved and not off, integrity=True),
        _zero("Keys that got two orders", crowd.conflicting),
        _zero("Failed attempts that never got a truthful answer", crowd.unanswered),
    ]


def _zero(name: str, count: int) -> Check:
    return Check(name, f"{count:,}", "0", count == 0, integrity=True)


def _service(figures: RunFigures) -> list[Check]:
    crowd, judged = figures.crowd, not figures.chaos
    return [
        Check("Orders acknowledged", f"{crowd.acknowledged:,}", "at least 1", crowd.acknowledged > 0),
        Check(
            "Availability",
            percent(crowd.availability),
            "100%",
            crowd.failed == 0 and crowd.requests > 0,
            judged,
        ),
        Check(
            "First attempts asked to come back later",
            percent(crowd.shed_share),
            f"at most {percent(SHED_SHARE_MAX)}",
            crowd.shed_share <= SHED_SHARE_MAX,
            judged,
        ),
        Check("Rented nodes left", f"{figures.nodes_left:,}", "0", figures.nodes_left == 0),
        Check(
            "Sends the generator began over 100 ms late",
            percent(crowd.generator_late_share),
            "at most 1%",
            not crowd.behind,
        ),
    ]


def exit_status(figures: RunFigures) -> int:
    """0: the verdict holds; 1: it does not; 3: the machine was too slow to tell (the generator fell behind).

    A fault of stock or orders is a fault on a slow machine too, so it goes before 3.
    """
    checks = verdict(figures)
    if any(check.integrity and not check.ok for check in checks):
        return STATUS_FAILS
    if figures.crowd.behind:
        return STATUS_TOO_SLOW
    return STATUS_FAILS if any(check.judged and not check.ok for check in checks) else STATUS_HOLDS


VERDICTS = {
    STATUS_HOLDS: "The verdict holds",
    STATUS_FAILS: "The verdict does not hold",
    STATUS_TOO_SLOW: "Machine too slow",
}


def report_document(figures: RunFigures) -> dict[str, Any]:
    """What report.json holds. Shares lie in [0, 1], money is in CNY, times are in the unit of the name."""
    crowd = figures.crowd
    status = exit_status(figures)
    return {
        "verdict": VERDICTS[status],
        "exit_status": status,
        "checks": msgspec.to_builtins(verdict(figures)),
        "title": figures.title,
        "scaled": figures.scaled,
        "chaos": figures.chaos,
        "requests": crowd.requests,
        "acknowledged": crowd.acknowledged,
        "recorded": figures.recorded,
        "proved": figures.proved,
        "oversold": figures.oversold,
        "lost": figures.lost,
        "duplicates": figures.duplicates,
        "stock_differences": figures.stock_differences,
        "availability": crowd.availability,
        "base_rps": crowd.base_rps,
        "peak_rps": crowd.peak_rps,
        "peak_over_base": figures.peak_over_base,
        "p50_ms": crowd.p50_ms,
        "p99_ms": crowd.p99_ms,
        "p999_ms": crowd.p999_ms,
        "shed_share": crowd.shed_share,
        "shed_share_at_peak": crowd.shed_share_at_peak,
        "replicas_peak": figures.replicas_peak,
        "cloud_share_at_peak": figures.cloud_share_at_peak,
        "nodes_rented": figures.nodes_rented,
        "nodes_left": figures.nodes_left,
        "rented": msgspec.to_builtins(figures.rented),
        "cloud_calls": figures.calls,
        "cloud_calls_throttled": figures.throttled,
        "ready_before_open_s": figures.ready_before_open_s,
        "cost": figures.cost_cny,
        "cost_static_peak": figures.cost_static_peak_cny,
        "currency": "CNY",
        "rate_max": figures.rate_max,
        "unthrottled_rps": figures.unthrottled_rps,
        "opens_s": figures.opens_s,
        "first_node_rented_s": figures.first_node_rented_s,
        "last_node_released_s": figures.last_node_released_s,
        "faults": msgspec.to_builtins(figures.faults),
        "crowd": msgspec.to_builtins(crowd),
        "seconds": msgspec.to_builtins(figures.seconds),
        "fleet": msgspec.to_builtins(figures.fleet),
    }


def percent(share: float) -> str:
    """A share as a percentage that never rounds a flaw away: 0.99999 is not 100%, 0.000001 is not 0%."""
    if share in {0.0, 1.0}:
        return f"{share * 100:.0f}%"
    digits = 2
    while digits < 6 and round(share * 100, digits) in {0.0, 100.0}:  # noqa: PLR2004 - six digits are enough for anyone
        digits += 1
    text = f"{share * 100:.{digits}f}".rstrip("0").rstrip(".")
    return f"{text}%"
