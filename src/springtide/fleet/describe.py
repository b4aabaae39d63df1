"""The status of the fleet from what the loop has just seen and decided."""

from collections import Counter, defaultdict
from collections.abc import Iterable

import msgspec

from springtide.fleet.desk import Desk
from springtide.fleet.status import FleetStatus, ServiceStatus


def fleet_status(desks: Iterable[Desk], frame: FleetStatus) -> FleetStatus:
    """`frame` is what is known of the whole; a service without a decision yet is only named."""
    services = {desk.service: service_status(desk) for desk in desks}
    alerts = tuple(f"{name}: {alert}" for name, one in services.items() for alert in one.alerts)
    return msgspec.structs.replace(frame, services=services, alerts=(*frame.alerts, *alerts))


def service_status(desk: Desk) -> ServiceStatus:
    """One service at its last decision."""
    port = desk.wish.port if desk.wish else 0
    if desk.latest is None:
        return ServiceStatus(desk.service, desk.revision, retiring=desk.retiring, port=port)
    snapshot, plan = desk.latest
    replicas: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for replica in snapshot.replicas:
        replicas[replica.zone][replica.state.value] += 1
    last = snapshot.traffic[-1] if snapshot.traffic else None
    return ServiceStatus(
        service=desk.service,
        revision=snapshot.revision,
        replicas={zone: dict(states) for zone, states in sorted(replicas.items())},
        wanted=plan.replicas_wanted,
        placement=plan.placement,
        weights=plan.weights,
        nodes=dict(Counter(node.zone for node in snapshot.nodes if node.client_token)),
        demand=plan.demand,
        requests_per_s=last.requests_per_s if last else 0.0,
        failed_per_s=last.failed_per_s if last else 0.0,
        queued=last.queued if last else 0,
        in_flight=last.in_flight if last else 0,
        p99_ms=last.p99_ms if last else None,
        zone_health=plan.zone_health,
        capacity=plan.capacity,
        rollout=plan.rollout,
        reasons=plan.reasons,
        alerts=plan.alerts,
        ages_ms=snapshot.ages_ms,
        retiring=desk.retiring,
        port=port,
        failure=desk.failure,
    )
