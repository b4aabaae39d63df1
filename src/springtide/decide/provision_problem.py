"""The provisioning problem in whole replicas: what each offer can deliver, and every limit as one linear row."""

import math
from collections import Counter
from collections.abc import Sequence

import msgspec

from springtide.model import Market, Offer, ProvisionNeed, Quota, StockLevel

PLENTY_MACHINES = 1_000
"""Machines counted on where a cloud says "with stock" and no figure is known."""

LOW_MACHINES = 10
"""Machines counted on where a cloud says that stock is low and no figure is known."""

STOCK_OF_LEVEL = {
    StockLevel.PLENTY: PLENTY_MACHINES,
    StockLevel.LOW: LOW_MACHINES,
    StockLevel.NONE: 0,
    StockLevel.GONE: 0,
}

TIE_SHARE = 1e-5
"""What a machine more may cost, as a share of the price of a replica: of equal offers the larger machines are taken."""

EPSILON = 1e-6
"""Below this, sums of prices and shares are equal."""

ROUNDING = 1e-9
"""How far off, as a share, sums may be by the rounding of arithmetic."""


class RowKind(msgspec.Struct, frozen=True):
    """Which limit a row is: `name` as in `Provision.limits`, and whose; "" and None: of all zones, of all markets.

    `counts` is what a machine adds to it: all its cores, the replicas on it, or its price.
    """

    name: str
    counts: str
    zone: str = ""
    market: Market | None = None

    def has(self, zone: str, market: Market) -> bool:
        """Whether the machines of this zone and market count in it."""
        return self.zone in {"", zone} and self.market in {None, market}


class Row(msgspec.Struct, frozen=True):
    """A limit: the sum of weight × machines over its columns is at most max(0, base + share × all replicas bought)."""

    kind: RowKind
    base: float
    share: float = 0.0

    def cap(self, replicas: float) -> float:
        """What the sum may be when so many replicas are bought."""
        return max(0.0, self.base + self.share * replicas)

    def is_full(self, replicas: int) -> bool:
        """Whether what is held has the whole share already when so many replicas are bought."""
        return bool(self.share) and self.base + self.share * replicas <= EPSILON


class Column(msgspec.Struct, frozen=True):
    """An offer that can be bought: replicas on one machine, machines to be had, its weight in each of its rows."""

    offer: Offer
    replicas: int
    stock: int
    rows: tuple[tuple[int, float], ...]
    order_price: float

    @property
    def price(self) -> float:
        """Fen per hour of one machine."""
        return self.offer.price_fen_per_h


class Problem(msgspec.Struct, frozen=True):
    """What is to be decided: machines of each column, so that their replicas are `target` or more, in all rows.

    Columns are in the order of their keys, whatever the order of the offers. Offers whose share is full with what is
    held have none. `left_out` counts the others without a column, by reason: arch, size, stock.
    """

    need: ProvisionNeed
    target: int
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    left_out: dict[str, int]

    def replicas(self, counts: Sequence[int]) -> int:
        """Replicas on so many machines of each column."""
        return sum(column.replicas * count for column, count in zip(self.columns, counts, strict=True))

    def cost(self, counts: Sequence[int]) -> float:
        """Fen per hour of so many machines of each column."""
        return math.fsum(column.price * count for column, count in zip(self.columns, counts, strict=True) if count)

    def cores(self, replicas: int) -> int:
        """Whole cores that so many replicas use."""
        return math.floor(replicas * self.need.replica_cores + EPSILON)

    def needed(self, cores: int) -> int:
        """The fewest replicas that use so many cores."""
        return _needed(self.need, cores)

    def used(self, counts: Sequence[int]) -> list[float]:
        """The sum of each row."""
        used = [0.0] * len(self.rows)
        for column, count in zip(self.columns, counts, strict=True):
            if count:
                for row, weight in column.rows:
                    used[row] += weight * count
        return used

    def feasible(self, counts: Sequence[int]) -> bool:
        """Whether every stock and every row is kept."""
        if any(not 0 <= count <= column.stock for column, count in zip(self.columns, counts, strict=True)):
            return False
        replicas = self.replicas(counts)
        return all(
            used <= row.cap(replicas) + EPSILON + ROUNDING * abs(row.base)
            for row, used in zip(self.rows, self.used(counts), strict=True)
        )


def machines_to_be_had(offer: Offer) -> int:
    """Machines that can be counted on: what is known of the stock, else what its level stands for."""
    return STOCK_OF_LEVEL[offer.level] if offer.stock is None else max(0, offer.stock)


def replicas_per_machine(offer: Offer, need: ProvisionNeed) -> int:
    """Whole replicas that one machine takes, by cores and by memory."""
    by_cores = math.floor(offer.cores / need.replica_cores + EPSILON)
    if need.replica_memory_mb <= 0:
        return by_cores
    return min(by_cores, offer.memory_mb // need.replica_memory_mb)


def build(need: ProvisionNeed, offers: Sequence[Offer], quotas: Sequence[Quota]) -> Problem:
    """Raises ValueError for a need whose replicas have no size.

    Of offers with the same key the one with the least stock counts, of these the dearest.
    """
    if need.replica_cores <= 0:
        raise ValueError(f"replica_cores is {need.replica_cores}: a replica needs more than 0 cores")
    target = _needed(need, need.cores)
    fitting, left_out = _fitting(need, offers)
    rows = _rows(need, fitting, quotas)
    per_replica = sorted(offer.price_fen_per_h / replicas for offer, replicas, _ in fitting)
    tie = TIE_SHARE * per_replica[len(per_replica) // 2] if per_replica else 0.0
    full = {index for index, row in enumerate(rows) if row.is_full(target)}
    columns = []
    rows_of: dict[tuple[str, Market], tuple[tuple[int, str], ...]] = {}
    for offer, replicas, stock in fitting:
        place = (offer.zone, offer.market)
        if place not in rows_of:
            rows_of[place] = tuple((index, row.kind.counts) for index, row in enumerate(rows) if row.kind.has(*place))
        if full and any(index in full for index, _ in rows_of[place]):
            continue
        weights = {"cores": float(offer.cores), "replicas": float(replicas), "price": offer.price_fen_per_h}
        its_rows = tuple([(index, weights[counts]) for index, counts in rows_of[place]])
        columns.append(Column(offer, replicas, stock, its_rows, offer.price_fen_per_h + tie))
    return Problem(need, target, tuple(columns), rows, left_out)


def _needed(need: ProvisionNeed, cores: int) -> int:
    return max(0, math.ceil(cores / need.replica_cores - EPSILON))


def _fitting(need: ProvisionNeed, offers: Sequence[Offer]) -> tuple[list[tuple[Offer, int, int]], dict[str, int]]:
    """The offers that a replica fits and that have stock, by key; and how many do not, by reason."""
    by_key: dict[str, Offer] = {}
    for offer in offers:
        key = offer.key
        if key not in by_key or _caution(offer) < _caution(by_key[key]):
            by_key[key] = offer
    fitting = []
    left_out: Counter[str] = Counter()
    for key in sorted(by_key):
        offer = by_key[key]
        replicas, stock = replicas_per_machine(offer, need), machines_to_be_had(offer)
        if offer.arch not in need.arch:
            left_out["arch"] += 1
        elif replicas < 1:
            left_out["size"] += 1
        elif stock < 1:
            left_out["stock"] += 1
        else:
            fitting.append((offer, replicas, stock))
    return fitting, dict(left_out)


def _caution(offer: Offer) -> tuple[float, ...]:
    return (machines_to_be_had(offer), -offer.price_fen_per_h, offer.cores, offer.memory_mb)


def _rows(need: ProvisionNeed, fitting: Sequence[tuple[Offer, int, int]], quotas: Sequence[Quota]) -> tuple[Row, ...]:
    zones = sorted({offer.zone for offer, _, _ in fitting})
    held = {zone: cores / need.replica_cores for zone, cores in need.held.items()}
    all_held = math.fsum(held.values())
    rows: list[Row] = []
    for quota in sorted(quotas, key=lambda quota: (quota.market, quota.zone, quota.limit_cores - quota.used_cores)):
        left = max(0, quota.limit_cores - quota.used_cores)
        rows.append(Row(RowKind("quota", "cores", quota.zone, quota.market), float(left)))
    share = max(0.0, need.zone_share_max)
    if share < 1:
        rows += [
            Row(RowKind("spread", "replicas", zone), share * all_held - held.get(zone, 0.0), share) for zone in zones
        ]
    share = max(0.0, need.spot_share_max)
    if share < 1:
        base = 0.0 if need.held_spot is None else share * all_held - need.held_spot / need.replica_cores
        rows.append(Row(RowKind("spot", "replicas", market=Market.SPOT), base, share))
    if need.spend_max_fen_per_h > 0:
        rows.append(Row(RowKind("spend", "price"), need.spend_max_fen_per_h))
    return tuple(rows)
