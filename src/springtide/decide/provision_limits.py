"""Why a need cannot be met, in words: which limits bind where a plan falls short, and what would lift each."""

from collections.abc import Sequence

from springtide.decide.provision_greedy import Filling
from springtide.decide.provision_problem import Problem, RowKind


def limits(problem: Problem, counts: Sequence[int]) -> tuple[str, ...]:
    """One sentence for each limit that keeps this plan, which falls short, from having more."""
    replicas = problem.replicas(counts)
    state = Filling(problem, replicas, counts)
    blocking = {index for index, row in enumerate(problem.rows) if row.is_full(problem.target)}
    exhausted = problem.left_out.get("stock", 0)
    for index, column in enumerate(problem.columns):
        if counts[index] >= column.stock:
            exhausted += 1
        else:
            blocking |= {row for row, weight in column.rows if not state.fits(row, weight, column.replicas)}
    words = _rows(problem, counts, blocking)
    if exhausted:
        machines = sum(column.stock for index, column in enumerate(problem.columns) if counts[index] >= column.stock)
        words.append(
            f"stock: {_offers(exhausted)} have no more ({machines:,} machines are all taken): "
            "allow more types or zones, or wait until stock returns"
        )
    words += _left_out(problem)
    if not words:
        words.append("offers: there is nothing to rent: name types and zones that can be had")
    return tuple(words)


def _left_out(problem: Problem) -> list[str]:
    need = problem.need
    words = []
    if problem.left_out.get("arch"):
        words.append(
            f"arch: {_offers(problem.left_out['arch'])} do not run an image for {' or '.join(need.arch)}: "
            "build the image for their architecture too"
        )
    if problem.left_out.get("size"):
        memory = f" and {need.replica_memory_mb:,} MB" if need.replica_memory_mb else ""
        words.append(
            f"size: {_offers(problem.left_out['size'])} are too small for a replica of {need.replica_cores:g} "
            f"cores{memory}: allow larger types, or make the replica smaller"
        )
    return words


def _rows(problem: Problem, counts: Sequence[int], blocking: set[int]) -> list[str]:
    need = problem.need
    used = problem.used(counts)
    words = []
    zones = []
    missing = need.cores - problem.cores(problem.replicas(counts))
    for index in sorted(blocking):
        row = problem.rows[index]
        if row.kind.name == "spread":
            zones.append(row.kind.zone)
        elif row.kind.name == "quota":
            words.append(_quota(row.kind, row.base, used[index], missing))
        elif row.kind.name == "spot":
            words.append(
                f"spot: at most {need.spot_share_max:.0%} of all cores may be spot, and are: "
                "raise spot_share_max, or allow more on demand"
            )
        else:
            words.append(
                f"spend: {used[index] / 100:,.2f} of {need.spend_max_fen_per_h / 100:,.2f} CNY per hour are spent, "
                "and nothing more fits: raise the spending limit"
            )
    if zones:
        words.append(
            f"spread: zone {', '.join(zones)} may have at most {need.zone_share_max:.0%} of all cores: "
            "offer more in other zones, or raise zone_share_max"
        )
    return words


def _quota(kind: RowKind, left: float, used: float, missing: int) -> str:
    market = "" if kind.market is None else kind.market.value
    where = f"zone {kind.zone}" if kind.zone else "all zones"
    return (
        f"quota: the {left:,.0f} cores that the quota of {market} in {where} leaves are used up to {used:,.0f}: "
        f"have it raised by {missing:,} cores or more"
    )


def _offers(count: int) -> str:
    return "1 offer" if count == 1 else f"{count:,} offers"
