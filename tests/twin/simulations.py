"""A small world to simulate: two rooms of the owner's, two cloud zones, a line, a sale of a quarter of an hour."""

from typing import Any

import msgspec

from springtide.model import Market, ZoneKind
from springtide.twin.simulation.faults import Fault
from springtide.twin.simulation.flow import PathSettings
from springtide.twin.simulation.scenario import (
    DemandSettings,
    Scenario,
    Service,
    SimCloud,
    SimLine,
    SimOffer,
    SimZone,
    Wave,
)

FLEET = {
    "tick_ms": 5_000,
    "headroom": 0.1,
    "base_replicas": 4,
    "patience_s": 60.0,
    "drain_s": 5.0,
    "start_s": 20.0,
    "actions_max": 200,
    "starting_max": 200,
    "failure_budget": 0,
    "scale_in_share": 0.5,
    "scale_in_every_s": 10.0,
}


def small(*faults: Fault, fleet: dict[str, Any] | None = None, **changes: Any) -> Scenario:
    """200 people a second, 2,000 from second 300 to 900: 18 replicas of 8 cores beyond the owner's 8."""
    scenario = Scenario(
        name="small",
        seed=7,
        duration_s=1_500,
        service=Service(cpu_s=0.1, load_max=0.8, replica_cores=8, start_s=10, image_mb=500),
        demand=DemandSettings(
            base_per_s=200,
            waves=(
                Wave("sale", opens_s=300, peak_per_s=1_800, rise_s=20, holds_s=500, fades_s=60, announced_per_s=2_100),
            ),
        ),
        zones=(
            SimZone("idc-a", ZoneKind.IDC, nodes=2, cores_per_node=16),
            SimZone("idc-b", ZoneKind.IDC, nodes=2, cores_per_node=16),
            SimZone("cloud-a", ZoneKind.CLOUD, nodes=40, cores_per_node=16, lines=("line",), lead_s=120),
            SimZone("cloud-b", ZoneKind.CLOUD, nodes=40, cores_per_node=16, lines=("line",), lead_s=120),
        ),
        lines=(SimLine("line", gbit=1.0),),
        cloud=SimCloud(
            offers=(
                SimOffer("ecs.a", 16, 32, 3.0, stock=6),
                SimOffer("ecs.b", 8, 16, 1.8, stock=40),
                SimOffer("eci-8c16g", 8, 16, 1.9, stock=20, market=Market.ECI),
            ),
            boot_median_s=40,
            boot_p99_s=100,
            refill_share_per_h=0,
        ),
        path=PathSettings(stock=200_000, purchase_share=0.5, service_ms=100),
        faults=faults,
    )
    settings = msgspec.convert({**FLEET, **(fleet or {})}, type(scenario.fleet))
    return msgspec.structs.replace(scenario, fleet=settings, **changes)
