"""The world of a simulation: what faults do to it, and what actions it refuses."""

import random

import pytest

from springtide.model import (
    DrainReplica,
    Endpoint,
    Market,
    NodeOrder,
    NodeState,
    ReleaseNode,
    RentNodes,
    ReplicaSpec,
    ReplicaState,
    SetEndpoints,
    StartReplica,
    StopReplica,
)
from springtide.twin.kernel import Kernel
from springtide.twin.simulation.faults import Fault, FaultKind
from springtide.twin.simulation.hands import Hands
from springtide.twin.simulation.replicas import SimulationError
from springtide.twin.simulation.scenario import Scenario, SimCloud, SimOffer
from springtide.twin.simulation.world import EJECT_MS, World
from tests.twin.simulations import small


class Stage:
    """A small world whose caches have the image, and the hands that act on it."""

    def __init__(self, scenario: Scenario | None = None) -> None:
        self.kernel = Kernel(1_700_000_000_000)
        self.world = World(self.kernel, scenario or small(), random.Random(1))
        self.hands = Hands(self.kernel, self.world)
        self.world.delivery.decide()
        self.run(30)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.world.lines.carry({}, self.world.delivery.advance(1.0))
            self.kernel.run(self.kernel.now_ms + 1_000)

    def rent(self, zone: str, count: int = 1, market: Market = Market.ON_DEMAND, token: str = "t") -> None:
        kind = "eci-8c16g" if market is Market.ECI else "ecs.b"
        self.hands.carry_out([RentNodes(zone, count, f"{token}-{zone}", "test", kind, market, cores=8)])

    def start(self, *nodes: str) -> list[str]:
        by_id = {node.node_id: node for node in self.world.nodes}
        names = [f"r-{node}" for node in nodes]
        specs = [ReplicaSpec(name, by_id[node].zone, node) for name, node in zip(names, nodes, strict=True)]
        self.hands.carry_out([StartReplica(spec, "test") for spec in specs])
        return names

    def list_all(self) -> None:
        self.hands.carry_out(
            [
                SetEndpoints(
                    tuple(
                        Endpoint(one.replica_id, one.zone, one.host, one.port, 100)
                        for one in self.world.replicas.all
                        if one.port
                    ),
                    "test",
                )
            ]
        )

    def states(self) -> dict[str, ReplicaState]:
        return {one.replica_id: one.state for one in self.world.replicas.all}


def serving_stage() -> Stage:
    """A replica of the owner's, and one in each cloud zone, all of which take traffic."""
    stage = Stage()
    stage.rent("cloud-a")
    stage.rent("cloud-b")
    stage.run(300)
    stage.start("idc-a-n0", *(node.node_id for node in stage.world.market.nodes()))
    stage.run(60)
    stage.list_all()
    return stage


def test_a_replica_waits_for_its_node_s_image_once_and_then_starts() -> None:
    stage = Stage()
    began_ms = stage.kernel.now_ms
    first, second = stage.start("idc-a-n0", "idc-a-n0".replace("n0", "n1"))
    stage.run(5)
    assert stage.states() == {first: ReplicaState.STARTING, second: ReplicaState.STARTING}
    stage.run(10)
    ready = {one.since_ms - began_ms for one in stage.world.replicas.all}
    assert ready == {10_000 + 400}  # 500 MB at a node's 10 Gbit/s; the cache has 40


def test_a_listed_replica_takes_traffic_and_only_that() -> None:
    stage = Stage()
    stage.start("idc-a-n0")
    stage.run(30)
    assert stage.world.capacity().requests_per_s == 0
    stage.list_all()
    assert stage.world.capacity().requests_per_s == pytest.approx(80)
    assert stage.world.replicas.serving.cores == {Market.IDC: 8}
    stage.hands.carry_out([DrainReplica("r-idc-a-n0", "idc-a", "test")])
    assert stage.world.capacity().requests_per_s == 0


def test_no_replica_starts_where_there_is_no_room_or_twice() -> None:
    stage = Stage()
    stage.start("idc-a-n0")
    with pytest.raises(SimulationError, match="runs already"):
        stage.start("idc-a-n0")
    spec = ReplicaSpec("x", "idc-a", "idc-a-n0")
    stage.hands.carry_out([StartReplica(spec, "test")])
    with pytest.raises(SimulationError, match="full"):
        stage.hands.carry_out([StartReplica(ReplicaSpec("y", "idc-a", "idc-a-n0"), "test")])


def test_a_node_that_boots_runs_nothing_and_one_that_runs_something_is_not_given_back() -> None:
    stage = Stage()
    stage.rent("cloud-a")
    (node,) = stage.world.market.nodes()
    assert node.state is NodeState.BOOTING
    with pytest.raises(SimulationError, match="not ready"):
        stage.start(node.node_id)
    stage.run(300)
    stage.start(node.node_id)
    with pytest.raises(SimulationError, match="replicas run on it"):
        stage.hands.carry_out([ReleaseNode(node.node_id, "cloud-a", "test")])
    stage.hands.carry_out([StopReplica(f"r-{node.node_id}", "cloud-a", "test")])
    stage.hands.carry_out([ReleaseNode(node.node_id, "cloud-a", "test")])
    assert stage.world.market.nodes() == ()


def test_a_zone_that_is_lost_fails_its_requests_until_the_balancer_sees_it() -> None:
    stage = serving_stage()
    assert stage.world.failing_share() == 0
    stage.world.strike(Fault(FaultKind.ZONE_LOST, at_s=0, lasts_s=100, target="cloud-a"))
    assert stage.world.failing_share() == pytest.approx(1 / 3)
    assert stage.world.capacity().requests_per_s == pytest.approx(160)
    assert len(stage.world.healthy()) == 3
    stage.run(EJECT_MS / 1000)
    assert stage.world.failing_share() == 0
    assert len(stage.world.healthy()) == 2
    assert stage.world.silent_ms() == {"cloud-a": EJECT_MS}
    assert len(stage.world.replicas.all) == 3  # nobody has heard that they are gone
    assert [node.zone for node in stage.world.market.nodes()] == ["cloud-b"]
    stage.run(100)
    assert stage.world.silent_ms() == {}
    assert {one.zone for one in stage.world.replicas.all} == {"idc-a", "cloud-b"}


def test_a_lost_room_of_the_owner_s_comes_back_with_what_ran_there() -> None:
    stage = serving_stage()
    stage.world.strike(Fault(FaultKind.ZONE_LOST, at_s=0, lasts_s=50, target="idc-a"))
    assert stage.world.capacity().requests_per_s == pytest.approx(160)
    stage.hands.carry_out([DrainReplica("r-idc-a-n0", "idc-a", "nobody hears it")])
    stage.run(60)
    assert stage.world.capacity().requests_per_s == pytest.approx(240)


def test_a_cut_line_is_a_cloud_that_nobody_reaches_though_its_machines_run_on() -> None:
    stage = serving_stage()
    stage.world.strike(Fault(FaultKind.LINE_CUT, at_s=0, lasts_s=50, target="line"))
    assert stage.world.capacity().requests_per_s == pytest.approx(80)
    assert stage.world.line_load() == {}
    stage.run(60)
    assert stage.world.capacity().requests_per_s == pytest.approx(240)
    assert len(stage.world.market.nodes()) == 2


def test_a_slow_line_bounds_what_the_cloud_answers() -> None:
    stage = serving_stage()
    stage.world.strike(Fault(FaultKind.LINE_SLOW, at_s=0, lasts_s=50, target="line", amount=0.000_1))
    # 1 Gbit/s of which a ten-thousandth is left: 12.5 kB/s, 400 bytes a request.
    assert stage.world.capacity().requests_per_s == pytest.approx(80 + 31.25)  # both zones share it


def test_overlapping_faults_end_each_at_its_own_time() -> None:
    stage = serving_stage()
    stage.world.strike(Fault(FaultKind.ZONE_LOST, at_s=0, lasts_s=20, target="idc-a"))
    stage.run(10)
    stage.world.strike(Fault(FaultKind.ZONE_LOST, at_s=10, lasts_s=20, target="idc-a"))
    stage.run(15)
    assert not stage.world.is_reached("idc-a")
    stage.run(10)
    assert stage.world.is_reached("idc-a")


def test_sold_out_offers_fill_in_part_and_come_back() -> None:
    stage = Stage()
    stage.world.strike(Fault(FaultKind.STOCK_OUT, at_s=0, lasts_s=30, target="cloud-a/ecs.b", amount=2))
    stage.rent("cloud-a", 5, token="first")
    stage.rent("cloud-a", 5, token="second")
    assert [(fill.asked, fill.filled) for fill in stage.hands.fills] == [(5, 2), (5, 0)]
    assert all(fill.error.startswith("out of stock") for fill in stage.hands.fills)
    assert stage.hands.refused == 1
    stage.run(40)
    stage.rent("cloud-a", 5, token="third")
    assert stage.hands.fills[-1].filled == 5


def test_a_throttled_order_is_under_way_until_it_is_taken_word_for_word() -> None:
    stage = Stage()
    stage.world.strike(Fault(FaultKind.API_THROTTLED, at_s=0, lasts_s=20))
    stage.rent("cloud-a", 3)
    assert [type(action) for action in stage.hands.in_flight] == [RentNodes]
    assert stage.world.market.nodes() == ()
    stage.run(60)
    assert stage.hands.in_flight == ()
    assert len(stage.world.market.nodes()) == 3
    assert [fill.filled for fill in stage.hands.fills] == [3]


def test_slow_boots_are_slow() -> None:
    quick, slow = Stage(), Stage()
    slow.world.strike(Fault(FaultKind.SLOW_BOOTS, at_s=0, lasts_s=60, amount=10))
    for stage in (quick, slow):
        stage.rent("cloud-a", 20)
    took = [max(stage.world.market.ready_ms.values()) - stage.kernel.now_ms for stage in (quick, slow)]
    assert took[1] == pytest.approx(10 * took[0], rel=0.01)


def test_reclaimed_spot_machines_take_their_replicas_along_after_the_notice() -> None:
    spot = SimOffer("ecs.b", 8, 16, 0.5, stock=20, market=Market.SPOT)
    stage = Stage(small(cloud=SimCloud(offers=(spot,))))
    stage.rent("cloud-a", 4, Market.SPOT)
    stage.run(300)
    stage.start("idc-a-n0", *(node.node_id for node in stage.world.market.nodes()))
    stage.run(60)
    stage.world.strike(Fault(FaultKind.SPOT_RECLAIM, at_s=0, lasts_s=0, amount=0.5))
    announced = [node.node_id for node in stage.world.market.nodes() if node.reclaim_ms]
    assert len(announced) == 2
    stage.run(290)
    assert len(stage.states()) == 5
    stage.run(20)
    assert len(stage.states()) == 3
    assert not {f"r-{name}" for name in announced} & stage.states().keys()


def test_failing_shards_are_down_while_it_lasts() -> None:
    stage = Stage()
    assert stage.world.capacity().shards_up == 1
    stage.world.strike(Fault(FaultKind.VALKEY_FAILOVER, at_s=0, lasts_s=4, amount=1))
    assert stage.world.capacity().shards_up == 0
    stage.run(5)
    assert stage.world.capacity().shards_up == 1


def test_a_node_the_cloud_takes_back_by_itself_is_gone_with_its_replicas() -> None:
    stage = serving_stage()
    (first, _) = stage.world.market.nodes()
    stage.world.market.keep_until([first.node_id], stage.kernel.now_ms + 5_000)
    stage.run(10)
    assert f"r-{first.node_id}" not in stage.states()
    assert stage.world.capacity().requests_per_s == pytest.approx(160)
    stage.world.replicas.check()


def test_the_same_order_again_is_the_same_machines() -> None:
    stage = Stage()
    order = NodeOrder("cloud-a", 2, "token", "ecs.b")
    assert stage.world.market.rent(order) == stage.world.market.rent(order)
