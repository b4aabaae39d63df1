"""Purchases from offers, case by case: what is bought where, kept, given back, and said."""

from typing import Any

import msgspec
import pytest

from springtide.decide.plan import plan
from springtide.decide.stock import Shortfall
from springtide.model import (
    DrainReplica,
    Fill,
    KeepNodes,
    LineLimit,
    Market,
    Node,
    NodeState,
    Offer,
    Plan,
    Purchase,
    Quota,
    ReleaseNode,
    RentNodes,
    Replica,
    ReplicaState,
    StartReplica,
    Zone,
)
from tests.unit.fleets import BASE, IDC_NODES, NOW, POLICY, A, B, H, event, replica, snapshot

WIDE = msgspec.structs.replace(H, nodes_max=50)
J = msgspec.structs.replace(WIDE, name="cloud-j")
BOOT = (10_000, 20_000)
LARGE = Offer("cloud-h", "c.large", Market.ON_DEMAND, 4, 8_192, 80.0, boot_ms=BOOT)
SMALL = Offer("cloud-h", "c.small", Market.ON_DEMAND, 2, 4_096, 50.0, boot_ms=BOOT)
OTHER = Offer("cloud-j", "c.large", Market.ON_DEMAND, 4, 8_192, 90.0, boot_ms=BOOT)
SPOT = Offer("cloud-j", "c.large", Market.SPOT, 4, 8_192, 20.0, boot_ms=BOOT)
OFFERS = (LARGE, SMALL, OTHER)
ROOMY = msgspec.structs.replace(POLICY, actions_max=50, starting_max=50)


def decide(rate: float, policy: Any = ROOMY, **changes: Any) -> Plan:
    changes = {"zones": (A, B, WIDE, J), "offers": OFFERS, **changes}
    return plan(snapshot(rate, **changes), policy)


def rents(decided: Plan) -> list[tuple[str, int]]:
    return [(a.order.offer_key, a.count) for a in decided.actions if isinstance(a, RentNodes)]


def of(kind: type[Any], decided: Plan) -> list[Any]:
    return [action for action in decided.actions if isinstance(action, kind)]


def rented(name: str, offer: Offer = LARGE, state: NodeState = NodeState.READY, **fields: Any) -> Node:
    node = Node(
        node_id=name,
        zone=offer.zone,
        state=state,
        cores=offer.cores,
        client_token=f"r1-1-{name}",
        since_ms=NOW - 60_000,
        instance_type=offer.instance_type,
        market=offer.market,
        price_fen_per_h=offer.price_fen_per_h,
        rented_ms=NOW - 70_000,
    )
    return msgspec.structs.replace(node, **fields)


def on(node: Node, count: int) -> tuple[Replica, ...]:
    return tuple(replica(f"{node.node_id}-{number}", node) for number in range(count))


def test_the_spike_is_bought_where_it_is_cheapest() -> None:
    # 800/s and a quarter more need 10 replicas, of which 2 are in the IDC.
    assert rents(decide(800.0)) == [(LARGE.key, 2)]
    assert rents(decide(880.0)) == [(LARGE.key, 2), (SMALL.key, 1)]


def test_what_is_there_or_coming_is_not_bought_again() -> None:
    there = rented("n1")
    coming = RentNodes("cloud-h", 1, "t", "", "c.large", cores=4)
    assert rents(decide(800.0, nodes=(*IDC_NODES, there), in_flight=(coming,))) == []
    assert rents(decide(800.0, nodes=(*IDC_NODES, there))) == [(LARGE.key, 1)]


def test_what_came_short_is_asked_of_the_next_best_at_once() -> None:
    short = Fill(LARGE.key, NOW - 500, 2, 1, f"{Shortfall.STOCK}: no more")
    nodes = (*IDC_NODES, rented("n1", state=NodeState.BOOTING))
    assert rents(decide(800.0, nodes=nodes, fills=(short,))) == [(OTHER.key, 1)]
    gone = [Fill(offer.key, NOW - 500, 2, 0, f"{Shortfall.STOCK}: none") for offer in (LARGE, OTHER)]
    assert rents(decide(800.0, nodes=nodes, fills=tuple(gone))) == [(SMALL.key, 2)]


def test_the_idcs_spare_room_is_for_what_the_cloud_cannot_deliver() -> None:
    few = tuple(msgspec.structs.replace(offer, stock=1 if offer is LARGE else 0) for offer in OFFERS)
    decided = decide(800.0, offers=few)
    assert rents(decided) == [(LARGE.key, 1)]
    assert decided.placement == {"idc-a": 3, "idc-b": 3, "cloud-h": 4, "cloud-j": 0}
    short = decide(1_600.0, offers=few)
    assert any("capacity short by 8 replicas: the cloud's offers" in alert for alert in short.alerts)


def test_nodes_max_sends_the_rest_to_another_zone() -> None:
    tight = msgspec.structs.replace(WIDE, nodes_max=1)
    assert rents(decide(800.0, zones=(A, B, tight, J))) == [(LARGE.key, 1), (OTHER.key, 1)]


def test_a_purchase_over_the_spending_limit_is_refused_and_said() -> None:
    limited = msgspec.structs.replace(ROOMY, spend_max_fen_per_h=100.0)
    decided = decide(800.0, limited)
    assert rents(decided) == [(LARGE.key, 1)]
    assert any("spend" in alert for alert in decided.alerts)
    spent = decide(800.0, limited, others_fen_per_h=100.0)
    assert rents(spent) == []


def test_quotas_and_what_is_on_order_bound_a_purchase() -> None:
    assert rents(decide(800.0, quotas=(Quota(Market.ON_DEMAND, 20, 16),))) == [(LARGE.key, 1)]
    coming = RentNodes("cloud-j", 1, "t", "", "c.large", cores=4)
    assert rents(decide(1_600.0, quotas=(Quota(Market.ON_DEMAND, 8),), in_flight=(coming,))) == [(LARGE.key, 1)]


def test_spot_has_its_share_and_no_more() -> None:
    offers = (*OFFERS, SPOT)
    assert rents(decide(800.0, offers=offers)) == [(LARGE.key, 2)]
    half = msgspec.structs.replace(ROOMY, spot_share_max=0.5)
    assert sorted(rents(decide(800.0, half, offers=offers))) == [(LARGE.key, 1), (SPOT.key, 1)]


def test_a_machine_that_will_be_taken_away_is_replaced_at_once_and_emptied_when_that_stands() -> None:
    leaving = rented("n1", SPOT, reclaim_ms=NOW + 300_000)
    replicas = (*BASE, *on(leaving, 4))
    alone = decide(480.0, nodes=(*IDC_NODES, leaving), replicas=replicas)
    assert rents(alone) == [(LARGE.key, 1)]
    assert of(DrainReplica, alone) == []
    new = rented("n2")
    replaced = decide(480.0, nodes=(*IDC_NODES, leaving, new), replicas=(*replicas, *on(new, 4)))
    assert {drain.replica_id for drain in of(DrainReplica, replaced)} == {f"n1-{number}" for number in range(4)}
    empty = decide(480.0, nodes=(*IDC_NODES, leaving, new), replicas=(*BASE, *on(new, 4)))
    assert [release.node_id for release in of(ReleaseNode, empty)] == ["n1"]


def test_in_its_last_moments_a_machine_has_no_traffic_whatever_stands() -> None:
    leaving = rented("n1", SPOT, reclaim_ms=NOW + 15_000)
    decided = decide(480.0, nodes=(*IDC_NODES, leaving), replicas=(*BASE, *on(leaving, 4)))
    assert len(of(DrainReplica, decided)) == 4
    blind = decide(480.0, nodes=(*IDC_NODES, leaving), replicas=(*BASE, *on(leaving, 4)), traffic=())
    assert len(of(DrainReplica, blind)) == 4


def test_nothing_new_starts_on_a_cordoned_node() -> None:
    nodes = (*IDC_NODES, rented("n1"), rented("n2"))
    decided = decide(480.0, nodes=nodes, cordoned=frozenset({"n1", "idc-a-0"}))
    assert {start.spec.node_id for start in of(StartReplica, decided)} == {"n2"}
    assert rents(decided) == []


def test_the_dearest_core_goes_first() -> None:
    nodes = (*IDC_NODES, rented("cheap"), rented("dear", SMALL), rented("large", LARGE))
    decided = decide(640.0, nodes=nodes)
    assert [release.node_id for release in of(ReleaseNode, decided)] == ["dear"]


@pytest.mark.parametrize(("age_ms", "goes"), [(600_000, False), (3_500_000, True), (3_700_000, False)])
def test_an_hour_that_is_paid_for_is_kept(age_ms: int, goes: bool) -> None:  # noqa: FBT001 - a parameter of the test
    hourly = msgspec.structs.replace(LARGE, billing_ms=3_600_000)
    nodes = (*IDC_NODES, rented("n1", rented_ms=NOW - age_ms))
    decided = decide(50.0, nodes=nodes, offers=(hourly,))
    assert bool(of(ReleaseNode, decided)) is goes


def test_the_clouds_own_release_is_set_well_past_the_event_and_moved_when_it_moves() -> None:
    kept = msgspec.structs.replace(ROOMY, release_after_ms=3_600_000)
    sale = event(30_000, 800.0)
    ends_ms = sale.opens_ms + sale.lasts_ms
    (rent,) = of(RentNodes, decide(50.0, kept, calendar=(sale,)))
    assert rent.order.release_at_ms == ends_ms + 3_600_000
    nodes = (*IDC_NODES, *(rented(f"n{n}", release_at_ms=ends_ms + 3_600_000) for n in (1, 2)))
    assert of(KeepNodes, decide(50.0, kept, calendar=(sale,), nodes=nodes)) == []
    longer = msgspec.structs.replace(sale, lasts_ms=sale.lasts_ms + 900_000)
    (keep,) = of(KeepNodes, decide(50.0, kept, calendar=(longer,), nodes=nodes))
    assert set(keep.node_ids) == {"n1", "n2"}
    assert keep.release_at_ms == ends_ms + 900_000 + 3_600_000
    assert of(KeepNodes, decide(50.0, kept, calendar=(longer,), nodes=nodes, in_flight=(keep,))) == []
    shorter = msgspec.structs.replace(sale, lasts_ms=1_000)
    assert of(KeepNodes, decide(50.0, kept, calendar=(shorter,), nodes=nodes)) == []


def test_what_still_serves_is_not_taken_back_by_the_clock() -> None:
    kept = msgspec.structs.replace(ROOMY, release_after_ms=3_600_000)
    node = rented("n1", release_at_ms=NOW + 600_000)
    (keep,) = of(KeepNodes, decide(480.0, kept, nodes=(*IDC_NODES, node), replicas=(*BASE, *on(node, 4))))
    assert keep.node_ids == ("n1",)
    assert keep.release_at_ms == NOW + 3_600_000


def scheduled(order_in_ms: int, **fields: Any) -> Purchase:
    purchase = Purchase(
        "cloud-j",
        "c.large",
        Market.ON_DEMAND,
        2,
        8,
        90.0,
        NOW + order_in_ms,
        NOW + 60_000,
        client_token="event-web-1-j",
    )
    return msgspec.structs.replace(purchase, needed_ms=NOW + 900_000, needed_until_ms=NOW + 1_800_000, **fields)


def test_a_scheduled_purchase_is_ordered_when_it_is_due_as_it_was_planned() -> None:
    kept = msgspec.structs.replace(ROOMY, release_after_ms=3_600_000)
    (rent,) = of(RentNodes, decide(50.0, kept, purchases=(scheduled(0),)))
    assert rent.order.offer_key == OTHER.key
    assert (rent.count, rent.client_token) == (2, "event-web-1-j")
    assert rent.release_at_ms == NOW + 1_800_000 + 3_600_000
    assert rents(decide(50.0, purchases=(scheduled(1),))) == []


def test_what_a_scheduled_purchase_lacks_is_bought_elsewhere_and_what_came_is_held() -> None:
    came = rented("n1", OTHER, client_token="event-web-1-j")
    decided = decide(50.0, nodes=(*IDC_NODES, came), purchases=(scheduled(-1_000, ordered=True),))
    assert rents(decided) == [(LARGE.key, 1)]
    assert of(ReleaseNode, decided) == []
    both = (came, rented("n2"))
    decided = decide(50.0, nodes=(*IDC_NODES, *both), purchases=(scheduled(-1_000, ordered=True),))
    assert (rents(decided), of(ReleaseNode, decided)) == ([], [])


def test_what_is_scheduled_for_an_event_in_sight_is_waited_for_but_not_when_the_crowd_is_there() -> None:
    sale = event(26_000, 800.0)
    soon = scheduled(2_000)
    soon = msgspec.structs.replace(soon, needed_ms=sale.opens_ms - sale.ready_ms)
    assert rents(decide(50.0, calendar=(sale,), purchases=(soon,))) == []
    assert rents(decide(800.0, calendar=(sale,), purchases=(soon,))) == [(LARGE.key, 2)]


def test_a_scheduled_purchase_over_the_spending_limit_is_refused_and_said() -> None:
    limited = msgspec.structs.replace(ROOMY, spend_max_fen_per_h=100.0)
    decided = decide(50.0, limited, purchases=(scheduled(0),))
    assert OTHER.key not in {key for key, count in rents(decided) if count == 2}
    assert any("over the spending limit of 1.00 CNY/h" in alert for alert in decided.alerts)


def test_an_event_that_will_not_be_met_is_said_as_soon_as_that_is_known() -> None:
    sale = event(26_000, 800.0)
    late = rented("n1", state=NodeState.BOOTING, since_ms=NOW - 1_000)
    ready = rented("n2")
    on_time = decide(50.0, calendar=(sale,), nodes=(*IDC_NODES, late, ready))
    assert [alert for alert in on_time.alerts if "will not be met" in alert] == []
    soon = event(15_000, 800.0)
    decided = decide(50.0, calendar=(soon,), nodes=(*IDC_NODES, late, ready))
    assert any(alert.startswith("live will not be met: 6 of the 10 replicas") for alert in decided.alerts)


def test_a_full_line_takes_traffic_from_the_cloud_and_gives_it_back_in_steps() -> None:
    nodes = (*IDC_NODES, rented("n1"))
    replicas = (*BASE, *on(nodes[-1], 4))
    full = decide(480.0, nodes=nodes, replicas=replicas, line_load={"east": 1.0})
    assert full.line_limit == LineLimit(0.8, NOW)
    assert full.weights["cloud-h"] == 4 * 80
    assert full.placement == {"idc-a": 2, "idc-b": 1, "cloud-h": 4, "cloud-j": 0}
    assert any("line east is at 100%" in reason for reason in full.reasons)
    more = decide(800.0, nodes=nodes, replicas=replicas, line_load={"east": 1.0})
    assert rents(more) == []
    waits = decide(480.0, nodes=nodes, replicas=replicas, line_load={"east": 1.0}, line_limit=LineLimit(0.8, NOW - 1))
    assert waits.line_limit.share == 0.8
    calm = decide(
        480.0, nodes=nodes, replicas=replicas, line_load={"east": 0.5}, line_limit=LineLimit(0.5, NOW - 9_000)
    )
    assert calm.line_limit.share == pytest.approx(0.55)


def test_without_offers_the_zones_own_machine_is_rented_as_ever() -> None:
    decided = decide(800.0, offers=())
    assert [(rent.zone, rent.count, rent.instance_type) for rent in of(RentNodes, decided)] == [
        ("cloud-h", 2, ""),
        ("cloud-j", 2, ""),
    ]


def test_a_zone_is_not_bought_in_before_its_offers_were_heard() -> None:
    assert rents(decide(800.0, offers=(), ages_ms={"offers": 9_000})) == []
    assert of(Zone, decide(800.0)) == []


def test_starting_replicas_count_for_an_event() -> None:
    starting = tuple(
        replica(f"n1-{number}", rented("n1"), state=ReplicaState.STARTING, age_ms=500) for number in range(4)
    )
    nodes = (*IDC_NODES, rented("n1"), rented("n2"))
    decided = decide(50.0, calendar=(event(9_000, 800.0),), nodes=nodes, replicas=(*BASE, *starting))
    assert [alert for alert in decided.alerts if "will not be met" in alert] == []


def test_replicas_do_not_move_to_a_zone_that_got_cheaper() -> None:
    """480/s need 6 replicas, 4 of them in the cloud: they serve in the dearer zone, the cheaper one's node is empty."""
    dear, cheap = rented("dear", OTHER), rented("cheap")
    decided = decide(480.0, nodes=(*IDC_NODES, dear, cheap), replicas=(*BASE, *on(dear, 4)))
    assert decided.placement["cloud-j"] == 4
    assert of(StartReplica, decided) == of(DrainReplica, decided) == []
    # With fewer wanted than live there, it is the dearer zone that gives them up.
    both = (*BASE, *on(dear, 3), *on(cheap, 3))
    fewer = decide(480.0, nodes=(*IDC_NODES, dear, cheap), replicas=both)
    assert (fewer.placement["cloud-h"], fewer.placement["cloud-j"]) == (3, 1)
