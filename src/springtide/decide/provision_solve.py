"""A provisioning problem given to HiGHS: the relaxation with its proven bound, the whole-numbered plan, the most of it.

One thread, a fixed seed and limits on gap and nodes, never on time: the same problem has the same answer everywhere.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from springtide.decide.provision_problem import EPSILON, ROUNDING, Problem

if TYPE_CHECKING:
    import highspy

GAP = 0.0005
"""The distance from the bound, as a share of the cost, at which the search ends."""

NODES_MAX = 200
"""Nodes of the search tree after which it ends with what it has."""


class Relaxed(msgspec.Struct, frozen=True):
    """The best plan in fractions of machines.

    `bound` and `reduced` (what one machine more of each column adds to it at least) follow from the row prices alone by
    weak duality, so they hold whatever the solver's tolerances are.
    """

    machines: tuple[float, ...]
    bound: float
    reduced: tuple[float, ...]


class Searched(msgspec.Struct, frozen=True):
    """What a search in whole machines found: a plan (None: none), and the bound it proved."""

    machines: tuple[int, ...] | None
    bound: float


class Most(msgspec.Struct, frozen=True):
    """The most replicas that fractions of machines can have: the plan, their number, and the rows closed for it."""

    machines: tuple[float, ...]
    replicas: float
    closed: frozenset[int]


class _Model(msgspec.Struct, frozen=True):
    """Bounds and costs of the columns, and of the sum of all replicas, which is one column more."""

    cost: Sequence[float]
    lower: Sequence[int]
    upper: Sequence[int]
    sum_cost: float
    sum_lower: float
    closed: frozenset[int]
    whole: bool


def closed_at(problem: Problem, replicas: int) -> frozenset[int]:
    """The rows of shares that leave nothing to buy when so many replicas are bought."""
    return frozenset(index for index, row in enumerate(problem.rows) if row.is_full(replicas))


def relax(problem: Problem, target: int, lower: Sequence[int] | None = None) -> Relaxed | None:
    """The cheapest plan in fractions for so many replicas, with at least `lower` machines; None: there is none."""
    closed = closed_at(problem, target)
    upper = _upper(problem, closed)
    least = [0] * len(upper) if lower is None else [min(low, high) for low, high in zip(lower, upper, strict=True)]
    cost = [column.order_price for column in problem.columns]
    highs = _run(problem, _Model(cost, least, upper, 0.0, float(target), closed, whole=False))
    if not _solved(highs):
        return None
    solution = highs.getSolution()
    bound, reduced = _dual(problem, target, solution.row_dual, closed, (least, upper))
    return Relaxed(tuple(solution.col_value[: len(upper)]), bound, reduced)


def search(problem: Problem, target: int, relaxed: Relaxed, best: Sequence[int] | None) -> Searched:
    """The cheapest plan in whole machines for so many replicas; `bound` inf: there is none. `best` is a known plan.

    With its cost at hand, columns that no cheaper plan can use, or leave unused, are fixed first (reduced cost fixing).
    """
    worst = math.inf if best is None else problem.cost(best)
    closed = closed_at(problem, target)
    upper = _upper(problem, closed)
    lower = [0] * len(upper)
    slack = (worst - relaxed.bound) * (1 + ROUNDING) + EPSILON
    for index, reduced in enumerate(relaxed.reduced):
        if reduced > slack:
            upper[index] = 0
        elif -reduced > slack:
            lower[index] = upper[index]
    cost = [column.price for column in problem.columns]
    model = _Model(cost, lower, upper, 0.0, float(target), closed, whole=True)
    highs = _run(problem, model, best)
    found = _whole(problem, highs)
    if found is not None and problem.replicas(found) < target:
        found = None
    return Searched(found, max(relaxed.bound, min(worst, _search_bound(highs))))


def most(problem: Problem) -> Iterator[Most]:
    """The most replicas in fractions of machines; go on with the next answer where no whole plan keeps the rows.

    Rows of shares that nothing can keep any more, because what is held is too much of too little, are closed one after
    the other, the one that needs the most replicas first. A plan without such a row's columns that has so many
    replicas would keep the row, so the first answer with a plan is the one with the most.
    """
    columns = len(problem.columns)
    closed = set(closed_at(problem, problem.target))
    open_rows = sorted(
        (index for index, row in enumerate(problem.rows) if row.share and index not in closed),
        key=lambda index: (problem.rows[index].base / problem.rows[index].share, index),
    )
    for shut in [None, *open_rows]:
        if shut is not None:
            closed.add(shut)
        model = _most_model(problem, frozenset(closed), whole=False)
        highs = _run(problem, model)
        if _solved(highs):
            bound = -highs.getInfo().objective_function_value
            yield Most(tuple(highs.getSolution().col_value[:columns]), bound + EPSILON, model.closed)


def most_whole(problem: Problem, relaxed: Most, best: Sequence[int]) -> tuple[int, ...] | None:
    """The most replicas in whole machines that a search finds; None: it finds no plan."""
    return _whole(problem, _run(problem, _most_model(problem, relaxed.closed, whole=True), best))


def _most_model(problem: Problem, closed: frozenset[int], *, whole: bool) -> _Model:
    columns = len(problem.columns)
    return _Model([0.0] * columns, [0] * columns, _upper(problem, closed), -1.0, 0.0, closed, whole)


def _upper(problem: Problem, closed: frozenset[int]) -> list[int]:
    if not closed:
        return [column.stock for column in problem.columns]
    return [0 if any(row in closed for row, _ in column.rows) else column.stock for column in problem.columns]


def _run(problem: Problem, model: _Model, start: Sequence[int] | None = None) -> "highspy.Highs":
    """Rows: the sum of all replicas, then those of the problem, whose shares are of that sum."""
    import highspy  # noqa: PLC0415 - lazily: most commands decide without the solver
    import numpy as np  # noqa: PLC0415 - the same: it comes with the solver

    columns, rows = problem.columns, problem.rows
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(columns) + 1, len(rows) + 1
    lp.col_cost_ = np.array([*model.cost, model.sum_cost], dtype=np.double)
    lp.col_lower_ = np.array([*model.lower, model.sum_lower], dtype=np.double)
    lp.col_upper_ = np.array([*model.upper, highspy.kHighsInf], dtype=np.double)
    lp.row_lower_ = np.array([0.0] + [-highspy.kHighsInf] * len(rows), dtype=np.double)
    lp.row_upper_ = np.array(
        [0.0] + [highspy.kHighsInf if index in model.closed else row.base for index, row in enumerate(rows)],
        dtype=np.double,
    )
    starts, indices, values = [0], [], []
    for column in columns:
        indices.append(0)
        values.append(float(column.replicas))
        for row, weight in column.rows:
            indices.append(row + 1)
            values.append(weight)
        starts.append(len(indices))
    indices += [0, *(index + 1 for index, row in enumerate(rows) if row.share)]
    values += [-1.0, *(-row.share for row in rows if row.share)]
    starts.append(len(indices))
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.array(starts, dtype=np.int32)
    lp.a_matrix_.index_ = np.array(indices, dtype=np.int32)
    lp.a_matrix_.value_ = np.array(values, dtype=np.double)
    if model.whole:
        lp.integrality_ = [highspy.HighsVarType.kInteger] * len(columns) + [highspy.HighsVarType.kContinuous]
    highs = _solver(model)
    highs.passModel(lp)
    if model.whole and start is not None:
        solution = highspy.HighsSolution()
        solution.col_value = [*map(float, start), float(problem.replicas(start))]
        highs.setSolution(solution)
    highs.run()
    return highs


def _solver(model: _Model) -> "highspy.Highs":
    highs = _quiet()()
    for option, value in (
        ("output_flag", False),
        ("threads", 1),
        ("parallel", "off"),
        ("random_seed", 0),
        ("mip_rel_gap", 0.0 if model.sum_cost else GAP),
        ("mip_abs_gap", 1 - EPSILON if model.sum_cost else EPSILON),  # the most replicas are a whole number
        ("mip_max_nodes", NODES_MAX),
    ):
        highs.setOptionValue(option, value)
    return highs


@functools.cache
def _quiet() -> "type[highspy.Highs]":
    """The solver without its callbacks: setting them up prints a banner to stdout before any option can forbid it."""
    import highspy  # noqa: PLC0415 - lazily: most commands decide without the solver

    class Quiet(highspy.Highs):
        def enableCallbacks(self) -> None:  # noqa: N802 - the name is the solver's
            pass

    return Quiet


def _solved(highs: "highspy.Highs") -> bool:
    import highspy  # noqa: PLC0415 - lazily: most commands decide without the solver

    return highs.getModelStatus() == highspy.HighsModelStatus.kOptimal


def _whole(problem: Problem, highs: "highspy.Highs") -> tuple[int, ...] | None:
    """The plan found, in whole machines, if it keeps every row exactly."""
    import highspy  # noqa: PLC0415 - lazily: most commands decide without the solver

    if highs.getInfo().primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return None
    machines = tuple(round(value) for value in highs.getSolution().col_value[: len(problem.columns)])
    return machines if problem.feasible(machines) else None


def _search_bound(highs: "highspy.Highs") -> float:
    import highspy  # noqa: PLC0415 - lazily: most commands decide without the solver

    status = highs.getModelStatus()
    if status == highspy.HighsModelStatus.kInfeasible:
        return math.inf
    if status not in {highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kSolutionLimit}:
        return 0.0
    bound: float = highs.getInfo().mip_dual_bound
    return bound - ROUNDING * abs(bound)


def _dual(
    problem: Problem,
    target: int,
    row_dual: Sequence[float],
    closed: frozenset[int],
    box: tuple[Sequence[int], Sequence[int]],
) -> tuple[float, tuple[float, ...]]:
    """The Lagrangian bound at the row prices, for the true prices, and the reduced cost of each column.

    For prices v ≥ 0 of the rows and q = y + Σ v·share, y ≥ 0, of a replica, any plan in the box costs at least
    y·target − Σ v·base + Σ over columns of min over the box of (price − q·replicas + Σ v·weight) × machines.
    """
    prices = [
        0.0 if index in closed else max(0.0, -dual) for index, dual in enumerate(row_dual[1 : len(problem.rows) + 1])
    ]
    shares = math.fsum(price * row.share for price, row in zip(prices, problem.rows, strict=True))
    worth = max(0.0, row_dual[0] - shares)
    replica = worth + shares
    parts = [worth * target]
    parts += [-price * row.base for price, row in zip(prices, problem.rows, strict=True)]
    reduced = []
    for column, low, high in zip(problem.columns, *box, strict=True):
        extra = column.price - replica * column.replicas
        for row, weight in column.rows:
            extra += prices[row] * weight
        reduced.append(extra)
        parts.append(extra * (low if extra > 0 else high))
    bound = math.fsum(parts)
    return max(0.0, bound - ROUNDING * max(map(abs, parts))), tuple(reduced)
