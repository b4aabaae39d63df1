"""Filling a provisioning problem without a solver: by price of a replica, and the way Karpenter packs nodes."""

from collections.abc import Callable, Sequence

from springtide.decide.provision_problem import EPSILON, Problem
from springtide.model import Market

Way = Callable[[Problem, int], list[int]]

OVERBUY_TRIES = 12
"""Doublings of what is bought beyond the need, where only more machines in more zones keep the spread."""

SEARCH_PART = 1_000
"""How closely the most that can be had is searched for: to one part in so many."""


class Filling:
    """Machines taken so far, and the room they leave in each row if `target` replicas are bought in the end."""

    __slots__ = ("_columns", "_room", "_shares", "bought", "cost", "counts")

    def __init__(self, problem: Problem, target: int, start: Sequence[int] | None = None) -> None:
        """`start`: machines of each column that are taken already."""
        self._columns = problem.columns
        self._room = [row.cap(target) for row in problem.rows]
        self._shares = [row.share for row in problem.rows]
        self.counts = [0] * len(problem.columns)
        self.bought = 0
        self.cost = 0.0
        for index, count in enumerate(start or ()):
            if count:
                self.take(index, count)

    def possible(self, index: int) -> int:
        """How many machines more of this column fit."""
        column = self._columns[index]
        most = column.stock - self.counts[index]
        room = self._room
        for row, weight in column.rows:
            if weight > 0 and (fits := int(room[row] / weight + EPSILON)) < most:
                most = fits
        return most

    def fits(self, row: int, weight: float, replicas: int) -> bool:
        """Whether this row has room for one machine more of such a weight and so many replicas."""
        return weight <= self._room[row] + self._shares[row] * replicas + EPSILON

    def take(self, index: int, count: int) -> None:
        """Take so many machines of this column."""
        column = self._columns[index]
        self.counts[index] += count
        self.bought += count * column.replicas
        self.cost += count * column.price
        for row, weight in column.rows:
            self._room[row] -= count * weight


def by_price(problem: Problem) -> list[int]:
    """The columns by price of a replica, the cheapest first."""
    columns = problem.columns
    return sorted(range(len(columns)), key=lambda index: columns[index].order_price / columns[index].replicas)


def by_fit(problem: Problem) -> list[int]:
    """The columns by cores of a machine for a replica, those that waste none first; of equal ones by price."""
    columns = problem.columns
    return sorted(
        range(len(columns)),
        key=lambda index: (
            columns[index].offer.cores / columns[index].replicas,
            columns[index].order_price / columns[index].replicas,
        ),
    )


def fill(
    problem: Problem,
    target: int,
    order: Sequence[int],
    start: Sequence[int] | None = None,
    limit: Sequence[int] | None = None,
) -> list[int]:
    """Machines of each column: as many of each as are needed, in this order, with the best last machine.

    Wherever one machine more would end it, that end is remembered, and the cheapest of all ends is taken. `limit` is
    the most machines of each column. The result may fall short of the target; it keeps the rows if it does not.
    """
    state = Filling(problem, target, start)
    taken: list[tuple[int, int]] = []
    end: tuple[float, int, int] | None = None
    for index in order:
        left = target - state.bought
        if left <= 0 or (end is not None and state.cost >= end[0]):
            break
        most = state.possible(index)
        if limit is not None:
            most = min(most, limit[index] - state.counts[index])
        if most <= 0:
            continue
        column = problem.columns[index]
        count = min(most, left // column.replicas)
        if count:
            state.take(index, count)
            taken.append((index, count))
        if most > count and state.bought < target and (end is None or state.cost + column.price < end[0]):
            end = (state.cost + column.price, len(taken), index)
    if end is None or (state.bought >= target and state.cost <= end[0]):
        return state.counts
    counts = [0] * len(problem.columns) if start is None else list(start)
    for index, count in taken[: end[1]]:
        counts[index] += count
    counts[end[2]] += 1
    return counts


def by_price_fill(problem: Problem, target: int) -> list[int]:
    """Fill in the order of the price of a replica."""
    return fill(problem, target, by_price(problem))


def karpenter_fill(problem: Problem, target: int) -> list[int]:
    """Fill the way Karpenter packs nodes (see `first_fit` in provision.py)."""
    columns = problem.columns
    state = Filling(problem, target)
    own = [index for index, column in enumerate(columns) if column.offer.market is Market.IDC]
    rented = [index for index, column in enumerate(columns) if column.offer.market is not Market.IDC]
    for order in (own, rented):
        largest_first = sorted(order, key=lambda index: (-columns[index].replicas, columns[index].price, index))
        for index in largest_first:
            left = target - state.bought
            most = state.possible(index)
            if left <= 0 or most <= 0:
                continue
            count = min(most, left // columns[index].replicas)
            state.take(index, count)
            left -= count * columns[index].replicas
            if left and most > count:
                _last_node(problem, state, order, left)
    return state.counts


def _last_node(problem: Problem, state: Filling, order: Sequence[int], left: int) -> None:
    """The cheapest machine that takes all replicas that are left."""
    columns = problem.columns
    fitting = (index for index in order if columns[index].replicas >= left and state.possible(index) > 0)
    state.take(min(fitting, key=lambda index: (columns[index].price, index)), 1)


def reached(problem: Problem, way: Way) -> list[int]:
    """The need filled in this way, or the most of it that this way finds: the result keeps all rows.

    Shares are of what is bought in the end. So when a fill falls short, more than the need is tried (machines may be
    too large to spread the need itself), then the largest part of the need that it can fill.
    """
    target = problem.target
    counts = way(problem, target)
    got = problem.replicas(counts)
    if got >= target or not any(row.share for row in problem.rows):
        return counts
    for doubling in range(OVERBUY_TRIES):
        more = target + 2**doubling
        counts = way(problem, more)
        if problem.replicas(counts) >= target and problem.feasible(counts):
            return trimmed(problem, target, counts)
    best = [0] * len(problem.columns)
    low, high = 0, min(got, target - 1)
    while high - low > low // SEARCH_PART:
        middle = (low + high + 1) // 2
        counts = way(problem, middle)
        if problem.feasible(counts):
            best, low = max(best, counts, key=problem.replicas), middle
        else:
            high = middle - 1
    return best


def trimmed(problem: Problem, target: int, counts: Sequence[int]) -> list[int]:
    """Without machines that the target does not need, the dearest first."""
    kept = list(counts)
    spare = problem.replicas(kept) - target
    held = (index for index, count in enumerate(kept) if count)
    for index in sorted(held, key=lambda index: (-problem.columns[index].price, index)):
        count = min(kept[index], spare // problem.columns[index].replicas)
        if count <= 0:
            continue
        kept[index] -= count
        if problem.feasible(kept):
            spare -= count * problem.columns[index].replicas
        else:
            kept[index] += count
    return kept
