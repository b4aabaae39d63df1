"""Random lives of a waiting room: nobody who is there is passed over, no more are let in than the stock can serve."""

import asyncio
from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st

from springtide.decide.room import TABLE_MAX, RoomPolicy, next_move
from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.inventory import MemoryInventory
from springtide.drivers.memory.room import MemoryRoom
from springtide.drivers.system import SystemIds
from springtide.model import (
    CounterLoad,
    LineState,
    ReserveRequest,
    ReserveStatus,
    RoomCall,
    RoomJoin,
    RoomReport,
    RoomView,
    Sale,
    Sku,
)
from springtide.sale.room_keeper import ABSENT_MS, RoomKeeper
from springtide.sale.room_mirror import NOT_CALLED, PASSED, RoomMirror, shuffle_of

OPENS_S = 10
PASS_MS = 20_000
POLICY = RoomPolicy(pass_ms=PASS_MS, grace_ms=0, requests_per_buyer=1.0)
sizes = st.one_of(st.integers(0, 300), st.sampled_from([TABLE_MAX, TABLE_MAX + 1, 5000, 6241]))


@given(seed=st.text(max_size=20), n=sizes)
@example(seed="", n=TABLE_MAX + 1)
@settings(max_examples=40)
def test_the_numbers_are_a_permutation_of_the_places(seed: str, n: int) -> None:
    shuffle = shuffle_of(seed, n)
    numbers = [shuffle.number(place) for place in range(n)]
    assert sorted(numbers) == list(range(n))
    assert [shuffle.place(number) for number in numbers] == list(range(n))


@given(seed=st.text(max_size=20), n=sizes, behind=st.integers(0, 1_000_000))
def test_who_comes_after_the_opening_stands_behind_in_the_order_of_coming(seed: str, n: int, behind: int) -> None:
    shuffle = shuffle_of(seed, n)
    assert shuffle.number(n + behind) == shuffle.place(n + behind) == n + behind


@given(serving=st.integers(0, 1000), allowed=st.integers(0, 30), present=st.lists(st.booleans(), max_size=60))
def test_those_present_are_called_in_turn_and_only_the_absent_are_passed_over(
    serving: int, allowed: int, present: list[bool]
) -> None:
    move = next_move(serving, allowed, present)
    there = {serving + offset for offset, here in enumerate(present) if here}
    called = [number for number in range(serving, move.stop) if number not in move.skipped]
    assert called == sorted(there)[: min(allowed, len(there))]
    assert not there & set(move.skipped)


# --- a whole room -------------------------------------------------------------------------------------------

actions = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(1, 6)),
        st.tuples(st.just("leave"), st.integers(0, 40)),
        st.tuples(st.just("buy"), st.integers(1, 6)),
        st.tuples(st.just("wait"), st.integers(1, 30)),
    ),
    max_size=40,
)


@dataclass
class World:
    stock: int
    rate: float
    clock: VirtualClock = field(default_factory=VirtualClock)
    places: list[str] = field(default_factory=list)
    left_ms: dict[int, int] = field(default_factory=dict)
    calls: list[RoomCall] = field(default_factory=list)
    bought: set[int] = field(default_factory=set)
    position: str = "-"

    def __post_init__(self) -> None:
        now_ms = self.clock.now_ms()
        self.sale = Sale(
            "tea",
            "Tea",
            (Sku("tea", "Tea", 100, self.stock),),
            now_ms + OPENS_S * 1000,
            now_ms + 10_000_000,
            1000,
            waiting_room=True,
        )
        self.inventory = MemoryInventory(self.clock)
        self.room = MemoryRoom(self.clock)
        self.keeper = RoomKeeper(self.inventory, self.room, None, self.clock, SystemIds(), POLICY)
        self.mirror = RoomMirror(PASS_MS)

    async def view(self) -> RoomView | None:
        view = await self.room.view("tea", self.position)
        if view is not None:
            self.mirror.apply(view, 0.0, 0)
            self.position = view.position
        return view

    async def join(self, count: int) -> None:
        buyers = [f"b{len(self.places) + offset}" for offset in range(count)]
        found = await self.room.join("tea", [RoomJoin(buyer) for buyer in buyers], self.sale.opens_ms, "a-seed")
        assert found.places == tuple(range(len(self.places), len(self.places) + count))
        self.places += buyers

    async def second(self) -> None:
        """A second passes: who is there asks, the keeper acts, and what it did is checked."""
        await self.clock.advance(1.0)
        view = await self.view()
        if view is not None and self.places:
            there = tuple(place for place in range(len(self.places)) if place not in self.left_ms)
            await self.room.report("tea", RoomReport(view.room_id, there))
        await self.room.declare(CounterLoad("c", self.rate))
        await self.keeper.tick()
        await self.check(view)

    async def check(self, before: RoomView | None) -> None:
        after = await self.view()
        sold = await self.inventory.view("tea")
        if after is None or sold is None:
            return
        assert after.outstanding <= max(sold.stock["tea"], before.outstanding if before is not None else 0)
        new = len(after.calls)
        assert new <= 1
        for call in after.calls:
            assert before is not None
            assert call.start == before.serving
            called = call.stop - call.start - len(call.skipped)
            assert called <= self.rate + 1
            assert after.outstanding <= sold.stock["tea"]
            for number in call.skipped:
                left_ms = self.left_ms.get(self.place(number))
                assert left_ms is not None, "somebody who was there was passed over"
                assert after.at_ms - left_ms >= ABSENT_MS - 2000
            self.calls.append(call)

    def place(self, number: int) -> int:
        return next(place for place in range(len(self.places)) if self.mirror.number(place) == number)

    def inside(self) -> list[int]:
        now_ms = self.clock.now_ms()
        numbers = [self.mirror.number(place) for place in range(len(self.places))]
        return [number for number in sorted(numbers) if self.mirror.called(number, now_ms) > 0]

    async def buy(self, count: int) -> None:
        """Some of those inside buy: whoever was let in finds stock, for everybody takes one unit."""
        view = await self.view()
        if view is None:
            return
        buying = [number for number in self.inside() if number not in self.bought][:count]
        for number in buying:
            buyer = self.places[self.place(number)]
            deadline_ms = self.clock.now_ms() + 1000
            request = ReserveRequest(buyer, "k", "tea", 1, f"o-{buyer}", 1, deadline_ms)
            (result,) = await self.inventory.reserve("tea", 0, [request])
            assert result.status is ReserveStatus.RESERVED
        self.bought.update(buying)
        await self.room.report("tea", RoomReport(view.room_id, (), tuple(buying), len(buying)))


async def live(world: World, prequeue: int, steps: list[tuple[str, int]]) -> None:
    await world.inventory.publish(world.sale)
    if prequeue:
        await world.join(prequeue)
    for _ in range(OPENS_S + 1):
        await world.second()
    for action, amount in steps:
        if action == "join":
            await world.join(amount)
        elif action == "leave" and amount < len(world.places):
            world.left_ms.setdefault(amount, world.clock.now_ms())
        elif action == "buy":
            await world.buy(amount)
        elif action == "wait":
            for _ in range(amount):
                await world.second()
    await world.join(1)
    for _ in range(300):
        await world.second()
        await world.buy(1000)


@given(
    stock=st.integers(0, 25),
    rate=st.sampled_from([0.2, 1.0, 3.0, 100.0]),
    prequeue=st.integers(0, 20),
    steps=actions,
)
@settings(max_examples=10)
def test_in_the_life_of_a_room_nobody_is_passed_over_and_no_more_are_let_in_than_can_be_served(
    stock: int, rate: float, prequeue: int, steps: list[tuple[str, int]]
) -> None:
    world = World(stock, rate)
    asyncio.run(live(world, prequeue, steps))
    view = asyncio.run(world.view())
    assert view is not None
    left = stock - len(world.bought)
    if left:
        # Everybody who stayed has been called: there was something for all of them.
        stayed = [world.mirror.number(place) for place in range(len(world.places)) if place not in world.left_ms]
        called = [world.mirror.called(number, world.clock.now_ms()) for number in stayed]
        assert NOT_CALLED not in called
        assert view.state is LineState.OPEN
    else:
        assert view.state is LineState.HELD
    skipped = {number for call in world.calls for number in call.skipped}
    assert len(skipped) <= len(world.left_ms)
    assert all(world.mirror.called(number, world.clock.now_ms()) == PASSED for number in skipped)
