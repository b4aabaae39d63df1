"""Promises of the purchases, for any fleet and any cloud with offers that could be observed."""

from collections import Counter
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from springtide.decide.place import node_slots
from springtide.decide.plan import plan
from springtide.decide.stock import Shortfall, believed
from springtide.model import (
    DrainReplica,
    Fill,
    FleetPolicy,
    KeepNodes,
    Market,
    Node,
    NodeState,
    Offer,
    Quota,
    ReleaseNode,
    RentNodes,
    ReplicaState,
    Snapshot,
    StartReplica,
    StockLevel,
    Zone,
    ZoneKind,
    ZoneMode,
    ZoneState,
)
from tests.property.test_decide import NOW, of, snapshots
from tests.unit.fleets import POLICY, A, B, H
from tests.unit.fleets import snapshot as fleet_of

MARKETS = (Market.ON_DEMAND, Market.SPOT)
SOME = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def offer_lists(draw: st.DrawFn, zones: tuple[Zone, ...]) -> tuple[Offer, ...]:
    return tuple(
        Offer(
            zone=zone.name,
            instance_type=f"c.{cores}",
            market=market,
            cores=cores,
            memory_mb=cores * 2_048,
            price_fen_per_h=cores * draw(st.sampled_from([10.0, 12.0, 20.0])) * (0.3 if market is Market.SPOT else 1.0),
            level=draw(st.sampled_from([StockLevel.PLENTY, StockLevel.PLENTY, StockLevel.LOW, StockLevel.NONE])),
            stock=draw(st.none() | st.integers(0, 4)),
            billing_ms=draw(st.sampled_from([1_000, 3_600_000])),
        )
        for zone in zones
        if zone.kind is ZoneKind.CLOUD
        for cores in (2, 4, 8)
        for market in MARKETS
        if draw(st.booleans())
    )


def varied(draw: st.DrawFn, node: Node) -> Node:
    """A rented node of some size and price, which may be taken away soon."""
    if not node.client_token:
        return node
    return msgspec.structs.replace(
        node,
        cores=node.cores * draw(st.integers(1, 2)),
        market=draw(st.sampled_from(MARKETS)),
        instance_type="c.4",
        price_fen_per_h=draw(st.sampled_from([20.0, 40.0])),
        rented_ms=NOW - draw(st.integers(1, 7_000_000)),
        release_at_ms=draw(st.sampled_from([0, NOW + 60_000, NOW + 9_000_000])),
        reclaim_ms=draw(st.sampled_from([0, 0, 0, NOW + 10_000, NOW + 300_000])),
    )


@st.composite
def hybrid(draw: st.DrawFn) -> tuple[Snapshot, FleetPolicy]:
    """Any fleet, with a cloud that has offers."""
    snapshot, policy = draw(snapshots())
    zones = tuple(msgspec.structs.replace(zone, nodes_max=zone.nodes_max + 4) for zone in snapshot.zones)
    zones = tuple(new if new.kind is ZoneKind.CLOUD else old for new, old in zip(zones, snapshot.zones, strict=True))
    offers = draw(offer_lists(zones))
    keys = [offer.key for offer in offers]
    fills = []
    if keys:
        for at in sorted(draw(st.lists(st.integers(1, 900_000), max_size=4)), reverse=True):
            error = draw(st.sampled_from(["", *(f"{kind}: why" for kind in Shortfall)]))
            fills.append(Fill(draw(st.sampled_from(keys)), NOW - at, 4, 0 if error else 4, error))
    quotas = tuple(
        Quota(market, draw(st.integers(0, 80)), draw(st.integers(0, 20))) for market in MARKETS if draw(st.booleans())
    )
    nodes = tuple(varied(draw, node) for node in snapshot.nodes)
    changed = msgspec.structs.replace(
        snapshot,
        zones=zones,
        nodes=nodes,
        offers=offers,
        fills=tuple(fills),
        quotas=quotas,
        cordoned=frozenset(draw(st.lists(st.sampled_from([n.node_id for n in nodes]), max_size=2))),
    )
    return changed, msgspec.structs.replace(
        policy,
        spend_max_fen_per_h=draw(st.sampled_from([0.0, 0.0, 200.0])),
        spot_share_max=draw(st.sampled_from([0.0, 0.5, 1.0])),
        release_after_ms=draw(st.sampled_from([0, 7_200_000])),
    )


def slots(node: Node, policy: FleetPolicy) -> int:
    return node_slots(node.cores, policy, node.memory_mb)


def staying(snapshot: Snapshot, zone: str) -> list[Node]:
    leaving = {action.node_id for action in of(ReleaseNode, snapshot.in_flight)}
    return [
        node
        for node in snapshot.nodes
        if node.zone == zone
        and node.state is not NodeState.RELEASING
        and not node.reclaim_ms
        and node.node_id not in leaving
    ]


def on_order(snapshot: Snapshot) -> list[tuple[RentNodes, int]]:
    arrived = Counter(node.client_token for node in snapshot.nodes if node.client_token)
    rents = of(RentNodes, snapshot.in_flight)
    return [(rent, max(0, rent.count - arrived[rent.client_token])) for rent in rents]


@SOME
@given(hybrid())
def test_purchases_stay_within_stock_quota_and_budget(case: tuple[Snapshot, FleetPolicy]) -> None:
    snapshot, policy = case
    rents: list[RentNodes] = of(RentNodes, plan(snapshot, policy).actions)
    if not snapshot.offers:
        return
    known = {offer.key: offer for offer in believed(snapshot.offers, snapshot.fills, NOW)}
    bought: Counter[str] = Counter()
    cores: Counter[Market] = Counter()
    for rent in rents:
        offer = known[rent.order.offer_key]
        assert offer.stock != 0, "an offer that is believed to be empty was asked"
        assert rent.cores == offer.cores
        bought[offer.key] += rent.count
        cores[rent.market] += rent.count * offer.cores
    for key, count in bought.items():
        stock = known[key].stock
        assert stock is None or count <= stock
    for quota in snapshot.quotas:
        ordered = sum(count * rent.cores for rent, count in on_order(snapshot) if rent.market is quota.market)
        if cores[quota.market]:
            assert quota.used_cores + ordered + cores[quota.market] <= quota.limit_cores
    if policy.spend_max_fen_per_h and rents:
        cost = sum(rent.count * known[rent.order.offer_key].price_fen_per_h for rent in rents)
        assert cost + sum(node.price_fen_per_h for node in snapshot.nodes) <= policy.spend_max_fen_per_h + 1e-6


@SOME
@given(hybrid())
def test_purchases_are_for_open_zones_and_what_is_missing_there(case: tuple[Snapshot, FleetPolicy]) -> None:
    snapshot, policy = case
    decided = plan(snapshot, policy)
    rents: list[RentNodes] = of(RentNodes, decided.actions)
    down = {name for name, health in decided.zone_health.items() if health.state is ZoneState.DOWN}
    nodes = Counter(node.zone for node in snapshot.nodes)
    for rent, count in on_order(snapshot):
        nodes[rent.zone] += count
    assert len({rent.client_token for rent in rents}) == len(rents)
    limits = {zone.name: zone.nodes_max for zone in snapshot.zones}
    for rent in rents:
        assert snapshot.modes.get(rent.zone, ZoneMode.OPEN) is ZoneMode.OPEN
        assert rent.zone not in down
        nodes[rent.zone] += rent.count
        assert nodes[rent.zone] <= limits[rent.zone]
        assert rent.release_at_ms == (NOW + policy.release_after_ms if policy.release_after_ms else 0) or (
            snapshot.calendar and rent.release_at_ms > NOW + policy.release_after_ms > NOW
        )


@SOME
@given(hybrid())
def test_nothing_new_starts_where_it_may_not_stay(case: tuple[Snapshot, FleetPolicy]) -> None:
    snapshot, policy = case
    decided = plan(snapshot, policy)
    nodes = {node.node_id: node for node in snapshot.nodes}
    for start in of(StartReplica, decided.actions):
        node = nodes[start.spec.node_id]
        assert node.node_id not in snapshot.cordoned
        assert not node.reclaim_ms
        assert node.state is NodeState.READY


@SOME
@given(hybrid())
def test_what_is_released_was_not_needed(case: tuple[Snapshot, FleetPolicy]) -> None:
    snapshot, policy = case
    if not snapshot.offers:
        return
    decided = plan(snapshot, policy)
    used = {replica.node_id for replica in snapshot.replicas}
    going = {action.node_id for action in of(ReleaseNode, decided.actions)}
    starting = {start.spec.node_id for start in of(StartReplica, decided.actions)}
    nodes = {node.node_id: node for node in snapshot.nodes}
    assert not going & (used | starting)
    assert all(nodes[name].client_token for name in going)
    for zone in snapshot.zones:
        if zone.kind is not ZoneKind.CLOUD:
            continue
        released = [nodes[name] for name in going if nodes[name].zone == zone.name]
        counted = [node for node in released if not node.reclaim_ms and node.node_id not in snapshot.cordoned]
        if counted:
            left = [node for node in staying(snapshot, zone.name) if node.node_id not in going]
            assert sum(slots(node, policy) for node in left) >= decided.placement[zone.name]
        hourly = {offer.key for offer in snapshot.offers if offer.billing_ms == 3_600_000}
        for node in counted:
            if f"{node.zone}/{node.instance_type}/{node.market.value}" in hourly:
                assert (NOW - node.rented_ms) % 3_600_000 >= 3_600_000 - 120_000


@SOME
@given(hybrid())
def test_what_is_taken_away_in_a_moment_has_lost_its_traffic(case: tuple[Snapshot, FleetPolicy]) -> None:
    snapshot, policy = case
    wide = msgspec.structs.replace(policy, actions_max=1_000)
    decided = plan(snapshot, wide)
    soon = {node.node_id for node in snapshot.nodes if node.reclaim_ms == NOW + 10_000}
    drained = {action.replica_id for action in of(DrainReplica, decided.actions)}
    begun = {action.replica_id for action in snapshot.in_flight if hasattr(action, "replica_id")}
    if "replicas" in snapshot.ages_ms and snapshot.ages_ms["replicas"] > policy.stale_ms:
        return
    for replica in snapshot.replicas:
        silent = snapshot.ages_ms.get(f"replicas/{replica.zone}", 0) > policy.stale_ms
        if replica.node_id in soon and replica.state is ReplicaState.READY and not silent:
            assert replica.replica_id in drained | begun


@SOME
@given(hybrid())
def test_a_release_by_the_cloud_is_only_ever_moved_later(case: tuple[Snapshot, FleetPolicy]) -> None:
    snapshot, policy = case
    nodes: dict[str, Node] = {node.node_id: node for node in snapshot.nodes}
    kept: list[KeepNodes] = of(KeepNodes, plan(snapshot, policy).actions)
    for action in kept:
        assert policy.release_after_ms
        for name in action.node_ids:
            assert 0 < nodes[name].release_at_ms < action.release_at_ms


@SOME
@given(
    stocks=st.lists(st.integers(0, 5), min_size=12, max_size=12),
    rate=st.floats(0, 12_000),
    size=st.sampled_from([1.0, 1.5, 2.0]),
)
def test_the_order_is_strict_the_base_the_cloud_and_spare_rooms_for_the_rest(
    stocks: list[int], rate: float, size: float
) -> None:
    policy = msgspec.structs.replace(POLICY, replica_cores=size, spot_share_max=1.0, actions_max=500, starting_max=500)
    zones = (A, B, *(msgspec.structs.replace(H, name=name, nodes_max=500) for name in ("cloud-h", "cloud-j")))
    kinds = [(zone.name, cores, market) for zone in zones[2:] for cores in (2, 4, 8) for market in MARKETS]
    offers = tuple(
        Offer(zone, f"c.{cores}", market, cores, 99_999, 10.0 * cores + stock, stock=stock)
        for (zone, cores, market), stock in zip(kinds, stocks, strict=True)
    )
    decided = plan(fleet_of(rate, zones=zones, offers=offers), policy)
    could = sum(offer.stock * int(offer.cores / size) for offer in offers if offer.stock is not None)
    base, rooms = 2, 2 * int(4 / size)
    spike = decided.replicas_wanted - base
    in_cloud = decided.placement["cloud-h"] + decided.placement["cloud-j"]
    assert in_cloud == min(spike, could)
    in_idc = decided.placement["idc-a"] + decided.placement["idc-b"]
    assert in_idc == min(rooms, base + spike - in_cloud)
    bought = sum(rent.count * int(rent.cores / size) for rent in of(RentNodes, decided.actions))
    assert in_cloud <= bought <= in_cloud + int(8 / size) - 1
    assert any("capacity short" in alert for alert in decided.alerts) == (in_idc + in_cloud < decided.replicas_wanted)


@SOME
@given(hybrid())
def test_the_same_input_gives_the_same_purchases(case: tuple[Snapshot, FleetPolicy]) -> None:
    snapshot, policy = case
    first: Any = plan(snapshot, policy)
    mixed = msgspec.structs.replace(snapshot, nodes=tuple(reversed(snapshot.nodes)))
    assert plan(snapshot, policy) == first
    rents = [(rent.order.offer_key, rent.count) for rent in of(RentNodes, plan(mixed, policy).actions)]
    assert rents == [(rent.order.offer_key, rent.count) for rent in of(RentNodes, first.actions)]
