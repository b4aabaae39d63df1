"""One observation into a snapshot for each service: what others have rented and ordered is not there twice."""

import msgspec

from springtide.decide.plan import plan
from springtide.fleet.desk import Desk
from springtide.fleet.observe import Observation, ServiceSeen
from springtide.fleet.split import Fleet
from springtide.model import (
    Fill,
    Market,
    Node,
    NodeState,
    Offer,
    Plan,
    Quota,
    RentNodes,
    Snapshot,
    TrafficSample,
    Wishes,
)
from tests.unit.fleets import IDC_NODES, NOW, POLICY, A, B, H

WIDE = msgspec.structs.replace(H, nodes_max=50)
ZONES = (A, B, WIDE)
LARGE = Offer("cloud-h", "c.large", Market.ON_DEMAND, 4, 8_192, 80.0, stock=3)
DEAR = Offer("cloud-h", "c.huge", Market.ON_DEMAND, 4, 8_192, 160.0)
ROOMY = msgspec.structs.replace(POLICY, actions_max=50, starting_max=50)


def rented(name: str, service: str) -> Node:
    token = f"r1-{service}-1-cloud-h"
    return Node(name, "cloud-h", NodeState.READY, 4, token, NOW - 9_000, 8_192, "c.large", price_fen_per_h=80.0)


def fleet(*nodes: Node, rate: float = 800.0, quota: int = 100) -> tuple[Fleet, dict[str, Desk]]:
    desks = {name: Desk(name, f"r1-{name}", ROOMY, ZONES) for name in ("api", "web")}
    traffic = tuple(TrafficSample(NOW - 500 * n, rate) for n in range(19, -1, -1))
    seen = Observation(
        now_ms=NOW,
        nodes=(*IDC_NODES, *nodes),
        replicas=(),
        ages_ms={},
        services={name: ServiceSeen(traffic=traffic) for name in desks},
        unheard=frozenset(),
        wishes=Wishes(cordoned=frozenset({"idc-a-0"})),
        offers=(LARGE, DEAR),
        quotas=(Quota(Market.ON_DEMAND, quota, 4),),
        line_load={"east": 0.25},
        fills=(Fill(LARGE.key, NOW - 1, 1, 1),),
    )
    return Fleet(seen, seen.nodes, ZONES, (), desks, alone=False), desks


def take(whole: Fleet, desk: Desk) -> tuple[Snapshot, Plan]:
    seen = whole.snapshot(desk, 7, (), {})
    decided = plan(seen, ROOMY)
    whole.planned(desk.service, decided.actions)
    return seen, decided


def test_a_snapshot_has_what_the_cloud_says() -> None:
    whole, desks = fleet()
    seen, _ = take(whole, desks["api"])
    assert seen.offers == (LARGE, DEAR)
    assert seen.fills == (Fill(LARGE.key, NOW - 1, 1, 1),)
    assert seen.cordoned == {"idc-a-0"}
    assert seen.line_load == {"east": 0.25}
    assert seen.others_fen_per_h == 0.0


def test_what_one_service_orders_in_a_tick_the_next_one_does_not_find() -> None:
    whole, desks = fleet(quota=24)
    _, first = take(whole, desks["api"])
    rents = [action for action in first.actions if isinstance(action, RentNodes)]
    assert [(rent.order.offer_key, rent.count) for rent in rents] == [(LARGE.key, 2)]
    seen, second = take(whole, desks["web"])
    assert [offer.stock for offer in seen.offers] == [1, None]
    assert seen.quotas == (Quota(Market.ON_DEMAND, 24, 12),)
    assert seen.others_fen_per_h == 160.0
    rents = [action for action in second.actions if isinstance(action, RentNodes)]
    assert {rent.order.offer_key: rent.count for rent in rents} == {LARGE.key: 1, DEAR.key: 1}


def test_what_others_have_rented_counts_for_quota_and_money() -> None:
    whole, desks = fleet(rented("n1", "api"), rented("n2", "api"), rented("n3", "web"))
    seen, _ = take(whole, desks["web"])
    assert {node.node_id for node in seen.nodes if node.client_token} == {"n3"}
    assert seen.quotas == (Quota(Market.ON_DEMAND, 100, 12),)
    assert seen.others_fen_per_h == 160.0
