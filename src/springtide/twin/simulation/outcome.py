"""What came of a simulation: the figures of the whole, and how it was over time."""

import msgspec


class Sample(msgspec.Struct, frozen=True):
    """A bin of time that ends `at_s` after the beginning. Rates are the bin's means, the rest is of its end.

    `demand_per_s` are people and retries, `served_per_s` all that were answered as they should be. `serving_…` are the
    cores that take traffic, by whose they are; `cores_paid` those of all rented nodes. `line_share` is that of the
    fullest line (0 to 1), `cost_cny_per_h` what is rented costs.
    """

    at_s: float
    demand_per_s: float = 0.0
    served_per_s: float = 0.0
    acknowledged_per_s: float = 0.0
    shed_per_s: float = 0.0
    failed_per_s: float = 0.0
    waiting: float = 0.0
    p99_ms: float = 0.0
    capacity_per_s: float = 0.0
    serving_idc: int = 0
    serving_ecs: int = 0
    serving_spot: int = 0
    serving_eci: int = 0
    replicas_wanted: int = 0
    replicas_starting: int = 0
    nodes: int = 0
    nodes_booting: int = 0
    cores_paid: int = 0
    line_share: float = 0.0
    cost_cny_per_h: float = 0.0
    journal: float = 0.0
    stock: float = 0.0

    @property
    def serving_rented(self) -> int:
        """Rented cores that take traffic."""
        return self.serving_ecs + self.serving_spot + self.serving_eci

    @property
    def serving_cores(self) -> int:
        """All cores that take traffic."""
        return self.serving_idc + self.serving_rented


class Breach(msgspec.Struct, frozen=True):
    """An invariant that did not hold at a moment of the simulation."""

    at_s: float
    invariant: str
    detail: str


class Alert(msgspec.Struct, frozen=True):
    """What the decisions had to say to a person: when first, and how often."""

    at_s: float
    text: str
    times: int = 1


class Outcome(msgspec.Struct, frozen=True):
    """The figures of one simulation.

    `ready_s` is the time from the opening of the largest wave until the wanted cores served, negative when they stood
    before; None: never. `availability` is the share of requests that were neither shed nor failed. `cores_peak` is the
    most rented cores that took traffic at once. `nodes_left` are rented still at the end. `violation_s` counts the
    seconds that violate the scenario's SLO. `cost_cny` is the bill of all rented machines,
    `clairvoyant_cost_cny` the least for which anybody could have had the same cores (see `clairvoyant.py`); None: not
    computed. `until_s` is how far it came, less than the scenario's duration when it was `interrupted`. `wall_s` is
    the only figure that the same seed does not reproduce.
    """

    scenario: str
    policy: str
    seed: int
    until_s: float
    ready_s: float | None
    availability: float
    requests: float
    acknowledged: float
    cores_peak: int
    nodes_left: int
    violation_s: float
    cost_cny: float
    clairvoyant_cost_cny: float | None
    wall_s: float = 0.0
    calendar: bool = True
    interrupted: bool = False
    cores_wanted: int = 0
    shed: float = 0.0
    failed: float = 0.0
    sold_out: float = 0.0
    retries: float = 0.0
    gave_up: float = 0.0
    paid: float = 0.0
    nodes_rented: int = 0
    orders_refused: int = 0
    replicas_peak: int = 0
    ticks: int = 0
    p99_worst_ms: float = 0.0
    line_share_max: float = 0.0
    breaches: tuple[Breach, ...] = ()
    alerts: tuple[Alert, ...] = ()
    samples: tuple[Sample, ...] = ()

    @property
    def cost_ratio(self) -> float | None:
        """The cost against the clairvoyant's; None when that is not known or nothing."""
        return self.cost_cny / self.clairvoyant_cost_cny if self.clairvoyant_cost_cny else None
