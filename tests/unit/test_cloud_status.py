"""What the leader says of nodes and money: kept whole in few bytes, and a bill that goes on over loops."""

import msgspec
import pytest

from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.fleet_state import MEMORY_BYTES_MAX, MemoryFleetState
from springtide.errors import FleetStateError
from springtide.fleet.cloud_status import CLOUD, CloudStatus, CostBook, decode_cloud, encode_cloud, read_cloud
from springtide.fleet.cloud_teller import CloudTeller
from springtide.fleet.observe import Observation
from springtide.model import (
    CalendarEvent,
    Market,
    Node,
    NodeState,
    Offer,
    Purchase,
    Replica,
    ReplicaState,
    Wishes,
    Zone,
    ZoneKind,
)

ZONE = Zone("h", ZoneKind.CLOUD, nodes_max=9, cores_per_node=8, price_fen_per_node_h=360)
T0 = 1_800_000_000_000
SHOP = CalendarEvent("shop", T0, 60_000, 100.0, 5_000)


def node(name: str, *, price: float = 0.0, rented_ms: int = T0, token: str = "run-web-7-h") -> Node:
    return Node(name, "h", NodeState.READY, 8, token, rented_ms, price_fen_per_h=price, rented_ms=rented_ms)


def test_a_bill_counts_started_seconds_and_keeps_what_has_gone() -> None:
    book = CostBook([ZONE])
    idc = node("idc-0", token="")
    assert book.count([idc, node("a"), node("b", price=720.0)], T0 + 10_000) == pytest.approx(1.0 + 2.0)
    assert book.count([idc, node("a")], T0 + 20_001) == pytest.approx(2.1 + 2.0)
    assert book.ended_fen == pytest.approx(2.0)
    assert book.count([], T0 + 90_000) == pytest.approx(2.1 + 2.0)
    assert book.count([], T0 + 99_000) == book.ended_fen


def test_a_bill_goes_on_in_the_next_loop_also_of_what_ended_in_between() -> None:
    before = CostBook([ZONE])
    listed = (node("a"), node("b"))
    cost_fen = before.count(listed, T0 + 10_000)
    told = CloudStatus(T0 + 10_000, nodes=listed, cost_fen=cost_fen, ended_fen=before.ended_fen)
    after = CostBook([ZONE])
    after.restore(told)
    assert after.count([node("b")], T0 + 20_000) == pytest.approx(1.0 + 2.0)


def test_the_largest_fleet_fits_into_what_is_remembered() -> None:
    nodes = tuple(
        msgspec.structs.replace(
            node(f"i-2ze{number:015d}"),
            instance_type="ecs.c7.8xlarge",
            address=f"10.{number % 256}.{number // 256}.7",
            release_at_ms=T0 + 3_600_000,
        )
        for number in range(3_125)
    )
    offers = tuple(
        Offer(f"z{zone}", f"ecs.type{kind}.8xlarge", market, 32, 65_536, 652.3 + kind)
        for zone in range(6)
        for kind in range(199)
        for market in (Market.ON_DEMAND, Market.SPOT)
    )
    status = CloudStatus(T0, nodes, {one.node_id: {"web": 32} for one in nodes}, offers=offers)
    value = encode_cloud(status)
    assert len(value) < MEMORY_BYTES_MAX
    assert decode_cloud(value) == status
    assert decode_cloud(b"") is None
    assert decode_cloud(None) is None
    with pytest.raises(FleetStateError, match="cannot be read"):
        decode_cloud(b"something else")


class Setting:
    """A leader's state, and a teller that begins anew when asked to."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.state = MemoryFleetState(self.clock)
        self.errors: list[str] = []
        self.teller = self.another()

    def another(self) -> CloudTeller:
        calendars = {"web": (SHOP,)}
        return CloudTeller(self.clock, self.state, [ZONE], calendars, lambda what, why: self.errors.append(why))

    async def tell(self, term: int, *nodes: Node, ages_ms: dict[str, int] | None = None) -> None:
        replicas = tuple(
            Replica(f"r{one.node_id}", "h", one.node_id, ReplicaState.READY, "127.0.0.1", 80, 0, service="web")
            for one in nodes
        )
        seen = Observation(
            self.clock.now_ms(), nodes, replicas, ages_ms or {}, {}, frozenset(), None, offers=(), quotas=()
        )
        coming = Purchase("h", "t", Market.ON_DEMAND, 1, 8, 1.0, order_ms=T0 - 60_000, ready_ms=T0)
        wishes = Wishes(purchases={"shop": (coming, msgspec.structs.replace(coming, order_ms=T0 - 50_000))})
        await self.teller.tell(term, seen, nodes, wishes, 1.0)

    async def told(self) -> CloudStatus:
        found = await read_cloud(self.state)
        assert found is not None
        return found


async def test_it_is_told_every_few_seconds_and_not_while_the_cloud_is_silent() -> None:
    at = Setting()
    term = (await at.state.lead("one", 60_000)).term
    begun_ms = at.clock.now_ms()
    await at.tell(term, node("a", rented_ms=begun_ms))
    told = await at.told()
    assert (told.at_ms, told.replicas, told.events) == (begun_ms, {"a": {"web": 1}}, (SHOP,))
    early, late = told.purchases
    assert (early.order_ms, late.order_ms) == (T0 - 60_000, T0 - 50_000)
    await at.clock.advance(4.9)
    await at.tell(term, node("a", rented_ms=begun_ms))
    assert (await at.told()).at_ms == begun_ms
    await at.clock.advance(0.2)
    await at.tell(term, ages_ms={"nodes": 700})
    assert (await at.told()).at_ms == begun_ms
    await at.tell(term, node("a", rented_ms=begun_ms))
    assert (await at.told()).cost_fen == pytest.approx(0.6)
    # What has been bought is there, and is scheduled no longer.
    await at.clock.advance(5.1)
    await at.tell(term, node("a", rented_ms=begun_ms, token=early.client_token))
    assert (await at.told()).purchases == (late,)


async def test_a_new_leader_goes_on_with_the_bill_and_an_old_one_is_refused() -> None:
    at = Setting()
    first = (await at.state.lead("one", 1_000)).term
    begun_ms = at.clock.now_ms()
    await at.clock.advance(10)
    await at.tell(first, node("a", rented_ms=begun_ms))
    second = (await at.state.lead("two", 60_000)).term
    at.teller = at.another()
    await at.clock.advance(10)
    await at.tell(second)
    assert (await at.told()).cost_fen == pytest.approx(1.0)
    at.teller = at.another()
    await at.tell(first)
    assert any("another control loop leads" in why for why in at.errors)
    at.state.failing = True
    await at.clock.advance(10)
    await at.tell(second)
    at.state.failing = False
    assert await at.state.recall(CLOUD)
