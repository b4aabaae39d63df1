"""How plans are carried out: purchases until they are answered, releases together, and what both have shown."""

import asyncio
from collections.abc import Sequence

import pytest

from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.fleet import MemoryBalancer, MemoryCloud, MemoryRuntime
from springtide.errors import CloudOutOfStock, CloudQuotaExceeded, CloudRefused, CloudThrottled, CloudUnavailable
from springtide.fleet.act import IN_FLIGHT_MAX, RELEASE_CALLS_MAX, RELEASES_MAX, RENT_TRIES, Actor
from springtide.fleet.intents import Deed
from springtide.fleet.journal import Entry, Fault, Outcome
from springtide.fleet.ports import one_service
from springtide.model import COUNTER, KeepNodes, Market, Node, NodeOrder, Offer, ReleaseNode, RentNodes, StartReplica
from springtide.model import ReplicaSpec as Spec
from tests.unit.fleets import A, B, H

LARGE = Offer("cloud-h", "c.large", Market.ON_DEMAND, 4, 8_192, 80.0, stock=3, boot_ms=(1_000, 2_000))
RENT = RentNodes("cloud-h", 2, "t1", "", "c.large", cores=4)


class Stage:
    """An actor over a cloud in memory whose calls are counted and may fail first."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.memory = MemoryCloud(self.clock, (A, B, H), (LARGE,))
        self.errors: list[Exception] = []
        self.orders: list[tuple[float, NodeOrder]] = []
        self.releases: list[list[str]] = []
        self.record: list[Entry] = []
        ports = one_service(
            MemoryBalancer(lambda _: 0.0, lambda _: True), MemoryRuntime(self.clock, 1.0), self.memory, (A, B, H)
        )
        rent, release = self.memory.rent, self.memory.release

        async def rent_counted(order: NodeOrder) -> list[Node]:
            self.orders.append((self.clock.monotonic_s(), order))
            if self.errors:
                raise self.errors.pop(0)
            return await rent(order)

        async def release_counted(node_ids: Sequence[str]) -> None:
            self.releases.append(list(node_ids))
            await release(node_ids)

        self.memory.rent = rent_counted  # type: ignore[method-assign] # counted and failing
        self.memory.release = release_counted  # type: ignore[method-assign] # counted on the way
        self.actor = Actor(self.clock, ports, (A, B, H), self.record.append, lambda *_: None)

    async def carry_out(self, *actions: RentNodes | ReleaseNode | KeepNodes, seconds: float = 400.0) -> list[str]:
        """The error of each action."""
        self.actor.begin([Deed(COUNTER, action, 1) for action in actions])
        await self.clock.advance(seconds)
        return [entry.error for entry in self.record if isinstance(entry, Outcome)]

    def shown(self) -> list[tuple[int, int, str]]:
        return [(fill.asked, fill.filled, fill.error.split(":")[0]) for fill in self.actor.fills]


@pytest.fixture
def stage() -> Stage:
    return Stage()


async def test_an_order_goes_out_as_it_was_decided_and_what_came_is_remembered(stage: Stage) -> None:
    assert await stage.carry_out(RENT, seconds=1) == [""]
    assert [order for _, order in stage.orders] == [RENT.order]
    assert stage.shown() == [(2, 2, "")]
    assert len(stage.actor.with_adopted([])) == 2
    assert await stage.carry_out(RentNodes("cloud-h", 2, "t2", "", "c.large"), seconds=1) == ["", ""]
    assert stage.shown()[1:] == [(2, 1, "out of stock")]
    await stage.clock.advance(16 * 60)
    assert stage.actor.fills == ()


async def test_a_throttled_order_is_repeated_after_its_time_with_its_token_and_slows_no_other(stage: Stage) -> None:
    stage.errors = [CloudThrottled("too many", 20.0)] * 2
    other = RentNodes("cloud-h", 1, "t2", "", "c.large")
    errors = stage.carry_out(RENT, seconds=1)
    assert await errors == []
    assert await stage.carry_out(other, seconds=100) == ["", ""]
    times = [round(at) for at, order in stage.orders if order == RENT.order]
    assert times in ([0, 20, 40], [0, 20])
    assert [filled for _, filled, _ in stage.shown()] in ([1, 2], [2, 1])


async def test_an_order_that_is_throttled_for_ever_ends_and_closes_its_offer_for_a_while(stage: Stage) -> None:
    stage.errors = [CloudThrottled("too many", 30.0)] * 100
    assert await stage.carry_out(RENT, seconds=600) == ["too many"]
    assert stage.shown() == [(2, 0, "no answer")]
    assert len(stage.orders) < 20


async def test_an_answer_that_never_comes_ends_after_some_tries_with_one_token(stage: Stage) -> None:
    stage.errors = [CloudUnavailable("reset")] * 100
    assert await stage.carry_out(RENT) == ["reset"]
    assert len(stage.orders) == RENT_TRIES
    assert {order.client_token for _, order in stage.orders} == {"t1"}
    assert len([entry for entry in stage.record if isinstance(entry, Fault)]) == RENT_TRIES - 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (CloudOutOfStock("none"), "out of stock"),
        (CloudQuotaExceeded("limit"), "quota"),
        (CloudRefused("balance"), "refused"),
    ],
    ids=["stock", "quota", "refused"],
)
async def test_a_final_answer_is_not_repeated(stage: Stage, error: Exception, said: str) -> None:
    stage.errors = [error]
    assert await stage.carry_out(RENT) == [str(error)]
    assert len(stage.orders) == 1
    assert stage.shown() == [(2, 0, said)]


async def test_without_the_lead_nothing_is_sent(stage: Stage) -> None:
    stage.actor.left_s = lambda: 0.0
    (error,) = await stage.carry_out(RENT)
    assert error.startswith("not sent: the lead was lost")
    assert stage.orders == []
    assert stage.actor.fills == ()


async def test_releases_of_a_tick_share_calls_and_each_has_its_outcome(stage: Stage) -> None:
    names = [f"n{number}" for number in range(2 * RELEASES_MAX + 1)]
    errors = await stage.carry_out(*(ReleaseNode(name, "cloud-h", "") for name in names))
    assert sorted(len(call) for call in stage.releases) == [1, RELEASES_MAX, RELEASES_MAX]
    assert sorted(name for call in stage.releases for name in call) == sorted(names)
    assert errors == [""] * len(names)
    stage.memory.failing = True
    await stage.carry_out(ReleaseNode("n1", "cloud-h", ""), ReleaseNode("n2", "cloud-h", ""))
    outcomes = [entry for entry in stage.record if isinstance(entry, Outcome)][-2:]
    assert all("does not answer" in one.error for one in outcomes)


async def test_room_is_counted_in_calls(stage: Stage) -> None:
    names = [f"n{number}" for number in range(RELEASE_CALLS_MAX * RELEASES_MAX + 5)]
    releases = [Deed(COUNTER, ReleaseNode(name, "cloud-h", ""), 1) for name in names]
    starts = [Deed(COUNTER, StartReplica(Spec(f"r{n}", "idc-a", "idc-a-0"), ""), 1) for n in range(IN_FLIGHT_MAX + 5)]
    fit, rest = stage.actor.fitting([*starts, *releases])
    assert fit == [*starts[:IN_FLIGHT_MAX], *releases[: RELEASE_CALLS_MAX * RELEASES_MAX]]
    assert rest == [*starts[IN_FLIGHT_MAX:], *releases[RELEASE_CALLS_MAX * RELEASES_MAX :]]
    stage.memory.latency_s = 5.0
    stage.actor.begin([Deed(COUNTER, RENT, 1)])
    await asyncio.sleep(0)
    assert len(stage.actor.in_flight) == 1
    assert len(stage.actor.fitting(starts)[0]) == IN_FLIGHT_MAX - 1
    assert len(stage.actor.fitting(releases)[0]) == RELEASE_CALLS_MAX * RELEASES_MAX
    await stage.actor.wait(0.0)


async def test_a_moved_release_is_told_to_the_cloud(stage: Stage) -> None:
    await stage.carry_out(RENT, seconds=1)
    nodes = await stage.memory.nodes()
    until_ms = stage.clock.now_ms() + 3_600_000
    await stage.carry_out(KeepNodes(tuple(node.node_id for node in nodes), until_ms, ""), seconds=1)
    assert {node.release_at_ms for node in await stage.memory.nodes()} == {until_ms}
