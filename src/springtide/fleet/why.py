"""Why the fleet is as it is: the decisions of a journal that changed something, with their reasons and outcomes."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from springtide.fleet.journal import Decision, Entry, Fault, Outcome
from springtide.model import (
    Action,
    DrainReplica,
    KeepNodes,
    Plan,
    ReleaseNode,
    RentNodes,
    SetEndpoints,
    StartReplica,
    StopReplica,
    ZoneState,
)

MOMENTS_MAX = 10_000
"""The most that one answer holds; the newest are kept."""


class Moment(msgspec.Struct):
    """A tick at which a service's plan changed, or something went wrong.

    `wanted` is replicas before and after. `reasons` are those that were not among the reasons of the moment before,
    or all of them where the number changed. `actions` are (what, reason) in order; `failures` what went wrong since.
    """

    at_ms: int
    tick: int
    service: str
    wanted: tuple[int, int]
    placement: dict[str, int]
    reasons: tuple[str, ...]
    actions: tuple[tuple[str, str], ...]
    alerts: tuple[str, ...]
    failures: list[str] = []


def why(entries: Iterable[Entry], service: str = "", last: int = MOMENTS_MAX) -> list[Moment]:
    """The moments of a journal, oldest first; of one service, or of all. Only the `last` ones."""
    return list(deque(_moments(entries, service), maxlen=min(last, MOMENTS_MAX)))


def _moments(entries: Iterable[Entry], service: str) -> Iterator[Moment]:
    before: dict[str, Plan] = {}
    latest: dict[str, Moment] = {}
    for entry in entries:
        match entry:
            case Decision(snapshot=snapshot, plan=plan):
                if service and snapshot.service != service:
                    continue
                moment = _moment(entry, before.get(snapshot.service))
                before[snapshot.service] = plan
                if moment:
                    latest[snapshot.service] = moment
                    yield moment
            case Outcome(action=action, error=error) if error:
                _add(latest, f"{describe(action)}: {error}")
            case Fault(source=source, error=error):
                _add(latest, f"{source}: {error}")
            case _:
                pass


def _moment(decision: Decision, before: Plan | None) -> Moment | None:
    """What this decision changed; None when it only went on."""
    snapshot, plan = decision.snapshot, decision.plan
    wanted = before.replicas_wanted if before else 0, plan.replicas_wanted
    changed = (
        before is None
        or wanted[0] != wanted[1]
        or plan.placement != before.placement
        or plan.alerts != before.alerts
        or _states(plan) != _states(before)
        or bool(plan.actions)
    )
    if not changed:
        return None
    known = set(before.reasons) if before and wanted[0] == wanted[1] else set()
    return Moment(
        at_ms=snapshot.now_ms,
        tick=plan.tick,
        service=snapshot.service,
        wanted=wanted,
        placement=plan.placement,
        reasons=tuple(reason for reason in plan.reasons if reason not in known),
        actions=tuple((describe(action), action.reason) for action in plan.actions),
        alerts=plan.alerts,
        failures=[],
    )


def _states(plan: Plan) -> Mapping[str, ZoneState]:
    return {name: health.state for name, health in plan.zone_health.items()}


def _add(latest: Mapping[str, Moment], failure: str) -> None:
    """To the newest moment of each service: an engine's fault concerns them all. Each text once."""
    for moment in latest.values():
        if failure not in moment.failures:
            moment.failures.append(failure)


def describe(action: Action) -> str:
    """An action in a few words."""
    text = ""
    match action:
        case RentNodes(zone=zone, count=count, instance_type=kind, market=market):
            text = f"rent {count} nodes in {zone}" + (f": {kind}, {market}" if kind else "")
        case KeepNodes(node_ids=node_ids):
            text = f"keep {len(node_ids)} nodes for longer"
        case ReleaseNode(node_id=node_id, zone=zone):
            text = f"release {node_id} of {zone}"
        case StartReplica(spec=spec):
            text = f"start {spec.replica_id} on {spec.node_id}"
        case DrainReplica(replica_id=replica_id):
            text = f"drain {replica_id}"
        case StopReplica(replica_id=replica_id):
            text = f"stop {replica_id}"
        case SetEndpoints(endpoints=endpoints):
            text = f"balance over {sum(endpoint.weight > 0 for endpoint in endpoints)} replicas"
    return text
