"""What every waiting room promises: Valkey's and the one in memory pass the same suite."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from springtide.drivers.embedded_valkey import EmbeddedValkey, start_valkey
from springtide.drivers.memory.room import MemoryRoom
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey_room import CALLS_READ_MAX, ValkeyRoom
from springtide.model import (
    CALLED_MAX,
    JOINS_MAX,
    CounterLoad,
    LineState,
    RoomJoin,
    RoomReport,
    RoomStep,
    RoomView,
)
from springtide.ports import WaitingRoom

HOUR_MS = 3_600_000
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    folder: Path = tmp_path_factory.mktemp("valkey")
    server = asyncio.run(start_valkey(folder, SystemClock()))
    yield server
    asyncio.run(server.stop())


@pytest.fixture(params=["valkey", "memory"])
async def room(request: pytest.FixtureRequest, server: EmbeddedValkey) -> AsyncIterator[WaitingRoom]:
    port: WaitingRoom
    if request.param == "valkey":
        port = await ValkeyRoom.connect(server.host, server.port, SystemClock())
    else:
        port = MemoryRoom(SystemClock())
    yield port
    await port.close()


@pytest.fixture
def sale() -> str:
    return f"sale-{next(_numbers)}"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def later() -> int:
    return now_ms() + HOUR_MS


def earlier() -> int:
    return now_ms() - 1000


async def join(room: WaitingRoom, sale: str, *buyers: str, opens_ms: int | None = None) -> tuple[int, ...]:
    joins = [RoomJoin(buyer) for buyer in buyers]
    return (await room.join(sale, joins, later() if opens_ms is None else opens_ms, "seed")).places


async def seen(room: WaitingRoom, sale: str) -> RoomView:
    view = await room.view(sale, "-")
    assert view is not None
    return view


async def call(
    room: WaitingRoom,
    sale: str,
    stop: int,
    skipped: Sequence[int] = (),
    state: LineState = LineState.OPEN,
    pass_ms: int = 60_000,
) -> bool:
    view = await seen(room, sale)
    return await room.step(sale, RoomStep(view.room_id, view.step, stop, tuple(skipped), state, 1.5, 2.5, pass_ms))


async def test_a_room_nobody_joined_is_not_there(room: WaitingRoom, sale: str) -> None:
    assert await room.view(sale, "-") is None
    assert (await room.beats(sale, "-")).seen == ()
    assert not await room.report(sale, RoomReport("other", (1,)))
    assert not await room.step(sale, RoomStep("other", 0, 0, (), LineState.OPEN, 0, 0, 1000))


async def test_places_are_given_in_the_order_of_joining_and_kept(room: WaitingRoom, sale: str) -> None:
    assert await join(room, sale, "ann", "bob", "ann") == (0, 1, 0)
    assert await join(room, sale, "cid", "bob") == (2, 1)
    view = await seen(room, sale)
    assert (view.joined, view.drawn, view.seed, view.serving) == (3, -1, "", 0)
    assert view.state is LineState.OPEN
    assert abs(view.at_ms - now_ms()) < 2000


async def test_who_lost_his_place_gets_a_new_one_once(room: WaitingRoom, sale: str) -> None:
    await join(room, sale, "ann", "bob")
    again = [RoomJoin("ann", lost=0)]
    assert (await room.join(sale, again, later(), "seed")).places == (2,)
    assert (await room.join(sale, again, later(), "seed")).places == (2,)
    assert await join(room, sale, "ann") == (2,)


async def test_the_id_of_a_room_stays_and_does_not_tell_the_seed(room: WaitingRoom, sale: str) -> None:
    first = await room.join(sale, [RoomJoin("ann")], later(), "one")
    second = await room.join(sale, [RoomJoin("bob")], later(), "two")
    assert first.room_id == second.room_id
    assert "one" not in first.room_id
    assert 8 <= len(first.room_id) <= 20


async def test_a_call_with_too_many_joins_is_refused(room: WaitingRoom, sale: str) -> None:
    with pytest.raises(ValueError, match="512"):
        await room.join(sale, [RoomJoin(f"b{i}") for i in range(JOINS_MAX + 1)], later(), "seed")
    with pytest.raises(ValueError, match="512"):
        await room.join(sale, [], later(), "seed")
    assert len(await join(room, sale, *(f"b{i}" for i in range(JOINS_MAX)))) == JOINS_MAX


async def test_the_lot_is_not_drawn_before_the_opening(room: WaitingRoom, sale: str) -> None:
    await join(room, sale, "ann")
    assert not await room.draw(sale, later(), "early")
    assert (await seen(room, sale)).seed == ""


async def test_the_lot_is_drawn_once_for_those_who_were_there(room: WaitingRoom, sale: str) -> None:
    await join(room, sale, "ann", "bob")
    assert await room.draw(sale, earlier(), "first")
    assert await room.draw(sale, earlier(), "second")
    await join(room, sale, "cid", opens_ms=earlier())
    view = await seen(room, sale)
    assert (view.drawn, view.seed, view.joined) == (2, "first", 3)


async def test_a_join_after_the_opening_draws_the_lot_before_it_takes_its_place(room: WaitingRoom, sale: str) -> None:
    await join(room, sale, "ann", "bob")
    places = await room.join(sale, [RoomJoin("cid")], earlier(), "drawn-by-join")
    assert places.places == (2,)
    view = await seen(room, sale)
    assert (view.drawn, view.seed) == (2, "drawn-by-join")


async def test_an_empty_room_can_be_drawn(room: WaitingRoom, sale: str) -> None:
    assert await room.draw(sale, earlier(), "seed")
    assert await join(room, sale, "ann", opens_ms=earlier()) == (0,)
    assert (await seen(room, sale)).drawn == 0


async def test_a_step_moves_the_line_and_is_seen(room: WaitingRoom, sale: str) -> None:
    await join(room, sale, *"abcdef")
    assert await call(room, sale, 4, skipped=(1, 2))
    view = await seen(room, sale)
    assert (view.serving, view.outstanding, view.step, view.credit, view.pace) == (4, 2, 1, 1.5, 2.5)
    (one,) = view.calls
    assert (one.start, one.stop, one.skipped) == (0, 4, (1, 2))
    assert abs(one.at_ms - now_ms()) < 2000
    assert abs(view.stepped_ms - one.at_ms) < 50


async def test_of_two_steps_from_one_view_the_first_counts(room: WaitingRoom, sale: str) -> None:
    await join(room, sale, *"abcdef")
    view = await seen(room, sale)
    steps = [RoomStep(view.room_id, view.step, stop, (), LineState.OPEN, 0.0, 0.0, 60_000) for stop in (2, 3)]
    assert await asyncio.gather(*(room.step(sale, step) for step in steps)) == [True, False]
    assert (await seen(room, sale)).serving == 2


async def test_a_step_of_another_room_or_beyond_the_line_is_void(room: WaitingRoom, sale: str) -> None:
    await join(room, sale, *"abc")
    assert not await call(room, sale, 4)
    assert await call(room, sale, 2)
    assert not await call(room, sale, 1)
    view = await seen(room, sale)
    other = RoomStep("other", view.step, 3, (), LineState.OPEN, 0.0, 0.0, 60_000)
    assert not await room.step(sale, other)
    assert (await seen(room, sale)).serving == 2


async def test_a_step_calls_no_more_than_the_limit(room: WaitingRoom, sale: str) -> None:
    for start in range(0, CALLED_MAX + JOINS_MAX, JOINS_MAX):
        await join(room, sale, *(f"b{number}" for number in range(start, start + JOINS_MAX)))
    assert not await call(room, sale, CALLED_MAX + 1)
    assert await call(room, sale, CALLED_MAX, skipped=range(0, CALLED_MAX, 2))
    view = await seen(room, sale)
    assert view.outstanding == CALLED_MAX // 2
    assert view.calls[0].skipped == tuple(range(0, CALLED_MAX, 2))


async def test_a_position_leads_to_the_calls_after_it(room: WaitingRoom, sale: str) -> None:
    await join(room, sale, *"abcdef")
    await call(room, sale, 1)
    first = await seen(room, sale)
    assert (await room.view(sale, first.position) or first).calls == ()
    await call(room, sale, 3)
    await call(room, sale, 4)
    rest = await room.view(sale, first.position)
    assert rest is not None
    assert [(one.start, one.stop) for one in rest.calls] == [(1, 3), (3, 4)]
    assert not rest.more


async def test_a_step_that_calls_nobody_changes_the_state_only(room: WaitingRoom, sale: str) -> None:
    await join(room, sale, "ann")
    for state in LineState:
        assert await call(room, sale, 0, state=state)
        view = await seen(room, sale)
        assert (view.state, view.calls, view.serving) == (state, (), 0)


async def test_a_pass_ends_by_time_and_is_counted_no_more(room: WaitingRoom, sale: str) -> None:
    await join(room, sale, *"abcd")
    await call(room, sale, 2, pass_ms=150)
    await call(room, sale, 3)
    assert (await seen(room, sale)).outstanding == 3
    await asyncio.sleep(0.2)
    assert (await seen(room, sale)).outstanding == 1
    assert await call(room, sale, 4)
    assert (await seen(room, sale)).outstanding == 2


async def test_a_pass_is_used_once(room: WaitingRoom, sale: str) -> None:
    await join(room, sale, *"abcd")
    await call(room, sale, 3)
    room_id = (await seen(room, sale)).room_id
    assert await room.report(sale, RoomReport(room_id, served=(0, 2), served_units=5))
    assert await room.report(sale, RoomReport(room_id, served=(0, 2), served_units=5))
    assert await room.report(sale, RoomReport(room_id, served=(3,), served_units=1))
    view = await seen(room, sale)
    assert (view.outstanding, view.served, view.served_units) == (1, 2, 5)


async def test_who_joined_and_who_was_seen_is_told_from_a_position_on(room: WaitingRoom, sale: str) -> None:
    await join(room, sale, "ann", "bob")
    first = await room.beats(sale, "-")
    assert [places for _, places in first.seen] == [(0, 1)]
    room_id = (await seen(room, sale)).room_id
    assert await room.report(sale, RoomReport(room_id, seen=(1, 300, 70_000)))
    assert not await room.report(sale, RoomReport("other", seen=(0,)))
    await join(room, sale, "ann")
    rest = await room.beats(sale, first.position)
    assert [places for _, places in rest.seen] == [(1, 300, 70_000)]
    assert abs(rest.seen[0][0] - now_ms()) < 2000
    assert (await room.beats(sale, rest.position)).seen == ()
    assert not rest.more


async def test_rooms_are_kept_apart(room: WaitingRoom, sale: str) -> None:
    other = sale + "-b"
    await join(room, sale, "ann", "bob")
    assert await join(room, other, "bob") == (0,)
    await call(room, sale, 1)
    assert (await seen(room, other)).serving == 0
    assert (await seen(room, other)).room_id


async def test_the_load_of_counters_is_told_until_they_are_silent(room: WaitingRoom) -> None:
    await room.declare(CounterLoad("c-2", 300.0, 0.5, 0.25))
    await room.declare(CounterLoad("c-1", 100.0))
    await room.declare(CounterLoad("c-1", 0.0))
    assert await room.loads() == [CounterLoad("c-1", 0.0), CounterLoad("c-2", 300.0, 0.5, 0.25)]


async def test_many_moves_of_the_line_are_read_in_parts(server: EmbeddedValkey, sale: str) -> None:
    room = await ValkeyRoom.connect(server.host, server.port, SystemClock())
    for start in range(0, CALLS_READ_MAX + JOINS_MAX, JOINS_MAX):
        await join(room, sale, *(f"b{number}" for number in range(start, start + JOINS_MAX)))
    room_id = (await seen(room, sale)).room_id
    moves = CALLS_READ_MAX + 10
    for number in range(moves):
        await room.step(sale, RoomStep(room_id, number, number + 1, (), LineState.OPEN, 0.0, 0.0, 60_000))
    first = await seen(room, sale)
    assert first.more
    rest = await room.view(sale, first.position)
    assert rest is not None
    assert [one.start for one in first.calls + rest.calls] == list(range(moves))
    await room.close()


async def test_a_closed_room_is_forgotten_in_the_end(server: EmbeddedValkey, sale: str) -> None:
    room = await ValkeyRoom.connect(server.host, server.port, SystemClock())
    await join(room, sale, "ann", "bob")
    await call(room, sale, 1)
    keys = [f"{{{sale}:room}}:{name}" for name in ("room", "places", "beats", "calls", "passes")]
    wire = (await room._store.primaries())[0]
    assert [await wire.call("PTTL", key) for key in keys] == [-1] * 5
    await call(room, sale, 1, state=LineState.CLOSED)
    assert all([await wire.call("PTTL", key) > HOUR_MS for key in keys])
    await call(room, sale, 1)
    assert [await wire.call("PTTL", key) for key in keys] == [-1] * 5
    await room.close()
