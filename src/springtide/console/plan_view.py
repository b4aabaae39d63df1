"""The plan of an event for people: the way to it, what is rented, what it costs, and what would break it."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from springtide.model import FEN_PER_CNY, EventNeed, EventPlan, Purchase

RISKS_MAX = 20
"""More risks than these are in the JSON only: the worst come first."""

_MS_PER_MIN = 60_000

Written = Callable[[int], str]
"""From a moment in Unix milliseconds to ISO 8601 with its offset from UTC."""


class Effort(msgspec.Struct, frozen=True):
    """What finding the plan took: the solver alone, and everything."""

    solve_ms: float
    plan_ms: float


def plan_view(need: EventNeed, plan: EventPlan, effort: Effort, moment: Written) -> RenderableType:
    """All of it as one thing to print; texts of the event's file are shown as they are, never as markup."""
    parts: list[RenderableType] = [Text(line, style=style) for line, style in _headlines(need, plan, effort, moment)]
    if plan.milestones:
        parts += [Text(), _milestones(need, plan, moment)]
    if plan.provision.purchases:
        parts += [Text(), _purchases(need, plan.provision.purchases, moment), _zones(plan)]
    if plan.risks:
        parts += [Text(), Text("What would break it, the worst first:", style="bold")]
        parts += [Text(f"  {risk}") for risk in plan.risks[:RISKS_MAX]]
        if len(plan.risks) > RISKS_MAX:
            parts.append(Text(f"  and {len(plan.risks) - RISKS_MAX} more (--json)"))
    if plan.refused:
        parts += [Text(), Text("This plan must not be carried out:", style="bold red")]
        parts += [Text(f"  {reason}", style="red") for reason in plan.refused]
    return Group(*parts)


def short(at_ms: int, day_ms: int, moment: Written) -> str:
    """The time alone for a moment of the same day, else with the date."""
    date, _, time = moment(at_ms).partition("T")
    clock = time[:8]
    return clock if moment(day_ms).startswith(date) else f"{date} {clock}"


def _headlines(need: EventNeed, plan: EventPlan, effort: Effort, moment: Written) -> Iterator[tuple[str, str]]:
    yield f"{plan.event}, {moment(need.at_ms)}, {need.lasts_ms / _MS_PER_MIN:g} min", "bold"
    base = f", {need.free_cores:,} of them free in the data centre" if need.free_cores else ""
    yield f"{need.cores:,} cores{base}; {plan.cores:,} to rent", ""
    if not plan.provision.purchases:
        if not plan.cores:
            yield "nothing has to be rented", "green"
        return
    style = "green" if plan.probability >= need.probability else "red"
    chance = f"in time with probability {plan.probability:.4f} ({need.probability:g} asked for)"
    yield f"ready {moment(plan.ready_ms)}, wanted {moment(plan.wanted_ms)}; {chance}", style
    yield from _costs(plan, effort)
    if plan.line_share:
        yield f"the lines are used to {plan.line_share:.0%} at the peak", ""


def _costs(plan: EventPlan, effort: Effort) -> Iterator[tuple[str, str]]:
    found = plan.provision
    paid = f"{_cny(found.cost_fen_per_h)} CNY/h, paid {plan.hours:.2f} h on average from the order to the release"
    yield f"{_cny(plan.cost_fen)} CNY: {paid}", ""
    greedy = ""
    if found.greedy_fen_per_h:
        saved = 1 - found.cost_fen_per_h / found.greedy_fen_per_h
        greedy = f"; first fit by price: {_cny(found.greedy_fen_per_h * plan.hours)} CNY ({saved:.1%} saved)"
    bound = f"{_cny(found.bound_fen_per_h * plan.hours)} CNY by any other purchases (gap {found.gap:.2%})"
    yield f"not below {bound}{greedy}", ""
    yield f"found in {effort.plan_ms:,.0f} ms, {effort.solve_ms:,.0f} of them the solver's", "dim"


def _milestones(need: EventNeed, plan: EventPlan, moment: Written) -> Table:
    shown = Table("step", "begins", "is done", "before", "why", title="The way to it", title_justify="left")
    for one in plan.milestones:
        before = (plan.wanted_ms - one.begin_ms) / _MS_PER_MIN
        shown.add_row(
            one.name,
            short(one.begin_ms, need.at_ms, moment),
            short(one.done_ms, need.at_ms, moment),
            f"{before:,.1f} min" if before > 0 else "",
            Text(one.reason),
        )
    return shown


def _purchases(need: EventNeed, purchases: Sequence[Purchase], moment: Written) -> Table:
    """By type and market, over all zones."""
    shown = Table(
        "type",
        "market",
        "machines",
        "cores",
        "zones",
        "CNY/h each",
        "first order",
        title="What is rented",
        title_justify="left",
    )
    for (name, market), rows in _grouped(purchases, lambda one: (one.instance_type, one.market.value)):
        shown.add_row(
            Text(name or "–"),
            market,
            f"{sum(one.count for one in rows):,}",
            f"{sum(one.cores for one in rows):,}",
            f"{len({one.zone for one in rows})}",
            f"{rows[0].price_fen_per_h / FEN_PER_CNY:,.3f}",
            short(min(one.order_ms for one in rows), need.at_ms, moment),
        )
    return shown


def _zones(plan: EventPlan) -> Text:
    whole = max(1, plan.provision.cores)
    shares = (
        f"{zone} {sum(one.cores for one in rows) / whole:.0%}"
        for (zone, _), rows in _grouped(plan.provision.purchases, lambda one: (one.zone, ""))
    )
    return Text("spread: " + ", ".join(shares))


def _grouped(
    purchases: Iterable[Purchase], key: Callable[[Purchase], tuple[str, str]]
) -> list[tuple[tuple[str, str], list[Purchase]]]:
    found: dict[tuple[str, str], list[Purchase]] = {}
    for one in purchases:
        found.setdefault(key(one), []).append(one)
    return sorted(found.items(), key=lambda item: (-sum(one.cores for one in item[1]), item[0]))


def _cny(fen: float) -> str:
    return f"{fen / FEN_PER_CNY:,.0f}"
