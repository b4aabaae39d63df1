"""Promises of the decisions, for any fleet that could be observed."""

import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from springtide.decide.autoscale import base_total
from springtide.decide.place import Budget, place, promised, zone_slots
from springtide.decide.plan import plan
from springtide.model import (
    CalendarEvent,
    DrainReplica,
    Endpoint,
    FleetPolicy,
    Node,
    NodeState,
    ReleaseNode,
    RentNodes,
    Replica,
    ReplicaSpec,
    ReplicaState,
    Rollout,
    RolloutState,
    SetEndpoints,
    Snapshot,
    StartReplica,
    StopReplica,
    TrafficSample,
    Zone,
    ZoneHealth,
    ZoneKind,
    ZoneMode,
    ZoneState,
    require_identifier,
)
from tests.twin.world import World

NOW = 10_000_000

FEWER = settings(max_examples=400)
"""A whole fleet has hundreds of draws: fewer examples, each of which says more."""

policies = st.builds(
    FleetPolicy,
    replica_requests_per_s=st.sampled_from([50.0, 100.0, 333.0]),
    replica_cores=st.sampled_from([0.5, 1, 1.5, 2, 3]),
    headroom=st.floats(0, 2),
    base_replicas=st.integers(1, 3),
    patience_ms=st.integers(0, 20_000),
    drain_ms=st.integers(0, 5_000),
    start_ms=st.integers(500, 5_000),
    actions_max=st.integers(1, 12),
    starting_max=st.integers(1, 6),
    stale_ms=st.sampled_from([600, 1_500]),
    replicas_max=st.none() | st.integers(1, 30),
    failure_budget=st.sampled_from([0, 0, 1]),
    scale_in_share=st.sampled_from([1.0, 0.3]),
    scale_in_every_ms=st.sampled_from([0, 5_000]),
    zone_down_ms=st.sampled_from([0, 0, 1_000]),
    rollout_surge=st.integers(1, 3),
)

ROLLOUTS = (None, None, *(Rollout("v2", "v1", state, NOW - 60_000) for state in RolloutState))


@st.composite
def zone_lists(draw: st.DrawFn) -> tuple[Zone, ...]:
    idc = [
        Zone(f"idc-{n}", ZoneKind.IDC, draw(st.integers(1, 3)), draw(st.integers(1, 6)))
        for n in range(draw(st.integers(1, 2)))
    ]
    cloud = [
        Zone(
            name=f"cloud-{n}",
            kind=ZoneKind.CLOUD,
            nodes_max=draw(st.integers(0, 5)),
            cores_per_node=draw(st.integers(1, 6)),
            lead_ms=draw(st.integers(0, 60_000)),
            price_fen_per_node_h=draw(st.sampled_from([80, 80, 120])),
        )
        for n in range(draw(st.integers(0, 3)))
    ]
    return (*idc, *cloud)


@st.composite
def node_lists(draw: st.DrawFn, zones: tuple[Zone, ...]) -> tuple[Node, ...]:
    nodes = []
    for zone in zones:
        idc = zone.kind is ZoneKind.IDC
        count = zone.nodes_max if idc else draw(st.integers(0, zone.nodes_max))
        for number in range(count):
            state = NodeState.READY if idc else draw(st.sampled_from(list(NodeState)))
            token = "" if idc else f"t{draw(st.integers(0, 2))}"
            since = NOW - draw(st.integers(0, 90_000))
            nodes.append(Node(f"{zone.name}-{number}", zone.name, state, zone.cores_per_node, token, since))
    return tuple(nodes)


@st.composite
def replica_lists(
    draw: st.DrawFn, nodes: tuple[Node, ...], zones: tuple[Zone, ...], policy: FleetPolicy
) -> tuple[Replica, ...]:
    """Replicas on ready nodes within their cores, and some whose node is gone."""
    replicas: list[Replica] = []
    gone = [Node(f"{zone.name}-gone", zone.name, NodeState.READY, 3, "", 0) for zone in zones]
    for node in [n for n in nodes if n.state is NodeState.READY] + draw(st.lists(st.sampled_from(gone), max_size=2)):
        for _ in range(draw(st.integers(0, int(node.cores // policy.replica_cores)))):
            state = draw(st.sampled_from([ReplicaState.READY, ReplicaState.READY, *ReplicaState]))
            number = len(replicas)
            replicas.append(
                Replica(
                    replica_id=f"r{number}",
                    zone=node.zone,
                    node_id=node.node_id,
                    state=state,
                    host="127.0.0.1",
                    port=0 if state is ReplicaState.STARTING else 2000 + number,
                    since_ms=NOW - draw(st.sampled_from([100, 1_000, 4_000, 60_000])),
                    revision=draw(st.sampled_from(["", "v1", "v2"])),
                )
            )
    return tuple(replicas)


@st.composite
def actions_in_flight(
    draw: st.DrawFn,
    zones: tuple[Zone, ...],
    nodes: tuple[Node, ...],
    replicas: tuple[Replica, ...],
    policy: FleetPolicy,
) -> tuple[Any, ...]:
    """What a loop may have begun before: nothing that the decisions would not have allowed."""
    found: list[Any] = []
    for zone in zones:
        free = zone.nodes_max - sum(node.zone == zone.name for node in nodes)
        if zone.kind is ZoneKind.CLOUD and free > 0 and draw(st.booleans()):
            found.append(RentNodes(zone.name, draw(st.integers(1, free)), f"new-{zone.name}", ""))
    on_node = Counter(replica.node_id for replica in replicas)
    for node in nodes:
        if node.state is NodeState.READY and not on_node[node.node_id] and draw(st.integers(0, 4)) == 0:
            if node.zone.startswith("cloud") and draw(st.booleans()):
                found.append(ReleaseNode(node.node_id, node.zone, ""))
            elif node.cores >= policy.replica_cores:
                spec = ReplicaSpec(f"s-{node.node_id}", node.zone, node.node_id)
                found.append(StartReplica(spec, ""))
    for replica in replicas:
        if draw(st.integers(0, 5)) == 0:
            kind = draw(st.sampled_from([DrainReplica, StopReplica]))
            found.append(kind(replica.replica_id, replica.zone, ""))
    return tuple(found)


healths = st.builds(
    ZoneHealth,
    state=st.sampled_from([ZoneState.UP, ZoneState.UP, *ZoneState]),
    since_ms=st.integers(NOW - 20_000, NOW),
    failures=st.integers(0, 9),
    good_since_ms=st.sampled_from([0, NOW - 90_000, NOW - 4_000]),
    bad_since_ms=st.sampled_from([0, 0, NOW - 500]),
)


@st.composite
def snapshots(draw: st.DrawFn) -> tuple[Snapshot, FleetPolicy]:
    policy = draw(policies)
    zones = draw(zone_lists())
    nodes = draw(node_lists(zones))
    replicas = draw(replica_lists(nodes, zones, policy))
    known = [r for r in replicas if r.port and draw(st.integers(0, 3))]
    rates = st.floats(0, 5_000)
    healthy = frozenset(r.replica_id for r in replicas if draw(st.integers(0, 3)))
    names = [zone.name for zone in zones]
    silent = {f"replicas/{name}": 9_000 for name in names if draw(st.integers(0, 5)) == 0}
    ages = draw(st.sampled_from([{}, {}, {}, {"replicas": 9_000}, {"nodes": 9_000}, {"health": 9_000}]))
    age = draw(st.sampled_from([0, 0, 0, 5_000]))
    traffic = [TrafficSample(NOW - age - 500 * n, draw(rates)) for n in range(draw(st.integers(0, 8)), 0, -1)]
    event = CalendarEvent("sale", NOW + draw(st.integers(-60_000, 120_000)), 20_000, draw(rates), 5_000)
    snapshot = Snapshot(
        run="r1",
        tick=draw(st.integers(1, 10_000)),
        now_ms=NOW,
        zones=zones,
        nodes=nodes,
        replicas=replicas,
        endpoints=tuple(
            Endpoint(r.replica_id, r.zone, r.host, r.port, draw(st.sampled_from([0, 100, 100]))) for r in known
        ),
        traffic=tuple(traffic),
        calendar=draw(st.sampled_from([(), (event,)])),
        wanted_before=tuple((NOW - 1_000 * n, draw(st.integers(1, 40))) for n in range(draw(st.integers(0, 3)), 0, -1)),
        healthy=draw(st.sampled_from([None, healthy])),
        ages_ms={**ages, **silent},
        in_flight=draw(actions_in_flight(zones, nodes, replicas, policy)),
        revision=draw(st.sampled_from(["", "v1"])),
        rollout=draw(st.sampled_from(ROLLOUTS)),
        modes={name: draw(st.sampled_from([ZoneMode.OPEN, ZoneMode.OPEN, *ZoneMode])) for name in names},
        zone_health={name: draw(healths) for name in names if draw(st.booleans())},
        taken_cores={node.node_id: draw(st.sampled_from([0.0, 0.5, 2.0])) for node in nodes if not node.client_token},
    )
    return snapshot, policy


def of(kind: type[Any], actions: tuple[Any, ...]) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def begun(snapshot: Snapshot, kind: type[Any]) -> set[str]:
    return {action.replica_id for action in of(kind, snapshot.in_flight)}


def serving(snapshot: Snapshot, policy: FleetPolicy) -> set[str]:
    """Replicas that serve and that nobody is taking away, written down again and more simply."""
    leaving = begun(snapshot, DrainReplica) | begun(snapshot, StopReplica)
    said = snapshot.healthy if snapshot.ages_ms.get("health", 0) <= policy.stale_ms else None
    return {
        r.replica_id
        for r in snapshot.replicas
        if r.state is ReplicaState.READY and r.replica_id not in leaving and (said is None or r.replica_id in said)
    }


@given(st.integers(0, 200), zone_lists(), policies)
def test_placement_never_exceeds_a_zones_slots_and_loses_nobody(
    wanted: int, zones: tuple[Zone, ...], policy: FleetPolicy
) -> None:
    placement = place(wanted, zones, policy)
    for zone in zones:
        assert 0 <= placement.by_zone[zone.name] <= zone_slots(zone, policy)
    assert placement.total + placement.short == wanted
    if placement.short:
        assert placement.total == sum(zone_slots(zone, policy) for zone in zones)


@given(st.integers(0, 200), zone_lists(), policies)
def test_the_base_stays_in_the_idc(wanted: int, zones: tuple[Zone, ...], policy: FleetPolicy) -> None:
    idc = [zone for zone in zones if zone.kind is ZoneKind.IDC]
    in_idc = sum(place(wanted, zones, policy).by_zone[zone.name] for zone in idc)
    room = sum(zone_slots(zone, policy) for zone in idc)
    assert in_idc >= min(wanted, base_total(policy, zones), room)


@given(st.integers(0, 100), zone_lists(), policies)
def test_the_idc_takes_more_than_the_base_only_when_the_cloud_is_full(
    wanted: int, zones: tuple[Zone, ...], policy: FleetPolicy
) -> None:
    placement = place(wanted, zones, policy)
    idc = sum(placement.by_zone[zone.name] for zone in zones if zone.kind is ZoneKind.IDC)
    if idc > base_total(policy, zones):
        for zone in zones:
            if zone.kind is ZoneKind.CLOUD:
                assert placement.by_zone[zone.name] == zone_slots(zone, policy)


@given(st.integers(0, 100), zone_lists(), policies)
def test_one_replica_more_moves_no_other(wanted: int, zones: tuple[Zone, ...], policy: FleetPolicy) -> None:
    before, after = place(wanted, zones, policy), place(wanted + 1, zones, policy)
    grown = {name: after.by_zone[name] - count for name, count in before.by_zone.items()}
    assert min(grown.values()) >= 0
    assert sum(grown.values()) <= 1


@FEWER
@given(snapshots())
def test_the_plan_is_deterministic(case: tuple[Snapshot, FleetPolicy]) -> None:
    snapshot, policy = case
    again = msgspec.json.decode(msgspec.json.encode(snapshot), type=Snapshot)
    assert plan(snapshot, policy) == plan(again, policy)


@FEWER
@given(snapshots())
def test_wanted_is_never_below_the_base_nor_above_the_budget(case: tuple[Snapshot, FleetPolicy]) -> None:
    snapshot, policy = case
    decided = plan(snapshot, policy)
    budget = policy.replicas_max
    base = base_total(policy, snapshot.zones)
    assert decided.replicas_wanted >= (base if budget is None else min(base, budget))
    if budget is not None and snapshot.traffic and NOW - snapshot.traffic[-1].at_ms <= policy.stale_ms:
        assert decided.replicas_wanted <= budget


@FEWER
@given(snapshots())
def test_actions_are_bounded(case: tuple[Snapshot, FleetPolicy]) -> None:
    snapshot, policy = case
    actions = plan(snapshot, policy).actions
    written = of(SetEndpoints, actions)
    assert len(actions) - len(written) <= policy.actions_max
    assert written == list(actions[: len(written)])
    assert len(written) <= 1
    starting = [r for r in snapshot.replicas if r.state is ReplicaState.STARTING]
    late = [r for r in starting if NOW - r.since_ms > 5 * policy.start_ms]
    leaving = begun(snapshot, DrainReplica) | begun(snapshot, StopReplica)
    up = [r for r in starting if r not in late and r.replica_id not in leaving]
    starts = len(of(StartReplica, actions))
    if starts:
        under_way = len(up) + len(of(StartReplica, snapshot.in_flight))
        assert under_way + starts <= policy.starting_max


@FEWER
@given(snapshots())
def test_starts_fit_on_ready_nodes_under_names_of_their_own(case: tuple[Snapshot, FleetPolicy]) -> None:
    snapshot, policy = case
    starts = of(StartReplica, plan(snapshot, policy).actions)
    nodes = {node.node_id: node for node in snapshot.nodes}
    load = Counter(r.node_id for r in snapshot.replicas if r.state in {ReplicaState.READY, ReplicaState.DRAINING})
    for start in starts:
        load[start.spec.node_id] += 1
        require_identifier("replica", start.spec.replica_id)
        node = nodes[start.spec.node_id]
        assert (node.state, node.zone) == (NodeState.READY, start.spec.zone)
        free = node.cores - snapshot.taken_cores.get(node.node_id, 0.0)
        assert load[node.node_id] * policy.replica_cores <= free + 1e-6
    names = [start.spec.replica_id for start in starts] + [r.replica_id for r in snapshot.replicas]
    assert len(set(names)) == len(names)


@FEWER
@given(snapshots())
def test_it_never_drains_below_wanted(case: tuple[Snapshot, FleetPolicy]) -> None:
    snapshot, policy = case
    decided = plan(snapshot, policy)
    drained = {action.replica_id for action in of(DrainReplica, decided.actions)}
    up = {name for name, health in decided.zone_health.items() if health.state is ZoneState.UP}
    carry = {replica.replica_id for replica in snapshot.replicas if replica.zone in up}
    serves = serving(snapshot, policy) & carry
    placed = sum(decided.placement.values())
    assert len(serves - drained) >= min(len(serves), placed)


@FEWER
@given(snapshots())
def test_what_drains_has_lost_its_traffic_before(case: tuple[Snapshot, FleetPolicy]) -> None:
    snapshot, policy = case
    actions = plan(snapshot, policy).actions
    written = of(SetEndpoints, actions)
    current = written[0].endpoints if written else snapshot.endpoints
    weights = {endpoint.replica_id: endpoint.weight for endpoint in current}
    for action in of(DrainReplica, actions):
        assert weights.get(action.replica_id, 0) == 0


@FEWER
@given(snapshots())
def test_no_endpoint_is_dropped_while_its_replica_is_known(case: tuple[Snapshot, FleetPolicy]) -> None:
    snapshot, policy = case
    for written in of(SetEndpoints, plan(snapshot, policy).actions):
        kept = {endpoint.replica_id for endpoint in written.endpoints}
        known = {replica.replica_id for replica in snapshot.replicas if replica.port}
        assert {e.replica_id for e in snapshot.endpoints} & known <= kept


@FEWER
@given(snapshots())
def test_only_the_drained_and_the_failed_are_stopped(case: tuple[Snapshot, FleetPolicy]) -> None:
    snapshot, policy = case
    replicas = {replica.replica_id: replica for replica in snapshot.replicas}
    for action in of(StopReplica, plan(snapshot, policy).actions):
        replica = replicas[action.replica_id]
        age = NOW - replica.since_ms
        late = replica.state is ReplicaState.STARTING and age > 5 * policy.start_ms
        drained = replica.state is ReplicaState.DRAINING and age >= policy.drain_ms
        assert replica.state is ReplicaState.FAILED or late or drained


@FEWER
@given(snapshots())
def test_no_cloud_node_is_released_while_it_runs_a_replica_and_no_idc_node_ever(
    case: tuple[Snapshot, FleetPolicy],
) -> None:
    snapshot, policy = case
    actions = plan(snapshot, policy).actions
    starts = of(StartReplica, actions) + of(StartReplica, snapshot.in_flight)
    used = {replica.node_id for replica in snapshot.replicas} | {start.spec.node_id for start in starts}
    released = [action.node_id for action in of(ReleaseNode, actions)]
    assert not used & set(released)
    assert all(name.startswith("cloud") for name in released)
    assert len(set(released)) == len(released)


@FEWER
@given(snapshots())
def test_nodes_stay_between_need_and_quota(case: tuple[Snapshot, FleetPolicy]) -> None:
    snapshot, policy = case
    decided = plan(snapshot, policy)
    given_back = {action.node_id for action in of(ReleaseNode, snapshot.in_flight)}
    for zone in snapshot.zones:
        mine = [node for node in snapshot.nodes if node.zone == zone.name]
        staying = [node for node in mine if node.state is not NodeState.RELEASING and node.node_id not in given_back]
        coming = sum(action.count for action in of(RentNodes, snapshot.in_flight) if action.zone == zone.name)
        rents = sum(action.count for action in of(RentNodes, decided.actions) if action.zone == zone.name)
        releases = sum(action.zone == zone.name for action in of(ReleaseNode, decided.actions))
        slots = int(zone.cores_per_node // policy.replica_cores)
        needed = -(-decided.placement[zone.name] // slots) if slots else 0
        if rents:
            assert zone.kind is ZoneKind.CLOUD
            assert len(mine) + coming + rents <= zone.nodes_max
            for_a_rollout = any(replica.revision != "v1" for replica in snapshot.replicas)
            assert len(staying) + coming + rents <= needed or (rents == 1 and for_a_rollout)
        if releases:
            assert len(staying) + coming - releases >= needed


@FEWER
@given(snapshots())
def test_on_old_news_nothing_is_taken_away(case: tuple[Snapshot, FleetPolicy]) -> None:
    snapshot, policy = case
    blind = msgspec.structs.replace(snapshot, traffic=())
    actions = plan(blind, policy).actions
    assert of(DrainReplica, actions) == of(ReleaseNode, actions) == []
    unknown = msgspec.structs.replace(snapshot, ages_ms={"replicas": policy.stale_ms + 1})
    assert plan(unknown, policy).actions == ()


@FEWER
@given(snapshots())
def test_a_zone_that_nobody_may_touch_is_not_touched(case: tuple[Snapshot, FleetPolicy]) -> None:
    snapshot, policy = case
    decided = plan(snapshot, policy)
    silent = {source.removeprefix("replicas/") for source in snapshot.ages_ms if source.startswith("replicas/")}
    down = {name for name, health in decided.zone_health.items() if health.state is ZoneState.DOWN}
    closed = {name for name, mode in snapshot.modes.items() if mode is not ZoneMode.OPEN}
    for action in decided.actions:
        match action:
            case StartReplica(spec=spec):
                assert spec.zone not in silent | down | closed
            case RentNodes(zone=zone):
                assert zone not in silent | down | closed
            case DrainReplica(zone=zone) | StopReplica(zone=zone) | ReleaseNode(zone=zone):
                assert zone not in silent


@FEWER
@given(snapshots())
def test_the_loss_of_any_zone_leaves_what_is_promised_or_it_is_said(case: tuple[Snapshot, FleetPolicy]) -> None:
    snapshot, policy = case
    decided = plan(snapshot, msgspec.structs.replace(policy, failure_budget=1))
    said = [reason for reason in decided.reasons if "failure budget" in reason]
    if snapshot.traffic and NOW - snapshot.traffic[-1].at_ms <= policy.stale_ms:
        assert len(said) == 1
    if said and "stay whichever zone is lost" in said[0]:
        left = sum(decided.placement.values()) - max(decided.placement.values())
        assert left >= decided.replicas_wanted / (1 + policy.headroom) - 1e-6


@given(st.integers(0, 200), zone_lists(), policies, st.none() | st.integers(0, 300))
def test_a_budget_is_kept_as_far_as_it_goes(
    wanted: int, zones: tuple[Zone, ...], policy: FleetPolicy, most: int | None
) -> None:
    budget = Budget(promised(wanted, policy), most)
    placement = place(wanted, zones, policy, budget=budget)
    counts = placement.by_zone
    for zone in zones:
        assert 0 <= counts[zone.name] <= zone_slots(zone, policy)
    assert placement.total - max(counts.values()) >= placement.promised
    assert placement.total + placement.short >= wanted
    if most is not None:
        assert placement.total <= max(wanted, most)
    if placement.promised < budget.promised and most is None:
        slots = [zone_slots(zone, policy) for zone in zones]
        assert sum(slots) - max(slots) < budget.promised or sum(slots) < wanted, "it could have been kept"
    if placement.total > wanted and most is None:
        fewer = Budget(budget.promised, placement.total - 1)
        assert place(wanted, zones, policy, budget=fewer) != placement


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(
    peak=st.integers(200, 3_000),
    quota=st.integers(3, 8),
    cores=st.integers(2, 5),
    lead_ms=st.integers(0, 15_000),
    rise_s=st.integers(0, 10),
)
def test_an_announced_sale_is_carried_and_after_it_all_cloud_nodes_are_released(
    peak: int, quota: int, cores: int, lead_ms: int, rise_s: int
) -> None:
    zones = (
        Zone("idc-a", ZoneKind.IDC, nodes_max=1, cores_per_node=8),
        Zone("idc-b", ZoneKind.IDC, nodes_max=1, cores_per_node=8),
        Zone("cloud-h", ZoneKind.CLOUD, quota, cores, lead_ms, price_fen_per_node_h=82),
    )
    opens_s, lasts_s = 70.0, 10.0

    def demand(second: float) -> float:
        rising = min(1.0, (second - opens_s) / rise_s) if rise_s else 1.0
        return 30.0 + (peak - 30.0) * rising if opens_s <= second < opens_s + lasts_s else 30.0

    async def sale() -> None:
        with tempfile.TemporaryDirectory() as folder:
            world = World(Path(folder), demand, zones, announced=(opens_s, lasts_s, float(peak)))
            try:
                async for second in world.seconds_until(opens_s + lasts_s):
                    room = sum(zone_slots(zone, world.settings.policy) for zone in zones)
                    assert world.capacity >= min(demand(second), room * 250) or second < 5
                await world.until(opens_s + lasts_s + 40)
                assert await world.cloud.nodes() == []
                assert world.serving() == 2
            finally:
                await world.close()

    asyncio.run(sale())
