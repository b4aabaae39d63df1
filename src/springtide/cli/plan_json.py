"""The plan of an event as JSON: money in CNY, moments in ISO 8601 with the offset that the event's file has."""

import math
from datetime import datetime, tzinfo
from typing import Any

from springtide.console.plan_view import Effort
from springtide.model import FEN_PER_CNY, EventNeed, EventPlan, EventRisk, Milestone, Purchase


def iso(at_ms: int, zone: tzinfo | None) -> str:
    """A moment, to the second that has begun by then."""
    return datetime.fromtimestamp(at_ms // 1000, zone).isoformat()


def plan_json(need: EventNeed, plan: EventPlan, effort: Effort, zone: tzinfo | None, now_ms: int) -> dict[str, Any]:
    """All of it.

    `cores` are those to be rented, `spare_cores` come on top. `cost_cny`, `lower_bound_cny` and `greedy_cost_cny`
    (null: first fit finds no way) are of the same cores over the same hours, `gap` the distance of the first two as a
    share of the cost. `solve_ms` is the solver's, over all its calls.
    """
    found = plan.provision
    return {
        "event": plan.event,
        "at": iso(need.at_ms, zone),
        "planned_at": iso(now_ms, zone),
        "wanted_at": iso(plan.wanted_ms, zone),
        "ready_at": iso(math.ceil(plan.ready_ms / 1000) * 1000, zone),
        "begin_at": iso(min((one.begin_ms for one in plan.milestones), default=plan.wanted_ms), zone),
        "cores": plan.cores,
        "cores_in_all": need.cores,
        "cores_standing": need.free_cores,
        "spare_cores": plan.spare_cores,
        "short_cores": found.short_cores,
        "probability": plan.probability,
        "probability_asked": need.probability,
        "cost_cny": _cny(plan.cost_fen),
        "cost_cny_per_h": _cny(found.cost_fen_per_h),
        "hours": plan.hours,
        "lower_bound_cny": _cny(found.bound_fen_per_h * plan.hours),
        "gap": found.gap,
        "greedy_cost_cny": None if found.greedy_fen_per_h is None else _cny(found.greedy_fen_per_h * plan.hours),
        "solve_ms": round(effort.solve_ms, 1),
        "plan_ms": round(effort.plan_ms, 1),
        "line_share": plan.line_share if math.isfinite(plan.line_share) else None,
        "purchases": [_purchase(one, zone) for one in found.purchases],
        "milestones": [_milestone(one, zone) for one in plan.milestones],
        "breaks": [_risk(one) for one in plan.breaks],
        "limits": list(found.limits),
        "refused": list(plan.refused),
    }


def _purchase(one: Purchase, zone: tzinfo | None) -> dict[str, Any]:
    return {
        "zone": one.zone,
        "type": one.instance_type,
        "market": one.market.value,
        "count": one.count,
        "cores": one.cores,
        "price_cny_per_h": round(one.price_fen_per_h / FEN_PER_CNY, 6),
        "order_at": iso(one.order_ms, zone),
        "ready_at": iso(math.ceil(one.ready_ms / 1000) * 1000, zone),
    }


def _milestone(one: Milestone, zone: tzinfo | None) -> dict[str, Any]:
    return {
        "name": one.name,
        "begin_at": iso(one.begin_ms, zone),
        "done_at": iso(math.ceil(one.done_ms / 1000) * 1000, zone),
        "reason": one.reason,
    }


def _risk(one: EventRisk) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "name": one.name,
        "missing_cores": one.missing_cores,
        "late_s": one.late_ms / 1000,
        "short_cores": one.short_cores,
        "added_cny_per_h": _cny(one.added_fen_per_h),
        "text": one.text,
    }


def _cny(fen: float) -> float:
    return round(fen / FEN_PER_CNY, 2)
